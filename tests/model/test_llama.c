/* The Llama decoder against transformers (goldens of tools/golden/make_llama.py), on both devices
 * of the host: every layer's output, generation, and that how a text is fed does not matter. */
#include <math.h>

#include "golden_model.h"

#define BOUND 1e-4 /* largest |difference| / largest |expected|, f32 */
#define NEW_TOKENS GOLDEN_NEW_TOKENS

static const char *const devices[] = {"ref", "cpu"};

/* ---- comparing what a session shows with the stored outputs ---- */

typedef struct watcher {
    const golden_data *golden;
    const esp_session *session;
    double worst;
    int64_t compared;
} watcher;

/* Where the rows of an output begin; its width in *features. -1: not stored. */
static int64_t find_output(const golden_data *opened, const char *name, int64_t *features)
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

static double largest_expected(const golden_data *opened, int64_t at, int64_t features)
{
    int64_t rows = (int64_t)json_array_size(json_object_get(opened->json, "positions"));
    double most = 0;
    for (int64_t i = 0; i < rows * features; i++) {
        test_note_largest(&most, fabs((double)opened->outputs[at + i]));
    }
    return most;
}

/* data[i * feature_step + (position - first) * token_step], positions first..first+tokens-1. */
static void compare(watcher *watching, const char *name, const float *data, int64_t feature_step,
                    int64_t token_step, int64_t first, int64_t tokens)
{
    const golden_data *opened = watching->golden;
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
            test_note_largest(&watching->worst, difference);
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
static void feed_and_compare(test_run *run, const golden_data *opened, const esp_model *model,
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

/* Whose last layer is less work. */
static void compare_last(test_run *run, const golden_data *opened, const esp_model *model,
                         int64_t max_batch)
{
    esp_session *session = NULL;
    int64_t vocabulary = opened->vocabulary;
    float *all = calloc((size_t)(opened->count * vocabulary), sizeof *all);
    float *last = calloc((size_t)vocabulary, sizeof *last);
    REQUIRE(all != NULL && last != NULL);
    REQUIRE_OK(esp_session_create(model, opened->count, max_batch, &session, error));
    CHECK_OK(esp_session_feed(session, opened->ids, opened->count, all, true, error));
    esp_session_truncate(session, 0);
    CHECK_OK(esp_session_feed(session, opened->ids, opened->count, last, false, error));
    const float *expected = all + (opened->count - 1) * vocabulary;
    double most = 0, worst = 0;
    for (int64_t i = 0; i < vocabulary; i++) {
        test_note_largest(&most, fabs((double)expected[i]));
        test_note_largest(&worst, fabs((double)last[i] - (double)expected[i]));
    }
    CHECK(most > 0 && worst <= BOUND * most);
    esp_session_free(session);
    free(all);
    free(last);
}

static void compare_generation(test_run *run, const golden_data *opened, const esp_model *model);

/* How a text is cut must not matter: token by token, batches smaller than pieces... */
static const struct {
    int piece, batch;
} ways[] = {{GOLDEN_MAX_IDS, 3}, {1, 0}, {7, 4}};

static void compare_model(test_run *run, esp_context *context, const char *name, const char *device)
{
    golden_data opened;
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
            compare_last(run, &opened, loaded.model, ways[i].batch);
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

static void compare_generation(test_run *run, const golden_data *opened, const esp_model *model)
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
                       esp_compute compute, const golden_data *opened, float *logits)
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
    golden_data opened;
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

static const test_case cases[] = {
    {"equals transformers", equals_transformers},
    {"compute bf16", compute_bf16},
};
TEST_MAIN(cases)
