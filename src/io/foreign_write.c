#include "io/foreign_write.h"

#include <inttypes.h>
#include <string.h>

/* The last version whose decompressors the written folders were held against. */
#define COMPRESSED_TENSORS_VERSION "0.9.4"

/* ---- layout ---- */

static esp_status wrong_form(esp_folder_form form, const esp_weight_info *weight, const char *why,
                             esp_error *error)
{
    char pattern[ESP_PATTERN_TEXT_MAX];
    esp_pattern_print(&weight->pattern, pattern);
    return esp_fail(error, ESP_BAD_ARGUMENT, "checkpoint.wrong_form",
                    "tensor \"%s\" (%s) has no place in a %s folder: %s; declare it as dense",
                    esp_io_show(weight->name).text, pattern, esp_form_name(form), why);
}

static esp_status check_form(esp_folder_form form, const esp_weight_info *weight, esp_error *error)
{
    bool groups = form == ESP_FORM_SPARSE_24_BITMASK;
    if (weight->rank != 2 || !esp_dtype_is_weight(weight->dtype) || weight->shape[0] < 1 ||
        weight->shape[1] < 1) {
        return wrong_form(form, weight, "only matrices of F32, F16 or BF16 have", error);
    }
    if (strlen(weight->name) <= strlen(".weight") || !esp_io_ends_with(weight->name, ".weight")) {
        return wrong_form(form, weight, "its name must end in .weight", error);
    }
    if (groups ? !esp_pattern_is_2_4(&weight->pattern)
               : weight->pattern.kind != ESP_PATTERN_UNSTRUCTURED) {
        return wrong_form(form, weight, groups ? "only 2:4 has" : "only unstructured has", error);
    }
    return !groups || weight->shape[1] % 4 == 0
               ? ESP_OK
               : wrong_form(form, weight, "its columns are no multiple of 4", error);
}

/* The number of values that the declared size promises; -1 when it is no such size. */
static int64_t promised_values(const esp_weight_info *weight, size_t without_values)
{
    size_t width = esp_dtype_bytes(weight->dtype);
    if (weight->stored_bytes < without_values ||
        (weight->stored_bytes - without_values) % width != 0) {
        return -1;
    }
    size_t values = (weight->stored_bytes - without_values) / width;
    return values <= weight->dense_bytes / width ? (int64_t)values : -1;
}

esp_status esp_foreign_layout(esp_folder_form form, const esp_weight_info *weight,
                              esp_sparse_part parts[ESP_BITMASK_MAX_PARTS], int *count,
                              esp_error *error)
{
    ESP_TRY(check_form(form, weight, error));
    esp_weight_info sized = *weight;
    esp_tensor dense = {.dtype = weight->dtype, .rank = 2};
    memcpy(dense.shape, weight->shape, sizeof weight->shape);
    ESP_TRY(esp_tensor_size(&dense, NULL, &sized.dense_bytes, error));
    size_t expected = 0, part;
    esp_bitmask_layout(form, &sized, 0, parts, count);
    for (int i = 0; i < *count; i++) {
        ESP_TRY(esp_tensor_size(&parts[i].tensor, NULL, &part, error));
        expected += part;
    }
    int64_t values = promised_values(&sized, expected);
    bool fits = form == ESP_FORM_SPARSE_BITMASK
                    ? values >= 0
                    : sized.stored_bytes == 0 || sized.stored_bytes == expected;
    if (!fits) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "checkpoint.wrong_size",
                        "tensor \"%s\": stored_bytes is %zu; its form takes %zu%s",
                        esp_io_show(weight->name).text, weight->stored_bytes, expected,
                        form == ESP_FORM_SPARSE_BITMASK ? " and its non-zeros" : "");
    }
    esp_bitmask_layout(form, &sized, values, parts, count);
    return ESP_OK;
}

size_t esp_bitmask_bytes(esp_folder_form form, esp_dtype dtype, int64_t out_features,
                         int64_t in_features, int64_t live)
{
    esp_weight_info weight = {.dtype = dtype, .rank = 2, .shape = {out_features, in_features}};
    esp_sparse_part parts[ESP_BITMASK_MAX_PARTS];
    int count = 0;
    size_t bytes = 0;
    esp_bitmask_layout(form, &weight, live, parts, &count);
    for (int i = 0; i < count; i++) {
        const esp_tensor *tensor = &parts[i].tensor;
        bytes += (size_t)tensor->shape[0] * (size_t)(tensor->rank == 2 ? tensor->shape[1] : 1) *
                 esp_dtype_bytes(tensor->dtype);
    }
    return bytes;
}

/* ---- data ---- */

static esp_status make_parts(esp_checkpoint_writer *writer, esp_sparse_part *parts, int count,
                             esp_error *error)
{
    for (int i = 0; i < count; i++) {
        size_t bytes;
        ESP_TRY(esp_tensor_size(&parts[i].tensor, NULL, &bytes, error));
        parts[i].tensor.data = esp_alloc(writer->context, bytes);
        if (parts[i].tensor.data == NULL) {
            return esp_fail_memory(error, bytes, "a compressed weight");
        }
    }
    return ESP_OK;
}

static esp_status write_parts(esp_checkpoint_writer *writer, const esp_promised *weight,
                              const esp_sparse_part *parts, int count, esp_error *error)
{
    for (int i = 0; i < count; i++) {
        ESP_TRY(esp_writer_write_part(writer, weight, &parts[i], error));
    }
    return ESP_OK;
}

static int64_t count_zeros(const esp_tensor *dense)
{
    int64_t zeros = 0, count = dense->shape[0] * dense->shape[1];
    for (int64_t i = 0; i < count; i++) {
        zeros += esp_weight_is_zero(dense->dtype, dense->data, i);
    }
    return zeros;
}

esp_status esp_foreign_write(esp_checkpoint_writer *writer, esp_promised *weight,
                             const esp_tensor *dense, esp_error *error)
{
    esp_sparse_part parts[ESP_BITMASK_MAX_PARTS] = {0};
    int count = 0;
    ESP_TRY(esp_foreign_layout(writer->form, &weight->info, parts, &count, error));
    esp_status status = make_parts(writer, parts, count, error);
    if (status == ESP_OK) {
        status = esp_bitmask_encode(writer->form, dense, parts, error);
        if (status != ESP_OK) {
            status = esp_fail_within(error, status, "tensor \"%s\"",
                                     esp_io_show(weight->info.name).text);
        }
    }
    if (status == ESP_OK) {
        status = write_parts(writer, weight, parts, count, error);
    }
    for (int i = 0; i < count; i++) {
        esp_release(writer->context, parts[i].tensor.data);
    }
    weight->zeros = count_zeros(dense);
    weight->written = status == ESP_OK;
    return status;
}

/* ---- config ---- */

static bool is_compressed(const esp_promised *weight)
{
    return weight->info.pattern.kind != ESP_PATTERN_DENSE;
}

/* Of all weights of the folder, those that compressed layers leave out. */
static double global_sparsity(const esp_checkpoint_writer *writer)
{
    double zeros = 0, all = 0;
    for (size_t i = 0; i < writer->count; i++) {
        const esp_promised *weight = &writer->weights[i];
        double count = 1;
        for (int k = 0; k < weight->info.rank; k++) {
            count *= (double)weight->info.shape[k];
        }
        all += count;
        zeros += (double)weight->zeros;
    }
    return all > 0 ? zeros / all : 0;
}

/* Layers that a loader would take for compressed ones by their class. The output head may share the
 * embedding and then has no tensor of its own, but it is a layer. */
static void print_ignored(const esp_checkpoint_writer *writer, esp_buffer *text)
{
    bool has_head = false;
    for (size_t i = 0; i < writer->count; i++) {
        const esp_promised *weight = &writer->weights[writer->by_name[i]];
        const char *name = weight->info.name;
        bool ends = esp_io_ends_with(name, ".weight");
        has_head |= strcmp(name, "lm_head.weight") == 0;
        if (!ends || weight->info.rank != 2 || is_compressed(weight)) {
            continue;
        }
        char layer[ESP_IO_NAME_MAX + 1];
        size_t length = strlen(name) - strlen(".weight");
        memcpy(layer, name, length);
        layer[length] = '\0';
        esp_buffer_text(text, "\n        ");
        esp_buffer_json_string(text, layer);
        esp_buffer_text(text, ",");
    }
    if (!has_head) {
        esp_buffer_text(text, "\n        \"lm_head\",");
    }
    if (!text->failed && text->data[text->length - 1] == ',') {
        text->data[--text->length] = '\0';
    }
}

bool esp_foreign_print_config(const esp_checkpoint_writer *writer, esp_buffer *text)
{
    bool compressed = false;
    for (size_t i = 0; i < writer->count; i++) {
        compressed |= is_compressed(&writer->weights[i]);
    }
    esp_buffer_printf(text,
                      "{\n    \"quant_method\": \"compressed-tensors\",\n"
                      "    \"version\": \"" COMPRESSED_TENSORS_VERSION "\",\n"
                      "    \"sparsity_config\": {\n      \"format\": \"%s\",\n"
                      "      \"targets\": [\"Linear\"],\n      \"ignore\": [",
                      esp_form_name(writer->form));
    print_ignored(writer, text);
    esp_buffer_printf(text,
                      "],\n      \"global_sparsity\": %.6f,\n"
                      "      \"sparsity_structure\": \"%s\"\n    }\n  }",
                      global_sparsity(writer),
                      writer->form == ESP_FORM_SPARSE_24_BITMASK ? "2:4" : "unstructured");
    return compressed;
}
