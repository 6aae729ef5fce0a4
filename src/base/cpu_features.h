/* What the processor can do, found once; kernels are chosen from it at run time. */
#ifndef ESP_BASE_CPU_FEATURES_H
#define ESP_BASE_CPU_FEATURES_H

#include <espalier/base.h>

typedef enum esp_cpu_level { ESP_CPU_PORTABLE = 0, ESP_CPU_AVX2, ESP_CPU_AVX512 } esp_cpu_level;

typedef struct esp_cpu_features {
    esp_cpu_level level; /* avx2: AVX2+FMA+F16C; avx512: F+BW+VL+DQ besides */
    bool avx512_bf16;    /* only when level is avx512 */
    bool avx512_vnni;
    bool amx_bf16;
    char name[64]; /* processor brand */
} esp_cpu_features;

/* limit: NULL, "auto", "portable", "avx2", "avx512"; asking for more than there is gives what there
 * is. */
ESP_MUST_CHECK esp_status esp_cpu_features_detect(const char *limit, esp_cpu_features *features,
                                                  esp_error *error);
const char *esp_cpu_level_name(esp_cpu_level level);

#endif
