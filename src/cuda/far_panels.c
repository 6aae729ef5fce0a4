/* Panels by second order on a GPU: src/prune/panel_obs.c and joint.c, many panels in step.
 *
 * Each panel has a copy of H^-1 of its own, from which the columns that it gives up are swept, so
 * memory says how many are at work together. Copies are made smaller as columns go: the matrices
 * lie in slots, one more than there are panels, and move by a slot when they are gathered anew. In
 * what is left two of each four are found: by SparseGPT's sweep panel by panel, or for `joint` by a
 * search of every row for itself, block by block from left to right. */
#include "cuda/far.h"

#define MOST_BYTES ((size_t)14 << 30) /* of panels at work together, or 2 / 5 of the device */
#define MOST_PANELS 65535             /* what a grid has across */
#define SWEEP_BLOCK 128
#define STRIPS 8          /* of a matrix that is flushed: 9 / 16 of the work */
#define LEAST_STRIP 128   /* columns */
#define SHRINK_AT 8       /* of so many columns one has gone: they are numbered anew */

/* Panels at work together: `rows` of their `panels` * v are there. */
typedef struct panel_part {
    const cuda_far *far;
    const esp_far_panels *of;
    double *shared; /* H^-1 */
    int64_t first, panels, rows;
    int64_t v, n; /* rows of a panel, places */
    gpu_columns columns;
    double *slots; /* [panels + 1][step] */
    int64_t step;
    double *other;      /* room for weights: [panels][v][stride] */
    int32_t *places;    /* host: [panels][n], numbers of columns as they are gathered in the end */
    int32_t *listed;    /* host: [panels][n], the places' columns */
    int32_t *device_listed;
    double *matrix; /* [panels][n][n], `step` apart */
    double *values; /* [panels][v][n] */
    double *corner, *lost, *owed, *room;
    uint8_t *live; /* of a block */
    double *errors;
    uint64_t *mask, *bits; /* of all rows, or as places of a panel; bits: on the host */
    double *back;          /* [rows][in] */
} panel_part;

/* ---- which columns ---- */

/* Columns that a panel keeps: of V:2:M four of each group. */
static int64_t places_of(const esp_far_panels *of)
{
    int64_t last = of->in % of->group;
    return of->every || of->free ? ESP_MIN(of->kept, of->in)
                                 : of->in / of->group * ESP_MIN(4, of->group) + ESP_MIN(4, last);
}

static int64_t even(int64_t count)
{
    return esp_ceil_div(count, 2) * 2;
}

/* Of a matrix, so that all begin at whole sectors. */
static int64_t slot_of(int64_t n)
{
    return esp_ceil_div(n * n, 32) * 32;
}

static size_t bytes_of_panel(const esp_far_panels *of)
{
    size_t in = (size_t)of->in, n = (size_t)ESP_MIN(of->kept, of->in), v = (size_t)of->v;
    size_t matrix = (size_t)slot_of(of->every ? of->kept : of->in);
    return (matrix + 2 * GPU_PENDING * in + (2 * v + 6) * in + v * n) * sizeof(double);
}

static esp_status take_columns(panel_part *p, esp_error *error)
{
    const cuda_far *far = p->far;
    gpu_columns *c = &p->columns;
    size_t panels = (size_t)p->panels, v = (size_t)p->v, across = (size_t)even(p->of->in);
    size_t line = panels * across * sizeof(double), turns = panels * GPU_PENDING * sizeof(double);
    size_t numbers = panels * across * sizeof(int32_t);
    size_t offers = (size_t)esp_ceil_div(p->of->in, GPU_COLUMNS_ACROSS) * sizeof *c->offers;
    const struct {
        void *area;
        size_t bytes;
    } wanted[] = {{&c->diagonal, line},
                  {&c->weights, line * v},
                  {&p->other, line * v},
                  {&c->costs, line},
                  {&c->pending, line * GPU_PENDING},
                  {&c->scaled, line * GPU_PENDING},
                  {&c->times, turns * v},
                  {&c->pivots, turns},
                  {&c->by_line, turns},
                  {&c->by_gain, turns},
                  {&c->offers, panels * offers},
                  {&c->left, numbers},
                  {&c->chosen, panels * sizeof(int32_t)},
                  {&c->alive, numbers},
                  {&c->listed, numbers},
                  {&c->original, numbers},
                  {&c->renumbered, numbers}};
    for (int i = 0; i < ESP_COUNT(wanted); i++) {
        ESP_TRY(far_take(far, wanted[i].bytes, "panels", wanted[i].area, error));
    }
    int failed = gpu_clear(c->weights, line * v, far->stream); /* rows that a panel lacks */
    failed = failed == 0 ? gpu_clear(p->other, line * v, far->stream) : failed;
    failed = failed == 0 ? gpu_clear(c->pending, line * GPU_PENDING, far->stream) : failed;
    return far_check(far, failed, "filling its memory", error);
}

static void give_columns(panel_part *p)
{
    gpu_columns *c = &p->columns;
    void *const taken[] = {c->diagonal, c->weights, p->other,   c->costs,  c->pending,  c->scaled,
                           c->times,    c->pivots,  c->by_line, c->by_gain, c->offers,  c->left,
                           c->chosen,   c->alive,   c->listed,  c->original, c->renumbered};
    for (int i = 0; i < ESP_COUNT(taken); i++) {
        far_give(p->far, taken[i]);
    }
    *c = (gpu_columns){0};
    p->other = NULL;
}

static void set_width(gpu_columns *c, int64_t width)
{
    c->width = width;
    c->strip = ESP_MAX(LEAST_STRIP, esp_ceil_div(width, STRIPS * 64) * 64);
}

static esp_status load_panels(panel_part *p, esp_error *error)
{
    const esp_far_panels *of = p->of;
    const cuda_far *far = p->far;
    gpu_columns *c = &p->columns;
    size_t square = (size_t)(of->in * of->in) * sizeof(double);
    size_t weights = (size_t)(p->rows * of->in) * sizeof(double);
    set_width(c, of->in);
    c->stride = even(of->in);
    c->v = p->v;
    c->rows = p->rows;
    c->panels = p->panels;
    c->group = of->group;
    c->kept = of->kept;
    c->free = of->free;
    c->matrix = p->slots + p->step;
    c->matrix_step = p->step;
    int failed = 0;
    for (int64_t i = 0; i < p->panels && failed == 0; i++) {
        failed = gpu_move(c->matrix + i * p->step, p->shared, square, far->stream);
    }
    ESP_TRY(far_check(far, failed, "copying", error));
    ESP_TRY(far_send(far, p->other, of->weights + p->first * of->v * of->in, weights, error));
    failed = gpu_columns_begin(c, p->other, far->stream);
    failed = failed == 0 ? gpu_columns_settle(c, far->stream) : failed;
    return far_check(far, failed, "panels", error);
}

/* ---- what is owed ---- */

/* A strip of columns, from its own rows down. */
static esp_status pay_strip(const panel_part *p, int64_t at, int turns, esp_error *error)
{
    const gpu_columns *c = &p->columns;
    const far_product owed = {.rows = c->width - at,
                              .columns = ESP_MIN(c->strip, c->width - at),
                              .depth = turns,
                              .alpha = -1,
                              .beta = 1,
                              .a = c->scaled + at,
                              .a_stride = c->stride,
                              .a_step = GPU_PENDING * c->stride,
                              .a_transposed = true,
                              .b = c->pending + at,
                              .b_stride = c->stride,
                              .b_step = GPU_PENDING * c->stride,
                              .c = c->matrix + at * c->width + at,
                              .c_stride = c->width,
                              .c_step = c->matrix_step,
                              .count = c->panels};
    return far_multiply(p->far, &owed, error);
}

static esp_status pay_weights(const panel_part *p, int turns, esp_error *error)
{
    const gpu_columns *c = &p->columns;
    const far_product owed = {.rows = c->v,
                              .columns = c->width,
                              .depth = turns,
                              .alpha = -1,
                              .beta = 1,
                              .a = c->times,
                              .a_stride = c->v,
                              .a_step = GPU_PENDING * c->v,
                              .a_transposed = true,
                              .b = c->pending,
                              .b_stride = c->stride,
                              .b_step = GPU_PENDING * c->stride,
                              .c = c->weights,
                              .c_stride = c->stride,
                              .c_step = c->v * c->stride,
                              .count = c->panels};
    return far_multiply(p->far, &owed, error);
}

static esp_status flush(const panel_part *p, int turns, esp_error *error)
{
    const gpu_columns *c = &p->columns;
    ESP_TRY(far_check(p->far, gpu_columns_scale(c, turns, p->far->stream), "scaling", error));
    for (int64_t at = 0; at < c->width; at += c->strip) {
        ESP_TRY(pay_strip(p, at, turns, error));
    }
    return pay_weights(p, turns, error);
}

/* Matrices at n columns each, which are listed in device memory `stride` apart, into the slots next
 * to theirs: panel after panel, from the side to which they go. */
static esp_status move_matrices(panel_part *p, const int32_t *listed, int64_t stride, int64_t n,
                                esp_error *error)
{
    const gpu_columns *c = &p->columns;
    bool up = c->matrix == p->slots;
    double *to = up ? p->slots + p->step : p->slots;
    for (int64_t i = 0; i < p->panels; i++) {
        int64_t panel = up ? p->panels - 1 - i : i;
        ESP_TRY(far_check(p->far,
                          gpu_columns_matrix(c, panel, listed + panel * stride, n,
                                             to + panel * p->step, p->far->stream),
                          "gathering", error));
    }
    p->columns.matrix = to;
    return ESP_OK;
}

/* Goes on with those columns only that are left. */
static esp_status shrink(panel_part *p, int64_t n, esp_error *error)
{
    gpu_columns *c = &p->columns;
    void *stream = p->far->stream;
    int failed = gpu_columns_list(c, n, stream);
    failed = failed == 0 ? gpu_columns_values(c, c->listed, c->stride, n, p->other, c->stride,
                                              stream)
                         : failed;
    failed = failed == 0 ? gpu_columns_renumber(c, n, stream) : failed;
    ESP_TRY(far_check(p->far, failed, "gathering", error));
    ESP_TRY(move_matrices(p, c->listed, c->stride, n, error));
    double *weights = c->weights;
    int32_t *original = c->original;
    c->weights = p->other;
    c->original = c->renumbered;
    p->other = weights;
    c->renumbered = original;
    set_width(c, n);
    return ESP_OK;
}

static esp_status drop_columns(panel_part *p, esp_error *error)
{
    gpu_columns *c = &p->columns;
    int turn = 0;
    for (int64_t left = p->of->in; left > p->n; left--) {
        ESP_TRY(far_check(p->far, gpu_columns_drop(c, turn, p->far->stream), "dropping columns",
                          error));
        if (++turn < GPU_PENDING && left - 1 > p->n) {
            continue;
        }
        ESP_TRY(flush(p, turn, error));
        turn = 0;
        if (left - 1 > p->n && (c->width - left + 1) * SHRINK_AT >= c->width) {
            ESP_TRY(shrink(p, left - 1, error));
        }
        ESP_TRY(far_check(p->far, gpu_columns_settle(c, p->far->stream), "panels", error));
    }
    return ESP_OK;
}

/* places and listed: ascending, of what is alive. */
static esp_status list_places(panel_part *p, esp_error *error)
{
    const gpu_columns *c = &p->columns;
    size_t count = (size_t)(p->panels * c->stride);
    int32_t *numbers = esp_alloc_array(p->far->device->context, 2 * count, sizeof *numbers);
    if (numbers == NULL) {
        return esp_fail_memory(error, 2 * count * sizeof *numbers, "columns");
    }
    int32_t *original = numbers + count;
    esp_status status = far_check(p->far, gpu_columns_list(c, p->n, p->far->stream), "listing",
                                  error);
    status = status == ESP_OK ? far_bring(p->far, numbers, c->listed, count * sizeof *numbers, error)
                              : status;
    status = status == ESP_OK
                 ? far_bring(p->far, original, c->original, count * sizeof *numbers, error)
                 : status;
    for (int64_t i = 0; i < p->panels && status == ESP_OK; i++) {
        uint32_t *columns = p->of->columns + (p->first + i) * p->of->kept;
        for (int64_t at = 0; at < p->of->kept; at++) {
            int32_t place = at < p->n ? numbers[i * c->stride + at] : 0;
            int32_t column = original[i * c->stride + place];
            columns[at] = at < p->n ? (uint32_t)column : UINT32_MAX;
            if (at < p->n) {
                p->places[i * p->n + at] = place;
                p->listed[i * p->n + at] = column;
            }
        }
    }
    esp_release(p->far->device->context, numbers);
    return status;
}

/* values: the places as they are listed. */
static esp_status gather_values(const panel_part *p, esp_error *error)
{
    ESP_TRY(far_send(p->far, p->device_listed, p->places,
                     (size_t)(p->panels * p->n) * sizeof *p->places, error));
    return far_check(p->far,
                     gpu_columns_values(&p->columns, p->device_listed, p->n, p->n, p->values, p->n,
                                        p->far->stream),
                     "gathering", error);
}

/* ---- fours of free panels ---- */

typedef struct deal_room {
    double *values, *diagonal, *of_places;
    uint32_t *order;
    int32_t *before; /* [2][n] */
} deal_room;

/* One panel's list in the order that the host wants. */
static esp_status deal_panel(const panel_part *p, const deal_room *room, int64_t panel,
                             esp_error *error)
{
    const esp_far_panels *of = p->of;
    int64_t n = p->n, rows = ESP_MIN(p->v, p->rows - panel * p->v);
    int32_t *listed = p->listed + panel * n, *places = p->places + panel * n;
    uint32_t *columns = of->columns + (p->first + panel) * of->kept;
    for (int64_t i = 0; i < n; i++) {
        room->of_places[i] = room->diagonal[panel * p->columns.stride + places[i]];
        room->before[i] = listed[i];
        room->before[n + i] = places[i];
    }
    ESP_TRY(of->deal(of->user, rows, n, room->values + panel * p->v * n, room->of_places,
                     room->order, error));
    for (int64_t i = 0; i < n; i++) {
        listed[i] = room->before[room->order[i]];
        places[i] = room->before[n + room->order[i]];
        columns[i] = (uint32_t)listed[i];
    }
    return ESP_OK;
}

static esp_status deal_panels(const panel_part *p, const deal_room *room, esp_error *error)
{
    size_t values = (size_t)(p->rows * p->n), places = (size_t)(p->panels * p->columns.stride);
    if (room->values == NULL || room->diagonal == NULL || room->of_places == NULL ||
        room->order == NULL || room->before == NULL) {
        return esp_fail_memory(error, values * sizeof(double), "fours of panels");
    }
    ESP_TRY(far_bring(p->far, room->values, p->values, values * sizeof(double), error));
    ESP_TRY(far_bring(p->far, room->diagonal, p->columns.diagonal, places * sizeof(double), error));
    for (int64_t i = 0; i < p->panels; i++) {
        ESP_TRY(deal_panel(p, room, i, error));
    }
    return gather_values(p, error);
}

static esp_status deal_fours(const panel_part *p, esp_error *error)
{
    esp_context *context = p->far->device->context;
    size_t n = (size_t)p->n;
    const deal_room room = {
        .values = esp_alloc_array(context, (size_t)p->rows * n, sizeof(double)),
        .diagonal = esp_alloc_array(context, (size_t)(p->panels * p->columns.stride),
                                    sizeof(double)),
        .of_places = esp_alloc_array(context, n, sizeof(double)),
        .order = esp_alloc_array(context, n, sizeof(uint32_t)),
        .before = esp_alloc_array(context, 2 * n, sizeof(int32_t))};
    esp_status status = deal_panels(p, &room, error);
    void *const areas[] = {room.values, room.diagonal, room.of_places, room.order, room.before};
    for (int i = 0; i < ESP_COUNT(areas); i++) {
        esp_release(context, areas[i]);
    }
    return status;
}

static esp_status choose_columns(panel_part *p, esp_error *error)
{
    ESP_TRY(take_columns(p, error));
    ESP_TRY(load_panels(p, error));
    ESP_TRY(drop_columns(p, error));
    ESP_TRY(list_places(p, error));
    ESP_TRY(gather_values(p, error));
    if (p->of->deal != NULL && p->n == p->of->kept) { /* without padding */
        ESP_TRY(deal_fours(p, error));
    }
    ESP_TRY(move_matrices(p, p->device_listed, p->n, p->n, error));
    p->matrix = p->columns.matrix;
    give_columns(p);
    return ESP_OK;
}

/* All columns of all rows: one panel of one matrix. */
static esp_status take_every(panel_part *p, esp_error *error)
{
    const esp_far_panels *of = p->of;
    size_t square = (size_t)(p->n * p->n) * sizeof(double);
    for (int64_t j = 0; j < p->n; j++) {
        p->listed[j] = (int32_t)j;
    }
    p->matrix = p->slots;
    ESP_TRY(far_check(p->far, gpu_move(p->matrix, p->shared, square, p->far->stream), "copying",
                      error));
    return far_send(p->far, p->values, of->weights, (size_t)(p->rows * p->n) * sizeof(double),
                    error);
}

/* ---- two of each four ---- */

/* matrix becomes U, upper, zero below the diagonal. */
static esp_status factor_panels(const panel_part *p, esp_error *error)
{
    bool definite = false;
    ESP_TRY(p->panels == 1 ? far_factor(p->far, p->matrix, p->n, &definite, error)
                           : far_factor_many(p->far, p->matrix, p->n, p->step, p->panels, &definite,
                                             error));
    if (!definite) {
        return far_not_definite(error);
    }
    return far_check(p->far,
                     gpu_zero_lower(p->matrix, p->n, p->panels, p->step, p->far->stream),
                     "factoring", error);
}

static void set_bit(const panel_part *p, int64_t row, int64_t place)
{
    int32_t column = p->listed[row / p->v * p->n + place];
    uint64_t *bits = p->of->mask + (p->first * p->of->v + row) * p->of->mask_words;
    bits[column / 64] |= (uint64_t)1 << column % 64;
}

/* The block's corner of H^-1 of itself and all to its right: U^T U of its part of U. */
static esp_status take_corner(const panel_part *p, int64_t block, int64_t width, esp_error *error)
{
    const double *u = p->matrix + block * p->n + block;
    const far_product square = {.rows = width,
                                .columns = width,
                                .depth = width,
                                .alpha = 1,
                                .a = u,
                                .a_stride = p->n,
                                .a_step = p->step,
                                .a_transposed = true,
                                .b = u,
                                .b_stride = p->n,
                                .b_step = p->step,
                                .c = p->corner,
                                .c_stride = width,
                                .c_step = width * width,
                                .count = p->panels};
    return far_multiply(p->far, &square, error);
}

/* Places right of the block make up for what it lost: owed = lost L, rest -= owed U. */
static esp_status update_right(const panel_part *p, int64_t block, int64_t width, esp_error *error)
{
    const double *u = p->matrix + block * p->n + block;
    const far_product owed = {.rows = p->v,
                              .columns = width,
                              .depth = width,
                              .alpha = 1,
                              .a = p->lost,
                              .a_stride = width,
                              .a_step = p->v * width,
                              .b = u,
                              .b_stride = p->n,
                              .b_step = p->step,
                              .b_transposed = true,
                              .c = p->owed,
                              .c_stride = width,
                              .c_step = p->v * width,
                              .count = p->panels};
    const far_product rest = {.rows = p->v,
                              .columns = p->n - block - width,
                              .depth = width,
                              .alpha = -1,
                              .beta = 1,
                              .a = p->owed,
                              .a_stride = width,
                              .a_step = p->v * width,
                              .b = u + width,
                              .b_stride = p->n,
                              .b_step = p->step,
                              .c = p->values + block + width,
                              .c_stride = p->n,
                              .c_step = p->v * p->n,
                              .count = p->panels};
    ESP_TRY(far_multiply(p->far, &owed, error));
    return far_multiply(p->far, &rest, error);
}

static esp_status search_block(const panel_part *p, int64_t block, int64_t width, int blocks,
                               esp_error *error)
{
    bool whole = width == p->n;
    if (!whole) {
        ESP_TRY(take_corner(p, block, width, error));
    }
    const gpu_rows rows = {.rows = p->rows,
                           .width = width,
                           .panel_rows = p->v,
                           .corner = whole ? p->matrix : p->corner,
                           .corner_step = whole ? p->step : width * width,
                           .values = p->values + block,
                           .values_stride = p->n,
                           .lost = p->lost,
                           .live = p->live,
                           .room = p->room,
                           .blocks = blocks};
    void *stream = p->far->stream;
    int failed = gpu_rows_search(&rows, stream);
    failed = failed == 0 ? gpu_rows_mark(&rows, p->device_listed + block, p->n, p->mask,
                                         p->of->mask_words, stream)
                         : failed;
    ESP_TRY(far_check(p->far, failed, "a search of rows", error));
    return block + width < p->n ? update_right(p, block, width, error) : ESP_OK;
}

static esp_status search_rows(panel_part *p, esp_error *error)
{
    const cuda_far *far = p->far;
    const cuda_state *state = far->device->state;
    int64_t most = esp_joint_block(p->n);
    int blocks = (int)ESP_MIN(p->rows, state->facts.multiprocessors * gpu_rows_at_once(most));
    size_t of_block = (size_t)(p->panels * p->v * most), square = (size_t)(most * most);
    ESP_TRY(
        far_take(far, (size_t)p->panels * square * sizeof(double), "corners", &p->corner, error));
    ESP_TRY(far_take(far, of_block * sizeof(double), "losses", &p->lost, error));
    ESP_TRY(far_take(far, of_block * sizeof(double), "losses", &p->owed, error));
    ESP_TRY(far_take(far, (size_t)blocks * square * sizeof(double), "rows", &p->room, error));
    ESP_TRY(far_take(far, of_block, "live places", &p->live, error));
    size_t words = (size_t)(p->rows * p->of->mask_words) * sizeof *p->mask;
    ESP_TRY(far_take(far, words, "a mask", &p->mask, error));
    ESP_TRY(far_check(far, gpu_clear(p->mask, words, far->stream), "filling its memory", error));
    if (p->n > most) {
        ESP_TRY(factor_panels(p, error));
    }
    for (int64_t block = 0; block < p->n; block += most) {
        ESP_TRY(search_block(p, block, ESP_MIN(most, p->n - block), blocks, error));
    }
    return far_bring(far, p->of->mask + p->first * p->of->v * p->of->mask_words, p->mask, words,
                     error);
}

/* SparseGPT's sweep of one panel, two of each four places. */
static esp_status sweep_panel(const panel_part *p, int64_t panel, esp_error *error)
{
    int64_t words = esp_ceil_div(p->n, 64), rows = ESP_MIN(p->v, p->rows - panel * p->v);
    size_t bytes = (size_t)(rows * words) * sizeof *p->bits;
    gpu_sweep s = {.rows = rows,
                   .in = p->n,
                   .factor = p->matrix + panel * p->step,
                   .weights = p->values + panel * p->v * p->n,
                   .errors = p->errors,
                   .mask = p->mask,
                   .mask_words = words,
                   .group = 4,
                   .keep = 2};
    ESP_TRY(
        far_check(p->far, gpu_clear(p->mask, bytes, p->far->stream), "filling its memory", error));
    for (s.begin = 0; s.begin < s.in; s.begin = s.end) {
        s.end = ESP_MIN(s.in, s.begin + SWEEP_BLOCK);
        ESP_TRY(far_sweep_block(p->far, &s, error));
    }
    ESP_TRY(far_bring(p->far, p->bits, p->mask, bytes, error));
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t i = 0; i < p->n; i++) {
            if ((p->bits[r * words + i / 64] >> i % 64 & 1) != 0) {
                set_bit(p, panel * p->v + r, i);
            }
        }
    }
    return ESP_OK;
}

static esp_status sweep_panels(panel_part *p, esp_error *error)
{
    const cuda_far *far = p->far;
    size_t v = (size_t)p->v, words = v * (size_t)esp_ceil_div(p->n, 64);
    ESP_TRY(far_take(far, v * SWEEP_BLOCK * sizeof(double), "errors", &p->errors, error));
    ESP_TRY(far_take(far, words * sizeof(uint64_t), "a mask", &p->mask, error));
    p->bits = esp_alloc_array(far->device->context, words, sizeof *p->bits);
    if (p->bits == NULL) {
        return esp_fail_memory(error, words * sizeof *p->bits, "a mask");
    }
    ESP_TRY(factor_panels(p, error));
    for (int64_t i = 0; i < p->panels; i++) {
        ESP_TRY(sweep_panel(p, i, error));
    }
    return ESP_OK;
}

/* ---- panels first.. ---- */

static esp_status write_back(panel_part *p, esp_error *error)
{
    const esp_far_panels *of = p->of;
    size_t bytes = (size_t)(p->rows * of->in) * sizeof *p->back;
    ESP_TRY(far_take(p->far, bytes, "weights", &p->back, error));
    int failed = gpu_clear(p->back, bytes, p->far->stream);
    failed = failed == 0 ? gpu_rows_spread(p->values, p->device_listed, p->rows, p->v, p->n,
                                           p->back, of->in, p->far->stream)
                         : failed;
    ESP_TRY(far_check(p->far, failed, "spreading weights", error));
    return far_bring(p->far, of->weights + p->first * of->v * of->in, p->back, bytes, error);
}

static esp_status run_part(panel_part *p, esp_error *error)
{
    const cuda_far *far = p->far;
    size_t panels = (size_t)p->panels, n = (size_t)p->n, v = (size_t)p->v;
    size_t slots = p->of->every ? 1 : panels + 1;
    p->step = slot_of(p->of->every ? p->n : p->of->in);
    p->listed = esp_alloc_array(far->device->context, panels * n, sizeof *p->listed);
    p->places = esp_alloc_array(far->device->context, panels * n, sizeof *p->places);
    if (p->listed == NULL || p->places == NULL) {
        return esp_fail_memory(error, panels * n * sizeof *p->listed, "columns");
    }
    ESP_TRY(far_take(far, panels * n * sizeof(int32_t), "columns", &p->device_listed, error));
    ESP_TRY(far_take(far, slots * (size_t)p->step * sizeof(double), "panels", &p->slots, error));
    ESP_TRY(far_take(far, panels * v * n * sizeof(double), "panels", &p->values, error));
    ESP_TRY(p->of->every ? take_every(p, error) : choose_columns(p, error));
    ESP_TRY(far_send(far, p->device_listed, p->listed, panels * n * sizeof *p->listed, error));
    ESP_TRY(p->of->joint ? search_rows(p, error) : sweep_panels(p, error));
    return write_back(p, error);
}

static esp_status run_and_free(panel_part *p, esp_error *error)
{
    esp_context *context = p->far->device->context;
    esp_status status = run_part(p, error);
    void *const far_areas[] = {p->device_listed, p->slots, p->values, p->corner, p->lost,
                               p->owed,          p->room,   p->live,   p->errors, p->mask, p->back};
    void *const areas[] = {p->listed, p->places, p->bits};
    give_columns(p);
    for (int i = 0; i < ESP_COUNT(far_areas); i++) {
        far_give(p->far, far_areas[i]);
    }
    for (int i = 0; i < ESP_COUNT(areas); i++) {
        esp_release(context, areas[i]);
    }
    return status;
}

/* As many as there is memory for; but rows of the search that would leave most of the
 * multiprocessors idle at its end wait for the panels behind. */
static int64_t panels_at_once(const cuda_far *far, const esp_far_panels *of, int64_t n)
{
    const cuda_state *state = far->device->state;
    size_t most = ESP_MIN(MOST_BYTES, state->facts.memory_bytes / 5 * 2), each = bytes_of_panel(of);
    int64_t fit = ESP_MAX(1, (int64_t)(most / each) - 1); /* less the slot between */
    int64_t rows = state->facts.multiprocessors * gpu_rows_at_once(esp_joint_block(n));
    if (of->joint && fit * of->v >= rows) {
        fit = fit * of->v / rows * rows / of->v;
    }
    return ESP_MAX(1, ESP_MIN(fit, MOST_PANELS));
}

/* Panels from `first` on; fewer of them where memory is short, which *at_once becomes. */
static esp_status run_some(const cuda_far *far, const esp_far_panels *of, double *shared,
                           int64_t first, int64_t panels, int64_t *at_once, esp_error *error)
{
    int64_t v = of->every ? of->out : of->v;
    for (;;) {
        panel_part part = {.far = far,
                           .of = of,
                           .shared = shared,
                           .first = first,
                           .panels = ESP_MIN(*at_once, panels - first),
                           .v = v,
                           .n = places_of(of)};
        part.rows = ESP_MIN(part.panels * v, of->out - first * v);
        memset(of->mask + first * v * of->mask_words, 0,
               (size_t)(part.rows * of->mask_words) * sizeof *of->mask);
        esp_status status = run_and_free(&part, error);
        if (status != ESP_OUT_OF_MEMORY || part.panels == 1) {
            return status;
        }
        *at_once = esp_ceil_div(part.panels, 2);
    }
}

esp_status cuda_far_panels(esp_far *far, const esp_far_panels *of, esp_error *error)
{
    const cuda_far *own = (cuda_far *)far;
    int64_t panels = of->every ? 1 : esp_ceil_div(of->out, of->v), first = 0;
    int64_t at_once = ESP_MIN(panels, panels_at_once(own, of, places_of(of)));
    double *shared = NULL, *own_shared = NULL;
    esp_status status =
        far_lend(own, of->inverse, of->in * of->in, "an inverse", &shared, &own_shared, error);
    while (first < panels && status == ESP_OK) {
        status = run_some(own, of, shared, first, panels, &at_once, error);
        first += at_once;
    }
    far_give(own, own_shared);
    return status;
}
