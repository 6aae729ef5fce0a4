/* Every family on a GPU against the reference: outputs within what 16-bit activations explain, the
 * same bits whether work is given or given again, and sequences in step as alone. */
#include <math.h>

#include <espalier/prune.h>

#include "golden_vision.h"
#include "greedy.h"

/* Largest |difference| / largest |expected|: activations are rounded to 11 or 8 bits a dozen times
 * on the way through these two or three layers. */
#define F16_BOUND 0.02
#define BF16_BOUND 0.12

typedef struct pair {
    golden_model near, gpu;
    double bound;
} pair;

static void pair_open(test_run *run, esp_context *context, const char *folder, esp_compute compute,
                      pair *made)
{
    *made = (pair){.bound = F16_BOUND};
    REQUIRE_OK(golden_load(context, folder, "ref", ESP_COMPUTE_F32, &made->near, error));
    REQUIRE_OK(golden_load(context, folder, "cuda:0", compute, &made->gpu, error));
    esp_weight_info info = esp_checkpoint_get(made->near.checkpoint, 0);
    if (compute == ESP_COMPUTE_BF16 || info.dtype == ESP_BF16) {
        made->bound = BF16_BOUND;
    }
    esp_model_info model;
    esp_model_get_info(made->gpu.model, &model);
    CHECK_INT(model.activations, made->bound == BF16_BOUND ? ESP_BF16 : ESP_F16);
}

static void pair_close(pair *opened)
{
    golden_close(&opened->near);
    golden_close(&opened->gpu);
}

static void check_near(test_run *run, const float *near, const float *gpu, int64_t count,
                       double bound)
{
    double most = 0, worst = 0;
    for (int64_t i = 0; i < count; i++) {
        test_note_largest(&most, fabs((double)near[i]));
        test_note_largest(&worst, fabs((double)near[i] - (double)gpu[i]));
    }
    if (!(worst <= bound * most)) {
        test_fail(run, __FILE__, __LINE__, "largest difference %.3g of %.3g, more than %g", worst,
                  most, bound);
    }
    if (getenv("TEST_SHOW") != NULL) {
        printf("%.2e of %g\n", worst / most, bound);
    }
}

/* The worst layer, seen one by one. */
typedef struct seen {
    float *data[64];
    int64_t counts[64];
    int count;
} seen;

static void see(void *user, const char *name, const float *data, int64_t features, int64_t tokens)
{
    seen *all = user;
    (void)name;
    if (all->count < ESP_COUNT(all->data)) {
        size_t bytes = (size_t)(features * tokens) * sizeof *data;
        all->data[all->count] = malloc(bytes);
        memcpy(all->data[all->count], data, bytes);
        all->counts[all->count++] = features * tokens;
    }
}

static void compare_seen(test_run *run, seen sides[2], double bound)
{
    CHECK_INT(sides[0].count, sides[1].count);
    for (int i = 0; i < ESP_MIN(sides[0].count, sides[1].count); i++) {
        CHECK_INT(sides[0].counts[i], sides[1].counts[i]);
        test_sub(run, "result %d", i);
        check_near(run, sides[0].data[i], sides[1].data[i], sides[0].counts[i], bound);
    }
    for (int side = 0; side < 2; side++) {
        for (int i = 0; i < sides[side].count; i++) {
            free(sides[side].data[i]);
        }
    }
}

/* ---- decoders ---- */

enum { SEQUENCES = 3, STEPS = 4, PROMPT = 13, BATCH = 11 };

static void check_sessions(test_run *run, const pair *models, const golden_data *golden)
{
    const golden_model *sides[2] = {&models->near, &models->gpu};
    int64_t vocabulary = golden->vocabulary;
    esp_session *sessions[2][SEQUENCES] = {{NULL}};
    float *logits[2], *again = calloc((size_t)vocabulary, sizeof *again);
    seen shown[2] = {{.count = 0}, {.count = 0}};
    for (int i = 0; i < 2; i++) {
        logits[i] = calloc((size_t)(PROMPT * vocabulary), sizeof **logits);
        for (int k = 0; k < SEQUENCES; k++) {
            REQUIRE_OK(
                esp_session_create(sides[i]->model, 40 + 5 * k, BATCH, &sessions[i][k], error));
            esp_session_observe(sessions[i][k], k == 0 ? see : NULL, &shown[i]);
            CHECK_OK(
                esp_session_feed(sessions[i][k], golden->ids, PROMPT - k, logits[i], true, error));
            esp_session_observe(sessions[i][k], NULL, NULL);
        }
    }
    compare_seen(run, shown, models->bound);
    test_sub(run, "%s, all logits", golden->name);
    check_near(run, logits[0], logits[1], (PROMPT - SEQUENCES + 1) * vocabulary, models->bound);
    test_sub(run, "%s, the last token's logits alone", golden->name);
    for (int i = 0; i < 2; i++) {
        esp_session_truncate(sessions[i][0], 0);
        CHECK_OK(esp_session_feed(sessions[i][0], golden->ids, PROMPT, again, false, error));
        check_near(run, logits[i] + (PROMPT - 1) * vocabulary, again, vocabulary, models->bound);
    }
    for (int step = 0; step < STEPS; step++) {
        test_sub(run, "%s, step %d", golden->name, step);
        for (int i = 0; i < 2; i++) {
            CHECK_OK(esp_session_feed(sessions[i][0], golden->ids + PROMPT + step, 1, logits[i],
                                      false, error));
        }
        check_near(run, logits[0], logits[1], vocabulary, models->bound);
        esp_session_truncate(sessions[1][0], PROMPT + step);
        CHECK_OK(
            esp_session_feed(sessions[1][0], golden->ids + PROMPT + step, 1, again, false, error));
        CHECK(memcmp(again, logits[1], (size_t)vocabulary * sizeof *again) == 0);
    }
    for (int step = 0; step < STEPS; step++) {
        test_sub(run, "%s, step %d together", golden->name, step);
        for (int i = 0; i < 2; i++) {
            CHECK_OK(
                esp_sessions_feed(sessions[i], SEQUENCES, golden->ids + step, logits[i], error));
        }
        check_near(run, logits[0], logits[1], SEQUENCES * vocabulary, models->bound);
    }
    for (int i = 0; i < 2; i++) {
        test_sub(run, "%s, greedy", golden->name);
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
    free(again);
}

static void decoders(test_run *run)
{
    for (int i = 0; i < 2 * ESP_COUNT(golden_names); i++) {
        golden_data golden;
        pair models;
        esp_context *context = test_context(run, 4);
        if (!golden_has_gpu(context)) {
            test_context_free(run, context);
            test_skip(run, "no GPU");
            return;
        }
        REQUIRE(golden_open(&golden, golden_names[i / 2]));
        test_sub(run, "%s", golden.name);
        if (golden.count > PROMPT + STEPS) {
            pair_open(run, context, golden_folder(run, context, golden.json),
                      i % 2 == 0 ? ESP_COMPUTE_AUTO : ESP_COMPUTE_BF16, &models);
            check_sessions(run, &models, &golden);
            pair_close(&models);
        }
        golden_free(&golden);
        test_context_free(run, context);
    }
}

/* ---- encoders ---- */

static void check_texts(test_run *run, const pair *models, int64_t vocabulary, int64_t hidden)
{
    static const int64_t lengths[] = {3, 8, 1, 9, 5};
    enum { TEXTS = ESP_COUNT(lengths), TOKENS = 26 };
    int32_t ids[TOKENS];
    const golden_model *sides[2] = {&models->near, &models->gpu};
    float *vectors[2], *again = calloc((size_t)(TEXTS * hidden), sizeof *again);
    seen shown[2] = {{.count = 0}, {.count = 0}};
    for (int64_t t = 0; t < TOKENS; t++) {
        ids[t] = (int32_t)(7 * t % vocabulary);
    }
    for (int i = 0; i < 2; i++) {
        esp_embedder *embedder = NULL;
        vectors[i] = calloc((size_t)(TEXTS * hidden), sizeof **vectors);
        REQUIRE_OK(esp_embedder_create(sides[i]->model, 0, &embedder, error));
        esp_embedder_observe(embedder, see, &shown[i]);
        CHECK_OK(esp_embed_ids(embedder, ids, lengths, TEXTS, vectors[i], error));
        esp_embedder_observe(embedder, NULL, NULL);
        for (int k = 0; k < 3; k++) {
            CHECK_OK(esp_embed_ids(embedder, ids, lengths, TEXTS, again, error));
            CHECK(memcmp(again, vectors[i], (size_t)(TEXTS * hidden) * sizeof *again) == 0);
        }
        esp_embedder_free(embedder);
    }
    compare_seen(run, shown, models->bound);
    test_sub(run, "vectors");
    check_near(run, vectors[0], vectors[1], TEXTS * hidden, models->bound);
    free(vectors[0]);
    free(vectors[1]);
    free(again);
}

static void encoders(test_run *run)
{
    static const char *const names[] = {"bert/a_heads_of_32", "bert/b_heads_of_80_relu",
                                        "bert/d_hidden_1024", "bert/e_silu"};
    for (int i = 0; i < 2 * ESP_COUNT(names); i++) {
        pair models;
        esp_model_info info;
        esp_context *context = test_context(run, 4);
        if (!golden_has_gpu(context)) {
            test_context_free(run, context);
            test_skip(run, "no GPU");
            return;
        }
        json_t *json = golden_json(names[i / 2]);
        test_sub(run, "%s", names[i / 2]);
        pair_open(run, context, golden_folder(run, context, json),
                  i % 2 == 0 ? ESP_COMPUTE_AUTO : ESP_COMPUTE_BF16, &models);
        esp_model_get_info(models.near.model, &info);
        check_texts(run, &models, info.vocabulary - 4, info.embedding_size);
        pair_close(&models);
        json_decref(json);
        test_context_free(run, context);
    }
}

/* ---- images ---- */

static void check_images(test_run *run, const pair *models, const golden_vision *golden)
{
    const golden_model *sides[2] = {&models->near, &models->gpu};
    int64_t shape[3], size = golden->images;
    int rank = esp_vision_output_shape(models->near.model, shape);
    for (int i = 0; i < rank; i++) {
        size *= shape[i];
    }
    float *outputs[2], *again = calloc((size_t)size, sizeof *again);
    float *watched = calloc((size_t)size, sizeof *watched);
    seen shown[2] = {{.count = 0}, {.count = 0}};
    for (int i = 0; i < 2; i++) {
        esp_vision *vision = NULL;
        outputs[i] = calloc((size_t)size, sizeof **outputs);
        REQUIRE_OK(esp_vision_create(sides[i]->model, golden->height, golden->width, golden->images,
                                     &vision, error));
        esp_vision_observe(vision, see, &shown[i]);
        CHECK_OK(esp_vision_run(vision, golden->pixels, golden->images, watched, error));
        esp_vision_observe(vision, NULL, NULL);
        CHECK_OK(esp_vision_run(vision, golden->pixels, golden->images, outputs[i], error));
        check_near(run, watched, outputs[i], size, models->bound); /* may be fewer tokens' work */
        for (int k = 0; k < 3; k++) {
            CHECK_OK(esp_vision_run(vision, golden->pixels, golden->images, again, error));
            CHECK(memcmp(again, outputs[i], (size_t)size * sizeof *again) == 0);
        }
        esp_vision_free(vision);
    }
    compare_seen(run, shown, models->bound);
    test_sub(run, "output");
    check_near(run, outputs[0], outputs[1], size, models->bound);
    free(outputs[0]);
    free(outputs[1]);
    free(watched);
    free(again);
}

static void images(test_run *run)
{
    static const char *const names[] = {"a_vit_batch",           "b_vit_head80_other_size",
                                        "c_vit_hidden_1024",     "d_deit_two_heads",
                                        "e_deit_tanh_no_bias",   "f_timm_vit",
                                        "g_timm_deit_two_heads", "h_sam_padded_windows",
                                        "i_sam_hidden_1024",     "j_sam_original_names"};
    for (int i = 0; i < 2 * ESP_COUNT(names); i++) {
        golden_vision golden;
        pair models;
        esp_context *context = test_context(run, 4);
        if (!golden_has_gpu(context)) {
            test_context_free(run, context);
            test_skip(run, "no GPU");
            return;
        }
        REQUIRE(golden_vision_open(&golden, names[i / 2]));
        test_sub(run, "%s", names[i / 2]);
        pair_open(run, context, golden_folder(run, context, golden.json),
                  i % 2 == 0 ? ESP_COMPUTE_AUTO : ESP_COMPUTE_BF16, &models);
        check_images(run, &models, &golden);
        pair_close(&models);
        golden_vision_free(&golden);
        test_context_free(run, context);
    }
}

/* ---- for the tools that watch every access to memory ---- */

/* Whole models, small: a prompt and two steps, or one batch, given once and given again. The first
 * layer is V:N:M, of the others some are dense and some 2:4. All memory of the GPU is NaN before it
 * is used: what a model leaves unwritten beside its columns is read, and must not matter. */

static const esp_backend *unpoisoned;

static void *allocate_poisoned(esp_device *device, size_t bytes)
{
    void *memory = unpoisoned->alloc(device, bytes);
    esp_error error;
    if (memory != NULL && (unpoisoned->fill(device, memory, 0xff, bytes, &error) != ESP_OK ||
                           unpoisoned->wait(device, &error) != ESP_OK)) {
        unpoisoned->release(device, memory);
        return NULL;
    }
    return memory;
}

typedef struct watched {
    const char *name, *dense; /* of the golden description; a glob of layers that stay dense */
    esp_compute compute;
} watched;

static void mix_patterns(test_run *run, esp_context *context, const char *source,
                         const char *folder, const char *dense)
{
    esp_pattern_rule first = {.glob = "*.0.*"};
    esp_prune_options options = {
        .rules = &first, .rule_count = 1, .skips = &dense, .skip_count = 1};
    REQUIRE_OK(esp_pattern_parse("64:2:8", &first.pattern, error));
    REQUIRE_OK(esp_pattern_parse("2:4", &options.pattern, error));
    REQUIRE_OK(esp_prune_checkpoint(context, source, folder, &options, NULL, error));
}

typedef void (*check_fn)(test_run *run, const pair *models, const void *golden);

static void watch(test_run *run, const json_t *golden, const watched *how, check_fn check,
                  const void *user)
{
    esp_context *context = test_context(run, 4);
    if (!golden_has_gpu(context)) {
        test_context_free(run, context);
        test_skip(run, "no GPU");
        return;
    }
    char source[512], folder[600];
    pair models = {.bound = how->compute == ESP_COMPUTE_BF16 ? BF16_BOUND : F16_BOUND};
    esp_backend poisoned;
    test_sub(run, "%s", how->name);
    snprintf(source, sizeof source, "%s", golden_folder(run, context, golden));
    snprintf(folder, sizeof folder, "%s-mixed", source);
    mix_patterns(run, context, source, folder, how->dense);
    REQUIRE_OK(golden_load(context, folder, "ref", ESP_COMPUTE_F32, &models.near, error));
    REQUIRE_OK(esp_device_open(context, "cuda:0", &models.gpu.device, error));
    unpoisoned = models.gpu.device->backend;
    poisoned = *unpoisoned;
    poisoned.alloc = allocate_poisoned;
    models.gpu.device->backend = &poisoned;
    const esp_model_options options = {.compute = how->compute, .memory = ESP_MEMORY_SPARSE};
    REQUIRE_OK(esp_checkpoint_open(context, folder, &models.gpu.checkpoint, error));
    REQUIRE_OK(esp_model_load(models.gpu.device, models.gpu.checkpoint, &options, &models.gpu.model,
                              error));
    check(run, &models, user);
    esp_model_free(models.gpu.model);
    models.gpu.model = NULL;
    models.gpu.device->backend = unpoisoned;
    pair_close(&models);
    test_context_free(run, context);
}

static void check_prompt_and_steps(test_run *run, const pair *models, const void *user)
{
    const golden_data *golden = user;
    const golden_model *sides[2] = {&models->near, &models->gpu};
    int64_t vocabulary = golden->vocabulary, count = PROMPT + 2;
    float *logits[2];
    for (int i = 0; i < 2; i++) {
        esp_session *session = NULL;
        logits[i] = calloc((size_t)(count * vocabulary), sizeof **logits);
        REQUIRE_OK(esp_session_create(sides[i]->model, 40, BATCH, &session, error));
        CHECK_OK(esp_session_feed(session, golden->ids, PROMPT, logits[i], true, error));
        for (int64_t t = PROMPT; t < count; t++) {
            CHECK_OK(esp_session_feed(session, golden->ids + t, 1, logits[i] + t * vocabulary,
                                      false, error));
        }
        greedy_check_one(run, session, golden->ids, 1, vocabulary, 1);
        esp_session_free(session);
    }
    check_near(run, logits[0], logits[1], count * vocabulary, models->bound);
    free(logits[0]);
    free(logits[1]);
}

static void watched_decoder(test_run *run)
{
    static const watched how = {"c_head_dim_biases", "*.1.mlp.*", ESP_COMPUTE_AUTO};
    golden_data golden;
    REQUIRE(golden_open(&golden, how.name));
    REQUIRE(golden.count >= PROMPT + 2);
    watch(run, golden.json, &how, check_prompt_and_steps, &golden);
    golden_free(&golden);
}

static void check_some_texts(test_run *run, const pair *models, const void *user)
{
    esp_model_info info;
    (void)user;
    esp_model_get_info(models->near.model, &info);
    check_texts(run, models, info.vocabulary - 4, info.embedding_size);
}

static void watched_encoder(test_run *run)
{
    static const watched how = {"bert/a_heads_of_32", "*.1.output.*", ESP_COMPUTE_BF16};
    json_t *json = golden_json(how.name);
    watch(run, json, &how, check_some_texts, NULL);
    json_decref(json);
}

static void check_some_images(test_run *run, const pair *models, const void *golden)
{
    check_images(run, models, golden);
}

/* SAM's has windows that are padded, and relative positions. */
static void watched_images(test_run *run)
{
    static const watched how[] = {{"a_vit_batch", "*.1.output.*", ESP_COMPUTE_AUTO},
                                  {"h_sam_padded_windows", "*.2.mlp.*", ESP_COMPUTE_BF16}};
    for (int i = 0; i < ESP_COUNT(how); i++) {
        golden_vision golden;
        REQUIRE(golden_vision_open(&golden, how[i].name));
        watch(run, golden.json, &how[i], check_some_images, &golden);
        golden_vision_free(&golden);
    }
}

static const test_case cases[] = {{"decoders", decoders},
                                  {"encoders", encoders},
                                  {"images", images},
                                  {"decoder_for_sanitizers", watched_decoder},
                                  {"encoder_for_sanitizers", watched_encoder},
                                  {"images_for_sanitizers", watched_images}};
TEST_MAIN(cases)
