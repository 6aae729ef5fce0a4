/* Panels by second order: which columns a panel keeps, and two of each four of them, with updates.
 *
 * All rows of a panel share its columns, so for a set U of them the best weights of every row and
 * their error are known: dropping column c from U costs sum over rows of w_c^2 / [H_UU^-1]_cc and
 * moves the others by -w_c [H_UU^-1]_c,: / [H_UU^-1]_cc (Hassibi and Stork's Optimal Brain Surgeon,
 * here for a column of a panel). The cheapest column goes first, and weights and H_UU^-1 follow,
 * until as many are left as the pattern keeps: of a group of M always four, of free panels any.
 * What V:N:M takes from second order elsewhere (VENOM, arXiv 2310.02065) are scores within blocks;
 * this is exact over the whole panel. Then two of each four go by SparseGPT's sweep with the
 * Cholesky factor of the same H_UU^-1. */
#include <math.h>

#include "prune/prune.h"

typedef struct obs_job {
    const esp_algebra *algebra;
    int64_t out, in, v, group, kept; /* group: columns that keep four; in: free */
    const double *inverse;
    double *weights;
    esp_mask *mask;
    uint32_t *columns; /* [panels][kept] */
    double *room;      /* [threads][2 * in * in + v * in + in] */
    int64_t *lists;    /* [threads][2 * in] */
    bool free;
    _Atomic bool failed;
} obs_job;

/* One panel at work. `left` columns remain: they are columns[0..left), and what is kept of them
 * lies in the first `left` places of each row. */
typedef struct obs_panel {
    int64_t first, rows, left;
    double *inverse;             /* [in][in], the first left x left */
    double *weights;             /* [rows][in] */
    double *costs;               /* [in]: sums of squares of columns */
    double *factor;              /* [left][left] */
    int64_t *columns, *in_group; /* in_group: columns left of each group */
} obs_panel;

static void begin_panel(const obs_job *job, obs_panel *p)
{
    int64_t in = job->in;
    memcpy(p->inverse, job->inverse, (size_t)(in * in) * sizeof *p->inverse);
    memcpy(p->weights, job->weights + p->first * in, (size_t)(p->rows * in) * sizeof *p->weights);
    memset(p->in_group, 0, (size_t)in * sizeof *p->in_group);
    p->left = in;
    for (int64_t j = 0; j < in; j++) {
        p->columns[j] = j;
        p->in_group[j / job->group]++;
    }
}

static bool may_go(const obs_job *job, const obs_panel *p, int64_t at)
{
    return job->free || p->in_group[p->columns[at] / job->group] > 4;
}

static int64_t cheapest(const obs_job *job, const obs_panel *p)
{
    int64_t in = job->in, best = -1;
    double least = (double)INFINITY;
    memset(p->costs, 0, (size_t)p->left * sizeof *p->costs);
    for (int64_t r = 0; r < p->rows; r++) {
        const double *row = p->weights + r * in;
        for (int64_t j = 0; j < p->left; j++) {
            p->costs[j] += row[j] * row[j];
        }
    }
    for (int64_t j = 0; j < p->left; j++) {
        double cost = p->costs[j] / p->inverse[j * in + j];
        if (cost < least && may_go(job, p, j)) {
            least = cost;
            best = j;
        }
    }
    return best;
}

/* Column `at` becomes 0: the others make up for it, and the last one takes its place. */
static void drop(const obs_job *job, obs_panel *p, int64_t at)
{
    int64_t in = job->in, last = --p->left;
    double pivot = p->inverse[at * in + at];
    double *line = p->costs; /* have served: room for the dropped column's line */
    memcpy(line, p->inverse + at * in, (size_t)(last + 1) * sizeof *line);
    for (int64_t r = 0; r < p->rows; r++) {
        double *row = p->weights + r * in, times = row[at] / pivot;
        for (int64_t j = 0; j <= last; j++) {
            row[j] -= times * line[j];
        }
        row[at] = row[last];
    }
    for (int64_t i = 0; i <= last; i++) {
        double *row = p->inverse + i * in, times = line[i] / pivot;
        for (int64_t j = 0; j <= last; j++) {
            row[j] -= times * line[j];
        }
        row[at] = row[last];
    }
    if (at != last) {
        memcpy(p->inverse + at * in, p->inverse + last * in, (size_t)(last + 1) * sizeof *line);
    }
    p->in_group[p->columns[at] / job->group]--;
    p->columns[at] = p->columns[last];
}

/* ---- two of four ---- */

/* Ascending columns, by insertion of what lies out of place; weights and inverse follow later. */
static void sort_places(const obs_panel *p, int64_t *places)
{
    for (int64_t i = 0; i < p->left; i++) {
        int64_t at = i;
        for (; at > 0 && p->columns[places[at - 1]] > p->columns[i]; at--) {
            places[at] = places[at - 1];
        }
        places[at] = i;
    }
}

/* U, upper, of H_UU^-1 = U^T U, columns in the order of places. */
static bool factor(const obs_job *job, const obs_panel *p, const int64_t *places)
{
    int64_t n = p->left;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j <= i; j++) {
            p->factor[i * n + j] = p->inverse[places[i] * job->in + places[j]];
        }
    }
    if (!esp_algebra_factor(job->algebra, p->factor, n)) {
        return false;
    }
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = i + 1; j < n; j++) {
            p->factor[i * n + j] = p->factor[j * n + i];
        }
    }
    return true;
}

/* Of `count` weights from at on, the two that cost most to drop. */
static unsigned keep_two(const double *row, const double *factors, int64_t n, int64_t at, int count)
{
    double scores[4];
    unsigned bits = 0;
    for (int i = 0; i < count; i++) {
        double e = row[at + i] / factors[(at + i) * n + at + i];
        scores[i] = e * e;
    }
    for (int i = 0; i < count; i++) {
        int above = 0;
        for (int j = 0; j < count; j++) {
            above += scores[j] > scores[i] || (scores[j] == scores[i] && j < i);
        }
        bits |= (unsigned)(above < 2) << i;
    }
    return bits;
}

/* row: [left], in the order of the factor. */
static void sweep_row(const obs_panel *p, double *row, const int64_t *quads, int64_t quad_count,
                      uint64_t *words, const int64_t *columns)
{
    int64_t n = p->left;
    for (int64_t q = 0; q < quad_count; q++) {
        int64_t at = quads[q], count = quads[q + 1] - at;
        unsigned bits = keep_two(row, p->factor, n, at, (int)count);
        for (int64_t j = at; j < at + count; j++) {
            if (bits >> (j - at) & 1) {
                words[columns[j] / 64] |= (uint64_t)1 << columns[j] % 64;
                continue;
            }
            const double *u = p->factor + j * n;
            double e = row[j] / u[j];
            row[j] = 0;
            for (int64_t k = j + 1; k < n; k++) {
                row[k] -= e * u[k];
            }
        }
    }
}

/* Where each four begins: with a group, or every four columns of a free panel. */
static int64_t list_quads(const obs_job *job, const obs_panel *p, const int64_t *columns,
                          int64_t *quads)
{
    int64_t count = 0;
    for (int64_t j = 0; j < p->left; j++) {
        bool first = job->free ? j % 4 == 0
                               : j == 0 || columns[j] / job->group != columns[j - 1] / job->group;
        if (first) {
            quads[count++] = j;
        }
    }
    quads[count] = p->left;
    return count;
}

static void list_columns(const obs_job *job, const obs_panel *p, const int64_t *places,
                         uint32_t *listed)
{
    for (int64_t j = 0; j < job->kept; j++) {
        listed[j] = j < p->left ? (uint32_t)p->columns[places[j]] : UINT32_MAX;
    }
}

static bool finish_panel(const obs_job *job, obs_panel *p, int64_t *places, uint32_t *listed)
{
    int64_t in = job->in, n = p->left;
    sort_places(p, places);
    list_columns(job, p, places, listed);
    if (job->mask == NULL) {
        return true;
    }
    if (!factor(job, p, places)) {
        return false;
    }
    int64_t *columns = p->in_group; /* has served */
    for (int64_t j = 0; j < n; j++) {
        columns[j] = p->columns[places[j]];
    }
    double *row = p->costs;
    int64_t *quads = p->columns; /* served as well; n / 2 + 1 or fewer begin */
    int64_t count = list_quads(job, p, columns, quads);
    for (int64_t r = 0; r < p->rows; r++) {
        double *to = job->weights + (p->first + r) * in;
        for (int64_t j = 0; j < n; j++) {
            row[j] = p->weights[r * in + places[j]];
        }
        sweep_row(p, row, quads, count, esp_mask_row_mut(job->mask, p->first + r), columns);
        memset(to, 0, (size_t)in * sizeof *to);
        for (int64_t j = 0; j < n; j++) {
            to[columns[j]] = row[j];
        }
    }
    return true;
}

/* ---- all panels ---- */

static void prune_panels(void *user, int64_t begin, int64_t end, int thread)
{
    obs_job *job = user;
    int64_t in = job->in;
    size_t each = (size_t)(2 * in * in + (job->v + 1) * in);
    double *room = job->room + (size_t)thread * each;
    int64_t *lists = job->lists + thread * (3 * in + 1);
    for (int64_t i = begin; i < end; i++) {
        obs_panel p = {.first = i * job->v,
                       .rows = ESP_MIN(job->v, job->out - i * job->v),
                       .inverse = room,
                       .factor = room + in * in,
                       .weights = room + 2 * in * in,
                       .costs = room + 2 * in * in + job->v * in,
                       .columns = lists,
                       .in_group = lists + in + 1};
        begin_panel(job, &p);
        int64_t at;
        while ((!job->free || p.left > job->kept) && (at = cheapest(job, &p)) >= 0) {
            drop(job, &p, at);
        }
        if (!finish_panel(job, &p, lists + 2 * in + 1, job->columns + i * job->kept)) {
            job->failed = true; /* only ever set */
        }
    }
}

static esp_status run(obs_job *job, esp_error *error)
{
    esp_context *context = esp_algebra_context(job->algebra);
    size_t threads = (size_t)context->threads, in = (size_t)job->in, total = 0;
    int64_t panels = esp_ceil_div(job->out, job->v);
    bool fits = esp_mul_size(threads, 2 * in * in + ((size_t)job->v + 1) * in, &total);
    job->room = fits ? esp_alloc_array(context, total, sizeof *job->room) : NULL;
    job->lists = esp_alloc_array(context, threads * (3 * in + 1), sizeof *job->lists);
    job->columns =
        esp_alloc_array(context, (size_t)panels * (size_t)job->kept, sizeof *job->columns);
    if (job->room == NULL || job->lists == NULL || job->columns == NULL) {
        return esp_fail_memory(error, fits ? total * sizeof *job->room : SIZE_MAX, "panels");
    }
    esp_parallel_for(context, panels, 1, prune_panels, job);
    if (job->failed) {
        return esp_fail(error, ESP_CHECK_FAILED, "calibrate.not_definite",
                        "the inputs' second moments cannot be factored within a panel: give more "
                        "samples or a larger damping");
    }
    return job->free && job->mask != NULL
               ? esp_mask_set_columns(job->mask, job->v, job->kept, job->columns, error)
               : ESP_OK;
}

/* ---- on a device ---- */

bool esp_device_panels_takes(const esp_algebra *algebra, int64_t out, int64_t in)
{
    const esp_device_algebra *device = esp_algebra_device(algebra);
    return device != NULL && device->ops->panels != NULL && out > 0 && in > 0;
}

static esp_status run_far(obs_job *job, esp_error *error)
{
    esp_context *context = esp_algebra_context(job->algebra);
    esp_device_algebra *device = esp_algebra_device(job->algebra);
    size_t count = (size_t)esp_ceil_div(job->out, job->v) * (size_t)job->kept;
    job->columns = esp_alloc_array(context, count, sizeof *job->columns);
    if (job->columns == NULL) {
        return esp_fail_memory(error, count * sizeof *job->columns, "columns");
    }
    const esp_device_panels panels = {.out = job->out,
                                      .in = job->in,
                                      .v = job->v,
                                      .group = job->group,
                                      .kept = job->kept,
                                      .free = job->free,
                                      .inverse = job->inverse,
                                      .weights = job->weights,
                                      .columns = job->columns,
                                      .mask = esp_mask_row_mut(job->mask, 0),
                                      .mask_words = esp_mask_row_words(job->mask)};
    ESP_TRY(device->ops->panels(device, &panels, error));
    return job->free ? esp_mask_set_columns(job->mask, job->v, job->kept, job->columns, error)
                     : ESP_OK;
}

bool esp_panel_obs_takes(const esp_pattern *pattern)
{
    return pattern->kind == ESP_PATTERN_PANEL && !esp_pattern_is_2_4(pattern);
}

static obs_job job_of(const esp_algebra *algebra, const esp_pattern *pattern, int64_t out,
                      int64_t in, const double *inverse, double *weights)
{
    return (obs_job){.algebra = algebra,
                     .out = out,
                     .in = in,
                     .v = esp_pattern_panel_rows(pattern, out),
                     .free = pattern->m == 0,
                     .group = pattern->m > 0 ? ESP_MIN(pattern->m, in) : in,
                     .kept = esp_pattern_kept(pattern, in),
                     .inverse = inverse,
                     .weights = weights};
}

static void free_room(const obs_job *job)
{
    esp_context *context = esp_algebra_context(job->algebra);
    esp_release(context, job->room);
    esp_release(context, job->lists);
    esp_release(context, job->columns);
}

/* Of V:2:M every group has four places; what a narrower one at the end lacks is padding. */
esp_status esp_panel_obs_columns(const esp_algebra *algebra, const esp_pattern *pattern,
                                 int64_t out, int64_t in, const double *inverse, double *weights,
                                 uint32_t *columns, esp_error *error)
{
    obs_job job = job_of(algebra, pattern, out, in, inverse, weights);
    size_t count = (size_t)esp_ceil_div(out, job.v) * (size_t)job.kept;
    esp_status status = run(&job, error);
    if (status == ESP_OK) {
        memcpy(columns, job.columns, count * sizeof *columns);
    }
    free_room(&job);
    return status;
}

esp_status esp_panel_obs(const esp_algebra *algebra, const esp_pattern *pattern, int64_t out,
                         int64_t in, const double *inverse, double *weights, esp_mask **mask,
                         esp_error *error)
{
    esp_context *context = esp_algebra_context(algebra);
    obs_job job = job_of(algebra, pattern, out, in, inverse, weights);
    ESP_TRY(esp_mask_create(context, out, in, &job.mask, error));
    bool goes = esp_device_panels_takes(algebra, out, in);
    esp_status status = goes ? run_far(&job, error) : run(&job, error);
    free_room(&job);
    if (status != ESP_OK) {
        esp_mask_free(job.mask);
        return status;
    }
    *mask = job.mask;
    return ESP_OK;
}
