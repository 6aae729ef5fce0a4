#include "base/cpu_features.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__linux__)
/* Tiles make a thread's saved state 8 KiB larger, so Linux wants to be asked, once for all threads
 * of a process. */
static bool may_use_tiles(void)
{
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM, XFEATURE */
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#else
static bool may_use_tiles(void)
{
    return false;
}
#endif

static bool has_amx_bf16(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) != 0 && (d >> 24 & 1) != 0;
}

static esp_cpu_level best_level(esp_cpu_level most)
{
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !__builtin_cpu_supports("f16c")) {
        return ESP_CPU_PORTABLE;
    }
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) {
        return ESP_CPU_AVX2;
    }
    if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vbmi") ||
        !__builtin_cpu_supports("avx512vbmi2")) {
        return ESP_CPU_AVX512;
    }
    return most >= ESP_CPU_AMX && has_amx_bf16() && may_use_tiles() ? ESP_CPU_AMX
                                                                    : ESP_CPU_AVX512BF16;
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

static void detect(esp_cpu_level most, esp_cpu_features *features)
{
    esp_cpu_level best = best_level(most);
    features->level = best < most ? best : most;
    bool wide = features->level >= ESP_CPU_AVX512;
    features->avx512_bf16 = wide && __builtin_cpu_supports("avx512bf16");
    features->avx512_vnni = wide && __builtin_cpu_supports("avx512vnni");
    read_brand(features->name);
}
#else
static void detect(esp_cpu_level most, esp_cpu_features *features)
{
    (void)most;
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
    *limit = ESP_CPU_LEVELS - 1;
    if (text == NULL || strcmp(text, "auto") == 0) {
        return ESP_OK;
    }
    for (int level = ESP_CPU_PORTABLE; level < ESP_CPU_LEVELS; level++) {
        if (strcmp(text, esp_cpu_level_name((esp_cpu_level)level)) == 0) {
            *limit = (esp_cpu_level)level;
            return ESP_OK;
        }
    }
    return esp_fail(error, ESP_BAD_ARGUMENT, "context.bad_cpu_level",
                    "processor level '%s' is not known; give auto, portable, avx2, avx512, "
                    "avx512bf16 or amx",
                    text);
}

esp_status esp_cpu_features_detect(const char *limit, esp_cpu_features *features, esp_error *error)
{
    esp_cpu_level most;
    ESP_TRY(parse_limit(limit, &most, error));
    esp_cpu_features found = {0};
    detect(most, &found);
    *features = found;
    return ESP_OK;
}

const char *esp_cpu_level_name(esp_cpu_level level)
{
    static const char *const names[] = {"portable", "avx2", "avx512", "avx512bf16", "amx"};
    return names[level];
}
