/* Several sequences in step: logits and texts are those of each alone, whatever the lengths, and
 * each ends for its own reason. */
#include <math.h>

#include "golden_model.h"

#define MANY 5
#define NEW_TOKENS GOLDEN_NEW_TOKENS

/* A model with `MANY` sessions. */
typedef struct bench {
    golden_data opened;
    golden_model loaded;
    esp_session *sessions[MANY];
} bench;

static void bench_open(test_run *run, esp_context *context, const char *name, const char *device,
                       int64_t max_batch, bench *made)
{
    REQUIRE(golden_open(&made->opened, name));
    const char *folder = golden_folder(run, context, made->opened.json);
    REQUIRE_OK(golden_load(context, folder, device, ESP_COMPUTE_F32, &made->loaded, error));
    for (int i = 0; i < MANY; i++) {
        made->sessions[i] = NULL;
        REQUIRE_OK(esp_session_create(made->loaded.model, 200 + 13 * i, max_batch,
                                      &made->sessions[i], error));
    }
}

static void bench_close(bench *made)
{
    for (int i = 0; i < MANY; i++) {
        esp_session_free(made->sessions[i]);
    }
    golden_close(&made->loaded);
    golden_free(&made->opened);
}

/* Three steps together against the same tokens one by one: sequence i begins with 1 + 7 i tokens.
 */
static void compare_steps(test_run *run, esp_context *context, const char *name, const char *device,
                          double bound)
{
    bench at;
    test_sub(run, "%s on %s", name, device);
    bench_open(run, context, name, device, 0, &at);
    int64_t vocabulary = at.opened.vocabulary;
    float *together = calloc((size_t)(MANY * vocabulary), sizeof *together);
    float *alone = calloc((size_t)(MANY * 3 * vocabulary), sizeof *alone);
    REQUIRE(together != NULL && alone != NULL);
    for (int i = 0; i < MANY; i++) {
        int64_t begin = 1 + 3 * i;
        CHECK_OK(esp_session_feed(at.sessions[i], at.opened.ids, begin, NULL, false, error));
        for (int step = 0; step < 3; step++) {
            CHECK_OK(esp_session_feed(at.sessions[i], at.opened.ids + begin + step, 1,
                                      alone + (step * MANY + i) * vocabulary, false, error));
        }
        esp_session_truncate(at.sessions[i], begin);
    }
    double worst = 0, most = 0;
    for (int step = 0; step < 3; step++) {
        int32_t ids[MANY];
        for (int i = 0; i < MANY; i++) {
            ids[i] = at.opened.ids[1 + 3 * i + step];
        }
        CHECK_OK(esp_sessions_feed(at.sessions, MANY, ids, together, error));
        for (int64_t k = 0; k < MANY * vocabulary; k++) {
            double expected = (double)alone[step * MANY * vocabulary + k];
            test_note_largest(&most, fabs(expected));
            test_note_largest(&worst, fabs((double)together[k] - expected));
        }
    }
    CHECK(worst <= bound * most);
    CHECK_INT(esp_session_length(at.sessions[4]), 1 + 12 + 3);
    free(together);
    free(alone);
    bench_close(&at);
}

static void steps(test_run *run)
{
    esp_context *context = test_context(run, 2);
    static const char *const names[] = {"c_head_dim_biases", "d_llama3_rope", "j_qwen2"};
    for (int i = 0; i < ESP_COUNT(names); i++) {
        compare_steps(run, context, names[i], "ref", 0); /* the same sums in the same order */
        compare_steps(run, context, names[i], "cpu", 1e-5);
    }
    test_context_free(run, context);
}

/* ---- generation ---- */

typedef struct collected {
    int32_t ids[MANY][NEW_TOKENS];
    int64_t counts[MANY];
    int64_t limits[MANY]; /* tokens after which a sequence is ended from outside */
} collected;

static bool collect(void *user, int64_t index, int32_t id)
{
    collected *all = user;
    if (all->counts[index] < NEW_TOKENS) {
        all->ids[index][all->counts[index]] = id;
    }
    return ++all->counts[index] < all->limits[index];
}

static bool collect_first(void *user, int32_t id)
{
    return collect(user, 0, id);
}

/* On ref texts are the same to the last token; batches of 2 make groups of 2, 2 and 1. */
static void texts_alone_and_together(test_run *run)
{
    esp_context *context = test_context(run, 1);
    bench at;
    bench_open(run, context, "d_llama3_rope", "ref", 2, &at);
    collected together = {.limits = {99, 99, 4, 99, 99}};
    esp_prompt prompts[MANY];
    esp_generation results[MANY];
    esp_sampling sampling = {.temperature = 1, .seed = 11};
    for (int i = 0; i < MANY; i++) {
        prompts[i] = (esp_prompt){at.sessions[i], at.opened.ids, 2 + 5 * i};
    }
    CHECK_OK(esp_generate_many(prompts, MANY, 9, &sampling, collect, &together, results, error));
    for (int i = 0; i < MANY; i++) {
        collected one = {.limits = {together.limits[i]}};
        esp_generation result;
        esp_sampling own = {.temperature = 1, .seed = sampling.seed + (uint64_t)i};
        test_sub(run, "sequence %d", i);
        esp_session_truncate(at.sessions[i], 0);
        CHECK_OK(esp_generate(at.sessions[i], at.opened.ids, 2 + 5 * i, 9, &own, collect_first,
                              &one, &result, error));
        CHECK_INT(results[i].new_tokens, result.new_tokens);
        CHECK_INT(results[i].stop, result.stop);
        CHECK_INT(results[i].prompt_tokens, 2 + 5 * i);
        CHECK_INT(together.counts[i], one.counts[0]);
        CHECK(memcmp(together.ids[i], one.ids[0], sizeof one.ids[0]) == 0);
    }
    CHECK_INT(results[2].stop, ESP_STOP_CALLBACK);
    CHECK_INT(results[2].new_tokens, 4);
    test_sub(run, "no new tokens");
    for (int i = 0; i < MANY; i++) {
        esp_session_truncate(at.sessions[i], 0);
    }
    CHECK_OK(esp_generate_many(prompts, MANY, 0, NULL, NULL, NULL, results, error));
    CHECK_INT(results[4].new_tokens, 0);
    bench_close(&at);
    test_context_free(run, context);
}

/* The stored continuation, five times at once on cpu; one session is too small for all of it. */
static void equals_transformers(test_run *run)
{
    esp_context *context = test_context(run, 2);
    bench at;
    int32_t expected[NEW_TOKENS];
    bench_open(run, context, "d_llama3_rope", "cpu", 0, &at);
    golden_ids(json_object_get(at.opened.json, "continuation"), expected, NEW_TOKENS);
    esp_session_free(at.sessions[3]);
    at.sessions[3] = NULL;
    REQUIRE_OK(esp_session_create(at.loaded.model, at.opened.count + 5, 0, &at.sessions[3], error));
    collected together = {.limits = {99, 99, 99, 99, 99}};
    esp_prompt prompts[MANY];
    esp_generation results[MANY];
    for (int i = 0; i < MANY; i++) {
        prompts[i] = (esp_prompt){at.sessions[i], at.opened.ids, at.opened.count};
    }
    CHECK_OK(
        esp_generate_many(prompts, MANY, NEW_TOKENS, NULL, collect, &together, results, error));
    for (int i = 0; i < MANY; i++) {
        int64_t count = i == 3 ? 6 : NEW_TOKENS;
        test_sub(run, "sequence %d", i);
        CHECK_INT(results[i].stop, i == 3 ? ESP_STOP_CONTEXT : ESP_STOP_LIMIT);
        CHECK_INT(together.counts[i], count);
        CHECK(memcmp(together.ids[i], expected, (size_t)count * sizeof *expected) == 0);
    }
    bench_close(&at);
    test_context_free(run, context);
}

static void refused_calls(test_run *run)
{
    esp_context *context = test_context(run, 1);
    bench at, other;
    int32_t ids[MANY] = {1, 2, 3, 4, 5};
    bench_open(run, context, "a_tiny_mha", "cpu", 3, &at);
    bench_open(run, context, "a_tiny_mha", "cpu", 3, &other);
    esp_session *twice[] = {at.sessions[0], at.sessions[1], at.sessions[0]};
    esp_session *two_models[] = {at.sessions[0], other.sessions[0]};
    CHECK_FAILS(esp_sessions_feed(twice, 3, ids, NULL, error), ESP_BAD_ARGUMENT,
                "session.not_apart");
    CHECK_FAILS(esp_sessions_feed(two_models, 2, ids, NULL, error), ESP_BAD_ARGUMENT,
                "session.not_apart");
    CHECK_FAILS(esp_sessions_feed(at.sessions, 4, ids, NULL, error), ESP_BAD_ARGUMENT,
                "session.bad_batch");
    CHECK_FAILS(esp_sessions_feed(at.sessions, 0, ids, NULL, error), ESP_BAD_ARGUMENT,
                "session.bad_batch");
    ids[1] = 101;
    CHECK_FAILS(esp_sessions_feed(at.sessions, 2, ids, NULL, error), ESP_BAD_ARGUMENT,
                "session.bad_token");
    CHECK_INT(esp_session_length(at.sessions[0]), 0);
    CHECK_FAILS(esp_generate_many(NULL, 0, 1, NULL, NULL, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "session.empty");
    bench_close(&at);
    bench_close(&other);
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"steps", steps},
    {"texts alone and together", texts_alone_and_together},
    {"equals transformers", equals_transformers},
    {"refused calls", refused_calls},
};
TEST_MAIN(cases)
