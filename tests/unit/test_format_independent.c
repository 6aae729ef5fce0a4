/* tests/independent/read_espalier.pl knows docs/formats.md and nothing else. Here the library
 * writes a compressed folder and, beside it, the same weights dense; the script must read both
 * alike, and must notice damage. The container is written by hand so that src/io is not needed, nor
 * trusted. */
#include <stdio.h>

#include "weights.h"

#define READER ESP_SOURCE_DIR "/tests/independent/read_espalier.pl"

static const struct {
    const char *pattern;
    esp_dtype dtype;
    int out, in;
    bool with_rows;
} weights[] = {
    {"dense", ESP_BF16, 7, 9, false},
    {"2:4", ESP_BF16, 64, 64, false},
    {"2:4", ESP_F32, 33, 71, true},
    {"4:8", ESP_F16, 40, 100, false},
    {"3:7", ESP_F32, 9, 50, false},
    {"1:300", ESP_BF16, 5, 1000, false},
    {"5:65536", ESP_BF16, 2, 70001, false},
    {"64:2:8", ESP_BF16, 256, 384, false},
    {"16:2:5", ESP_F16, 50, 77, true},
    {"64:2:10", ESP_F32, 10, 1, false},
    {"4:2:1024", ESP_BF16, 11, 3000, false},
    {"2:2:8", ESP_BF16, 3, 65535, false},
    {"2:2:8", ESP_BF16, 3, 65536, true},
    {"panel:8@0.75", ESP_BF16, 50, 200, false},
    {"panel:3@0.5", ESP_F32, 10, 22, true},
    {"panel:2@0.9", ESP_F16, 3, 70001, false},
    {"unstructured@0.9", ESP_BF16, 100, 90, false},
    {"unstructured@0.5", ESP_F32, 3, 65537, false},
    {"block:32x32@0.8", ESP_BF16, 130, 200, false},
    {"block:3x5@0.4", ESP_F32, 10, 22, false},
    {"rows@0.5", ESP_F16, 33, 20, false},
    {"cols@0.3", ESP_BF16, 20, 70, false},
    {"rows@0.9", ESP_F32, 65537, 2, false},
    {"64:2:8", ESP_BF16, 1024, 1024, false}, /* last: the one that is damaged below */
};

/* Files under construction: header and data of a safetensors file, and config.json's tensors. */
typedef struct folder {
    esp_buffer header, data, tensors;
} folder;

static void add_stored(folder *to, const char *name, const esp_tensor *tensor)
{
    char shape[64];
    esp_shape_print(tensor->rank, tensor->shape, shape, sizeof shape);
    esp_buffer_printf(&to->header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,",
                      to->header.length > 0 ? "," : "", name, esp_dtype_name(tensor->dtype), shape,
                      to->data.length);
    esp_buffer_append(&to->data, tensor->data, tensor_bytes(tensor));
    esp_buffer_printf(&to->header, "%zu]}", to->data.length);
}

static void add_sparse(folder *to, const char *name, const char *pattern, const esp_sparse *sparse)
{
    for (int i = 0; i < esp_sparse_part_count(sparse); i++) {
        esp_sparse_part part = esp_sparse_get_part(sparse, i);
        char full[64];
        snprintf(full, sizeof full, "%s%s%s", name, part.name[0] != '\0' ? "." : "", part.name);
        add_stored(to, full, &part.tensor);
    }
    esp_buffer_printf(
        &to->tensors,
        "%s\"%s\":{\"pattern\":\"%s\",\"shape\":[%lld,%lld],\"dtype\":\"%s\",\"crc32c\":\"%08x\"}",
        to->tensors.length > 0 ? "," : "", name, pattern,
        (long long)esp_sparse_out_features(sparse), (long long)esp_sparse_in_features(sparse),
        esp_dtype_name(esp_sparse_dtype(sparse)), esp_sparse_crc32c(sparse));
}

static void write_folder(test_run *run, const folder *from, const char *path, bool compressed)
{
    esp_buffer file;
    esp_buffer_init(&file, from->header.context);
    uint64_t length = from->header.length + 2;
    esp_buffer_append(&file, &length, sizeof length);
    esp_buffer_printf(&file, "{%s}", from->header.data);
    esp_buffer_append(&file, from->data.data, from->data.length);
    CHECK(!file.failed);
    char name[1024], command[1100];
    snprintf(command, sizeof command, "mkdir -p '%s'", path);
    CHECK(system(command) == 0);
    snprintf(name, sizeof name, "%s/model.safetensors", path);
    test_write_file(run, name, file.data, file.length);
    esp_buffer_clear(&file);
    esp_buffer_printf(&file, "{\"model_type\":\"test\"");
    if (compressed) {
        esp_buffer_printf(&file,
                          ",\"quantization_config\":{\"quant_method\":\"espalier\","
                          "\"format_version\":1,\"tensors\":{%s}}",
                          from->tensors.data);
    }
    esp_buffer_text(&file, "}");
    snprintf(name, sizeof name, "%s/config.json", path);
    test_write_file(run, name, file.data, file.length);
    esp_buffer_free(&file);
}

static void init_folder(folder *to, esp_context *context)
{
    esp_buffer_init(&to->header, context);
    esp_buffer_init(&to->data, context);
    esp_buffer_init(&to->tensors, context);
}

static void free_folder(folder *to)
{
    esp_buffer_free(&to->header);
    esp_buffer_free(&to->data);
    esp_buffer_free(&to->tensors);
}

/* The script's output; its exit status in *status. Freed by the caller. */
static char *read_by_script(const char *options, const char *path, int *status)
{
    char command[2048];
    snprintf(command, sizeof command, "perl '%s' %s '%s' 2>&1", READER, options, path);
    char *text = calloc(1, 1 << 16);
    FILE *pipe = popen(command, "r");
    if (pipe == NULL) {
        *status = -1;
        return text;
    }
    size_t used = 0, got;
    while (used < (1 << 16) - 1 && (got = fread(text + used, 1, (1 << 16) - 1 - used, pipe)) > 0) {
        used += got;
    }
    *status = pclose(pipe);
    return text;
}

static bool script_runs(test_run *run)
{
    if (system("perl -MJSON::PP -MDigest::MD5 -e 1 2>/dev/null") != 0) {
        test_skip(run, "perl with JSON::PP and Digest::MD5 is not installed");
        return false;
    }
    return true;
}

static void make_folders(test_run *run, esp_context *context, folder *compressed, folder *dense)
{
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < ESP_COUNT(weights); i++) {
        char name[32];
        snprintf(name, sizeof name, "layer.%02d.weight", i);
        int64_t out = weights[i].out, in = weights[i].in;
        esp_pattern pattern = pattern_of(run, weights[i].pattern);
        esp_tensor tensor = hostile_tensor(run, context, &random, weights[i].dtype, out, in);
        esp_mask *mask =
            random_mask(run, context, &random, &pattern, out, in, weights[i].with_rows);
        esp_tensor masked = masked_copy(run, context, &tensor, mask);
        esp_sparse *sparse = NULL;
        CHECK_OK(esp_sparse_encode(context, &pattern, &tensor, mask, &sparse, error));
        add_sparse(compressed, name, weights[i].pattern, sparse);
        add_stored(dense, name, &masked);
        esp_sparse_free(sparse);
        esp_mask_free(mask);
        esp_tensor_free(context, &tensor);
        esp_tensor_free(context, &masked);
    }
}

static void script_agrees(test_run *run)
{
    if (!script_runs(run)) {
        return;
    }
    esp_context *context = test_context(run, 1);
    folder compressed, dense;
    init_folder(&compressed, context);
    init_folder(&dense, context);
    make_folders(run, context, &compressed, &dense);
    char compressed_path[600], dense_path[600];
    snprintf(compressed_path, sizeof compressed_path, "%s/compressed", test_folder(run));
    snprintf(dense_path, sizeof dense_path, "%s/dense", test_folder(run));
    write_folder(run, &compressed, compressed_path, true);
    write_folder(run, &dense, dense_path, false);
    int a = -1, b = -1;
    char *from_parts = read_by_script("--crc --plain", compressed_path, &a);
    char *from_dense = read_by_script("--plain", dense_path, &b);
    CHECK_INT(a, 0);
    CHECK_INT(b, 0);
    /* line by line, so that the differing weight is named */
    char *left = from_parts, *right = from_dense;
    for (int i = 0; i < ESP_COUNT(weights); i++) {
        test_sub(run, "%s %s %dx%d%s", weights[i].pattern, esp_dtype_short_name(weights[i].dtype),
                 weights[i].out, weights[i].in, weights[i].with_rows ? " row order" : "");
        size_t length = strcspn(left, "\n");
        CHECK(length > 32 && strncmp(left, right, length + 1) == 0);
        left += length + (left[length] != '\0');
        right += strcspn(right, "\n") + (right[strcspn(right, "\n")] != '\0');
    }
    CHECK_TEXT(left, "");
    free(from_parts);
    free(from_dense);
    /* the script does look: one flipped bit of the last weight */
    test_sub(run, "a flipped bit is noticed");
    compressed.data.data[compressed.data.length - 1 - 4096] ^= 1;
    write_folder(run, &compressed, compressed_path, true);
    free(read_by_script("--crc --plain", compressed_path, &a));
    CHECK(a != 0);
    free_folder(&compressed);
    free_folder(&dense);
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"the script agrees", script_agrees},
};
TEST_MAIN(cases)
