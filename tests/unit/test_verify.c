/* verify: patterns that zeros fit, against a slow and obvious checker; counts of values; whole
 * folders, sound and damaged. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "assess/fit.h"
#include "cli/tiny_model.h"
#include "format/format.h"
#include "pipeline/pipeline.h"
#include "tensor/tensor.h"
#include "test.h"

/* ---- patterns ---- */

/* Whether the mask fits V:2:M, by the definition. */
static bool fits_vnm(const esp_mask *mask, int64_t v, int64_t m)
{
    int64_t rows = esp_mask_out_features(mask), columns = esp_mask_in_features(mask);
    for (int64_t panel = 0; panel < rows; panel += v) {
        for (int64_t group = 0; group < columns; group += m) {
            int64_t used = 0;
            for (int64_t c = group; c < ESP_MIN(group + m, columns); c++) {
                bool any = false;
                for (int64_t r = panel; r < ESP_MIN(panel + v, rows); r++) {
                    any |= esp_mask_get(mask, r, c);
                }
                used += any;
            }
            for (int64_t r = panel; r < ESP_MIN(panel + v, rows); r++) {
                int64_t live = 0;
                for (int64_t c = group; c < ESP_MIN(group + m, columns); c++) {
                    live += esp_mask_get(mask, r, c);
                }
                if (live > 2) {
                    return false;
                }
            }
            if (used > 4) {
                return false;
            }
        }
    }
    return true;
}

static bool fits_nm(const esp_mask *mask, int64_t keep, int64_t group)
{
    for (int64_t r = 0; r < esp_mask_out_features(mask); r++) {
        for (int64_t first = 0; first < esp_mask_in_features(mask); first += group) {
            int64_t live = 0;
            for (int64_t c = first; c < ESP_MIN(first + group, esp_mask_in_features(mask)); c++) {
                live += esp_mask_get(mask, r, c);
            }
            if (live > keep) {
                return false;
            }
        }
    }
    return true;
}

/* The names that esp_fit_patterns should give: a smaller M only with taller panels. */
static void expected_fits(const esp_mask *mask, char text[ESP_FIT_TEXT_MAX])
{
    static const int64_t groups[] = {32, 16, 10, 9, 8, 7, 6, 5}, heights[] = {16, 32, 64, 128};
    int64_t best[ESP_COUNT(groups)];
    text[0] = '\0';
    for (int g = 0; g < ESP_COUNT(groups); g++) {
        best[g] = 0;
        for (int h = 0; h < ESP_COUNT(heights); h++) {
            bool usual = h == 0 || heights[h] <= esp_mask_out_features(mask);
            if (usual && groups[g] <= esp_mask_in_features(mask) &&
                fits_vnm(mask, heights[h], groups[g])) {
                best[g] = heights[h];
            }
        }
        bool implied = best[g] == 0;
        for (int larger = 0; larger < g; larger++) {
            implied |= best[larger] >= best[g];
        }
        if (!implied) {
            size_t used = strlen(text);
            snprintf(text + used, ESP_FIT_TEXT_MAX - used, "%s%lld:2:%lld", used > 0 ? ", " : "",
                     (long long)best[g], (long long)groups[g]);
        }
    }
    const char *last = fits_nm(mask, 2, 4) ? "2:4" : fits_nm(mask, 4, 8) ? "4:8" : NULL;
    if (last != NULL) {
        size_t used = strlen(text);
        snprintf(text + used, ESP_FIT_TEXT_MAX - used, "%s%s", used > 0 ? ", " : "", last);
    }
}

static esp_mask *pruned_mask(test_run *run, esp_context *context, const char *text, int64_t rows,
                             int64_t columns, uint64_t seed)
{
    esp_random random;
    esp_random_seed(&random, seed);
    esp_tensor dense = {0};
    esp_pattern pattern = {0};
    esp_mask *mask = NULL;
    CHECK_OK(esp_pattern_parse(text, &pattern, error));
    CHECK_OK(esp_tensor_create(context, ESP_F32, 2, (int64_t[]){rows, columns}, &dense, error));
    float *values = dense.data;
    for (int64_t i = 0; i < rows * columns; i++) {
        values[i] = (float)esp_random_uniform(&random) + 0.01f;
    }
    CHECK_OK(esp_prune_mask(context, &dense, &pattern, NULL, &mask, NULL, error));
    esp_tensor_free(context, &dense);
    return mask;
}

static const struct {
    const char *pattern;
    int64_t rows, columns;
    const char *fits; /* NULL: as the slow checker says */
} fit_rows[] = {
    {"2:4", 8, 64, "2:4"},
    {"4:8", 40, 256, "4:8"},
    {"64:2:8", 128, 256, "64:2:8, 2:4"},
    {"128:2:8", 256, 512, "128:2:8, 2:4"},
    {"32:2:8", 96, 128, "32:2:8, 2:4"},
    {"16:2:16", 64, 256, "16:2:16, 2:4"},
    {"128:2:32", 384, 256, "128:2:32, 2:4"},
    {"64:2:5", 192, 320, "64:2:5"},
    {"128:2:10", 300, 330, "128:2:10, 4:8"},
    {"64:2:7", 130, 101, NULL},
    {"64:2:9", 65, 1000, NULL},
    {"16:2:6", 17, 67, NULL},
    {"32:2:8", 50, 61, NULL},
    {"1:2", 64, 64, "2:4"},
    {"1:4", 64, 64, NULL},
    {"3:4", 64, 64, ""},
    {"1:16", 200, 160, NULL},
    {"dense", 64, 64, ""},
};

static void fits_are_found(test_run *run)
{
    for (int i = 0; i < ESP_COUNT(fit_rows); i++) {
        test_sub(run, "%s %lldx%lld", fit_rows[i].pattern, (long long)fit_rows[i].rows,
                 (long long)fit_rows[i].columns);
        for (int threads = 1; threads <= 2; threads++) {
            esp_context *context = test_context(run, threads);
            esp_mask *mask = pruned_mask(run, context, fit_rows[i].pattern, fit_rows[i].rows,
                                         fit_rows[i].columns, test_seed(run));
            char text[ESP_FIT_TEXT_MAX] = "?", expected[ESP_FIT_TEXT_MAX];
            if (mask != NULL) {
                esp_fit_patterns(context, mask, text);
                expected_fits(mask, expected);
                bool few_zeros = strcmp(fit_rows[i].pattern, "dense") == 0;
                CHECK_TEXT(text, few_zeros ? "" : expected);
                if (fit_rows[i].fits != NULL) {
                    CHECK_TEXT(text, fit_rows[i].fits);
                }
            }
            esp_mask_free(mask);
            test_context_free(run, context);
        }
    }
}

/* One entry more, wherever it is, and the pattern is gone. */
static void one_more_entry_is_seen(test_run *run)
{
    esp_context *context = test_context(run, 2);
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int round = 0; round < 40; round++) {
        test_sub(run, "entry %d", round);
        esp_mask *mask = pruned_mask(run, context, "64:2:8", 200, 264, test_seed(run));
        int64_t row, column;
        do {
            row = (int64_t)esp_random_below(&random, 200);
            column = (int64_t)esp_random_below(&random, 264);
        } while (esp_mask_get(mask, row, column));
        esp_mask_set(mask, row, column, true);
        char text[ESP_FIT_TEXT_MAX], expected[ESP_FIT_TEXT_MAX];
        esp_fit_patterns(context, mask, text);
        expected_fits(mask, expected);
        CHECK_TEXT(text, expected);
        CHECK(strstr(text, ":2:8") == NULL);
        esp_mask_free(mask);
    }
    test_context_free(run, context);
}

static void accidents_are_no_fits(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_mask *mask = NULL;
    char text[ESP_FIT_TEXT_MAX];
    REQUIRE_OK(esp_mask_create(context, 64, 64, &mask, error));
    esp_fit_patterns(context, mask, text);
    CHECK_TEXT(text, "all zero");
    for (int64_t i = 0; i < 64 * 64; i++) { /* just under a quarter dropped, in a 3:4 way */
        esp_mask_set(mask, i / 64, i % 64, i % 4 != 0 || i == 0);
    }
    esp_fit_patterns(context, mask, text);
    CHECK_TEXT(text, "");
    esp_mask_free(mask);
    REQUIRE_OK(esp_mask_create(context, 0, 64, &mask, error));
    esp_fit_patterns(context, mask, text);
    CHECK_TEXT(text, "");
    esp_mask_free(mask);
    test_context_free(run, context);
}

static void shapes_qualify(test_run *run)
{
    static const struct {
        const char *name;
        esp_dtype dtype;
        int rank;
        int64_t shape[3];
        const char *text;
    } rows[] = {
        {"a.weight", ESP_BF16, 2, {256, 320}, "2:4, 64:2:5, 64:2:8, 128:2:8"},
        {"a.weight", ESP_BF16, 2, {64, 320}, "2:4, 64:2:5, 64:2:8, 128:2:8 (V=64)"},
        {"a.weight",
         ESP_F32,
         2,
         {256, 321},
         "2:4 (last group 1), 64:2:5 (last group 1), 64:2:8 (last group 1), 128:2:8 (last group "
         "1)"},
        {"a.weight", ESP_BF16, 2, {1, 1}, "none: too small to get smaller"},
        {"a.weight", ESP_BF16, 2, {0, 64}, "none: empty"},
        {"a.bias", ESP_BF16, 1, {64}, "none: not rank 2"},
        {"a.conv.weight", ESP_BF16, 3, {4, 4, 4}, "none: not rank 2"},
        {"model.embed_tokens.weight", ESP_BF16, 2, {64, 64}, "none: embedding"},
        {"transformer.wte.weight", ESP_F16, 2, {64, 64}, "none: embedding"},
        {"lm_head.weight", ESP_BF16, 2, {64, 64}, "none: output head"},
        {"encoder.layers.0.attn.rel_pos_h", ESP_F32, 2, {27, 64}, "none: position table"},
        {"mask_decoder.iou_token.weight", ESP_F32, 2, {1, 256}, "none: token"},
        {"a.scale", ESP_BF16, 2, {64, 64}, "none: name does not end in .weight"},
        {"a.weight", ESP_I8, 2, {64, 64}, "none: type is not F32, F16 or BF16"},
        {"classifier.weight", ESP_F16, 2, {1000, 768}, NULL},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s %lldx%lld", rows[i].name, (long long)rows[i].shape[0],
                 (long long)rows[i].shape[1]);
        esp_weight_info weight = {.name = rows[i].name, .dtype = rows[i].dtype};
        weight.rank = rows[i].rank;
        memcpy(weight.shape, rows[i].shape, sizeof rows[i].shape);
        weight.dense_bytes =
            (size_t)(weight.shape[0] * weight.shape[1]) * (esp_dtype_bits(weight.dtype) / 8);
        char text[ESP_QUALIFIES_TEXT_MAX];
        esp_fit_qualifies(&weight, text);
        if (rows[i].text != NULL) {
            CHECK_TEXT(text, rows[i].text);
        } else {
            CHECK(strncmp(text, "2:4", 3) == 0);
        }
    }
}

/* ---- values ---- */

static void values_are_counted(test_run *run)
{
    static const struct {
        esp_dtype dtype;
        int width;
        uint64_t negative_zero, infinity, nan, least_nan, largest, least;
    } rows[] = {
        {ESP_F16, 2, 0x8000, 0x7c00, 0xfe01, 0x7c01, 0x7bff, 0x0001},
        {ESP_BF16, 2, 0x8000, 0xff80, 0x7fc0, 0x7f81, 0x7f7f, 0x0001},
        {ESP_F32, 4, 0x80000000u, 0x7f800000u, 0xffc00000u, 0x7f800001u, 0x7f7fffffu, 1},
        {ESP_F64, 8, 0x8000000000000000u, 0xfff0000000000000u, 0x7ff8000000000000u,
         0x7ff0000000000001u, 0x7fefffffffffffffu, 1},
    };
    enum { COUNT = 200003 };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s", esp_dtype_name(rows[i].dtype));
        esp_context *context = test_context(run, 3);
        esp_tensor tensor;
        REQUIRE_OK(
            esp_tensor_create(context, rows[i].dtype, 1, (int64_t[]){COUNT}, &tensor, error));
        unsigned char *data = tensor.data;
        for (int64_t k = 0; k < COUNT; k++) {
            uint64_t bits = k % 2 != 0 ? rows[i].largest : rows[i].least;
            bits = k % 1000 == 7 ? 0 : k % 1000 == 8 ? rows[i].negative_zero : bits;
            bits = k == 70001 ? rows[i].infinity : k == 150000 ? rows[i].nan : bits;
            bits = k == COUNT - 1 ? rows[i].least_nan : bits;
            memcpy(data + k * rows[i].width, &bits, (size_t)rows[i].width);
        }
        esp_value_counts counts = esp_count_values(context, &tensor);
        CHECK_INT(counts.zeros, 400);
        CHECK_INT(counts.negative_zeros, 200);
        CHECK_INT(counts.nans, 2);
        CHECK_INT(counts.infinities, 1);
        CHECK_INT(counts.first_bad, 70001);
        esp_tensor_free(context, &tensor);
        test_context_free(run, context);
    }
    test_sub(run, "I32 has none of these");
    esp_context *context = test_context(run, 1);
    int32_t integers[2] = {0, INT32_MIN};
    esp_tensor tensor = {.dtype = ESP_I32, .rank = 1, .shape = {2}, .data = integers};
    CHECK_INT(esp_count_values(context, &tensor).negative_zeros, 0);
    CHECK_INT(esp_count_values(context, &tensor).first_bad, -1);
    test_context_free(run, context);
}

/* ---- folders ---- */

typedef struct seen_layers {
    int count, compressed, checked;
    esp_verify_layer last_up;
} seen_layers;

static void remember(void *user, const esp_verify_layer *layer)
{
    seen_layers *seen = user;
    seen->count++;
    seen->compressed += layer->weight.pattern.kind != ESP_PATTERN_DENSE;
    seen->checked += layer->checked_crc32c;
    if (strcmp(layer->name, "model.layers.1.mlp.up_proj.weight") == 0) {
        seen->last_up = *layer;
    }
}

static void prune_tiny(test_run *run, esp_context *context, const char *from, const char *to)
{
    esp_prune_options options = {0};
    CHECK_OK(esp_pattern_parse("64:2:8", &options.pattern, error));
    CHECK_OK(esp_prune_checkpoint(context, from, to, &options, NULL, error));
}

static void folders_are_described(test_run *run)
{
    const char *folder = test_folder(run);
    const char *dense = test_path(folder, "dense"), *pruned = test_path(folder, "pruned");
    esp_context *context = test_context(run, 2);
    REQUIRE(tiny_model_write(dense, "plain"));
    prune_tiny(run, context, dense, pruned);
    for (int i = 0; i < 2; i++) {
        test_sub(run, i == 0 ? "dense" : "64:2:8");
        seen_layers seen = {0};
        esp_verify_options options = {.strict = true, .on_layer = remember, .user = &seen};
        esp_verify_summary summary = {0};
        CHECK_OK(
            esp_verify_checkpoint(context, i == 0 ? dense : pruned, &options, &summary, error));
        CHECK_INT(summary.tensors, 20);
        CHECK_INT(seen.count, 20);
        CHECK_INT(summary.weights, 108992);
        CHECK_INT(summary.compressed_tensors, i == 0 ? 0 : 14);
        CHECK_INT(seen.compressed, summary.compressed_tensors);
        CHECK_INT(summary.checksums, seen.checked);
        CHECK(i == 0 || summary.checksums >= 14);
        CHECK_INT(summary.zeros, i == 0 ? 0 : 69120);
        CHECK_INT(summary.nans + summary.infinities + summary.negative_zeros, 0);
        CHECK_TEXT(seen.last_up.fits, i == 0 ? "" : "64:2:8");
        CHECK_TEXT(seen.last_up.qualifies, "2:4, 64:2:5 (last group 4), 64:2:8, 128:2:8");
        CHECK_OK(esp_verify_checkpoint(context, i == 0 ? dense : pruned, NULL, NULL, error));
    }
    test_context_free(run, context);
}

static void not_finite_is_strict(test_run *run)
{
    const char *folder = test_path(test_folder(run), "nan");
    esp_context *context = test_context(run, 2);
    REQUIRE(tiny_model_write(folder, "nan"));
    seen_layers seen = {0};
    esp_verify_options options = {.on_layer = remember, .user = &seen};
    esp_verify_summary summary = {0};
    CHECK_OK(esp_verify_checkpoint(context, folder, &options, &summary, error));
    CHECK_INT(summary.nans, 1);
    CHECK_INT(seen.last_up.nans, 1);
    options.strict = true;
    summary = (esp_verify_summary){.tensors = -7};
    esp_error error = {0};
    CHECK_INT(esp_verify_checkpoint(context, folder, &options, &summary, &error), ESP_CHECK_FAILED);
    CHECK_TEXT(error.code, "model.not_finite");
    CHECK(strstr(error.message, "model.layers.1.mlp.up_proj.weight") != NULL);
    CHECK(strstr(error.message, "element 0") != NULL);
    CHECK_INT(summary.tensors, -7); /* untouched */
    test_context_free(run, context);
}

static char *read_file(const char *path, size_t *length)
{
    FILE *file = fopen(path, "rb");
    char *data = NULL;
    if (file != NULL && fseek(file, 0, SEEK_END) == 0) {
        *length = (size_t)ftell(file);
        data = malloc(*length);
        rewind(file);
        *length = data != NULL ? fread(data, 1, *length, file) : 0;
    }
    if (file != NULL) {
        fclose(file);
    }
    return data;
}

/* Any flipped bit of the data is found. */
static void damage_is_found(test_run *run)
{
    const char *dense = test_path(test_folder(run), "sound");
    const char *pruned = test_path(test_folder(run), "damaged");
    const char *weights = test_path(pruned, "model.safetensors");
    esp_context *context = test_context(run, 1);
    REQUIRE(tiny_model_write(dense, "plain"));
    prune_tiny(run, context, dense, pruned);
    size_t length = 0;
    char *data = read_file(weights, &length);
    REQUIRE(data != NULL && length > 1000);
    uint64_t header;
    memcpy(&header, data, sizeof header);
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < 40; i++) {
        size_t at = 8 + header + esp_random_below(&random, length - 8 - header);
        int bit = (int)esp_random_below(&random, 8);
        test_sub(run, "bit %d of byte %zu", bit, at);
        data[at] = (char)(data[at] ^ 1 << bit);
        test_write_file(run, weights, data, length);
        data[at] = (char)(data[at] ^ 1 << bit);
        CHECK_FAILS(esp_verify_checkpoint(context, pruned, NULL, NULL, error), ESP_BAD_FILE, NULL);
    }
    test_sub(run, "cut");
    test_write_file(run, weights, data, length - 1);
    CHECK_FAILS(esp_verify_checkpoint(context, pruned, NULL, NULL, error), ESP_BAD_FILE, NULL);
    test_sub(run, "sound again");
    test_write_file(run, weights, data, length);
    CHECK_OK(esp_verify_checkpoint(context, pruned, NULL, NULL, error));
    free(data);
    test_context_free(run, context);
}

static bool stop_at_once(void *user, const char *what, double done, double total, const char *unit)
{
    (void)user, (void)what, (void)done, (void)total, (void)unit;
    return false;
}

static void can_be_interrupted(test_run *run)
{
    const char *folder = test_path(test_folder(run), "interrupted");
    esp_context *context = test_context(run, 1);
    REQUIRE(tiny_model_write(folder, "plain"));
    esp_verify_options options = {.progress = stop_at_once};
    CHECK_FAILS(esp_verify_checkpoint(context, folder, &options, NULL, error), ESP_CANCELLED,
                "cancelled");
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"fits are found", fits_are_found},
    {"one more entry is seen", one_more_entry_is_seen},
    {"accidents are no fits", accidents_are_no_fits},
    {"shapes qualify", shapes_qualify},
    {"values are counted", values_are_counted},
    {"folders are described", folders_are_described},
    {"not finite is strict", not_finite_is_strict},
    {"damage is found", damage_is_found},
    {"can be interrupted", can_be_interrupted},
};
TEST_MAIN(cases)
