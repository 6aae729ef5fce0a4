/* The n-th allocation fails, for every n, while a folder is opened, read and written: nothing
 * leaks, nothing is left behind, the status says so, and out-parameters stay as they were. */
#include <unistd.h>

#include "failing_allocator.h"
#include "model_folder.h"

static esp_context *failing_context(test_run *run, failing *state)
{
    esp_context_options options = {.threads = 1,
                                   .allocator = {failing_allocate, failing_release, state}};
    esp_context *context = NULL;
    state->left = 1000;
    CHECK_OK(esp_context_create(&options, &context, error));
    return context;
}

typedef struct folders {
    char source[900], compressed[900], target[900];
    esp_tensor dense[ESP_COUNT(folder_weights)];
    esp_sparse *sparse[ESP_COUNT(folder_weights)];
} folders;

/* Everything that a failing call will be given is made where nothing fails. */
static void make_folders(test_run *run, esp_context *context, folders *made)
{
    const char *parent = test_folder(run);
    snprintf(made->source, sizeof made->source, "%s/source", parent);
    snprintf(made->compressed, sizeof made->compressed, "%s/compressed", parent);
    snprintf(made->target, sizeof made->target, "%s/out/target", parent);
    mkdir(test_path(parent, "out"), 0700);
    if (access(made->source, F_OK) != 0) {
        make_source_folder(run, context, made->source);
        CHECK_OK(
            write_folder(run, context, made->source, made->compressed, false, false, 0, error));
    }
    for (int i = 0; i < ESP_COUNT(folder_weights); i++) {
        made->dense[i] = folder_tensor(context, &folder_weights[i], 0);
        made->sparse[i] = strcmp(folder_weights[i].pattern, "dense") == 0
                              ? NULL
                              : folder_sparse(run, context, &folder_weights[i], &made->dense[i]);
    }
}

static void free_folders(esp_context *context, folders *made)
{
    for (int i = 0; i < ESP_COUNT(folder_weights); i++) {
        esp_tensor_free(context, &made->dense[i]);
        esp_sparse_free(made->sparse[i]);
    }
}

/* ---- what is tried ---- */

static esp_status open_and_read(test_run *run, esp_context *context, const folders *at,
                                esp_error *problem)
{
    esp_checkpoint *checkpoint = NULL;
    esp_status status = esp_checkpoint_open(context, at->compressed, &checkpoint, problem);
    if (status != ESP_OK) {
        CHECK(checkpoint == NULL);
        return status;
    }
    for (int i = 0; status == ESP_OK && i < ESP_COUNT(folder_weights); i++) {
        esp_tensor read = at->dense[i];
        status = esp_checkpoint_read_dense(
            checkpoint, esp_checkpoint_find(checkpoint, folder_weights[i].name), &read, problem);
    }
    esp_checkpoint_close(checkpoint);
    return status;
}

static esp_status write_all(test_run *run, esp_context *context, const folders *at,
                            esp_checkpoint_writer *writer, esp_error *problem)
{
    esp_status status = ESP_OK;
    (void)context;
    for (int i = 0; status == ESP_OK && i < ESP_COUNT(folder_weights); i++) {
        status = declare_folder_weight(run, writer, &folder_weights[i], false, problem);
    }
    if (status == ESP_OK) {
        status = esp_checkpoint_writer_begin(writer, problem);
    }
    for (int i = 0; status == ESP_OK && i < ESP_COUNT(folder_weights); i++) {
        const char *name = folder_weights[i].name;
        status = at->sparse[i] != NULL
                     ? esp_checkpoint_writer_write_sparse(writer, name, at->sparse[i], problem)
                     : esp_checkpoint_writer_write_dense(writer, name, &at->dense[i], problem);
    }
    return status == ESP_OK ? esp_checkpoint_writer_finish(writer, problem) : status;
}

static esp_status write_new(test_run *run, esp_context *context, const folders *at,
                            esp_error *problem)
{
    esp_checkpoint *source = NULL;
    esp_checkpoint_writer *writer = NULL;
    esp_status status = esp_checkpoint_open(context, at->source, &source, problem);
    if (status == ESP_OK) {
        status = esp_checkpoint_writer_create(context, source, at->target, true, &writer, problem);
    }
    if (status == ESP_OK) {
        status = write_all(run, context, at, writer, problem);
    }
    esp_checkpoint_writer_free(writer);
    esp_checkpoint_close(source);
    return status;
}

typedef esp_status (*attempt_fn)(test_run *run, esp_context *context, const folders *at,
                                 esp_error *problem);

/* How many allocations had to fail before it succeeded. */
static int fail_each(test_run *run, const char *what, attempt_fn attempt, const folders *at)
{
    for (int n = 0; n < 2000; n++) {
        failing state = {0};
        esp_error problem = {0};
        esp_context *context = failing_context(run, &state);
        long before = state.live;
        state.left = n;
        esp_status status = attempt(run, context, at, &problem);
        if (status != ESP_OK) {
            test_sub(run, "%s, allocation %d", what, n);
            CHECK_INT(status, ESP_OUT_OF_MEMORY);
            CHECK(problem.message[0] != '\0');
        }
        CHECK_INT(state.live, before);
        state.left = 0;
        esp_context_free(context);
        if (status == ESP_OK) {
            return n;
        }
    }
    test_fail(run, __FILE__, __LINE__, "never succeeded");
    return 0;
}

static void reading(test_run *run)
{
    esp_context *context = test_context(run, 1);
    folders at;
    make_folders(run, context, &at);
    CHECK(fail_each(run, "reading", open_and_read, &at) > 50);
    free_folders(context, &at);
    test_context_free(run, context);
}

static void writing(test_run *run)
{
    esp_context *context = test_context(run, 1);
    folders at;
    make_folders(run, context, &at);
    CHECK(fail_each(run, "writing", write_new, &at) > 50);
    test_sub(run, "only the finished folder is there");
    check_folder(run, context, at.target, true, 0);
    CHECK_INT(rename(at.target, test_path(test_folder(run), "moved")), 0);
    CHECK_INT(rmdir(test_path(test_folder(run), "out")), 0);
    free_folders(context, &at);
    test_context_free(run, context);
}

static const test_case cases[] = {{"reading", reading}, {"writing", writing}};
TEST_MAIN(cases)
