/* Checkpoints of random numbers: every shape that is shipped for measuring asks for tensors that
 * its family loads; pruned layers are what pruning makes of the dense ones; models that are loaded
 * from them give finite results. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <espalier/espalier.h>

#include "base/base.h"
#include "test.h"

static const char *config_folder(const char *name)
{
    static char path[4096];
    snprintf(path, sizeof path, "%s/bench/configs/%s", test_source_dir(), name);
    return path;
}

static void shipped_shapes(test_run *run)
{
    static const struct {
        const char *name;
        int64_t linear, parameters_low, parameters_high;
    } shapes[] = {
        {"deit-small", 72, 21000000, 23000000},    {"deit-base", 72, 85000000, 88000000},
        {"vit-large", 144, 300000000, 306000000},  {"sam-vit-huge", 128, 630000000, 640000000},
        {"bert-large", 144, 330000000, 336000000}, {"llama-2-7b", 224, 6700000000, 6750000000}};
    esp_context *context = test_context(run, 1);
    esp_device *device = NULL;
    REQUIRE_OK(esp_device_open(context, "cpu", &device, error));
    for (int i = 0; i < ESP_COUNT(shapes); i++) {
        esp_prune_options prune = {.pattern = {.kind = ESP_PATTERN_DENSE}};
        esp_draw_options options = {.dtype = ESP_F16, .seed = 1, .prune = &prune};
        esp_checkpoint *checkpoint = NULL;
        int64_t parameters = 0, pruned = 0;
        test_sub(run, "%s", shapes[i].name);
        CHECK_OK(esp_pattern_parse("64:2:8", &prune.pattern, error));
        REQUIRE_OK(esp_checkpoint_draw(device, config_folder(shapes[i].name), &options, &checkpoint,
                                       error));
        for (int64_t k = 0; k < esp_checkpoint_count(checkpoint); k++) {
            esp_weight_info info = esp_checkpoint_get(checkpoint, k);
            parameters += (int64_t)(info.dense_bytes / 2);
            pruned += info.pattern.kind != ESP_PATTERN_DENSE;
            CHECK(info.stored_bytes <= info.dense_bytes);
            CHECK_INT(esp_checkpoint_find(checkpoint, info.name), k);
        }
        CHECK(pruned >= shapes[i].linear && pruned <= shapes[i].linear + 2); /* and heads */
        CHECK(parameters >= shapes[i].parameters_low && parameters <= shapes[i].parameters_high);
        esp_checkpoint_close(checkpoint);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

static void write_config(test_run *run, const char *folder, const char *text)
{
    test_write_file(run, test_path(folder, "config.json"), text, strlen(text));
}

#define SMALL_LLAMA                                                                                \
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": 128," \
    "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "           \
    "\"intermediate_size\": 256, \"hidden_act\": \"silu\", \"rms_norm_eps\": 1e-5, "               \
    "\"max_position_embeddings\": 64, \"vocab_size\": 300}"

/* A pruned matrix is the dense one under the mask that pruning chooses, and the same when it is
 * read again. */
static void pruned_as_real_ones(test_run *run)
{
    const char *folder = test_folder(run), *name = "model.layers.1.mlp.up_proj.weight";
    esp_context *context = test_context(run, 2);
    esp_device *device = NULL;
    esp_checkpoint *checkpoints[2] = {NULL, NULL};
    esp_prune_options prune = {.pattern = {.kind = ESP_PATTERN_DENSE}};
    esp_draw_options options = {.dtype = ESP_BF16, .seed = 7};
    esp_tensor dense = {0}, drawn = {0};
    esp_mask *mask = NULL;
    esp_sparse *sparse = NULL;
    write_config(run, folder, SMALL_LLAMA);
    REQUIRE_OK(esp_device_open(context, "cpu", &device, error));
    REQUIRE_OK(esp_pattern_parse("64:2:8", &prune.pattern, error));
    for (int i = 0; i < 2; i++) {
        options.prune = i == 0 ? NULL : &prune;
        REQUIRE_OK(esp_checkpoint_draw(device, folder, &options, &checkpoints[i], error));
    }
    int64_t index = esp_checkpoint_find(checkpoints[0], name);
    REQUIRE(index >= 0);
    esp_weight_info info = esp_checkpoint_get(checkpoints[0], index);
    REQUIRE_OK(esp_tensor_create(context, info.dtype, 2, info.shape, &dense, error));
    REQUIRE_OK(esp_tensor_create(context, info.dtype, 2, info.shape, &drawn, error));
    CHECK_OK(esp_checkpoint_read_dense(checkpoints[0], index, &dense, error));
    REQUIRE_OK(esp_prune_mask(context, &dense, &prune.pattern, NULL, &mask, NULL, error));
    CHECK_OK(esp_mask_apply(mask, &dense, error));
    for (int i = 0; i < 2; i++) { /* made, then kept */
        REQUIRE_OK(esp_checkpoint_read_sparse(checkpoints[1], index, &sparse, error));
        CHECK_OK(esp_sparse_check(sparse, error));
        CHECK_OK(esp_sparse_decode(sparse, &drawn, error));
        CHECK(memcmp(dense.data, drawn.data, info.dense_bytes) == 0);
        esp_sparse_free(sparse);
    }
    CHECK_OK(esp_checkpoint_read_dense(checkpoints[1], index, &drawn, error));
    CHECK(memcmp(dense.data, drawn.data, info.dense_bytes) == 0);
    esp_mask_free(mask);
    esp_tensor_free(context, &dense);
    esp_tensor_free(context, &drawn);
    esp_checkpoint_close(checkpoints[0]);
    esp_checkpoint_close(checkpoints[1]);
    esp_device_close(device);
    test_context_free(run, context);
}

static void models_run(test_run *run)
{
    static const esp_dtype types[] = {ESP_F32, ESP_F16, ESP_BF16};
    const char *folder = test_folder(run);
    const int32_t ids[] = {1, 17, 299, 5};
    esp_context *context = test_context(run, 2);
    esp_device *device = NULL;
    write_config(run, folder, SMALL_LLAMA);
    REQUIRE_OK(esp_device_open(context, "cpu", &device, error));
    for (int i = 0; i < ESP_COUNT(types); i++) {
        esp_prune_options prune = {.pattern = {.kind = ESP_PATTERN_DENSE}};
        esp_draw_options options = {.dtype = types[i], .seed = 3, .prune = &prune};
        esp_checkpoint *checkpoint = NULL;
        esp_model *model = NULL;
        esp_session *session = NULL;
        float logits[300];
        double size = 0;
        test_sub(run, "type %s", esp_dtype_name(types[i]));
        REQUIRE_OK(esp_pattern_parse("2:4", &prune.pattern, error));
        REQUIRE_OK(esp_checkpoint_draw(device, folder, &options, &checkpoint, error));
        REQUIRE_OK(esp_model_load(device, checkpoint, NULL, &model, error));
        REQUIRE_OK(esp_session_create(model, 16, 0, &session, error));
        CHECK_OK(esp_session_feed(session, ids, 4, logits, false, error));
        for (int k = 0; k < 300; k++) {
            size += (double)logits[k] * (double)logits[k];
        }
        CHECK(isfinite(size) && size / 300 > 0.01 && size / 300 < 100);
        esp_session_free(session);
        esp_model_free(model);
        esp_checkpoint_close(checkpoint);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

static void refused(test_run *run)
{
    const char *folder = test_folder(run);
    esp_context *context = test_context(run, 1);
    esp_device *device = NULL;
    esp_checkpoint *checkpoint = NULL;
    esp_draw_options options = {.dtype = ESP_F16};
    REQUIRE_OK(esp_device_open(context, "cpu", &device, error));
    CHECK_FAILS(
        esp_checkpoint_draw(device, test_path(folder, "nothing"), &options, &checkpoint, error),
        ESP_BAD_FILE, "checkpoint.no_config");
    write_config(run, folder, "{\"model_type\": \"unheard-of\"}");
    CHECK_FAILS(esp_checkpoint_draw(device, folder, &options, &checkpoint, error), ESP_UNSUPPORTED,
                "config.unsupported_architecture");
    write_config(run, folder, "{\"model_type\": \"llama\"}");
    CHECK_FAILS(esp_checkpoint_draw(device, folder, &options, &checkpoint, error), ESP_BAD_FILE,
                "config.missing_key");
    options.dtype = ESP_I32;
    CHECK_FAILS(esp_checkpoint_draw(device, folder, &options, &checkpoint, error), ESP_BAD_ARGUMENT,
                "draw.bad_dtype");
    const esp_prune_options nothing = {.skips = (const char *const[]){"nobody*"}, .skip_count = 1};
    options = (esp_draw_options){.dtype = ESP_F16, .prune = &nothing};
    write_config(run, folder, SMALL_LLAMA);
    CHECK_FAILS(esp_checkpoint_draw(device, folder, &options, &checkpoint, error), ESP_BAD_ARGUMENT,
                "prune.glob_matches_nothing");
    CHECK(checkpoint == NULL);
    esp_device_close(device);
    test_context_free(run, context);
}

static const test_case cases[] = {{"shipped_shapes", shipped_shapes},
                                  {"pruned_as_real_ones", pruned_as_real_ones},
                                  {"models_run", models_run},
                                  {"refused", refused}};
TEST_MAIN(cases)
