/* What a product means. Every stored entry of a row is multiplied with the activation of its column
 * and summed in double, entry after entry, then rounded to f32 once; the epilogue follows in f32.
 *
 * Which columns take part: dense uses all of them, so 0 * Inf is NaN there. The sparse formats use
 * the stored entries only, fill entries of value +0.0 included (they stand at a real column);
 * columns that are not stored, and the padding of a panel's column list or of an edge block, are
 * never read, whatever they hold.
 *
 * Rounding points: compute F32 widens both inputs exactly; BF16 rounds both to bf16. */
#include "op/op.h"
#include "ref/kernels.h"

#define BLOCK 16 /* tokens summed side by side */

static float round_input(const esp_matmul_call *call, float value)
{
    bool rounds = call->problem->compute == ESP_COMPUTE_BF16;
    return rounds ? esp_float_of_bf16(esp_bf16_of_float(value)) : value;
}

/* The input column of stored entry j of row i; in_features for padding. */
static int64_t entry_column(const esp_host_weight *weight, int64_t i, int64_t j)
{
    switch (weight->format) {
    case ESP_HOST_DENSE:
        return j;
    case ESP_HOST_NM:
        return esp_host_nm_column(weight, i, j);
    default: {
        int64_t group = j / 2;
        unsigned byte = weight->positions[i * weight->position_bytes + group / 2];
        unsigned nibble = group % 2 == 0 ? byte & 15u : byte >> 4;
        unsigned position = j % 2 == 0 ? nibble & 3u : nibble >> 2;
        return esp_host_column(weight, i / weight->panel_rows, 4 * group + position);
    }
    }
}

/* Type and layout are asked once for a block of tokens: whole models run on this. */
static void load_x(const esp_matmul_call *call, int64_t column, int64_t token, int64_t count,
                   float *x)
{
    const esp_matmul_problem *problem = call->problem;
    int64_t stride = call->args->x_stride;
    if (problem->x_layout == ESP_FEATURE_MAJOR) {
        size_t width = esp_dtype_bytes(problem->act_type);
        const char *from = call->args->x;
        esp_widen(problem->act_type, from + (size_t)(column * stride + token) * width, count, x);
    } else {
        for (int64_t t = 0; t < count; t++) {
            x[t] = esp_weight_at(problem->act_type, call->args->x, (token + t) * stride + column);
        }
    }
    for (int64_t t = 0; t < count && problem->compute == ESP_COMPUTE_BF16; t++) {
        x[t] = round_input(call, x[t]);
    }
}

/* Adds the product of one stored value and the activations of its column. */
static void add_entry(const esp_matmul_call *call, int64_t value_index, int64_t column,
                      int64_t token, int64_t count, double sums[BLOCK])
{
    const esp_host_weight *weight = call->args->weight->state;
    float x[BLOCK];
    load_x(call, column, token, count, x);
    double w = (double)round_input(call, esp_weight_at(weight->dtype, weight->values, value_index));
    for (int64_t t = 0; t < count; t++) {
        sums[t] += w * (double)x[t];
    }
}

/* csr, bsr, rows, cols. */
static void add_runs(const esp_matmul_call *call, int64_t i, int64_t token, int64_t count,
                     double sums[BLOCK])
{
    const esp_host_weight *weight = call->args->weight->state;
    int64_t first, runs = esp_host_runs(weight, i, &first);
    for (int64_t k = first; k < first + runs; k++) {
        esp_host_run run = esp_host_run_at(weight, i, k);
        for (int64_t j = 0; j < run.length; j++) {
            add_entry(call, run.value + j, run.column + j, token, count, sums);
        }
    }
}

/* raw[t] = sum over the entries of stored row i, for `count` <= BLOCK tokens. */
static void sum_row(const esp_matmul_call *call, int64_t i, int64_t token, int64_t count,
                    float raw[BLOCK])
{
    const esp_host_weight *weight = call->args->weight->state;
    double sums[BLOCK] = {0};
    if (weight->format >= ESP_HOST_CSR) {
        add_runs(call, i, token, count, sums);
    }
    for (int64_t j = 0; j < weight->row_values; j++) { /* none where there are runs */
        int64_t column = entry_column(weight, i, j);
        if (column < weight->in_features) {
            add_entry(call, i * weight->row_values + j, column, token, count, sums);
        }
    }
    for (int64_t t = 0; t < count; t++) {
        raw[t] = (float)sums[t];
    }
}

/* Scale and bias of output row o. */
static void scale_row(const esp_matmul_call *call, int64_t o, int64_t count, float *raw)
{
    unsigned epilogue = call->problem->epilogue;
    for (int64_t t = 0; t < count; t++) {
        raw[t] = (epilogue & ESP_EP_SCALE) != 0 ? raw[t] * call->args->scale[o] : raw[t];
        raw[t] = (epilogue & ESP_EP_BIAS) != 0 ? raw[t] + call->args->bias[o] : raw[t];
    }
}

/* Adds the residual and writes row o of Y. */
static void store_row(const esp_matmul_call *call, int64_t o, int64_t token, int64_t count,
                      const float *row)
{
    const esp_matmul_problem *problem = call->problem;
    const esp_matmul_args *args = call->args;
    bool by_feature = problem->y_layout == ESP_FEATURE_MAJOR;
    size_t width = esp_dtype_bytes(problem->out_type);
    for (int64_t t = 0; t < count; t++) {
        int64_t at = by_feature ? o * args->y_stride + token + t : (token + t) * args->y_stride + o;
        float value = row[t];
        if ((problem->epilogue & ESP_EP_RESIDUAL) != 0) {
            value += esp_weight_at(problem->out_type, args->residual, at);
        }
        esp_narrow(problem->out_type, &value, 1, (char *)args->y + at * (int64_t)width);
    }
}

static void run_rows(const esp_matmul_call *call, int64_t token, int64_t count)
{
    const esp_host_weight *weight = call->args->weight->state;
    float row[BLOCK];
    for (int64_t i = 0; i < weight->out_features; i++) {
        int64_t o = esp_host_row(weight, i);
        sum_row(call, i, token, count, row);
        scale_row(call, o, count, row);
        for (int64_t t = 0; t < count; t++) {
            row[t] = esp_ref_activate(call->problem->epilogue, row[t]);
        }
        store_row(call, o, token, count, row);
    }
}

/* stored_of[o]: the stored row that is output row o. */
static void run_row_pairs(const esp_matmul_call *call, const uint32_t *stored_of, int64_t token,
                          int64_t count)
{
    float gate[BLOCK], up[BLOCK];
    for (int64_t pair = 0; pair < call->problem->out_features / 2; pair++) {
        sum_row(call, stored_of[2 * pair], token, count, gate);
        sum_row(call, stored_of[2 * pair + 1], token, count, up);
        scale_row(call, 2 * pair, count, gate);
        scale_row(call, 2 * pair + 1, count, up);
        for (int64_t t = 0; t < count; t++) {
            gate[t] = esp_ref_activate(ESP_EP_SILU, gate[t]) * up[t];
        }
        store_row(call, pair, token, count, gate);
    }
}

static esp_status launch(const esp_matmul_call *call, esp_error *error)
{
    (void)error;
    const esp_host_weight *weight = call->args->weight->state;
    bool pairs = (call->problem->epilogue & ESP_EP_SWIGLU) != 0;
    uint32_t *stored_of = call->args->workspace;
    for (int64_t i = 0; pairs && i < weight->out_features; i++) {
        stored_of[esp_host_row(weight, i)] = (uint32_t)i;
    }
    for (int64_t token = 0; token < call->problem->tokens; token += BLOCK) {
        int64_t count = ESP_MIN(BLOCK, call->problem->tokens - token);
        if (pairs) {
            run_row_pairs(call, stored_of, token, count);
        } else {
            run_rows(call, token, count);
        }
    }
    return ESP_OK;
}

static size_t workspace_bytes(const esp_kernel *kernel, const esp_device *device,
                              const esp_matmul_problem *problem)
{
    (void)kernel, (void)device;
    bool pairs = (problem->epilogue & ESP_EP_SWIGLU) != 0;
    return pairs ? (size_t)problem->out_features * sizeof(uint32_t) : 0;
}

static const char *why_not(const esp_kernel *kernel, const esp_device *device,
                           const esp_matmul_problem *problem)
{
    (void)device;
    return esp_host_format_why_not(*(const esp_host_format *)kernel->variant, &problem->pattern);
}

/* About 2 ns for a multiply and its column. */
static double score_us(const esp_kernel *kernel, const esp_device *device,
                       const esp_matmul_problem *problem)
{
    (void)kernel, (void)device;
    return 2e-3 * (double)problem->out_features * (double)problem->in_features *
           (double)problem->tokens;
}

#define REF_KERNEL(word, host_format)                                                              \
    static const esp_host_format format_##word = host_format;                                      \
    static const esp_kernel word##_kernel = {                                                      \
        .name = "matmul_" #word "_any_any__ref_scalar",                                            \
        .device = "ref",                                                                           \
        .format = #word,                                                                           \
        .level = "scalar",                                                                         \
        .idea = "the meaning: entry after entry, summed in double",                                \
        .why_not = why_not,                                                                        \
        .workspace_bytes = workspace_bytes,                                                        \
        .score_us = score_us,                                                                      \
        .launch = launch,                                                                          \
        .variant = &format_##word,                                                                 \
    }

REF_KERNEL(dense, ESP_HOST_DENSE);
REF_KERNEL(nm, ESP_HOST_NM);
REF_KERNEL(panel, ESP_HOST_PANEL);
REF_KERNEL(csr, ESP_HOST_CSR);
REF_KERNEL(bsr, ESP_HOST_BSR);
REF_KERNEL(rows, ESP_HOST_ROWS);
REF_KERNEL(cols, ESP_HOST_COLS);

const esp_kernel *const esp_ref_kernels[] = {&dense_kernel, &nm_kernel,  &panel_kernel,
                                             &csr_kernel,   &bsr_kernel, &rows_kernel,
                                             &cols_kernel,  NULL};
