/* The inner loop of the searches that exchange columns: like a tile of a matrix product, with
 * max(0, s - b) for the multiplication, over rows. */
#include "prune/gains.h"

static inline __attribute__((always_inline)) void
sum_gains_body(const float *scores, const float *seconds, int64_t rows, int64_t stride,
               float gains[ESP_GAINS_HEIGHT][ESP_GAINS_WIDTH])
{
    float sums[ESP_GAINS_HEIGHT][ESP_GAINS_WIDTH] = {{0}};
    for (int64_t row = 0; row < rows; row++) {
        for (int h = 0; h < ESP_GAINS_HEIGHT; h++) {
            float score = scores[row * stride + h];
            for (int w = 0; w < ESP_GAINS_WIDTH; w++) {
                float gain = score - seconds[row * stride + w];
                sums[h][w] += gain > 0 ? gain : 0;
            }
        }
    }
    memcpy(gains, sums, sizeof sums);
}

static void sum_gains(const float *scores, const float *seconds, int64_t rows, int64_t stride,
                      float gains[ESP_GAINS_HEIGHT][ESP_GAINS_WIDTH])
{
    sum_gains_body(scores, seconds, rows, stride, gains);
}

#if defined(__x86_64__) && defined(__GNUC__)
/* The same sums on wider registers. */
static __attribute__((target("avx2"))) void
sum_gains_avx2(const float *scores, const float *seconds, int64_t rows, int64_t stride,
               float gains[ESP_GAINS_HEIGHT][ESP_GAINS_WIDTH])
{
    sum_gains_body(scores, seconds, rows, stride, gains);
}

static __attribute__((target("avx512f,prefer-vector-width=512"))) void
sum_gains_avx512(const float *scores, const float *seconds, int64_t rows, int64_t stride,
                 float gains[ESP_GAINS_HEIGHT][ESP_GAINS_WIDTH])
{
    sum_gains_body(scores, seconds, rows, stride, gains);
}
#endif

void esp_sum_gains(const esp_context *context, const float *scores, const float *seconds,
                   int64_t rows, int64_t stride, float gains[ESP_GAINS_HEIGHT][ESP_GAINS_WIDTH])
{
#if defined(__x86_64__) && defined(__GNUC__)
    if (context->cpu.level >= ESP_CPU_AVX512) {
        sum_gains_avx512(scores, seconds, rows, stride, gains);
        return;
    }
    if (context->cpu.level >= ESP_CPU_AVX2) {
        sum_gains_avx2(scores, seconds, rows, stride, gains);
        return;
    }
#endif
    (void)context;
    sum_gains(scores, seconds, rows, stride, gains);
}
