/* From sums to Y: scale, bias, activation, residual, in this order, in f32; then rounding to the
 * output type and either layout. swiglu joins two output rows, which may be stored far apart, so
 * its sums wait in pass->raw until all rows are there. */
#include "cpu/matmul.h"

#define ACTIVATIONS (ESP_EP_RELU | ESP_EP_GELU | ESP_EP_GELU_TANH | ESP_EP_SILU)

/* Row o of Y, `count` tokens from `first` of the pass on: residual, rounding, layout. */
static void store_row(const cpu_pass *pass, int64_t o, int64_t first, int64_t count, float *row)
{
    const esp_matmul_problem *problem = pass->call->problem;
    const esp_matmul_args *args = pass->call->args;
    esp_dtype type = problem->out_type;
    bool adds = (problem->epilogue & ESP_EP_RESIDUAL) != 0;
    bool by_feature = problem->y_layout == ESP_FEATURE_MAJOR;
    int64_t at = by_feature ? o * args->y_stride + pass->token + first
                            : (pass->token + first) * args->y_stride + o;
    if (type == ESP_F32 && by_feature) {
        const float *residual = adds ? (const float *)args->residual + at : NULL;
        float *y = (float *)args->y + at;
        for (int64_t t = 0; adds && t < count; t++) {
            row[t] += residual[t];
        }
        memcpy(y, row, (size_t)count * sizeof *y);
        return;
    }
    int64_t step = by_feature ? 1 : args->y_stride;
    int64_t width = (int64_t)esp_dtype_bytes(type);
    for (int64_t t = 0; t < count; t++, at += step) {
        float value = row[t];
        if (adds) {
            value += esp_weight_at(type, args->residual, at);
        }
        esp_narrow(type, &value, 1, (char *)args->y + at * width);
    }
}

/* One token of f32 output without activation: the common step of decoding, in a loop of its own
 * because per-row calls would cost more than the sums. */
static bool finish_one_token(const cpu_pass *pass, const cpu_piece *piece)
{
    const esp_matmul_problem *problem = pass->call->problem;
    const esp_matmul_args *args = pass->call->args;
    unsigned epilogue = problem->epilogue;
    if (piece->tokens != 1 || problem->out_type != ESP_F32 || piece->weight->rows != NULL ||
        piece->weight->format == ESP_HOST_ROWS || (epilogue & (ACTIVATIONS | ESP_EP_SWIGLU)) != 0) {
        return false;
    }
    bool by_feature = problem->y_layout == ESP_FEATURE_MAJOR;
    int64_t token = pass->token + piece->token, step = by_feature ? args->y_stride : 1;
    int64_t at = by_feature ? piece->row * step + token : token * args->y_stride + piece->row;
    for (int64_t r = 0; r < piece->rows; r++, at += step) {
        float value = piece->sums[r * piece->sums_stride];
        if (epilogue != 0) {
            int64_t o = piece->row + r;
            value = (epilogue & ESP_EP_SCALE) != 0 ? value * args->scale[o] : value;
            value = (epilogue & ESP_EP_BIAS) != 0 ? value + args->bias[o] : value;
            value = (epilogue & ESP_EP_RESIDUAL) != 0 ? value + ((const float *)args->residual)[at]
                                                      : value;
        }
        ((float *)args->y)[at] = value;
    }
    return true;
}

/* Epilogue of output row o for `count` tokens of the pass from `first` on; sums are overwritten. */
static void finish_row(const cpu_pass *pass, int64_t o, int64_t first, int64_t count, float *sums)
{
    const esp_matmul_args *args = pass->call->args;
    unsigned epilogue = pass->call->problem->epilogue;
    if ((epilogue & ESP_EP_SCALE) != 0) {
        for (int64_t t = 0; t < count; t++) {
            sums[t] *= args->scale[o];
        }
    }
    if ((epilogue & ESP_EP_BIAS) != 0) {
        for (int64_t t = 0; t < count; t++) {
            sums[t] += args->bias[o];
        }
    }
    if ((epilogue & ESP_EP_SWIGLU) != 0) {
        memcpy(pass->raw + o * pass->sizes.block + first, sums, (size_t)count * sizeof *sums);
        return;
    }
    if ((epilogue & ACTIVATIONS) != 0) {
        pass->level->activate(epilogue & ACTIVATIONS, sums, count);
    }
    store_row(pass, o, first, count, sums);
}

void cpu_finish_piece(const cpu_pass *pass, const cpu_piece *piece)
{
    if (finish_one_token(pass, piece)) {
        return;
    }
    int64_t count = ESP_MIN(piece->tokens, pass->tokens - piece->token);
    for (int64_t r = 0; r < piece->rows; r++) {
        int64_t o = cpu_output_row(piece->weight, piece->row + r);
        finish_row(pass, o, piece->token, count, piece->sums + r * piece->sums_stride);
    }
}

static void finish_absent(void *user, int64_t begin, int64_t end, int thread)
{
    const cpu_pass *pass = user;
    float *sums = pass->scratch + (size_t)thread * pass->sizes.scratch;
    for (int64_t o = begin; o < end; o++) {
        if (esp_host_find(pass->call->args->weight->state, o) < 0) {
            memset(sums, 0, (size_t)pass->tokens * sizeof *sums);
            finish_row(pass, o, 0, pass->tokens, sums);
        }
    }
}

void cpu_finish_absent_rows(const cpu_pass *pass)
{
    cpu_pass copy = *pass;
    esp_parallel_for(pass->call->device->context, pass->call->problem->out_features,
                     1 + 16384 / pass->tokens, finish_absent, &copy);
}

static void finish_pairs(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const cpu_pass *pass = user;
    for (int64_t pair = begin; pair < end; pair++) {
        float *gate = pass->raw + 2 * pair * pass->sizes.block;
        float *up = gate + pass->sizes.block;
        pass->level->swiglu(gate, up, pass->tokens, gate);
        store_row(pass, pair, 0, pass->tokens, gate);
    }
}

void cpu_finish_swiglu(const cpu_pass *pass)
{
    cpu_pass copy = *pass;
    int64_t pairs = pass->call->problem->out_features / 2;
    esp_parallel_for(pass->call->device->context, pairs, 1 + 16384 / pass->tokens, finish_pairs,
                     &copy);
}
