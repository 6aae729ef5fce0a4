/* Panels by a joint search: the columns that a panel keeps and two of each four of them in every
 * row, each judged by the least squares of all that is live.
 *
 * Columns are those of panel_obs.c: they go one by one, all rows following. (Exchanging them
 * afterwards with regard to the two of four, group by group, gains less than 1 % of the error.)
 * What a panel does not keep is swept out of H^-1 once, for all its rows; each of these then looks
 * for its two of four in a copy of the matrix (row_search.c). Panels that keep more columns than
 * esp_joint_block do so block by block from left to right, what a block loses being made up for by
 * the columns to its right as in SparseGPT. Free panels deal their columns to fours by what the
 * weights would cost one by one (panel_search.c). */
#include "prune/row_search.h"
#include "prune/select.h"

#define ROWS_AT_ONCE 8
#define MOST_PLACES 1024 /* of a block: esp_joint_block */

typedef struct joint_job {
    const esp_algebra *algebra;
    esp_context *context;
    int64_t out, in, v, kept;
    bool free;
    const double *inverse;
    double *weights;
    esp_mask *mask;
    uint32_t *columns; /* [panels][kept] */
    double *row_room;  /* [threads][row_doubles] */
    size_t row_doubles;
    int *live; /* [threads][fours of a block] */
} joint_job;

/* The panel at work: its places are the columns that it keeps, four by four as listed. */
typedef struct joint_panel {
    const joint_job *job;
    int64_t first, rows, n;
    uint32_t *columns;         /* [kept], padding last */
    esp_tableau_group *groups; /* of a block, from its beginning */
    int64_t block, block_end, group_count;
    double *matrix;    /* [n][n]: H^-1 of the kept columns; then, of several blocks, its factor L */
    double *corner;    /* [block][block]: H^-1 of a block and all to its right */
    double *values;    /* [rows][in] at first; then [rows][n] */
    double *owed;      /* [rows][block]: what the block loses, times L's lines */
    double *drop_room; /* tableau of all columns */
    uint64_t *dropped; /* [rows][words of n] */
} joint_panel;

/* ---- two of each four ---- */

static int64_t words_of(const joint_panel *p)
{
    return esp_ceil_div(p->n, 64);
}

/* What the columns right of the block have to make up for: sum of v_d L_d over the dropped d. */
static void owe(const joint_panel *p, const esp_tableau *t, double *owed)
{
    memset(owed, 0, (size_t)t->n * sizeof *owed);
    for (int64_t i = 0; i < t->n; i++) {
        const double *line = p->matrix + (p->block + i) * p->n + p->block;
        for (int64_t j = 0; j <= i && !esp_tableau_lives(t, i); j++) {
            owed[j] += t->values[i] * line[j];
        }
    }
}

static void search_rows(void *user, int64_t begin, int64_t end, int thread)
{
    const joint_panel *p = user;
    const joint_job *job = p->job;
    int64_t width = p->block_end - p->block;
    bool last = p->block_end == p->n;
    esp_tableau t = {.algebra = job->algebra};
    esp_tableau_bind(&t, width, p->groups, p->group_count,
                     job->row_room + (size_t)thread * job->row_doubles);
    for (int64_t r = begin; r < end; r++) {
        double *values = p->values + r * p->n + p->block;
        esp_tableau_load(&t, p->corner, width, values);
        esp_search_row(&t, job->live + thread * (MOST_PLACES / 4));
        for (int64_t i = 0; i < width; i++) {
            bool lives = esp_tableau_lives(&t, i);
            uint64_t bit = (uint64_t)!lives << (p->block + i) % 64;
            p->dropped[r * words_of(p) + (p->block + i) / 64] |= bit;
            values[i] = lives ? t.values[i] : 0;
        }
        if (!last) {
            owe(p, &t, p->owed + r * width);
        }
    }
}

static void list_groups(joint_panel *p)
{
    p->group_count = 0;
    for (int64_t at = p->block; at < p->block_end; at += 4) {
        p->groups[p->group_count++] =
            (esp_tableau_group){at - p->block, (int)ESP_MIN(4, p->block_end - at)};
    }
}

/* The inverse of H over the block and all to its right, its corner of the block: L L^T there. */
static void take_corner(const joint_panel *p)
{
    int64_t width = p->block_end - p->block, n = p->n;
    if (width == n) {
        memcpy(p->corner, p->matrix, (size_t)(n * n) * sizeof *p->corner);
        return;
    }
    const double *l = p->matrix + p->block * n + p->block;
    const esp_algebra_product square = {.rows = width,
                                        .columns = width,
                                        .depth = width,
                                        .alpha = 1,
                                        .a = l,
                                        .a_stride = n,
                                        .b = l,
                                        .b_stride = n,
                                        .b_transposed = true,
                                        .c = p->corner,
                                        .c_stride = width};
    esp_algebra_multiply(p->job->algebra, &square);
}

static void update_right(const joint_panel *p)
{
    int64_t width = p->block_end - p->block;
    const esp_algebra_product rest = {.rows = p->rows,
                                      .columns = p->n - p->block_end,
                                      .depth = width,
                                      .alpha = -1,
                                      .beta = 1,
                                      .a = p->owed,
                                      .a_stride = width,
                                      .b = p->matrix + p->block_end * p->n + p->block,
                                      .b_stride = p->n,
                                      .b_transposed = true,
                                      .c = p->values + p->block_end,
                                      .c_stride = p->n};
    esp_algebra_multiply(p->job->algebra, &rest);
}

/* matrix becomes L, zero above the diagonal. */
static bool factor(const joint_panel *p)
{
    if (!esp_algebra_factor(p->job->algebra, p->matrix, p->n)) {
        return false;
    }
    for (int64_t i = 0; i < p->n; i++) {
        memset(p->matrix + i * p->n + i + 1, 0, (size_t)(p->n - i - 1) * sizeof *p->matrix);
    }
    return true;
}

static bool search_blocks(joint_panel *p)
{
    if (p->n > esp_joint_block(p->n) && !factor(p)) {
        return false;
    }
    memset(p->dropped, 0, (size_t)(p->rows * words_of(p)) * sizeof *p->dropped);
    for (p->block = 0; p->block < p->n; p->block = p->block_end) {
        p->block_end = ESP_MIN(p->n, p->block + esp_joint_block(p->n));
        list_groups(p);
        take_corner(p);
        esp_parallel_for(p->job->context, p->rows, ROWS_AT_ONCE, search_rows, p);
        if (p->block_end < p->n) {
            update_right(p);
        }
    }
    return true;
}

/* ---- what a panel does not keep ---- */

/* Sweeps it out of H^-1 (in drop_room) and out of all rows. */
static void drop_columns(joint_panel *p, esp_tableau *t)
{
    int64_t in = p->job->in;
    esp_tableau_bind(t, in, NULL, 0, p->drop_room);
    esp_tableau_load(t, p->job->inverse, in, p->values);
    bool *kept = (bool *)p->dropped; /* serves later */
    memset(kept, 0, (size_t)in * sizeof *kept);
    for (int64_t i = 0; i < p->n; i++) {
        kept[p->columns[i]] = true;
    }
    for (int64_t k = 0; k < in; k++) {
        double pivot = t->diagonal[k];
        if (kept[k]) {
            continue;
        }
        esp_tableau_pivot(t, k);
        for (int64_t r = 0; r < p->rows; r++) {
            double *values = p->values + r * in, times = values[k] / pivot;
            for (int64_t i = 0; i < in; i++) {
                values[i] -= times * t->line[i];
            }
        }
    }
    esp_tableau_flush(t);
}

/* Of matrix and values, the places that are kept, in the order of the list. */
static void gather_kept(joint_panel *p, const esp_tableau *t)
{
    int64_t in = p->job->in, n = p->n;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n; j++) {
            int64_t a = ESP_MAX(p->columns[i], p->columns[j]);
            int64_t b = ESP_MIN(p->columns[i], p->columns[j]);
            p->matrix[i * n + j] = t->matrix[a * in + b];
        }
    }
    double *row = t->line;
    for (int64_t r = 0; r < p->rows; r++) { /* forward: n <= in */
        memcpy(row, p->values + r * in, (size_t)in * sizeof *row);
        for (int64_t i = 0; i < n; i++) {
            p->values[r * n + i] = row[p->columns[i]];
        }
    }
}

static void reduce(joint_panel *p)
{
    const joint_job *job = p->job;
    esp_tableau t = {.algebra = job->algebra};
    memcpy(p->values, job->weights + p->first * job->in,
           (size_t)(p->rows * job->in) * sizeof *p->values);
    p->n = 0;
    while (p->n < job->kept && p->columns[p->n] != UINT32_MAX) {
        p->n++;
    }
    drop_columns(p, &t);
    gather_kept(p, &t);
}

/* ---- fours of a free panel ---- */

/* Of rows and places that are live, values [rows][n] and their diagonal of H^-1, `step` apart. */
typedef struct four_places {
    int64_t rows, n, step;
    const double *values, *diagonal;
} four_places;

/* What dropping each weight would cost, all columns of the panel being live; at most 1. */
static void score_places(const four_places *p, float *scores)
{
    double most = 0;
    for (int scaled = 0; scaled < 2; scaled++) {
        for (int64_t r = 0; r < p->rows; r++) {
            for (int64_t i = 0; i < p->n; i++) {
                double w = p->values[r * p->n + i], cost = w * w / p->diagonal[i * p->step];
                if (scaled == 0) {
                    most = ESP_MAX(most, cost);
                } else {
                    scores[r * p->n + i] = (float)(most > 0 ? cost / most : 0);
                }
            }
        }
    }
}

/* order[i]: the place that becomes place i; scratch: [n]. */
static esp_status order_fours(esp_context *context, const four_places *p, float *scores,
                              double *scratch, uint32_t *order, esp_error *error)
{
    static const esp_pattern pattern = {.kind = ESP_PATTERN_PANEL};
    const esp_tensor dense = {
        .dtype = ESP_F32, .rank = 2, .shape = {p->rows, p->n}, .data = scores};
    const esp_prune_job search = {
        .context = context, .dense = &dense, .pattern = &pattern, .out = p->rows, .in = p->n};
    score_places(p, scores);
    for (int64_t i = 0; i < p->n; i++) {
        order[i] = (uint32_t)i;
    }
    return esp_improve_panel(&search, 0, p->rows, p->n, scratch, order, error);
}

/* After reduce; lists the columns anew. */
static esp_status deal_fours(joint_panel *p, esp_error *error)
{
    esp_context *context = p->job->context;
    size_t count = (size_t)(p->rows * p->n);
    float *scores = esp_alloc_array(context, count, sizeof *scores);
    uint32_t *order = esp_alloc_array(context, (size_t)p->job->kept, sizeof *order);
    esp_status status = scores == NULL || order == NULL
                            ? esp_fail_memory(error, count * sizeof *scores, "scores of a panel")
                            : ESP_OK;
    if (status == ESP_OK) {
        const four_places places = {p->rows, p->n, p->n + 1, p->values, p->matrix};
        status = order_fours(context, &places, scores, p->drop_room, order, error);
    }
    for (int64_t i = 0; i < p->n && status == ESP_OK; i++) {
        order[i] = p->columns[order[i]];
    }
    if (status == ESP_OK) {
        memcpy(p->columns, order, (size_t)p->n * sizeof *order);
    }
    esp_release(context, scores);
    esp_release(context, order);
    return status;
}

/* ---- one panel ---- */

static void write_panel(const joint_panel *p)
{
    const joint_job *job = p->job;
    for (int64_t r = 0; r < p->rows; r++) {
        uint64_t *bits = esp_mask_row_mut(job->mask, p->first + r);
        const uint64_t *dropped = p->dropped + r * words_of(p);
        double *to = job->weights + (p->first + r) * job->in;
        memset(to, 0, (size_t)job->in * sizeof *to);
        for (int64_t i = 0; i < p->n; i++) {
            if ((dropped[i / 64] >> i % 64 & 1) == 0) {
                bits[p->columns[i] / 64] |= (uint64_t)1 << p->columns[i] % 64;
                to[p->columns[i]] = p->values[r * p->n + i];
            }
        }
    }
}

static esp_status search_panel(joint_panel *p, esp_error *error)
{
    reduce(p);
    if (p->job->free && p->n == p->job->kept) { /* without padding */
        ESP_TRY(deal_fours(p, error));
        reduce(p);
    }
    if (!search_blocks(p)) {
        return esp_fail(error, ESP_CHECK_FAILED, "calibrate.not_definite",
                        "the inputs' second moments cannot be factored within a panel: give more "
                        "samples or a larger damping");
    }
    write_panel(p);
    return ESP_OK;
}

/* ---- all panels ---- */

static bool make_room(joint_job *job, joint_panel *p)
{
    esp_context *context = job->context;
    size_t in = (size_t)job->in, v = (size_t)job->v, threads = (size_t)context->threads;
    size_t kept = ESP_MIN((size_t)job->kept, in), block = ESP_MIN(kept, MOST_PLACES);
    job->row_doubles = esp_tableau_doubles((int64_t)block);
    job->row_room = esp_alloc_array(context, threads * job->row_doubles, sizeof *job->row_room);
    job->live = esp_alloc_array(context, threads * (MOST_PLACES / 4), sizeof *job->live);
    p->groups = esp_alloc_array(context, MOST_PLACES / 4, sizeof *p->groups);
    p->matrix = esp_alloc_array(context, kept * kept, sizeof *p->matrix);
    p->corner = esp_alloc_array(context, block * block, sizeof *p->corner);
    p->values = esp_alloc_array(context, v * in, sizeof *p->values);
    p->owed = esp_alloc_array(context, v * block, sizeof *p->owed);
    p->drop_room = esp_alloc_array(context, esp_tableau_doubles(job->in), sizeof *p->drop_room);
    p->dropped = esp_alloc_array(context, v * (in / 64 + 1) + in, sizeof *p->dropped);
    return job->row_room != NULL && job->live != NULL && p->groups != NULL && p->matrix != NULL &&
           p->corner != NULL && p->values != NULL && p->owed != NULL && p->drop_room != NULL &&
           p->dropped != NULL;
}

static void free_room(const joint_job *job, const joint_panel *p)
{
    void *const all[] = {job->row_room, job->live, p->groups,    p->matrix, p->corner,
                         p->values,     p->owed,   p->drop_room, p->dropped};
    for (int i = 0; i < ESP_COUNT(all); i++) {
        esp_release(job->context, all[i]);
    }
}

static esp_status search_all(joint_job *job, esp_error *error)
{
    joint_panel panel = {.job = job};
    esp_status status = make_room(job, &panel)
                            ? ESP_OK
                            : esp_fail_memory(error, esp_tableau_doubles(job->in) * sizeof(double),
                                              "a joint search");
    for (int64_t i = 0; i * job->v < job->out && status == ESP_OK; i++) {
        panel.first = i * job->v;
        panel.rows = ESP_MIN(job->v, job->out - panel.first);
        panel.columns = job->columns + i * job->kept;
        status = search_panel(&panel, error);
    }
    free_room(job, &panel);
    return status;
}

static esp_status choose_columns(const joint_job *job, const esp_pattern *pattern, esp_error *error)
{
    size_t count = (size_t)(job->out * job->in);
    if (esp_pattern_is_2_4(pattern)) {
        for (int64_t i = 0; i < esp_ceil_div(job->out, job->v) * job->kept; i++) {
            int64_t k = i % job->kept;
            job->columns[i] = k < job->in ? (uint32_t)k : UINT32_MAX;
        }
        return ESP_OK;
    }
    double *copy = esp_alloc_array(job->context, count, sizeof *copy);
    if (copy == NULL) {
        return esp_fail_memory(error, count * sizeof *copy, "a layer in f64");
    }
    memcpy(copy, job->weights, count * sizeof *copy);
    esp_status status = esp_panel_obs_columns(job->algebra, pattern, job->out, job->in,
                                              job->inverse, copy, job->columns, error);
    esp_release(job->context, copy);
    return status;
}

bool esp_joint_takes(const esp_pattern *pattern)
{
    return pattern->kind == ESP_PATTERN_PANEL;
}

#define ROWS_OF_2_4 256 /* that are searched together where there are no panels */

static esp_status deal_for_device(void *user, int64_t rows, int64_t n, const double *values,
                                  const double *diagonal, uint32_t *order, esp_error *error)
{
    const joint_job *job = user;
    const four_places places = {rows, n, 1, values, diagonal};
    float *scores = esp_alloc_array(job->context, (size_t)(rows * n), sizeof *scores);
    double *scratch = esp_alloc_array(job->context, (size_t)n, sizeof *scratch);
    esp_status status =
        scores == NULL || scratch == NULL
            ? esp_fail_memory(error, (size_t)(rows * n) * sizeof *scores, "scores of a panel")
            : order_fours(job->context, &places, scores, scratch, order, error);
    esp_release(job->context, scores);
    esp_release(job->context, scratch);
    return status;
}

/* On a device. */
static esp_status run_far(joint_job *job, const esp_pattern *pattern, esp_error *error)
{
    esp_device_algebra *device = esp_algebra_device(job->algebra);
    bool plain = esp_pattern_is_2_4(pattern);
    const esp_device_panels panels = {.out = job->out,
                                      .in = job->in,
                                      .v = job->v,
                                      .group =
                                          pattern->m == 0 ? job->in : ESP_MIN(pattern->m, job->in),
                                      .kept = job->kept,
                                      .free = job->free,
                                      .every = plain,
                                      .joint = true,
                                      .inverse = job->inverse,
                                      .weights = job->weights,
                                      .columns = job->columns,
                                      .mask = esp_mask_row_mut(job->mask, 0),
                                      .mask_words = esp_mask_row_words(job->mask),
                                      .deal = job->free ? deal_for_device : NULL,
                                      .user = job};
    return device->ops->panels(device, &panels, error);
}

static esp_status run_near(joint_job *job, const esp_pattern *pattern, esp_error *error)
{
    ESP_TRY(choose_columns(job, pattern, error));
    return search_all(job, error);
}

static esp_status run(joint_job *job, const esp_pattern *pattern, esp_error *error)
{
    ESP_TRY(esp_device_panels_takes(job->algebra, job->out, job->in)
                ? run_far(job, pattern, error)
                : run_near(job, pattern, error));
    return job->free ? esp_mask_set_columns(job->mask, job->v, job->kept, job->columns, error)
                     : ESP_OK;
}

esp_status esp_joint_panels(const esp_algebra *algebra, const esp_pattern *pattern, int64_t out,
                            int64_t in, const double *inverse, double *weights, esp_mask **mask,
                            esp_error *error)
{
    esp_context *context = esp_algebra_context(algebra);
    bool plain = esp_pattern_is_2_4(pattern);
    joint_job job = {.algebra = algebra,
                     .context = context,
                     .out = out,
                     .in = in,
                     .v = plain ? ESP_MIN(out, ROWS_OF_2_4) : esp_pattern_panel_rows(pattern, out),
                     .kept = esp_pattern_kept(pattern, in),
                     .free = !plain && pattern->m == 0,
                     .inverse = inverse,
                     .weights = weights};
    size_t listed = (size_t)esp_ceil_div(out, job.v) * (size_t)job.kept;
    ESP_TRY(esp_mask_create(context, out, in, &job.mask, error));
    job.columns = esp_alloc_array(context, listed, sizeof *job.columns);
    esp_status status = job.columns == NULL
                            ? esp_fail_memory(error, listed * sizeof *job.columns, "columns")
                            : run(&job, pattern, error);
    esp_release(context, job.columns);
    if (status != ESP_OK) {
        esp_mask_free(job.mask);
        return status;
    }
    *mask = job.mask;
    return ESP_OK;
}
