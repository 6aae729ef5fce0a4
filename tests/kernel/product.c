/* Operands of a random product. X ends at a page that cannot be read, or begins on a cache line;
 * NaN lies in all gaps. */
#include <sys/mman.h>
#include <unistd.h>

#include "product.h"

/* ---- operands ---- */

int64_t element_at(bool by_feature, int64_t stride, int64_t feature, int64_t token)
{
    return by_feature ? feature * stride + token : token * stride + feature;
}

void put(esp_dtype dtype, char *data, int64_t at, float value)
{
    esp_narrow(dtype, &value, 1, data + at * (int64_t)esp_dtype_bytes(dtype));
}

void fill(esp_dtype dtype, char *data, int64_t count, float value)
{
    for (int64_t i = 0; i < count; i++) {
        put(dtype, data, i, value);
    }
}

int64_t x_elements(const product *p)
{
    bool by_feature = p->problem.x_layout == ESP_FEATURE_MAJOR;
    return (by_feature ? p->problem.in_features : p->problem.tokens) * p->x_stride;
}

int64_t y_elements(const product *p)
{
    bool by_feature = p->problem.y_layout == ESP_FEATURE_MAJOR;
    return (by_feature ? p->out_rows : p->problem.tokens) * p->y_stride;
}

/* Memory for X: begins on a cache line, or ends at the guard page, as `at_end` says. */
static void map_x(product *p, size_t bytes, bool at_end)
{
#ifdef __SANITIZE_ADDRESS__
    (void)at_end;
    p->x = malloc(bytes); /* its red zones are nearer than pages */
#else
    size_t page = (size_t)sysconf(_SC_PAGESIZE), used = (bytes + page - 1) / page * page;
    p->x_map_bytes = used + page;
    p->x_map =
        mmap(NULL, p->x_map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p->x_map == MAP_FAILED || mprotect(p->x_map + used, page, PROT_NONE) != 0) {
        perror("mmap");
        exit(1);
    }
    size_t begin = used - bytes;
    p->x = p->x_map + (at_end ? begin : begin / 64 * 64);
#endif
}

product product_make(test_run *run, esp_context *context, const esp_matmul_problem *problem,
                     uint64_t seed, inputs kind, bool reorder, bool wide)
{
    esp_random random;
    esp_random_seed(&random, seed);
    product p = {.problem = *problem, .context = context};
    if (p.problem.compute == ESP_COMPUTE_AUTO) { /* devices differ in what they take it for */
        p.problem.compute = ESP_COMPUTE_F32;
    }
    bool x_by_feature = problem->x_layout == ESP_FEATURE_MAJOR;
    bool y_by_feature = problem->y_layout == ESP_FEATURE_MAJOR;
    p.out_rows = problem->out_features >> ((problem->epilogue & ESP_EP_SWIGLU) != 0);
    p.x_stride = (x_by_feature ? problem->tokens : problem->in_features) + (wide ? 5 : 0);
    p.y_stride = (y_by_feature ? problem->tokens : p.out_rows) + (wide ? 3 : 0);
    p.sparse = random_weight(run, context, &random, problem, kind,
                             reorder && problem->pattern.kind == ESP_PATTERN_PANEL);
    map_x(&p, (size_t)x_elements(&p) * esp_dtype_bytes(problem->act_type),
          esp_splitmix64(&(uint64_t){seed ^ 0x5eed}) % 2 == 0);
    fill(problem->act_type, p.x, x_elements(&p), NAN);
    for (int64_t f = 0; f < problem->in_features; f++) {
        for (int64_t t = 0; t < problem->tokens; t++) {
            put(problem->act_type, p.x, element_at(x_by_feature, p.x_stride, f, t),
                random_value(&random, kind, false));
        }
    }
    p.scale = malloc((size_t)problem->out_features * sizeof(float));
    p.bias = malloc((size_t)problem->out_features * sizeof(float));
    p.residual = malloc((size_t)(p.out_rows * problem->tokens) * sizeof(float));
    for (int64_t o = 0; o < problem->out_features; o++) {
        p.scale[o] = kind == INTEGERS ? ldexpf(1, (int)random_range(&random, -1, 2))
                                      : random_value(&random, kind, false);
        p.bias[o] = random_value(&random, kind, false);
    }
    for (int64_t i = 0; i < p.out_rows * problem->tokens; i++) {
        uint16_t half[2];
        float value = random_value(&random, kind, false);
        esp_narrow(problem->out_type, &value, 1, half);
        esp_widen(problem->out_type, half, 1, &p.residual[i]);
    }
    if (kind == ADVERSARIAL) {
        adversarial_x(run, &random, &p);
    }
    return p;
}

void product_free(product *p)
{
    esp_sparse_free(p->sparse);
    if (p->x_map != NULL) {
        munmap(p->x_map, p->x_map_bytes);
    } else {
        free(p->x);
    }
    free(p->scale);
    free(p->bias);
    free(p->residual);
}
