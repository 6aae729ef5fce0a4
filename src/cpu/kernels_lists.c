/* Records of the products of listed entries: csr, bsr, and rows and cols, which are dense products
 * of what they keep. */
#include "cpu/kernels.h"
#include "cpu/matmul.h"
#include "format/format.h"

static bool listed(const cpu_variant *variant)
{
    return variant->format == ESP_HOST_CSR || variant->format == ESP_HOST_BSR;
}

static size_t workspace_bytes(const esp_kernel *kernel, const esp_device *device,
                              const esp_matmul_problem *problem)
{
    const cpu_variant *variant = kernel->variant;
    return listed(variant) ? cpu_lists_workspace(variant, device, problem).bytes
                           : cpu_matmul_workspace(variant, device, problem).bytes;
}

static esp_status launch(const esp_matmul_call *call, esp_error *error)
{
    return listed(call->kernel->variant) ? cpu_lists_launch(call, error)
                                         : cpu_matmul_launch(call, error);
}

static double stored_values(const esp_matmul_problem *problem)
{
    const esp_pattern *pattern = &problem->pattern;
    int64_t out = problem->out_features, in = problem->in_features;
    switch (pattern->kind) {
    case ESP_PATTERN_ROWS:
        return (double)esp_pattern_kept_of(pattern, out) * (double)in;
    case ESP_PATTERN_COLS:
        return (double)esp_pattern_kept_of(pattern, in) * (double)out;
    case ESP_PATTERN_BLOCK:
        return (double)esp_pattern_kept_of(pattern, esp_ceil_div(out, pattern->block_rows) *
                                                        esp_ceil_div(in, pattern->block_cols)) *
               (double)pattern->block_rows * (double)pattern->block_cols;
    default:
        return (double)esp_pattern_kept_of(pattern, out * in);
    }
}

/* Multiply-adds per ns and thread, on the scale on which dense full tiles do 19, 65 and 120 (see
 * kernels.c). Blocks of few rows load X for few multiply-adds; the fewer entries an unstructured
 * row has, the more its sums cost; narrow tiles share each broadcast among fewer vectors. */
static double tiles_rate(const cpu_variant *variant, const esp_matmul_problem *problem,
                         double stored)
{
    static const double full[3] = {18, 63, 100}, most[3] = {14, 45, 60};
    double tokens = (double)problem->tokens;
    double rate = full[variant->needs] * (ESP_MIN(tokens, 64) + 8) / 72;
    if (variant->format == ESP_HOST_CSR) {
        double density = stored / ((double)problem->out_features * (double)problem->in_features);
        return most[variant->needs] * (ESP_MIN(tokens, 128) + 16) / 144 / (1 + 0.05 / density);
    }
    if (variant->format == ESP_HOST_BSR && problem->pattern.block_rows < 8) {
        static const double shares[8] = {0, 0.44, 0.46, 0.55, 0.9, 0.9, 0.9, 0.9};
        return rate * shares[problem->pattern.block_rows];
    }
    return rate;
}

static double score_us(const esp_kernel *kernel, const esp_device *device,
                       const esp_matmul_problem *problem)
{
    const cpu_variant *variant = kernel->variant;
    double stored = stored_values(problem), tokens = (double)problem->tokens;
    double width = (double)esp_dtype_bytes(problem->weight_type);
    width += variant->format == ESP_HOST_CSR ? 2 : 0;
    double memory = 1.3 * cpu_memory_us(device, stored * width); /* shorter streams than dense */
    double rate = tiles_rate(variant, problem, stored);
    if (tokens <= 8) {
        double few = variant->format == ESP_HOST_CSR ? 4 : 13; /* gathers; sums in memory */
        rate = ESP_MIN(rate, few * variant->level->lanes / 16);
    } else {
        tokens =
            (double)esp_ceil_div(problem->tokens, variant->level->lanes) * variant->level->lanes;
    }
    double compute = cpu_compute_us(device, stored * tokens, rate);
    return 2 + ESP_MAX(memory, compute) +
           cpu_memory_us(device, (double)problem->in_features * tokens * 8);
}

#define RECORD(word, host_format, type, type_word, level_word, needs_level, how)                   \
    static const cpu_variant word##_##type_word##_##level_word = {&esp_cpu_##level_word,           \
                                                                  needs_level, host_format, type}; \
    const esp_kernel esp_cpu_##word##_##type_word##_##level_word = {                               \
        .name = "matmul_" #word "_" #type_word "_f32__cpu_" #level_word,                           \
        .device = "cpu",                                                                           \
        .format = #word,                                                                           \
        .level = #level_word,                                                                      \
        .idea = how,                                                                               \
        .why_not = cpu_why_not,                                                                    \
        .workspace_bytes = workspace_bytes,                                                        \
        .score_us = score_us,                                                                      \
        .launch = launch,                                                                          \
        .variant = &word##_##type_word##_##level_word};

#define CSR_IDEA "chunks of packed X in L1, each entry one multiply-add per vector of tokens"
#define BSR_IDEA "rows x tokens of sums in registers over the blocks of a block row"
#define ROWS_IDEA "the kept rows as a dense product"
#define COLS_IDEA "the kept columns as a dense product; only their X is packed"

#define RECORDS_OF_TYPE(type, word, level, needs)                                                  \
    RECORD(csr, ESP_HOST_CSR, type, word, level, needs, CSR_IDEA)                                  \
    RECORD(bsr, ESP_HOST_BSR, type, word, level, needs, BSR_IDEA)                                  \
    RECORD(rows, ESP_HOST_ROWS, type, word, level, needs, ROWS_IDEA)                               \
    RECORD(cols, ESP_HOST_COLS, type, word, level, needs, COLS_IDEA)

#define RECORDS_OF_LEVEL(level, needs)                                                             \
    RECORDS_OF_TYPE(ESP_F32, f32, level, needs)                                                    \
    RECORDS_OF_TYPE(ESP_F16, f16, level, needs)                                                    \
    RECORDS_OF_TYPE(ESP_BF16, bf16, level, needs)

RECORDS_OF_LEVEL(portable, ESP_CPU_PORTABLE)
#ifdef ESP_CPU_X86
RECORDS_OF_LEVEL(avx2, ESP_CPU_AVX2)
RECORDS_OF_LEVEL(avx512, ESP_CPU_AVX512)
#endif
