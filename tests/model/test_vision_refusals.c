/* Folders of image models that must be refused, each by its code, odd ones that must be taken, and
 * calls with bad arguments. */
#include "golden_vision.h"

/* A change to the golden description of a good model; see test_model_refusals.c. */
typedef struct change {
    const char *golden;
    const char *config; /* JSON object merged into config.json (or vision_config) */
    const char *drop, *reshape, *integers, *add;
    const char *code; /* NULL: must load */
    esp_status status;
} change;

#define VIT "a_vit_batch"
#define DEIT "d_deit_two_heads"
#define TIMM "f_timm_vit"
#define SAM "h_sam_padded_windows"
#define ORIGINAL "j_sam_original_names"
#define WIDE "i_sam_hidden_1024"
#define UNSUPPORTED(text) .code = text, .status = ESP_UNSUPPORTED
#define QUERY "vit.encoder.layer.0.attention.attention.query.weight"

static const change changes[] = {
    {VIT, "{\"architectures\": [\"ViTModel\"]}", UNSUPPORTED("config.unsupported_architecture")},
    {VIT, "{\"model_type\": \"swin\"}", UNSUPPORTED("config.unsupported_architecture")},
    {VIT, "{\"hidden_act\": \"gelu_fast\"}", UNSUPPORTED("config.unsupported_activation")},
    {VIT, "{\"hidden_act\": 3}", .code = "config.bad_type"},
    {VIT, "{\"num_channels\": 1}", UNSUPPORTED("config.unsupported_channels")},
    {VIT, "{\"num_attention_heads\": 5}", .code = "config.heads_divide_hidden"},
    {VIT, "{\"image_size\": 33}", .code = "config.patches_divide_image"},
    {VIT, "{\"image_size\": 0}", .code = "config.bad_value"},
    {VIT, "{\"image_size\": [32, 32]}", .code = "config.bad_type"},
    {VIT, "{\"image_size\": 1000000000}", .code = "config.bad_value"},
    {VIT, "{\"patch_size\": \"(remove)\"}", .code = "config.missing_key"},
    {VIT, "{\"num_hidden_layers\": 0}", .code = "config.bad_value"},
    {VIT, "{\"num_hidden_layers\": 1000000000}", .code = "config.bad_value"},
    {VIT, "{\"num_hidden_layers\": 3}", .code = "model.missing_tensor"},
    {VIT, "{\"hidden_size\": \"64\"}", .code = "config.bad_type"},
    {VIT, "{\"layer_norm_eps\": \"(remove)\"}", .code = "config.missing_key"},
    {VIT, "{\"layer_norm_eps\": 0}", .code = "config.bad_value"},
    {VIT, "{\"qkv_bias\": 1}", .code = "config.bad_type"},
    {VIT, "{\"intermediate_size\": 128}", .code = "model.wrong_shape"},
    {VIT, "{\"id2label\": {}}", .code = "config.bad_labels"},
    {VIT, "{\"id2label\": [\"a\"]}", .code = "config.bad_labels"},
    {VIT, "{\"id2label\": {\"0\": \"a\", \"2\": \"b\"}}", .code = "config.bad_labels"},
    {VIT, "{\"id2label\": {\"0\": \"a\", \"1\": 7}}", .code = "config.bad_labels"},
    {VIT, "{\"id2label\": {\"0\": \"a\", \"1\": \"b\"}}", .code = "model.wrong_shape"},
    {VIT, "{\"id2label\": \"(remove)\", \"num_labels\": -1}", .code = "config.bad_value"},
    {VIT, .drop = "classifier.weight", .code = "model.missing_tensor"},
    {VIT, .drop = "vit.embeddings.position_embeddings", .code = "model.missing_tensor"},
    {VIT, .reshape = "vit.embeddings.cls_token", .code = "model.wrong_shape"},
    {VIT, .reshape = "vit.embeddings.patch_embeddings.projection.weight",
     .code = "model.wrong_shape"},
    {VIT, .integers = QUERY, .code = "model.wrong_dtype"},
    {DEIT, .drop = "deit.embeddings.distillation_token", .code = "model.missing_tensor"},
    {DEIT, .drop = "distillation_classifier.bias", .code = "model.missing_tensor"},
    {TIMM, .drop = "blocks.1.attn.qkv.bias", .code = "model.missing_tensor"},
    {TIMM, "{\"image_size\": 64}", .code = "model.wrong_shape"},
    {SAM, "{\"global_attn_indexes\": \"(remove)\"}", .code = "config.missing_key"},
    {SAM, "{\"global_attn_indexes\": 1}", .code = "config.bad_type"},
    {SAM, "{\"global_attn_indexes\": [3]}", .code = "config.bad_value"},
    {SAM, "{\"global_attn_indexes\": [-1]}", .code = "config.bad_value"},
    {SAM, "{\"global_attn_indexes\": [0]}", .code = "model.wrong_shape"},
    {SAM, "{\"window_size\": 0}", .code = "config.bad_value"},
    {SAM, "{\"window_size\": 11}", .code = "config.bad_value"},
    {SAM, "{\"window_size\": 5}", .code = "model.wrong_shape"},
    {SAM, "{\"mlp_dim\": null, \"mlp_ratio\": 1e9}", .code = "config.bad_value"},
    {SAM, "{\"output_channels\": 25}", .code = "model.wrong_shape"},
    {SAM, .drop = "vision_encoder.neck.conv2.weight", .code = "model.missing_tensor"},
    {SAM, .drop = "vision_encoder.layers.2.attn.rel_pos_w", .code = "model.missing_tensor"},
    {ORIGINAL, .drop = "image_encoder.neck.3.bias", .code = "model.missing_tensor"},
    {WIDE, "{\"num_attention_heads\": 7}", .code = "config.heads_divide_hidden"},

    {VIT, "{\"architectures\": \"(remove)\", \"num_channels\": null, \"qkv_bias\": null}",
     .code = NULL},
    {VIT, .add = "{\"name\": \"vit.pooler.dense.weight\", \"shape\": [64, 64]}"},
    {VIT, "{\"encoder_stride\": 16, \"pooler_act\": \"tanh\", \"x\": {\"y\": []}}", .code = NULL},
    {SAM, "{\"layer_norm_eps\": \"(remove)\", \"num_pos_feats\": 128}",
     .add = "{\"name\": \"mask_decoder.iou_token.weight\", \"shape\": [1, 256]}"},
};

static void merge(json_t *config, const char *text)
{
    const char *key;
    json_t *value, *parsed = json_loads(text, 0, NULL);
    json_object_foreach(parsed, key, value)
    {
        if (json_is_string(value) && strcmp(json_string_value(value), "(remove)") == 0) {
            json_object_del(config, key);
        } else {
            json_object_set(config, key, value);
        }
    }
    json_decref(parsed);
}

static void apply(json_t *golden, const change *what)
{
    json_t *tensors = json_object_get(golden, "tensors"),
           *config = json_object_get(golden, "config");
    json_t *inner = json_object_get(config, "vision_config");
    for (size_t i = json_array_size(tensors); i-- > 0;) {
        json_t *entry = json_array_get(tensors, i);
        const char *name = json_string_value(json_object_get(entry, "name"));
        if (what->drop != NULL && strcmp(name, what->drop) == 0) {
            json_array_remove(tensors, i);
        } else if (what->reshape != NULL && strcmp(name, what->reshape) == 0) {
            json_object_set_new(entry, "shape", json_pack("[i]", 3));
        } else if (what->integers != NULL && strcmp(name, what->integers) == 0) {
            json_object_set_new(entry, "dtype", json_string("I32"));
        }
    }
    if (what->add != NULL) {
        json_array_append_new(tensors, json_loads(what->add, 0, NULL));
    }
    if (what->config != NULL) {
        merge(inner != NULL ? inner : config, what->config);
    }
}

static void refused_and_taken(test_run *run)
{
    esp_context *context = test_context(run, 1);
    for (int i = 0; i < ESP_COUNT(changes); i++) {
        const change *what = &changes[i];
        golden_vision golden;
        golden_model loaded;
        esp_error problem = {0};
        const char *tensor = what->drop != NULL      ? what->drop
                             : what->reshape != NULL ? what->reshape
                                                     : what->integers;
        test_sub(run, "%s: %s", what->code != NULL ? what->code : "taken",
                 what->config != NULL ? what->config
                 : tensor != NULL     ? tensor
                                      : what->add);
        REQUIRE(golden_vision_open(&golden, what->golden));
        apply(golden.json, what);
        const char *folder = golden_folder(run, context, golden.json);
        esp_status status =
            golden_load(context, folder, "cpu", ESP_COMPUTE_AUTO, &loaded, &problem);
        if (what->code == NULL) {
            CHECK_INT(status, ESP_OK);
            CHECK_TEXT(problem.message, "");
        } else {
            test_check_failure(run, __FILE__, __LINE__, what->golden, status, &problem,
                               what->status != ESP_OK ? what->status : ESP_BAD_FILE, what->code);
            CHECK(strstr(problem.message, folder) != NULL);
        }
        golden_close(&loaded);
        golden_vision_free(&golden);
    }
    test_context_free(run, context);
}

/* ---- calls ---- */

static void calls(test_run *run)
{
    golden_vision vit, sam;
    golden_model classifier, encoder;
    esp_vision *vision = NULL;
    float output[64];
    int64_t shape[3];
    esp_context *context = test_context(run, 1);
    REQUIRE(golden_vision_open(&vit, VIT) && golden_vision_open(&sam, SAM));
    const char *folder = golden_folder(run, context, vit.json);
    REQUIRE_OK(golden_load(context, folder, "cpu", ESP_COMPUTE_F32, &classifier, error));
    folder = golden_folder(run, context, sam.json);
    REQUIRE_OK(golden_load(context, folder, "cpu", ESP_COMPUTE_F32, &encoder, error));
    CHECK_FAILS(esp_vision_create(classifier.model, 7, 32, 1, &vision, error), ESP_BAD_ARGUMENT,
                "vision.bad_size");
    CHECK_FAILS(esp_vision_create(classifier.model, 32, 1 << 20, 1, &vision, error),
                ESP_BAD_ARGUMENT, "vision.bad_size");
    CHECK_FAILS(esp_vision_create(classifier.model, 32, 32, 0, &vision, error), ESP_BAD_ARGUMENT,
                "vision.bad_batch");
    CHECK_FAILS(esp_vision_create(encoder.model, 88, 80, 1, &vision, error), ESP_BAD_ARGUMENT,
                "vision.bad_size");
    REQUIRE_OK(esp_vision_create(classifier.model, 0, 0, 2, &vision, error));
    CHECK_FAILS(esp_vision_run(vision, vit.pixels, 3, output, error), ESP_BAD_ARGUMENT,
                "vision.bad_batch");
    CHECK_FAILS(esp_vision_run(vision, vit.pixels, 0, output, error), ESP_BAD_ARGUMENT,
                "vision.bad_batch");
    CHECK_FAILS(esp_vision_run(vision, NULL, 1, output, error), ESP_BAD_ARGUMENT,
                "vision.no_pixels");
    esp_vision_free(vision);
    CHECK_TEXT(esp_model_label(classifier.model, 4), "class 4");
    CHECK(esp_model_label(classifier.model, 5) == NULL &&
          esp_model_label(encoder.model, 0) == NULL);
    CHECK(esp_model_label(classifier.model, -1) == NULL);
    CHECK_INT(esp_vision_output_shape(classifier.model, shape), 1);
    CHECK_INT(shape[0], 5);
    CHECK_INT(esp_vision_output_shape(encoder.model, shape), 3);
    CHECK(shape[0] == 24 && shape[1] == 10 && shape[2] == 10);
    esp_session *session = NULL;
    esp_embedder *embedder = NULL;
    CHECK_FAILS(esp_session_create(classifier.model, 8, 0, &session, error), ESP_BAD_ARGUMENT,
                "session.no_decoder");
    CHECK_FAILS(esp_embedder_create(encoder.model, 0, &embedder, error), ESP_BAD_ARGUMENT,
                "embed.no_encoder");
    golden_close(&classifier);
    golden_close(&encoder);
    golden_vision_free(&vit);
    golden_vision_free(&sam);
    test_context_free(run, context);
}

/* A decoder takes no images. */
static void text_model(test_run *run)
{
    esp_context *context = test_context(run, 1);
    json_t *golden = golden_json("a_tiny_mha");
    golden_model loaded;
    esp_vision *vision = NULL;
    int64_t shape[3];
    const char *folder = golden_folder(run, context, golden);
    REQUIRE_OK(golden_load(context, folder, "cpu", ESP_COMPUTE_F32, &loaded, error));
    CHECK_FAILS(esp_vision_create(loaded.model, 0, 0, 1, &vision, error), ESP_BAD_ARGUMENT,
                "vision.no_images");
    CHECK_INT(esp_vision_output_shape(loaded.model, shape), 0);
    golden_close(&loaded);
    json_decref(golden);
    test_context_free(run, context);
}

/* The encoder's image has 10 patches a side and its windows 4: a device whose attention takes
 * smaller grids is refused at load. */
static void grids_of_a_device(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_device *device = NULL;
    esp_checkpoint *checkpoint = NULL;
    esp_model *model = NULL;
    json_t *golden = golden_json("vision/" SAM);
    REQUIRE_OK(esp_device_open(context, "cpu", &device, error));
    const esp_backend *whole = device->backend;
    esp_ops ops = *whole->ops;
    esp_backend bounded = *whole;
    bounded.ops = &ops;
    device->backend = &bounded;
    REQUIRE_OK(
        esp_checkpoint_open(context, golden_folder(run, context, golden), &checkpoint, error));
    ops.widest_grid = 9;
    CHECK_FAILS(esp_model_load(device, checkpoint, NULL, &model, error), ESP_UNSUPPORTED,
                "model.grid_too_wide");
    ops.widest_grid = 10;
    CHECK_OK(esp_model_load(device, checkpoint, NULL, &model, error));
    esp_model_free(model);
    esp_checkpoint_close(checkpoint);
    device->backend = whole;
    esp_device_close(device);
    json_decref(golden);
    test_context_free(run, context);
}

static const test_case cases[] = {{"refused_and_taken", refused_and_taken},
                                  {"calls", calls},
                                  {"text_model", text_model},
                                  {"grids_of_a_device", grids_of_a_device}};
TEST_MAIN(cases)
