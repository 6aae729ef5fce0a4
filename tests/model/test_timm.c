/* Folders of timm: the model and the preparation of images that their config.json stands for,
 * beside those that Hugging Face's files say; and what is refused. */
#include <espalier/prune.h>
#include <espalier/shrink.h>
#include <espalier/vision.h>

#include "golden_vision.h"
#include "model/timm_config.h"

/* ---- names ---- */

static json_t *translated(test_run *run, const json_t *config)
{
    const esp_config_file file = {"config.json", config};
    json_t *made = NULL;
    esp_error failure = {0};
    if (esp_timm_config_translate(&file, &made, &failure) != ESP_OK) {
        test_fail(run, __FILE__, __LINE__, "%s", failure.message);
    }
    return made;
}

static json_t *config_of(const char *architecture, int side)
{
    return json_pack("{s:s, s:i, s:s, s:{s:[i,i,i], s:f, s:s, s:[f,f,f], s:[f,f,f], s:i}}",
                     "architecture", architecture, "num_classes", 5, "global_pool", "token",
                     "pretrained_cfg", "input_size", 3, side, side, "crop_pct", 1.0,
                     "interpolation", "bicubic", "mean", 0.5, 0.5, 0.5, "std", 0.5, 0.5, 0.5,
                     "num_classes", 1000);
}

static void check_number(test_run *run, const json_t *config, const char *key, int64_t expected)
{
    CHECK_INT(json_integer_value(json_object_get(config, key)), expected);
}

/* What timm builds under these names. */
static void names_say_sizes(test_run *run)
{
    static const struct {
        const char *name, *type;
        int64_t hidden, layers, heads, patch, side;
    } known[] = {{"vit_tiny_patch16_224", "vit", 192, 12, 3, 16, 224},
                 {"vit_small_patch32_384", "vit", 384, 12, 6, 32, 384},
                 {"vit_base_patch16_224.augreg_in21k_ft_in1k", "vit", 768, 12, 12, 16, 224},
                 {"vit_base_patch8_224", "vit", 768, 12, 12, 8, 224},
                 {"vit_large_patch16_224_in21k", "vit", 1024, 24, 16, 16, 224},
                 {"vit_huge_patch14_224", "vit", 1280, 32, 16, 14, 224},
                 {"deit_base_patch16_224", "vit", 768, 12, 12, 16, 224},
                 {"deit_small_distilled_patch16_224", "deit", 384, 12, 6, 16, 224},
                 {"deit_base_distilled_patch16_384.fb_in1k", "deit", 768, 12, 12, 16, 384}};
    for (int i = 0; i < ESP_COUNT(known); i++) {
        test_sub(run, "%s", known[i].name);
        json_t *config = config_of(known[i].name, (int)known[i].side);
        json_t *made = translated(run, config);
        CHECK(esp_timm_config_is(config) && !esp_timm_config_is(made));
        CHECK_TEXT(json_string_value(json_object_get(made, "model_type")), known[i].type);
        check_number(run, made, "hidden_size", known[i].hidden);
        check_number(run, made, "intermediate_size", 4 * known[i].hidden);
        check_number(run, made, "num_hidden_layers", known[i].layers);
        check_number(run, made, "num_attention_heads", known[i].heads);
        check_number(run, made, "patch_size", known[i].patch);
        check_number(run, made, "image_size", known[i].side);
        check_number(run, made, "num_labels", 5);
        json_decref(made);
        json_decref(config);
    }
}

/* ---- models ---- */

/* The same model, under timm's config.json. */
static void write_timm_config(test_run *run, const char *folder, const json_t *golden,
                              const char *architecture)
{
    const json_t *old = json_object_get(golden, "config");
    double ratio = json_number_value(json_object_get(old, "intermediate_size")) /
                   json_number_value(json_object_get(old, "hidden_size"));
    json_t *config = config_of(architecture, 32);
    json_object_set_new(config, "num_features", json_integer(64));
    json_object_set_new(config, "label_names",
                        json_pack("[s,s,s,s,s]", "ant", "bee", "cat", "dog", "elk"));
    json_object_set_new(config, "model_args",
                        json_pack("{s:i, s:i, s:i, s:i, s:f, s:n}", "embed_dim", 64, "depth", 2,
                                  "num_heads", 4, "patch_size", 8, "mlp_ratio", ratio, "extra"));
    char *text = json_dumps(config, 0);
    test_write_file(run, test_path(folder, "config.json"), text, strlen(text));
    free(text);
    json_decref(config);
}

/* Its logits, 5 of each image. */
static void run_model(test_run *run, esp_context *context, const char *folder,
                      const golden_vision *golden, float *logits)
{
    golden_model loaded;
    esp_vision *vision = NULL;
    REQUIRE_OK(golden_load(context, folder, "cpu", ESP_COMPUTE_F32, &loaded, error));
    REQUIRE_OK(esp_vision_create(loaded.model, golden->height, golden->width, golden->images,
                                 &vision, error));
    CHECK_OK(esp_vision_run(vision, golden->pixels, golden->images, logits, error));
    esp_vision_free(vision);
    golden_close(&loaded);
}

/* Pruned by the name that config.json keeps, it is read again. */
static void check_pruned(test_run *run, esp_context *context, const char *folder,
                         const golden_vision *golden)
{
    float logits[64] = {0};
    char out[1100];
    esp_prune_options prune = {.force = true};
    snprintf(out, sizeof out, "%s-pruned", folder);
    CHECK_OK(esp_pattern_parse("2:4", &prune.pattern, error));
    REQUIRE_OK(esp_prune_checkpoint(context, folder, out, &prune, NULL, error));
    run_model(run, context, out, golden, logits);
    CHECK(logits[0] != 0);
}

static void check_shrink(test_run *run, esp_context *context, const char *folder)
{
    char out[1100];
    esp_device *device = NULL;
    const esp_shrink_options options = {.hidden = 0.5};
    snprintf(out, sizeof out, "%s-shrunk", folder);
    REQUIRE_OK(esp_device_open(context, "cpu", &device, error));
    CHECK_FAILS(esp_shrink_checkpoint(device, folder, out, &options, NULL, error), ESP_UNSUPPORTED,
                "shrink.no_hidden");
    CHECK(!esp_path_exists(out));
    esp_device_close(device);
}

static void models(test_run *run)
{
    static const struct {
        const char *golden, *architecture;
    } rows[] = {{"f_timm_vit", "vit_tiny_patch16_224"},
                {"g_timm_deit_two_heads", "deit_tiny_distilled_patch16_224"}};
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        golden_vision golden;
        float before[64] = {0}, after[64] = {0};
        esp_context *context = test_context(run, 2);
        test_sub(run, "%s", rows[i].architecture);
        REQUIRE(golden_vision_open(&golden, rows[i].golden));
        const char *folder = golden_folder(run, context, golden.json);
        run_model(run, context, folder, &golden, before);
        write_timm_config(run, folder, golden.json, rows[i].architecture);
        run_model(run, context, folder, &golden, after);
        CHECK(before[0] != 0 && memcmp(before, after, sizeof before) == 0);
        golden_model loaded;
        REQUIRE_OK(golden_load(context, folder, "ref", ESP_COMPUTE_F32, &loaded, error));
        CHECK_TEXT(esp_model_label(loaded.model, 4), "elk");
        golden_close(&loaded);
        check_pruned(run, context, folder, &golden);
        check_shrink(run, context, folder);
        golden_vision_free(&golden);
        test_context_free(run, context);
    }
}

/* ---- images ---- */

static const char *folder_with(test_run *run, const char *name, const json_t *config)
{
    static char folder[1100];
    static int made;
    snprintf(folder, sizeof folder, "%s/images-%d", test_folder(run), ++made);
    CHECK_OK(esp_folder_create(folder, error));
    char *text = json_dumps(config, 0);
    test_write_file(run, test_path(folder, name), text, strlen(text));
    free(text);
    return folder;
}

static void process(test_run *run, const char *folder, const esp_image *image, float *values)
{
    esp_context *context = test_context(run, 1);
    esp_image_processor *processor = NULL;
    int64_t height = 0, width = 0;
    REQUIRE_OK(esp_image_processor_open(context, folder, &processor, error));
    CHECK_OK(
        esp_image_processor_size(processor, image->width, image->height, &height, &width, error));
    CHECK(height == 8 && width == 8);
    CHECK_OK(esp_image_process(processor, image, values, error));
    esp_image_processor_close(processor);
    test_context_free(run, context);
}

/* Half a pixel to cut off goes to the even side, as Python rounds. */
static void crops(test_run *run)
{
    static const int starts[] = {0, 0, 1, 2, 2, 2, 3, 4, 4};
    json_t *config = config_of("vit_tiny_patch16_224", 8);
    const char *folder = folder_with(run, "config.json", config);
    for (int more = 0; more < ESP_COUNT(starts); more++) {
        uint8_t pixels[8 * 16 * 3];
        float values[3 * 64];
        int width = 8 + more;
        for (int i = 0; i < 8 * width * 3; i++) {
            pixels[i] = (uint8_t)(i / 3 % width * 10);
        }
        const esp_image image = {width, 8, pixels};
        test_sub(run, "%d pixels wide", width);
        process(run, folder, &image, values);
        double first = (double)values[0] * 0.5 + 0.5;
        CHECK_INT((int64_t)(first * 255 / 10 + 0.5), starts[more]);
    }
    json_decref(config);
}

/* Enlarged by 1 / crop_pct, rounded down, along the shorter side or both. */
static void sizes_before_the_crop(test_run *run)
{
    static const struct {
        const char *mode, *interpolation, *hugging_face;
    } rows[] = {{"center", "bicubic", "{\"shortest_edge\": 10}"},
                {"squash", "bilinear", "{\"height\": 10, \"width\": 10}"}};
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        uint8_t pixels[23 * 17 * 3];
        float timm[3 * 64], other[3 * 64];
        uint64_t state = 7;
        for (size_t k = 0; k < sizeof pixels; k++) {
            pixels[k] = (uint8_t)esp_splitmix64(&state);
        }
        const esp_image image = {17, 17, pixels};
        json_t *config = config_of("vit_tiny_patch16_224", 8);
        json_t *pretrained = json_object_get(config, "pretrained_cfg");
        json_object_set_new(pretrained, "crop_pct", json_real(0.75)); /* 10.67 */
        json_object_set_new(pretrained, "crop_mode", json_string(rows[i].mode));
        json_object_set_new(pretrained, "interpolation", json_string(rows[i].interpolation));
        json_t *said = json_pack("{s:o, s:i, s:b, s:i, s:[f,f,f], s:[f,f,f]}", "size",
                                 json_loads(rows[i].hugging_face, 0, NULL), "resample", 3 - i,
                                 "do_center_crop", 1, "crop_size", 8, "image_mean", 0.5, 0.5, 0.5,
                                 "image_std", 0.5, 0.5, 0.5);
        test_sub(run, "%s", rows[i].mode);
        process(run, folder_with(run, "config.json", config), &image, timm);
        process(run, folder_with(run, "preprocessor_config.json", said), &image, other);
        CHECK(memcmp(timm, other, sizeof timm) == 0);
        json_decref(config);
        json_decref(said);
    }
}

/* ---- refusals ---- */

static void change(json_t *config, const char *key, const char *value)
{
    bool inner = key[0] == '.';
    json_t *object = inner ? json_object_get(config, "pretrained_cfg") : config;
    if (value == NULL) {
        json_object_del(object, key + inner);
    } else {
        json_object_set_new(object, key + inner, json_loads(value, JSON_DECODE_ANY, NULL));
    }
}

/* A key with a point before it is one of pretrained_cfg. */
static void refused_models(test_run *run)
{
    static const struct {
        const char *key, *value, *code;
    } changes[] = {
        {"architecture", "\"resnet50\"", "config.unsupported_architecture"},
        {"architecture", "\"vit_base_patch16_clip_224\"", "config.unsupported_architecture"},
        {"architecture", "\"vit_base_patch16_224_miil\"", "config.unsupported_architecture"},
        {"architecture", "\"vit_base_patch16_224x\"", "config.unsupported_architecture"},
        {"architecture", "\"vit_base_patch_224\"", "config.unsupported_architecture"},
        {"architecture", "\"vit_base_patch16\"", "config.unsupported_architecture"},
        {"architecture", "\"vit_base_patch99999_224\"", "config.unsupported_architecture"},
        {"architecture", "\"deit3_base_patch16_224\"", "config.unsupported_architecture"},
        {"architecture", "\"vit_base_distilled_patch16_224\"", "config.unsupported_architecture"},
        {"global_pool", "\"avg\"", "config.unsupported_timm"},
        {"global_pool", "7", "config.bad_type"},
        {"num_classes", "0", "config.unsupported_timm"},
        {"num_classes", "-1", "config.bad_value"},
        {"num_features", "384", "config.bad_value"},
        {"model_args", "{\"init_values\": 1e-5}", "config.unsupported_timm"},
        {"model_args", "{\"embed_dim\": 0}", "config.bad_value"},
        {"model_args", "{\"mlp_ratio\": -1}", "config.bad_value"},
        {"model_args", "[1]", "config.bad_type"},
        {".label_offset", "1", "config.unsupported_timm"},
        {".input_size", NULL, "config.missing_key"},
        {".input_size", "[3, 224]", "config.bad_value"},
        {".input_size", "[1, 224, 224]", "config.unsupported_timm"},
        {".input_size", "[3, 224, 192]", "config.unsupported_timm"},
        {".input_size", "[3, 1000000, 1000000]", "config.bad_value"}};
    for (int i = 0; i < ESP_COUNT(changes); i++) {
        json_t *config = config_of("vit_base_patch16_224", 224), *made = NULL;
        const esp_config_file file = {"config.json", config};
        test_sub(run, "%s %s", changes[i].key, changes[i].value != NULL ? changes[i].value : "");
        change(config, changes[i].key, changes[i].value);
        esp_error error = {0};
        CHECK(esp_timm_config_translate(&file, &made, &error) != ESP_OK && made == NULL);
        CHECK_TEXT(error.code, changes[i].code);
        CHECK(strstr(error.message, "config.json") != NULL);
        json_decref(config);
    }
}

static void refused_images(test_run *run)
{
    static const struct {
        const char *key, *value, *code;
    } changes[] = {{".crop_pct", NULL, "config.missing_key"},
                   {".crop_pct", "0", "config.bad_value"},
                   {".crop_pct", "0.00999999999", "config.bad_value"},
                   {".crop_pct", "1.5", "config.bad_value"},
                   {".crop_mode", "\"border\"", "config.unsupported_timm"},
                   {".interpolation", "\"lanczos\"", "config.unsupported_timm"},
                   {".mean", NULL, "config.missing_key"},
                   {".std", NULL, "config.missing_key"},
                   {".std", "[0.5, 0, 0.5]", "config.bad_value"},
                   {"model_type", "\"vit\"", "preprocessor.missing"}};
    esp_context *context = test_context(run, 1);
    for (int i = 0; i < ESP_COUNT(changes); i++) {
        json_t *config = config_of("vit_base_patch16_224", 224);
        esp_image_processor *processor = NULL;
        test_sub(run, "%s %s", changes[i].key, changes[i].value != NULL ? changes[i].value : "");
        change(config, changes[i].key, changes[i].value);
        const char *folder = folder_with(run, "config.json", config);
        esp_error error = {0};
        CHECK(esp_image_processor_open(context, folder, &processor, &error) != ESP_OK);
        CHECK_TEXT(error.code, changes[i].code);
        json_decref(config);
    }
    test_context_free(run, context);
}

static const test_case cases[] = {{"names_say_sizes", names_say_sizes},
                                  {"models", models},
                                  {"crops", crops},
                                  {"sizes_before_the_crop", sizes_before_the_crop},
                                  {"refused_models", refused_models},
                                  {"refused_images", refused_images}};
TEST_MAIN(cases)
