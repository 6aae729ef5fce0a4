/* A model whose channels are reordered computes what it computed: for every family and every way of
 * naming tensors, under random legal orders of everything that is free at once, and under the
 * orders that the search finds. */
#include <math.h>

#include "golden_vision.h"
#include "model/fold.h"
#include "model_changes.h"
#include "pipeline/pipeline.h"

#define BOUND 1e-5 /* largest |difference| / largest |output|, f32 */
#define MOST_OUTPUTS (1 << 20)

static const char *const names[] = {"a_tiny_mha",
                                    "b_gqa_head64",
                                    "c_head_dim_biases",
                                    "d_llama3_rope",
                                    "g_heads_of_80",
                                    "i_one_token",
                                    "j_qwen2",
                                    "bert/a_heads_of_32",
                                    "bert/b_heads_of_80_relu",
                                    "bert/c_old_names_gelu_new",
                                    "bert/e_silu",
                                    "vision/a_vit_batch",
                                    "vision/d_deit_two_heads",
                                    "vision/e_deit_tanh_no_bias",
                                    "vision/f_timm_vit",
                                    "vision/g_timm_deit_two_heads",
                                    "vision/h_sam_padded_windows",
                                    "vision/i_sam_hidden_1024",
                                    "vision/j_sam_original_names"};

/* ---- outputs of a folder ---- */

static int64_t run_decoder(test_run *run, const esp_model *model, const json_t *golden,
                           float *outputs)
{
    int32_t ids[GOLDEN_MAX_IDS];
    esp_session *session = NULL;
    esp_model_info info;
    esp_model_get_info(model, &info);
    int64_t count = golden_ids(json_object_get(golden, "ids"), ids, GOLDEN_MAX_IDS);
    CHECK_OK(esp_session_create(model, count, 0, &session, error));
    CHECK_OK(esp_session_feed(session, ids, count, outputs, true, error));
    esp_session_free(session);
    return count * info.vocabulary;
}

static int64_t run_encoder(test_run *run, const esp_model *model, const json_t *golden,
                           float *outputs)
{
    int32_t ids[GOLDEN_MAX_IDS];
    int64_t lengths[8], tokens = 0;
    esp_embedder *embedder = NULL;
    esp_model_info info;
    esp_model_get_info(model, &info);
    const json_t *texts = json_object_get(golden, "texts");
    int64_t count = ESP_MIN((int64_t)json_array_size(texts), 8);
    for (int64_t i = 0; i < count; i++) {
        lengths[i] =
            golden_ids(json_array_get(texts, (size_t)i), ids + tokens, GOLDEN_MAX_IDS - tokens);
        tokens += lengths[i];
    }
    CHECK_OK(esp_embedder_create(model, 0, &embedder, error));
    CHECK_OK(esp_embed_ids(embedder, ids, lengths, count, outputs, error));
    esp_embedder_free(embedder);
    return count * info.embedding_size;
}

static int64_t run_images(test_run *run, const esp_model *model, const json_t *golden,
                          float *outputs)
{
    int64_t shape[3], size = 1;
    int64_t images = json_integer_value(json_object_get(golden, "images"));
    int64_t height = json_integer_value(json_object_get(golden, "height"));
    int64_t width = json_integer_value(json_object_get(golden, "width"));
    esp_vision *vision = NULL;
    float *pixels = golden_pixels(images * 3 * height * width);
    int rank = esp_vision_output_shape(model, shape);
    for (int i = 0; i < rank; i++) {
        size *= shape[i];
    }
    CHECK_OK(esp_vision_create(model, height, width, images, &vision, error));
    CHECK_OK(esp_vision_run(vision, pixels, images, outputs, error));
    esp_vision_free(vision);
    free(pixels);
    return images * size;
}

/* How many floats; 0 after a failure. */
static int64_t outputs_of(test_run *run, esp_context *context, const char *folder,
                          const json_t *golden, float *outputs)
{
    golden_model loaded;
    esp_error error = {0};
    if (golden_load(context, folder, "cpu", ESP_COMPUTE_F32, &loaded, &error) != ESP_OK) {
        test_fail(run, __FILE__, __LINE__, "%s", error.message);
        return 0;
    }
    esp_model_info info;
    esp_model_get_info(loaded.model, &info);
    int64_t count = info.kind == ESP_MODEL_DECODER ? run_decoder(run, loaded.model, golden, outputs)
                    : info.kind == ESP_MODEL_ENCODER
                        ? run_encoder(run, loaded.model, golden, outputs)
                        : run_images(run, loaded.model, golden, outputs);
    golden_close(&loaded);
    return test_failed(run) ? 0 : count;
}

/* ---- permutations ---- */

/* A random order of a space: units within a block. */
static void shuffle(esp_random *random, const esp_space *space, uint32_t *source_of)
{
    int64_t units = space->block / space->unit;
    for (int64_t u = 0; u < space->channels; u++) {
        source_of[u] = (uint32_t)u;
    }
    for (int64_t begin = 0; begin < space->channels; begin += space->block) {
        for (int64_t i = units; i > 1; i--) {
            int64_t a = begin + (i - 1) * space->unit;
            int64_t b = begin + (int64_t)esp_random_below(random, (uint64_t)i) * space->unit;
            for (int64_t k = 0; k < space->unit; k++) {
                uint32_t held = source_of[a + k];
                source_of[a + k] = source_of[b + k];
                source_of[b + k] = held;
            }
        }
    }
}

/* Every free order of the folder's model shuffled. Freed by esp_permutation_free. */
static esp_permutation *shuffled(test_run *run, esp_context *context, const char *folder)
{
    esp_random random;
    esp_device *device = NULL;
    esp_checkpoint *checkpoint = NULL;
    esp_model *model = NULL;
    esp_fold_plan plan = {0};
    esp_random_seed(&random, test_seed(run));
    CHECK_OK(esp_device_open(context, "cpu", &device, error));
    CHECK_OK(esp_checkpoint_open(context, folder, &checkpoint, error));
    CHECK_OK(esp_model_outline(device, checkpoint, &model, error));
    CHECK_OK(esp_fold_make(model, checkpoint, false, &plan, error));
    for (int i = 0; i < plan.space_count; i++) {
        uint32_t *source_of = calloc((size_t)plan.spaces[i].channels, sizeof *source_of);
        shuffle(&random, &plan.spaces[i], source_of);
        CHECK_OK(esp_space_reorder(plan.permutation, &plan.spaces[i], source_of, error));
        free(source_of);
    }
    esp_permutation *permutation = plan.permutation;
    plan.permutation = NULL;
    esp_fold_plan_free(context, &plan);
    esp_model_free(model);
    esp_checkpoint_close(checkpoint);
    esp_device_close(device);
    return permutation;
}

/* The folder reordered and not pruned. */
static void reorder_folder(test_run *run, esp_context *context, const char *folder,
                           const esp_permutation *permutation, char out[600])
{
    static int made;
    snprintf(out, 600, "%s-%d", folder, ++made);
    esp_prune_options options = {.permutation = permutation};
    CHECK_OK(esp_prune_checkpoint(context, folder, out, &options, NULL, error));
}

static double largest(const float *values, int64_t count)
{
    double most = 0;
    for (int64_t i = 0; i < count; i++) {
        test_note_largest(&most, fabs((double)values[i]));
    }
    return most;
}

/* ---- cases ---- */

static void compare(test_run *run, esp_context *context, const char *folder, const json_t *golden,
                    const esp_permutation *permutation)
{
    char out[600];
    float *before = calloc(MOST_OUTPUTS, sizeof *before);
    float *after = calloc(MOST_OUTPUTS, sizeof *after);
    reorder_folder(run, context, folder, permutation, out);
    int64_t count = outputs_of(run, context, folder, golden, before);
    CHECK_INT(outputs_of(run, context, out, golden, after), count);
    double most = largest(before, count), worst = 0;
    for (int64_t i = 0; i < count; i++) {
        test_note_largest(&worst, fabs((double)after[i] - (double)before[i]) / most);
    }
    if (count == 0 || !(worst <= BOUND)) {
        test_fail(run, __FILE__, __LINE__, "%lld outputs, largest difference %.2e",
                  (long long)count, worst);
    }
    free(before);
    free(after);
}

static void shuffled_models_compute_the_same(test_run *run)
{
    for (int i = 0; i < ESP_COUNT(names); i++) {
        test_sub(run, "%s", names[i]);
        esp_context *context = test_context(run, 2);
        json_t *golden = golden_json(names[i]);
        const char *folder = golden_folder(run, context, golden);
        esp_permutation *permutation = shuffled(run, context, folder);
        esp_permutation_summary summary;
        esp_permutation_get_summary(permutation, &summary);
        CHECK(summary.moved_orders >= 4 && summary.moved_channels > 0);
        CHECK_OK(esp_permutation_check(permutation, error));
        compare(run, context, folder, golden, permutation);
        esp_permutation_free(permutation);
        json_decref(golden);
        test_context_free(run, context);
    }
}

static const char *const patterns[] = {"2:4", "16:2:8", "64:2:5", "32:2:16", "panel:32@0.75"};

/* The mask report of a pruned folder: what pruning keeps of |w| is what the search promised. */
static void found_orders_compute_the_same(test_run *run)
{
    for (int i = 0; i < ESP_COUNT(names); i++) {
        const char *pattern = patterns[i % ESP_COUNT(patterns)];
        test_sub(run, "%s, %s", names[i], pattern);
        esp_context *context = test_context(run, 2);
        json_t *golden = golden_json(names[i]);
        const char *folder = golden_folder(run, context, golden);
        esp_prune_options options = {0};
        esp_permutation *permutation = NULL;
        CHECK_OK(esp_pattern_parse(pattern, &options.pattern, error));
        REQUIRE_OK(esp_permutation_search(context, folder, &options, NULL, &permutation, error));
        esp_permutation_summary summary;
        esp_permutation_get_summary(permutation, &summary);
        CHECK(summary.kept_after >= summary.kept_before && summary.kept_before > 0);
        CHECK(summary.kept_after <= 1);
        compare(run, context, folder, golden, permutation);
        esp_permutation_free(permutation);
        json_decref(golden);
        test_context_free(run, context);
    }
}

/* ---- models that ship ---- */

static void prose_computes_the_same(test_run *run)
{
    char folder[512];
    snprintf(folder, sizeof folder, "%s/models/prose", test_source_dir());
    esp_context *context = test_context(run, 2);
    esp_prune_options options = {0};
    esp_permutation *permutation = NULL;
    char out[600];
    snprintf(out, sizeof out, "%s/prose", test_folder(run));
    CHECK_OK(esp_pattern_parse("64:2:8", &options.pattern, error));
    REQUIRE_OK(esp_permutation_search(context, folder, &options, NULL, &permutation, error));
    options = (esp_prune_options){.permutation = permutation};
    CHECK_OK(esp_prune_checkpoint(context, folder, out, &options, NULL, error));
    json_t *golden = json_pack("{s:[i,i,i,i,i,i,i,i]}", "ids", 0, 17, 393, 1024, 77, 2048, 4095, 5);
    float *before = calloc(MOST_OUTPUTS, sizeof *before);
    float *after = calloc(MOST_OUTPUTS, sizeof *after);
    int64_t count = outputs_of(run, context, folder, golden, before);
    CHECK_INT(outputs_of(run, context, out, golden, after), count);
    double most = largest(before, count), worst = 0;
    for (int64_t i = 0; i < count; i++) {
        test_note_largest(&worst, fabs((double)after[i] - (double)before[i]) / most);
    }
    CHECK(count == 8 * 4096 && worst <= BOUND);
    free(before);
    free(after);
    json_decref(golden);
    esp_permutation_free(permutation);
    test_context_free(run, context);
}

static void glyphs_compute_the_same(test_run *run)
{
    char folder[512], out[600];
    snprintf(folder, sizeof folder, "%s/models/glyphs", test_source_dir());
    snprintf(out, sizeof out, "%s/glyphs", test_folder(run));
    esp_context *context = test_context(run, 2);
    esp_permutation *permutation = shuffled(run, context, folder);
    esp_prune_options options = {.permutation = permutation};
    CHECK_OK(esp_prune_checkpoint(context, folder, out, &options, NULL, error));
    golden_model loaded;
    esp_model_info info = {0};
    REQUIRE_OK(golden_load(context, folder, "cpu", ESP_COMPUTE_F32, &loaded, error));
    esp_model_get_info(loaded.model, &info);
    golden_close(&loaded);
    json_t *golden = json_pack("{s:i,s:i,s:i}", "images", 2, "height", (int)info.image_size,
                               "width", (int)info.image_size);
    float before[512], after[512];
    REQUIRE(2 * info.labels <= 512);
    int64_t count = outputs_of(run, context, folder, golden, before);
    CHECK_INT(outputs_of(run, context, out, golden, after), count);
    double most = largest(before, count), worst = 0;
    for (int64_t i = 0; i < count; i++) {
        test_note_largest(&worst, fabs((double)after[i] - (double)before[i]) / most);
    }
    CHECK(count > 0 && worst <= BOUND);
    json_decref(golden);
    esp_permutation_free(permutation);
    test_context_free(run, context);
}

/* ---- refusals ---- */

static void refuse(test_run *run, const char *folder, const char *pattern, esp_status status,
                   const char *code)
{
    esp_context *context = test_context(run, 1);
    esp_prune_options options = {0};
    esp_permutation *permutation = NULL;
    CHECK_OK(esp_pattern_parse(pattern, &options.pattern, error));
    CHECK_FAILS(esp_permutation_search(context, folder, &options, NULL, &permutation, error),
                status, code);
    CHECK(permutation == NULL);
    test_context_free(run, context);
}

static void refusals(test_run *run)
{
    esp_context *context = test_context(run, 1);
    json_t *golden = golden_json("a_tiny_mha");
    const char *folder = golden_folder(run, context, golden);
    char dense[512], other[512], wrong[512], pruned[600];
    snprintf(dense, sizeof dense, "%s", folder);
    snprintf(pruned, sizeof pruned, "%s-pruned", folder);
    esp_prune_options options = {0};
    CHECK_OK(esp_pattern_parse("2:4", &options.pattern, error));
    CHECK_OK(esp_prune_checkpoint(context, dense, pruned, &options, NULL, error));
    const change strange = {.add = "{\"name\": \"model.layers.0.extra.weight\", \"shape\": [4]}"};
    apply(golden, &strange);
    snprintf(other, sizeof other, "%s", golden_folder(run, context, golden));
    json_decref(golden);
    golden = golden_json("vision/a_vit_batch");
    const change narrow = {.add = "{\"name\": \"vit.pooler.dense.weight\", \"shape\": [7, 7]}"};
    apply(golden, &narrow);
    snprintf(wrong, sizeof wrong, "%s", golden_folder(run, context, golden));
    json_decref(golden);
    test_context_free(run, context);
    test_sub(run, "a compressed folder");
    refuse(run, pruned, "2:4", ESP_BAD_ARGUMENT, "permutation.compressed");
    test_sub(run, "a pattern that no order matters to");
    refuse(run, dense, "unstructured@0.5", ESP_BAD_ARGUMENT, "permutation.no_pattern");
    test_sub(run, "a tensor that the family does not know");
    refuse(run, other, "2:4", ESP_UNSUPPORTED, "permutation.unknown_tensor");
    test_sub(run, "a tensor that does not fit the others");
    refuse(run, wrong, "2:4", ESP_BAD_FILE, "permutation.wrong_shape");
}

static const test_case cases[] = {
    {"shuffled models compute the same", shuffled_models_compute_the_same},
    {"found orders compute the same", found_orders_compute_the_same},
    {"prose computes the same", prose_computes_the_same},
    {"glyphs compute the same", glyphs_compute_the_same},
    {"refusals", refusals},
};
TEST_MAIN(cases)
