/* The n-th allocation fails, for every n, once or with all behind it, on the whole way of a model:
 * prune, replace, convert, verify, load, evaluate, generate. Each failure must be an error that
 * says so, with nothing leaked, nothing changed, and what was open still usable: the same context,
 * device and model serve all attempts. A failure that is survived must give the right result. */
#include <espalier/shrink.h>
#include <espalier/turn.h>

#include "faults/injector.h"
#include "faults/small_model.h"

int __wrap_fsync(int descriptor);

/* Memory is what fails here; waiting for a disk would only take time. */
int __wrap_fsync(int descriptor)
{
    (void)descriptor;
    return 0;
}

static const char text[] = "A small text, of which each byte is a token. \xc3\xa9\xff";

typedef struct subject {
    test_run *run;
    small_place at;
    esp_context *context;
    esp_device *device;
    esp_checkpoint *checkpoint;
    esp_tokenizer *tokenizer;
    esp_model *model;
} subject;

static struct {
    long once, persistent, json_once, json_persistent, survived, leaks;
} totals;

/* ---- the stages: each gives back what it made, as a number that must be the same every time ----
 */

typedef struct stage {
    const char *name;
    /* Returns the status; *sum is the result's; called after `reset`, armed. */
    esp_status (*attempt)(subject *on, uint64_t *sum, esp_error *error);
    void (*reset)(subject *on);
    bool writes; /* into target */
} stage;

static esp_status make_context(subject *on, uint64_t *sum, esp_error *error)
{
    esp_context *context = NULL;
    (void)on;
    esp_status status = injector_context(3, &context, error);
    if (status != ESP_OK) {
        *sum = context != NULL ? 99 : 0;
        return status;
    }
    *sum = (uint64_t)esp_context_threads(context);
    esp_context_free(context);
    return ESP_OK;
}

static esp_status prune(subject *on, uint64_t *sum, esp_error *error)
{
    esp_prune_summary summary = {.layers = -1};
    esp_prune_options options = small_options(on->run, true);
    esp_status status =
        esp_prune_checkpoint(on->context, on->at.source, on->at.target, &options, &summary, error);
    *sum = status == ESP_OK ? (uint64_t)summary.pruned_layers : summary.layers == -1 ? 0 : 99;
    return status;
}

static esp_status shrink_by(subject *on, const esp_calibration_options *calibration, uint64_t *sum,
                            esp_error *error)
{
    esp_shrink_summary summary = {.layers = -1};
    const esp_shrink_options options = {
        .hidden = 0.5, .multiple = 4, .calibration = calibration, .force = true};
    esp_status status =
        esp_shrink_checkpoint(on->device, on->at.source, on->at.target, &options, &summary, error);
    *sum = status == ESP_OK ? (uint64_t)summary.hidden_after : summary.layers == -1 ? 0 : 99;
    return status;
}

static esp_status shrink(subject *on, uint64_t *sum, esp_error *error)
{
    return shrink_by(on, NULL, sum, error);
}

static esp_status shrink_by_outputs(subject *on, uint64_t *sum, esp_error *error)
{
    static char words[200];
    for (size_t i = 0; i < sizeof words; i++) {
        words[i] = (char)('a' + i * i % 26);
    }
    const esp_calibration_options calibration = {.text = words, .text_bytes = sizeof words};
    return shrink_by(on, &calibration, sum, error);
}

static esp_status turn(subject *on, uint64_t *sum, esp_error *error)
{
    static const char words[] =
        "a text that is long enough for every layer to read a few tokens of "
        "it, and not so long that each of the runs takes seconds, which a "
        "run for every allocation would make hours of";
    const esp_calibration_options calibration = {.text = words, .text_bytes = sizeof words - 1};
    const esp_turn_options options = {.calibration = &calibration, .force = true};
    esp_turn_summary summary = {.readers = -1};
    esp_status status =
        esp_turn_checkpoint(on->device, on->at.source, on->at.target, &options, &summary, error);
    *sum = status == ESP_OK ? (uint64_t)summary.readers : summary.readers == -1 ? 0 : 99;
    return status;
}

static esp_status to_dense(subject *on, uint64_t *sum, esp_error *error)
{
    esp_prune_options options = {.force = true};
    *sum = 0;
    return esp_convert_checkpoint(on->context, on->at.compressed, on->at.target, ESP_CONVERT_DENSE,
                                  &options, NULL, error);
}

static esp_status prune_into_shards(subject *on, uint64_t *sum, esp_error *error)
{
    esp_prune_options options = small_options(on->run, true);
    options.shard_bytes = 1500;
    *sum = 0;
    return esp_prune_checkpoint(on->context, on->at.source, on->at.target, &options, NULL, error);
}

static esp_status to_bitmask(subject *on, uint64_t *sum, esp_error *error)
{
    esp_prune_options options = {.force = true};
    *sum = 0;
    return esp_convert_checkpoint(on->context, on->at.compressed, on->at.target,
                                  ESP_CONVERT_SPARSE_BITMASK, &options, NULL, error);
}

static esp_status from_bitmask(subject *on, uint64_t *sum, esp_error *error)
{
    esp_prune_options options = {.force = true};
    *sum = 0;
    return esp_convert_checkpoint(on->context, on->at.bitmask, on->at.target, ESP_CONVERT_DENSE,
                                  &options, NULL, error);
}

static esp_status verify(subject *on, uint64_t *sum, esp_error *error)
{
    esp_verify_options options = {0};
    esp_verify_summary summary = {.tensors = -1};
    esp_status status =
        esp_verify_checkpoint(on->context, on->at.compressed, &options, &summary, error);
    *sum = status == ESP_OK        ? (uint64_t)(summary.zeros * 1000 + summary.checksums)
           : summary.tensors == -1 ? 0
                                   : 99;
    return status;
}

static esp_status open_tokenizer(subject *on, uint64_t *sum, esp_error *error)
{
    esp_tokenizer *tokenizer = NULL;
    int32_t *ids = NULL;
    int64_t count = -1;
    esp_status status = esp_tokenizer_open(on->context, on->at.compressed, &tokenizer, error);
    *sum = status != ESP_OK && tokenizer != NULL ? 99 : 0;
    if (status == ESP_OK) {
        status = esp_tokenizer_encode(tokenizer, text, sizeof text - 1, true, &ids, &count, error);
        *sum = status == ESP_OK ? (uint64_t)(count * 1000 + ids[1]) : ids != NULL ? 99 : 0;
        esp_ids_free(tokenizer, ids);
    }
    esp_tokenizer_close(tokenizer);
    return status;
}

static esp_status load(subject *on, uint64_t *sum, esp_error *error)
{
    esp_device *device = NULL;
    esp_checkpoint *checkpoint = NULL;
    esp_model *model = NULL;
    esp_model_info info = {0};
    esp_model_options options = {.compute = ESP_COMPUTE_F32};
    esp_status status = esp_device_open(on->context, "cpu", &device, error);
    if (status == ESP_OK) {
        status = esp_checkpoint_open(on->context, on->at.compressed, &checkpoint, error);
    }
    if (status == ESP_OK) {
        status = esp_model_load(device, checkpoint, &options, &model, error);
    }
    *sum = status != ESP_OK && model != NULL ? 99 : 0;
    if (status == ESP_OK) {
        esp_model_get_info(model, &info);
        *sum = info.resident_bytes;
    }
    esp_model_free(model);
    esp_checkpoint_close(checkpoint);
    esp_device_close(device);
    return status;
}

static esp_status eval(subject *on, uint64_t *sum, esp_error *error)
{
    esp_eval_options options = {.context = 16};
    esp_eval_result result = {.tokens = -1};
    esp_status status = esp_eval_text(on->model, on->model, on->tokenizer, text, sizeof text - 1,
                                      &options, &result, error);
    *sum = status == ESP_OK ? (uint64_t)(result.nats * 1e6) : result.tokens == -1 ? 0 : 99;
    return status;
}

static bool add_id(void *user, int32_t id)
{
    uint64_t *sum = user;
    *sum = *sum * 31 + (uint64_t)id;
    return true;
}

static esp_status generate(subject *on, uint64_t *sum, esp_error *error)
{
    static const int32_t prompt[] = {256, 65, 66};
    esp_session *session = NULL;
    esp_generation result;
    esp_sampling sampling = {.temperature = 0.8f, .top_p = 0.9f, .seed = 3};
    *sum = 0;
    esp_status status = esp_session_create(on->model, 20, 8, &session, error);
    if (status == ESP_OK) {
        status = esp_generate(session, prompt, 3, 8, &sampling, add_id, sum, &result, error);
    }
    *sum = status == ESP_OK ? *sum : session == NULL ? 0 : *sum;
    esp_session_free(session);
    return status;
}

static esp_status draw(subject *on, uint64_t *sum, esp_error *error)
{
    const esp_prune_options prune_options = small_options(on->run, true);
    esp_draw_options options = {.dtype = ESP_F16, .seed = 1, .prune = &prune_options};
    esp_checkpoint *checkpoint = NULL;
    esp_sparse *sparse = NULL;
    esp_status status =
        esp_checkpoint_draw(on->device, on->at.source, &options, &checkpoint, error);
    if (status != ESP_OK) {
        *sum = checkpoint != NULL ? 99 : 0;
        return status;
    }
    int64_t index = esp_checkpoint_find(checkpoint, "model.layers.0.mlp.down_proj.weight");
    status = esp_checkpoint_read_sparse(checkpoint, index, &sparse, error);
    *sum = status == ESP_OK ? esp_sparse_crc32c(sparse) : sparse != NULL ? 99 : 0;
    esp_sparse_free(sparse);
    esp_checkpoint_close(checkpoint);
    return status;
}

static void reset_nothing(subject *on)
{
    (void)on;
}

static void remove_target(subject *on)
{
    remove_folder(on->at.target);
}

/* A folder of ours, with other weights, that --force may replace. */
static void place_old_target(subject *on)
{
    test_run *run = on->run;
    esp_prune_options options = {.force = true};
    remove_folder(on->at.target);
    CHECK_OK(esp_pattern_parse("2:4", &options.pattern, error));
    CHECK_OK(
        esp_prune_checkpoint(on->context, on->at.source, on->at.target, &options, NULL, error));
}

/* ---- every allocation ---- */

static const stage stages[] = {
    {"a context with a pool", make_context, reset_nothing, false},
    {"prune into a new folder", prune, remove_target, true},
    {"prune over an old folder", prune, place_old_target, true},
    {"shrink", shrink, remove_target, true},
    {"shrink by outputs", shrink_by_outputs, remove_target, true},
    {"turn", turn, remove_target, true},
    {"convert to dense", to_dense, remove_target, true},
    {"prune into shards", prune_into_shards, remove_target, true},
    {"convert to a bitmask", to_bitmask, remove_target, true},
    {"convert from a bitmask", from_bitmask, remove_target, true},
    {"verify", verify, reset_nothing, false},
    {"a tokenizer", open_tokenizer, reset_nothing, false},
    {"load", load, reset_nothing, false},
    {"draw", draw, reset_nothing, false},
    {"evaluate", eval, reset_nothing, false},
    {"generate", generate, reset_nothing, false},
};

typedef struct outcome {
    uint64_t sum, folder; /* of the result, of the target */
} outcome;

/* What may have failed is judged; true when nothing was left to fail. */
static bool judge(subject *on, long n, esp_status status, const esp_error *problem, outcome before,
                  outcome right, outcome got)
{
    test_run *run = on->run;
    long failed = injector_disarm();
    bool json = injecting.source == INJECT_JSON;
    if (status == ESP_OK) {
        if (got.sum != right.sum || got.folder != right.folder) {
            test_fail(run, __FILE__, __LINE__, "allocation %ld: a success with a wrong result", n);
        }
        totals.survived += failed > 0;
    } else {
        bool said = json || status == ESP_OUT_OF_MEMORY; /* jansson calls some of it bad syntax */
        if (!said || problem->message[0] == '\0') {
            test_fail(run, __FILE__, __LINE__, "allocation %ld: %s \"%s\" (%s)", n,
                      esp_status_name(status), problem->code, problem->message);
        }
        if (got.sum != before.sum || got.folder != before.folder) {
            test_fail(run, __FILE__, __LINE__, "allocation %ld: failed, and changed something", n);
        }
    }
    totals.once += failed > 0 && !json && !injecting.persist;
    totals.persistent += failed > 0 && !json && injecting.persist;
    totals.json_once += failed > 0 && json && !injecting.persist;
    totals.json_persistent += failed > 0 && json && injecting.persist;
    return failed == 0;
}

static void fail_each(subject *on, const stage *step, injected source, bool persist)
{
    test_run *run = on->run;
    outcome right = {0}, before = {0}, got;
    esp_error problem;
    step->reset(on);
    before.folder = folder_sum(on->at.target);
    REQUIRE_OK(step->attempt(on, &right.sum, error));
    right.folder = folder_sum(on->at.target);
    step->reset(on);
    for (long n = 0; n < 20000; n++) {
        long live = atomic_load(&injecting.live);
        problem = (esp_error){0};
        injector_arm(source, n, persist);
        esp_status status = step->attempt(on, &got.sum, &problem);
        injecting.fail_at = -1;
        got.folder = step->writes ? folder_sum(on->at.target) : right.folder;
        before.folder = step->writes ? before.folder : right.folder;
        bool through = judge(on, n, status, &problem, before, right, got);
        CHECK_INT(atomic_load(&injecting.live), live);
        totals.leaks += atomic_load(&injecting.live) != live;
        if (step->writes) {
            CHECK_INT(test_entries(test_path(on->at.parent, "out")), got.folder != 0);
        }
        if (through) {
            CHECK_INT(status, ESP_OK);
            return;
        }
        if (status == ESP_OK) {
            step->reset(on);
        }
    }
}

static bool open_subject(subject *on)
{
    test_run *run = on->run;
    esp_model_options options = {.compute = ESP_COMPUTE_F32};
    CHECK_OK(injector_context(1, &on->context, error));
    on->at = make_small_place(run, on->context, injecting.source == INJECT_JSON ? "json" : "model");
    CHECK_OK(esp_device_open(on->context, "cpu", &on->device, error));
    CHECK_OK(esp_checkpoint_open(on->context, on->at.compressed, &on->checkpoint, error));
    CHECK_OK(esp_tokenizer_open(on->context, on->at.compressed, &on->tokenizer, error));
    CHECK_OK(esp_model_load(on->device, on->checkpoint, &options, &on->model, error));
    return !test_failed(run);
}

static void close_subject(subject *on)
{
    esp_model_free(on->model);
    esp_tokenizer_close(on->tokenizer);
    esp_checkpoint_close(on->checkpoint);
    esp_device_close(on->device);
    esp_context_free(on->context);
}

static void fail_all(test_run *run, injected source)
{
    subject on = {.run = run};
    injector_arm(source, -1, false);
    if (open_subject(&on)) {
        for (int i = 0; i < ESP_COUNT(stages); i++) {
            for (int persist = 0; persist < 2; persist++) {
                test_sub(run, "%s, %s", stages[i].name, persist ? "persistently" : "once");
                fail_each(&on, &stages[i], source, persist);
            }
        }
    }
    close_subject(&on);
    remove_folder(on.at.target);
    test_sub(run, "nothing is held at the end");
    CHECK_INT(atomic_load(&injecting.live), 0);
}

static void context_allocations(test_run *run)
{
    injector_hook_json();
    fail_all(run, INJECT_CONTEXT);
    printf(
        "faults: %ld allocations failed once, %ld persistently: 0 crashes, %ld leaks, %ld of them "
        "survived with the right result\n",
        totals.once, totals.persistent, totals.leaks, totals.survived);
    CHECK(totals.once > 500 && totals.persistent > 500);
}

static void json_allocations(test_run *run)
{
    injector_hook_json();
    fail_all(run, INJECT_JSON);
    printf("faults: %ld allocations of jansson failed once, %ld persistently\n", totals.json_once,
           totals.json_persistent);
}

static const test_case cases[] = {{"context allocations", context_allocations},
                                  {"json allocations", json_allocations}};
TEST_MAIN(cases)
