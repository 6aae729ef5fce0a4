/* Columns that panels keep, by second order on a GPU (src/prune/panel_obs.c), panels in step.
 *
 * Each panel has a copy of H^-1 of its own, from which the columns that it gives up are swept.
 * Copies are made smaller as columns go: the matrices lie in slots, one more than there are panels,
 * and move by a slot when they are gathered anew. */
#include "cuda/algebra_panels.h"

#define STRIPS 8        /* of a matrix that is flushed: 9 / 16 of the work */
#define LEAST_STRIP 128 /* columns */
#define SHRINK_AT 8     /* of so many columns one has gone: they are numbered anew */

/* ---- which columns ---- */

int64_t panel_places(const esp_device_panels *of)
{
    int64_t last = of->in % of->group;
    return of->every || of->free ? ESP_MIN(of->kept, of->in)
                                 : of->in / of->group * ESP_MIN(4, of->group) + ESP_MIN(4, last);
}

static int64_t even(int64_t count)
{
    return esp_ceil_div(count, 2) * 2;
}

int64_t panel_slot(int64_t n)
{
    return esp_ceil_div(n * n, 32) * 32;
}

size_t panel_bytes(const esp_device_panels *of)
{
    size_t in = (size_t)of->in, n = (size_t)ESP_MIN(of->kept, of->in), v = (size_t)of->v;
    size_t matrix = (size_t)panel_slot(of->every ? of->kept : of->in);
    return (matrix + 2 * GPU_PENDING * in + (2 * v + 6) * in + v * n) * sizeof(double);
}

static esp_status take_columns(panel_part *p, esp_error *error)
{
    const cuda_algebra *algebra = p->algebra;
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
        ESP_TRY(algebra_take(algebra, wanted[i].bytes, "panels", wanted[i].area, error));
    }
    int failed = gpu_clear(c->weights, line * v, algebra->stream); /* rows that a panel lacks */
    failed = failed == 0 ? gpu_clear(p->other, line * v, algebra->stream) : failed;
    failed = failed == 0 ? gpu_clear(c->pending, line * GPU_PENDING, algebra->stream) : failed;
    int32_t *const brought[] = {c->listed, c->original, c->renumbered}; /* whole, though in part */
    for (int i = 0; i < ESP_COUNT(brought) && failed == 0; i++) {
        failed = gpu_clear(brought[i], numbers, algebra->stream);
    }
    return algebra_check(algebra, failed, "filling its memory", error);
}

void panel_give_columns(panel_part *p)
{
    gpu_columns *c = &p->columns;
    void *const taken[] = {c->diagonal, c->weights,   p->other,  c->costs,   c->pending,
                           c->scaled,   c->times,     c->pivots, c->by_line, c->by_gain,
                           c->offers,   c->left,      c->chosen, c->alive,   c->listed,
                           c->original, c->renumbered};
    for (int i = 0; i < ESP_COUNT(taken); i++) {
        algebra_give(p->algebra, taken[i]);
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
    const esp_device_panels *of = p->of;
    const cuda_algebra *algebra = p->algebra;
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
        failed = gpu_move(c->matrix + i * p->step, p->shared, square, algebra->stream);
    }
    ESP_TRY(algebra_check(algebra, failed, "copying", error));
    ESP_TRY(
        algebra_send(algebra, p->other, of->weights + p->first * of->v * of->in, weights, error));
    failed = gpu_columns_begin(c, p->other, algebra->stream);
    failed = failed == 0 ? gpu_columns_settle(c, algebra->stream) : failed;
    return algebra_check(algebra, failed, "panels", error);
}

/* ---- what is owed ---- */

/* A strip of columns, from its own rows down. */
static esp_status pay_strip(const panel_part *p, int64_t at, int turns, esp_error *error)
{
    const gpu_columns *c = &p->columns;
    const algebra_product owed = {.rows = c->width - at,
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
    return algebra_multiply(p->algebra, &owed, error);
}

static esp_status pay_weights(const panel_part *p, int turns, esp_error *error)
{
    const gpu_columns *c = &p->columns;
    const algebra_product owed = {.rows = c->v,
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
    return algebra_multiply(p->algebra, &owed, error);
}

static esp_status flush(const panel_part *p, int turns, esp_error *error)
{
    const gpu_columns *c = &p->columns;
    ESP_TRY(algebra_check(p->algebra, gpu_columns_scale(c, turns, p->algebra->stream), "scaling",
                          error));
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
        ESP_TRY(algebra_check(p->algebra,
                              gpu_columns_matrix(c, panel, listed + panel * stride, n,
                                                 to + panel * p->step, p->algebra->stream),
                              "gathering", error));
    }
    p->columns.matrix = to;
    return ESP_OK;
}

/* Goes on with those columns only that are left. */
static esp_status shrink(panel_part *p, int64_t n, esp_error *error)
{
    gpu_columns *c = &p->columns;
    void *stream = p->algebra->stream;
    int failed = gpu_columns_list(c, n, stream);
    failed = failed == 0
                 ? gpu_columns_values(c, c->listed, c->stride, n, p->other, c->stride, stream)
                 : failed;
    failed = failed == 0 ? gpu_columns_renumber(c, n, stream) : failed;
    ESP_TRY(algebra_check(p->algebra, failed, "gathering", error));
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
        ESP_TRY(algebra_check(p->algebra, gpu_columns_drop(c, turn, p->algebra->stream),
                              "dropping columns", error));
        if (++turn < GPU_PENDING && left - 1 > p->n) {
            continue;
        }
        ESP_TRY(flush(p, turn, error));
        turn = 0;
        if (left - 1 > p->n && (c->width - left + 1) * SHRINK_AT >= c->width) {
            ESP_TRY(shrink(p, left - 1, error));
        }
        ESP_TRY(
            algebra_check(p->algebra, gpu_columns_settle(c, p->algebra->stream), "panels", error));
    }
    return ESP_OK;
}

/* places and listed: ascending, of what is alive. */
static esp_status list_places(panel_part *p, esp_error *error)
{
    const gpu_columns *c = &p->columns;
    size_t count = (size_t)(p->panels * c->stride);
    int32_t *numbers = esp_alloc_array(p->algebra->device->context, 2 * count, sizeof *numbers);
    if (numbers == NULL) {
        return esp_fail_memory(error, 2 * count * sizeof *numbers, "columns");
    }
    int32_t *original = numbers + count;
    esp_status status =
        algebra_check(p->algebra, gpu_columns_list(c, p->n, p->algebra->stream), "listing", error);
    status = status == ESP_OK
                 ? algebra_bring(p->algebra, numbers, c->listed, count * sizeof *numbers, error)
                 : status;
    status = status == ESP_OK
                 ? algebra_bring(p->algebra, original, c->original, count * sizeof *numbers, error)
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
    esp_release(p->algebra->device->context, numbers);
    return status;
}

/* values: the places as they are listed. */
static esp_status gather_values(const panel_part *p, esp_error *error)
{
    ESP_TRY(algebra_send(p->algebra, p->device_listed, p->places,
                         (size_t)(p->panels * p->n) * sizeof *p->places, error));
    return algebra_check(p->algebra,
                         gpu_columns_values(&p->columns, p->device_listed, p->n, p->n, p->values,
                                            p->n, p->algebra->stream),
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
    const esp_device_panels *of = p->of;
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
    ESP_TRY(algebra_bring(p->algebra, room->values, p->values, values * sizeof(double), error));
    ESP_TRY(algebra_bring(p->algebra, room->diagonal, p->columns.diagonal, places * sizeof(double),
                          error));
    for (int64_t i = 0; i < p->panels; i++) {
        ESP_TRY(deal_panel(p, room, i, error));
    }
    return gather_values(p, error);
}

static esp_status deal_fours(const panel_part *p, esp_error *error)
{
    esp_context *context = p->algebra->device->context;
    size_t n = (size_t)p->n;
    const deal_room room = {.values = esp_alloc_array(context, (size_t)p->rows * n, sizeof(double)),
                            .diagonal = esp_alloc_array(
                                context, (size_t)(p->panels * p->columns.stride), sizeof(double)),
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

esp_status panel_choose_columns(panel_part *p, esp_error *error)
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
    panel_give_columns(p);
    return ESP_OK;
}
