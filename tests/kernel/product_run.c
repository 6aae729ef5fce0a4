/* Running a product by one kernel, forced by name: Y and workspace poisoned and guarded. */
#include "product.h"

/* ---- running ---- */

static void lay_residual(const product *p, char *to)
{
    bool by_feature = p->problem.y_layout == ESP_FEATURE_MAJOR;
    for (int64_t o = 0; o < p->out_rows; o++) {
        for (int64_t t = 0; t < p->problem.tokens; t++) {
            put(p->problem.out_type, to, element_at(by_feature, p->y_stride, o, t),
                p->residual[o * p->problem.tokens + t]);
        }
    }
}

/* Elements of Y outside its rows still hold what was laid there. */
static bool gaps_untouched(const product *p, const char *y, const char *before)
{
    size_t width = esp_dtype_bytes(p->problem.out_type);
    bool by_feature = p->problem.y_layout == ESP_FEATURE_MAJOR;
    int64_t row = by_feature ? p->problem.tokens : p->out_rows;
    for (int64_t i = -GUARD; i < y_elements(p) + GUARD; i++) {
        bool inside = i >= 0 && i < y_elements(p) && i % p->y_stride < row;
        if (!inside && memcmp(y + i * (int64_t)width, before + i * (int64_t)width, width) != 0) {
            return false;
        }
    }
    return true;
}

/* Memory of one run. Y's elements begin GUARD + p->offset elements into their block. */
typedef struct run_memory {
    char *y_block, *before, *residual_block;
    char *y, *residual, *workspace, *workspace_block;
    size_t workspace_bytes;
    float *vectors, *scale, *bias;
} run_memory;

static run_memory run_memory_make(const product *p, const esp_plan *plan)
{
    esp_dtype type = p->problem.out_type;
    size_t width = esp_dtype_bytes(type), out = (size_t)p->problem.out_features;
    size_t head = (size_t)(GUARD + p->offset), count = (size_t)y_elements(p) + head + GUARD;
    run_memory m = {.workspace_bytes = esp_plan_workspace_bytes(plan)};
    m.y_block = malloc(count * width);
    m.before = malloc(count * width);
    m.residual_block = malloc(count * width);
    fill(type, m.y_block, (int64_t)count, NAN);
    fill(type, m.residual_block, (int64_t)count, NAN);
    m.y = m.y_block + head * width;
    m.residual = p->in_place ? m.y : m.residual_block + head * width;
    lay_residual(p, m.residual);
    memcpy(m.before, m.y_block, count * width);
    m.workspace_block = aligned_alloc(64, (m.workspace_bytes + 2 * GUARD + 63) / 64 * 64);
    memset(m.workspace_block, 0xff, m.workspace_bytes + 2 * GUARD); /* NaN in every type */
    m.workspace = m.workspace_block + GUARD;
    m.vectors = malloc(2 * (out + (size_t)p->offset) * sizeof(float));
    m.scale = m.vectors + p->offset;
    m.bias = m.vectors + (size_t)p->offset + out;
    memcpy(m.scale, p->scale, out * sizeof(float));
    memcpy(m.bias, p->bias, out * sizeof(float));
    return m;
}

static void run_memory_free(run_memory *m)
{
    free(m->y_block);
    free(m->before);
    free(m->residual_block);
    free(m->workspace_block);
    free(m->vectors);
}

static bool workspace_guards_hold(const run_memory *m)
{
    for (size_t i = 0; i < GUARD; i++) {
        if ((unsigned char)m->workspace_block[i] != 0xff ||
            (unsigned char)m->workspace[m->workspace_bytes + i] != 0xff) {
            return false;
        }
    }
    return true;
}

void run_plan(test_run *run, const product *p, const esp_plan *plan, const esp_packed *weight,
              float *result)
{
    run_memory m = run_memory_make(p, plan);
    esp_matmul_args args = {.weight = weight,
                            .x = p->x,
                            .x_stride = p->x_stride,
                            .y = m.y,
                            .y_stride = p->y_stride,
                            .scale = m.scale,
                            .bias = m.bias,
                            .residual = m.residual,
                            .workspace = m.workspace};
    CHECK_OK(esp_matmul_run(plan, &args, error));
    CHECK(gaps_untouched(p, m.y, m.before + (m.y - m.y_block)));
    CHECK(workspace_guards_hold(&m));
    bool by_feature = p->problem.y_layout == ESP_FEATURE_MAJOR;
    for (int64_t o = 0; o < p->out_rows; o++) {
        for (int64_t t = 0; t < p->problem.tokens; t++) {
            result[o * p->problem.tokens + t] =
                esp_weight_at(p->problem.out_type, m.y, element_at(by_feature, p->y_stride, o, t));
        }
    }
    run_memory_free(&m);
}

void run_on_device(test_run *run, const product *p, esp_device *device, const char *kernel,
                   float *result)
{
    esp_packed *packed = NULL;
    esp_plan *plan = NULL;
    CHECK_OK(esp_pack(device, p->sparse, &packed, error));
    CHECK_OK(esp_plan_create(device, &p->problem, kernel, &plan, error));
    if (packed != NULL && plan != NULL) {
        run_plan(run, p, plan, packed, result);
    }
    esp_plan_free(plan);
    esp_packed_free(packed);
}

void run_kernel(test_run *run, const product *p, const char *device_name, const char *kernel,
                float *result)
{
    esp_device *device = NULL;
    REQUIRE_OK(esp_device_open(p->context, device_name, &device, error));
    run_on_device(run, p, device, kernel, result);
    esp_device_close(device);
}

/* Kernels of the cpu that can run the problem, by name. */
int usable_kernels(esp_context *context, const esp_matmul_problem *problem, const char *names[64])
{
    esp_device *device = NULL;
    int count = 0;
    if (esp_device_open(context, "cpu", &device, NULL) != ESP_OK) {
        return 0;
    }
    for (int i = 0; i < esp_kernel_count() && count < 64; i++) {
        if (esp_kernel_why_not(i, device, problem) == NULL) {
            names[count++] = esp_kernel_get(i).name;
        }
    }
    esp_device_close(device);
    return count;
}

float *result_of(const product *p)
{
    return malloc((size_t)(p->out_rows * p->problem.tokens) * sizeof(float));
}

esp_matmul_problem problem_of(test_run *run, const char *text)
{
    esp_matmul_problem problem = {0};
    CHECK_OK(esp_matmul_problem_parse(text, &problem, error));
    return problem;
}
