/* One group of M columns by second order: Castro et al., "VENOM" (arXiv 2310.02065), with the
 * second moments of the layer's inputs for the Fisher matrix.
 *
 * With B the inverse of the group's corner of H^-1 (all columns to the right being free to follow),
 * keeping the pair K of a row and dropping the rest D costs w_D^T ([H^-1]_DD)^-1 w_D. As the least
 * of (w - x)^T B (w - x) over x that live in K this is w^T B w - y_K^T (B_KK)^-1 y_K, y = B w: two
 * by two systems whatever M is, where the formula over D asks for one of M - 2. So every pair can
 * be looked at, and what VENOM takes to be added up from neighbouring pairs is exact here. A panel
 * keeps the four columns in which its rows' best pairs gain most, of all quadruples up to M = 10,
 * by exchanges above. The kept two become (B_KK)^-1 y_K, and what lies to the right follows, by the
 * errors that SparseGPT's sweep would have left. */
#include "prune/group_obs.h"

#include "prune/select.h"

typedef struct group_job {
    const esp_obs_group *group;
    double *b;         /* [width][width] */
    double *y;         /* [out][width]: B w */
    double *gains;     /* [threads][pairs of the exact search] */
    uint32_t *columns; /* [panels][4] */
} group_job;

#define MOST_PAIRS (ESP_EXACT_MAX_WIDTH * (ESP_EXACT_MAX_WIDTH - 1) / 2)
#define MOST_QUADRUPLES 210 /* of 10 columns */

/* ---- B ---- */

/* B = U^-1 U^-T, U the group's corner; inverse: [width][width]. */
static void invert_corner(const esp_obs_group *g, double *inverse, double *b)
{
    int64_t n = g->width;
    memset(inverse, 0, (size_t)(n * n) * sizeof *inverse);
    for (int64_t j = 0; j < n; j++) {
        inverse[j * n + j] = 1 / g->factor[j * g->factor_stride + j];
        for (int64_t i = j - 1; i >= 0; i--) {
            double sum = 0;
            for (int64_t k = i + 1; k <= j; k++) {
                sum += g->factor[i * g->factor_stride + k] * inverse[k * n + j];
            }
            inverse[i * n + j] = -sum / g->factor[i * g->factor_stride + i];
        }
    }
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j <= i; j++) {
            double sum = 0;
            for (int64_t k = i; k < n; k++) {
                sum += inverse[i * n + k] * inverse[j * n + k];
            }
            b[i * n + j] = b[j * n + i] = sum;
        }
    }
}

static void weigh_rows(void *user, int64_t begin, int64_t end, int thread)
{
    const group_job *job = user;
    const esp_obs_group *g = job->group;
    (void)thread;
    for (int64_t r = begin; r < end; r++) {
        const double *w = g->weights + r * g->weight_stride;
        for (int64_t i = 0; i < g->width; i++) {
            double sum = 0;
            for (int64_t j = 0; j < g->width; j++) {
                sum += job->b[i * g->width + j] * w[j];
            }
            job->y[r * g->width + i] = sum;
        }
    }
}

/* ---- pairs ---- */

/* Values of columns a and b when a row keeps these two; returns what that gains. */
static double keep_pair(const group_job *job, const double *y, int64_t a, int64_t b,
                        double values[2])
{
    int64_t n = job->group->width;
    double aa = job->b[a * n + a], ab = job->b[a * n + b], bb = job->b[b * n + b];
    double determinant = aa * bb - ab * ab;
    values[0] = (bb * y[a] - ab * y[b]) / determinant;
    values[1] = (aa * y[b] - ab * y[a]) / determinant;
    return y[a] * values[0] + y[b] * values[1];
}

/* The best pair of the listed columns, in pair; of equal ones the first. */
static double best_pair(const group_job *job, const double *y, const uint32_t *columns, int count,
                        int pair[2])
{
    double most = -1, values[2];
    for (int i = 0; i < count; i++) {
        for (int j = i + 1; j < count; j++) {
            double gain = keep_pair(job, y, columns[i], columns[j], values);
            if (gain > most) {
                most = gain;
                pair[0] = i;
                pair[1] = j;
            }
        }
    }
    return most;
}

/* ---- the four columns of a panel ---- */

static double gain_of(const group_job *job, int64_t first, int64_t rows, const uint32_t columns[4])
{
    double sum = 0;
    int pair[2];
    for (int64_t r = first; r < first + rows; r++) {
        sum += best_pair(job, job->y + r * job->group->width, columns, 4, pair);
    }
    return sum;
}

/* gains: of all pairs of a row, in lexicographic order. */
static void add_quadruples(int width, const double *gains, double *sums)
{
    int row_of[ESP_EXACT_MAX_WIDTH], at = 0;
    for (int a = 0; a < width; a++) { /* pair (a, b) lies at row_of[a] + b */
        row_of[a] = at - a - 1;
        at += width - 1 - a;
    }
    for (int a = 0; a < width; a++) {
        for (int b = a + 1; b < width; b++) {
            for (int c = b + 1; c < width; c++) {
                double three = ESP_MAX(gains[row_of[a] + b],
                                       ESP_MAX(gains[row_of[a] + c], gains[row_of[b] + c]));
                for (int d = c + 1; d < width; d++) {
                    double with = ESP_MAX(gains[row_of[a] + d],
                                          ESP_MAX(gains[row_of[b] + d], gains[row_of[c] + d]));
                    *sums++ += ESP_MAX(three, with);
                }
            }
        }
    }
}

static void best_quadruple(int width, const double *sums, uint32_t columns[4])
{
    double most = -1;
    for (int a = 0; a < width; a++) {
        for (int b = a + 1; b < width; b++) {
            for (int c = b + 1; c < width; c++) {
                for (int d = c + 1; d < width; d++, sums++) {
                    if (*sums > most) {
                        most = *sums;
                        columns[0] = (uint32_t)a, columns[1] = (uint32_t)b;
                        columns[2] = (uint32_t)c, columns[3] = (uint32_t)d;
                    }
                }
            }
        }
    }
}

static void choose_exactly(const group_job *job, int64_t first, int64_t rows, int thread,
                           uint32_t columns[4])
{
    int width = (int)job->group->width;
    double *gains = job->gains + thread * MOST_PAIRS, sums[MOST_QUADRUPLES] = {0}, values[2];
    for (int64_t r = first; r < first + rows; r++) {
        const double *y = job->y + r * width;
        int at = 0;
        for (int a = 0; a < width; a++) {
            for (int b = a + 1; b < width; b++) {
                gains[at++] = keep_pair(job, y, a, b, values);
            }
        }
        add_quadruples(width, gains, sums);
    }
    best_quadruple(width, sums, columns);
}

/* The four that gain most each on its own. */
static void choose_alone(const group_job *job, int64_t first, int64_t rows, uint32_t columns[4])
{
    int64_t n = job->group->width;
    for (int taken = 0; taken < 4; taken++) {
        double most = -1;
        for (int64_t j = 0; j < n; j++) {
            double sum = 0;
            for (int64_t r = first; r < first + rows; r++) {
                sum += job->y[r * n + j] * job->y[r * n + j];
            }
            sum /= job->b[j * n + j];
            for (int i = 0; i < taken; i++) {
                sum = columns[i] == j ? -1 : sum;
            }
            if (sum > most) {
                most = sum;
                columns[taken] = (uint32_t)j;
            }
        }
    }
}

/* One kept column for a dropped one, while the panel gains by that. */
static void exchange(const group_job *job, int64_t first, int64_t rows, uint32_t columns[4])
{
    double most = gain_of(job, first, rows, columns);
    bool better = true;
    while (better) {
        better = false;
        for (int i = 0; i < 4; i++) {
            for (uint32_t j = 0; j < job->group->width; j++) {
                uint32_t tried[4];
                memcpy(tried, columns, sizeof tried);
                tried[i] = j;
                bool new = j != columns[0] && j != columns[1] && j != columns[2] && j != columns[3];
                double gain = new ? gain_of(job, first, rows, tried) : -1;
                if (gain > most * (1 + 1e-12)) {
                    most = gain;
                    columns[i] = j;
                    better = true;
                }
            }
        }
    }
}

static void sort_four(uint32_t columns[4])
{
    for (int i = 1; i < 4; i++) {
        for (int k = i; k > 0 && columns[k - 1] > columns[k]; k--) {
            uint32_t held = columns[k];
            columns[k] = columns[k - 1];
            columns[k - 1] = held;
        }
    }
}

static void choose_panels(void *user, int64_t begin, int64_t end, int thread)
{
    const group_job *job = user;
    const esp_obs_group *g = job->group;
    for (int64_t p = begin; p < end; p++) {
        uint32_t *columns = job->columns + 4 * p;
        int64_t first = p * g->v, rows = ESP_MIN(g->v, g->out - first);
        if (g->search == ESP_SEARCH_EXACT) {
            choose_exactly(job, first, rows, thread, columns);
            continue;
        }
        choose_alone(job, first, rows, columns);
        if (g->search == ESP_SEARCH_SWAPS) {
            exchange(job, first, rows, columns);
        }
        sort_four(columns);
    }
}

/* ---- rows ---- */

/* errors = -U^-T change, so that columns to the right lose errors times U's rows. */
static void find_errors(const esp_obs_group *g, const double *change, double *errors)
{
    for (int64_t i = 0; i < g->width; i++) {
        double sum = change[i];
        for (int64_t k = 0; k < i; k++) {
            sum += g->factor[k * g->factor_stride + i] * errors[k];
        }
        errors[i] = -sum / g->factor[i * g->factor_stride + i];
    }
}

static void update(const esp_obs_group *g, const double *errors, double *row)
{
    for (int64_t i = 0; i < g->width; i++) {
        const double *factor = g->factor + i * g->factor_stride;
        for (int64_t j = g->width; j < g->reach; j++) {
            row[j] -= errors[i] * factor[j];
        }
    }
}

static void keep_rows(void *user, int64_t begin, int64_t end, int thread)
{
    static const uint32_t few[4] = {0, 1, 2, 3};
    const group_job *job = user;
    const esp_obs_group *g = job->group;
    (void)thread;
    for (int64_t r = begin; r < end; r++) {
        double *row = g->weights + r * g->weight_stride, *y = job->y + r * g->width, values[2];
        double *errors = g->errors + r * g->error_stride;
        const uint32_t *columns = g->width > 4 ? job->columns + r / g->v * 4 : few;
        int pair[2] = {0, 0};
        (void)best_pair(job, y, columns, (int)ESP_MIN(4, g->width), pair);
        int64_t a = columns[pair[0]], b = columns[pair[1]];
        (void)keep_pair(job, y, a, b, values);
        for (int64_t j = 0; j < g->width; j++) { /* y has served: it becomes the change */
            y[j] = (j == a ? values[0] : j == b ? values[1] : 0) - row[j];
            row[j] += y[j];
        }
        find_errors(g, y, errors);
        update(g, errors, row);
        esp_mask_set(g->mask, r, g->column + a, true);
        esp_mask_set(g->mask, r, g->column + b, true);
    }
}

/* Up to two columns are all kept, as they are. */
static void keep_all(const esp_obs_group *g)
{
    for (int64_t r = 0; r < g->out; r++) {
        for (int64_t j = 0; j < g->width; j++) {
            esp_mask_set(g->mask, r, g->column + j, true);
            g->errors[r * g->error_stride + j] = 0;
        }
    }
}

esp_status esp_prune_group(const esp_obs_group *g, esp_error *error)
{
    esp_context *context = g->context;
    int64_t panels = esp_ceil_div(g->out, g->v);
    size_t width = (size_t)g->width, threads = (size_t)context->threads;
    if (g->width <= 2) {
        keep_all(g);
        return ESP_OK;
    }
    size_t count = 2 * width * width + (size_t)g->out * width + threads * MOST_PAIRS;
    double *room = esp_alloc_array(context, count, sizeof *room);
    group_job job = {.group = g,
                     .b = room,
                     .y = room + 2 * width * width,
                     .gains = room + 2 * width * width + (size_t)g->out * width,
                     .columns = esp_alloc_array(context, 4 * (size_t)panels, sizeof *job.columns)};
    esp_status status = ESP_OK;
    if (room == NULL || job.columns == NULL) {
        status = esp_fail_memory(error, count * sizeof *room, "a group of columns");
    } else {
        invert_corner(g, room + width * width, job.b);
        esp_parallel_for(context, g->out, 16, weigh_rows, &job);
        if (g->width > 4) {
            esp_parallel_for(context, panels, 1, choose_panels, &job);
        }
        esp_parallel_for(context, g->out, 16, keep_rows, &job);
    }
    esp_release(context, room);
    esp_release(context, job.columns);
    return status;
}
