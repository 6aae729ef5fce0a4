/* The heavy algebra of calibration on a GPU. Everything is f64, as on the host: the tensor cores of
 * a data-centre GPU multiply f64 as fast as its other units multiply f32, so that nothing is lost
 * and no bound is needed but that of another order of sums. */
#include "cuda/algebra.h"

/* ---- memory ---- */

esp_status algebra_check(const cuda_algebra *algebra, int failed, const char *what,
                         esp_error *error)
{
    return cuda_check(failed, algebra->device, what, error);
}

esp_status algebra_take(const cuda_algebra *algebra, size_t bytes, const char *what, void *memory,
                        esp_error *error)
{
    void *taken = NULL;
    int failed = gpu_pool_take(algebra->pool, bytes, &taken, algebra->stream);
    if (failed != 0 && gpu_error_is_memory(failed)) { /* what the pool keeps may lie in pieces */
        (void)gpu_stream_wait(algebra->stream);
        gpu_pool_trim(algebra->pool);
        failed = gpu_pool_take(algebra->pool, bytes, &taken, algebra->stream);
    }
    if (failed != 0 && gpu_error_is_memory(failed)) {
        return esp_device_fail_memory(algebra->device, bytes, what, error);
    }
    memcpy(memory, &taken, sizeof taken);
    return algebra_check(algebra, failed, "taking memory", error);
}

void algebra_give(const cuda_algebra *algebra, void *memory)
{
    gpu_pool_give(memory, algebra->stream);
}

static algebra_held *find_held(cuda_algebra *algebra, const double *host)
{
    for (int i = 0; i < ALGEBRA_HELD; i++) {
        if (algebra->held[i].host == host) {
            return &algebra->held[i];
        }
    }
    return NULL;
}

esp_status algebra_lend(const cuda_algebra *algebra, const double *host, int64_t count,
                        const char *what, double **device, double **own, esp_error *error)
{
    *own = NULL;
    for (int i = 0; i < ALGEBRA_HELD; i++) {
        if (algebra->held[i].host == host) {
            *device = algebra->held[i].device;
            return ESP_OK;
        }
    }
    size_t bytes = (size_t)count * sizeof(double);
    ESP_TRY(algebra_take(algebra, bytes, what, own, error));
    *device = *own;
    return algebra_send(algebra, *own, host, bytes, error);
}

static void drop(cuda_algebra *algebra, const double *matrix)
{
    algebra_held *held = matrix != NULL ? find_held(algebra, matrix) : NULL;
    if (held != NULL) {
        algebra_give(algebra, held->device);
        *held = (algebra_held){0};
    }
}

/* Room for the device's copy of a matrix. */
static esp_status hold_room(cuda_algebra *algebra, const double *matrix, int64_t count,
                            algebra_held **held, esp_error *error)
{
    drop(algebra, matrix);
    *held = find_held(algebra, NULL);
    if (*held == NULL) {
        return esp_fail(error, ESP_FAILED, "cuda.failed", "device '%s': %d matrices are held",
                        algebra->device->name, ALGEBRA_HELD);
    }
    ESP_TRY(algebra_take(algebra, (size_t)count * sizeof(double), "a matrix of calibration",
                         &(*held)->device, error));
    (*held)->host = matrix;
    (*held)->count = count;
    return ESP_OK;
}

static esp_status hold(cuda_algebra *algebra, const double *matrix, int64_t count, bool zeros,
                       esp_error *error)
{
    algebra_held *held;
    size_t bytes = (size_t)count * sizeof(double);
    ESP_TRY(hold_room(algebra, matrix, count, &held, error));
    return zeros ? algebra_check(algebra, gpu_clear(held->device, bytes, algebra->stream),
                                 "filling its memory", error)
                 : algebra_send(algebra, held->device, matrix, bytes, error);
}

static esp_status fetch(cuda_algebra *algebra, double *matrix, esp_error *error)
{
    const algebra_held *held = find_held(algebra, matrix);
    return algebra_bring(algebra, matrix, held->device, (size_t)held->count * sizeof(double),
                         error);
}

/* ---- products ---- */

esp_status algebra_blas_check(const cuda_algebra *algebra, cublasStatus_t status, esp_error *error)
{
    return status == CUBLAS_STATUS_SUCCESS
               ? ESP_OK
               : esp_fail(error, ESP_FAILED, "cublas.failed",
                          "device '%s': cuBLAS's product failed with status %d",
                          algebra->device->name, (int)status);
}

/* cuBLAS stores by columns: its C is the transpose, and A and B change places. */
esp_status algebra_multiply(const cuda_algebra *algebra, const algebra_product *p, esp_error *error)
{
    cublasOperation_t of_b = p->b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t of_a = p->a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    int m = (int)p->columns, n = (int)p->rows, k = (int)p->depth;
    int lda = (int)p->a_stride, ldb = (int)p->b_stride, ldc = (int)p->c_stride;
    if (m == 0 || n == 0) {
        return ESP_OK;
    }
    cublasStatus_t status = p->count > 1
                                ? algebra->gemm_batch(algebra->blas, of_b, of_a, m, n, k, &p->alpha,
                                                      p->b, ldb, p->b_step, p->a, lda, p->a_step,
                                                      &p->beta, p->c, ldc, p->c_step, (int)p->count)
                                : algebra->gemm(algebra->blas, of_b, of_a, m, n, k, &p->alpha, p->b,
                                                ldb, p->a, lda, &p->beta, p->c, ldc);
    return algebra_blas_check(algebra, status, error);
}

typedef struct multiply_job {
    double *a, *b, *c, *own_a, *own_b;
} multiply_job;

static esp_status multiply_lent(cuda_algebra *algebra, const esp_algebra_product *p,
                                multiply_job *job, esp_error *error)
{
    int64_t b_rows = p->b_transposed ? p->columns : p->depth;
    size_t bytes = (size_t)(p->rows * p->c_stride) * sizeof(double);
    ESP_TRY(
        algebra_lend(algebra, p->a, p->rows * p->a_stride, "weights", &job->a, &job->own_a, error));
    ESP_TRY(
        algebra_lend(algebra, p->b, b_rows * p->b_stride, "a matrix", &job->b, &job->own_b, error));
    ESP_TRY(algebra_take(algebra, bytes, "a product", &job->c, error));
    if (p->beta != 0) {
        ESP_TRY(algebra_send(algebra, job->c, p->c, bytes, error));
    }
    const algebra_product product = {.rows = p->rows,
                                     .columns = p->columns,
                                     .depth = p->depth,
                                     .alpha = p->alpha,
                                     .beta = p->beta,
                                     .a = job->a,
                                     .a_stride = p->a_stride,
                                     .b = job->b,
                                     .b_stride = p->b_stride,
                                     .b_transposed = p->b_transposed,
                                     .c = job->c,
                                     .c_stride = p->c_stride};
    ESP_TRY(algebra_multiply(algebra, &product, error));
    return algebra_bring(algebra, p->c, job->c, bytes, error);
}

static esp_status multiply(cuda_algebra *algebra, const esp_algebra_product *product,
                           esp_error *error)
{
    multiply_job job = {0};
    esp_status status = multiply_lent(algebra, product, &job, error);
    algebra_give(algebra, job.own_a);
    algebra_give(algebra, job.own_b);
    algebra_give(algebra, job.c);
    return status;
}

/* ---- triangles ---- */

static esp_status mirror(cuda_algebra *algebra, const double *matrix, int64_t n, esp_error *error)
{
    const algebra_held *held = find_held(algebra, matrix);
    return algebra_check(algebra, gpu_mirror(held->device, n, false, algebra->stream), "mirroring",
                         error);
}

/* ---- Cholesky ---- */

esp_status algebra_not_definite(esp_error *error)
{
    return esp_fail(error, ESP_CHECK_FAILED, "calibrate.not_definite",
                    "the inputs' second moments cannot be factored: give more samples or a larger "
                    "damping");
}

static esp_status solver_check(const cuda_algebra *algebra, cusolverStatus_t status,
                               esp_error *error)
{
    return status == CUSOLVER_STATUS_SUCCESS
               ? ESP_OK
               : esp_fail(error, ESP_FAILED, "cusolver.failed",
                          "device '%s': cuSOLVER's factorization failed with status %d",
                          algebra->device->name, (int)status);
}

typedef cusolverStatus_t (*solver_size)(cusolverDnHandle_t, cublasFillMode_t, int, double *, int,
                                        int *);
typedef cusolverStatus_t (*solver_run)(cusolverDnHandle_t, cublasFillMode_t, int, double *, int,
                                       double *, int, int *);

/* The upper triangle by rows is the lower one by columns. */
static esp_status solve(const cuda_algebra *algebra, solver_size size, solver_run run,
                        double *matrix, int64_t n, int *info, esp_error *error)
{
    int room = 0, order = (int)n;
    double *scratch = NULL;
    int *told = NULL;
    ESP_TRY(solver_check(algebra,
                         size(algebra->solver, CUBLAS_FILL_MODE_LOWER, order, matrix, order, &room),
                         error));
    ESP_TRY(algebra_take(algebra, (size_t)room * sizeof *scratch + 64, "a factorization", &scratch,
                         error));
    esp_status status = algebra_take(algebra, sizeof *told, "a factorization", &told, error);
    if (status == ESP_OK) {
        status = solver_check(
            algebra,
            run(algebra->solver, CUBLAS_FILL_MODE_LOWER, order, matrix, order, scratch, room, told),
            error);
    }
    status = status == ESP_OK ? algebra_bring(algebra, info, told, sizeof *told, error) : status;
    algebra_give(algebra, scratch);
    algebra_give(algebra, told);
    return status;
}

esp_status algebra_factor(const cuda_algebra *algebra, double *matrix, int64_t n, bool *definite,
                          esp_error *error)
{
    int info = 0;
    ESP_TRY(solve(algebra, algebra->potrf_size, algebra->potrf, matrix, n, &info, error));
    *definite = info == 0;
    return ESP_OK;
}

static esp_status invert_held(cuda_algebra *algebra, const double *gram, int64_t n, double *inverse,
                              double *made, bool *definite, esp_error *error)
{
    double *from = NULL, *own = NULL;
    size_t bytes = (size_t)(n * n) * sizeof *made;
    int info = 0;
    esp_status status = algebra_lend(algebra, gram, n * n, "moments", &from, &own, error);
    if (status == ESP_OK) {
        status =
            algebra_check(algebra, gpu_move(made, from, bytes, algebra->stream), "copying", error);
    }
    algebra_give(algebra, own);
    ESP_TRY(status);
    ESP_TRY(algebra_factor(algebra, made, n, definite, error));
    if (!*definite) {
        return ESP_OK;
    }
    ESP_TRY(solve(algebra, algebra->potri_size, algebra->potri, made, n, &info, error));
    *definite = info == 0;
    ESP_TRY(algebra_check(algebra, gpu_mirror(made, n, true, algebra->stream), "mirroring", error));
    return algebra_bring(algebra, inverse, made, bytes, error);
}

static esp_status invert(cuda_algebra *algebra, const double *gram, int64_t n, double *inverse,
                         bool *definite, esp_error *error)
{
    algebra_held *held;
    ESP_TRY(hold_room(algebra, inverse, n * n, &held, error));
    esp_status status = invert_held(algebra, gram, n, inverse, held->device, definite, error);
    if (status != ESP_OK || !*definite) {
        drop(algebra, inverse);
    }
    return status;
}

/* ---- errors of outputs ---- */

typedef struct squared_job {
    double *gram, *weights, *target, *product, *own_gram, *own_weights, *own_target;
} squared_job;

static esp_status square_lent(const cuda_algebra *algebra, squared_job *job, const double *gram,
                              int64_t out, int64_t in, const double *weights, const double *target,
                              double *squared, esp_error *error)
{
    int64_t count = out * in;
    ESP_TRY(algebra_lend(algebra, gram, in * in, "moments", &job->gram, &job->own_gram, error));
    ESP_TRY(
        algebra_lend(algebra, target, count, "a target", &job->target, &job->own_target, error));
    ESP_TRY(
        algebra_take(algebra, (size_t)count * sizeof(double), "a product", &job->product, error));
    const double *difference = job->target;
    if (weights != NULL) {
        ESP_TRY(algebra_take(algebra, (size_t)count * sizeof(double), "weights", &job->own_weights,
                             error));
        ESP_TRY(algebra_send(algebra, job->own_weights, weights, (size_t)count * sizeof(double),
                             error));
        ESP_TRY(algebra_check(
            algebra,
            gpu_subtract(job->own_weights, job->target, count, job->own_weights, algebra->stream),
            "subtracting", error));
        difference = job->own_weights;
    }
    const algebra_product product = {.rows = out,
                                     .columns = in,
                                     .depth = in,
                                     .alpha = 1,
                                     .a = difference,
                                     .a_stride = in,
                                     .b = job->gram,
                                     .b_stride = in,
                                     .c = job->product,
                                     .c_stride = in};
    ESP_TRY(algebra_multiply(algebra, &product, error));
    double sum = 0;
    for (int64_t at = 0; at < count; at += INT32_MAX / 2) { /* its sizes are ints */
        double part = 0;
        int length = (int)ESP_MIN(count - at, INT32_MAX / 2);
        ESP_TRY(algebra_blas_check(
            algebra,
            algebra->dot(algebra->blas, length, difference + at, 1, job->product + at, 1, &part),
            error));
        sum += part;
    }
    *squared = ESP_MAX(sum, 0);
    return ESP_OK;
}

static esp_status squared(cuda_algebra *algebra, const double *gram, int64_t out, int64_t in,
                          const double *weights, const double *target, double *sum,
                          esp_error *error)
{
    squared_job job = {0};
    esp_status status = square_lent(algebra, &job, gram, out, in, weights, target, sum, error);
    double *const own[] = {job.own_gram, job.own_weights, job.own_target, job.product};
    for (int i = 0; i < ESP_COUNT(own); i++) {
        algebra_give(algebra, own[i]);
    }
    return status;
}

/* ---- the table: each call with the device current ---- */

static cuda_algebra *enter(esp_device_algebra *algebra, int *before, esp_error *error,
                           esp_status *status)
{
    cuda_algebra *own = (cuda_algebra *)algebra;
    const cuda_state *state = own->device->state;
    *status = algebra_check(own, gpu_enter(state->index, before), "entering it", error);
    return own;
}

#define ENTERED(call)                                                                              \
    int before;                                                                                    \
    esp_status status;                                                                             \
    cuda_algebra *own = enter(algebra, &before, error, &status);                                   \
    if (status == ESP_OK) {                                                                        \
        status = call;                                                                             \
        gpu_leave(before);                                                                         \
    }                                                                                              \
    return status

static esp_status enter_hold(esp_device_algebra *algebra, const double *matrix, int64_t count,
                             bool zeros, esp_error *error)
{
    ENTERED(hold(own, matrix, count, zeros, error));
}

static esp_status enter_fetch(esp_device_algebra *algebra, double *matrix, esp_error *error)
{
    ENTERED(fetch(own, matrix, error));
}

static void enter_drop(esp_device_algebra *algebra, const double *matrix)
{
    int before;
    esp_status status;
    cuda_algebra *own = enter(algebra, &before, NULL, &status);
    if (status == ESP_OK) {
        drop(own, matrix);
        gpu_leave(before);
    }
}

static esp_status enter_multiply(esp_device_algebra *algebra, const esp_algebra_product *product,
                                 esp_error *error)
{
    ENTERED(multiply(own, product, error));
}

static esp_status enter_add_gram(esp_device_algebra *algebra, const esp_token_rows *x,
                                 const esp_token_rows *y, int64_t tokens, double *h,
                                 esp_error *error)
{
    ENTERED(cuda_algebra_add_gram(&own->base, x, y, tokens, h, error));
}

static esp_status enter_mirror(esp_device_algebra *algebra, const double *matrix, int64_t n,
                               esp_error *error)
{
    ENTERED(mirror(own, matrix, n, error));
}

static esp_status enter_invert(esp_device_algebra *algebra, const double *gram, int64_t n,
                               double *inverse, bool *definite, esp_error *error)
{
    ENTERED(invert(own, gram, n, inverse, definite, error));
}

static esp_status enter_squared(esp_device_algebra *algebra, const double *gram, int64_t out,
                                int64_t in, const double *weights, const double *target,
                                double *sum, esp_error *error)
{
    ENTERED(squared(own, gram, out, in, weights, target, sum, error));
}

static esp_status enter_refit(esp_device_algebra *algebra, esp_device_refit *refit,
                              esp_error *error)
{
    ENTERED(cuda_algebra_refit(&own->base, refit, error));
}

static esp_status enter_sweep(esp_device_algebra *algebra, const esp_device_sweep *sweep,
                              esp_error *error)
{
    ENTERED(cuda_algebra_sweep(&own->base, sweep, error));
}

static esp_status enter_panels(esp_device_algebra *algebra, const esp_device_panels *panels,
                               esp_error *error)
{
    ENTERED(cuda_algebra_panels(&own->base, panels, error));
}

/* ---- begin and end ---- */

static void close_entered(cuda_algebra *own)
{
    for (int i = 0; i < ALGEBRA_HELD; i++) {
        algebra_give(own, own->held[i].device);
    }
    cuda_algebra_lose(own);
    algebra_stage_close(own);
    if (own->stream != NULL) {
        gpu_stream_free(own->stream);
    }
    if (own->pool != NULL) {
        gpu_pool_free(own->pool);
    }
}

static void enter_close(esp_device_algebra *algebra)
{
    int before;
    esp_status status;
    cuda_algebra *own = enter(algebra, &before, NULL, &status);
    if (status == ESP_OK) {
        close_entered(own);
        gpu_leave(before);
    }
    esp_release(own->device->context, own);
}

static const esp_device_algebra_ops all_ops = {.close = enter_close,
                                               .hold = enter_hold,
                                               .fetch = enter_fetch,
                                               .drop = enter_drop,
                                               .multiply = enter_multiply,
                                               .add_gram = enter_add_gram,
                                               .mirror = enter_mirror,
                                               .invert = enter_invert,
                                               .squared = enter_squared,
                                               .refit = enter_refit,
                                               .sweep = enter_sweep,
                                               .panels = enter_panels};

static esp_status open_entered(cuda_algebra *own, esp_error *error)
{
    ESP_TRY(algebra_check(own, gpu_stream_create(&own->stream), "making a stream", error));
    ESP_TRY(algebra_check(own, gpu_pool_create(&own->pool), "making a pool of memory", error));
    ESP_TRY(algebra_stage_open(own, error));
    if (!cuda_algebra_find(own)) {
        return esp_fail(error, ESP_UNSUPPORTED, "cublas.not_found",
                        "device '%s': calibration needs libcublas, which was not found; install "
                        "CUDA's libraries or use --device cpu",
                        own->device->name);
    }
    own->ops = all_ops;
    if (own->solver == NULL) {
        esp_log(own->device->context, ESP_LOG_WARNING,
                "device '%s': libcusolver was not found, so the host inverts second moments and "
                "chooses masks with updates, which takes many times longer",
                own->device->name);
        own->ops.invert = NULL;
        own->ops.sweep = NULL;
        own->ops.panels = NULL;
    }
    own->base.ops = &own->ops;
    return ESP_OK;
}

esp_status cuda_algebra_open(esp_device *device, esp_device_algebra **algebra, esp_error *error)
{
    const cuda_state *state = device->state;
    cuda_algebra *own = esp_alloc_zero(device->context, sizeof *own);
    int before;
    if (own == NULL) {
        return esp_fail_memory(error, sizeof *own, "calibration on a GPU");
    }
    own->device = device;
    esp_status status = algebra_check(own, gpu_enter(state->index, &before), "entering it", error);
    if (status == ESP_OK) {
        status = open_entered(own, error);
        if (status != ESP_OK) {
            close_entered(own);
        }
        gpu_leave(before);
    }
    if (status != ESP_OK) {
        esp_release(device->context, own);
        return status;
    }
    *algebra = &own->base;
    return ESP_OK;
}
