#include "base/cpu_features.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"

#if defined(__x86_64__)
#include <cpuid.h>

static esp_cpu_level best_level(void)
{
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !__builtin_cpu_supports("f16c")) {
        return ESP_CPU_PORTABLE;
    }
    bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return wide ? ESP_CPU_AVX512 : ESP_CPU_AVX2;
}

static void read_brand(char name[64])
{
    unsigned words[12];
    unsigned top = __get_cpuid_max(0x80000000u, NULL);
    if (top < 0x80000004u) {
        snprintf(name, 64, "x86-64");
        return;
    }
    for (unsigned i = 0; i < 3; i++) {
        __get_cpuid(0x80000002u + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2],
                    &words[4 * i + 3]);
    }
    char brand[49];
    memcpy(brand, words, 48);
    brand[48] = '\0';
    char *begin = brand + strspn(brand, " ");
    size_t length = strlen(begin);
    while (length > 0 && begin[length - 1] == ' ') {
        begin[--length] = '\0';
    }
    snprintf(name, 64, "%s", begin);
}

/* AMX needs the kernel's leave as well; that is asked for where its kernels are. */
static bool has_amx_bf16(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) != 0 && (d >> 24 & 1) != 0;
}

static void detect(esp_cpu_features *features)
{
    features->level = best_level();
    features->avx512_bf16 =
        features->level == ESP_CPU_AVX512 && __builtin_cpu_supports("avx512bf16");
    features->avx512_vnni =
        features->level == ESP_CPU_AVX512 && __builtin_cpu_supports("avx512vnni");
    features->amx_bf16 = features->level == ESP_CPU_AVX512 && has_amx_bf16();
    read_brand(features->name);
}
#else
static void detect(esp_cpu_features *features)
{
    features->level = ESP_CPU_PORTABLE;
#if defined(__aarch64__)
    snprintf(features->name, sizeof features->name, "aarch64");
#else
    snprintf(features->name, sizeof features->name, "unknown processor");
#endif
}
#endif

static esp_status parse_limit(const char *text, esp_cpu_level *limit, esp_error *error)
{
    *limit = ESP_CPU_AVX512;
    if (text == NULL || strcmp(text, "auto") == 0) {
        return ESP_OK;
    }
    for (int level = ESP_CPU_PORTABLE; level <= ESP_CPU_AVX512; level++) {
        if (strcmp(text, esp_cpu_level_name((esp_cpu_level)level)) == 0) {
            *limit = (esp_cpu_level)level;
            return ESP_OK;
        }
    }
    return esp_fail(error, ESP_BAD_ARGUMENT, "context.bad_cpu_level",
                    "processor level '%s' is not known; give auto, portable, avx2 or avx512", text);
}

esp_status esp_cpu_features_detect(const char *limit, esp_cpu_features *features, esp_error *error)
{
    esp_cpu_level most;
    ESP_TRY(parse_limit(limit, &most, error));
    esp_cpu_features found = {0};
    detect(&found);
    if (found.level > most) {
        found.level = most;
        found.avx512_bf16 = found.avx512_vnni = found.amx_bf16 = false;
    }
    *features = found;
    return ESP_OK;
}

const char *esp_cpu_level_name(esp_cpu_level level)
{
    static const char *const names[] = {"portable", "avx2", "avx512"};
    return names[level];
}
