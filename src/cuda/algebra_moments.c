/* Second moments on a GPU: what layers read, widened to f64 and multiplied by its transpose. */
#include "cuda/algebra.h"

static gpu_type type_of(esp_dtype type)
{
    return type == ESP_F16 ? GPU_F16 : type == ESP_BF16 ? GPU_BF16 : GPU_F32;
}

/* From the first element of the rows to the last one. */
static size_t span(const esp_token_rows *x, int64_t tokens)
{
    int64_t last = tokens - 1, at = x->run > 0 ? last / x->run * x->pitch + last % x->run : last;
    return (size_t)((x->features - 1) * x->stride + at + 1) * esp_dtype_bytes(x->type);
}

/* Rows in f64, tight; *raw: what came from the host, to be given back. */
static esp_status widen_rows(const cuda_algebra *algebra, const esp_token_rows *x, int64_t tokens,
                             double **wide, void **raw, esp_error *error)
{
    size_t each = span(x, tokens);
    const char *data = x->data, *less = x->less;
    ESP_TRY(algebra_take(algebra, (size_t)(x->features * tokens) * sizeof(double), "activations",
                         wide, error));
    if (!x->on_device) {
        char *copy = NULL;
        ESP_TRY(algebra_take(algebra, less != NULL ? 2 * each : each, "activations", raw, error));
        copy = *raw;
        ESP_TRY(algebra_send(algebra, copy, data, each, error));
        if (less != NULL) {
            ESP_TRY(algebra_send(algebra, copy + each, less, each, error));
        }
        data = copy;
        less = less != NULL ? copy + each : NULL;
    }
    const gpu_activations rows = {.x = data,
                                  .less = less,
                                  .type = type_of(x->type),
                                  .rows = x->features,
                                  .columns = tokens,
                                  .stride = x->stride,
                                  .run = x->run > 0 ? x->run : ESP_MAX(tokens, 1),
                                  .pitch = x->pitch};
    return algebra_check(algebra, gpu_widen_rows(&rows, *wide, algebra->stream),
                         "widening activations", error);
}

static esp_status add_lent(const cuda_algebra *algebra, const esp_token_rows *x,
                           const esp_token_rows *y, int64_t tokens, const double *wide_x,
                           const double *wide_y, double *h, esp_error *error)
{
    const double one = 1;
    if (x == y) { /* the lower triangle by rows is the upper one by columns */
        int n = (int)x->features, k = (int)tokens;
        return algebra_blas_check(algebra,
                                  algebra->syrk(algebra->blas, CUBLAS_FILL_MODE_UPPER, CUBLAS_OP_T,
                                                n, k, &one, wide_x, k, &one, h, n),
                                  error);
    }
    const algebra_product product = {.rows = x->features,
                                     .columns = y->features,
                                     .depth = tokens,
                                     .alpha = 1,
                                     .beta = 1,
                                     .a = wide_x,
                                     .a_stride = tokens,
                                     .b = wide_y,
                                     .b_stride = tokens,
                                     .b_transposed = true,
                                     .c = h,
                                     .c_stride = y->features};
    return algebra_multiply(algebra, &product, error);
}

esp_status cuda_algebra_add_gram(esp_device_algebra *of, const esp_token_rows *x,
                                 const esp_token_rows *y, int64_t tokens, double *h,
                                 esp_error *error)
{
    const cuda_algebra *algebra = (cuda_algebra *)of;
    double *wide[2] = {NULL, NULL}, *device = NULL, *own = NULL;
    void *raw[2] = {NULL, NULL};
    int64_t count = x->features * y->features;
    esp_status status = algebra_lend(algebra, h, count, "moments", &device, &own, error);
    status = status == ESP_OK ? widen_rows(algebra, x, tokens, &wide[0], &raw[0], error) : status;
    if (status == ESP_OK && y != x) {
        status = widen_rows(algebra, y, tokens, &wide[1], &raw[1], error);
    }
    if (status == ESP_OK) {
        status = add_lent(algebra, x, y, tokens, wide[0], wide[1], device, error);
    }
    if (status == ESP_OK && own != NULL) {
        status = algebra_bring(algebra, h, own, (size_t)count * sizeof *h, error);
    }
    for (int i = 0; i < 2; i++) {
        algebra_give(algebra, wide[i]);
        algebra_give(algebra, raw[i]);
    }
    algebra_give(algebra, own);
    if (x->on_device || y->on_device) { /* the caller may write there again */
        esp_status done =
            algebra_check(algebra, gpu_stream_wait(algebra->stream), "summing moments", error);
        status = status == ESP_OK ? done : status;
    }
    return status;
}
