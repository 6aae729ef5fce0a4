/* Image files and what becomes of them, against Pillow and transformers (goldens of
 * tools/golden/make_images.py): pixels of every kind of file, hostile files by their code, prepared
 * values; and configs that are refused. */
#include <math.h>
#include <stdio.h>

#include <espalier/vision.h>

#include "image_file.h"
#include "tensor/tensor.h"
#include "test.h"

typedef struct goldens {
    json_t *json;
    unsigned char *pixels;
    float *values;
    size_t pixel_count, value_count, pixel_at, value_at;
} goldens;

static const char *golden_path(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/tests/golden/images/%s", ESP_SOURCE_DIR, name);
    return path;
}

static void *read_file(const char *name, size_t width, size_t *count)
{
    FILE *file = fopen(golden_path(name), "rb");
    void *data = NULL;
    if (file != NULL && fseek(file, 0, SEEK_END) == 0) {
        *count = (size_t)ftell(file) / width;
        data = malloc(*count * width);
        rewind(file);
        *count = data != NULL ? fread(data, width, *count, file) : 0;
    }
    if (file != NULL) {
        fclose(file);
    }
    return data;
}

static void open_goldens(test_run *run, goldens *golden)
{
    *golden = (goldens){.json = json_load_file(golden_path("expected.json"), 0, NULL)};
    golden->pixels = read_file("pixels.bin", 1, &golden->pixel_count);
    golden->values = read_file("values.bin", sizeof(float), &golden->value_count);
    REQUIRE(golden->json != NULL && golden->pixels != NULL && golden->values != NULL);
}

static void close_goldens(goldens *golden)
{
    json_decref(golden->json);
    free(golden->pixels);
    free(golden->values);
}

static const char *text_of(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static int64_t number_of(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

/* Decoders of other versions may round a JPEG's colours another way, by one. */
static void check_pixels(test_run *run, const json_t *entry, const image_file *file,
                         const unsigned char *expected)
{
    int64_t width = number_of(entry, "width"), height = number_of(entry, "height");
    int allowed = strstr(text_of(entry, "name"), ".jpg") != NULL ? 1 : 0;
    REQUIRE(file->image.width == width && file->image.height == height);
    for (int64_t i = 0; i < 3 * width * height; i++) {
        if (abs(file->image.pixels[i] - expected[i]) > allowed) {
            test_fail(run, __FILE__, __LINE__, "[%lld]: %d, expected %d", (long long)i,
                      file->image.pixels[i], expected[i]);
            return;
        }
    }
}

static void files(test_run *run)
{
    goldens golden;
    open_goldens(run, &golden);
    const json_t *list = json_object_get(golden.json, "files");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        image_file file = {0};
        test_sub(run, "%s", text_of(entry, "name"));
        CHECK_OK(image_file_read(golden_path(text_of(entry, "name")), &file, error));
        check_pixels(run, entry, &file, golden.pixels + golden.pixel_at);
        golden.pixel_at += (size_t)(3 * number_of(entry, "width") * number_of(entry, "height"));
        image_file_free(&file);
    }
    close_goldens(&golden);
}

static void hostile(test_run *run)
{
    goldens golden;
    open_goldens(run, &golden);
    const json_t *list = json_object_get(golden.json, "hostile");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        image_file file = {0};
        esp_error error = {0};
        test_sub(run, "%s", text_of(entry, "name"));
        CHECK(image_file_read(golden_path(text_of(entry, "name")), &file, &error) != ESP_OK);
        CHECK_TEXT(error.code, text_of(entry, "code"));
        CHECK(strstr(error.message, text_of(entry, "name")) != NULL);
    }
    test_sub(run, "a folder and nothing");
    image_file file = {0};
    CHECK_FAILS(image_file_read(golden_path(""), &file, error), ESP_BAD_FILE, "image.unreadable");
    CHECK_FAILS(image_file_read(golden_path("nothing.png"), &file, error), ESP_BAD_FILE,
                "image.unreadable");
    close_goldens(&golden);
}

/* A file cut at every length, and with every byte turned over, is read or refused, no worse. */
static void every_cut(test_run *run)
{
    static const char *const names[] = {"rgb.png", "interlaced.png", "progressive.jpg"};
    for (int i = 0; i < ESP_COUNT(names); i++) {
        size_t count = 0;
        unsigned char *data = read_file(names[i], 1, &count);
        const char *path = test_path(test_folder(run), names[i]);
        REQUIRE(data != NULL);
        for (size_t at = 0; at < count; at++) {
            for (int turned = 0; turned < 2; turned++) {
                image_file file = {0};
                esp_error error = {0};
                data[at] ^= turned ? 0x55 : 0;
                test_write_file(run, path, data, turned ? count : at);
                if (image_file_read(path, &file, &error) == ESP_OK) {
                    CHECK(turned || at + 16 > count);
                    CHECK(file.image.pixels != NULL);
                } else {
                    CHECK(error.code[0] != '\0');
                }
                image_file_free(&file);
                data[at] ^= turned ? 0x55 : 0;
            }
        }
        free(data);
    }
}

/* ---- processors ---- */

static const char *processor_folder(test_run *run, const json_t *config)
{
    static char folder[512];
    static int made;
    snprintf(folder, sizeof folder, "%s/%d", test_folder(run), ++made);
    CHECK_OK(esp_folder_create(folder, error));
    char *text = json_dumps(config, 0);
    test_write_file(run, test_path(folder, "preprocessor_config.json"), text, strlen(text));
    free(text);
    return folder;
}

static void check_values(test_run *run, goldens *golden, const json_t *entry,
                         const esp_image_processor *processor)
{
    const json_t *to = json_object_get(entry, "to");
    const json_t *std = json_object_get(json_object_get(entry, "config"), "image_std");
    bool normalised =
        !json_is_false(json_object_get(json_object_get(entry, "config"), "do_normalize"));
    esp_image image = {number_of(entry, "width"), number_of(entry, "height"),
                       golden->pixels + golden->pixel_at};
    int64_t height = 0, width = 0;
    CHECK_OK(
        esp_image_processor_size(processor, image.width, image.height, &height, &width, error));
    REQUIRE(height == json_integer_value(json_array_get(to, 0)) &&
            width == json_integer_value(json_array_get(to, 1)));
    float *values = calloc((size_t)(3 * height * width), sizeof *values);
    CHECK_OK(esp_image_process(processor, &image, values, error));
    double worst = 0;
    for (int64_t i = 0; i < 3 * height * width; i++) {
        size_t channel = (size_t)(i / (height * width));
        double scale = normalised ? json_number_value(json_array_get(std, channel)) : 1;
        double expected = (double)golden->values[golden->value_at + (size_t)i];
        test_note_largest(&worst, fabs((double)values[i] - expected) * scale);
    }
    /* A pixel is the same to the bit; what is left is f32. */
    CHECK(worst <= 1e-6);
    golden->pixel_at += (size_t)(3 * image.width * image.height);
    golden->value_at += (size_t)(3 * height * width);
    free(values);
}

static void processors(test_run *run)
{
    goldens golden;
    esp_context *context = test_context(run, 3);
    open_goldens(run, &golden);
    const json_t *files_before = json_object_get(golden.json, "files");
    for (size_t i = 0; i < json_array_size(files_before); i++) {
        const json_t *entry = json_array_get(files_before, i);
        golden.pixel_at += (size_t)(3 * number_of(entry, "width") * number_of(entry, "height"));
    }
    const json_t *list = json_object_get(golden.json, "processors");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        esp_image_processor *processor = NULL;
        test_sub(run, "%s", text_of(entry, "name"));
        const char *folder = processor_folder(run, json_object_get(entry, "config"));
        CHECK_OK(esp_image_processor_open(context, folder, &processor, error));
        check_values(run, &golden, entry, processor);
        esp_image_processor_close(processor);
    }
    CHECK(golden.pixel_at == golden.pixel_count && golden.value_at == golden.value_count);
    close_goldens(&golden);
    test_context_free(run, context);
}

static const char good[] =
    "{\"do_resize\": true, \"size\": {\"height\": 8, \"width\": 8}, \"resample\": 3,"
    " \"do_center_crop\": true, \"crop_size\": 6, \"do_normalize\": true,"
    " \"image_mean\": [0.5, 0.5, 0.5], \"image_std\": [0.5, 0.5, 0.5]}";

static void refused_configs(test_run *run)
{
    static const struct {
        const char *key, *value, *code; /* value NULL: left out */
    } changes[] = {
        {"size", NULL, "config.missing_key"},
        {"size", "\"large\"", "config.bad_type"},
        {"size", "0", "config.bad_value"},
        {"size", "1000000000", "config.bad_value"},
        {"size", "{\"height\": 8}", "config.missing_key"},
        {"size", "{\"shortest_edge\": 8, \"longest_edge\": 9}", "config.bad_type"},
        {"size", "{\"shortest_edge\": -1}", "config.bad_value"},
        {"size", "{\"height\": 8.5, \"width\": 8}", "config.bad_type"},
        {"resample", NULL, "config.missing_key"},
        {"resample", "\"bicubic\"", "config.bad_type"},
        {"resample", "1", "preprocessor.unsupported_resample"},
        {"resample", "9", "config.bad_value"},
        {"do_resize", "1", "config.bad_type"},
        {"crop_size", NULL, "config.missing_key"},
        {"crop_size", "[6, 6]", "config.bad_type"},
        {"crop_pct", "0.875", "preprocessor.unsupported_step"},
        {"do_flip_channel_order", "true", "preprocessor.unsupported_step"},
        {"image_mean", NULL, "config.missing_key"},
        {"image_mean", "[0.5, 0.5]", "config.bad_type"},
        {"image_mean", "[0.5, 0.5, \"0.5\"]", "config.bad_type"},
        {"image_std", "[0.5, 0, 0.5]", "config.bad_value"},
        {"image_std", "[0.5, -1, 0.5]", "config.bad_value"},
        {"rescale_factor", "0", "config.bad_value"},
        {"do_pad", "true", "config.missing_key"},
    };
    esp_context *context = test_context(run, 1);
    for (int i = 0; i < ESP_COUNT(changes); i++) {
        json_t *config = json_loads(good, 0, NULL);
        esp_image_processor *processor = NULL;
        test_sub(run, "%s: %s", changes[i].key,
                 changes[i].value != NULL ? changes[i].value : "left out");
        if (changes[i].value != NULL) {
            json_object_set_new(config, changes[i].key,
                                json_loads(changes[i].value, JSON_DECODE_ANY, NULL));
        } else {
            json_object_del(config, changes[i].key);
        }
        esp_error error = {0};
        const char *folder = processor_folder(run, config);
        CHECK(esp_image_processor_open(context, folder, &processor, &error) != ESP_OK);
        CHECK_TEXT(error.code, changes[i].code);
        CHECK(strstr(error.message, "preprocessor_config.json") != NULL);
        json_decref(config);
    }
    esp_image_processor *processor = NULL;
    CHECK_FAILS(esp_image_processor_open(context, test_folder(run), &processor, error),
                ESP_BAD_FILE, "preprocessor.missing");
    test_context_free(run, context);
}

static void refused_sizes(test_run *run)
{
    static const struct {
        const char *config;
        int64_t width, height;
    } bad[] = {
        {"{\"do_resize\": false, \"do_normalize\": false}", 0, 5},
        {"{\"do_resize\": false, \"do_normalize\": false}", 65535, 65535},
        {"{\"do_resize\": false, \"do_normalize\": false}", 40000, 40000},
        {"{\"do_resize\": false, \"do_normalize\": false}", 16385, 5},
        {"{\"size\": {\"shortest_edge\": 16}, \"resample\": 2, \"do_normalize\": false}", 65000, 1},
        {"{\"do_resize\": false, \"do_pad\": true, \"pad_size\": 9, \"do_normalize\": false}", 10,
         5},
    };
    esp_context *context = test_context(run, 1);
    for (int i = 0; i < ESP_COUNT(bad); i++) {
        json_t *config = json_loads(bad[i].config, 0, NULL);
        esp_image_processor *processor = NULL;
        int64_t height, width;
        test_sub(run, "%lldx%lld", (long long)bad[i].width, (long long)bad[i].height);
        REQUIRE_OK(
            esp_image_processor_open(context, processor_folder(run, config), &processor, error));
        CHECK_FAILS(esp_image_processor_size(processor, bad[i].width, bad[i].height, &height,
                                             &width, error),
                    ESP_BAD_ARGUMENT, "image.bad_size");
        esp_image_processor_close(processor);
        json_decref(config);
    }
    test_context_free(run, context);
}

static const test_case cases[] = {{"files", files},
                                  {"hostile", hostile},
                                  {"every_cut", every_cut},
                                  {"processors", processors},
                                  {"refused_configs", refused_configs},
                                  {"refused_sizes", refused_sizes}};
TEST_MAIN(cases)
