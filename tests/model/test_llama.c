/* The Llama decoder against transformers (goldens of tools/golden/make_llama.py), on both devices
 * of the host: every layer's output, generation, and that how a text is fed does not matter. */
#include <math.h>

#include "golden_model.h"

#define BOUND 1e-4 /* largest |difference| / largest |expected|, f32 */
#define MAX_IDS 256
#define NEW_TOKENS 16

static const char *const devices[] = {"ref", "cpu"};

typedef struct golden {
    const char *name;
    json_t *json;
    float *outputs;
    size_t output_floats;
    int32_t ids[MAX_IDS];
    int64_t count, vocabulary;
} golden;

static bool golden_open(golden *opened, const char *name)
{
    *opened = (golden){.name = name, .json = golden_json(name)};
    opened->outputs = golden_outputs(name, &opened->output_floats);
    opened->count = golden_ids(json_object_get(opened->json, "ids"), opened->ids, MAX_IDS);
    const json_t *config = json_object_get(opened->json, "config");
    opened->vocabulary = json_integer_value(json_object_get(config, "vocab_size"));
    return opened->outputs != NULL && opened->count > 0 && opened->count <= MAX_IDS;
}

static void golden_free(golden *opened)
{
    json_decref(opened->json);
    free(opened->outputs);
}

/* ---- comparing what a session shows with the stored outputs ---- */

typedef struct watcher {
    const golden *golden;
    const esp_session *session;
    double worst;
    int64_t compared;
} watcher;

/* Where the rows of an output begin; its width in *features. -1: not stored. */
static int64_t find_output(const golden *opened, const char *name, int64_t *features)
{
    const json_t *names = json_object_get(opened->json, "outputs");
    const json_t *config = json_object_get(opened->json, "config");
    int64_t hidden = json_integer_value(json_object_get(config, "hidden_size"));
    int64_t rows = (int64_t)json_array_size(json_object_get(opened->json, "positions")), at = 0;
    for (size_t i = 0; i < json_array_size(names); i++) {
        const char *found = json_string_value(json_array_get(names, i));
        *features = strcmp(found, "logits") == 0 ? opened->vocabulary : hidden;
        if (strcmp(found, name) == 0) {
            return at;
        }
        at += rows * *features;
    }
    return -1;
}

static double largest_expected(const golden *opened, int64_t at, int64_t features)
{
    int64_t rows = (int64_t)json_array_size(json_object_get(opened->json, "positions"));
    double most = 0;
    for (int64_t i = 0; i < rows * features; i++) {
        most = fmax(most, fabs((double)opened->outputs[at + i]));
    }
    return most;
}

/* data[i * feature_step + (position - first) * token_step], positions first..first+tokens-1. */
static void compare(watcher *watching, const char *name, const float *data, int64_t feature_step,
                    int64_t token_step, int64_t first, int64_t tokens)
{
    const golden *opened = watching->golden;
    const json_t *positions = json_object_get(opened->json, "positions");
    int64_t features = 0, at = find_output(opened, name, &features);
    if (at < 0) {
        watching->worst = INFINITY;
        return;
    }
    double most = largest_expected(opened, at, features);
    for (size_t row = 0; row < json_array_size(positions); row++) {
        int64_t position = json_integer_value(json_array_get(positions, row)) - first;
        for (int64_t i = 0; position >= 0 && position < tokens && i < features; i++) {
            double expected = (double)opened->outputs[at + (int64_t)row * features + i];
            double found = (double)data[i * feature_step + position * token_step];
            double difference = fabs(found - expected) / most;
            watching->worst = difference <= watching->worst ? watching->worst : difference;
            watching->compared++;
        }
    }
}

static void watch(void *user, const char *name, const float *data, int64_t features, int64_t tokens)
{
    watcher *watching = user;
    (void)features;
    compare(watching, name, data, tokens, 1, esp_session_length(watching->session), tokens);
}

/* Feeds all ids in pieces of `piece`, with batches of `max_batch`; every layer is compared. */
static void feed_and_compare(test_run *run, const golden *opened, const esp_model *model,
                             int64_t piece, int64_t max_batch, double *worst)
{
    esp_session *session = NULL;
    float *logits = calloc((size_t)(opened->count * opened->vocabulary), sizeof *logits);
    REQUIRE(logits != NULL);
    CHECK_OK(esp_session_create(model, opened->count, max_batch, &session, error));
    watcher watching = {.golden = opened, .session = session};
    if (session != NULL) {
        esp_session_observe(session, watch, &watching);
        for (int64_t at = 0; at < opened->count; at += piece) {
            int64_t count = ESP_MIN(piece, opened->count - at);
            CHECK_OK(esp_session_feed(session, opened->ids + at, count,
                                      logits + at * opened->vocabulary, true, error));
        }
        compare(&watching, "logits", logits, 1, opened->vocabulary, 0, opened->count);
    }
    CHECK_INT(watching.compared, opened->output_floats);
    CHECK(watching.worst <= BOUND);
    *worst = fmax(*worst, watching.worst);
    esp_session_free(session);
    free(logits);
}

static void compare_generation(test_run *run, const golden *opened, const esp_model *model);

/* How a text is cut must not matter: token by token, batches smaller than pieces... */
static const struct {
    int piece, batch;
} ways[] = {{MAX_IDS, 3}, {1, 0}, {7, 4}};

static void compare_model(test_run *run, esp_context *context, const char *name, const char *device)
{
    golden opened;
    golden_model loaded;
    double worst = 0;
    test_sub(run, "%s on %s", name, device);
    REQUIRE(golden_open(&opened, name));
    const char *folder = golden_folder(run, context, opened.json);
    CHECK_OK(golden_load(context, folder, device, ESP_COMPUTE_F32, &loaded, error));
    if (loaded.model != NULL) {
        feed_and_compare(run, &opened, loaded.model, opened.count, 0, &worst);
        printf("golden llama/%s on %s: largest relative difference %.1e\n", name, device, worst);
        bool slow = strcmp(device, "ref") == 0 && (name[0] == 'b' || name[0] == 'f');
        for (int i = 0; i < ESP_COUNT(ways) && !slow; i++) {
            test_sub(run, "%s on %s, pieces of %d in batches of %d", name, device, ways[i].piece,
                     ways[i].batch);
            feed_and_compare(run, &opened, loaded.model, ways[i].piece, ways[i].batch, &worst);
        }
        if (!slow || name[0] == 'b') {
            test_sub(run, "%s on %s, greedy continuation", name, device);
            compare_generation(run, &opened, loaded.model);
        }
    }
    golden_close(&loaded);
    golden_free(&opened);
}

static void equals_transformers(test_run *run)
{
    esp_context *context = test_context(run, 2);
    for (int i = 0; i < ESP_COUNT(golden_names); i++) {
        for (int k = 0; k < ESP_COUNT(devices); k++) {
            compare_model(run, context, golden_names[i], devices[k]);
        }
    }
    test_context_free(run, context);
}

/* ---- generation ---- */

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

static void compare_generation(test_run *run, const golden *opened, const esp_model *model)
{
    int32_t expected[NEW_TOKENS];
    esp_session *session = NULL;
    collected all = {.limit = NEW_TOKENS + 1};
    esp_generation result = {0};
    CHECK_INT(golden_ids(json_object_get(opened->json, "continuation"), expected, NEW_TOKENS),
              NEW_TOKENS);
    REQUIRE_OK(esp_session_create(model, opened->count + NEW_TOKENS, 0, &session, error));
    CHECK_OK(esp_generate(session, opened->ids, opened->count, NEW_TOKENS, NULL, collect, &all,
                          &result, error));
    CHECK_INT(result.new_tokens, NEW_TOKENS);
    CHECK_INT(result.prompt_tokens, opened->count);
    CHECK_INT(result.stop, ESP_STOP_LIMIT);
    for (int i = 0; i < NEW_TOKENS; i++) {
        CHECK_INT(all.ids[i], expected[i]);
    }
    esp_session_free(session);
}

static void ways_to_stop(test_run *run)
{
    esp_context *context = test_context(run, 1);
    golden opened;
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

/* ---- sessions ---- */

static void truncate_and_feed_again(test_run *run)
{
    esp_context *context = test_context(run, 2);
    golden opened;
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
            most = fmax(most, fabs((double)first[i]));
            worst = fmax(worst, fabs((double)first[i] - (double)again[i]));
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
    golden opened;
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
    esp_context *context = test_context(run, 1);
    golden opened;
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
    int64_t linear = 384 * (384 + 128 + 128 + 384) + 3 * 384 * 1024;
    int64_t embedding = 512 * 384, norms = 3 * 384; /* tied: one resident copy */
    CHECK_INT(info.linear_parameters, linear);
    CHECK_INT(info.parameters, linear + embedding + norms);
    CHECK_INT(info.linear_resident_bytes, 2 * linear);
    CHECK_INT(info.resident_bytes, 2 * (linear + embedding) + 4 * norms);
    CHECK_INT(esp_model_kernels(loaded.model, 7, names, counts, 16), 1);
    CHECK_TEXT(names[0], "matmul_dense_any_any__ref_scalar");
    CHECK_INT(counts[0], 8);
    golden_close(&loaded);
    golden_free(&opened);
    test_context_free(run, context);
}

/* Root mean square of a - b over that of b. */
static double distance(const float *a, const float *b, size_t count)
{
    double difference = 0, whole = 0;
    for (size_t i = 0; i < count; i++) {
        difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        whole += (double)b[i] * (double)b[i];
    }
    return sqrt(difference / whole);
}

static void all_logits(test_run *run, esp_context *context, const char *folder, const char *device,
                       esp_compute compute, const golden *opened, float *logits)
{
    golden_model loaded = {0};
    esp_session *session = NULL;
    REQUIRE_OK(golden_load(context, folder, device, compute, &loaded, error));
    CHECK_OK(esp_session_create(loaded.model, opened->count, 0, &session, error));
    CHECK_OK(esp_session_feed(session, opened->ids, opened->count, logits, true, error));
    esp_session_free(session);
    golden_close(&loaded);
}

/* Products in bf16 are near those in f32, and not the same. ref and cpu round at the same points,
 * but sums in another order turn roundings over, each product more of them (a difference d becomes
 * sqrt(d * 2^-8)), so that whole models are merely no further apart than either is from f32. */
static void compute_bf16(test_run *run)
{
    esp_context *context = test_context(run, 2);
    golden opened;
    REQUIRE(golden_open(&opened, "b_gqa_head64"));
    const char *folder = golden_folder(run, context, opened.json);
    size_t count = (size_t)(opened.count * opened.vocabulary);
    float *exact = calloc(count, sizeof *exact);
    float *ref = calloc(count, sizeof *ref), *cpu = calloc(count, sizeof *cpu);
    all_logits(run, context, folder, "cpu", ESP_COMPUTE_F32, &opened, exact);
    all_logits(run, context, folder, "ref", ESP_COMPUTE_BF16, &opened, ref);
    all_logits(run, context, folder, "cpu", ESP_COMPUTE_BF16, &opened, cpu);
    double rounding = distance(ref, exact, count), apart = distance(cpu, ref, count);
    printf("golden llama/b_gqa_head64 computing in bf16: distance to f32 %.1e, ref to cpu %.1e\n",
           rounding, apart);
    CHECK(rounding > 1e-4 && rounding < 2e-2);
    CHECK(apart < 1.5 * rounding);
    free(exact);
    free(ref);
    free(cpu);
    golden_free(&opened);
    test_context_free(run, context);
}

/* ---- every allocation fails in turn ---- */

typedef struct failing {
    long live, until_failure;
} failing;

static void *failing_allocate(void *user, size_t bytes, size_t alignment)
{
    failing *state = user;
    if (state->until_failure-- <= 0) {
        return NULL;
    }
    state->live++;
    return aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

static void failing_release(void *user, void *memory)
{
    ((failing *)user)->live--;
    free(memory);
}

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
        failing state = {.until_failure = 1000};
        esp_context_options options = {.threads = 1,
                                       .allocator = {failing_allocate, failing_release, &state}};
        esp_context *context = NULL;
        esp_error problem = {0};
        REQUIRE_OK(esp_context_create(&options, &context, error));
        state.until_failure = n;
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
    {"equals transformers", equals_transformers},
    {"ways to stop", ways_to_stop},
    {"truncate and feed again", truncate_and_feed_again},
    {"refused calls", refused_calls},
    {"NaN weights", nan_weights},
    {"info and kernels", info_and_kernels},
    {"compute bf16", compute_bf16},
    {"failing memory", failing_memory},
};
TEST_MAIN(cases)
