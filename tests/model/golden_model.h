/* Small random model folders for tests, made from tests/golden/FAMILY/NAME.json: see
 * tools/golden/make_llama.py for the rule that turns a tensor's name into its values. */
#ifndef TESTS_GOLDEN_MODEL_H
#define TESTS_GOLDEN_MODEL_H

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/llama.h"
#include "test.h"

#define GOLDEN_MAX_IDS 256
#define GOLDEN_NEW_TOKENS 16

static const char *const golden_names[] = {
    "a_tiny_mha",    "a_tiny_mha_f16", "a_tiny_mha_bf16", "b_gqa_head64",  "c_head_dim_biases",
    "d_llama3_rope", "e_linear_rope",  "f_hidden_1024",   "g_heads_of_80", "h_llama3_1024",
    "i_one_token",   "j_qwen2",        "k_qwen2_1024"};

/* name: of tests/golden/llama, or with the folder before a slash. */
static inline void golden_path(const char *name, const char *end, char path[512])
{
    snprintf(path, 512, "%s/tests/golden/%s%s.%s", test_source_dir(),
             strchr(name, '/') != NULL ? "" : "llama/", name, end);
}

static inline json_t *golden_json(const char *name)
{
    char path[512];
    golden_path(name, "json", path);
    return json_load_file(path, 0, NULL);
}

/* All outputs behind each other, each [positions][features]. */
static inline float *golden_outputs(const char *name, size_t *count)
{
    char path[512];
    float *data = NULL;
    golden_path(name, "bin", path);
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        return NULL;
    }
    if (fseek(file, 0, SEEK_END) == 0) {
        *count = (size_t)ftell(file) / sizeof *data;
        data = malloc(*count * sizeof *data);
        rewind(file);
        *count = data != NULL ? fread(data, sizeof *data, *count, file) : 0;
    }
    fclose(file);
    return data;
}

static inline int64_t golden_ids(const json_t *list, int32_t *ids, int64_t capacity)
{
    int64_t count = (int64_t)json_array_size(list);
    for (int64_t i = 0; i < ESP_MIN(count, capacity); i++) {
        ids[i] = (int32_t)json_integer_value(json_array_get(list, (size_t)i));
    }
    return count;
}

static inline bool golden_ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), end_length = strlen(end);
    return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

static inline void golden_values(const char *name, int64_t count, int64_t in, float *values)
{
    uint64_t state = 0xcbf29ce484222325u;
    for (const char *at = name; *at != '\0'; at++) {
        state = (state ^ (unsigned char)*at) * 0x100000001b3u;
    }
    bool is_norm = (strcasestr(name, "norm") != NULL && golden_ends_with(name, ".weight")) ||
                   golden_ends_with(name, "Norm.gamma");
    bool is_bias = golden_ends_with(name, ".bias") || golden_ends_with(name, ".beta");
    int exponent = 6;
    if (strstr(name, "embed_tokens") == NULL) {
        exponent = (63 - __builtin_clzll((unsigned long long)in)) / 2;
    }
    float scale = is_norm || is_bias ? 0.25f : 1.0f / (float)(1 << exponent);
    for (int64_t i = 0; i < count; i++) {
        int32_t bits = (int32_t)(esp_splitmix64(&state) >> 40) - (1 << 23);
        values[i] = (is_norm ? 1.0f : 0.0f) + (float)bits * 0x1p-23f * scale;
    }
}

/* Appends one tensor's header entry and data. */
static inline void golden_tensor(const json_t *entry, esp_dtype dtype, esp_buffer *header,
                                 esp_buffer *data)
{
    const char *name = json_string_value(json_object_get(entry, "name"));
    const char *own = json_string_value(json_object_get(entry, "dtype"));
    const char *like = json_string_value(json_object_get(entry, "like")); /* has the values of */
    const json_t *shape = json_object_get(entry, "shape");
    int64_t count = 1, in = 1;
    char *sizes = json_dumps(shape, JSON_COMPACT);
    for (size_t i = 0; i < json_array_size(shape); i++) {
        in = json_integer_value(json_array_get(shape, i));
        count *= in;
    }
    size_t begin = data->length, width = dtype == ESP_F32 ? 4 : 2;
    float *values = calloc((size_t)count, sizeof *values);
    char *stored = calloc((size_t)count, width);
    if (values != NULL && stored != NULL) {
        golden_values(like != NULL ? like : name, count, in, values);
        if (json_object_get(entry, "nan") != NULL) {
            values[0] = NAN;
        }
        esp_narrow(dtype, values, count, stored);
        esp_buffer_append(data, stored, (size_t)count * width);
    }
    esp_buffer_printf(header, "%c\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
                      header->length == 0 ? '{' : ',', name,
                      own != NULL ? own : esp_dtype_name(dtype), sizes, begin, data->length);
    free(values);
    free(stored);
    free(sizes);
}

/* config.json and model.safetensors of a golden description into a fresh folder. */
static inline const char *golden_folder(test_run *run, esp_context *context, const json_t *golden)
{
    static char folder[512];
    esp_dtype dtype = esp_dtype_from_name(json_string_value(json_object_get(golden, "dtype")));
    esp_buffer header, data, file;
    esp_buffer_init(&header, context);
    esp_buffer_init(&data, context);
    esp_buffer_init(&file, context);
    const json_t *tensors = json_object_get(golden, "tensors");
    for (size_t i = 0; i < json_array_size(tensors); i++) {
        golden_tensor(json_array_get(tensors, i), dtype, &header, &data);
    }
    esp_buffer_text(&header, "}");
    uint64_t length = header.length;
    esp_buffer_append(&file, &length, sizeof length);
    esp_buffer_append(&file, header.data, header.length);
    esp_buffer_append(&file, data.data, data.length);
    static int made;
    snprintf(folder, sizeof folder, "%s/%d", test_folder(run), ++made);
    CHECK_OK(esp_folder_create(folder, error));
    char *config = json_dumps(json_object_get(golden, "config"), 0);
    test_write_file(run, test_path(folder, "config.json"), config, strlen(config));
    test_write_file(run, test_path(folder, "model.safetensors"), file.data, file.length);
    free(config);
    esp_buffer_free(&header);
    esp_buffer_free(&data);
    esp_buffer_free(&file);
    return folder;
}

/* A model with what it stands on. */
typedef struct golden_model {
    esp_device *device;
    esp_checkpoint *checkpoint;
    esp_model *model;
} golden_model;

static inline void golden_close(golden_model *loaded)
{
    esp_model_free(loaded->model);
    esp_checkpoint_close(loaded->checkpoint);
    esp_device_close(loaded->device);
}

static inline esp_status golden_load(esp_context *context, const char *folder, const char *device,
                                     esp_compute compute, golden_model *loaded, esp_error *error)
{
    esp_model_options options = {.compute = compute, .memory = ESP_MEMORY_SPARSE};
    *loaded = (golden_model){0};
    esp_status status = esp_device_open(context, device, &loaded->device, error);
    if (status == ESP_OK) {
        status = esp_checkpoint_open(context, folder, &loaded->checkpoint, error);
    }
    if (status == ESP_OK) {
        status =
            esp_model_load(loaded->device, loaded->checkpoint, &options, &loaded->model, error);
    }
    if (status != ESP_OK) {
        golden_close(loaded);
        *loaded = (golden_model){0};
    }
    return status;
}

/* Whether cuda:0, or another GPU, can be used. */
static inline bool golden_has_gpu(esp_context *context)
{
    esp_device_info infos[16];
    int count = esp_device_list(context, infos, ESP_COUNT(infos));
    for (int i = 0; i < count && i < ESP_COUNT(infos); i++) {
        if (strncmp(infos[i].name, "cuda", 4) == 0 && infos[i].usable) {
            return true;
        }
    }
    return false;
}

/* A description with its token ids and expected outputs. */
typedef struct golden_data {
    const char *name;
    json_t *json;
    float *outputs;
    size_t output_floats;
    int32_t ids[GOLDEN_MAX_IDS];
    int64_t count, vocabulary;
} golden_data;

static inline bool golden_open(golden_data *opened, const char *name)
{
    *opened = (golden_data){.name = name, .json = golden_json(name)};
    opened->outputs = golden_outputs(name, &opened->output_floats);
    opened->count = golden_ids(json_object_get(opened->json, "ids"), opened->ids, GOLDEN_MAX_IDS);
    const json_t *config = json_object_get(opened->json, "config");
    opened->vocabulary = json_integer_value(json_object_get(config, "vocab_size"));
    return opened->outputs != NULL && opened->count > 0 && opened->count <= GOLDEN_MAX_IDS;
}

static inline void golden_free(golden_data *opened)
{
    json_decref(opened->json);
    free(opened->outputs);
}

#endif
