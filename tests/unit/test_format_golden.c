/* Files of version 1 stay what they are: tests/golden/format/NAME.txt holds a small weight, its
 * parts and its checksum in hexadecimal. The writer must make these bytes, and a reader that has
 * only the file must get the weight back. TEST_UPDATE_GOLDEN=1 writes the files anew (a change of
 * format_version). */
#include <stdio.h>

#include "weights.h"

static const struct {
    const char *name, *pattern;
    esp_dtype dtype;
    int out, in;
    bool with_rows;
} golden[] = {
    {"dense_f32", "dense", ESP_F32, 2, 5, false},
    {"2_4_bf16", "2:4", ESP_BF16, 5, 16, false},
    {"2_4_f32_remainder", "2:4", ESP_F32, 3, 13, false},
    {"2_4_f16_rows", "2:4", ESP_F16, 5, 12, true},
    {"v_2_8_bf16", "4:2:8", ESP_BF16, 8, 32, false},
    {"v_2_8_f16_remainder", "4:2:8", ESP_F16, 6, 27, false},
    {"v_2_5_f32_rows", "2:2:5", ESP_F32, 5, 16, true},
    {"v_2_10_bf16_one_panel", "64:2:10", ESP_BF16, 3, 21, false},
    {"panel_bf16", "panel:2@0.75", ESP_BF16, 5, 24, false},
    {"panel_f32_rows", "panel:3@0.5", ESP_F32, 4, 10, true},
    {"nm_4_8_bf16", "4:8", ESP_BF16, 3, 16, false},
    {"nm_3_7_f16_remainder", "3:7", ESP_F16, 4, 17, false},
    {"nm_1_300_f32", "1:300", ESP_F32, 2, 700, false},
    {"csr_bf16", "unstructured@0.75", ESP_BF16, 5, 12, false},
    {"csr_f32", "unstructured@0.9", ESP_F32, 3, 20, false},
    {"bsr_f16_edges", "block:2x4@0.5", ESP_F16, 5, 10, false},
    {"bsr_f32", "block:3x1@0.6", ESP_F32, 6, 5, false},
    {"rows_bf16", "rows@0.5", ESP_BF16, 5, 6, false},
    {"cols_f16", "cols@0.6", ESP_F16, 3, 10, false},
};

static void append_hex(esp_buffer *text, const char *key, const void *data, size_t bytes)
{
    esp_buffer_printf(text, "%s ", key);
    for (size_t i = 0; i < bytes; i++) {
        esp_buffer_printf(text, "%02x", ((const uint8_t *)data)[i]);
    }
    esp_buffer_text(text, "\n");
}

static void describe(esp_buffer *text, const char *pattern, const esp_tensor *dense,
                     const esp_sparse *sparse)
{
    esp_buffer_printf(text,
                      "# espalier format_version 1: dense is the weight, row-major; parts are as "
                      "drawn in docs/formats.md\n"
                      "pattern %s\ndtype %s\nout %lld\nin %lld\n",
                      pattern, esp_dtype_name(dense->dtype), (long long)dense->shape[0],
                      (long long)dense->shape[1]);
    append_hex(text, "dense", dense->data, tensor_bytes(dense));
    for (int i = 0; i < esp_sparse_part_count(sparse); i++) {
        esp_sparse_part part = esp_sparse_get_part(sparse, i);
        char key[32], shape[64];
        esp_shape_print(part.tensor.rank, part.tensor.shape, shape, sizeof shape);
        esp_buffer_printf(text, "# %s %s %s\n", part.name[0] != '\0' ? part.name : "(itself)",
                          esp_dtype_name(part.tensor.dtype), shape);
        snprintf(key, sizeof key, "part.%s", part.name);
        append_hex(text, key, part.tensor.data, tensor_bytes(&part.tensor));
    }
    esp_buffer_printf(text, "crc32c %08x\n", esp_sparse_crc32c(sparse));
}

/* The value of a line "key value"; its length in *length. NULL when absent. */
static const char *find_value(const char *text, const char *key, size_t *length)
{
    size_t key_length = strlen(key);
    while (text != NULL && *text != '\0') {
        if (strncmp(text, key, key_length) == 0 && text[key_length] == ' ') {
            *length = strcspn(text + key_length + 1, "\n");
            return text + key_length + 1;
        }
        text = strchr(text, '\n');
        text = text != NULL ? text + 1 : NULL;
    }
    return NULL;
}

static bool read_hex(const char *text, const char *key, void *data, size_t bytes)
{
    size_t length = 0;
    const char *hex = find_value(text, key, &length);
    if (hex == NULL || length != 2 * bytes) {
        return false;
    }
    for (size_t i = 0; i < bytes; i++) {
        unsigned byte = 0;
        if (sscanf(hex + 2 * i, "%2x", &byte) != 1) {
            return false;
        }
        ((uint8_t *)data)[i] = (uint8_t)byte;
    }
    return true;
}

/* A reader that knows only the file. */
static void read_back(test_run *run, esp_context *context, const char *text)
{
    char pattern_text[64] = "", dtype_name[16] = "";
    long long out = 0, in = 0;
    size_t length = 0;
    const char *head = find_value(text, "pattern", &length);
    REQUIRE(head != NULL && sscanf(head, "%63s dtype %15s out %lld in %lld", pattern_text,
                                   dtype_name, &out, &in) == 4);
    esp_pattern pattern = pattern_of(run, pattern_text);
    esp_dtype dtype = esp_dtype_from_name(dtype_name);
    esp_sparse_part parts[ESP_SPARSE_MAX_PARTS];
    int count = 0;
    bool has_rows =
        pattern.kind == ESP_PATTERN_PANEL && find_value(text, "part.rows", &length) != NULL;
    REQUIRE_OK(esp_sparse_layout(&pattern, dtype, out, in, has_rows, parts, &count, error));
    for (int i = 0; i < count; i++) {
        char key[32];
        snprintf(key, sizeof key, "part.%s", parts[i].name);
        parts[i].tensor.data = malloc(tensor_bytes(&parts[i].tensor) + 1);
        CHECK(read_hex(text, key, parts[i].tensor.data, tensor_bytes(&parts[i].tensor)));
    }
    esp_sparse *sparse = NULL;
    CHECK_OK(
        esp_sparse_from_parts(context, &pattern, dtype, out, in, parts, count, &sparse, error));
    REQUIRE(sparse != NULL);
    CHECK_OK(esp_sparse_check(sparse, error));
    esp_tensor decoded = make_tensor(run, context, dtype, out, in);
    esp_tensor expected = make_tensor(run, context, dtype, out, in);
    CHECK(read_hex(text, "dense", expected.data, tensor_bytes(&expected)));
    CHECK_OK(esp_sparse_decode(sparse, &decoded, error));
    CHECK(memcmp(decoded.data, expected.data, tensor_bytes(&decoded)) == 0);
    const char *crc = find_value(text, "crc32c", &length);
    CHECK(crc != NULL && strtoul(crc, NULL, 16) == esp_sparse_crc32c(sparse));
    esp_tensor_free(context, &decoded);
    esp_tensor_free(context, &expected);
    esp_sparse_free(sparse);
    for (int i = 0; i < count; i++) {
        free(parts[i].tensor.data);
    }
}

static char *read_whole(const char *path)
{
    FILE *file = fopen(path, "rb");
    char *text = calloc(1, 1 << 20);
    if (file != NULL) {
        size_t length = fread(text, 1, (1 << 20) - 1, file);
        text[length] = '\0';
        fclose(file);
    }
    return text;
}

static void golden_files(test_run *run)
{
    for (int i = 0; i < ESP_COUNT(golden); i++) {
        test_sub(run, "%s", golden[i].name);
        esp_context *context = test_context(run, 1);
        esp_random random;
        esp_random_seed(&random, 7000 + (uint64_t)i); /* not TEST_SEED: files are fixed */
        esp_pattern pattern = pattern_of(run, golden[i].pattern);
        esp_tensor dense =
            hostile_tensor(run, context, &random, golden[i].dtype, golden[i].out, golden[i].in);
        esp_mask *mask = random_mask(run, context, &random, &pattern, golden[i].out, golden[i].in,
                                     golden[i].with_rows);
        CHECK_OK(esp_mask_apply(mask, &dense, error));
        esp_sparse *sparse = NULL;
        CHECK_OK(esp_sparse_encode(context, &pattern, &dense, mask, &sparse, error));
        esp_buffer text;
        esp_buffer_init(&text, context);
        describe(&text, golden[i].pattern, &dense, sparse);
        char path[512];
        snprintf(path, sizeof path, "%s/tests/golden/format/%s.txt", ESP_SOURCE_DIR,
                 golden[i].name);
        if (getenv("TEST_UPDATE_GOLDEN") != NULL) {
            test_write_file(run, path, text.data, text.length);
        }
        char *stored = read_whole(path);
        CHECK_TEXT(text.data, stored);
        read_back(run, context, stored);
        free(stored);
        esp_buffer_free(&text);
        esp_sparse_free(sparse);
        esp_mask_free(mask);
        esp_tensor_free(context, &dense);
        test_context_free(run, context);
    }
}

/* The worked examples of docs/formats.md are the library's bytes. */
static void documented_examples(test_run *run)
{
    static const float weights[27] = {1, 0, 0, 2, 0, 0, -1, 0, .5f, 0, 0, 0, 3, 0,
                                      4, 0, 0, 0, 0, 1, 2,  0, 0,   0, 0, 3, 0};
    static const struct {
        const char *pattern, *shown; /* parts in hexadecimal, ", " between */
        uint32_t crc;
    } rows[] = {
        {"2:2:6",
         "803f004080bf003f4040804000000000803f004000004040, 884e49, "
         "0000010003000500060007000800ffff0000010002000300060007000800ffff",
         0x2691051b},
        {"3:5",
         "803f00000040000080bf003f0000000040408040000000000000803f0040000000004040, "
         "c89001c81001881001",
         0x41afadeb},
        {"unstructured@0.6",
         "803f00000000004080bf003f40408040803f00404040, "
         "00000100020003000600080003000500010002000700, 0000000006000000080000000b000000",
         0x171f2175},
        {"block:2x4@0.2",
         "803f00000000004000000000000040400000000080bf00000000804000000000003f000000000000000000000"
         "0"
         "0000000000803f00400000000000000000000000000000000040400000000000000000, "
         "00000100020000000100, 000000000300000005000000",
         0xf3b275a6},
        {"cols@0.1",
         "803f000000000040000080bf0000003f000000000000404080400000000000000000803f00400000000000004"
         "0"
         "400000, 00000100020003000500060007000800",
         0x2b0c9e5e},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s", rows[i].pattern);
        esp_context *context = test_context(run, 1);
        uint16_t halves[27];
        esp_narrow(ESP_BF16, weights, 27, halves);
        esp_tensor dense = {.dtype = ESP_BF16, .rank = 2, .shape = {3, 9}, .data = halves};
        esp_pattern pattern = pattern_of(run, rows[i].pattern);
        esp_sparse *sparse = NULL;
        CHECK_OK(esp_sparse_encode(context, &pattern, &dense, NULL, &sparse, error));
        REQUIRE(sparse != NULL);
        esp_buffer text;
        esp_buffer_init(&text, context);
        for (int k = 0; k < esp_sparse_part_count(sparse); k++) {
            esp_tensor part = esp_sparse_get_part(sparse, k).tensor;
            esp_buffer_text(&text, k > 0 ? ", " : "");
            for (size_t b = 0; b < tensor_bytes(&part); b++) {
                esp_buffer_printf(&text, "%02x", ((const uint8_t *)part.data)[b]);
            }
        }
        CHECK_TEXT(text.data, rows[i].shown);
        CHECK_INT(esp_sparse_crc32c(sparse), rows[i].crc);
        esp_buffer_free(&text);
        esp_sparse_free(sparse);
        test_context_free(run, context);
    }
}

static void collect(void *user, const char *text, size_t length)
{
    esp_buffer_append(user, text, length);
}

static void print_for_a_person(test_run *run)
{
    esp_context *context = test_context(run, 1);
    uint16_t halves[16] = {0, 0x3f80, 0, 0xc000, [9] = 0x3f00};
    esp_tensor dense = {.dtype = ESP_BF16, .rank = 2, .shape = {2, 8}, .data = halves};
    static const struct {
        const char *pattern, *text;
    } rows[] = {
        {"2:4", "2:4 bf16 [2, 8], 18 bytes (dense 32), crc32c %08x\n"
                "  values BF16 [2, 4]\n  positions U8 [2, 1]\n"
                "row 0: 1:1 3:-2 4:0 5:0\n... 1 more rows\n"},
        {"4:2:8", "4:2:8 bf16 [2, 8], 18 bytes (dense 32), crc32c %08x\n"
                  "  values BF16 [2, 2]\n  positions U8 [2, 1]\n  columns U16 [1, 4]\n"
                  "row 0: 1:1 3:-2\n... 1 more rows\n"},
        {"3:8", "3:8 bf16 [2, 8], 16 bytes (dense 32), crc32c %08x\n"
                "  values BF16 [2, 3]\n  positions U8 [2, 2]\n"
                "row 0: 0:0 1:1 3:-2\n... 1 more rows\n"},
        {"dense", "dense bf16 [2, 8], 32 bytes (dense 32), crc32c %08x\n"
                  "row 0: 0:0 1:1 2:0 3:-2 4:0 5:0 6:0 7:0\n... 1 more rows\n"},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s", rows[i].pattern);
        esp_pattern pattern = pattern_of(run, rows[i].pattern);
        esp_sparse *sparse = NULL;
        CHECK_OK(esp_sparse_encode(context, &pattern, &dense, NULL, &sparse, error));
        REQUIRE(sparse != NULL);
        esp_buffer text;
        esp_buffer_init(&text, context);
        esp_sparse_print(sparse, 1, collect, &text);
        char crc[16], *hole, expected[512];
        snprintf(expected, sizeof expected, "%s", rows[i].text);
        snprintf(crc, sizeof crc, "%08x", esp_sparse_crc32c(sparse));
        hole = strstr(expected, "%08x");
        memmove(hole + 8, hole + 4, strlen(hole + 4) + 1);
        memcpy(hole, crc, 8);
        CHECK_TEXT(text.data, expected);
        esp_buffer_free(&text);
        esp_sparse_free(sparse);
    }
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"golden files", golden_files},
    {"documented examples", documented_examples},
    {"print for a person", print_for_a_person},
};
TEST_MAIN(cases)
