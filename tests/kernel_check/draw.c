/* Problems for a kernel of one format. Sizes are drawn from small ones, multiples of vector and
 * tile sizes, their neighbours, and any: a kernel that takes few shapes must find its own, and a
 * kernel that takes all must meet tails of every kind. */
#include "check.h"

#define MOST_PRODUCTS 500000 /* multiply-adds of the reference, which is scalar */

static int64_t draw_size(esp_random *random, int64_t most)
{
    switch (esp_random_below(random, 6)) {
    case 0:
        return random_range(random, 1, ESP_MIN(9, most));
    case 1:
        return ESP_MIN(most, 16 * random_log(random, 1, 40));
    case 2:
        return ESP_MIN(most, 64 * random_range(random, 1, 10));
    case 3:
        return ESP_MIN(most, 32 * random_range(random, 1, 20) + random_range(random, -1, 1));
    default:
        return random_log(random, 1, most);
    }
}

static int64_t pick(esp_random *random, const int64_t *choices, int count)
{
    return choices[esp_random_below(random, (uint64_t)count)];
}

static void draw_panel(esp_random *random, char *text, size_t capacity)
{
    static const int64_t rows[] = {1, 4, 5, 16, 24, 32, 64, 64, 128},
                         m[] = {5, 7, 8, 8, 10, 16, 32};
    int64_t v = esp_random_below(random, 3) == 0 ? random_log(random, 1, 300)
                                                 : pick(random, rows, ESP_COUNT(rows));
    switch (esp_random_below(random, 4)) {
    case 0:
        snprintf(text, capacity, "2:4");
        break;
    case 1:
        snprintf(text, capacity, "panel:%lld@%.2f", (long long)v,
                 0.5 + 0.49 * esp_random_uniform(random));
        break;
    default:
        snprintf(text, capacity, "%lld:2:%lld", (long long)v,
                 (long long)pick(random, m, ESP_COUNT(m)));
    }
}

static void draw_block(esp_random *random, char *text, size_t capacity)
{
    static const int64_t sides[] = {1, 4, 8, 16, 32, 32, 64};
    bool any = esp_random_below(random, 3) == 0, square = esp_random_below(random, 2) == 0;
    int64_t rows = any ? random_log(random, 1, 70) : pick(random, sides, ESP_COUNT(sides));
    int64_t columns = any      ? random_log(random, 1, 70)
                      : square ? rows
                               : pick(random, sides, ESP_COUNT(sides));
    snprintf(text, capacity, "block:%lldx%lld@%.2f", (long long)rows, (long long)columns,
             0.01 + 0.98 * esp_random_uniform(random));
}

static void draw_nm(esp_random *random, char *text, size_t capacity)
{
    int64_t group = random_log(random, 2, 40), keep = random_range(random, 1, group - 1);
    bool is_2_4 = group == 4 && keep == 2; /* that is a panel */
    snprintf(text, capacity, "%lld:%lld", (long long)(is_2_4 ? 1 : keep), (long long)group);
}

static void draw_pattern(esp_random *random, const char *format, char *text, size_t capacity)
{
    static const char *const formats[] = {"dense", "panel", "nm", "bsr", "csr", "rows", "cols"};
    bool known = false;
    for (int i = 0; i < ESP_COUNT(formats); i++) {
        known = known || strcmp(format, formats[i]) == 0;
    }
    if (!known) {
        format = formats[esp_random_below(random, ESP_COUNT(formats))];
    }
    double sparsity = 0.01 + 0.98 * esp_random_uniform(random);
    if (strcmp(format, "panel") == 0) {
        draw_panel(random, text, capacity);
    } else if (strcmp(format, "nm") == 0) {
        draw_nm(random, text, capacity);
    } else if (strcmp(format, "bsr") == 0) {
        draw_block(random, text, capacity);
    } else if (strcmp(format, "csr") == 0) {
        snprintf(text, capacity, "unstructured@%.2f", sparsity);
    } else if (strcmp(format, "dense") == 0) {
        snprintf(text, capacity, "dense");
    } else {
        snprintf(text, capacity, "%s@%.2f", format, sparsity);
    }
}

static void draw_epilogue(esp_random *random, bool exact, int64_t *out, char *text, size_t capacity)
{
    static const char *const activations[] = {"",      "+relu",      "+gelu",
                                              "+silu", "+gelu_tanh", "+swiglu"};
    const char *activation =
        activations[esp_random_below(random, exact ? 2 : ESP_COUNT(activations))];
    if (strcmp(activation, "+swiglu") == 0) {
        *out += *out % 2;
    }
    char words[64];
    snprintf(words, sizeof words, "%s%s%s%s", esp_random_below(random, 2) == 0 ? "" : "+scale",
             esp_random_below(random, 2) == 0 ? "" : "+bias", activation,
             esp_random_below(random, 3) != 0 ? "" : "+residual");
    snprintf(text, capacity, "%s%s", words[0] != '\0' ? "/ep:" : "",
             words[0] != '\0' ? words + 1 : "");
}

void draw_problem(esp_random *random, const char *format, bool exact,
                  char text[ESP_PROBLEM_TEXT_MAX])
{
    static const char *const types[] = {"f32", "f16", "bf16"};
    char pattern[64], epilogue[80] = "";
    draw_pattern(random, format, pattern, sizeof pattern);
    int64_t out, in, tokens;
    do {
        out = draw_size(random, 700);
        in = draw_size(random, 1500);
        tokens =
            esp_random_below(random, 4) == 0 ? random_range(random, 1, 8) : draw_size(random, 600);
    } while (out * in * tokens > MOST_PRODUCTS);
    if (esp_random_below(random, 2) == 0) {
        draw_epilogue(random, exact, &out, epilogue, sizeof epilogue);
    }
    bool plain = esp_random_below(random, 2) == 0; /* f32 in, f32 out: what most kernels take */
    snprintf(text, ESP_PROBLEM_TEXT_MAX, "matmul/%s/%s/%lldx%lldx%lld%s%s/a:%s/o:%s%s%s", pattern,
             types[esp_random_below(random, 3)], (long long)out, (long long)in, (long long)tokens,
             esp_random_below(random, 3) == 0 ? "/x:tok" : "",
             esp_random_below(random, 3) == 0 ? "/y:tok" : "",
             plain ? "f32" : types[esp_random_below(random, 3)],
             plain ? "f32" : types[esp_random_below(random, 3)],
             esp_random_below(random, 2) == 0 ? "/c:bf16" : "/c:f32", epilogue);
}
