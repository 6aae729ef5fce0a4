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

void cpu_finish_row(const cpu_pass *pass, int64_t o, int64_t first, int64_t count, float *sums)
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
