/* Panels by second order on a GPU: src/prune/panel_obs.c and joint.c, as many at work together as
 * there is memory for. Columns first (far_columns.c); in what is left two of each four are found:
 * by SparseGPT's sweep panel by panel, or for `joint` by a search of every row for itself, block by
 * block from left to right. */
#include "cuda/far_panels.h"

#define MOST_BYTES ((size_t)14 << 30) /* of panels at work together, or 2 / 5 of the device */
#define MOST_PANELS 65535             /* what a grid has across */
#define SWEEP_BLOCK 128

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
    ESP_TRY(p->panels == 1
                ? far_factor(p->far, p->matrix, p->n, &definite, error)
                : far_factor_many(p->far, p->matrix, p->n, p->step, p->panels, &definite, error));
    if (!definite) {
        return far_not_definite(error);
    }
    return far_check(p->far, gpu_zero_lower(p->matrix, p->n, p->panels, p->step, p->far->stream),
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
    p->step = panel_slot(p->of->every ? p->n : p->of->in);
    p->listed = esp_alloc_array(far->device->context, panels * n, sizeof *p->listed);
    p->places = esp_alloc_array(far->device->context, panels * n, sizeof *p->places);
    if (p->listed == NULL || p->places == NULL) {
        return esp_fail_memory(error, panels * n * sizeof *p->listed, "columns");
    }
    ESP_TRY(far_take(far, panels * n * sizeof(int32_t), "columns", &p->device_listed, error));
    ESP_TRY(far_take(far, slots * (size_t)p->step * sizeof(double), "panels", &p->slots, error));
    ESP_TRY(far_take(far, panels * v * n * sizeof(double), "panels", &p->values, error));
    ESP_TRY(p->of->every ? take_every(p, error) : panel_choose_columns(p, error));
    ESP_TRY(far_send(far, p->device_listed, p->listed, panels * n * sizeof *p->listed, error));
    ESP_TRY(p->of->joint ? search_rows(p, error) : sweep_panels(p, error));
    return write_back(p, error);
}

static esp_status run_and_free(panel_part *p, esp_error *error)
{
    esp_context *context = p->far->device->context;
    esp_status status = run_part(p, error);
    void *const far_areas[] = {p->device_listed, p->slots, p->values, p->corner, p->lost, p->owed,
                               p->room,          p->live,  p->errors, p->mask,   p->back};
    void *const areas[] = {p->listed, p->places, p->bits};
    panel_give_columns(p);
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
    size_t most = ESP_MIN(MOST_BYTES, state->facts.memory_bytes / 5 * 2), each = panel_bytes(of);
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

esp_status cuda_far_panels(esp_far *far, const esp_far_panels *of, esp_error *error)
{
    const cuda_far *own = (cuda_far *)far;
    int64_t panels = of->every ? 1 : esp_ceil_div(of->out, of->v), first = 0;
    int64_t at_once = ESP_MIN(panels, panels_at_once(own, of, panel_places(of)));
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
