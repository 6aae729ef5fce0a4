/* From weights to what is compared: doubles where scores are summed over rows (w^2 of any f32
 * fits), integer keys where single weights are ranked. */
#include <float.h>
#include <math.h>

#include "prune/select.h"

#define SEGMENT 64

void esp_score_segment(const esp_prune_job *job, int64_t row, int64_t column, int64_t count,
                       double *scores)
{
    float weights[SEGMENT];
    bool square = job->score == ESP_SCORE_SQUARE;
    size_t width = esp_dtype_bytes(job->dense->dtype);
    const char *data = (const char *)job->dense->data + (size_t)(row * job->in + column) * width;
    for (int64_t at = 0; at < count; at += SEGMENT) {
        int64_t length = ESP_MIN(SEGMENT, count - at);
        esp_widen(job->dense->dtype, data + (size_t)at * width, length, weights);
        for (int64_t i = 0; i < length; i++) {
            double magnitude = fabs((double)weights[i]);
            double score = square ? magnitude * magnitude : magnitude;
            score = magnitude <= (double)FLT_MAX ? score : ESP_SCORE_OF_INFINITY;
            scores[at + i] = magnitude == magnitude ? score : ESP_SCORE_OF_NAN;
        }
    }
}

void esp_score_keys(const esp_prune_job *job, int64_t row, uint32_t *keys)
{
    if (job->dense->dtype == ESP_F32) {
        const char *data = (const char *)job->dense->data + (size_t)(row * job->in) * 4;
        for (int64_t i = 0; i < job->in; i++) {
            uint32_t bits;
            memcpy(&bits, data + 4 * i, sizeof bits);
            bits &= 0x7fffffffu;
            keys[i] = bits > 0x7f800000u ? 0x7f800001u : bits;
        }
        return;
    }
    uint32_t infinity = job->dense->dtype == ESP_BF16 ? 0x7f80u : 0x7c00u;
    const char *data = (const char *)job->dense->data + (size_t)(row * job->in) * 2;
    for (int64_t i = 0; i < job->in; i++) {
        uint16_t half;
        memcpy(&half, data + 2 * i, sizeof half);
        uint32_t bits = half & 0x7fffu;
        keys[i] = bits > infinity ? infinity + 1 : bits;
    }
}
