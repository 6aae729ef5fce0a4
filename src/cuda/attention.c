/* Attention: what its calls may say, and which kernels take them. */
#include <limits.h>

#include "cuda/attention_kernels.h"
#include "cuda/gpu_windows.h"

enum { INVALID_VALUE = 1 }; /* cudaErrorInvalidValue */

#define MOST_COLUMNS (INT32_MAX / 2)
#define MANY_TOKENS 1024 /* of a prefill: blocks of 192 queries fill the GPU */

static bool aligned(const void *pointer)
{
    return (uintptr_t)pointer % 16 == 0;
}

static bool aligned_stride(int64_t stride, int64_t columns)
{
    return stride % 8 == 0 && stride >= columns;
}

static bool in_range(int64_t value, int64_t least, int64_t most)
{
    return value >= least && value <= most;
}

static bool shape_is_valid(gpu_type type, int64_t heads, int64_t kv_heads, int64_t head_dim,
                           float scale)
{
    return (type == GPU_F16 || type == GPU_BF16) && in_range(heads, 1, 1 << 16) &&
           in_range(kv_heads, 1, heads) && heads % kv_heads == 0 &&
           in_range(head_dim, 1, GPU_MOST_HEAD_DIM) && scale > 0;
}

static bool grid_is_valid(const gpu_attention_groups *a)
{
    if (a->row_table == NULL && a->column_table == NULL) {
        return a->grid_width == 0;
    }
    return a->row_table != NULL && a->column_table != NULL && a->lengths == NULL &&
           in_range(a->grid_width, 1, GPU_WIDEST_GRID) && a->tokens % a->grid_width == 0 &&
           a->tokens / a->grid_width <= GPU_WIDEST_GRID;
}

/* Blocks of 128 queries, of which fewer than there are multiprocessors are slower than twice as
 * many of 64. */
static bool has_many_blocks(const gpu_attention_groups *a)
{
    return (a->tokens + 127) / 128 * a->groups * a->heads >= 128;
}

static bool by_warpgroups(int64_t head_dim, int device)
{
    return head_dim <= GPU_SM90_MOST_HEAD_DIM && gpu_sm90_can_attend(device);
}

int gpu_attend_groups(const gpu_attention_groups *a, void *stream)
{
    if (a->groups == 0 || a->tokens == 0) {
        return 0;
    }
    bool placed = a->starts != NULL || (a->pitch % 8 == 0 && a->pitch >= a->tokens);
    int64_t least = a->lengths != NULL ? 1 : a->tokens;
    if (!shape_is_valid(a->type, a->heads, a->heads, a->head_dim, a->scale) ||
        !in_range(a->groups, 1, INT32_MAX) || !in_range(a->tokens, 1, MOST_COLUMNS) || !placed ||
        !aligned_stride(a->stride, least) || !aligned_stride(a->y_stride, least) ||
        !aligned(a->q) || !aligned(a->k) || !aligned(a->v) || !aligned(a->y) || !grid_is_valid(a)) {
        return INVALID_VALUE;
    }
    if (by_warpgroups(a->head_dim, a->device)) {
        if (a->row_table == NULL && in_range(a->head_dim, 33, 64) && has_many_blocks(a)) {
            return gpu_sm90_attend_ahead(a, stream);
        }
        if (a->row_table != NULL && a->grid_width == 64 && in_range(a->head_dim, 33, 80)) {
            return gpu_sm90_attend_rows(a, stream);
        }
        return a->type == GPU_BF16 ? gpu_sm90_attend_groups_bf16(a, stream)
                                   : gpu_sm90_attend_groups_f16(a, stream);
    }
    return a->type == GPU_BF16 ? gpu_any_attend_groups_bf16(a, stream)
                               : gpu_any_attend_groups_f16(a, stream);
}

bool gpu_can_attend_windows(const gpu_attention_windows *a)
{
    return in_range(a->head_dim, 1, GPU_WINDOWS_MOST_HEAD_DIM) && a->window % 2 == 0 &&
           in_range(a->window, 2, GPU_WIDEST_WINDOW) && a->columns % 2 == 0 && a->pitch % 8 == 0 &&
           gpu_sm90_can_attend(a->device);
}

static bool images_are_valid(const gpu_attention_windows *a)
{
    if (!in_range(a->rows, 1, MOST_COLUMNS) || !in_range(a->columns, 1, MOST_COLUMNS) ||
        !in_range(a->rows * a->columns, 1, MOST_COLUMNS) || a->pitch < a->rows * a->columns) {
        return false;
    }
    int64_t least = a->pitch;
    return in_range(a->pitch, 1, MOST_COLUMNS) && in_range(a->images, 1, MOST_COLUMNS / least) &&
           aligned_stride(a->stride, a->images * least) &&
           aligned_stride(a->y_stride, a->images * least);
}

int gpu_attend_windows(const gpu_attention_windows *a, void *stream)
{
    if (a->images == 0 || a->rows == 0 || a->columns == 0) {
        return 0;
    }
    bool paired = (a->row_table == NULL) == (a->column_table == NULL);
    if (!shape_is_valid(a->type, a->heads, a->heads, a->head_dim, a->scale) || !paired ||
        !images_are_valid(a) || !aligned(a->q) || !aligned(a->k) || !aligned(a->v) ||
        !aligned(a->y) || !gpu_can_attend_windows(a)) {
        return INVALID_VALUE;
    }
    return gpu_sm90_attend_windows(a, stream);
}

int gpu_attend_prefill(const gpu_attention_prefill *a, void *stream)
{
    if (a->tokens == 0) {
        return 0;
    }
    if (!shape_is_valid(a->type, a->heads, a->kv_heads, a->head_dim, a->scale) ||
        a->head_dim % 8 != 0 || !in_range(a->tokens, 1, MOST_COLUMNS) ||
        !in_range(a->past, 0, MOST_COLUMNS) || !in_range(a->capacity, 1, INT32_MAX) ||
        !aligned_stride(a->stride, a->tokens) || !aligned_stride(a->y_stride, a->tokens) ||
        !aligned(a->q) || !aligned(a->keys) || !aligned(a->values) || !aligned(a->y)) {
        return INVALID_VALUE;
    }
    if (by_warpgroups(a->head_dim, a->device)) {
        if (in_range(a->head_dim, 97, 128) && a->tokens >= MANY_TOKENS) {
            return gpu_sm90_attend_past(a, stream);
        }
        return a->type == GPU_BF16 ? gpu_sm90_attend_prefill_bf16(a, stream)
                                   : gpu_sm90_attend_prefill_f16(a, stream);
    }
    return a->type == GPU_BF16 ? gpu_any_attend_prefill_bf16(a, stream)
                               : gpu_any_attend_prefill_f16(a, stream);
}

int gpu_attend_decode(const gpu_attention_decode *a, void *stream)
{
    if (a->sequences == 0) {
        return 0;
    }
    if (!shape_is_valid(a->type, a->heads, a->kv_heads, a->head_dim, a->scale) ||
        a->head_dim % 8 != 0 || a->layer < 0 || !in_range(a->sequences, 1, 1 << 16) ||
        !in_range(a->longest, 1, INT32_MAX) || !in_range(a->stride, a->sequences, INT32_MAX) ||
        a->y_stride < a->sequences || a->angle_stride > INT32_MAX || a->multiprocessors < 1) {
        return INVALID_VALUE;
    }
    return gpu_any_attend_decode(a, stream);
}
