/* A model that is walked layer by layer does what it does whole. */
#include "model/calibrated_tools.h"
#include "model/model.h"

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
    size_t count = (size_t)(info->hidden_size * esp_walk_places_of(walk, batch).columns);
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

static const test_case cases[] = {
    {"walks", walks},
};

TEST_MAIN(cases)
