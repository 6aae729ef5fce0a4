/* X into the form that kernels read (level.h, cpu_piece): widened to f32, rounded where the compute
 * type says so, missing tokens and the zero row filled. Costs one pass over X; buys tiles without
 * tails or cache-set conflicts, and one kernel for every layout and type of X. */
#include "cpu/matmul.h"

#define FEATURES 64 /* of a piece of work */

static const esp_host_weight *weight_of(const esp_matmul_call *call)
{
    return call->args->weight->state;
}

/* The element of X for packed feature f and token t of the call. */
static int64_t x_at(const esp_matmul_call *call, int64_t f, int64_t t)
{
    const esp_host_weight *weight = weight_of(call);
    if (weight->format == ESP_HOST_COLS) {
        f = esp_host_index(weight->list, weight->list_wide, f);
    }
    bool by_feature = call->problem->x_layout == ESP_FEATURE_MAJOR;
    return by_feature ? f * call->args->x_stride + t : t * call->args->x_stride + f;
}

/* `count` elements of X that lie side by side, from element `at`. */
static void widen(const esp_matmul_call *call, int64_t at, int64_t count, float *to)
{
    if (call->problem->act_type == ESP_F32) {
        memcpy(to, (const float *)call->args->x + at, (size_t)count * sizeof *to);
    } else {
        esp_widen(call->problem->act_type, (const uint16_t *)call->args->x + at, count, to);
    }
    if (call->problem->compute == ESP_COMPUTE_BF16) {
        for (int64_t i = 0; i < count; i++) {
            to[i] = esp_float_of_bf16(esp_bf16_of_float(to[i]));
        }
    }
}

/* Features begin..end-1 of the tile of `width` tokens at `first`, `count` of which exist. */
static void pack_tile(const cpu_pass *pass, int64_t begin, int64_t end, int64_t first,
                      int64_t width, int64_t count, float *tile)
{
    const esp_matmul_call *call = pass->call;
    int64_t token = pass->token + first;
    if (call->problem->x_layout == ESP_FEATURE_MAJOR) {
        for (int64_t f = begin; f < end; f++) {
            widen(call, x_at(call, f, token), count, tile + f * width);
        }
    } else {
        for (int64_t t = 0; t < count; t++) {
            float column[FEATURES];
            if (weight_of(call)->format == ESP_HOST_COLS) {
                for (int64_t f = begin; f < end; f++) {
                    widen(call, x_at(call, f, token + t), 1, column + f - begin);
                }
            } else {
                widen(call, x_at(call, begin, token + t), end - begin, column);
            }
            for (int64_t f = begin; f < end; f++) {
                tile[f * width + t] = column[f - begin];
            }
        }
    }
    for (int64_t f = begin; count < width && f < end; f++) {
        memset(tile + f * width + count, 0, (size_t)(width - count) * sizeof *tile);
    }
}

/* Row `in` belongs to the last piece. */
static void pack_features(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const cpu_pass *pass = user;
    int64_t in = cpu_dense_columns(weight_of(pass->call));
    for (int64_t first = 0; first < pass->padded;) {
        int64_t width = (int64_t)pass->most_vectors * pass->level->lanes;
        while (width > pass->padded - first) {
            width /= 2;
        }
        float *tile = pass->x + first * (in + 1);
        int64_t count = ESP_MIN(width, pass->tokens - first);
        pack_tile(pass, begin, end, first, width, count, tile);
        if (end == in) {
            memset(tile + in * width, 0, (size_t)width * sizeof *tile);
        }
        first += width;
    }
}

static void pack_few(const cpu_pass *pass)
{
    const esp_matmul_call *call = pass->call;
    int64_t in = cpu_dense_columns(weight_of(call));
    int64_t stride = (int64_t)pass->sizes.x / pass->sizes.block;
    bool by_feature = call->problem->x_layout == ESP_FEATURE_MAJOR;
    bool whole = (!by_feature || (call->args->x_stride == 1 && pass->tokens == 1)) &&
                 weight_of(call)->format != ESP_HOST_COLS;
    for (int64_t t = 0; t < pass->tokens; t++) {
        float *to = pass->x + t * stride;
        if (whole) {
            widen(call, x_at(call, 0, pass->token + t), in, to);
        } else {
            for (int64_t f = 0; f < in; f++) {
                widen(call, x_at(call, f, pass->token + t), 1, to + f);
            }
        }
        memset(to + in, 0, (size_t)(stride - in) * sizeof *to);
    }
}

/* Pieces of at most FEATURES, as the buffer of pack_tile wants. */
static void pack_blocks(void *user, int64_t begin, int64_t end, int thread)
{
    const cpu_pass *pass = user;
    int64_t in = cpu_dense_columns(weight_of(pass->call));
    for (int64_t block = begin; block < end; block++) {
        pack_features(user, block * FEATURES, ESP_MIN(in, (block + 1) * FEATURES), thread);
    }
}

void cpu_pack_x(const cpu_pass *pass)
{
    if (pass->sizes.few) {
        pack_few(pass);
        return;
    }
    cpu_pass copy = *pass;
    int64_t blocks = esp_ceil_div(cpu_dense_columns(weight_of(pass->call)), FEATURES);
    int64_t grain = 1 + 65536 / (FEATURES * pass->padded);
    esp_parallel_for(pass->call->device->context, blocks, grain, pack_blocks, &copy);
}
