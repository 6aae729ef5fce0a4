/* Panels by second order on a GPU: src/prune/panel_obs.c and joint.c, many panels in step.
 *
 * Each panel has a copy of H^-1 of its own, from which the columns that it gives up are swept, so
 * memory says how many are at work together. What is left of matrix and weights is gathered, and
 * two of each four are found there: by SparseGPT's sweep panel by panel, or for `joint` by a search
 * of every row for itself, block by block from left to right. */
#include "cuda/far.h"

#define MOST_BYTES ((size_t)12 << 30) /* of panels at work together, or 2 / 5 of the device */
#define MOST_ROWS 65535               /* of panels at work together: what a grid has across */
#define SWEEP_BLOCK 128

/* Panels at work together: `rows` of their `panels` * v are there. */
typedef struct panel_part {
    const cuda_far *far;
    const esp_far_panels *of;
    double *shared; /* H^-1 */
    int64_t first, panels, rows;
    int64_t v, n; /* rows of a panel, places */
    gpu_columns columns;
    int32_t *listed; /* host: [panels][n], the places' columns */
    int32_t *device_listed;
    double *matrix; /* [panels][n][n] */
    double *values; /* [panels][v][n] */
    double *corner, *lost, *owed, *room;
    uint8_t *live, *seen; /* of a block; seen: on the host */
    double *errors;
    uint64_t *mask, *bits; /* of a panel; bits: on the host */
    double *back;          /* host: values */
} panel_part;

/* ---- which columns ---- */

/* Columns that a panel keeps: of V:2:M four of each group. */
static int64_t places_of(const esp_far_panels *of)
{
    int64_t last = of->in % of->group;
    return of->every || of->free ? ESP_MIN(of->kept, of->in)
                                 : of->in / of->group * ESP_MIN(4, of->group) + ESP_MIN(4, last);
}

static size_t bytes_of_panel(const esp_far_panels *of)
{
    size_t in = (size_t)of->in, n = (size_t)ESP_MIN(of->kept, of->in), v = (size_t)of->v;
    return (in * in + 2 * GPU_PENDING * in + (v + 3) * in + n * n + v * n) * sizeof(double);
}

static esp_status take_columns(panel_part *p, esp_error *error)
{
    const cuda_far *far = p->far;
    size_t in = (size_t)p->of->in, panels = (size_t)p->panels, v = (size_t)p->v;
    gpu_columns *c = &p->columns;
    const struct {
        void *area;
        size_t bytes;
    } wanted[] = {{&c->matrix, panels * in * in * sizeof(double)},
                  {&c->diagonal, panels * in * sizeof(double)},
                  {&c->weights, panels * v * in * sizeof(double)},
                  {&c->costs, panels * in * sizeof(double)},
                  {&c->pending, panels * GPU_PENDING * in * sizeof(double)},
                  {&c->scaled, panels * GPU_PENDING * in * sizeof(double)},
                  {&c->left, panels * in * sizeof(int32_t)},
                  {&c->chosen, panels * sizeof(int32_t)},
                  {&c->pivots, panels * sizeof(double)},
                  {&c->times, panels * v * sizeof(double)},
                  {&c->alive, panels * in * sizeof(int32_t)}};
    for (int i = 0; i < ESP_COUNT(wanted); i++) {
        ESP_TRY(far_take(far, wanted[i].bytes, "panels", wanted[i].area, error));
    }
    return ESP_OK;
}

static void give_columns(panel_part *p)
{
    gpu_columns *c = &p->columns;
    void *const taken[] = {c->matrix, c->diagonal, c->weights, c->costs, c->pending, c->scaled,
                           c->left,   c->chosen,   c->pivots,  c->times, c->alive};
    for (int i = 0; i < ESP_COUNT(taken); i++) {
        far_give(p->far, taken[i]);
    }
    *c = (gpu_columns){0};
}

/* matrix -= what `turns` pivots owe it. */
static esp_status flush(const panel_part *p, int turns, esp_error *error)
{
    const gpu_columns *c = &p->columns;
    const far_product owed = {.rows = c->in,
                              .columns = c->in,
                              .depth = turns,
                              .alpha = -1,
                              .beta = 1,
                              .a = c->scaled,
                              .a_stride = c->in,
                              .a_step = GPU_PENDING * c->in,
                              .a_transposed = true,
                              .b = c->pending,
                              .b_stride = c->in,
                              .b_step = GPU_PENDING * c->in,
                              .c = c->matrix,
                              .c_stride = c->in,
                              .c_step = c->in * c->in,
                              .count = c->panels};
    return far_multiply(p->far, &owed, error);
}

static esp_status load_panels(panel_part *p, esp_error *error)
{
    const esp_far_panels *of = p->of;
    const cuda_far *far = p->far;
    gpu_columns *c = &p->columns;
    size_t square = (size_t)(of->in * of->in) * sizeof(double);
    size_t weights = (size_t)(p->rows * of->in) * sizeof(double);
    c->in = of->in;
    c->v = p->v;
    c->rows = p->rows;
    c->panels = p->panels;
    c->group = of->group;
    c->kept = of->kept;
    c->free = of->free;
    int failed =
        gpu_clear(c->weights, (size_t)(p->panels * p->v * of->in) * sizeof(double), far->stream);
    for (int64_t i = 0; i < p->panels && failed == 0; i++) {
        failed = gpu_move(c->matrix + i * of->in * of->in, p->shared, square, far->stream);
    }
    ESP_TRY(far_check(far, failed, "copying", error));
    ESP_TRY(far_send(far, c->weights, of->weights + p->first * of->v * of->in, weights, error));
    return far_check(far, gpu_columns_begin(c, far->stream), "panels", error);
}

static esp_status drop_columns(panel_part *p, esp_error *error)
{
    int turn = 0;
    for (int64_t left = p->of->in; left > p->n; left--) {
        ESP_TRY(far_check(p->far, gpu_columns_drop(&p->columns, turn, p->far->stream),
                          "dropping columns", error));
        if (++turn == GPU_PENDING) {
            ESP_TRY(flush(p, turn, error));
            turn = 0;
        }
    }
    return turn > 0 ? flush(p, turn, error) : ESP_OK;
}

/* Ascending, from what is alive. */
static esp_status list_alive(panel_part *p, esp_error *error)
{
    int64_t in = p->of->in;
    size_t count = (size_t)(p->panels * in);
    int32_t *alive = esp_alloc_array(p->far->device->context, count, sizeof *alive);
    if (alive == NULL) {
        return esp_fail_memory(error, count * sizeof *alive, "columns");
    }
    esp_status status = far_bring(p->far, alive, p->columns.alive, count * sizeof *alive, error);
    for (int64_t i = 0; i < p->panels && status == ESP_OK; i++) {
        uint32_t *listed = p->of->columns + (p->first + i) * p->of->kept;
        int64_t at = 0;
        for (int64_t j = 0; j < in && at < p->n; j++) {
            if (alive[i * in + j] != 0) {
                p->listed[i * p->n + at] = (int32_t)j;
                listed[at++] = (uint32_t)j;
            }
        }
        for (; at < p->of->kept; at++) {
            listed[at] = UINT32_MAX;
        }
    }
    esp_release(p->far->device->context, alive);
    return status;
}

/* matrix and values: the places as they are listed. */
static esp_status gather(const panel_part *p, esp_error *error)
{
    ESP_TRY(far_send(p->far, p->device_listed, p->listed,
                     (size_t)(p->panels * p->n) * sizeof *p->listed, error));
    return far_check(p->far,
                     gpu_columns_gather(&p->columns, p->device_listed, p->n, p->matrix, p->values,
                                        p->far->stream),
                     "gathering", error);
}

/* ---- fours of free panels ---- */

typedef struct deal_room {
    double *values, *diagonal, *of_places;
    uint32_t *order;
    int32_t *before;
} deal_room;

/* One panel's list in the order that the host wants. */
static esp_status deal_panel(const panel_part *p, const deal_room *room, int64_t panel,
                             esp_error *error)
{
    const esp_far_panels *of = p->of;
    int64_t n = p->n, rows = ESP_MIN(p->v, p->rows - panel * p->v);
    int32_t *listed = p->listed + panel * n;
    uint32_t *columns = of->columns + (p->first + panel) * of->kept;
    for (int64_t i = 0; i < n; i++) {
        room->of_places[i] = room->diagonal[panel * of->in + listed[i]];
        room->before[i] = listed[i];
    }
    ESP_TRY(of->deal(of->user, rows, n, room->values + panel * p->v * n, room->of_places,
                     room->order, error));
    for (int64_t i = 0; i < n; i++) {
        listed[i] = room->before[room->order[i]];
        columns[i] = (uint32_t)listed[i];
    }
    return ESP_OK;
}

static esp_status deal_panels(const panel_part *p, const deal_room *room, esp_error *error)
{
    size_t values = (size_t)(p->rows * p->n), places = (size_t)(p->panels * p->of->in);
    if (room->values == NULL || room->diagonal == NULL || room->of_places == NULL ||
        room->order == NULL || room->before == NULL) {
        return esp_fail_memory(error, values * sizeof(double), "fours of panels");
    }
    ESP_TRY(far_bring(p->far, room->values, p->values, values * sizeof(double), error));
    ESP_TRY(far_bring(p->far, room->diagonal, p->columns.diagonal, places * sizeof(double), error));
    for (int64_t i = 0; i < p->panels; i++) {
        ESP_TRY(deal_panel(p, room, i, error));
    }
    return gather(p, error);
}

static esp_status deal_fours(const panel_part *p, esp_error *error)
{
    esp_context *context = p->far->device->context;
    size_t n = (size_t)p->n;
    const deal_room room = {
        .values = esp_alloc_array(context, (size_t)p->rows * n, sizeof(double)),
        .diagonal = esp_alloc_array(context, (size_t)(p->panels * p->of->in), sizeof(double)),
        .of_places = esp_alloc_array(context, n, sizeof(double)),
        .order = esp_alloc_array(context, n, sizeof(uint32_t)),
        .before = esp_alloc_array(context, n, sizeof(int32_t))};
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
    ESP_TRY(list_alive(p, error));
    ESP_TRY(gather(p, error));
    if (p->of->deal != NULL && p->n == p->of->kept) { /* without padding */
        ESP_TRY(deal_fours(p, error));
    }
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
    ESP_TRY(far_check(p->far, gpu_move(p->matrix, p->shared, square, p->far->stream), "copying",
                      error));
    return far_send(p->far, p->values, of->weights, (size_t)(p->rows * p->n) * sizeof(double),
                    error);
}

/* ---- two of each four ---- */

/* matrix becomes U, upper, zero below the diagonal; panel by panel. */
static esp_status factor_panels(const panel_part *p, esp_error *error)
{
    for (int64_t i = 0; i < p->panels; i++) {
        bool definite = false;
        ESP_TRY(far_factor(p->far, p->matrix + i * p->n * p->n, p->n, &definite, error));
        if (!definite) {
            return far_not_definite(error);
        }
    }
    return far_check(p->far, gpu_zero_lower(p->matrix, p->n, p->panels, p->far->stream),
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
                                .a_step = p->n * p->n,
                                .a_transposed = true,
                                .b = u,
                                .b_stride = p->n,
                                .b_step = p->n * p->n,
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
                              .b_step = p->n * p->n,
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
                              .b_step = p->n * p->n,
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
                           .values = p->values + block,
                           .values_stride = p->n,
                           .lost = p->lost,
                           .live = p->live,
                           .room = p->room,
                           .blocks = blocks};
    size_t flags = (size_t)(p->rows * width);
    ESP_TRY(far_check(p->far, gpu_rows_search(&rows, p->far->stream), "a search of rows", error));
    ESP_TRY(far_bring(p->far, p->seen, p->live, flags, error));
    for (int64_t r = 0; r < p->rows; r++) {
        for (int64_t i = 0; i < width; i++) {
            if (p->seen[r * width + i] != 0) {
                set_bit(p, r, block + i);
            }
        }
    }
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
    p->seen = esp_alloc_array(far->device->context, of_block, sizeof *p->seen);
    if (p->seen == NULL) {
        return esp_fail_memory(error, of_block, "live places");
    }
    if (p->n > most) {
        ESP_TRY(factor_panels(p, error));
    }
    for (int64_t block = 0; block < p->n; block += most) {
        ESP_TRY(search_block(p, block, ESP_MIN(most, p->n - block), blocks, error));
    }
    return ESP_OK;
}

/* SparseGPT's sweep of one panel, two of each four places. */
static esp_status sweep_panel(const panel_part *p, int64_t panel, esp_error *error)
{
    int64_t words = esp_ceil_div(p->n, 64), rows = ESP_MIN(p->v, p->rows - panel * p->v);
    size_t bytes = (size_t)(rows * words) * sizeof *p->bits;
    gpu_sweep s = {.rows = rows,
                   .in = p->n,
                   .factor = p->matrix + panel * p->n * p->n,
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
    size_t count = (size_t)(p->rows * p->n);
    p->back = esp_alloc_array(p->far->device->context, count, sizeof *p->back);
    if (p->back == NULL) {
        return esp_fail_memory(error, count * sizeof *p->back, "weights");
    }
    ESP_TRY(far_bring(p->far, p->back, p->values, count * sizeof *p->back, error));
    for (int64_t r = 0; r < p->rows; r++) {
        double *to = of->weights + (p->first * of->v + r) * of->in;
        const int32_t *listed = p->listed + r / p->v * p->n;
        memset(to, 0, (size_t)of->in * sizeof *to);
        for (int64_t i = 0; i < p->n; i++) {
            to[listed[i]] = p->back[r * p->n + i];
        }
    }
    return ESP_OK;
}

static esp_status run_part(panel_part *p, esp_error *error)
{
    const cuda_far *far = p->far;
    size_t panels = (size_t)p->panels, n = (size_t)p->n, v = (size_t)p->v;
    p->listed = esp_alloc_array(far->device->context, panels * n, sizeof *p->listed);
    if (p->listed == NULL) {
        return esp_fail_memory(error, panels * n * sizeof *p->listed, "columns");
    }
    ESP_TRY(far_take(far, panels * n * sizeof(int32_t), "columns", &p->device_listed, error));
    ESP_TRY(far_take(far, panels * n * n * sizeof(double), "panels", &p->matrix, error));
    ESP_TRY(far_take(far, panels * v * n * sizeof(double), "panels", &p->values, error));
    ESP_TRY(p->of->every ? take_every(p, error) : choose_columns(p, error));
    ESP_TRY(p->of->joint ? search_rows(p, error) : sweep_panels(p, error));
    return write_back(p, error);
}

static esp_status run_and_free(panel_part *p, esp_error *error)
{
    esp_context *context = p->far->device->context;
    esp_status status = run_part(p, error);
    void *const far_areas[] = {p->device_listed, p->matrix, p->values, p->corner, p->lost,
                               p->owed,          p->room,   p->live,   p->errors, p->mask};
    void *const areas[] = {p->listed, p->seen, p->bits, p->back};
    give_columns(p);
    for (int i = 0; i < ESP_COUNT(far_areas); i++) {
        far_give(p->far, far_areas[i]);
    }
    for (int i = 0; i < ESP_COUNT(areas); i++) {
        esp_release(context, areas[i]);
    }
    return status;
}

static int64_t panels_at_once(const cuda_far *far, const esp_far_panels *of)
{
    const cuda_state *state = far->device->state;
    size_t most = ESP_MIN(MOST_BYTES, state->facts.memory_bytes / 5 * 2);
    int64_t fit = ESP_MIN((int64_t)(most / bytes_of_panel(of)), MOST_ROWS / of->v);
    return ESP_MAX(1, fit);
}

esp_status cuda_far_panels(esp_far *far, const esp_far_panels *of, esp_error *error)
{
    const cuda_far *own = (cuda_far *)far;
    int64_t panels = of->every ? 1 : esp_ceil_div(of->out, of->v);
    int64_t at_once = ESP_MIN(panels, panels_at_once(own, of)), v = of->every ? of->out : of->v;
    double *shared = NULL, *own_shared = NULL;
    esp_status status =
        far_lend(own, of->inverse, of->in * of->in, "an inverse", &shared, &own_shared, error);
    for (int64_t first = 0; first < panels && status == ESP_OK; first += at_once) {
        panel_part part = {.far = own,
                           .of = of,
                           .shared = shared,
                           .first = first,
                           .panels = ESP_MIN(at_once, panels - first),
                           .v = v,
                           .n = places_of(of)};
        part.rows = ESP_MIN(part.panels * v, of->out - first * v);
        status = run_and_free(&part, error);
    }
    far_give(own, own_shared);
    return status;
}
