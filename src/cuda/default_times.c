/* Times that ship with the library, for GPUs of a kind that was measured: without a tuning file a
 * plan then chooses by them, else by scores. They were measured with X and Y feature-major and no
 * epilogue; what dense products need besides is added by what it moves. bf16 takes f16's times:
 * both run the same instructions at the same rate.
 *
 * Measured were rows of X that are whole lines of memory, as a model's are: other products go by
 * scores, which know what the middle of a line costs.
 *
 * The tables are made by tools/default_times.pl from tuning files of tools/default_times.sh. A
 * kernel that is no more, or cannot run the problem, makes its entry void. */
#include <stdio.h>

#include "cuda/room.h"

#include "cuda/default_times.inc"

static const cuda_times *table_of(const cuda_times *tables, const esp_device *device)
{
    const cuda_state *state = device->state;
    for (; tables->gpu != NULL; tables++) {
        if (strcmp(tables->gpu, state->facts.name) == 0) {
            return tables;
        }
    }
    return NULL;
}

static const cuda_times_family *family_of(const cuda_times *table,
                                          const esp_matmul_problem *problem)
{
    char pattern[ESP_PATTERN_TEXT_MAX], key[ESP_PATTERN_TEXT_MAX + 48];
    esp_pattern_print(&problem->pattern, pattern);
    snprintf(key, sizeof key, "%s/%lldx%lld", pattern, (long long)problem->out_features,
             (long long)problem->in_features);
    for (const cuda_times_family *of = table->families; of->key != NULL; of++) {
        if (strcmp(of->key, key) == 0) {
            return of;
        }
    }
    return NULL;
}

/* By ratio, as a tuning table chooses; of two equally near ones the smaller. */
static const cuda_times_point *nearest(const cuda_times_family *of, int64_t tokens)
{
    const cuda_times_point *best = NULL;
    double best_ratio = ESP_TUNING_REACH;
    for (const cuda_times_point *at = of->points; at->tokens > 0; at++) {
        double a = (double)at->tokens, b = (double)tokens, ratio = a < b ? b / a : a / b;
        if (ratio < best_ratio || (best == NULL && ratio <= best_ratio)) {
            best = at;
            best_ratio = ratio;
        }
    }
    return best;
}

/* "panel/sm90_few" and f16: matmul_panel_f16_f16__cuda_sm90_few; NULL: it is no more. */
static const esp_kernel *kernel_named(const char *short_name, esp_dtype type)
{
    char name[128];
    const char *text = esp_dtype_short_name(type), *slash = strchr(short_name, '/');
    snprintf(name, sizeof name, "matmul_%.*s_%s_%s__cuda_%s", (int)(slash - short_name), short_name,
             text, text, slash + 1);
    for (int i = 0; esp_cuda_kernels[i] != NULL; i++) {
        if (strcmp(esp_cuda_kernels[i]->name, name) == 0) {
            return esp_cuda_kernels[i];
        }
    }
    return NULL;
}

/* What is fastest for the epilogue of a dense product that takes cuBLASLt *us without one: our own
 * kernel, as fast but for small products, does it in passing; behind cuBLASLt a pass follows. */
static const esp_kernel *with_epilogue(const esp_kernel *dense, const esp_device *device,
                                       const esp_matmul_problem *problem, double *us)
{
    if (strcmp(dense->level, "cublaslt") != 0 || cuda_dense_is_direct(problem)) {
        return dense;
    }
    esp_matmul_problem run = *problem;
    run.pattern = (esp_pattern){.kind = ESP_PATTERN_DENSE};
    const esp_kernel *own = cuda_dense_tiles_for(device, &run);
    double own_us = own != NULL ? *us + cuda_dense_passing_us(own, problem) : *us;
    *us += cuda_dense_finish_us(device, problem);
    if (own == NULL || own_us >= *us) {
        return dense;
    }
    *us = own_us;
    return own;
}

bool cuda_times_find(const cuda_times *tables, const esp_device *device,
                     const esp_matmul_problem *problem, esp_shipped_times *times)
{
    const cuda_times *table = table_of(tables, device);
    esp_dtype type = problem->weight_type;
    bool lines = problem->tokens <= GPU_FEW_TOKENS || problem->tokens % CUDA_LINE == 0;
    if (table == NULL || problem->pattern.kind == ESP_PATTERN_DENSE || !lines ||
        problem->x_layout != ESP_FEATURE_MAJOR || (type != ESP_F16 && type != ESP_BF16)) {
        return false;
    }
    const cuda_times_family *of = family_of(table, problem);
    const cuda_times_point *at = of != NULL ? nearest(of, problem->tokens) : NULL;
    if (at == NULL) {
        return false;
    }
    const esp_kernel *sparse = kernel_named(table->names[at->sparse], type);
    const esp_kernel *dense = kernel_named(table->names[at->dense], type);
    if (sparse == NULL || dense == NULL || sparse->why_not(sparse, device, problem) != NULL) {
        return false;
    }
    double dense_us = (double)at->dense_us;
    dense = with_epilogue(dense, device, problem, &dense_us);
    *times = (esp_shipped_times){.tokens = at->tokens,
                                 .sparse = sparse,
                                 .dense = dense,
                                 .sparse_us = (double)at->sparse_us + cuda_smooth_us(problem),
                                 .dense_us = dense_us};
    return true;
}

bool cuda_shipped_times(const esp_device *device, const esp_matmul_problem *problem,
                        esp_shipped_times *times)
{
    return cuda_times_find(cuda_shipped, device, problem, times);
}
