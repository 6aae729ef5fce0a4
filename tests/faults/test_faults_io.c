/* The n-th call on files fails or does less, for every n, while a model is pruned, replaced,
 * converted, verified and loaded. Short transfers and interruptions must be survived; after any
 * other fault either all is right, or there is an error and the target is as it was, with no
 * temporary folder left behind unless removing is what failed. The source never changes. */
#include "faults/file_layer.h"
#include "faults/injector.h"
#include "faults/small_model.h"

typedef struct subject {
    test_run *run;
    small_place at;
    char out[900];
    esp_context *context;
} subject;

/* ---- what is tried ---- */

typedef struct work {
    const char *name;
    esp_status (*attempt)(subject *on, uint64_t *sum, esp_error *error);
    bool writes, over_old;
} work;

static esp_status prune(subject *on, uint64_t *sum, esp_error *error)
{
    esp_prune_options options = small_options(on->run, true);
    *sum = 0;
    return esp_prune_checkpoint(on->context, on->at.source, on->at.target, &options, NULL, error);
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
    esp_verify_summary summary = {0};
    esp_status status =
        esp_verify_checkpoint(on->context, on->at.compressed, &options, &summary, error);
    *sum = (uint64_t)(summary.zeros * 1000 + summary.checksums);
    return status;
}

static esp_status load(subject *on, uint64_t *sum, esp_error *error)
{
    esp_device *device = NULL;
    esp_checkpoint *checkpoint = NULL;
    esp_tokenizer *tokenizer = NULL;
    esp_model *model = NULL;
    esp_model_info info = {0};
    esp_status status = esp_device_open(on->context, "ref", &device, error);
    if (status == ESP_OK) {
        status = esp_checkpoint_open(on->context, on->at.compressed, &checkpoint, error);
    }
    if (status == ESP_OK) {
        status = esp_tokenizer_open(on->context, on->at.compressed, &tokenizer, error);
    }
    if (status == ESP_OK) {
        status = esp_model_load(device, checkpoint, NULL, &model, error);
    }
    if (status == ESP_OK) {
        esp_model_get_info(model, &info);
    }
    /* the end of a text is known from generation_config.json alone */
    *sum = info.resident_bytes * 10 + (uint64_t)info.eos_count;
    esp_model_free(model);
    esp_tokenizer_close(tokenizer);
    esp_checkpoint_close(checkpoint);
    esp_device_close(device);
    return status;
}

static const work works[] = {
    {"prune into a new folder", prune, true, false},
    {"prune over an old folder", prune, true, true},
    {"convert to dense", to_dense, true, false},
    {"convert over an old folder", to_dense, true, true},
    {"prune into shards", prune_into_shards, true, false},
    {"convert to a bitmask", to_bitmask, true, false},
    {"convert from a bitmask", from_bitmask, true, false},
    {"verify", verify, false, false},
    {"load", load, false, false},
};

static const struct {
    const char *name;
    int error; /* 0: one byte instead of all */
    bool persist, survived;
} faults[] = {
    {"short transfer", 0, false, true},
    {"short transfers", 0, true, true},
    {"EINTR", EINTR, false, true},
    {"EIO", EIO, false, false},
    {"EIO from then on", EIO, true, false},
    {"ENOSPC", ENOSPC, false, false},
    {"ENOSPC from then on", ENOSPC, true, false},
    {"EINVAL", EINVAL, true, false},
    {"ENOMEM", ENOMEM, false, false},
    {"EMFILE from then on", EMFILE, true, false},
};

/* ---- each call ---- */

typedef struct outcome {
    uint64_t sum, folder;
    int entries, files;
    long live;
} outcome;

static struct {
    long struck, survived, refused, left;
} totals;

static void empty_out(const subject *on)
{
    DIR *folder = opendir(on->out);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            remove_folder(test_path(on->out, entry->d_name));
        }
    }
    closedir(folder);
}

static void reset(subject *on, const work *task)
{
    test_run *run = on->run;
    esp_prune_options options = {0};
    empty_out(on);
    if (task->over_old) {
        CHECK_OK(esp_pattern_parse("2:4", &options.pattern, error));
        CHECK_OK(
            esp_prune_checkpoint(on->context, on->at.source, on->at.target, &options, NULL, error));
    }
}

static outcome look(const subject *on, uint64_t sum)
{
    return (outcome){sum, folder_sum(on->at.target), test_entries(on->out),
                     test_entries("/proc/self/fd"), atomic_load(&injecting.live)};
}

/* True when the folders are as `before` again, so that the next attempt may start. */
static bool judge(subject *on, int fault, esp_status status, const esp_error *problem,
                  outcome before, outcome right, outcome got)
{
    test_run *run = on->run;
    bool removing_failed = files_layer.persist || (files_layer.in_removal && status == ESP_OK);
    totals.survived += status == ESP_OK;
    totals.refused += status != ESP_OK;
    if (status == ESP_OK) {
        CHECK_INT(got.sum, right.sum);
        CHECK(got.folder == right.folder);
    } else {
        CHECK(!faults[fault].survived);
        CHECK(problem->code[0] != '\0' && problem->message[0] != '\0');
        /* a disk that stays broken may keep the last step from being taken back: old or new */
        bool is_new = files_layer.persist && got.folder == right.folder;
        CHECK(got.folder == before.folder || is_new);
    }
    outcome wanted = status == ESP_OK ? right : before;
    totals.left += got.entries != wanted.entries;
    CHECK(got.entries == wanted.entries || (removing_failed && got.entries > wanted.entries));
    CHECK_INT(got.files, before.files);
    CHECK_INT(got.live, before.live);
    return got.folder == before.folder && got.entries == before.entries;
}

static outcome attempt(subject *on, const work *task, long at, int fault, esp_status *status,
                       esp_error *problem)
{
    uint64_t sum = 0;
    *problem = (esp_error){0};
    files_layer.count = files_layer.struck = 0;
    files_layer.in_removal = false;
    files_layer.at = at;
    files_layer.error = faults[fault].error;
    files_layer.persist = faults[fault].persist;
    files_layer.armed = true;
    *status = task->attempt(on, &sum, problem);
    files_layer.armed = false;
    return look(on, sum);
}

static void strike_each(subject *on, const work *task, int fault)
{
    test_run *run = on->run;
    static unsigned char kinds[MAX_CALLS];
    esp_status status;
    esp_error problem;
    reset(on, task);
    outcome before = look(on, 0);
    outcome right = attempt(on, task, -1, fault, &status, &problem);
    REQUIRE(status == ESP_OK && files_layer.count > 10 && files_layer.count < MAX_CALLS);
    CHECK_INT(right.entries, task->writes);
    long calls = files_layer.count;
    memcpy(kinds, files_layer.kinds, sizeof kinds);
    if (task->writes) {
        reset(on, task);
    }
    for (long n = 0; n < calls; n++) {
        if (!can_take(kinds[n], faults[fault].error)) {
            continue;
        }
        bool failed = test_failed(run);
        outcome got = attempt(on, task, n, fault, &status, &problem);
        CHECK(files_layer.struck > 0);
        totals.struck += files_layer.struck > 0;
        bool same = judge(on, fault, status, &problem, before, right, got);
        if (test_failed(run) && !failed) {
            test_fail(run, __FILE__, __LINE__, "call %ld (%s): %s \"%s\" %s", n,
                      call_names[kinds[n]], esp_status_name(status), problem.code, problem.message);
        }
        if (!same) {
            reset(on, task);
        }
    }
}

static void every_call(test_run *run)
{
    subject on = {.run = run};
    REQUIRE_OK(injector_context(1, &on.context, error));
    on.at = make_small_place(run, on.context, "model");
    snprintf(on.out, sizeof on.out, "%.*s/out", 890, on.at.parent);
    uint64_t source = folder_sum(on.at.source), compressed = folder_sum(on.at.compressed);
    for (int i = 0; i < ESP_COUNT(works); i++) {
        for (int fault = 0; fault < ESP_COUNT(faults); fault++) {
            test_sub(run, "%s, %s", works[i].name, faults[fault].name);
            strike_each(&on, &works[i], fault);
        }
    }
    test_sub(run, "the sources are as they were");
    CHECK(folder_sum(on.at.source) == source && folder_sum(on.at.compressed) == compressed);
    empty_out(&on);
    esp_context_free(on.context);
    CHECK_INT(atomic_load(&injecting.live), 0);
    printf(
        "faults: %ld calls on files struck: %ld survived with the right result, %ld refused with "
        "the target as it was, %ld left a temporary folder that could not be removed\n",
        totals.struck, totals.survived, totals.refused, totals.left);
    CHECK(totals.struck > 1000 && totals.survived > 100 && totals.refused > 500);
}

static const test_case cases[] = {{"every call", every_call}};
TEST_MAIN(cases)
