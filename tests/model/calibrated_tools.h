/* Shared by the tests of calibrated pruning: models, samples, and what comes of them. */
#ifndef TESTS_MODEL_CALIBRATED_TOOLS_H
#define TESTS_MODEL_CALIBRATED_TOOLS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "assess/assess.h"
#include "cli/tiny_bert.h"
#include "cli/tiny_sam.h"
#include "unit/pipeline_tools.h"

static inline const char *tiny_folder(test_run *run, const char *kind)
{
    static char path[1024];
    snprintf(path, sizeof path, "%s/%s", test_folder(run), kind);
    bool made =
        esp_path_exists(path) || (strcmp(kind, "sam") == 0    ? tiny_sam_write(path)
                                  : strcmp(kind, "bert") == 0 ? tiny_bert_write(path, "bert")
                                                              : tiny_model_write(path, kind));
    if (!made) {
        test_fail(run, __FILE__, __LINE__, "%s could not be made", path);
    }
    return path;
}

enum { TEXT_BYTES = 6000 };

/* Words of letters, the same each time. */
static inline const char *some_text(void)
{
    static char text[TEXT_BYTES + 1];
    uint64_t state = 7;
    for (int i = 0; i < TEXT_BYTES; i++) {
        uint64_t drawn = esp_splitmix64(&state);
        text[i] = drawn % 6 == 0 ? ' ' : (char)('a' + drawn / 6 % 26);
    }
    return text;
}

static inline esp_calibration_options with_text(esp_method method, bool refit)
{
    return (esp_calibration_options){
        .text = some_text(), .text_bytes = TEXT_BYTES, .method = method, .refit = refit};
}

typedef struct seen_errors {
    int layers;
    double masked, error;
    bool odd;
} seen_errors;

static inline void see(void *user, const esp_calibrated_layer *layer)
{
    seen_errors *seen = user;
    seen->layers++;
    seen->masked += layer->masked_error;
    seen->error += layer->error;
    seen->odd |= !(layer->error >= 0 && layer->error < 10) || layer->name == NULL;
}

static inline esp_status prune_at(test_run *run, int threads, const char *model, const char *out,
                                  const char *pattern, esp_calibration_options options,
                                  esp_calibration_summary *summary, seen_errors *seen,
                                  esp_error *error)
{
    esp_context *context = test_context(run, threads);
    esp_device *device = NULL;
    esp_prune_options prune = with_pattern(run, pattern);
    prune.force = true;
    options.on_layer = seen != NULL ? see : NULL;
    options.user = seen;
    esp_status status = esp_device_open(context, "cpu", &device, error);
    if (status == ESP_OK) {
        status = esp_prune_calibrated(device, model, out, &prune, &options, NULL, summary, error);
    }
    esp_device_close(device);
    test_context_free(run, context);
    return status;
}

static inline char *file_text(const char *folder, const char *name, size_t *bytes)
{
    char path[1200];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    char *text = NULL;
    *bytes = 0;
    if (file != NULL && fseek(file, 0, SEEK_END) == 0) {
        *bytes = (size_t)ftell(file);
        rewind(file);
        text = calloc(1, *bytes + 1);
        *bytes = fread(text, 1, *bytes, file);
    }
    if (file != NULL) {
        fclose(file);
    }
    return text;
}

static inline bool same_file(const char *a, const char *b, const char *name)
{
    size_t of_a, of_b;
    char *text_a = file_text(a, name, &of_a), *text_b = file_text(b, name, &of_b);
    bool same =
        text_a != NULL && text_b != NULL && of_a == of_b && memcmp(text_a, text_b, of_a) == 0;
    free(text_a);
    free(text_b);
    return same;
}

/* Opening it and reading each weight checks formats and checksums. */
static inline void check_folder(test_run *run, const char *folder, const char *pattern, int layers)
{
    esp_context *context = test_context(run, 1);
    esp_verify_summary summary = {0};
    CHECK_OK(esp_verify_checkpoint(context, folder, &(esp_verify_options){.strict = true}, &summary,
                                   error));
    CHECK_INT(summary.compressed_tensors, layers);
    size_t bytes;
    char *config = file_text(folder, "config.json", &bytes);
    CHECK(config != NULL && strstr(config, pattern) != NULL);
    free(config);
    test_context_free(run, context);
}

typedef struct error_list {
    int count;
    double errors[64];
} error_list;

static inline void list_error(void *user, const esp_calibrated_layer *layer)
{
    error_list *list = user;
    list->errors[list->count++ % 64] = layer->error;
}

/* Logits of all `count` words of a model behind the same tokens for any model, in f32. */
static inline void logits_of(test_run *run, esp_context *context, esp_device *device,
                             const char *folder, float *logits, int64_t count)
{
    enum { TOKENS = 24 };
    const esp_model_options options = {.compute = ESP_COMPUTE_F32};
    esp_checkpoint *checkpoint = NULL;
    esp_model *model = NULL;
    esp_session *session = NULL;
    int32_t ids[TOKENS];
    for (int i = 0; i < TOKENS; i++) {
        ids[i] = 7 + 131 * i % 4000;
    }
    REQUIRE_OK(esp_checkpoint_open(context, folder, &checkpoint, error));
    REQUIRE_OK(esp_model_load(device, checkpoint, &options, &model, error));
    esp_model_info info;
    esp_model_get_info(model, &info);
    REQUIRE(info.vocabulary == count);
    REQUIRE_OK(esp_session_create(model, TOKENS, 0, &session, error));
    CHECK_OK(esp_session_feed(session, ids, TOKENS, logits, false, error));
    esp_session_free(session);
    esp_model_free(model);
    esp_checkpoint_close(checkpoint);
}

#endif
