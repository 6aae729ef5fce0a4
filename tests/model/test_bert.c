/* The BERT encoder against transformers (goldens of tools/golden/make_bert.py), on both devices of
 * the host: every layer's output, pooled vectors, and that it does not matter which texts run
 * together. */
#include <math.h>

#include "golden_model.h"
#include "model/bert.h"

#define BOUND 1e-4 /* largest |difference| / largest |expected|, f32 */
#define MAX_TEXTS 8

static const char *const devices[] = {"ref", "cpu"};
static const char *const names[] = {"bert/a_heads_of_32", "bert/b_heads_of_80_relu",
                                    "bert/c_old_names_gelu_new", "bert/d_hidden_1024",
                                    "bert/e_silu"};

/* A description with its texts and expected outputs. */
typedef struct golden_texts {
    json_t *json;
    float *outputs;
    size_t output_floats;
    int32_t ids[GOLDEN_MAX_IDS];
    int64_t lengths[MAX_TEXTS], texts, tokens, hidden;
} golden_texts;

static bool texts_open(golden_texts *opened, const char *name)
{
    *opened = (golden_texts){.json = golden_json(name)};
    opened->outputs = golden_outputs(name, &opened->output_floats);
    const json_t *texts = json_object_get(opened->json, "texts");
    opened->texts = (int64_t)json_array_size(texts);
    for (int64_t i = 0; i < ESP_MIN(opened->texts, MAX_TEXTS); i++) {
        opened->lengths[i] =
            golden_ids(json_array_get(texts, (size_t)i), opened->ids + opened->tokens,
                       GOLDEN_MAX_IDS - opened->tokens);
        opened->tokens += opened->lengths[i];
    }
    opened->hidden =
        json_integer_value(json_object_get(json_object_get(opened->json, "config"), "hidden_size"));
    return opened->outputs != NULL && opened->texts > 1 && opened->texts <= MAX_TEXTS &&
           opened->tokens <= GOLDEN_MAX_IDS;
}

static void texts_free(golden_texts *opened)
{
    json_decref(opened->json);
    free(opened->outputs);
}

typedef struct watcher {
    const golden_texts *golden;
    int64_t first; /* token of the batch that is shown */
    double worst;
    int64_t compared;
} watcher;

/* Rows of an output in the stored order: embed, layers, then the pooled ones. */
static const float *find_output(const golden_texts *opened, const char *name)
{
    const json_t *outputs = json_object_get(opened->json, "outputs");
    const json_t *pooled = json_object_get(opened->json, "pooled");
    int64_t columns = (int64_t)json_array_size(json_object_get(opened->json, "columns")), at = 0;
    for (size_t i = 0; i < json_array_size(outputs); i++, at += columns * opened->hidden) {
        if (strcmp(json_string_value(json_array_get(outputs, i)), name) == 0) {
            return opened->outputs + at;
        }
    }
    for (size_t i = 0; i < json_array_size(pooled); i++, at += opened->texts * opened->hidden) {
        if (strcmp(json_string_value(json_array_get(pooled, i)), name) == 0) {
            return opened->outputs + at;
        }
    }
    return NULL;
}

static double largest(const float *values, int64_t count)
{
    double most = 0;
    for (int64_t i = 0; i < count; i++) {
        test_note_largest(&most, fabs((double)values[i]));
    }
    return most;
}

static void watch(void *user, const char *name, const float *data, int64_t features, int64_t tokens)
{
    watcher *watching = user;
    const golden_texts *opened = watching->golden;
    const json_t *columns = json_object_get(opened->json, "columns");
    const float *expected = find_output(opened, name);
    if (expected == NULL || features != opened->hidden) {
        watching->worst = INFINITY;
        return;
    }
    double most = largest(expected, (int64_t)json_array_size(columns) * features);
    for (size_t row = 0; row < json_array_size(columns); row++) {
        int64_t token = json_integer_value(json_array_get(columns, row)) - watching->first;
        for (int64_t i = 0; token >= 0 && token < tokens && i < features; i++) {
            double want = (double)expected[(int64_t)row * features + i];
            test_note_largest(&watching->worst,
                              fabs((double)data[i * tokens + token] - want) / most);
            watching->compared++;
        }
    }
}

static void compare_pooled(test_run *run, const golden_texts *opened, const char *name,
                           const float *vectors, double *worst)
{
    const float *expected = find_output(opened, name);
    int64_t count = opened->texts * opened->hidden;
    double most = largest(expected, count), difference = 0;
    for (int64_t i = 0; i < count; i++) {
        test_note_largest(&difference, fabs((double)vectors[i] - (double)expected[i]) / most);
    }
    CHECK(difference <= BOUND);
    *worst = fmax(*worst, difference);
}

/* Each text alone or all of them together: the same columns, the same vectors. */
static void embed_and_compare(test_run *run, const golden_texts *opened, esp_model *model,
                              bool together, double *worst)
{
    static const char *const pooled[] = {"mean", "cls", "max"};
    esp_embedder *embedder = NULL;
    float *vectors = calloc((size_t)(opened->texts * opened->hidden), sizeof *vectors);
    REQUIRE(vectors != NULL);
    watcher watching = {.golden = opened};
    for (int pooling = 0; pooling < ESP_COUNT(pooled); pooling++) {
        model->info.pooling = (esp_pooling)pooling;
        REQUIRE_OK(esp_embedder_create(model, 0, &embedder, error));
        esp_embedder_observe(embedder, watch, &watching);
        watching.first = 0;
        for (int64_t i = 0; i < opened->texts; i += together ? opened->texts : 1) {
            CHECK_OK(esp_embed_ids(embedder, opened->ids + watching.first, opened->lengths + i,
                                   together ? opened->texts : 1, vectors + i * opened->hidden,
                                   error));
            watching.first += opened->lengths[i];
        }
        compare_pooled(run, opened, pooled[pooling], vectors, worst);
        esp_embedder_free(embedder);
        embedder = NULL;
    }
    int64_t stored = (int64_t)opened->output_floats - 3 * opened->texts * opened->hidden;
    CHECK_INT(watching.compared, 3 * stored);
    CHECK(watching.worst <= BOUND);
    *worst = fmax(*worst, watching.worst);
    free(vectors);
}

static void compare_model(test_run *run, esp_context *context, const char *name, const char *device)
{
    golden_texts opened;
    golden_model loaded;
    double worst = 0;
    test_sub(run, "%s on %s", name, device);
    REQUIRE(texts_open(&opened, name));
    const char *folder = golden_folder(run, context, opened.json);
    CHECK_OK(golden_load(context, folder, device, ESP_COMPUTE_F32, &loaded, error));
    if (loaded.model != NULL) {
        CHECK_INT(loaded.model->info.kind, ESP_MODEL_ENCODER);
        CHECK_INT(loaded.model->info.embedding_size, opened.hidden);
        embed_and_compare(run, &opened, loaded.model, true, &worst);
        embed_and_compare(run, &opened, loaded.model, false, &worst);
        printf("golden %s on %s: largest relative difference %.1e\n", name, device, worst);
    }
    golden_close(&loaded);
    texts_free(&opened);
}

static void equals_transformers(test_run *run)
{
    esp_context *context = test_context(run, 2);
    for (int i = 0; i < ESP_COUNT(names); i++) {
        for (int k = 0; k < ESP_COUNT(devices); k++) {
            compare_model(run, context, names[i], devices[k]);
        }
    }
    test_context_free(run, context);
}

/* ---- batches ---- */

/* What texts run beside a text, how large a batch may be and how many threads there are is nothing
 * to its vector but the rounding of other kernels. */
static void batches_do_not_matter(test_run *run)
{
    golden_texts opened;
    REQUIRE(texts_open(&opened, "bert/a_heads_of_32"));
    int64_t texts = 40, tokens = 0, lengths[40];
    int32_t ids[40 * 23];
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int64_t i = 0; i < texts; i++) {
        lengths[i] = 1 + (int64_t)esp_random_below(&random, 23);
        for (int64_t k = 0; k < lengths[i]; k++) {
            ids[tokens++] = (int32_t)esp_random_below(&random, 101);
        }
    }
    size_t floats = (size_t)(texts * opened.hidden);
    float *first = calloc(floats, sizeof *first), *other = calloc(floats, sizeof *other);
    static const struct {
        int threads, batch;
    } ways[] = {{1, 64}, {3, 100}, {2, 0}};
    for (int i = 0; i < ESP_COUNT(ways); i++) {
        esp_context *context = test_context(run, ways[i].threads);
        golden_model loaded;
        esp_embedder *embedder = NULL;
        test_sub(run, "batches of %d by %d threads", ways[i].batch, ways[i].threads);
        const char *folder = golden_folder(run, context, opened.json);
        REQUIRE_OK(golden_load(context, folder, "cpu", ESP_COMPUTE_F32, &loaded, error));
        loaded.model->info.normalizes = true;
        REQUIRE_OK(esp_embedder_create(loaded.model, ways[i].batch, &embedder, error));
        CHECK_OK(esp_embed_ids(embedder, ids, lengths, texts, i == 0 ? first : other, error));
        double squares = 0;
        for (int64_t k = 0; k < opened.hidden; k++) {
            squares += (double)first[k] * (double)first[k];
        }
        CHECK(fabs(squares - 1) < 1e-6);
        for (size_t k = 0; i > 0 && k < floats; k++) {
            if (fabs((double)first[k] - (double)other[k]) > 1e-5) {
                test_fail(run, __FILE__, __LINE__, "[%zu]: %.9g and %.9g", k, (double)first[k],
                          (double)other[k]);
                break;
            }
        }
        esp_embedder_free(embedder);
        golden_close(&loaded);
        test_context_free(run, context);
    }
    free(first);
    free(other);
    texts_free(&opened);
}

/* ---- wrong calls ---- */

static void refused_calls(test_run *run)
{
    golden_texts opened;
    golden_model loaded;
    esp_embedder *embedder = NULL;
    esp_session *session = NULL;
    esp_context *context = test_context(run, 1);
    float vectors[96];
    int32_t ids[64] = {1, 101, -1};
    int64_t lengths[] = {0, 65, 2};
    REQUIRE(texts_open(&opened, "bert/a_heads_of_32"));
    const char *folder = golden_folder(run, context, opened.json);
    REQUIRE_OK(golden_load(context, folder, "cpu", ESP_COMPUTE_F32, &loaded, error));
    CHECK_FAILS(esp_session_create(loaded.model, 8, 0, &session, error), ESP_BAD_ARGUMENT,
                "session.no_decoder");
    CHECK_FAILS(esp_embedder_create(loaded.model, -1, &embedder, error), ESP_BAD_ARGUMENT,
                "embed.bad_batch");
    REQUIRE_OK(esp_embedder_create(loaded.model, 0, &embedder, error));
    CHECK_FAILS(esp_embed_ids(embedder, ids, lengths, 1, vectors, error), ESP_BAD_ARGUMENT,
                "embed.bad_length");
    CHECK_FAILS(esp_embed_ids(embedder, ids, lengths + 1, 1, vectors, error), ESP_BAD_ARGUMENT,
                "embed.bad_length");
    CHECK_FAILS(esp_embed_ids(embedder, ids, lengths + 2, 1, vectors, error), ESP_BAD_ARGUMENT,
                "embed.bad_token");
    CHECK_FAILS(esp_embed_ids(embedder, ids + 2, lengths + 2, 1, vectors, error), ESP_BAD_ARGUMENT,
                "embed.bad_token");
    esp_embedder_free(embedder);
    golden_close(&loaded);
    texts_free(&opened);

    json_t *decoder = golden_json("a_tiny_mha");
    folder = golden_folder(run, context, decoder);
    embedder = NULL;
    REQUIRE_OK(golden_load(context, folder, "cpu", ESP_COMPUTE_F32, &loaded, error));
    CHECK_FAILS(esp_embedder_create(loaded.model, 0, &embedder, error), ESP_BAD_ARGUMENT,
                "embed.no_encoder");
    CHECK(embedder == NULL);
    golden_close(&loaded);
    json_decref(decoder);
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"equals transformers", equals_transformers},
    {"batches do not matter", batches_do_not_matter},
    {"refused calls", refused_calls},
};
TEST_MAIN(cases)
