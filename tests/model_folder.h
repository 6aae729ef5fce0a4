/* A small model folder and its compressed form, for tests of reading and writing folders. */
#ifndef ESP_TESTS_MODEL_FOLDER_H
#define ESP_TESTS_MODEL_FOLDER_H

#include <stdio.h>
#include <sys/stat.h>

#include "io/io.h"
#include "safetensors_bytes.h"

typedef struct folder_weight {
    const char *name, *pattern; /* pattern "dense": plain */
    esp_dtype dtype;
    int rank;
    int64_t shape[2];
    bool has_rows;
} folder_weight;

/* In the order of files written by espalier: by element size, then by name. */
static const folder_weight folder_weights[] = {
    {"ids", "dense", ESP_I64, 1, {3}, false},
    {"layer.a.weight", "2:4", ESP_F32, 2, {6, 16}, false},
    {"layer.b.weight", "4:2:8", ESP_BF16, 2, {10, 20}, false},
    {"layer.c.weight", "panel:4@0.75", ESP_F16, 2, {8, 16}, true},
    {"layer.d.weight", "1:4", ESP_F16, 2, {5, 8}, false},
    {"norm.weight", "dense", ESP_BF16, 1, {16}, false},
    {"scalar", "dense", ESP_U8, 0, {0}, false},
};

static const char folder_config[] = "{\n  \"model_type\": \"llama\",\n  \"rms_norm_eps\": 1e-05,\n"
                                    "  \"nested\": {\"x\": [1.0, \"}\"]}\n}\n";

/* Columns of panel p of layer.c, and its row order (reversed). */
static inline void folder_columns(int64_t panel, uint32_t columns[8])
{
    static const uint32_t first[8] = {0, 2, 5, 9, 1, 3, 4, 6};
    for (int i = 0; i < 8; i++) {
        columns[i] = first[i] + (uint32_t)panel;
    }
}

/* The column of the k-th value (0, 1) of a group for a row, as each pattern allows. */
static inline int64_t folder_live_column(const folder_weight *weight, int64_t row, int64_t group,
                                         int k)
{
    int64_t lane = k == 0 ? row % 2 : 2 + (row / 2) % 2;
    if (strcmp(weight->pattern, "4:2:8") == 0) {
        return group * 8 + lane;
    }
    if (strcmp(weight->pattern, "panel:4@0.75") == 0) {
        uint32_t columns[8];
        int64_t stored = weight->shape[0] - 1 - row;
        folder_columns(stored / 4, columns);
        return columns[group * 4 + lane];
    }
    return strcmp(weight->pattern, "1:4") == 0 ? group * 4 + row % 4 : group * 4 + lane;
}

static inline int64_t folder_groups(const folder_weight *weight)
{
    return strcmp(weight->pattern, "4:2:8") == 0          ? 3
           : strcmp(weight->pattern, "panel:4@0.75") == 0 ? 2
                                                          : weight->shape[1] / 4;
}

/* Data of a weight: non-zeros where the pattern allows them; `variant` changes the values. */
static inline esp_tensor folder_tensor(esp_context *context, const folder_weight *weight,
                                       int variant)
{
    esp_tensor tensor = {0};
    size_t bytes = 0;
    esp_error error;
    if (esp_tensor_create(context, weight->dtype, weight->rank, weight->shape, &tensor, &error) !=
            ESP_OK ||
        esp_tensor_size(&tensor, NULL, &bytes, &error) != ESP_OK) {
        abort();
    }
    if (strcmp(weight->pattern, "dense") == 0) {
        memset(tensor.data, 0x11 + variant, bytes);
        return tensor;
    }
    for (int64_t row = 0; row < weight->shape[0]; row++) {
        for (int64_t group = 0; group < folder_groups(weight); group++) {
            for (int k = 0; k < 2; k++) {
                int64_t at = row * weight->shape[1] + folder_live_column(weight, row, group, k);
                float value = (float)(1 + row + group) + 0.5f * (float)variant;
                size_t size = esp_dtype_bytes(weight->dtype);
                esp_narrow(weight->dtype, &value, 1, (char *)tensor.data + (size_t)at * size);
            }
        }
    }
    return tensor;
}

/* The same weight compressed. */
static inline esp_sparse *folder_sparse(test_run *run, esp_context *context,
                                        const folder_weight *weight, const esp_tensor *dense)
{
    esp_pattern pattern = {0};
    esp_mask *mask = NULL;
    esp_sparse *sparse = NULL;
    CHECK_OK(esp_pattern_parse(weight->pattern, &pattern, error));
    CHECK_OK(esp_mask_from_dense(context, dense, &mask, error));
    if (weight->has_rows) {
        uint32_t columns[16], rows[8];
        folder_columns(0, columns);
        folder_columns(1, columns + 8);
        for (uint32_t i = 0; i < 8; i++) {
            rows[i] = 7 - i;
        }
        CHECK_OK(esp_mask_set_columns(mask, 4, 8, columns, error));
        CHECK_OK(esp_mask_set_rows(mask, rows, error));
    }
    CHECK_OK(esp_sparse_encode(context, &pattern, dense, mask, &sparse, error));
    esp_mask_free(mask);
    return sparse;
}

/* A dense folder with tokenizer and things that must not go along. */
static inline void make_source_folder(test_run *run, esp_context *context, const char *path)
{
    esp_safetensors_writer *writer = NULL;
    uint64_t bytes;
    mkdir(path, 0700);
    write_text(run, test_path(path, "config.json"), folder_config);
    write_text(run, test_path(path, "tokenizer.json"), "{\"version\": \"1.0\"}");
    write_text(run, test_path(path, "README.md"), "# a model\n");
    write_text(run, test_path(path, "pytorch_model.bin"), "old weights");
    write_text(run, test_path(path, "model.safetensors.index.json"), "{}");
    mkdir(test_path(path, "onnx"), 0700);
    REQUIRE_OK(esp_safetensors_writer_create(context, &writer, error));
    for (int i = 0; i < ESP_COUNT(folder_weights); i++) {
        esp_tensor tensor = {.dtype = folder_weights[i].dtype, .rank = folder_weights[i].rank};
        memcpy(tensor.shape, folder_weights[i].shape, sizeof folder_weights[i].shape);
        CHECK_OK(esp_safetensors_writer_declare(writer, folder_weights[i].name, &tensor, error));
    }
    CHECK_OK(esp_safetensors_writer_place(writer, &bytes, error));
    CHECK_OK(esp_safetensors_writer_begin(writer, test_path(path, "model.safetensors"), error));
    for (int i = 0; i < ESP_COUNT(folder_weights); i++) {
        esp_tensor tensor = folder_tensor(context, &folder_weights[i], 0);
        CHECK_OK(esp_safetensors_writer_write(writer, folder_weights[i].name, tensor.data, error));
        esp_tensor_free(context, &tensor);
    }
    CHECK_OK(esp_safetensors_writer_finish(writer, error));
    esp_safetensors_writer_free(writer);
}

static inline void set_folder_form(test_run *run, const folder_weight *weight,
                                   esp_weight_info *info)
{
    CHECK_OK(esp_pattern_parse(weight->pattern, &info->pattern, error));
    if (weight->has_rows) {
        CHECK_OK(esp_sparse_layout_bytes(&info->pattern, info->dtype, info->shape[0],
                                         info->shape[1], true, &info->stored_bytes, error));
    }
}

static inline esp_status declare_folder_weight(test_run *run, esp_checkpoint_writer *writer,
                                               const folder_weight *weight, bool dense,
                                               esp_error *problem)
{
    esp_weight_info info = {.name = weight->name, .dtype = weight->dtype, .rank = weight->rank};
    memcpy(info.shape, weight->shape, sizeof weight->shape);
    if (!dense) {
        set_folder_form(run, weight, &info);
    }
    return esp_checkpoint_writer_declare(writer, &info, problem);
}

static inline esp_status write_folder_weight(test_run *run, esp_context *context,
                                             esp_checkpoint_writer *writer,
                                             const folder_weight *weight, bool dense, int variant,
                                             esp_error *error)
{
    esp_tensor tensor = folder_tensor(context, weight, variant);
    esp_status status;
    if (dense || strcmp(weight->pattern, "dense") == 0) {
        status = esp_checkpoint_writer_write_dense(writer, weight->name, &tensor, error);
    } else {
        esp_sparse *sparse = folder_sparse(run, context, weight, &tensor);
        status = esp_checkpoint_writer_write_sparse(writer, weight->name, sparse, error);
        esp_sparse_free(sparse);
    }
    esp_tensor_free(context, &tensor);
    return status;
}

/* Writes all weights, compressed or dense; the first failure ends it. */
static inline esp_status write_folder(test_run *run, esp_context *context, const char *source,
                                      const char *target, bool force, bool dense, int variant,
                                      esp_error *error)
{
    esp_checkpoint *checkpoint = NULL;
    esp_checkpoint_writer *writer = NULL;
    esp_status status = esp_checkpoint_open(context, source, &checkpoint, error);
    if (status == ESP_OK) {
        status = esp_checkpoint_writer_create(context, checkpoint, target, force, &writer, error);
    }
    esp_checkpoint_close(checkpoint);
    for (int i = 0; status == ESP_OK && i < ESP_COUNT(folder_weights); i++) {
        status = declare_folder_weight(run, writer, &folder_weights[i], dense, error);
    }
    if (status == ESP_OK) {
        status = esp_checkpoint_writer_begin(writer, error);
    }
    for (int i = ESP_COUNT(folder_weights) - 1; status == ESP_OK && i >= 0; i--) {
        status =
            write_folder_weight(run, context, writer, &folder_weights[i], dense, variant, error);
    }
    if (status == ESP_OK) {
        status = esp_checkpoint_writer_finish(writer, error);
    }
    esp_checkpoint_writer_free(writer);
    return status;
}

/* Every weight reads back as it was written. */
static inline void check_folder(test_run *run, esp_context *context, const char *path,
                                bool compressed, int variant)
{
    esp_checkpoint *checkpoint = NULL;
    REQUIRE_OK(esp_checkpoint_open(context, path, &checkpoint, error));
    CHECK_INT(esp_checkpoint_is_compressed(checkpoint), compressed);
    CHECK_INT(esp_checkpoint_count(checkpoint), ESP_COUNT(folder_weights));
    for (int i = 0; i < ESP_COUNT(folder_weights); i++) {
        const folder_weight *weight = &folder_weights[i];
        int64_t index = esp_checkpoint_find(checkpoint, weight->name);
        CHECK(index >= 0);
        if (index < 0) {
            continue;
        }
        esp_weight_info info = esp_checkpoint_get(checkpoint, index);
        esp_tensor expected = folder_tensor(context, weight, variant);
        esp_tensor read = folder_tensor(context, weight, 7);
        char pattern[ESP_PATTERN_TEXT_MAX];
        esp_pattern_print(&info.pattern, pattern);
        CHECK_TEXT(pattern, compressed ? weight->pattern : "dense");
        CHECK_INT(info.has_crc32c, compressed);
        CHECK_OK(esp_checkpoint_read_dense(checkpoint, index, &read, error));
        CHECK(memcmp(read.data, expected.data, info.dense_bytes) == 0);
        if (info.rank == 2) {
            esp_sparse *sparse = NULL;
            CHECK_OK(esp_checkpoint_read_sparse(checkpoint, index, &sparse, error));
            CHECK_INT(esp_sparse_bytes(sparse), info.stored_bytes);
            esp_sparse_free(sparse);
        }
        esp_tensor_free(context, &read);
        esp_tensor_free(context, &expected);
    }
    esp_checkpoint_close(checkpoint);
}

#endif
