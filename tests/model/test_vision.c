/* ViT, DeiT and SAM's image encoder against transformers and timm (goldens of
 * tools/golden/make_vision.py), on both devices of the host: the embedding, every layer's output
 * and the last one; and that a batch gives what its images give one by one. */
#include <math.h>

#include "golden_vision.h"

#define BOUND 1e-4 /* largest |difference| / largest |expected|, f32 */

static const char *const names[] = {"a_vit_batch",           "b_vit_head80_other_size",
                                    "c_vit_hidden_1024",     "d_deit_two_heads",
                                    "e_deit_tanh_no_bias",   "f_timm_vit",
                                    "g_timm_deit_two_heads", "h_sam_padded_windows",
                                    "i_sam_hidden_1024",     "j_sam_original_names"};
static const char *const devices[] = {"ref", "cpu"};

/* Parts are seen in the order in which they are stored. */
typedef struct watcher {
    const golden_vision *golden;
    size_t at, part;
    double worst;
    bool out_of_order;
} watcher;

static void compare(watcher *watching, const float *data, int64_t feature_step, int64_t token_step,
                    int64_t features, size_t tokens, const json_t *list)
{
    const golden_vision *golden = watching->golden;
    const float *expected = golden->outputs + watching->at;
    size_t count = tokens * (size_t)features;
    double most = 0;
    if (watching->at + count > golden->output_floats) {
        watching->out_of_order = true;
        return;
    }
    for (size_t i = 0; i < count; i++) {
        test_note_largest(&most, fabs((double)expected[i]));
    }
    for (size_t row = 0; row < tokens; row++) {
        int64_t token = list != NULL ? json_integer_value(json_array_get(list, row)) : (int64_t)row;
        for (int64_t f = 0; f < features; f++) {
            double want = (double)expected[(int64_t)row * features + f];
            double have = (double)data[f * feature_step + token * token_step];
            test_note_largest(&watching->worst, fabs(have - want) / most);
        }
    }
    watching->at += count;
}

static void watch(void *user, const char *name, const float *data, int64_t features, int64_t tokens)
{
    watcher *watching = user;
    const json_t *parts = json_object_get(watching->golden->json, "parts");
    const json_t *list = json_object_get(watching->golden->json, "tokens");
    const char *next = json_string_value(json_array_get(parts, watching->part++));
    if (next == NULL || strcmp(next, name) != 0) {
        watching->out_of_order = true;
        return;
    }
    compare(watching, data, tokens, 1, features, json_array_size(list), list);
}

static int64_t output_size(const esp_model *model)
{
    int64_t shape[3], size = 1;
    int rank = esp_vision_output_shape(model, shape);
    for (int i = 0; i < rank; i++) {
        size *= shape[i];
    }
    return size;
}

static void check_outputs(test_run *run, esp_context *context, const char *folder,
                          const golden_vision *golden, const char *device)
{
    golden_model loaded;
    esp_vision *vision = NULL;
    REQUIRE_OK(golden_load(context, folder, device, ESP_COMPUTE_F32, &loaded, error));
    REQUIRE_OK(esp_vision_create(loaded.model, golden->height, golden->width, golden->images,
                                 &vision, error));
    int64_t size = output_size(loaded.model), area = 3 * golden->height * golden->width;
    float *output = calloc((size_t)(golden->images * size), sizeof *output);
    float *single = calloc((size_t)size, sizeof *single);
    watcher watching = {.golden = golden};
    esp_vision_observe(vision, watch, &watching);
    CHECK_OK(esp_vision_run(vision, golden->pixels, golden->images, output, error));
    esp_vision_observe(vision, NULL, NULL);
    esp_model_info info;
    esp_model_get_info(loaded.model, &info);
    if (info.kind == ESP_MODEL_CLASSIFIER) {
        compare(&watching, output, 1, size, size, (size_t)golden->images, NULL);
    }
    CHECK(!watching.out_of_order && watching.at == golden->output_floats);
    CHECK(watching.part == json_array_size(json_object_get(golden->json, "parts")));
    if (!(watching.worst <= BOUND)) {
        test_fail(run, __FILE__, __LINE__, "largest difference %.2e", watching.worst);
    }
    for (int64_t image = golden->images - 1; image >= 0; image--) {
        double worst = 0;
        CHECK_OK(esp_vision_run(vision, golden->pixels + image * area, 1, single, error));
        for (int64_t i = 0; i < size; i++) {
            test_note_largest(&worst, fabs((double)single[i] - (double)output[image * size + i]));
        }
        CHECK(worst <= 1e-4);
    }
    free(output);
    free(single);
    esp_vision_free(vision);
    golden_close(&loaded);
}

static void check_golden(test_run *run, const char *name)
{
    golden_vision golden;
    esp_context *context = test_context(run, 2);
    REQUIRE(golden_vision_open(&golden, name));
    const char *folder = golden_folder(run, context, golden.json);
    for (int i = 0; i < ESP_COUNT(devices); i++) {
        test_sub(run, "%s on %s", name, devices[i]);
        check_outputs(run, context, folder, &golden, devices[i]);
    }
    golden_vision_free(&golden);
    test_context_free(run, context);
}

static void outputs(test_run *run)
{
    for (int i = 0; i < ESP_COUNT(names); i++) {
        check_golden(run, names[i]);
    }
}

static const test_case cases[] = {{"outputs", outputs}};
TEST_MAIN(cases)
