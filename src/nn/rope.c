/* Rotary position embedding: pair i of a head turns by position * frequency[i].
 *
 * Su et al., "RoFormer" (arXiv 2104.09864). LINEAR: position interpolation (2306.15595). LLAMA3:
 * long wavelengths are slowed down by `factor`, short ones kept, those between blended. The angle
 * is the f32 product of position and frequency, as checkpoints were trained; cos and sin of it are
 * exact. */
#include <math.h>

#include "nn/nn.h"

static double llama3(const esp_rope_config *config, double frequency)
{
    double wavelength = 2 * M_PI / frequency;
    double original = config->original_max_position_embeddings;
    if (wavelength > original / config->low_freq_factor) {
        return frequency / config->factor;
    }
    if (wavelength < original / config->high_freq_factor) {
        return frequency;
    }
    double keep = (original / wavelength - config->low_freq_factor) /
                  (config->high_freq_factor - config->low_freq_factor);
    return (1 - keep) * frequency / config->factor + keep * frequency;
}

void esp_rope_frequencies(const esp_rope_config *config, int64_t head_dim, float *frequencies)
{
    for (int64_t i = 0; i < head_dim / 2; i++) {
        double frequency = pow(config->theta, -2.0 * (double)i / (double)head_dim);
        if (config->kind == ESP_ROPE_LINEAR) {
            frequency /= config->factor;
        } else if (config->kind == ESP_ROPE_LLAMA3) {
            frequency = llama3(config, frequency);
        }
        frequencies[i] = (float)frequency;
    }
}
