/* For the tests of pruning methods: tensors, what a mask retains, and whether it can be stored. */
#ifndef ESP_TESTS_MASK_TOOLS_H
#define ESP_TESTS_MASK_TOOLS_H

#include <math.h>

#include "prune/prune.h"
#include "weights.h"

static const esp_dtype dtypes[] = {ESP_F32, ESP_F16, ESP_BF16};

/* Small integers times a power of two: sums are exact, ties are common. */
static inline esp_tensor integer_tensor(test_run *run, esp_context *context, esp_random *random,
                                        esp_dtype dtype, int64_t out, int64_t in)
{
    esp_tensor tensor = make_tensor(run, context, dtype, out, in);
    for (int64_t i = 0; i < out * in; i++) {
        float weight = (float)((int)esp_random_below(random, 21) - 10) * 0.25f;
        esp_narrow(dtype, &weight, 1, (char *)tensor.data + (size_t)i * esp_dtype_bytes(dtype));
    }
    return tensor;
}

static inline esp_tensor normal_tensor(test_run *run, esp_context *context, esp_random *random,
                                       esp_dtype dtype, int64_t out, int64_t in)
{
    esp_tensor tensor = make_tensor(run, context, dtype, out, in);
    for (int64_t i = 0; i < out * in; i++) {
        double sum = -2;
        for (int k = 0; k < 4; k++) {
            sum += esp_random_uniform(random);
        }
        float weight = (float)sum;
        esp_narrow(dtype, &weight, 1, (char *)tensor.data + (size_t)i * esp_dtype_bytes(dtype));
    }
    return tensor;
}

static inline double score_at(const esp_tensor *dense, int64_t row, int64_t column, esp_score score)
{
    double w = (double)esp_weight_at(dense->dtype, dense->data, row * dense->shape[1] + column);
    return score == ESP_SCORE_SQUARE ? w * w : fabs(w);
}

/* Score that a mask retains in the columns [first, end) of the rows [row, row_end). */
static inline double retained(const esp_tensor *dense, const esp_mask *mask, int64_t row,
                              int64_t row_end, int64_t first, int64_t end, esp_score score)
{
    double sum = 0;
    for (int64_t r = row; r < row_end; r++) {
        for (int64_t c = first; c < end; c++) {
            sum += esp_mask_get(mask, r, c) ? score_at(dense, r, c, score) : 0;
        }
    }
    return sum;
}

static inline esp_mask *prune(test_run *run, esp_context *context, const esp_tensor *dense,
                              const char *pattern, esp_score score, esp_search search,
                              esp_mask_report *report)
{
    esp_pattern parsed = pattern_of(run, pattern);
    esp_mask_options options = {.score = score, .search = search};
    esp_mask *mask = NULL;
    CHECK_OK(esp_prune_mask(context, dense, &parsed, &options, &mask, report, error));
    return mask;
}

/* What a mask of a pattern may do, checked by encoding: every live entry must find its place. */
static inline void check_fits(test_run *run, esp_context *context, const esp_tensor *dense,
                              const char *pattern, const esp_mask *mask)
{
    esp_pattern parsed = pattern_of(run, pattern);
    esp_sparse *sparse = NULL;
    esp_tensor ones = make_tensor(run, context, ESP_F32, dense->shape[0], dense->shape[1]);
    for (int64_t i = 0; i < dense->shape[0] * dense->shape[1]; i++) {
        put_bits_at(ESP_F32, ones.data, i, 0x3f800000u);
    }
    CHECK_OK(esp_sparse_encode(context, &parsed, &ones, mask, &sparse, error));
    CHECK_OK(esp_sparse_check(sparse, error));
    esp_sparse_free(sparse);
    esp_tensor_free(context, &ones);
}

static inline bool same_masks(const esp_mask *a, const esp_mask *b)
{
    bool same = true;
    for (int64_t r = 0; r < esp_mask_out_features(a); r++) {
        same = same && memcmp(esp_mask_row(a, r), esp_mask_row(b, r),
                              8 * (size_t)esp_mask_row_words(a)) == 0;
    }
    return same;
}

#endif
