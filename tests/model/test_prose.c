/* The shipped model: its own expected.json (made with transformers by tools/prose/evaluate.py), and
 * the first windows of its held-out text (tools/golden/make_prose.py). */
#include <math.h>

#include "golden_model.h"

#define FOLDER ESP_SOURCE_DIR "/models/prose"
#define MAX_IDS 4096

static json_t *read_json(const char *path)
{
    return json_load_file(path, JSON_ALLOW_NUL, NULL);
}

static bool present(test_run *run, const char *file)
{
    if (esp_path_exists(file)) {
        return true;
    }
    test_skip(run, "%s is not there", file);
    return false;
}

static void check_ids(test_run *run, const esp_tokenizer *tokenizer, const json_t *text,
                      bool special, const json_t *expected)
{
    int32_t *ids = NULL;
    int64_t count = 0;
    CHECK_OK(esp_tokenizer_encode(tokenizer, json_string_value(text), json_string_length(text),
                                  special, &ids, &count, error));
    CHECK_INT(count, json_array_size(expected));
    for (int64_t i = 0; i < ESP_MIN(count, (int64_t)json_array_size(expected)); i++) {
        CHECK_INT(ids[i], json_integer_value(json_array_get(expected, (size_t)i)));
    }
    esp_ids_free(tokenizer, ids);
}

static void strings(test_run *run)
{
    if (!present(run, FOLDER "/expected.json")) {
        return;
    }
    esp_context *context = test_context(run, 1);
    esp_tokenizer *tokenizer = NULL;
    json_t *json = read_json(FOLDER "/expected.json");
    const json_t *list = json_object_get(json, "strings");
    CHECK(json_array_size(list) > 0);
    CHECK_OK(esp_tokenizer_open(context, FOLDER, &tokenizer, error));
    for (size_t i = 0; i < json_array_size(list) && tokenizer != NULL; i++) {
        const json_t *entry = json_array_get(list, i), *text = json_object_get(entry, "text");
        test_sub(run, "string %zu", i);
        check_ids(run, tokenizer, text, false, json_object_get(entry, "ids"));
        check_ids(run, tokenizer, text, true, json_object_get(entry, "ids_with_bos"));
    }
    esp_tokenizer_close(tokenizer);
    json_decref(json);
    test_context_free(run, context);
}

/* The whole held-out text gives as many tokens as it gave when the model was judged. */
static void token_count(test_run *run)
{
    if (!present(run, FOLDER "/expected.json")) {
        return;
    }
    esp_context *context = test_context(run, 1);
    esp_tokenizer *tokenizer = NULL;
    int32_t *ids = NULL;
    int64_t count = 0;
    char *text = NULL;
    size_t length = 0;
    json_t *json = read_json(FOLDER "/expected.json");
    const json_t *evaluation = json_object_get(json, "evaluation");
    CHECK_OK(esp_tokenizer_open(context, FOLDER, &tokenizer, error));
    CHECK_OK(esp_file_read_all(context, FOLDER "/heldout.txt", 1 << 20, "too_large", &text, &length,
                               error));
    CHECK_INT(length, json_integer_value(json_object_get(evaluation, "bytes")));
    CHECK_OK(esp_tokenizer_encode(tokenizer, text, length, false, &ids, &count, error));
    CHECK_INT(count, json_integer_value(json_object_get(evaluation, "tokens")));
    esp_ids_free(tokenizer, ids);
    esp_release(context, text);
    esp_tokenizer_close(tokenizer);
    json_decref(json);
    test_context_free(run, context);
}

/* ---- the held-out text ---- */

typedef struct watcher {
    const json_t *golden;
    double worst;
    int64_t compared;
} watcher;

static const json_t *find_state(const watcher *watching, const char *name)
{
    const json_t *states = json_object_get(watching->golden, "hidden_states");
    size_t count = json_array_size(states), index = count;
    if (strcmp(name, "embed") == 0) {
        index = 0;
    } else if (strcmp(name, "norm") == 0) {
        index = count - 1;
    } else if (strncmp(name, "layer.", 6) ==
               0) { /* behind the last layer only the norm is stored */
        index = (size_t)strtol(name + 6, NULL, 10) + 1;
        index = index + 1 == count ? count : index;
    }
    return json_array_get(states, index);
}

static void watch(void *user, const char *name, const float *data, int64_t features, int64_t tokens)
{
    watcher *watching = user;
    const json_t *state = find_state(watching, name);
    const json_t *positions = json_object_get(watching->golden, "positions");
    const json_t *values = json_object_get(state, "values");
    int64_t width = json_integer_value(json_object_get(watching->golden, "features"));
    const json_t *largest = json_object_get(state, "largest");
    size_t at = 0;
    for (size_t k = 0; state != NULL && k < json_array_size(positions); k++) {
        double most = json_number_value(json_array_get(largest, k));
        int64_t token = json_integer_value(json_array_get(positions, k));
        for (int64_t i = 0; i < ESP_MIN(width, features) && token < tokens; i++) {
            double expected = json_number_value(json_array_get(values, at++));
            double difference = fabs((double)data[i * tokens + token] - expected) / most;
            test_note_largest(&watching->worst, difference);
            watching->compared++;
        }
    }
}

static double nats_of(const float *logits, int64_t vocabulary, const int32_t *targets,
                      int64_t count)
{
    double nats = 0;
    for (int64_t t = 0; t < count; t++) {
        const float *row = logits + t * vocabulary;
        double most = -INFINITY, sum = 0;
        for (int64_t i = 0; i < vocabulary; i++) {
            test_note_largest(&most, (double)row[i]);
        }
        for (int64_t i = 0; i < vocabulary; i++) {
            sum += exp((double)row[i] - most);
        }
        nats += most + log(sum) - (double)row[targets[t]];
    }
    return nats;
}

static void score_windows(test_run *run, const esp_model *model, const json_t *golden)
{
    static int32_t ids[MAX_IDS];
    int64_t size = json_integer_value(json_object_get(golden, "window"));
    int64_t count = golden_ids(json_object_get(golden, "ids"), ids, MAX_IDS);
    const json_t *nats = json_object_get(golden, "nats");
    esp_model_info info;
    esp_session *session = NULL;
    esp_model_get_info(model, &info);
    REQUIRE(count == size * (int64_t)json_array_size(nats) && count <= MAX_IDS);
    float *logits = calloc((size_t)(size * info.vocabulary), sizeof *logits);
    REQUIRE(logits != NULL);
    REQUIRE_OK(esp_session_create(model, size, 0, &session, error));
    watcher watching = {.golden = golden};
    esp_session_observe(session, watch, &watching);
    for (size_t window = 0; window < json_array_size(nats); window++) {
        test_sub(run, "window %zu", window);
        const int32_t *text = ids + (int64_t)window * size;
        esp_session_truncate(session, 0);
        int32_t given[MAX_IDS];
        given[0] = info.bos;
        memcpy(given + 1, text, (size_t)(size - 1) * sizeof *given);
        watching.worst = 0;
        CHECK_OK(esp_session_feed(session, given, size, logits, true, error));
        esp_session_observe(session, NULL, NULL); /* only the first window is stored by layer */
        double expected = json_number_value(json_array_get(nats, window));
        double found = nats_of(logits, info.vocabulary, text, size);
        CHECK(fabs(found - expected) <= 1e-5 * expected);
        CHECK(watching.worst <= 1e-4);
        if (window == 0) {
            printf("golden prose: largest relative difference %.1e, nats %.4f, expected %.4f\n",
                   watching.worst, found, expected);
            CHECK(watching.compared > 0);
        }
    }
    esp_session_free(session);
    free(logits);
}

/* CRC-32 (IEEE), bit by bit: it only names the model that a golden file was made for. */
static uint32_t crc32_of_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    uint32_t crc = 0xffffffffu;
    static unsigned char block[1 << 16];
    uint32_t table[256];
    for (uint32_t i = 0; i < 256; i++) {
        table[i] = i;
        for (int k = 0; k < 8; k++) {
            table[i] = table[i] >> 1 ^ (0xedb88320u & (0u - (table[i] & 1)));
        }
    }
    size_t count;
    while (file != NULL && (count = fread(block, 1, sizeof block, file)) > 0) {
        for (size_t i = 0; i < count; i++) {
            crc = crc >> 8 ^ table[(crc ^ block[i]) & 0xff];
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    return ~crc;
}

static void heldout(test_run *run)
{
    if (!present(run, FOLDER "/model.safetensors")) {
        return;
    }
    esp_context *context = test_context(run, 2);
    json_t *golden = read_json(ESP_SOURCE_DIR "/tests/golden/prose/windows.json");
    golden_model loaded;
    CHECK(golden != NULL);
    test_sub(run, "windows.json belongs to this model");
    CHECK_INT(crc32_of_file(FOLDER "/model.safetensors"),
              json_integer_value(json_object_get(golden, "model_crc32")));
    test_sub(run, "load");
    CHECK_OK(golden_load(context, FOLDER, "cpu", ESP_COMPUTE_F32, &loaded, error));
    if (loaded.model != NULL && golden != NULL) {
        score_windows(run, loaded.model, golden);
    }
    golden_close(&loaded);
    json_decref(golden);
    test_context_free(run, context);
}

/* ---- greedy continuations ---- */

typedef struct collected {
    const json_t *expected;
    size_t count, wrong;
} collected;

static bool compare_id(void *user, int32_t id)
{
    collected *all = user;
    const json_t *expected = json_array_get(all->expected, all->count++);
    all->wrong += expected == NULL || json_integer_value(expected) != id;
    return true;
}

static void check_first_logits(test_run *run, esp_session *session, const int32_t *ids,
                               int64_t count, int64_t vocabulary, const json_t *expected)
{
    float *logits = calloc((size_t)vocabulary, sizeof *logits);
    REQUIRE(logits != NULL);
    CHECK(json_array_size(expected) > 0);
    CHECK_OK(esp_session_feed(session, ids, count, logits, false, error));
    for (size_t i = 0; i < json_array_size(expected); i++) {
        CHECK(fabs((double)logits[i] - json_number_value(json_array_get(expected, i))) < 1e-3);
    }
    esp_session_truncate(session, 0);
    free(logits);
}

static void continue_greedily(test_run *run, const esp_model *model, const json_t *entry)
{
    int32_t ids[256];
    esp_session *session = NULL;
    esp_model_info info;
    esp_generation result = {0};
    esp_model_get_info(model, &info);
    int64_t count = golden_ids(json_object_get(entry, "ids"), ids, 256);
    collected all = {.expected = json_object_get(entry, "continuation")};
    int64_t wanted = (int64_t)json_array_size(all.expected);
    REQUIRE(count > 0 && count <= 256 && wanted > 0);
    REQUIRE_OK(esp_session_create(model, count + wanted, 0, &session, error));
    check_first_logits(run, session, ids, count, info.vocabulary,
                       json_object_get(entry, "first_logits_of_ids_0_to_15"));
    CHECK_OK(esp_generate(session, ids, count, wanted, NULL, compare_id, &all, &result, error));
    CHECK_INT(all.wrong, 0);
    CHECK(result.stop == ESP_STOP_EOS || result.new_tokens == wanted);
    esp_session_free(session);
}

static void greedy(test_run *run)
{
    if (!present(run, FOLDER "/expected.json")) {
        return;
    }
    esp_context *context = test_context(run, 2);
    json_t *json = read_json(FOLDER "/expected.json");
    const json_t *list = json_object_get(json, "greedy");
    golden_model loaded;
    CHECK(json_array_size(list) > 0);
    CHECK_OK(golden_load(context, FOLDER, "cpu", ESP_COMPUTE_F32, &loaded, error));
    for (size_t i = 0; i < json_array_size(list) && loaded.model != NULL; i++) {
        const json_t *entry = json_array_get(list, i);
        test_sub(run, "%s ...", json_string_value(json_object_get(entry, "prompt")));
        continue_greedily(run, loaded.model, entry);
    }
    golden_close(&loaded);
    json_decref(json);
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"strings", strings},
    {"tokens of the held-out text", token_count},
    {"held-out text", heldout},
    {"greedy continuations", greedy},
};
TEST_MAIN(cases)
