/* Calibrated pruning of whole folders: a model that is walked layer by layer does what it does
 * whole; what is written fits its pattern, is the same each time, and says how it was made; each
 * kind of model; and what is refused. */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <espalier/advise.h>

#include "assess/assess.h"
#include "cli/tiny_bert.h"
#include "cli/tiny_sam.h"
#include "model/model.h"
#include "unit/pipeline_tools.h"

/* ---- a walk and the whole model ---- */

#define MOST_LAYERS 16

typedef struct seen_layers {
    float *layers[MOST_LAYERS]; /* [features][tokens] as observed */
    size_t counts[MOST_LAYERS];
} seen_layers;

static void watch(void *user, const char *name, const float *data, int64_t features, int64_t tokens)
{
    seen_layers *seen = user;
    int layer = -1;
    if (sscanf(name, "layer.%d", &layer) == 1 && layer >= 0 && layer < MOST_LAYERS) {
        size_t count = (size_t)(features * tokens);
        seen->layers[layer] = malloc(count * sizeof(float));
        seen->counts[layer] = count;
        memcpy(seen->layers[layer], data, count * sizeof(float));
    }
}

static void run_whole(test_run *run, const esp_model *model, const esp_walk_batch *batch,
                      seen_layers *seen)
{
    esp_model_info info;
    esp_model_get_info(model, &info);
    if (info.kind == ESP_MODEL_DECODER) {
        esp_session *session = NULL;
        REQUIRE_OK(esp_session_create(model, batch->tokens, 0, &session, error));
        esp_session_observe(session, watch, seen);
        CHECK_OK(esp_session_feed(session, batch->ids, batch->tokens, NULL, false, error));
        esp_session_free(session);
    } else if (info.kind == ESP_MODEL_ENCODER) {
        esp_embedder *embedder = NULL;
        float *vectors = malloc((size_t)info.embedding_size * sizeof *vectors);
        REQUIRE_OK(esp_embedder_create(model, 0, &embedder, error));
        esp_embedder_observe(embedder, watch, seen);
        CHECK_OK(esp_embed_ids(embedder, batch->ids, &batch->tokens, 1, vectors, error));
        esp_embedder_free(embedder);
        free(vectors);
    } else {
        esp_vision *vision = NULL;
        int64_t shape[3] = {1, 1, 1};
        int rank = esp_vision_output_shape(model, shape);
        int64_t size = shape[0] * (rank > 1 ? shape[1] * shape[2] : 1);
        float *output = malloc((size_t)(size * batch->images) * sizeof *output);
        REQUIRE_OK(esp_vision_create(model, 0, 0, batch->images, &vision, error));
        esp_vision_observe(vision, watch, seen);
        CHECK_OK(esp_vision_run(vision, batch->pixels, batch->images, output, error));
        esp_vision_free(vision);
        free(output);
    }
}

static void compare_walk(test_run *run, esp_walk *walk, const esp_walk_batch *batch,
                         const seen_layers *seen)
{
    const esp_model_info *info = esp_walk_info(walk);
    size_t count = (size_t)(info->hidden_size * esp_walk_tokens(walk, batch));
    float *x = malloc(count * sizeof *x);
    CHECK_OK(esp_walk_embed(walk, batch, x, error));
    for (int64_t layer = 0; layer < info->layers; layer++) {
        CHECK_OK(esp_walk_load(walk, layer, error));
        CHECK_OK(esp_walk_run(walk, batch, x, NULL, error));
        CHECK(seen->counts[layer] == count &&
              memcmp(seen->layers[layer], x, count * sizeof *x) == 0);
    }
    free(x);
}

static void check_walk(test_run *run, const char *folder, const esp_walk_batch *batch)
{
    esp_context *context = test_context(run, 2);
    esp_device *device = NULL;
    esp_checkpoint *checkpoint = NULL;
    esp_model *model = NULL;
    esp_walk *walk = NULL;
    seen_layers seen = {0};
    const esp_model_options options = {.compute = ESP_COMPUTE_F32};
    const esp_walk_size size = {.tokens = batch->tokens, .images = batch->images};
    REQUIRE_OK(esp_device_open(context, "cpu", &device, error));
    REQUIRE_OK(esp_checkpoint_open(context, folder, &checkpoint, error));
    REQUIRE_OK(esp_model_load(device, checkpoint, &options, &model, error));
    run_whole(run, model, batch, &seen);
    REQUIRE_OK(esp_walk_open(device, checkpoint, &size, &walk, error));
    compare_walk(run, walk, batch, &seen);
    for (int i = 0; i < MOST_LAYERS; i++) {
        free(seen.layers[i]);
    }
    esp_walk_close(walk);
    esp_model_free(model);
    esp_checkpoint_close(checkpoint);
    esp_device_close(device);
    test_context_free(run, context);
}

static const char *tiny_folder(test_run *run, const char *kind)
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

static void walks(test_run *run)
{
    int32_t ids[60];
    static float pixels[2 * 3 * 224 * 224];
    for (int i = 0; i < 60; i++) {
        ids[i] = 5 + i * 7 % 60;
    }
    for (int i = 0; i < ESP_COUNT(pixels); i++) {
        pixels[i] = (float)(i % 17) / 8 - 1;
    }
    test_sub(run, "a decoder");
    check_walk(run, tiny_folder(run, "plain"), &(esp_walk_batch){.ids = ids, .tokens = 60});
    test_sub(run, "an encoder");
    check_walk(run, tiny_folder(run, "bert"), &(esp_walk_batch){.ids = ids, .tokens = 20});
    test_sub(run, "an image encoder with windows");
    check_walk(run, tiny_folder(run, "sam"), &(esp_walk_batch){.pixels = pixels, .images = 2});
    test_sub(run, "a classifier");
    check_walk(run, ESP_SOURCE_DIR "/models/glyphs",
               &(esp_walk_batch){.pixels = pixels, .images = 2});
}

/* ---- folders ---- */

enum { TEXT_BYTES = 6000 };

/* Words of letters, the same each time. */
static const char *some_text(void)
{
    static char text[TEXT_BYTES + 1];
    uint64_t state = 7;
    for (int i = 0; i < TEXT_BYTES; i++) {
        uint64_t drawn = esp_splitmix64(&state);
        text[i] = drawn % 6 == 0 ? ' ' : (char)('a' + drawn / 6 % 26);
    }
    return text;
}

static esp_calibration_options with_text(esp_method method, bool refit)
{
    return (esp_calibration_options){
        .text = some_text(), .text_bytes = TEXT_BYTES, .method = method, .refit = refit};
}

typedef struct seen_errors {
    int layers;
    double masked, error;
    bool odd;
} seen_errors;

static void see(void *user, const esp_calibrated_layer *layer)
{
    seen_errors *seen = user;
    seen->layers++;
    seen->masked += layer->masked_error;
    seen->error += layer->error;
    seen->odd |= !(layer->error >= 0 && layer->error < 10) || layer->name == NULL;
}

static esp_status prune_at(test_run *run, int threads, const char *model, const char *out,
                           const char *pattern, esp_calibration_options options,
                           esp_calibration_summary *summary, seen_errors *seen, esp_error *error)
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

static char *file_text(const char *folder, const char *name, size_t *bytes)
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

static bool same_file(const char *a, const char *b, const char *name)
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
static void check_folder(test_run *run, const char *folder, const char *pattern, int layers)
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

static void patterns(test_run *run)
{
    static const struct {
        const char *pattern, *stored;
        esp_method method;
    } wanted[] = {{"2:4", "\"2:4\"", ESP_METHOD_SPARSE_GPT},
                  {"16:2:8", "\"16:2:8\"", ESP_METHOD_SPARSE_GPT},
                  {"64:2:5", ":2:5\"", ESP_METHOD_OBD},
                  {"16:2:8", "\"16:2:8\"", ESP_METHOD_OBS},
                  {"panel:16@0.75", "\"panel:16@0.75\"", ESP_METHOD_OBS},
                  {"16:2:8", "\"16:2:8\"", ESP_METHOD_JOINT},
                  {"panel:16@0.75", "\"panel:16@0.75\"", ESP_METHOD_JOINT},
                  {"2:4", "\"2:4\"", ESP_METHOD_JOINT},
                  {"4:8", "\"4:8\"", ESP_METHOD_WANDA},
                  {"panel:16@0.75", "\"panel:16@0.75\"", ESP_METHOD_SPARSE_GPT},
                  {"block:16x16@0.5", "\"block:16x16@0.5\"", ESP_METHOD_RIA},
                  {"unstructured@0.8", "\"unstructured@0.8\"", ESP_METHOD_SPARSE_GPT},
                  {"16:2:16", "\"16:2:16\"", ESP_METHOD_SQUARE}};
    const char *model = tiny_folder(run, "plain");
    char once[1100], again[1100];
    snprintf(once, sizeof once, "%s/once", test_folder(run));
    snprintf(again, sizeof again, "%s/again", test_folder(run));
    for (int i = 0; i < ESP_COUNT(wanted); i++) {
        test_sub(run, "%s by %s", wanted[i].pattern, esp_method_name(wanted[i].method));
        seen_errors seen = {0}, same = {0};
        esp_calibration_summary summary = {0};
        esp_calibration_options options = with_text(wanted[i].method, true);
        options.targets = (esp_targets)(i % 3);
        CHECK_OK(prune_at(run, 2, model, once, wanted[i].pattern, options, &summary, &seen, error));
        CHECK_OK(prune_at(run, 2, model, again, wanted[i].pattern, options, NULL, &same, error));
        CHECK(same_file(once, again, "model.safetensors"));
        CHECK(same_file(once, again, "espalier.json"));
        check_folder(run, once, wanted[i].stored, 14);
        CHECK_INT(seen.layers, 14);
        /* what the refit is for; the joint search ends with one */
        CHECK(!seen.odd &&
              seen.error < (wanted[i].method == ESP_METHOD_JOINT ? 1.001 : 1.0) * seen.masked);
        CHECK(summary.tokens > 2000 && summary.samples > 10 && summary.mean_error > 0);
        size_t bytes;
        char *marker = file_text(once, "espalier.json", &bytes);
        CHECK(marker != NULL && strstr(marker, "\"calibration\": {\"method\": \"") != NULL);
        free(marker);
    }
}

/* Without a look at inputs it is what prune does. */
static void plain_magnitude(test_run *run)
{
    const char *model = tiny_folder(run, "plain");
    char one[1100], other[1100];
    esp_prune_options prune = with_pattern(run, "16:2:8");
    snprintf(one, sizeof one, "%s/magnitude", test_folder(run));
    snprintf(other, sizeof other, "%s/prune", test_folder(run));
    CHECK_OK(prune_at(run, 1, model, one, "16:2:8", with_text(ESP_METHOD_MAGNITUDE, false), NULL,
                      NULL, error));
    esp_context *context = test_context(run, 1);
    CHECK_OK(esp_prune_checkpoint(context, model, other, &prune, NULL, error));
    CHECK(same_file(one, other, "model.safetensors") && same_file(one, other, "config.json"));
    test_context_free(run, context);
}

/* ---- errors of layers ---- */

enum { MOST_SEEN = 32 };

typedef struct seen_list {
    int count;
    esp_calibrated_layer layers[MOST_SEEN];
} seen_list;

static void list_layer(void *user, const esp_calibrated_layer *layer)
{
    seen_list *list = user;
    if (list->count < MOST_SEEN) {
        list->layers[list->count++] = *layer;
    }
}

static void prune_listed(test_run *run, esp_calibration_options options, seen_list *list,
                         esp_calibration_summary *summary)
{
    char out[1100];
    esp_context *context = test_context(run, 1);
    esp_device *device = NULL;
    esp_prune_options prune = with_pattern(run, "16:2:8");
    snprintf(out, sizeof out, "%s/listed", test_folder(run));
    prune.force = true;
    options.on_layer = list_layer;
    options.user = list;
    *list = (seen_list){0};
    CHECK_OK(esp_device_open(context, "cpu", &device, error));
    CHECK_OK(esp_prune_calibrated(device, tiny_folder(run, "plain"), out, &prune, &options, NULL,
                                  summary, error));
    esp_device_close(device);
    test_context_free(run, context);
}

/* The number that as many are above as below; slow and plain. */
static bool is_median(const seen_list *list, double median)
{
    int below = 0, above = 0;
    for (int i = 0; i < list->count; i++) {
        below += list->layers[i].error < median;
        above += list->layers[i].error > median;
    }
    return below == above;
}

/* With the dense model's inputs a layer's target is itself, and what is done to one layer does not
 * reach another. */
static void dense_inputs(test_run *run)
{
    seen_list wanda, refit, pruned;
    esp_calibration_summary summary = {0};
    esp_calibration_options options = with_text(ESP_METHOD_WANDA, false);
    prune_listed(run, options, &pruned, &summary);
    CHECK(is_median(&pruned, summary.median_error));
    CHECK(summary.median_error == summary.median_own_error);
    options.dense_inputs = true;
    prune_listed(run, options, &wanda, &summary);
    options.refit = true;
    prune_listed(run, options, &refit, &summary);
    CHECK(is_median(&refit, summary.median_error));
    CHECK(summary.median_error < summary.median_masked_error);
    CHECK(wanda.count == 14 && refit.count == 14 && pruned.count == 14);
    for (int i = 0; i < wanda.count && i < refit.count; i++) {
        const esp_calibrated_layer *layer = &refit.layers[i];
        /* up to the rounding of weights to their type */
        CHECK(fabs(layer->masked_error - wanda.layers[i].error) < 1e-3 * layer->masked_error);
        CHECK(layer->error < layer->masked_error);
        CHECK(layer->own_error == layer->error);
    }
    /* the first layer reads the same either way, a later one does not */
    CHECK(pruned.layers[0].error == wanda.layers[0].error);
    CHECK(pruned.layers[13].error != wanda.layers[13].error);
}

/* ---- images ---- */

static esp_status read_image(void *user, int64_t index, esp_image *image, esp_error *error)
{
    static uint8_t pixels[40 * 40 * 3];
    int64_t unreadable = *(const int64_t *)user;
    if (index == unreadable) {
        return esp_fail(error, ESP_BAD_FILE, "image.damaged", "image %lld", (long long)index);
    }
    uint64_t state = (uint64_t)index;
    for (int i = 0; i < ESP_COUNT(pixels); i++) {
        pixels[i] = (uint8_t)(esp_splitmix64(&state) % 256);
    }
    *image = (esp_image){.width = 40, .height = 40, .pixels = pixels};
    return ESP_OK;
}

static void other_models(test_run *run)
{
    char out[1100];
    int64_t unreadable = -1;
    snprintf(out, sizeof out, "%s/other", test_folder(run));
    test_sub(run, "an encoder");
    seen_errors seen = {0};
    CHECK_OK(prune_at(run, 2, tiny_folder(run, "bert"), out, "16:2:8",
                      with_text(ESP_METHOD_SPARSE_GPT, true), NULL, &seen, error));
    check_folder(run, out, "\"16:2:8\"", 12);
    CHECK(seen.layers == 12 && seen.error < seen.masked && !seen.odd);

    const esp_image_set images = {.count = 40, .read = read_image, .user = &unreadable};
    esp_calibration_options options = {
        .images = &images, .method = ESP_METHOD_SPARSE_GPT, .refit = true};
    test_sub(run, "an image encoder with windows");
    seen = (seen_errors){0};
    CHECK_OK(prune_at(run, 2, tiny_folder(run, "sam"), out, "16:2:8", options, NULL, &seen, error));
    check_folder(run, out, "\"16:2:8\"", 8);
    CHECK(seen.layers == 8 && seen.error < seen.masked && !seen.odd);

    test_sub(run, "an unreadable image");
    unreadable = 13;
    CHECK_FAILS(prune_at(run, 1, tiny_folder(run, "sam"), out, "2:4", options, NULL, NULL, error),
                ESP_BAD_FILE, "image.damaged");
    test_sub(run, "no images");
    const esp_image_set none = {.count = 0, .read = read_image, .user = &unreadable};
    options.images = &none;
    CHECK_FAILS(prune_at(run, 1, tiny_folder(run, "sam"), out, "2:4", options, NULL, NULL, error),
                ESP_BAD_ARGUMENT, "calibrate.too_short");
    test_sub(run, "images for a decoder");
    CHECK_FAILS(prune_at(run, 1, tiny_folder(run, "plain"), out, "2:4", options, NULL, NULL, error),
                ESP_BAD_ARGUMENT, "calibrate.wrong_data");
}

/* ---- refusals ---- */

static void refusals(test_run *run)
{
    const char *model = tiny_folder(run, "plain");
    char out[1100], zeros[1100];
    snprintf(out, sizeof out, "%s/refused", test_folder(run));
    snprintf(zeros, sizeof zeros, "%s/zeros", test_folder(run));
    esp_calibration_options good = with_text(ESP_METHOD_WANDA, false), bad = good;

    test_sub(run, "short texts");
    bad.text_bytes = 60;
    CHECK_FAILS(prune_at(run, 1, model, out, "2:4", bad, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "calibrate.too_short");
    bad.text_bytes = 130;
    CHECK_OK(prune_at(run, 1, model, out, "2:4", bad, NULL, NULL, error));
    bad.method = ESP_METHOD_SPARSE_GPT; /* the widest layer reads as many features or more */
    bad.tokens = 32;
    bad.context = 32;
    CHECK_FAILS(prune_at(run, 1, model, out, "2:4", bad, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "calibrate.too_short");

    test_sub(run, "options");
    bad = good;
    bad.method = (esp_method)99;
    CHECK_FAILS(prune_at(run, 1, model, out, "2:4", bad, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "calibrate.bad_method");
    bad = good;
    bad.damping = (double)NAN;
    CHECK_FAILS(prune_at(run, 1, model, out, "2:4", bad, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "calibrate.bad_options");
    bad = good;
    bad.context = 1 << 20;
    CHECK_FAILS(prune_at(run, 1, model, out, "2:4", bad, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "calibrate.bad_context");
    CHECK_FAILS(prune_at(run, 1, model, NULL, "2:4", good, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "prune.no_target");

    test_sub(run, "pruned before");
    CHECK_OK(prune_at(run, 1, model, out, "2:4", good, NULL, NULL, error));
    CHECK_FAILS(prune_at(run, 1, out, zeros, "2:4", good, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "prune.already_compressed");
    esp_context *context = test_context(run, 1);
    esp_prune_options dense = {0};
    CHECK_OK(esp_convert_checkpoint(context, out, zeros, ESP_CONVERT_DENSE, &dense, NULL, error));
    test_context_free(run, context);
    CHECK_FAILS(prune_at(run, 1, zeros, out, "2:4", good, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "calibrate.already_pruned");
    esp_calibration_options respect = with_text(ESP_METHOD_SPARSE_GPT, true);
    respect.respect = true;
    CHECK_OK(prune_at(run, 1, zeros, out, "2:4", respect, NULL, NULL, error));
    check_folder(run, out, "\"2:4\"", 14);
}

/* ---- going on after a kill ---- */

static void die_at(void *user, const esp_calibrated_layer *layer)
{
    int *left = user;
    (void)layer;
    if ((*left)-- == 0) {
        raise(SIGKILL);
    }
}

/* A child that prunes and is killed once `layers` are done. */
static void killed_after(test_run *run, esp_device *device, const esp_prune_options *prune,
                         esp_calibration_options options, const char *out, int layers)
{
    int how = 0, left = layers;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        esp_error error;
        options.on_layer = die_at;
        options.user = &left;
        bool failed = esp_prune_calibrated(device, tiny_folder(run, "plain"), out, prune, &options,
                                           NULL, NULL, &error) != ESP_OK;
        _exit(failed);
    }
    CHECK(waitpid(child, &how, 0) == child && WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
}

static void resumed(test_run *run)
{
    static const char *const patterns_of[] = {"16:2:8", "panel:16@0.75", "unstructured@0.7"};
    const char *model = tiny_folder(run, "plain");
    char whole[1100], out[1100], state[1100], file[1200];
    snprintf(whole, sizeof whole, "%s/whole", test_folder(run));
    snprintf(out, sizeof out, "%s/resumed", test_folder(run));
    snprintf(state, sizeof state, "%s/resumed.unfinished", test_folder(run));
    esp_context *context = test_context(run, 1); /* no threads: the children fork */
    esp_device *device = NULL;
    esp_calibration_options options = with_text(ESP_METHOD_JOINT, true);
    REQUIRE(esp_device_open(context, "cpu", &device, NULL) == ESP_OK);
    for (int i = 0; i < ESP_COUNT(patterns_of); i++) {
        esp_prune_options prune = with_pattern(run, patterns_of[i]);
        esp_calibration_summary summary = {0};
        prune.force = true;
        options.state_dir = NULL;
        CHECK_OK(esp_prune_calibrated(device, model, whole, &prune, &options, NULL, NULL, error));
        options.state_dir = state;
        for (int layers = 0; layers < 14; layers++) {
            test_sub(run, "%s, killed in layer %d", patterns_of[i], layers);
            killed_after(run, device, &prune, options, out, layers);
            if (layers % 3 == 1) {
                continue; /* twice in a row */
            }
            if (layers == 8) { /* a damaged file is none; found anew, it fits the next */
                snprintf(file, sizeof file, "%s/000004.layer", state);
                CHECK(truncate(file, 1000) == 0);
            }
            CHECK_OK(
                esp_prune_calibrated(device, model, out, &prune, &options, NULL, &summary, error));
            CHECK_INT(summary.recalled, layers == 8 ? 8 : layers + 1);
            CHECK(same_file(whole, out, "model.safetensors"));
            CHECK(same_file(whole, out, "espalier.json"));
            CHECK(access(state, F_OK) != 0);
        }
    }
    test_sub(run, "other options");
    esp_prune_options prune = with_pattern(run, "16:2:8");
    esp_calibration_summary summary = {0};
    prune.force = true;
    killed_after(run, device, &prune, options, out, 5);
    options.damping = 0.02;
    CHECK_OK(esp_prune_calibrated(device, model, out, &prune, &options, NULL, &summary, error));
    CHECK_INT(summary.recalled, 0);
    test_sub(run, "a folder of something else");
    options.state_dir = model;
    CHECK_FAILS(esp_prune_calibrated(device, model, out, &prune, &options, NULL, NULL, error),
                ESP_BAD_ARGUMENT, "calibrate.bad_state");
    esp_device_close(device);
    test_context_free(run, context);
}

static bool stop_late(void *user, const char *what, double done, double total, const char *unit)
{
    (void)user, (void)what, (void)unit;
    return done < total / 2;
}

static void interrupted(test_run *run)
{
    esp_context *context = test_context(run, 2);
    esp_device *device = NULL;
    char out[1100];
    snprintf(out, sizeof out, "%s/interrupted", test_folder(run));
    REQUIRE_OK(esp_device_open(context, "cpu", &device, error));
    const char *model = tiny_folder(run, "plain");
    int before = entries_of(test_folder(run));
    esp_prune_options prune = with_pattern(run, "2:4");
    esp_calibration_options options = with_text(ESP_METHOD_SPARSE_GPT, true);
    prune.progress = stop_late;
    CHECK_FAILS(esp_prune_calibrated(device, model, out, &prune, &options, NULL, NULL, error),
                ESP_CANCELLED, "cancelled");
    CHECK_INT(entries_of(test_folder(run)), before);
    esp_device_close(device);
    test_context_free(run, context);
}

/* ---- in other orders of channels ---- */

typedef struct error_list {
    int count;
    double errors[64];
} error_list;

static void list_error(void *user, const esp_calibrated_layer *layer)
{
    error_list *list = user;
    list->errors[list->count++ % 64] = layer->error;
}

/* What does not depend on orders comes out the same in any; what does gets better. */
static void permuted(test_run *run)
{
    const char *const models[] = {"plain", "bert"};
    char out[1100];
    snprintf(out, sizeof out, "%s/permuted", test_folder(run));
    esp_context *context = test_context(run, 2);
    esp_device *device = NULL;
    REQUIRE(esp_device_open(context, "cpu", &device, NULL) == ESP_OK);
    for (int m = 0; m < ESP_COUNT(models); m++) {
        const char *model = tiny_folder(run, models[m]);
        esp_prune_options panels = with_pattern(run, "16:2:8"), free = {0};
        esp_calibration_options options = with_text(ESP_METHOD_JOINT, true);
        esp_permutation *permutation = NULL;
        esp_permutation_summary summary;
        error_list lists[4] = {{0}};
        CHECK_OK(
            esp_permutation_calibrate(device, model, &panels, NULL, &options, &permutation, error));
        esp_permutation_get_summary(permutation, &summary);
        CHECK(summary.moved_orders > 0 && summary.kept_after > summary.kept_before);
        CHECK_OK(esp_pattern_parse("unstructured@0.7", &free.pattern, error));
        options.on_layer = list_error;
        panels.force = free.force = true;
        for (int i = 0; i < 4; i++) {
            esp_prune_options *prune = i < 2 ? &free : &panels;
            test_sub(run, "%s, %s order, %s", models[m], i % 2 == 0 ? "own" : "new",
                     i < 2 ? "unstructured" : "panels");
            prune->permutation = i % 2 == 0 ? NULL : permutation;
            options.user = &lists[i];
            CHECK_OK(esp_prune_calibrated(device, model, out, prune, &options, NULL, NULL, error));
        }
        double own = 0, new = 0;
        for (int k = 0; k < lists[0].count; k++) {
            /* A sum in another order may decide a tie between weights otherwise, and every layer
             * reads what those before it made: differences grow from layer to layer. */
            double apart = fabs(lists[0].errors[k] - lists[1].errors[k]) / lists[0].errors[k];
            if (!(apart <= (k < 7 ? 1e-5 : 5e-2))) {
                test_fail(run, __FILE__, __LINE__, "layer %d: errors %g and %g", k,
                          lists[0].errors[k], lists[1].errors[k]);
            }
            own += lists[2].errors[k];
            new += lists[3].errors[k];
        }
        CHECK(new < own);
        esp_permutation_free(permutation);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* ---- turned values ---- */

/* Errors are against the outputs of the dense model, so turning must not change what it computes.
 */
static void turned(test_run *run)
{
    static const struct {
        const char *model;
        bool turns, permutes;
    } models[] = {{"plain", true, false}, {"plain", true, true}, {"bert", false, false}};
    char out[1100];
    snprintf(out, sizeof out, "%s/turned", test_folder(run));
    esp_context *context = test_context(run, 2);
    esp_device *device = NULL;
    REQUIRE(esp_device_open(context, "cpu", &device, NULL) == ESP_OK);
    for (int m = 0; m < ESP_COUNT(models); m++) {
        test_sub(run, "%s%s", models[m].model, models[m].permutes ? ", permuted" : "");
        const char *model = tiny_folder(run, models[m].model);
        esp_prune_options panels = with_pattern(run, "16:2:8"), prune = {.force = true};
        esp_calibration_options options = with_text(ESP_METHOD_JOINT, true);
        esp_permutation *permutation = NULL;
        esp_calibration_summary summary[2] = {{0}};
        if (models[m].permutes) {
            CHECK_OK(esp_permutation_calibrate(device, model, &panels, NULL, &options, &permutation,
                                               error));
        }
        prune.permutation = permutation;
        CHECK_OK(esp_pattern_parse("unstructured@0.7", &prune.pattern, error));
        for (int i = 0; i < 2; i++) {
            options.turn_values = i == 1;
            CHECK_OK(esp_prune_calibrated(device, model, out, &prune, &options, NULL, &summary[i],
                                          error));
        }
        CHECK(models[m].turns == (summary[1].turned_layers > 0));
        CHECK(summary[1].mean_error < 1.1 * summary[0].mean_error);
        CHECK(models[m].turns || summary[1].mean_error == summary[0].mean_error);
        prune.pattern = panels.pattern;
        options.turn_values = false;
        CHECK_OK(
            esp_prune_calibrated(device, model, out, &prune, &options, NULL, &summary[0], error));
        options.turn_values = true;
        CHECK_OK(
            esp_prune_calibrated(device, model, out, &prune, &options, NULL, &summary[1], error));
        CHECK(summary[1].mean_error < 1.02 * summary[0].mean_error);
        esp_permutation_free(permutation);
    }
    esp_device_close(device);
    test_context_free(run, context);
    test_sub(run, "with zeros that are to stay");
    esp_calibration_options odd = with_text(ESP_METHOD_JOINT, true);
    odd.turn_values = odd.respect = true;
    CHECK_FAILS(prune_at(run, 1, tiny_folder(run, "plain"), out, "2:4", odd, NULL, NULL, error),
                ESP_BAD_ARGUMENT, "calibrate.bad_options");
}

/* ---- advice ---- */

/* The first layers read the same in advice and in a pruning, so they lose the same. */
static void advised(test_run *run)
{
    const char *model = tiny_folder(run, "plain");
    char out[1100];
    snprintf(out, sizeof out, "%s/advised", test_folder(run));
    esp_context *context = test_context(run, 1);
    esp_device *device = NULL;
    esp_checkpoint *checkpoint = NULL;
    esp_advice *advice = NULL;
    esp_prune_options prune = with_pattern(run, "16:2:8");
    esp_calibration_options options = with_text(ESP_METHOD_JOINT, true);
    error_list list = {0};
    const int64_t tokens = 8;
    REQUIRE(esp_device_open(context, "cpu", &device, NULL) == ESP_OK);
    CHECK_OK(esp_checkpoint_open(context, model, &checkpoint, error));
    options.targets = ESP_TARGETS_LAYER;
    const esp_advise_options wanted = {.patterns = &prune.pattern,
                                       .pattern_count = 1,
                                       .tokens = &tokens,
                                       .token_count = 1,
                                       .rounds = 1,
                                       .calibration = &options};
    CHECK_OK(esp_advice_create(device, checkpoint, &wanted, &advice, error));
    options.on_layer = list_error;
    options.user = &list;
    CHECK_OK(esp_prune_calibrated(device, model, out, &prune, &options, NULL, NULL, error));
    double least = 1, most = 0;
    for (int64_t i = 0; advice != NULL && i < esp_advice_layers(advice); i++) {
        const esp_advised_way *way = &esp_advice_layer(advice, i).ways[1];
        CHECK(way->calibrated && way->error > 0 && way->error < 1);
        for (int k = 0; k < 3; k++) {
            double difference = fabs(way->error - list.errors[k]);
            least = k == 0 ? ESP_MIN(least, difference) : least;
        }
        most = ESP_MAX(most, way->error);
    }
    CHECK(least < 1e-6 && most > 0);
    esp_advice_free(advice);
    esp_checkpoint_close(checkpoint);
    esp_device_close(device);
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"walks", walks},
    {"patterns", patterns},
    {"magnitude", plain_magnitude},
    {"dense inputs", dense_inputs},
    {"other models", other_models},
    {"refusals", refusals},
    {"interrupted", interrupted},
    {"going on after a kill", resumed},
    {"in other orders", permuted},
    {"turned values", turned},
    {"advice", advised},
};

TEST_MAIN(cases)
