/* What the processor can do, found once; kernels are chosen from it at run time. */
#ifndef ESP_BASE_CPU_FEATURES_H
#define ESP_BASE_CPU_FEATURES_H

#include <espalier/base.h>

/* Each level holds those before it. */
typedef enum esp_cpu_level {
    ESP_CPU_PORTABLE = 0,
    ESP_CPU_AVX2,       /* with FMA, F16C */
    ESP_CPU_AVX512,     /* F, BW, VL, DQ */
    ESP_CPU_AVX512BF16, /* with BF16, VBMI, VBMI2 */
    ESP_CPU_AMX,        /* TILE, BF16, and the operating system lets this process use tiles */
    ESP_CPU_LEVELS
} esp_cpu_level;

typedef struct esp_cpu_features {
    esp_cpu_level level;
    bool avx512_bf16; /* the instructions alone; only when level is avx512 or above */
    bool avx512_vnni;
    char name[64]; /* processor brand */
} esp_cpu_features;

/* limit: NULL, "auto" or a level's name; asking for more than there is gives what there is. */
ESP_MUST_CHECK esp_status esp_cpu_features_detect(const char *limit, esp_cpu_features *features,
                                                  esp_error *error);
const char *esp_cpu_level_name(esp_cpu_level level);

#endif
