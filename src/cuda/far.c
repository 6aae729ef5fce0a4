/* The heavy algebra of calibration on a GPU. Everything is f64, as on the host: the tensor cores of
 * a data-centre GPU multiply f64 as fast as its other units multiply f32, so that nothing is lost
 * and no bound is needed but that of another order of sums. */
#include "cuda/far.h"

/* ---- memory ---- */

esp_status far_check(const cuda_far *far, int failed, const char *what, esp_error *error)
{
    return cuda_check(failed, far->device, what, error);
}

esp_status far_take(const cuda_far *far, size_t bytes, const char *what, void *memory,
                    esp_error *error)
{
    void *taken = NULL;
    int failed = gpu_pool_take(far->pool, bytes, &taken, far->stream);
    if (failed != 0 && gpu_error_is_memory(failed)) { /* what the pool keeps may lie in pieces */
        (void)gpu_stream_wait(far->stream);
        gpu_pool_trim(far->pool);
        failed = gpu_pool_take(far->pool, bytes, &taken, far->stream);
    }
    if (failed != 0 && gpu_error_is_memory(failed)) {
        return esp_device_fail_memory(far->device, bytes, what, error);
    }
    memcpy(memory, &taken, sizeof taken);
    return far_check(far, failed, "taking memory", error);
}

void far_give(const cuda_far *far, void *memory)
{
    gpu_pool_give(memory, far->stream);
}

static far_held *find_held(cuda_far *far, const double *host)
{
    for (int i = 0; i < FAR_HELD; i++) {
        if (far->held[i].host == host) {
            return &far->held[i];
        }
    }
    return NULL;
}

esp_status far_lend(const cuda_far *far, const double *host, int64_t count, const char *what,
                    double **device, double **own, esp_error *error)
{
    *own = NULL;
    for (int i = 0; i < FAR_HELD; i++) {
        if (far->held[i].host == host) {
            *device = far->held[i].device;
            return ESP_OK;
        }
    }
    size_t bytes = (size_t)count * sizeof(double);
    ESP_TRY(far_take(far, bytes, what, own, error));
    *device = *own;
    return far_send(far, *own, host, bytes, error);
}

static void drop(cuda_far *far, const double *matrix)
{
    far_held *held = matrix != NULL ? find_held(far, matrix) : NULL;
    if (held != NULL) {
        far_give(far, held->device);
        *held = (far_held){0};
    }
}

/* Room for the device's copy of a matrix. */
static esp_status hold_room(cuda_far *far, const double *matrix, int64_t count, far_held **held,
                            esp_error *error)
{
    drop(far, matrix);
    *held = find_held(far, NULL);
    if (*held == NULL) {
        return esp_fail(error, ESP_FAILED, "cuda.failed", "device '%s': %d matrices are held",
                        far->device->name, FAR_HELD);
    }
    ESP_TRY(far_take(far, (size_t)count * sizeof(double), "a matrix of calibration",
                     &(*held)->device, error));
    (*held)->host = matrix;
    (*held)->count = count;
    return ESP_OK;
}

static esp_status hold(cuda_far *far, const double *matrix, int64_t count, bool zeros,
                       esp_error *error)
{
    far_held *held;
    size_t bytes = (size_t)count * sizeof(double);
    ESP_TRY(hold_room(far, matrix, count, &held, error));
    return zeros ? far_check(far, gpu_clear(held->device, bytes, far->stream), "filling its memory",
                             error)
                 : far_send(far, held->device, matrix, bytes, error);
}

static esp_status fetch(cuda_far *far, double *matrix, esp_error *error)
{
    const far_held *held = find_held(far, matrix);
    return far_bring(far, matrix, held->device, (size_t)held->count * sizeof(double), error);
}

/* ---- products ---- */

esp_status far_blas_check(const cuda_far *far, cublasStatus_t status, esp_error *error)
{
    return status == CUBLAS_STATUS_SUCCESS
               ? ESP_OK
               : esp_fail(error, ESP_FAILED, "cublas.failed",
                          "device '%s': cuBLAS's product failed with status %d", far->device->name,
                          (int)status);
}

/* cuBLAS stores by columns: its C is the transpose, and A and B change places. */
esp_status far_multiply(const cuda_far *far, const far_product *p, esp_error *error)
{
    cublasOperation_t of_b = p->b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t of_a = p->a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    int m = (int)p->columns, n = (int)p->rows, k = (int)p->depth;
    int lda = (int)p->a_stride, ldb = (int)p->b_stride, ldc = (int)p->c_stride;
    if (m == 0 || n == 0) {
        return ESP_OK;
    }
    cublasStatus_t status =
        p->count > 1
            ? far->gemm_batch(far->blas, of_b, of_a, m, n, k, &p->alpha, p->b, ldb, p->b_step, p->a,
                              lda, p->a_step, &p->beta, p->c, ldc, p->c_step, (int)p->count)
            : far->gemm(far->blas, of_b, of_a, m, n, k, &p->alpha, p->b, ldb, p->a, lda, &p->beta,
                        p->c, ldc);
    return far_blas_check(far, status, error);
}

typedef struct multiply_job {
    double *a, *b, *c, *own_a, *own_b;
} multiply_job;

static esp_status multiply_lent(cuda_far *far, const esp_algebra_product *p, multiply_job *job,
                                esp_error *error)
{
    int64_t b_rows = p->b_transposed ? p->columns : p->depth;
    size_t bytes = (size_t)(p->rows * p->c_stride) * sizeof(double);
    ESP_TRY(far_lend(far, p->a, p->rows * p->a_stride, "weights", &job->a, &job->own_a, error));
    ESP_TRY(far_lend(far, p->b, b_rows * p->b_stride, "a matrix", &job->b, &job->own_b, error));
    ESP_TRY(far_take(far, bytes, "a product", &job->c, error));
    if (p->beta != 0) {
        ESP_TRY(far_send(far, job->c, p->c, bytes, error));
    }
    const far_product product = {.rows = p->rows,
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
    ESP_TRY(far_multiply(far, &product, error));
    return far_bring(far, p->c, job->c, bytes, error);
}

static esp_status multiply(cuda_far *far, const esp_algebra_product *product, esp_error *error)
{
    multiply_job job = {0};
    esp_status status = multiply_lent(far, product, &job, error);
    far_give(far, job.own_a);
    far_give(far, job.own_b);
    far_give(far, job.c);
    return status;
}

/* ---- triangles ---- */

static esp_status mirror(cuda_far *far, const double *matrix, int64_t n, esp_error *error)
{
    const far_held *held = find_held(far, matrix);
    return far_check(far, gpu_mirror(held->device, n, false, far->stream), "mirroring", error);
}

/* ---- Cholesky ---- */

esp_status far_not_definite(esp_error *error)
{
    return esp_fail(error, ESP_CHECK_FAILED, "calibrate.not_definite",
                    "the inputs' second moments cannot be factored: give more samples or a larger "
                    "damping");
}

static esp_status solver_check(const cuda_far *far, cusolverStatus_t status, esp_error *error)
{
    return status == CUSOLVER_STATUS_SUCCESS
               ? ESP_OK
               : esp_fail(error, ESP_FAILED, "cusolver.failed",
                          "device '%s': cuSOLVER's factorization failed with status %d",
                          far->device->name, (int)status);
}

typedef cusolverStatus_t (*solver_size)(cusolverDnHandle_t, cublasFillMode_t, int, double *, int,
                                        int *);
typedef cusolverStatus_t (*solver_run)(cusolverDnHandle_t, cublasFillMode_t, int, double *, int,
                                       double *, int, int *);

/* The upper triangle by rows is the lower one by columns. */
static esp_status solve(const cuda_far *far, solver_size size, solver_run run, double *matrix,
                        int64_t n, int *info, esp_error *error)
{
    int room = 0, order = (int)n;
    double *scratch = NULL;
    int *told = NULL;
    ESP_TRY(solver_check(
        far, size(far->solver, CUBLAS_FILL_MODE_LOWER, order, matrix, order, &room), error));
    ESP_TRY(far_take(far, (size_t)room * sizeof *scratch + 64, "a factorization", &scratch, error));
    esp_status status = far_take(far, sizeof *told, "a factorization", &told, error);
    if (status == ESP_OK) {
        status = solver_check(
            far,
            run(far->solver, CUBLAS_FILL_MODE_LOWER, order, matrix, order, scratch, room, told),
            error);
    }
    status = status == ESP_OK ? far_bring(far, info, told, sizeof *told, error) : status;
    far_give(far, scratch);
    far_give(far, told);
    return status;
}

esp_status far_factor(const cuda_far *far, double *matrix, int64_t n, bool *definite,
                      esp_error *error)
{
    int info = 0;
    ESP_TRY(solve(far, far->potrf_size, far->potrf, matrix, n, &info, error));
    *definite = info == 0;
    return ESP_OK;
}

static esp_status invert_held(cuda_far *far, const double *gram, int64_t n, double *inverse,
                              double *made, bool *definite, esp_error *error)
{
    double *from = NULL, *own = NULL;
    size_t bytes = (size_t)(n * n) * sizeof *made;
    int info = 0;
    esp_status status = far_lend(far, gram, n * n, "moments", &from, &own, error);
    if (status == ESP_OK) {
        status = far_check(far, gpu_move(made, from, bytes, far->stream), "copying", error);
    }
    far_give(far, own);
    ESP_TRY(status);
    ESP_TRY(far_factor(far, made, n, definite, error));
    if (!*definite) {
        return ESP_OK;
    }
    ESP_TRY(solve(far, far->potri_size, far->potri, made, n, &info, error));
    *definite = info == 0;
    ESP_TRY(far_check(far, gpu_mirror(made, n, true, far->stream), "mirroring", error));
    return far_bring(far, inverse, made, bytes, error);
}

static esp_status invert(cuda_far *far, const double *gram, int64_t n, double *inverse,
                         bool *definite, esp_error *error)
{
    far_held *held;
    ESP_TRY(hold_room(far, inverse, n * n, &held, error));
    esp_status status = invert_held(far, gram, n, inverse, held->device, definite, error);
    if (status != ESP_OK || !*definite) {
        drop(far, inverse);
    }
    return status;
}

/* ---- errors of outputs ---- */

typedef struct squared_job {
    double *gram, *weights, *target, *product, *own_gram, *own_weights, *own_target;
} squared_job;

static esp_status square_lent(const cuda_far *far, squared_job *job, const double *gram,
                              int64_t out, int64_t in, const double *weights, const double *target,
                              double *squared, esp_error *error)
{
    int64_t count = out * in;
    ESP_TRY(far_lend(far, gram, in * in, "moments", &job->gram, &job->own_gram, error));
    ESP_TRY(far_lend(far, target, count, "a target", &job->target, &job->own_target, error));
    ESP_TRY(far_take(far, (size_t)count * sizeof(double), "a product", &job->product, error));
    const double *difference = job->target;
    if (weights != NULL) {
        ESP_TRY(far_take(far, (size_t)count * sizeof(double), "weights", &job->own_weights, error));
        ESP_TRY(far_send(far, job->own_weights, weights, (size_t)count * sizeof(double), error));
        ESP_TRY(far_check(
            far, gpu_subtract(job->own_weights, job->target, count, job->own_weights, far->stream),
            "subtracting", error));
        difference = job->own_weights;
    }
    const far_product product = {.rows = out,
                                 .columns = in,
                                 .depth = in,
                                 .alpha = 1,
                                 .a = difference,
                                 .a_stride = in,
                                 .b = job->gram,
                                 .b_stride = in,
                                 .c = job->product,
                                 .c_stride = in};
    ESP_TRY(far_multiply(far, &product, error));
    double sum = 0;
    for (int64_t at = 0; at < count; at += INT32_MAX / 2) { /* its sizes are ints */
        double part = 0;
        int length = (int)ESP_MIN(count - at, INT32_MAX / 2);
        ESP_TRY(far_blas_check(
            far, far->dot(far->blas, length, difference + at, 1, job->product + at, 1, &part),
            error));
        sum += part;
    }
    *squared = ESP_MAX(sum, 0);
    return ESP_OK;
}

static esp_status squared(cuda_far *far, const double *gram, int64_t out, int64_t in,
                          const double *weights, const double *target, double *sum,
                          esp_error *error)
{
    squared_job job = {0};
    esp_status status = square_lent(far, &job, gram, out, in, weights, target, sum, error);
    double *const own[] = {job.own_gram, job.own_weights, job.own_target, job.product};
    for (int i = 0; i < ESP_COUNT(own); i++) {
        far_give(far, own[i]);
    }
    return status;
}

/* ---- the table: each call with the device current ---- */

static cuda_far *enter(esp_far *far, int *before, esp_error *error, esp_status *status)
{
    cuda_far *own = (cuda_far *)far;
    const cuda_state *state = own->device->state;
    *status = far_check(own, gpu_enter(state->index, before), "entering it", error);
    return own;
}

#define ENTERED(call)                                                                              \
    int before;                                                                                    \
    esp_status status;                                                                             \
    cuda_far *own = enter(far, &before, error, &status);                                           \
    if (status == ESP_OK) {                                                                        \
        status = call;                                                                             \
        gpu_leave(before);                                                                         \
    }                                                                                              \
    return status

static esp_status enter_hold(esp_far *far, const double *matrix, int64_t count, bool zeros,
                             esp_error *error)
{
    ENTERED(hold(own, matrix, count, zeros, error));
}

static esp_status enter_fetch(esp_far *far, double *matrix, esp_error *error)
{
    ENTERED(fetch(own, matrix, error));
}

static void enter_drop(esp_far *far, const double *matrix)
{
    int before;
    esp_status status;
    cuda_far *own = enter(far, &before, NULL, &status);
    if (status == ESP_OK) {
        drop(own, matrix);
        gpu_leave(before);
    }
}

static esp_status enter_multiply(esp_far *far, const esp_algebra_product *product, esp_error *error)
{
    ENTERED(multiply(own, product, error));
}

static esp_status enter_add_gram(esp_far *far, const esp_far_rows *x, const esp_far_rows *y,
                                 int64_t tokens, double *h, esp_error *error)
{
    ENTERED(cuda_far_add_gram(&own->far, x, y, tokens, h, error));
}

static esp_status enter_mirror(esp_far *far, const double *matrix, int64_t n, esp_error *error)
{
    ENTERED(mirror(own, matrix, n, error));
}

static esp_status enter_invert(esp_far *far, const double *gram, int64_t n, double *inverse,
                               bool *definite, esp_error *error)
{
    ENTERED(invert(own, gram, n, inverse, definite, error));
}

static esp_status enter_squared(esp_far *far, const double *gram, int64_t out, int64_t in,
                                const double *weights, const double *target, double *sum,
                                esp_error *error)
{
    ENTERED(squared(own, gram, out, in, weights, target, sum, error));
}

static esp_status enter_refit(esp_far *far, esp_far_refit *refit, esp_error *error)
{
    ENTERED(cuda_far_refit(&own->far, refit, error));
}

static esp_status enter_sweep(esp_far *far, const esp_far_sweep *sweep, esp_error *error)
{
    ENTERED(cuda_far_sweep(&own->far, sweep, error));
}

static esp_status enter_panels(esp_far *far, const esp_far_panels *panels, esp_error *error)
{
    ENTERED(cuda_far_panels(&own->far, panels, error));
}

/* ---- begin and end ---- */

static void close_entered(cuda_far *own)
{
    for (int i = 0; i < FAR_HELD; i++) {
        far_give(own, own->held[i].device);
    }
    cuda_far_lose(own);
    far_stage_close(own);
    if (own->stream != NULL) {
        gpu_stream_free(own->stream);
    }
    if (own->pool != NULL) {
        gpu_pool_free(own->pool);
    }
}

static void enter_close(esp_far *far)
{
    int before;
    esp_status status;
    cuda_far *own = enter(far, &before, NULL, &status);
    if (status == ESP_OK) {
        close_entered(own);
        gpu_leave(before);
    }
    esp_release(own->device->context, own);
}

static const esp_far_ops all_ops = {.close = enter_close,
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

static esp_status open_entered(cuda_far *own, esp_error *error)
{
    ESP_TRY(far_check(own, gpu_stream_create(&own->stream), "making a stream", error));
    ESP_TRY(far_check(own, gpu_pool_create(&own->pool), "making a pool of memory", error));
    ESP_TRY(far_stage_open(own, error));
    if (!cuda_far_find(own)) {
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
    own->far.ops = &own->ops;
    return ESP_OK;
}

esp_status cuda_far_open(esp_device *device, esp_far **far, esp_error *error)
{
    const cuda_state *state = device->state;
    cuda_far *own = esp_alloc_zero(device->context, sizeof *own);
    int before;
    if (own == NULL) {
        return esp_fail_memory(error, sizeof *own, "calibration on a GPU");
    }
    own->device = device;
    esp_status status = far_check(own, gpu_enter(state->index, &before), "entering it", error);
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
    *far = &own->far;
    return ESP_OK;
}
