/* Sessions and generation: ways to stop, going back, calls that are refused, damaged weights, facts
 * about a model, and memory that runs out at every place. */
#include <math.h>

#include "failing_allocator.h"
#include "golden_model.h"

#define NEW_TOKENS GOLDEN_NEW_TOKENS

typedef struct collected {
    int32_t ids[NEW_TOKENS];
    int count, limit;
} collected;

static bool collect(void *user, int32_t id)
{
    collected *all = user;
    if (all->count < NEW_TOKENS) {
        all->ids[all->count] = id;
    }
    return ++all->count < all->limit;
}

static void ways_to_stop(test_run *run)
{
    esp_context *context = test_context(run, 1);
    golden_data opened;
    golden_model loaded = {0};
    int32_t expected[NEW_TOKENS];
    REQUIRE(golden_open(&opened, "d_llama3_rope"));
    golden_ids(json_object_get(opened.json, "continuation"), expected, NEW_TOKENS);
    const char *folder = golden_folder(run, context, opened.json);
    char text[128];
    snprintf(text, sizeof text, "{\"eos_token_id\": [258, %d]}", (int)expected[6]);
    test_write_file(run, test_path(folder, "generation_config.json"), text, strlen(text));
    CHECK_OK(golden_load(context, folder, "cpu", ESP_COMPUTE_F32, &loaded, error));
    const struct {
        const char *name;
        int64_t capacity, max_tokens;
        int limit;
        esp_stop stop;
        int64_t new_tokens;
    } rows[] = {{"eos of generation_config.json", 300, 16, 99, ESP_STOP_EOS, 7},
                {"limit", 300, 3, 99, ESP_STOP_LIMIT, 3},
                {"nothing asked", 300, 0, 99, ESP_STOP_LIMIT, 0},
                {"callback", 300, 16, 2, ESP_STOP_CALLBACK, 2},
                {"context full", 122, 16, 99, ESP_STOP_CONTEXT, 3},
                {"context full at the prompt", 120, 16, 99, ESP_STOP_CONTEXT, 1}};
    for (int i = 0; i < ESP_COUNT(rows) && loaded.model != NULL; i++) {
        esp_session *session = NULL;
        collected all = {.limit = rows[i].limit};
        esp_generation result = {0};
        test_sub(run, "%s", rows[i].name);
        CHECK_OK(esp_session_create(loaded.model, rows[i].capacity, 0, &session, error));
        CHECK_OK(esp_generate(session, opened.ids, opened.count, rows[i].max_tokens, NULL, collect,
                              &all, &result, error));
        CHECK_INT(result.stop, rows[i].stop);
        CHECK_INT(result.new_tokens, rows[i].new_tokens);
        CHECK_INT(all.count, rows[i].new_tokens);
        esp_session_free(session);
    }
    golden_close(&loaded);
    golden_free(&opened);
    test_context_free(run, context);
}

static void truncate_and_feed_again(test_run *run)
{
    esp_context *context = test_context(run, 2);
    golden_data opened;
    golden_model loaded = {0};
    esp_session *session = NULL;
    REQUIRE(golden_open(&opened, "b_gqa_head64"));
    CHECK_OK(golden_load(context, golden_folder(run, context, opened.json), "cpu", ESP_COMPUTE_F32,
                         &loaded, error));
    float *first = calloc((size_t)opened.vocabulary, sizeof *first);
    float *again = calloc((size_t)opened.vocabulary, sizeof *again);
    if (loaded.model != NULL && first != NULL && again != NULL) {
        CHECK_OK(esp_session_create(loaded.model, opened.count, 16, &session, error));
        CHECK_OK(esp_session_feed(session, opened.ids, opened.count, first, false, error));
        CHECK_INT(esp_session_length(session), opened.count);
        esp_session_truncate(session, opened.count + 1); /* nothing to forget */
        CHECK_INT(esp_session_length(session), opened.count);
        esp_session_truncate(session, 10);
        CHECK_INT(esp_session_length(session), 10);
        int32_t other[20] = {5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20};
        CHECK_OK(esp_session_feed(session, other, 20, NULL, false, error));
        esp_session_truncate(session, 10);
        CHECK_OK(
            esp_session_feed(session, opened.ids + 10, opened.count - 10, again, false, error));
        double most = 0, worst = 0;
        for (int64_t i = 0; i < opened.vocabulary; i++) {
            test_note_largest(&most, fabs((double)first[i]));
            test_note_largest(&worst, fabs((double)first[i] - (double)again[i]));
        }
        CHECK(most > 0 && worst <= 1e-5 * most);
    }
    esp_session_free(session);
    free(first);
    free(again);
    golden_close(&loaded);
    golden_free(&opened);
    test_context_free(run, context);
}

static void refused_calls(test_run *run)
{
    esp_context *context = test_context(run, 1);
    golden_data opened;
    golden_model loaded = {0};
    esp_session *session = NULL;
    REQUIRE(golden_open(&opened, "a_tiny_mha"));
    REQUIRE_OK(golden_load(context, golden_folder(run, context, opened.json), "cpu",
                           ESP_COMPUTE_AUTO, &loaded, error));
    const esp_model *model = loaded.model;
    const int32_t good[] = {1, 2, 3}, high[] = {1, 101}, low[] = {1, -1};
    test_sub(run, "session.bad_capacity");
    CHECK_FAILS(esp_session_create(model, 0, 0, &session, error), ESP_BAD_ARGUMENT,
                "session.bad_capacity");
    CHECK_FAILS(esp_session_create(model, 513, 0, &session, error), ESP_BAD_ARGUMENT,
                "session.bad_capacity");
    test_sub(run, "session.bad_batch");
    CHECK_FAILS(esp_session_create(model, 8, -1, &session, error), ESP_BAD_ARGUMENT,
                "session.bad_batch");
    CHECK(session == NULL);
    REQUIRE_OK(esp_session_create(model, 4, 2, &session, error));
    test_sub(run, "session.bad_token");
    CHECK_FAILS(esp_session_feed(session, high, 2, NULL, false, error), ESP_BAD_ARGUMENT,
                "session.bad_token");
    CHECK_FAILS(esp_session_feed(session, low, 2, NULL, false, error), ESP_BAD_ARGUMENT,
                "session.bad_token");
    test_sub(run, "session.empty");
    CHECK_FAILS(esp_session_feed(session, good, 0, NULL, false, error), ESP_BAD_ARGUMENT,
                "session.empty");
    test_sub(run, "session.full");
    CHECK_OK(esp_session_feed(session, good, 3, NULL, false, error));
    CHECK_FAILS(esp_session_feed(session, good, 2, NULL, false, error), ESP_BAD_ARGUMENT,
                "session.full");
    CHECK_INT(esp_session_length(session), 3);
    const esp_sampling bad[] = {{.temperature = -1}, {.temperature = NAN}, {.top_p = 1.5f}};
    for (int i = 0; i < ESP_COUNT(bad); i++) {
        test_sub(run, "generate.bad_sampling %d", i);
        CHECK_FAILS(esp_generate(session, good, 1, 1, &bad[i], NULL, NULL, NULL, error),
                    ESP_BAD_ARGUMENT, "generate.bad_sampling");
    }
    test_sub(run, "generate.bad_limit");
    CHECK_FAILS(esp_generate(session, good, 1, -1, NULL, NULL, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "generate.bad_limit");
    esp_session_free(session);
    golden_close(&loaded);
    golden_free(&opened);
    test_context_free(run, context);
}

static void nan_weights(test_run *run)
{
    esp_context *context = test_context(run, 1);
    json_t *json = golden_json("a_tiny_mha");
    golden_model loaded = {0};
    esp_session *session = NULL;
    const int32_t ids[] = {1, 2, 3};
    const esp_sampling hot = {.temperature = 1, .top_p = 0.9f, .seed = 3};
    json_t *tensors = json_object_get(json, "tensors"), *entry;
    size_t i;
    json_array_foreach(tensors, i, entry)
    {
        if (strcmp(json_string_value(json_object_get(entry, "name")), "model.norm.weight") == 0) {
            json_object_set_new(entry, "nan", json_true());
        }
    }
    CHECK_OK(golden_load(context, golden_folder(run, context, json), "cpu", ESP_COMPUTE_F32,
                         &loaded, error));
    if (loaded.model != NULL) {
        CHECK_OK(esp_session_create(loaded.model, 8, 0, &session, error));
        CHECK_FAILS(esp_generate(session, ids, 3, 4, NULL, NULL, NULL, NULL, error), ESP_FAILED,
                    "generate.no_logits");
        esp_session_truncate(session, 0);
        CHECK_FAILS(esp_generate(session, ids, 3, 4, &hot, NULL, NULL, NULL, error), ESP_FAILED,
                    "generate.no_logits");
    }
    esp_session_free(session);
    golden_close(&loaded);
    json_decref(json);
    test_context_free(run, context);
}

/* ---- facts about a model ---- */

static void info_and_kernels(test_run *run)
{
    const esp_model_call seven = {.tokens = 7};
    esp_context *context = test_context(run, 1);
    golden_data opened;
    golden_model loaded = {0};
    esp_model_info info;
    const char *names[16];
    int counts[16];
    REQUIRE(golden_open(&opened, "b_gqa_head64"));
    REQUIRE_OK(golden_load(context, golden_folder(run, context, opened.json), "ref",
                           ESP_COMPUTE_AUTO, &loaded, error));
    esp_model_get_info(loaded.model, &info);
    CHECK_TEXT(info.architecture, "LlamaForCausalLM");
    CHECK_INT(info.layers, 1);
    CHECK_INT(info.hidden_size, 384);
    CHECK_INT(info.vocabulary, 512);
    CHECK_INT(info.context, 512);
    CHECK_INT(info.bos, 1);
    CHECK_INT(info.eos_count, 1);
    CHECK_INT(info.eos[0], 2);
    CHECK_INT(info.compute, ESP_COMPUTE_F32);
    CHECK_INT(info.activations, ESP_F32);
    int64_t linear = 384 * (384 + 128 + 128 + 384) + 3 * 384 * 1024;
    int64_t embedding = 512 * 384, norms = 3 * 384; /* tied: one resident copy */
    int64_t frequencies = 64 / 2;
    CHECK_INT(info.linear_parameters, linear);
    CHECK_INT(info.parameters, linear + embedding + norms);
    CHECK_INT(info.linear_resident_bytes, 2 * linear);
    CHECK_INT(info.resident_bytes, 2 * (linear + embedding) + 4 * (norms + frequencies));
    CHECK_INT(esp_model_kernels(loaded.model, seven, names, counts, 16), 1);
    CHECK_TEXT(names[0], "matmul_dense_any_any__ref_scalar");
    CHECK_INT(counts[0], 8);
    golden_close(&loaded);
    golden_free(&opened);
    test_context_free(run, context);
}

/* ---- every allocation fails in turn ---- */

static esp_status load_and_feed(esp_context *context, const char *folder, esp_error *error)
{
    golden_model loaded;
    esp_session *session = NULL;
    const int32_t ids[] = {1, 2, 3};
    ESP_TRY(golden_load(context, folder, "cpu", ESP_COMPUTE_F32, &loaded, error));
    esp_status status = esp_session_create(loaded.model, 8, 0, &session, error);
    if (status == ESP_OK) {
        status = esp_generate(session, ids, 3, 2, NULL, NULL, NULL, NULL, error);
    }
    esp_session_free(session);
    golden_close(&loaded);
    return status;
}

static void failing_memory(test_run *run)
{
    json_t *json = golden_json("a_tiny_mha_bf16");
    esp_context *plain = test_context(run, 1);
    char folder[512];
    snprintf(folder, sizeof folder, "%s", golden_folder(run, plain, json));
    test_context_free(run, plain);
    json_decref(json);
    esp_status status = ESP_FAILED;
    long n = 0;
    for (; status != ESP_OK && n < 3000; n++) {
        failing state = {.left = 1000};
        esp_context_options options = {.threads = 1,
                                       .allocator = {failing_allocate, failing_release, &state}};
        esp_context *context = NULL;
        esp_error problem = {0};
        REQUIRE_OK(esp_context_create(&options, &context, error));
        state.left = n;
        status = load_and_feed(context, folder, &problem);
        if (status != ESP_OK && status != ESP_OUT_OF_MEMORY) {
            test_fail(run, __FILE__, __LINE__, "allocation %ld: %s", n, problem.message);
        }
        esp_context_free(context);
        CHECK_INT(state.live, 0);
    }
    CHECK_INT(status, ESP_OK);
    CHECK(n > 50);
}

static const test_case cases[] = {
    {"ways to stop", ways_to_stop},         {"truncate and feed again", truncate_and_feed_again},
    {"refused calls", refused_calls},       {"NaN weights", nan_weights},
    {"info and kernels", info_and_kernels}, {"failing memory", failing_memory},
};
TEST_MAIN(cases)
