/* Times that ship with the library, for GPUs of a kind that was measured: without a tuning file a
 * plan then chooses by them, else by scores. They were measured with X and Y feature-major and no
 * epilogue; what dense products need besides is added by what it moves. bf16 takes f16's times:
 * both run the same instructions at the same rate.
 *
 * The tables are made by tools/default_times.sh from a run of `espalier tune`. A kernel that is no
 * more, or cannot run the problem, makes its entry void: a stale table never chooses. */
#include <stdio.h>

#include "cuda/room.h"

#define MOST_POINTS 16

typedef struct point {
    int tokens; /* 0: the end */
    int kernel; /* the fastest sparse one, in names */
    float sparse_us, dense_us;
} point;

typedef struct family {
    const char *key; /* PATTERN/OUTxIN */
    point points[MOST_POINTS];
} family;

#include "cuda/default_times_h200.inc"

typedef struct table {
    const char *gpu; /* as the runtime names it */
    const char *const *names;
    int name_count;
    const family *families;
    int count;
} table;

static const table tables[] = {
    {"NVIDIA H200", h200_names, ESP_COUNT(h200_names), h200_families, ESP_COUNT(h200_families)}};

static const table *table_of(const esp_device *device)
{
    const cuda_state *state = device->state;
    for (int i = 0; i < ESP_COUNT(tables); i++) {
        if (strcmp(tables[i].gpu, state->facts.name) == 0) {
            return &tables[i];
        }
    }
    return NULL;
}

static const family *family_of(const table *times, const esp_matmul_problem *problem)
{
    char pattern[ESP_PATTERN_TEXT_MAX], key[ESP_PATTERN_TEXT_MAX + 48];
    esp_pattern_print(&problem->pattern, pattern);
    snprintf(key, sizeof key, "%s/%lldx%lld", pattern, (long long)problem->out_features,
             (long long)problem->in_features);
    for (int i = 0; i < times->count; i++) {
        if (strcmp(times->families[i].key, key) == 0) {
            return &times->families[i];
        }
    }
    return NULL;
}

/* By ratio, as a tuning table chooses; of two equally near ones the smaller. */
static const point *nearest(const family *of, int64_t tokens)
{
    const point *best = NULL;
    double best_ratio = ESP_TUNING_REACH;
    for (int i = 0; i < MOST_POINTS && of->points[i].tokens > 0; i++) {
        double a = (double)of->points[i].tokens, b = (double)tokens;
        double ratio = a < b ? b / a : a / b;
        if (ratio < best_ratio || (best == NULL && ratio <= best_ratio)) {
            best = &of->points[i];
            best_ratio = ratio;
        }
    }
    return best;
}

/* The panel kernel of that ending for the problem's type. */
static const esp_kernel *kernel_named(const char *ending, esp_dtype type)
{
    char name[128];
    const char *text = esp_dtype_short_name(type);
    snprintf(name, sizeof name, "matmul_panel_%s_%s__cuda_%s", text, text, ending);
    for (int i = 0; esp_cuda_kernels[i] != NULL; i++) {
        if (strcmp(esp_cuda_kernels[i]->name, name) == 0) {
            return esp_cuda_kernels[i];
        }
    }
    return NULL;
}

static const esp_kernel *dense_kernel(esp_dtype type)
{
    for (int i = 0; i < CUDA_DENSE_KERNELS; i++) {
        if (*(const esp_dtype *)cuda_dense_kernels[i].variant == type) {
            return &cuda_dense_kernels[i];
        }
    }
    return NULL;
}

/* Sums that cuBLASLt leaves in f32, read and written by a kernel that follows. */
static double epilogue_us(const esp_device *device, const esp_matmul_problem *problem)
{
    double outputs = (double)problem->out_features * (double)problem->tokens;
    double width = (double)esp_dtype_bytes(problem->out_type);
    return cuda_dense_is_direct(problem)
               ? 0
               : 2 + cuda_memory_us(device, (8 - width) * outputs + 2 * width * outputs);
}

bool cuda_shipped_times(const esp_device *device, const esp_matmul_problem *problem,
                        esp_shipped_times *times)
{
    const table *of_gpu = table_of(device);
    esp_dtype type = problem->weight_type;
    if (of_gpu == NULL || problem->pattern.kind != ESP_PATTERN_PANEL ||
        problem->x_layout != ESP_FEATURE_MAJOR || (type != ESP_F16 && type != ESP_BF16)) {
        return false;
    }
    const family *of = family_of(of_gpu, problem);
    const point *at = of != NULL ? nearest(of, problem->tokens) : NULL;
    const esp_kernel *sparse = at != NULL && at->kernel < of_gpu->name_count
                                   ? kernel_named(of_gpu->names[at->kernel], type)
                                   : NULL;
    if (sparse == NULL || sparse->why_not(sparse, device, problem) != NULL) {
        return false;
    }
    *times = (esp_shipped_times){.tokens = at->tokens,
                                 .sparse = sparse,
                                 .dense = dense_kernel(type),
                                 .sparse_us = (double)at->sparse_us,
                                 .dense_us = (double)at->dense_us + epilogue_us(device, problem)};
    return true;
}
