/* Every family on a device whose memory is not the host's (far_backend.h) against the reference:
 * the arithmetic is the reference's own, so every number that counts must have the same bits,
 * however columns are padded and whether work is given or given again. */
#include <math.h>

#include "far_backend.h"
#include "golden_vision.h"
#include "greedy.h"
#include "model/llama.h"
#include "model/vision.h"

typedef struct pair {
    golden_model near, far;
    far_state state;
} pair;

/* `folder` on ref and on a far device. */
static void pair_open(test_run *run, esp_context *context, const char *folder, pair *made)
{
    esp_model_options options = {.memory = ESP_MEMORY_SPARSE};
    *made = (pair){.near = {0}};
    REQUIRE_OK(golden_load(context, folder, "ref", ESP_COMPUTE_F32, &made->near, error));
    REQUIRE_OK(esp_device_open(context, "ref", &made->far.device, error));
    far_install(&made->state, made->far.device);
    REQUIRE_OK(esp_checkpoint_open(context, folder, &made->far.checkpoint, error));
    REQUIRE_OK(
        esp_model_load(made->far.device, made->far.checkpoint, &options, &made->far.model, error));
}

static void pair_close(pair *opened)
{
    esp_device *device = opened->far.device;
    golden_close(&opened->near);
    esp_model_free(opened->far.model);
    esp_checkpoint_close(opened->far.checkpoint);
    far_remove(&opened->state, device);
    esp_device_close(device);
}

static void check_equal(test_run *run, const float *near, const float *far, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        if (memcmp(&near[i], &far[i], sizeof *near) != 0) {
            test_fail(run, __FILE__, __LINE__, "[%lld]: %.9g, reference %.9g", (long long)i,
                      (double)far[i], (double)near[i]);
            return;
        }
    }
}

/* What is shown, one result behind the other. */
typedef struct shown {
    float *data;
    int64_t count;
} shown;

static void see(void *user, const char *name, const float *data, int64_t features, int64_t tokens)
{
    shown *all = user;
    (void)name;
    size_t more = (size_t)(features * tokens);
    float *grown = realloc(all->data, ((size_t)all->count + more) * sizeof *grown);
    if (grown != NULL) {
        memcpy(grown + all->count, data, more * sizeof *grown);
        all->data = grown;
        all->count += (int64_t)more;
    }
}

static void compare_shown(test_run *run, shown seen[2])
{
    CHECK_INT(seen[0].count, seen[1].count);
    check_equal(run, seen[0].data, seen[1].data, ESP_MIN(seen[0].count, seen[1].count));
    free(seen[0].data);
    free(seen[1].data);
}

/* What is told of each layer's columns is what ran last. */
static void check_told(test_run *run, const esp_model *model, const esp_plan_slot *plans,
                       esp_model_call call)
{
    esp_model_layer layer;
    int64_t few = 0;
    for (int64_t i = 0; esp_model_get_layer(model, i, call, &layer); i++) {
        int64_t tokens = layer.problem.tokens, ran = plans[2 * i + (tokens != 1)].tokens;
        few += layer.few;
        if (ran != tokens) {
            test_fail(run, __FILE__, __LINE__, "%s: %lld columns are told, %lld ran", layer.name,
                      (long long)tokens, (long long)ran);
        }
    }
    esp_model_info info;
    esp_model_get_info(model, &info);
    bool keeps = info.kind == ESP_MODEL_CLASSIFIER || (call.last_only && call.tokens > 1);
    CHECK(keeps ? few >= 4 : few == 0);
}

/* ---- decoders ---- */

enum { SEQUENCES = 3, STEPS = 4, PROMPT = 13, BATCH = 11 };

static void feed_both(test_run *run, esp_session *const sessions[2], const int32_t *ids,
                      int64_t count, int64_t vocabulary, bool all)
{
    size_t floats = (size_t)(all ? count : 1) * (size_t)vocabulary;
    float *logits[2];
    for (int i = 0; i < 2; i++) {
        logits[i] = calloc(floats, sizeof **logits);
        CHECK_OK(esp_session_feed(sessions[i], ids, count, logits[i], all, error));
    }
    check_equal(run, logits[0], logits[1], (int64_t)floats);
    free(logits[0]);
    free(logits[1]);
}

/* A prompt of which the last token is read, then one token; the sessions end where they were. */
static void check_prompt(test_run *run, esp_session *const sessions[2], const golden_data *golden)
{
    for (int i = 0; i < 2; i++) {
        int64_t before = esp_session_length(sessions[i]);
        const esp_model_call calls[2] = {{.tokens = BATCH, .last_only = true}, {.tokens = 1}};
        for (int k = 0; k < 2; k++) {
            float *logits = calloc((size_t)golden->vocabulary, sizeof *logits);
            CHECK_OK(
                esp_session_feed(sessions[i], golden->ids, calls[k].tokens, logits, false, error));
            check_told(run, sessions[i]->model, sessions[i]->plans, calls[k]);
            free(logits);
        }
        esp_session_truncate(sessions[i], before);
    }
}

/* Prompts in pieces, logits of all tokens and of the last, steps alone and together, given and
 * given again, with caches of different capacity. */
static void check_sessions(test_run *run, pair *models, const golden_data *golden)
{
    esp_session *sessions[2][SEQUENCES] = {{NULL}};
    const golden_model *sides[2] = {&models->near, &models->far};
    int64_t vocabulary = golden->vocabulary;
    shown seen[2] = {{NULL, 0}, {NULL, 0}};
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < SEQUENCES; k++) {
            CHECK_OK(
                esp_session_create(sides[i]->model, 40 + 5 * k, BATCH, &sessions[i][k], error));
        }
    }
    for (int k = 0; k < SEQUENCES; k++) {
        esp_session *const both[2] = {sessions[0][k], sessions[1][k]};
        esp_session_observe(both[0], see, &seen[0]);
        esp_session_observe(both[1], see, &seen[1]);
        feed_both(run, both, golden->ids, PROMPT - k, vocabulary, k == 0);
        esp_session_observe(both[0], NULL, NULL);
        esp_session_observe(both[1], NULL, NULL);
        check_prompt(run, both, golden);
        for (int step = 0; step < STEPS; step++) {
            feed_both(run, both, golden->ids + PROMPT + step, 1, vocabulary, step % 2 == 1);
        }
    }
    int replays = models->state.replays;
    size_t used = models->state.used; /* all that a pass needs was taken before it */
    CHECK(replays > 0);
    float *logits[2];
    for (int i = 0; i < 2; i++) {
        logits[i] = calloc((size_t)(SEQUENCES * vocabulary), sizeof **logits);
    }
    for (int step = 0; step < STEPS; step++) {
        for (int i = 0; i < 2; i++) {
            CHECK_OK(
                esp_sessions_feed(sessions[i], SEQUENCES, golden->ids + step, logits[i], error));
        }
        check_equal(run, logits[0], logits[1], SEQUENCES * vocabulary);
    }
    CHECK_INT(models->state.replays, replays + STEPS - 1);
    CHECK(models->state.used == used);
    compare_shown(run, seen);
    for (int i = 0; i < 2; i++) {
        greedy_check_one(run, sessions[i][0], golden->ids, 5, vocabulary, 1);
        greedy_check_one(run, sessions[i][0], golden->ids, 1, vocabulary, 1 + i);
        greedy_check_step(run, sessions[i], SEQUENCES, golden->ids, vocabulary, 1 + i);
    }
    for (int i = 0; i < 2; i++) {
        free(logits[i]);
        for (int k = 0; k < SEQUENCES; k++) {
            esp_session_free(sessions[i][k]);
        }
    }
}

static void decoders(test_run *run)
{
    for (int i = 0; i < ESP_COUNT(golden_names); i++) {
        golden_data golden;
        pair models;
        esp_context *context = test_context(run, 1);
        REQUIRE(golden_open(&golden, golden_names[i]));
        test_sub(run, "%s", golden_names[i]);
        if (golden.count > PROMPT + STEPS) {
            pair_open(run, context, golden_folder(run, context, golden.json), &models);
            check_sessions(run, &models, &golden);
            pair_close(&models);
        }
        golden_free(&golden);
        test_context_free(run, context);
    }
}

/* ---- encoders ---- */

static void check_texts(test_run *run, pair *models, int64_t vocabulary, int64_t hidden)
{
    static const int64_t lengths[] = {3, 8, 1, 9, 5};
    enum { TEXTS = ESP_COUNT(lengths), TOKENS = 26 };
    int32_t ids[TOKENS + 2]; /* texts begin at any of the first three */
    const golden_model *sides[2] = {&models->near, &models->far};
    shown seen[2] = {{NULL, 0}, {NULL, 0}};
    float *vectors[2];
    for (int64_t t = 0; t < TOKENS + 2; t++) {
        ids[t] = (int32_t)(7 * t % vocabulary);
    }
    for (int i = 0; i < 2; i++) {
        esp_embedder *embedder = NULL;
        vectors[i] = calloc((size_t)(TEXTS * hidden), sizeof **vectors);
        REQUIRE_OK(esp_embedder_create(sides[i]->model, 0, &embedder, error));
        esp_embedder_observe(embedder, see, &seen[i]);
        CHECK_OK(esp_embed_ids(embedder, ids, lengths, TEXTS, vectors[i], error));
        esp_embedder_observe(embedder, NULL, NULL);
        size_t used = models->state.used;
        for (int again = 0; again < 3; again++) {
            memset(vectors[i], 0, (size_t)(TEXTS * hidden) * sizeof **vectors);
            CHECK_OK(esp_embed_ids(embedder, ids + again, lengths, TEXTS, vectors[i], error));
        }
        CHECK(models->state.used == used);
        esp_embedder_free(embedder);
    }
    CHECK(models->state.replays > 0);
    check_equal(run, vectors[0], vectors[1], TEXTS * hidden);
    compare_shown(run, seen);
    free(vectors[0]);
    free(vectors[1]);
}

static void encoders(test_run *run)
{
    static const char *const names[] = {"bert/a_heads_of_32", "bert/b_heads_of_80_relu",
                                        "bert/e_silu"};
    for (int i = 0; i < ESP_COUNT(names); i++) {
        pair models;
        esp_model_info info;
        esp_context *context = test_context(run, 1);
        json_t *json = golden_json(names[i]);
        test_sub(run, "%s", names[i]);
        pair_open(run, context, golden_folder(run, context, json), &models);
        esp_model_get_info(models.near.model, &info);
        check_texts(run, &models, info.vocabulary - 4, info.embedding_size);
        pair_close(&models);
        json_decref(json);
        test_context_free(run, context);
    }
}

/* ---- images ---- */

/* Pixels in the runner's memory, and those that the device holds already. */
static void check_pixels(test_run *run, esp_vision *vision, const golden_vision *golden,
                         const float *expected, int64_t size)
{
    int64_t images = golden->images;
    size_t count = (size_t)(images * size);
    float *pixels = NULL, *again = calloc(count, sizeof *again);
    CHECK_OK(esp_vision_pixels(vision, &pixels, error));
    memcpy(pixels, golden->pixels,
           (size_t)(images * 3 * golden->height * golden->width) * sizeof *pixels);
    for (int i = 0; i < 2; i++) {
        memset(again, 0xff, count * sizeof *again);
        CHECK_OK(esp_vision_run(vision, i == 0 ? pixels : NULL, images, again, error));
        check_equal(run, expected, again, images * size);
    }
    free(again);
}

static int64_t tokens_of(test_run *run, const esp_model *model, int64_t index, int64_t tokens)
{
    esp_model_layer layer = {.name = ""};
    CHECK(esp_model_get_layer(model, index, (esp_model_call){.tokens = tokens}, &layer));
    return layer.problem.tokens;
}

/* Each image begins at a multiple of the device's step, all of them end at one of its lines, and so
 * products are chosen and tuned. */
static void check_columns(test_run *run, const pair *models)
{
    esp_model_info info;
    esp_model_get_info(models->far.model, &info);
    int64_t pitch = esp_ceil_div(info.context, FAR_STEP) * FAR_STEP;
    int64_t index = info.kind == ESP_MODEL_IMAGE_ENCODER ? 3 : 1; /* no product on windows */
    for (int64_t images = 1; images < 4; images++) {
        int64_t all = images * pitch, step = all > FAR_FEW ? FAR_LINE : FAR_STEP;
        CHECK_INT(tokens_of(run, models->far.model, index, images * info.context),
                  esp_ceil_div(all, step) * step);
        CHECK_INT(tokens_of(run, models->near.model, index, images * info.context),
                  images * info.context);
    }
    CHECK_INT(tokens_of(run, models->far.model, 1, 1), 1);
}

static void check_images(test_run *run, pair *models, const golden_vision *golden)
{
    const golden_model *sides[2] = {&models->near, &models->far};
    int64_t shape[3], size = 1;
    esp_model_info info;
    esp_model_get_info(models->far.model, &info);
    int rank = esp_vision_output_shape(models->near.model, shape);
    for (int i = 0; i < rank; i++) {
        size *= shape[i];
    }
    shown seen[2] = {{NULL, 0}, {NULL, 0}};
    float *outputs[2];
    for (int i = 0; i < 2; i++) {
        esp_vision *vision = NULL;
        int64_t images = golden->images;
        size_t floats = (size_t)(images * size);
        outputs[i] = calloc(4 * floats, sizeof **outputs);
        REQUIRE_OK(esp_vision_create(sides[i]->model, golden->height, golden->width, images,
                                     &vision, error));
        esp_vision_observe(vision, see, &seen[i]);
        CHECK_OK(esp_vision_run(vision, golden->pixels, images, outputs[i], error));
        esp_vision_observe(vision, NULL, NULL);
        for (int again = 1; again < 3; again++) {
            CHECK_OK(esp_vision_run(vision, golden->pixels, images,
                                    outputs[i] + (size_t)again * floats, error));
        }
        if (golden->height == info.image_size && golden->width == info.image_size) {
            check_told(run, sides[i]->model, vision->plans,
                       (esp_model_call){.tokens = images * info.context});
        }
        CHECK_OK(esp_vision_run(vision, golden->pixels, 1, outputs[i] + 3 * floats, error));
        check_pixels(run, vision, golden, outputs[i], size);
        esp_vision_free(vision);
    }
    CHECK(models->state.replays > 0);
    check_equal(run, outputs[0], outputs[1], (3 * golden->images + 1) * size);
    compare_shown(run, seen);
    free(outputs[0]);
    free(outputs[1]);
}

static void images(test_run *run)
{
    static const char *const names[] = {
        "a_vit_batch",           "b_vit_head80_other_size", "d_deit_two_heads",    "f_timm_vit",
        "g_timm_deit_two_heads", "h_sam_padded_windows",    "j_sam_original_names"};
    for (int i = 0; i < ESP_COUNT(names); i++) {
        golden_vision golden;
        pair models;
        esp_context *context = test_context(run, 1);
        REQUIRE(golden_vision_open(&golden, names[i]));
        test_sub(run, "%s", names[i]);
        pair_open(run, context, golden_folder(run, context, golden.json), &models);
        check_columns(run, &models);
        check_images(run, &models, &golden);
        pair_close(&models);
        golden_vision_free(&golden);
        test_context_free(run, context);
    }
}

/* ---- memory ---- */

static void check_memory(test_run *run, const pair *models, size_t activations)
{
    esp_model_memory memory;
    esp_model_get_memory(models->far.model, &memory);
    CHECK_INT(memory.activations, activations);
}

/* Sessions one after the other and together; what was given back does not count again. */
static void decoder_memory(test_run *run, pair *models, size_t weights)
{
    esp_session *sessions[2] = {NULL, NULL};
    REQUIRE_OK(esp_session_create(models->far.model, 40, BATCH, &sessions[0], error));
    size_t large = models->state.held - weights;
    CHECK(large > 0);
    check_memory(run, models, large);
    esp_session_free(sessions[0]);
    CHECK_INT(models->state.held, weights);
    for (int i = 0; i < 2; i++) {
        REQUIRE_OK(esp_session_create(models->far.model, 30, BATCH, &sessions[i], error));
        check_memory(run, models, ESP_MAX(large, models->state.held - weights));
    }
    CHECK(models->state.held - weights > large);
    for (int i = 0; i < 2; i++) {
        esp_session_free(sessions[i]);
    }
}

static void encoder_memory(test_run *run, pair *models)
{
    esp_embedder *embedder = NULL;
    REQUIRE_OK(esp_embedder_create(models->far.model, 0, &embedder, error));
    esp_embedder_free(embedder);
}

static void image_memory(test_run *run, pair *models)
{
    esp_model_info info;
    esp_vision *vision = NULL;
    float *pixels = NULL;
    esp_model_get_info(models->far.model, &info);
    REQUIRE_OK(esp_vision_create(models->far.model, 0, 0, 2, &vision, error));
    CHECK_OK(esp_vision_pixels(vision, &pixels, error));
    esp_vision_free(vision);
}

/* What is told of a model's memory is what its device was asked for. */
static void memory(test_run *run)
{
    static const char *const names[] = {"bert/a_heads_of_32", "vision/a_vit_batch",
                                        "vision/h_sam_padded_windows", NULL};
    for (int i = 0; i < ESP_COUNT(names); i++) {
        pair models;
        esp_model_info info;
        esp_model_memory memory;
        const char *name = names[i] != NULL ? names[i] : golden_names[0];
        esp_context *context = test_context(run, 1);
        json_t *json = golden_json(name);
        test_sub(run, "%s", name);
        pair_open(run, context, golden_folder(run, context, json), &models);
        size_t weights = models.state.held;
        esp_model_get_info(models.far.model, &info);
        esp_model_get_memory(models.far.model, &memory);
        CHECK_INT(memory.activations, 0);
        CHECK_INT(memory.weights, weights + models.state.packed);
        CHECK_INT(info.resident_bytes, memory.weights);
        if (info.kind == ESP_MODEL_DECODER) {
            decoder_memory(run, &models, weights);
        } else if (info.kind == ESP_MODEL_ENCODER) {
            encoder_memory(run, &models);
        } else {
            image_memory(run, &models);
        }
        CHECK(models.state.most > weights);
        CHECK_INT(models.state.held, weights);
        check_memory(run, &models, models.state.most - weights);
        pair_close(&models);
        json_decref(json);
        test_context_free(run, context);
    }
}

/* ---- no room ---- */

/* The message says what was asked for and what is free. */
static void no_room(test_run *run)
{
    golden_data golden;
    pair models;
    esp_context *context = test_context(run, 1);
    REQUIRE(golden_open(&golden, golden_names[0]));
    pair_open(run, context, golden_folder(run, context, golden.json), &models);
    models.state.used = FAR_BYTES - 4096 * 3;
    esp_session *session = NULL;
    esp_error problem = {0};
    esp_status status = esp_session_create(models.far.model, 64, 64, &session, &problem);
    test_check_failure(run, __FILE__, __LINE__, "session", status, &problem, ESP_OUT_OF_MEMORY,
                       "device.out_of_memory");
    CHECK(strstr(problem.message, "MiB of its memory are free") != NULL);
    pair_close(&models);
    golden_free(&golden);
    test_context_free(run, context);
}

static const test_case cases[] = {{"decoders", decoders},
                                  {"encoders", encoders},
                                  {"images", images},
                                  {"memory", memory},
                                  {"no_room", no_room}};
TEST_MAIN(cases)
