/* Rules of conversion to sparse-24-bitmask: what is taken beyond, or without, what it takes by
 * itself. The form: test_bitmask.c. */
#include <espalier/prune.h>

#include "model_folder.h"

#define GOLDEN ESP_SOURCE_DIR "/tests/golden/bitmask/"

/* Of a dense folder's classifier head, which is 2:4, and what a compressed folder left dense. */
static void rules_take_heads(test_run *run)
{
    static const struct {
        const char *pattern, *source, *out;
        int taken;
    } rows[] = {{NULL, "head", "without", 1},
                {"dense", "head", "dense", 1},
                {"2:4", "head", "with", 2},
                {NULL, "without", "again", 1},
                {"2:4", "without", "more", 2}};
    esp_context *context = test_context(run, 1);
    const char *folder = test_folder(run);
    unsigned char data[512];
    for (size_t i = 0; i < sizeof data; i++) {
        data[i] = i % 8 < 4 ? 0x3c : 0; /* two of each four */
    }
    char path[1000], out[1000];
    snprintf(path, sizeof path, "%s/head", folder);
    mkdir(path, 0700);
    write_text(run, test_path(path, "config.json"), "{}");
    write_safetensors(run, test_path(path, "model.safetensors"),
                      "{\"classifier.weight\":{\"dtype\":\"BF16\",\"shape\":[8,16],"
                      "\"data_offsets\":[0,256]},\"m.weight\":{\"dtype\":\"BF16\","
                      "\"shape\":[8,16],\"data_offsets\":[256,512]}}",
                      data, sizeof data);
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        esp_pattern_rule rule = {.glob = "classifier"};
        esp_prune_options options = {.rules = &rule, .rule_count = rows[i].pattern != NULL};
        esp_prune_summary summary = {0};
        test_sub(run, "%s", rows[i].out);
        if (rows[i].pattern != NULL) {
            REQUIRE_OK(esp_pattern_parse(rows[i].pattern, &rule.pattern, error));
        }
        snprintf(path, sizeof path, "%s/%s", folder, rows[i].source);
        snprintf(out, sizeof out, "%s/%s", folder, rows[i].out);
        CHECK_OK(esp_convert_checkpoint(context, path, out, ESP_CONVERT_SPARSE_24_BITMASK, &options,
                                        &summary, error));
        CHECK_INT(summary.pruned_layers, rows[i].taken);
    }
    test_context_free(run, context);
}

static void rules_that_cannot_be(test_run *run)
{
    static const struct {
        const char *pattern;
        esp_convert_target target;
    } rows[] = {{"64:2:8", ESP_CONVERT_SPARSE_24_BITMASK},
                {"1:4", ESP_CONVERT_SPARSE_24_BITMASK},
                {"2:4", ESP_CONVERT_SPARSE_BITMASK}};
    esp_context *context = test_context(run, 1);
    char out[1000];
    snprintf(out, sizeof out, "%s/never", test_folder(run));
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        esp_pattern_rule rule = {.glob = "*"};
        esp_prune_options options = {.rules = &rule, .rule_count = 1};
        test_sub(run, "%s", rows[i].pattern);
        REQUIRE_OK(esp_pattern_parse(rows[i].pattern, &rule.pattern, error));
        CHECK_FAILS(esp_convert_checkpoint(context, GOLDEN "dense", out, rows[i].target, &options,
                                           NULL, error),
                    ESP_BAD_ARGUMENT, "convert.bad_rule");
        CHECK(!esp_path_exists(out));
    }
    test_context_free(run, context);
}

static const test_case cases[] = {{"rules_take_heads", rules_take_heads},
                                  {"rules_that_cannot_be", rules_that_cannot_be}};
TEST_MAIN(cases)
