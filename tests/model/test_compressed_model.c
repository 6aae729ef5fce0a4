/* A pruned, compressed folder must run as the same folder with its zeros written out, on every
 * device and for every pattern: the whole way from prune to logits. */
#include <math.h>

#include <espalier/prune.h>

#include "golden_model.h"

#define MAX_IDS 64

static void logits_of(test_run *run, esp_context *context, const char *folder, const char *device,
                      const int32_t *ids, int64_t count, float *logits, size_t *linear_bytes)
{
    golden_model loaded = {0};
    esp_session *session = NULL;
    esp_model_info info;
    REQUIRE_OK(golden_load(context, folder, device, ESP_COMPUTE_F32, &loaded, error));
    esp_model_get_info(loaded.model, &info);
    *linear_bytes = info.linear_resident_bytes;
    /* Most at once, the rest one by one: products of many and of few tokens. */
    CHECK_OK(esp_session_create(loaded.model, count, 0, &session, error));
    CHECK_OK(esp_session_feed(session, ids, count - 3, logits, true, error));
    for (int64_t t = count - 3; t < count; t++) {
        CHECK_OK(esp_session_feed(session, ids + t, 1, logits + t * info.vocabulary, true, error));
    }
    esp_session_free(session);
    golden_close(&loaded);
}

static void compare(test_run *run, const float *found, const float *expected, size_t count)
{
    double most = 0, worst = 0;
    for (size_t i = 0; i < count; i++) {
        test_note_largest(&most, fabs((double)expected[i]));
        double difference = fabs((double)found[i] - (double)expected[i]);
        worst = difference <= worst ? worst : difference;
    }
    CHECK(most > 0);
    CHECK(worst <= 1e-5 * most);
}

static void try_pattern(test_run *run, esp_context *context, const char *source,
                        const json_t *golden, const char *pattern_text)
{
    char packed[600], plain[600];
    int32_t ids[MAX_IDS];
    int64_t count = ESP_MIN(golden_ids(json_object_get(golden, "ids"), ids, MAX_IDS), MAX_IDS);
    const json_t *config = json_object_get(golden, "config");
    size_t vocabulary = (size_t)json_integer_value(json_object_get(config, "vocab_size"));
    size_t floats = (size_t)count * vocabulary, dense_bytes = 0, sparse_bytes = 0;
    static int made;
    snprintf(packed, sizeof packed, "%s-packed%d", source, ++made);
    snprintf(plain, sizeof plain, "%s-plain%d", source, made);
    esp_prune_options options = {0};
    REQUIRE_OK(esp_pattern_parse(pattern_text, &options.pattern, error));
    REQUIRE_OK(esp_prune_checkpoint(context, source, packed, &options, NULL, error));
    REQUIRE_OK(
        esp_convert_checkpoint(context, packed, plain, ESP_CONVERT_DENSE, &options, NULL, error));
    float *expected = calloc(floats, sizeof *expected), *found = calloc(floats, sizeof *found);
    REQUIRE(expected != NULL && found != NULL);
    logits_of(run, context, plain, "cpu", ids, count, expected, &dense_bytes);
    static const char *const devices[] = {"ref", "cpu"};
    for (int k = 0; k < 2; k++) {
        test_sub(run, "%s on %s", pattern_text, devices[k]);
        logits_of(run, context, packed, devices[k], ids, count, found, &sparse_bytes);
        compare(run, found, expected, floats);
        CHECK(sparse_bytes < dense_bytes);
    }
    free(expected);
    free(found);
}

static void same_as_zeros(test_run *run)
{
    static const char *const models[] = {"b_gqa_head64", "c_head_dim_biases", "e_linear_rope"};
    static const char *const patterns[] = {"2:4",     "4:8",     "1:4",     "64:2:5",
                                           "64:2:8",  "128:2:8", "32:2:7",  "16:2:16",
                                           "48:2:10", "3:11",    "1000:2:6"};
    esp_context *context = test_context(run, 2);
    for (int i = 0; i < ESP_COUNT(models); i++) {
        json_t *golden = golden_json(models[i]);
        char source[512];
        snprintf(source, sizeof source, "%s", golden_folder(run, context, golden));
        for (int k = 0; k < ESP_COUNT(patterns); k++) {
            test_sub(run, "%s, %s: prune and convert", models[i], patterns[k]);
            try_pattern(run, context, source, golden, patterns[k]);
        }
        json_decref(golden);
    }
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"compressed runs as its zeros", same_as_zeros},
};
TEST_MAIN(cases)
