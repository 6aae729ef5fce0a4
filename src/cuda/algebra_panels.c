/* Panels by second order on a GPU: src/prune/panel_obs.c and joint.c, as many at work together as
 * there is memory for. Columns first (algebra_columns.c); in what is left two of each four are
 * found: by SparseGPT's sweep panel by panel, or for `joint` by a search of every row for itself,
 * block by block from left to right. */
#include "cuda/algebra_panels.h"

#define MOST_BYTES ((size_t)14 << 30) /* of panels at work together, or 2 / 5 of the device */
#define MOST_PANELS 65535             /* what a grid has across */
#define SWEEP_BLOCK 128

/* All columns of all rows: one panel of one matrix. */
static esp_status take_every(panel_part *p, esp_error *error)
{
    const esp_device_panels *of = p->of;
    size_t square = (size_t)(p->n * p->n) * sizeof(double);
    for (int64_t j = 0; j < p->n; j++) {
        p->listed[j] = (int32_t)j;
    }
    p->matrix = p->slots;
    ESP_TRY(algebra_check(p->algebra, gpu_move(p->matrix, p->shared, square, p->algebra->stream),
                          "copying", error));
    return algebra_send(p->algebra, p->values, of->weights,
                        (size_t)(p->rows * p->n) * sizeof(double), error);
}

/* ---- two of each four ---- */

/* matrix becomes U, upper, zero below the diagonal. */
static esp_status factor_panels(const panel_part *p, esp_error *error)
{
    bool definite = false;
    ESP_TRY(p->panels == 1 ? algebra_factor(p->algebra, p->matrix, p->n, &definite, error)
                           : algebra_factor_many(p->algebra, p->matrix, p->n, p->step, p->panels,
                                                 &definite, error));
    if (!definite) {
        return algebra_not_definite(error);
    }
    return algebra_check(p->algebra,
                         gpu_zero_lower(p->matrix, p->n, p->panels, p->step, p->algebra->stream),
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
    const algebra_product square = {.rows = width,
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
    return algebra_multiply(p->algebra, &square, error);
}

/* Places right of the block make up for what it lost: owed = lost L, rest -= owed U. */
static esp_status update_right(const panel_part *p, int64_t block, int64_t width, esp_error *error)
{
    const double *u = p->matrix + block * p->n + block;
    const algebra_product owed = {.rows = p->v,
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
    const algebra_product rest = {.rows = p->v,
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
    ESP_TRY(algebra_multiply(p->algebra, &owed, error));
    return algebra_multiply(p->algebra, &rest, error);
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
    void *stream = p->algebra->stream;
    int failed = gpu_rows_search(&rows, stream);
    failed = failed == 0 ? gpu_rows_mark(&rows, p->device_listed + block, p->n, p->mask,
                                         p->of->mask_words, stream)
                         : failed;
    ESP_TRY(algebra_check(p->algebra, failed, "a search of rows", error));
    return block + width < p->n ? update_right(p, block, width, error) : ESP_OK;
}

static esp_status search_rows(panel_part *p, esp_error *error)
{
    const cuda_algebra *algebra = p->algebra;
    const cuda_state *state = algebra->device->state;
    int64_t most = esp_joint_block(p->n);
    int blocks = (int)ESP_MIN(p->rows, state->facts.multiprocessors * gpu_rows_at_once(most));
    size_t of_block = (size_t)(p->panels * p->v * most), square = (size_t)(most * most);
    ESP_TRY(algebra_take(algebra, (size_t)p->panels * square * sizeof(double), "corners",
                         &p->corner, error));
    ESP_TRY(algebra_take(algebra, of_block * sizeof(double), "losses", &p->lost, error));
    ESP_TRY(algebra_take(algebra, of_block * sizeof(double), "losses", &p->owed, error));
    ESP_TRY(
        algebra_take(algebra, (size_t)blocks * square * sizeof(double), "rows", &p->room, error));
    ESP_TRY(algebra_take(algebra, of_block, "live places", &p->live, error));
    size_t words = (size_t)(p->rows * p->of->mask_words) * sizeof *p->mask;
    ESP_TRY(algebra_take(algebra, words, "a mask", &p->mask, error));
    int failed = gpu_clear(p->mask, words, algebra->stream);
    failed = failed == 0 && p->rows < p->panels * p->v /* the search writes rows that there are */
                 ? gpu_clear(p->lost, of_block * sizeof(double), algebra->stream)
                 : failed;
    ESP_TRY(algebra_check(algebra, failed, "filling its memory", error));
    if (p->n > most) {
        ESP_TRY(factor_panels(p, error));
    }
    for (int64_t block = 0; block < p->n; block += most) {
        ESP_TRY(search_block(p, block, ESP_MIN(most, p->n - block), blocks, error));
    }
    return algebra_bring(algebra, p->of->mask + p->first * p->of->v * p->of->mask_words, p->mask,
                         words, error);
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
    ESP_TRY(algebra_check(p->algebra, gpu_clear(p->mask, bytes, p->algebra->stream),
                          "filling its memory", error));
    for (s.begin = 0; s.begin < s.in; s.begin = s.end) {
        s.end = ESP_MIN(s.in, s.begin + SWEEP_BLOCK);
        ESP_TRY(algebra_sweep_block(p->algebra, &s, error));
    }
    ESP_TRY(algebra_bring(p->algebra, p->bits, p->mask, bytes, error));
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
    const cuda_algebra *algebra = p->algebra;
    size_t v = (size_t)p->v, words = v * (size_t)esp_ceil_div(p->n, 64);
    ESP_TRY(algebra_take(algebra, v * SWEEP_BLOCK * sizeof(double), "errors", &p->errors, error));
    ESP_TRY(algebra_take(algebra, words * sizeof(uint64_t), "a mask", &p->mask, error));
    p->bits = esp_alloc_array(algebra->device->context, words, sizeof *p->bits);
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
    const esp_device_panels *of = p->of;
    size_t bytes = (size_t)(p->rows * of->in) * sizeof *p->back;
    ESP_TRY(algebra_take(p->algebra, bytes, "weights", &p->back, error));
    int failed = gpu_clear(p->back, bytes, p->algebra->stream);
    failed = failed == 0 ? gpu_rows_spread(p->values, p->device_listed, p->rows, p->v, p->n,
                                           p->back, of->in, p->algebra->stream)
                         : failed;
    ESP_TRY(algebra_check(p->algebra, failed, "spreading weights", error));
    return algebra_bring(p->algebra, of->weights + p->first * of->v * of->in, p->back, bytes,
                         error);
}

static esp_status run_part(panel_part *p, esp_error *error)
{
    const cuda_algebra *algebra = p->algebra;
    size_t panels = (size_t)p->panels, n = (size_t)p->n, v = (size_t)p->v;
    size_t slots = p->of->every ? 1 : panels + 1;
    p->step = panel_slot(p->of->every ? p->n : p->of->in);
    p->listed = esp_alloc_array(algebra->device->context, panels * n, sizeof *p->listed);
    p->places = esp_alloc_array(algebra->device->context, panels * n, sizeof *p->places);
    if (p->listed == NULL || p->places == NULL) {
        return esp_fail_memory(error, panels * n * sizeof *p->listed, "columns");
    }
    ESP_TRY(
        algebra_take(algebra, panels * n * sizeof(int32_t), "columns", &p->device_listed, error));
    ESP_TRY(algebra_take(algebra, slots * (size_t)p->step * sizeof(double), "panels", &p->slots,
                         error));
    ESP_TRY(algebra_take(algebra, panels * v * n * sizeof(double), "panels", &p->values, error));
    ESP_TRY(p->of->every ? take_every(p, error) : panel_choose_columns(p, error));
    ESP_TRY(
        algebra_send(algebra, p->device_listed, p->listed, panels * n * sizeof *p->listed, error));
    ESP_TRY(p->of->joint ? search_rows(p, error) : sweep_panels(p, error));
    return write_back(p, error);
}

static esp_status run_and_free(panel_part *p, esp_error *error)
{
    esp_context *context = p->algebra->device->context;
    esp_status status = run_part(p, error);
    void *const device_areas[] = {p->device_listed, p->slots, p->values, p->corner,
                                  p->lost,          p->owed,  p->room,   p->live,
                                  p->errors,        p->mask,  p->back};
    void *const areas[] = {p->listed, p->places, p->bits};
    panel_give_columns(p);
    for (int i = 0; i < ESP_COUNT(device_areas); i++) {
        algebra_give(p->algebra, device_areas[i]);
    }
    for (int i = 0; i < ESP_COUNT(areas); i++) {
        esp_release(context, areas[i]);
    }
    return status;
}

/* As many as there is memory for; but rows of the search that would leave most of the
 * multiprocessors idle at its end wait for the panels behind. */
static int64_t panels_at_once(const cuda_algebra *algebra, const esp_device_panels *of, int64_t n)
{
    const cuda_state *state = algebra->device->state;
    size_t most = ESP_MIN(MOST_BYTES, state->facts.memory_bytes / 5 * 2), each = panel_bytes(of);
    int64_t fit = ESP_MAX(1, (int64_t)(most / each) - 1); /* less the slot between */
    int64_t rows = state->facts.multiprocessors * gpu_rows_at_once(esp_joint_block(n));
    if (of->joint && fit * of->v >= rows) {
        fit = fit * of->v / rows * rows / of->v;
    }
    return ESP_MAX(1, ESP_MIN(fit, MOST_PANELS));
}

/* Panels from `first` on; fewer of them where memory is short, which *at_once becomes. */
static esp_status run_some(const cuda_algebra *algebra, const esp_device_panels *of, double *shared,
                           int64_t first, int64_t panels, int64_t *at_once, esp_error *error)
{
    int64_t v = of->every ? of->out : of->v;
    for (;;) {
        panel_part part = {.algebra = algebra,
                           .of = of,
                           .shared = shared,
                           .first = first,
                           .panels = ESP_MIN(*at_once, panels - first),
                           .v = v,
                           .n = panel_places(of)};
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

esp_status cuda_algebra_panels(esp_device_algebra *algebra, const esp_device_panels *of,
                               esp_error *error)
{
    const cuda_algebra *own = (cuda_algebra *)algebra;
    int64_t panels = of->every ? 1 : esp_ceil_div(of->out, of->v), first = 0;
    int64_t at_once = ESP_MIN(panels, panels_at_once(own, of, panel_places(of)));
    double *shared = NULL, *own_shared = NULL;
    esp_status status =
        algebra_lend(own, of->inverse, of->in * of->in, "an inverse", &shared, &own_shared, error);
    while (first < panels && status == ESP_OK) {
        status = run_some(own, of, shared, first, panels, &at_once, error);
        first += at_once;
    }
    algebra_give(own, own_shared);
    return status;
}
