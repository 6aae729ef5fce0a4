/* Memory that runs out at every place of loading a model of images, preparing an image, running and
 * judging: an error each time, and nothing is left behind. */
#include <espalier/assess.h>

#include "failing_allocator.h"
#include "golden_vision.h"

#define SIDE 37

static unsigned char pixels[SIDE * SIDE * 3];

static const char processor_config[] =
    "{\"size\": {\"height\": %d, \"width\": %d}, \"resample\": 3, \"image_mean\": [0.5, 0.5, 0.5],"
    " \"image_std\": [0.5, 0.5, 0.5]}";

static esp_status read_image(void *user, int64_t index, esp_image *image, esp_error *error)
{
    (void)user, (void)index, (void)error;
    *image = (esp_image){SIDE, SIDE, pixels};
    return ESP_OK;
}

static esp_status judge(const golden_model *loaded, const esp_image_processor *processor,
                        esp_error *error)
{
    static const int64_t labels[] = {0, 1, 2};
    const esp_image_set set = {.count = 3, .labels = labels, .read = read_image};
    const esp_image_eval_options options = {.batch = 2};
    esp_image_eval_result result;
    return esp_eval_images(loaded->model, loaded->model, processor, &set, &options, &result, error);
}

static esp_status use_all(esp_context *context, const char *folder, esp_error *error)
{
    golden_model loaded;
    esp_image_processor *processor = NULL;
    esp_status status = golden_load(context, folder, "cpu", ESP_COMPUTE_F32, &loaded, error);
    if (status == ESP_OK) {
        status = esp_image_processor_open(context, folder, &processor, error);
    }
    if (status == ESP_OK) {
        status = judge(&loaded, processor, error);
    }
    esp_image_processor_close(processor);
    golden_close(&loaded);
    return status;
}

static void try_every(test_run *run, const char *name)
{
    golden_vision golden;
    char config[512];
    esp_context *context = test_context(run, 1);
    REQUIRE(golden_vision_open(&golden, name));
    const char *folder = golden_folder(run, context, golden.json);
    snprintf(config, sizeof config, processor_config, (int)golden.height, (int)golden.width);
    test_write_file(run, test_path(folder, "preprocessor_config.json"), config, strlen(config));
    golden_vision_free(&golden);
    test_context_free(run, context);
    esp_status status = ESP_OUT_OF_MEMORY;
    long n = 0;
    for (; n < 20000 && status != ESP_OK; n++) {
        failing state = {.left = 1000};
        esp_context_options options = {.threads = 1,
                                       .allocator = {failing_allocate, failing_release, &state}};
        esp_context *own = NULL;
        esp_error problem = {0};
        REQUIRE_OK(esp_context_create(&options, &own, error));
        state.left = n;
        status = use_all(own, folder, &problem);
        if (status != ESP_OK && status != ESP_OUT_OF_MEMORY) {
            test_fail(run, __FILE__, __LINE__, "allocation %ld: %s", n, problem.message);
        }
        esp_context_free(own);
        CHECK_INT(state.live, 0);
    }
    CHECK_INT(status, ESP_OK);
    CHECK(n > 100);
}

static void classifier(test_run *run)
{
    try_every(run, "a_vit_batch");
}

static void two_heads(test_run *run)
{
    try_every(run, "d_deit_two_heads");
}

static void image_encoder(test_run *run)
{
    try_every(run, "h_sam_padded_windows");
}

static const test_case cases[] = {
    {"classifier", classifier}, {"two_heads", two_heads}, {"image_encoder", image_encoder}};
TEST_MAIN(cases)
