/* The forms in which a model holds its sparse layers: which one is kept, that both give the same
 * results, what is counted, and what happens where sparse is required. Times are put into the table
 * by hand, so that the machine has no say. */
#include <math.h>

#include <espalier/prune.h>

#include "../kernel/fake_backend.h"
#include "golden_model.h"
#include "model/llama.h"

#define LINEARS (384 * (384 + 128 + 128 + 384) + 3 * 384 * 1024) /* of the one layer */
#define MANY 4                                                   /* tokens */

typedef struct bench_model {
    esp_context *context;
    esp_device *device;
    esp_checkpoint *checkpoint;
    golden_data golden;
} bench_model;

static bool open_pruned(test_run *run, bench_model *opened)
{
    static char folder[600];
    *opened = (bench_model){.context = test_context(run, 2)};
    esp_prune_options options = {0};
    esp_error error = {0};
    bool right = golden_open(&opened->golden, "b_gqa_head64") &&
                 esp_pattern_parse("64:2:8", &options.pattern, &error) == ESP_OK;
    const char *source = right ? golden_folder(run, opened->context, opened->golden.json) : "";
    static int made;
    snprintf(folder, sizeof folder, "%s-forms%d", source, ++made);
    right =
        right &&
        esp_prune_checkpoint(opened->context, source, folder, &options, NULL, &error) == ESP_OK &&
        esp_device_open(opened->context, "cpu", &opened->device, &error) == ESP_OK &&
        esp_checkpoint_open(opened->context, folder, &opened->checkpoint, &error) == ESP_OK;
    if (!right) {
        test_fail(run, __FILE__, __LINE__, "no model: %s", error.message);
    }
    return right;
}

static void close_pruned(test_run *run, bench_model *opened)
{
    esp_checkpoint_close(opened->checkpoint);
    esp_device_close(opened->device);
    golden_free(&opened->golden);
    test_context_free(run, opened->context);
}

/* Every layer's times at a token count: sparse kernels 10 us, dense ones as given. */
static void put_times(test_run *run, const bench_model *opened, int64_t tokens, double dense_us)
{
    const esp_model_options options = {.memory = ESP_MEMORY_SPARSE};
    const esp_plan_options both = {.forms = ESP_FORM_SPARSE | ESP_FORM_DENSE};
    const esp_model_call call = {.tokens = tokens};
    esp_model *model = NULL;
    esp_model_layer layer;
    REQUIRE_OK(esp_model_load(opened->device, opened->checkpoint, &options, &model, error));
    for (int64_t i = 0; esp_model_get_layer(model, i, call, &layer); i++) {
        esp_plan_candidate list[128];
        int count = 0;
        CHECK_OK(esp_plan_explain(opened->device, &layer.problem, &both, list, 128, &count, error));
        for (int k = 0; k < count; k++) {
            list[k].tuned_us = list[k].why_not != NULL ? 0 : list[k].runs_dense ? dense_us : 10;
        }
        CHECK_OK(esp_tuning_put(opened->device, &layer.problem, list, count, error));
    }
    esp_model_free(model);
}

/* MANY tokens at once, then one: logits of both, the last first. */
static esp_status feed(const esp_session *session_of, const bench_model *opened, float *logits,
                       esp_error *error)
{
    esp_session *session = (esp_session *)(uintptr_t)session_of;
    const int32_t *ids = opened->golden.ids;
    esp_session_truncate(session, 0);
    ESP_TRY(esp_session_feed(session, ids, MANY, logits, true, error));
    return esp_session_feed(session, ids + MANY, 1, logits + MANY * opened->golden.vocabulary,
                            false, error);
}

static void check_close(test_run *run, const float *found, const float *expected, int64_t count)
{
    double most = 0, worst = 0;
    for (int64_t i = 0; i < count; i++) {
        test_note_largest(&most, fabs((double)expected[i]));
        test_note_largest(&worst, fabs((double)found[i] - (double)expected[i]));
    }
    CHECK(most > 0);
    CHECK(worst <= 1e-5 * most);
}

static bool runs(const esp_model *model, int64_t tokens, const char *word, int layers)
{
    const char *names[8];
    const esp_model_call call = {.tokens = tokens};
    int counts[8], total = esp_model_kernels(model, call, names, counts, 8), found = 0;
    for (int i = 0; i < total && i < 8; i++) {
        found += strstr(names[i], word) != NULL ? counts[i] : 0;
    }
    return found == layers;
}

static void forms(test_run *run)
{
    static const struct {
        const char *name;
        esp_memory memory;
        double one_us, many_us; /* dense, at 1 and at MANY tokens */
        int64_t tokens;
        int64_t dense, two;              /* layers in the dense form only; in two */
        int dense_at_one, dense_at_many; /* layers that run dense; lm_head is one */
    } rows[] = {
        {"one form, sparse wins", ESP_MEMORY_ONE, 20, 20, 0, 0, 0, 1, 1},
        {"one form, dense wins", ESP_MEMORY_ONE, 5, 5, 0, 7, 0, 8, 8},
        {"one form, decoding counts", ESP_MEMORY_ONE, 20, 5, 0, 0, 0, 1, 1},
        {"one form, many tokens count", ESP_MEMORY_ONE, 20, 5, MANY, 7, 0, 8, 8},
        {"the sparse form", ESP_MEMORY_SPARSE, 5, 5, 0, 0, 0, 1, 1},
        {"two forms, sparse always wins", ESP_MEMORY_TWO, 20, 20, 0, 0, 0, 1, 1},
        {"two forms, each wins", ESP_MEMORY_TWO, 20, 5, 0, 0, 7, 1, 8},
    };
    bench_model opened;
    esp_model *model = NULL;
    esp_session *session = NULL;
    esp_model_info info;
    if (!open_pruned(run, &opened)) {
        return;
    }
    int64_t floats = (MANY + 1) * opened.golden.vocabulary;
    float *expected = calloc((size_t)floats, sizeof *expected);
    float *found = calloc((size_t)floats, sizeof *found);
    const esp_model_options plain = {.memory = ESP_MEMORY_SPARSE, .ignore_tuning = true};
    REQUIRE_OK(esp_model_load(opened.device, opened.checkpoint, &plain, &model, error));
    esp_model_get_info(model, &info);
    size_t sparse_bytes = info.linear_resident_bytes, dense_bytes = 2 * LINEARS;
    CHECK_INT(info.sparse_layers, 7);
    CHECK_OK(esp_session_create(model, MANY + 1, 0, &session, error));
    CHECK_OK(feed(session, &opened, expected, error));
    esp_session_free(session);
    esp_model_free(model);
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s", rows[i].name);
        esp_tuning_clear(opened.context);
        put_times(run, &opened, MANY, rows[i].many_us);
        put_times(run, &opened, 1, rows[i].one_us);
        const esp_model_options options = {.memory = rows[i].memory, .tokens = rows[i].tokens};
        model = NULL;
        session = NULL;
        REQUIRE_OK(esp_model_load(opened.device, opened.checkpoint, &options, &model, error));
        esp_model_get_info(model, &info);
        CHECK_INT(info.dense_form_layers, rows[i].dense);
        CHECK_INT(info.two_form_layers, rows[i].two);
        CHECK_INT(info.linear_resident_bytes, rows[i].two > 0     ? sparse_bytes + dense_bytes
                                              : rows[i].dense > 0 ? dense_bytes
                                                                  : sparse_bytes);
        CHECK(runs(model, 1, "dense", rows[i].dense_at_one));
        CHECK(runs(model, MANY, "dense", rows[i].dense_at_many));
        CHECK_OK(esp_session_create(model, MANY + 1, 0, &session, error));
        CHECK_OK(feed(session, &opened, found, error));
        check_close(run, found, expected, floats);
        esp_session_free(session);
        esp_model_free(model);
    }
    free(expected);
    free(found);
    close_pruned(run, &opened);
}

static void sparse_required(test_run *run)
{
    bench_model opened;
    esp_model *model = NULL;
    esp_session *session = NULL;
    if (!open_pruned(run, &opened)) {
        return;
    }
    float *logits = calloc((size_t)opened.golden.vocabulary, sizeof *logits);
    put_times(run, &opened, MANY, 5);
    put_times(run, &opened, 1, 20);
    esp_model_options options = {.require_sparse = true, .memory = ESP_MEMORY_TWO};
    REQUIRE_OK(esp_model_load(opened.device, opened.checkpoint, &options, &model, error));
    REQUIRE_OK(esp_session_create(model, 16, 0, &session, error));
    CHECK_OK(esp_session_feed(session, opened.golden.ids, 1, logits, false, error));
    esp_error why = {0};
    for (int i = 0; i < 2; i++) { /* a failed choice is not kept */
        CHECK_INT(esp_session_feed(session, opened.golden.ids, MANY, logits, false, &why),
                  ESP_UNSUPPORTED);
        CHECK_TEXT(why.code, "plan.dense_is_faster");
        CHECK(strstr(why.message, "model.layers.0.self_attn.q_proj: ") == why.message);
        CHECK(strstr(why.message, "5.0 us") != NULL && strstr(why.message, "10.0 us") != NULL);
        CHECK_INT(esp_session_length(session), 1);
    }
    CHECK_OK(esp_session_feed(session, opened.golden.ids, 1, logits, false, error));
    esp_session_free(session);
    esp_model_free(model);
    model = NULL;
    test_sub(run, "at the token count that matters");
    options.tokens = MANY;
    CHECK_FAILS(esp_model_load(opened.device, opened.checkpoint, &options, &model, error),
                ESP_UNSUPPORTED, "plan.dense_is_faster");
    CHECK(model == NULL);
    free(logits);
    close_pruned(run, &opened);
}

/* ---- a greedy kernel ---- */

#define MODEST "matmul_dense_any_any__ref_modest"
#define GREEDY "matmul_dense_any_any__ref_greedy"

static void greedy_is_fastest(test_run *run, const bench_model *opened, const esp_model *model)
{
    static const esp_model_call calls[] = {{.tokens = 1}, {.tokens = MANY}};
    esp_model_layer layer;
    for (int i = 0; i < 2; i++) {
        for (int64_t k = 0; esp_model_get_layer(model, k, calls[i], &layer); k++) {
            const esp_plan_candidate times[] = {{.kernel = MODEST, .tuned_us = 2},
                                                {.kernel = GREEDY, .tuned_us = 1}};
            CHECK_OK(esp_tuning_put(opened->device, &layer.problem, times, 2, error));
        }
    }
}

/* Times that come after a session was made never lead to a kernel that its workspace is too small
 * for; a session that is made afterwards has room for it. (The sanitizer looks.) */
static void times_change_under_a_session(test_run *run)
{
    static const fake fakes[] = {
        {"matmul_panel_any_any__ref_modest", "panel", 1000, 0, "it is off", false, 0},
        {MODEST, "dense", 10, 0, NULL, false, 0},
        {GREEDY, "dense", 20, 0, NULL, false, 1u << 20}};
    bench_model opened;
    fake_backend made;
    esp_model *model = NULL;
    esp_session *before = NULL, *after = NULL;
    if (!open_pruned(run, &opened)) {
        return;
    }
    esp_device_close(opened.device);
    opened.device = NULL;
    REQUIRE_OK(esp_device_open(opened.context, "ref", &opened.device, error));
    const esp_backend *real = opened.device->backend;
    fake_install(&made, opened.device, fakes, 3);
    int64_t floats = (MANY + 1) * opened.golden.vocabulary;
    float *first = calloc((size_t)floats, sizeof *first);
    float *second = calloc((size_t)floats, sizeof *second);
    REQUIRE_OK(esp_model_load(opened.device, opened.checkpoint, NULL, &model, error));
    REQUIRE_OK(esp_session_create(model, MANY + 1, 0, &before, error));
    greedy_is_fastest(run, &opened, model);
    REQUIRE_OK(esp_session_create(model, MANY + 1, 0, &after, error));
    CHECK_OK(feed(before, &opened, first, error));
    CHECK(before->workspace_bytes < 1u << 20);
    CHECK_TEXT(before->plans[0].plan.kernel->name, MODEST);
    CHECK_OK(feed(after, &opened, second, error));
    CHECK_TEXT(after->plans[0].plan.kernel->name, GREEDY);
    CHECK(memcmp(first, second, (size_t)floats * sizeof *first) == 0);
    esp_tuning_clear(opened.context); /* what was planned stays */
    CHECK_OK(feed(after, &opened, second, error));
    CHECK_TEXT(after->plans[0].plan.kernel->name, GREEDY);
    esp_session_free(before);
    esp_session_free(after);
    esp_model_free(model);
    free(first);
    free(second);
    opened.device->backend = real;
    close_pruned(run, &opened);
}

static void wrong_options(test_run *run)
{
    bench_model opened;
    esp_model *model = NULL;
    if (!open_pruned(run, &opened)) {
        return;
    }
    const esp_model_options rows[] = {{.memory = (esp_memory)3}, {.tokens = -1}};
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        CHECK_FAILS(esp_model_load(opened.device, opened.checkpoint, &rows[i], &model, error),
                    ESP_BAD_ARGUMENT, "model.bad_options");
        CHECK(model == NULL);
    }
    close_pruned(run, &opened);
}

static const test_case cases[] = {
    {"forms", forms},
    {"sparse_required", sparse_required},
    {"times_change_under_a_session", times_change_under_a_session},
    {"wrong_options", wrong_options},
};
TEST_MAIN(cases)
