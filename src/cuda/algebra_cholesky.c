/* Cholesky factors of many matrices at once, of which each is too small to keep a GPU busy: A = U^T
 * U by halves, so that nearly all of it is batches of large products. Corners of GPU_LEAF columns
 * are done by a kernel that inverts them, too. */
#include "cuda/algebra.h"

#define STRIPS 4 /* of a square whose upper triangle alone is wanted: 5 / 8 of the work */
#define LEAST_STRIP 256

typedef struct factor_job {
    const cuda_algebra *algebra;
    double *matrix; /* [count][n][n], `step` apart */
    int64_t n, step, count;
    double *inverses; /* [count][n / GPU_LEAF][GPU_LEAF][GPU_LEAF]: of the corners' U^T */
    double *room;     /* [count][GPU_LEAF][n] */
    int32_t *faults;  /* [count] */
} factor_job;

static int64_t leaves_of(const factor_job *job)
{
    return esp_ceil_div(job->n, GPU_LEAF);
}

static int64_t half_of(int64_t n)
{
    return esp_ceil_div(n, 2 * GPU_LEAF) * GPU_LEAF;
}

static double *inverse_at(const factor_job *job, int64_t at)
{
    return job->inverses + at / GPU_LEAF * GPU_LEAF * GPU_LEAF;
}

static int64_t inverse_step(const factor_job *job)
{
    return leaves_of(job) * GPU_LEAF * GPU_LEAF;
}

/* rows x columns at (row, column) -= U[from.., row..]^T U[from.., column..], depth rows of U. */
static esp_status subtract(const factor_job *job, int64_t from, int64_t depth, int64_t row,
                           int64_t rows, int64_t column, int64_t columns, esp_error *error)
{
    const algebra_product product = {.rows = rows,
                                     .columns = columns,
                                     .depth = depth,
                                     .alpha = -1,
                                     .beta = 1,
                                     .a = job->matrix + from * job->n + row,
                                     .a_stride = job->n,
                                     .a_step = job->step,
                                     .a_transposed = true,
                                     .b = job->matrix + from * job->n + column,
                                     .b_stride = job->n,
                                     .b_step = job->step,
                                     .c = job->matrix + row * job->n + column,
                                     .c_stride = job->n,
                                     .c_step = job->step,
                                     .count = job->count};
    return algebra_multiply(job->algebra, &product, error);
}

/* Rows of U right of a corner that is done: U^-T of the corner times what is there. */
static esp_status finish_rows(const factor_job *job, int64_t at, int64_t rows, int64_t column,
                              int64_t columns, esp_error *error)
{
    double *place = job->matrix + at * job->n + column;
    const algebra_product product = {.rows = rows,
                                     .columns = columns,
                                     .depth = rows,
                                     .alpha = 1,
                                     .a = inverse_at(job, at),
                                     .a_stride = GPU_LEAF,
                                     .a_step = inverse_step(job),
                                     .b = place,
                                     .b_stride = job->n,
                                     .b_step = job->step,
                                     .c = job->room,
                                     .c_stride = job->n,
                                     .c_step = GPU_LEAF * job->n,
                                     .count = job->count};
    ESP_TRY(algebra_multiply(job->algebra, &product, error));
    return algebra_check(job->algebra,
                         gpu_cholesky_copy(job->room, job->n, GPU_LEAF * job->n, rows, columns,
                                           job->count, place, job->n, job->step,
                                           job->algebra->stream),
                         "copying", error);
}

/* The same right of a corner of any size. */
static esp_status solve(const factor_job *job, int64_t at, int64_t rows, int64_t column,
                        int64_t columns, esp_error *error)
{
    if (rows <= GPU_LEAF) {
        return finish_rows(job, at, rows, column, columns, error);
    }
    int64_t half = half_of(rows);
    ESP_TRY(solve(job, at, half, column, columns, error));
    ESP_TRY(subtract(job, at, half, at + half, rows - half, column, columns, error));
    return solve(job, at + half, rows - half, column, columns, error);
}

static esp_status subtract_triangle(const factor_job *job, int64_t from, int64_t depth, int64_t at,
                                    int64_t n, esp_error *error)
{
    int64_t strip = ESP_MAX(LEAST_STRIP, esp_ceil_div(n, STRIPS));
    for (int64_t s = 0; s < n; s += strip) {
        ESP_TRY(subtract(job, from, depth, at + s, ESP_MIN(strip, n - s), at + s, n - s, error));
    }
    return ESP_OK;
}

static esp_status factor(const factor_job *job, int64_t at, int64_t n, esp_error *error)
{
    if (n <= GPU_LEAF) {
        return algebra_check(job->algebra,
                             gpu_cholesky_leaf(job->matrix + at * (job->n + 1), job->n, job->step,
                                               n, job->count, inverse_at(job, at),
                                               inverse_step(job), job->faults,
                                               job->algebra->stream),
                             "a factorization", error);
    }
    int64_t half = half_of(n);
    ESP_TRY(factor(job, at, half, error));
    ESP_TRY(solve(job, at, half, at + half, n - half, error));
    ESP_TRY(subtract_triangle(job, at, half, at + half, n - half, error));
    return factor(job, at + half, n - half, error);
}

static esp_status check_faults(const factor_job *job, bool *definite, esp_error *error)
{
    esp_context *context = job->algebra->device->context;
    size_t count = (size_t)job->count;
    int32_t *faults = esp_alloc_array(context, count, sizeof *faults);
    if (faults == NULL) {
        return esp_fail_memory(error, count * sizeof *faults, "a factorization");
    }
    esp_status status =
        algebra_bring(job->algebra, faults, job->faults, count * sizeof *faults, error);
    bool found = false;
    for (size_t i = 0; i < count && status == ESP_OK; i++) {
        found = found || faults[i] != 0;
    }
    esp_release(context, faults);
    *definite = !found;
    return status;
}

static esp_status run(factor_job *job, bool *definite, esp_error *error)
{
    const cuda_algebra *algebra = job->algebra;
    size_t count = (size_t)job->count, faults = count * sizeof *job->faults;
    size_t inverses = count * (size_t)inverse_step(job) * sizeof(double);
    size_t room = count * GPU_LEAF * (size_t)job->n * sizeof(double);
    ESP_TRY(algebra_take(algebra, inverses, "a factorization", &job->inverses, error));
    ESP_TRY(algebra_take(algebra, room, "a factorization", &job->room, error));
    ESP_TRY(algebra_take(algebra, faults, "a factorization", &job->faults, error));
    int failed = gpu_clear(job->faults, faults, algebra->stream);
    failed = failed == 0 ? gpu_clear(job->inverses, inverses, algebra->stream) : failed;
    ESP_TRY(algebra_check(algebra, failed, "filling its memory", error));
    ESP_TRY(factor(job, 0, job->n, error));
    return check_faults(job, definite, error);
}

esp_status algebra_factor_many(const cuda_algebra *algebra, double *matrix, int64_t n, int64_t step,
                               int64_t count, bool *definite, esp_error *error)
{
    factor_job job = {.algebra = algebra, .matrix = matrix, .n = n, .step = step, .count = count};
    esp_status status = run(&job, definite, error);
    algebra_give(algebra, job.inverses);
    algebra_give(algebra, job.room);
    algebra_give(algebra, job.faults);
    return status;
}
