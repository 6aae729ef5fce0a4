/* Pieces of rows are dealt to threads; within a piece one thread calls the library, which is kept
 * to one thread itself. */
#include "tensor/algebra_inside.h"
#include "tensor/device_algebra.h"

#include <dlfcn.h>
#include <math.h>

enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 }; /* the CBLAS numbers */

#define PIECE_ROWS 64
#define GRAM_ROWS 128  /* more: Y is rearranged for each piece */
#define RUN_TOKENS 512 /* that are summed in f32 */

/* ---- the library ---- */

/* ISO C has no conversion from data to function pointers; POSIX promises that this one works. */
static bool find(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);
    memcpy(function, &symbol, sizeof symbol);
    return symbol != NULL;
}

/* NODELETE: threads that have called it keep memory of it, and end after this is closed. */
static void open_library(blas_library *blas)
{
    void *library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (library == NULL) {
        return;
    }
    if (find(library, "cblas_sgemm", &blas->sgemm) && find(library, "cblas_dgemm", &blas->dgemm) &&
        find(library, "dpotrf_", &blas->dpotrf) && find(library, "dpotri_", &blas->dpotri) &&
        find(library, "dlatrd_", &blas->dlatrd) && find(library, "dsyr2k_", &blas->dsyr2k) &&
        find(library, "dsytrd_", &blas->dsytrd) && find(library, "dstedc_", &blas->dstedc) &&
        find(library, "dormtr_", &blas->dormtr) &&
        find(library, "openblas_set_num_threads", &blas->set_threads) &&
        find(library, "openblas_get_num_threads", &blas->get_threads)) {
        blas->handle = library;
    } else {
        dlclose(library);
    }
}

/* What OPENBLAS_CORETYPE should say: a library older than the processor may not know it, and then
 * takes kernels of any x86-64, half as fast. NULL: what it takes is right. */
static const char *better_core(void *library)
{
#if defined(__x86_64__)
    static const char *const of_any[] = {"Prescott", "Core2", "Penryn", "Dunnington", "Nehalem"};
    char *(*core)(void) = NULL;
    if (!find(library, "openblas_get_corename", &core) || !__builtin_cpu_supports("avx2")) {
        return NULL;
    }
    for (int i = 0; i < ESP_COUNT(of_any); i++) {
        if (strcmp(core(), of_any[i]) == 0) {
            return __builtin_cpu_supports("avx512bw") ? "SkylakeX" : "Haswell";
        }
    }
#else
    (void)library;
#endif
    return NULL;
}

esp_status esp_algebra_open_plain(esp_context *context, esp_algebra **algebra, esp_error *error)
{
    esp_algebra *made = esp_alloc_zero(context, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "linear algebra");
    }
    made->context = context;
    *algebra = made;
    return ESP_OK;
}

esp_status esp_algebra_open(esp_context *context, esp_algebra **algebra, esp_error *error)
{
    esp_algebra *made = NULL;
    ESP_TRY(esp_algebra_open_plain(context, &made, error));
    open_library(&made->blas);
    const char *core = made->blas.handle != NULL ? better_core(made->blas.handle) : NULL;
    if (core != NULL) {
        esp_log(context, ESP_LOG_WARNING,
                "OpenBLAS does not know this processor and takes slow kernels for its algebra: "
                "OPENBLAS_CORETYPE=%s in the environment makes it about twice as fast",
                core);
    }
    *algebra = made;
    return ESP_OK;
}

void esp_algebra_close(esp_algebra *algebra)
{
    if (algebra == NULL) {
        return;
    }
    if (algebra->device != NULL) {
        algebra->device->ops->close(algebra->device);
    }
    if (algebra->blas.handle != NULL) {
        dlclose(algebra->blas.handle);
    }
    esp_release(algebra->context, algebra);
}

const char *esp_algebra_name(const esp_algebra *algebra)
{
    return algebra->device != NULL        ? algebra->device->name
           : algebra->blas.handle != NULL ? "OpenBLAS"
                                          : "plain loops";
}

void esp_algebra_set_device(esp_algebra *algebra, esp_device_algebra *device)
{
    algebra->device = device;
}

esp_device_algebra *esp_algebra_device(const esp_algebra *algebra)
{
    return algebra->device;
}

esp_context *esp_algebra_context(const esp_algebra *algebra)
{
    return algebra->context;
}

void algebra_keep_to_one_thread(const esp_algebra *algebra)
{
    if (algebra->blas.handle != NULL && algebra->blas.get_threads() != 1) {
        algebra->blas.set_threads(1);
    }
}

bool algebra_library_takes(const esp_algebra *algebra, int64_t a, int64_t b, int64_t c)
{
    return algebra->blas.handle != NULL && a <= INT32_MAX && b <= INT32_MAX && c <= INT32_MAX;
}

/* ---- C = beta C + alpha A B ---- */

typedef struct product_job {
    const esp_algebra *algebra;
    const esp_algebra_product *product;
} product_job;

static void multiply_row(const esp_algebra_product *p, int64_t row)
{
    const double *a = p->a + row * p->a_stride;
    double *c = p->c + row * p->c_stride;
    for (int64_t j = 0; j < p->columns; j++) {
        c[j] = p->beta == 0 ? 0 : p->beta * c[j];
    }
    for (int64_t k = 0; k < p->depth && !p->b_transposed; k++) {
        const double *b = p->b + k * p->b_stride;
        double scale = p->alpha * a[k];
        for (int64_t j = 0; j < p->columns; j++) {
            c[j] += scale * b[j];
        }
    }
    for (int64_t j = 0; j < p->columns && p->b_transposed; j++) {
        const double *b = p->b + j * p->b_stride;
        double sum = 0;
        for (int64_t k = 0; k < p->depth; k++) {
            sum += a[k] * b[k];
        }
        c[j] += p->alpha * sum;
    }
}

static void multiply_rows(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const product_job *job = user;
    const esp_algebra_product *p = job->product;
    if (algebra_library_takes(job->algebra, p->columns, p->depth,
                              ESP_MAX(p->a_stride, ESP_MAX(p->b_stride, p->c_stride)))) {
        job->algebra->blas.dgemm(
            ROW_MAJOR, NO_TRANS, p->b_transposed ? TRANS : NO_TRANS, (int)(end - begin),
            (int)p->columns, (int)p->depth, p->alpha, p->a + begin * p->a_stride, (int)p->a_stride,
            p->b, (int)p->b_stride, p->beta, p->c + begin * p->c_stride, (int)p->c_stride);
        return;
    }
    for (int64_t row = begin; row < end; row++) {
        multiply_row(p, row);
    }
}

void esp_algebra_multiply(const esp_algebra *algebra, const esp_algebra_product *product)
{
    product_job job = {algebra, product};
    if (product->rows > 0 && product->columns > 0) {
        algebra_keep_to_one_thread(algebra);
        /* A piece gets the same rows whatever runs it, so its sums are the same. */
        for (int64_t begin = 0; begin < product->rows; begin += INT32_MAX / 2) {
            int64_t rows = ESP_MIN(product->rows - begin, INT32_MAX / 2);
            esp_algebra_product part = *product;
            part.rows = rows;
            part.a += begin * part.a_stride;
            part.c += begin * part.c_stride;
            job.product = &part;
            esp_parallel_for(algebra->context, rows, PIECE_ROWS, multiply_rows, &job);
        }
    }
}

/* ---- H += X Y^T ---- */

typedef struct gram_job {
    const esp_algebra *algebra;
    const float *x, *y;
    int64_t y_features, tokens;
    float *scratch; /* [threads][GRAM_ROWS][y_features] */
    double *h;
} gram_job;

static void add_run_plainly(const float *x, const float *y, int64_t rows, int64_t columns,
                            int64_t stride, int64_t run, float *sums)
{
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < columns; j++) {
            float sum = 0;
            for (int64_t t = 0; t < run; t++) {
                sum += x[i * stride + t] * y[j * stride + t];
            }
            sums[i * columns + j] = sum;
        }
    }
}

/* Of X X^T a piece of rows ends where its last row meets the diagonal. */
static void add_outer_rows(void *user, int64_t begin, int64_t end, int thread)
{
    const gram_job *job = user;
    const esp_algebra *algebra = job->algebra;
    int64_t stride = job->tokens, rows = end - begin;
    int64_t columns = job->x == job->y ? end : job->y_features;
    float *sums = job->scratch + (int64_t)thread * GRAM_ROWS * job->y_features;
    const float *x = job->x + begin * stride;
    for (int64_t t = 0; t < job->tokens; t += RUN_TOKENS) {
        int64_t run = ESP_MIN(RUN_TOKENS, job->tokens - t);
        if (algebra_library_takes(algebra, columns, stride, run)) {
            algebra->blas.sgemm(ROW_MAJOR, NO_TRANS, TRANS, (int)rows, (int)columns, (int)run, 1,
                                x + t, (int)stride, job->y + t, (int)stride, 0, sums, (int)columns);
        } else {
            add_run_plainly(x + t, job->y + t, rows, columns, stride, run, sums);
        }
        for (int64_t i = 0; i < rows; i++) {
            double *h = job->h + (begin + i) * job->y_features;
            for (int64_t j = 0; j < columns; j++) {
                h[j] += (double)sums[i * columns + j];
            }
        }
    }
}

size_t esp_algebra_gram_floats(const esp_algebra *algebra, int64_t y_features)
{
    return (size_t)algebra->context->threads * GRAM_ROWS * (size_t)y_features;
}

void esp_algebra_add_gram(const esp_algebra *algebra, const float *x, int64_t x_features,
                          const float *y, int64_t y_features, int64_t tokens, float *scratch,
                          double *h)
{
    gram_job job = {.algebra = algebra,
                    .x = x,
                    .y = y,
                    .y_features = y_features,
                    .tokens = tokens,
                    .scratch = scratch,
                    .h = h};
    algebra_keep_to_one_thread(algebra);
    esp_parallel_for(algebra->context, x_features, GRAM_ROWS, add_outer_rows, &job);
}

void esp_algebra_mirror(double *a, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = i + 1; j < n; j++) {
            a[i * n + j] = a[j * n + i];
        }
    }
}

/* ---- Cholesky ---- */

static bool factor_plainly(double *a, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        double *row = a + i * n;
        for (int64_t j = 0; j <= i; j++) {
            const double *other = a + j * n;
            double sum = row[j];
            for (int64_t k = 0; k < j; k++) {
                sum -= row[k] * other[k];
            }
            if (j < i) {
                row[j] = sum / other[j];
            } else if (sum > 0 && isfinite(sum)) {
                row[i] = sqrt(sum);
            } else {
                return false;
            }
        }
    }
    return true;
}

bool esp_algebra_factor(const esp_algebra *algebra, double *a, int64_t n)
{
    if (!algebra_library_takes(algebra, n, n, n)) {
        return factor_plainly(a, n);
    }
    int size = (int)n, info = 0;
    algebra_keep_to_one_thread(algebra);
    algebra->blas.dpotrf("U", &size, a, &size, &info); /* the upper one of the transpose */
    return info == 0;
}

/* L^-1 in place, then its product with its transpose from the left. */
static void invert_plainly(double *l, int64_t n)
{
    for (int64_t j = 0; j < n; j++) {
        l[j * n + j] = 1 / l[j * n + j];
        for (int64_t i = j + 1; i < n; i++) {
            double sum = 0;
            for (int64_t k = j; k < i; k++) {
                sum += l[i * n + k] * l[k * n + j];
            }
            l[i * n + j] = -sum / l[i * n + i];
        }
    }
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j <= i; j++) {
            double sum = 0;
            for (int64_t k = i; k < n; k++) {
                sum += l[k * n + i] * l[k * n + j];
            }
            l[i * n + j] = sum;
        }
    }
}

void esp_algebra_invert(const esp_algebra *algebra, double *l, int64_t n)
{
    if (algebra_library_takes(algebra, n, n, n)) {
        int size = (int)n, info = 0;
        algebra_keep_to_one_thread(algebra);
        algebra->blas.dpotri("U", &size, l, &size, &info);
    } else {
        invert_plainly(l, n);
    }
    esp_algebra_mirror(l, n);
}
