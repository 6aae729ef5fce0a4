/* The catalogue of the cpu back end: one record per format, weight type and instruction-set level,
 * and the library products. Scores are a roofline of two numbers per kernel; they only have to
 * order the candidates of one problem. */
#include "cpu/kernels.h"

#include "cpu/matmul.h"

/* In-feature offsets of a tile are 32-bit counts of bytes. */
#define MAX_IN ((int64_t)1 << 25)

const cpu_level *cpu_level_of(const esp_device *device)
{
#ifdef ESP_CPU_X86
    static const cpu_level *const levels[] = {&esp_cpu_portable, &esp_cpu_avx2, &esp_cpu_avx512};
    return levels[ESP_MIN(device->context->cpu.level, ESP_CPU_AVX512)];
#else
    (void)device;
    return &esp_cpu_portable;
#endif
}

const char *cpu_why_not(const esp_kernel *kernel, const esp_device *device,
                        const esp_matmul_problem *problem)
{
    const cpu_variant *variant = kernel->variant;
    if (variant->needs > device->context->cpu.level) {
        return variant->needs == ESP_CPU_AVX512
                   ? "it needs AVX-512, which is absent or switched off"
                   : "it needs AVX2, which is absent or switched off";
    }
    const char *why = esp_host_format_why_not(variant->format, &problem->pattern);
    if (why != NULL) {
        return why;
    }
    if (variant->weight_type != problem->weight_type) {
        return "its weights have another type";
    }
    return problem->in_features > MAX_IN ? "it takes at most 33554432 input features" : NULL;
}

static size_t workspace_bytes(const esp_kernel *kernel, const esp_device *device,
                              const esp_matmul_problem *problem)
{
    return cpu_matmul_workspace(kernel->variant, device, problem).bytes;
}

double cpu_memory_us(const esp_device *device, double bytes)
{
    double threads = (double)device->context->threads;
    return bytes / (25e3 * ESP_MIN(threads, 16)); /* 25 GB/s a thread */
}

double cpu_compute_us(const esp_device *device, double multiply_adds, double per_ns)
{
    return multiply_adds / (1e3 * per_ns * (double)device->context->threads);
}

/* Multiply-adds per ns and thread in full tiles, by format. */
static double score_us(const esp_kernel *kernel, const esp_device *device,
                       const esp_matmul_problem *problem)
{
    static const double rates[3][3] = {{19, 21, 22}, {65, 36, 48}, {120, 50, 70}};
    const cpu_variant *variant = kernel->variant;
    double out = (double)problem->out_features, tokens = (double)problem->tokens;
    int64_t kept = esp_pattern_kept(&problem->pattern, problem->in_features);
    double stored = variant->format == ESP_HOST_DENSE   ? (double)problem->in_features
                    : variant->format == ESP_HOST_PANEL ? (double)kept / 2
                                                        : (double)kept;
    double width = (double)esp_dtype_bytes(problem->weight_type) + 0.25;
    double memory = cpu_memory_us(device, out * stored * width);
    double padded = tokens <= 8 ? tokens : (double)esp_ceil_div(problem->tokens, 16) * 16;
    double compute =
        cpu_compute_us(device, out * stored * padded, rates[variant->needs][variant->format]);
    if (variant->format == ESP_HOST_DENSE) { /* the only format with rivals: measured closer */
        double weights = out * stored, threads = (double)device->context->threads;
        if (tokens <= 8) {
            double passes = tokens <= 4 ? 1 : 2;
            memory = passes * ESP_MAX(memory, 1.3e-4 * weights / threads);
        } else {
            compute += 2e-4 * weights / threads;
        }
    } else if (tokens > 8) { /* decoding, once for each tile of tokens */
        compute += 4.4e-4 * out * stored / (double)device->context->threads;
    }
    double packing = cpu_memory_us(device, (double)problem->in_features * tokens * 8);
    return 2 + ESP_MAX(memory, compute) + packing;
}

#define KERNEL(host_format, format_word, type, type_word, level_word, needs_level, how)            \
    static const cpu_variant format_word##_##type_word##_##level_word##_variant = {                \
        &esp_cpu_##level_word, needs_level, host_format, type};                                    \
    static const esp_kernel format_word##_##type_word##_##level_word = {                           \
        .name = "matmul_" #format_word "_" #type_word "_f32__cpu_" #level_word,                    \
        .device = "cpu",                                                                           \
        .format = #format_word,                                                                    \
        .level = #level_word,                                                                      \
        .idea = how,                                                                               \
        .why_not = cpu_why_not,                                                                    \
        .workspace_bytes = workspace_bytes,                                                        \
        .score_us = score_us,                                                                      \
        .launch = cpu_matmul_launch,                                                               \
        .variant = &format_word##_##type_word##_##level_word##_variant};

#define DENSE_IDEA "rows x tokens of sums in registers over packed tiles of X"
#define NM_IDEA "one multiply-add per stored value over packed tiles of X"
#define PANEL_IDEA "kept columns are whole rows of packed X; few tokens by permutation"

#define KERNELS_OF_TYPE(type, type_word, level_word, needs)                                        \
    KERNEL(ESP_HOST_DENSE, dense, type, type_word, level_word, needs, DENSE_IDEA)                  \
    KERNEL(ESP_HOST_NM, nm, type, type_word, level_word, needs, NM_IDEA)                           \
    KERNEL(ESP_HOST_PANEL, panel, type, type_word, level_word, needs, PANEL_IDEA)

#define KERNELS_OF_LEVEL(level_word, needs)                                                        \
    KERNELS_OF_TYPE(ESP_F32, f32, level_word, needs)                                               \
    KERNELS_OF_TYPE(ESP_F16, f16, level_word, needs)                                               \
    KERNELS_OF_TYPE(ESP_BF16, bf16, level_word, needs)

#define LIST_OF_LEVEL(level_word)                                                                  \
    &dense_f32_##level_word, &dense_f16_##level_word, &dense_bf16_##level_word,                    \
        &nm_f32_##level_word, &nm_f16_##level_word, &nm_bf16_##level_word,                         \
        &panel_f32_##level_word, &panel_f16_##level_word, &panel_bf16_##level_word

KERNELS_OF_LEVEL(portable, ESP_CPU_PORTABLE)
#ifdef ESP_CPU_X86
KERNELS_OF_LEVEL(avx2, ESP_CPU_AVX2)
KERNELS_OF_LEVEL(avx512, ESP_CPU_AVX512)
#endif

#ifdef ESP_CPU_X86
#define LIST_OF_BF16(level_word)                                                                   \
    &esp_cpu_dense_f32_##level_word, &esp_cpu_dense_f16_##level_word,                              \
        &esp_cpu_dense_bf16_##level_word, &esp_cpu_panel_f32_##level_word,                         \
        &esp_cpu_panel_f16_##level_word, &esp_cpu_panel_bf16_##level_word
#endif

const esp_kernel *const esp_cpu_kernels[] = {
#ifdef ESP_CPU_X86
    LIST_OF_BF16(amx),           LIST_OF_BF16(amx_split),
    LIST_OF_BF16(avx512bf16),    LIST_OF_LEVEL(avx512),
    LIST_OF_LEVEL(avx2),         CPU_LISTS_OF_LEVEL(&, avx512),
    CPU_LISTS_OF_LEVEL(&, avx2),
#endif
    LIST_OF_LEVEL(portable),     CPU_LISTS_OF_LEVEL(&, portable),
    &esp_cpu_openblas_kernel,    &esp_cpu_onednn_f32_kernel,
    &esp_cpu_onednn_bf16_kernel, NULL,
};
