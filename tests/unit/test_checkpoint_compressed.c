/* Compressed folders: read back right, and refused by name when anything in them does not agree. */
#include <fcntl.h>
#include <unistd.h>

#include "model_folder.h"

/* A fresh compressed folder; its path lives until the next call. */
static const char *make_compressed(test_run *run, esp_context *context)
{
    static char path[1024];
    static int number;
    char source[1024];
    snprintf(source, sizeof source, "%s/source%d", test_folder(run), number);
    snprintf(path, sizeof path, "%s/compressed%d", test_folder(run), number++);
    make_source_folder(run, context, source);
    CHECK_OK(write_folder(run, context, source, path, false, false, 0, error));
    return path;
}

/* First occurrence of `from` in a file becomes `to`. */
static void replace_in_file(test_run *run, esp_context *context, const char *path, const char *from,
                            const char *to)
{
    char *text = NULL;
    size_t length = 0;
    REQUIRE_OK(esp_file_read_all(context, path, 1 << 20, "x", &text, &length, error));
    char *found = memmem(text, length, from, strlen(from));
    if (found == NULL) {
        test_fail(run, __FILE__, __LINE__, "'%s' is not in %s", from, path);
        esp_release(context, text);
        return;
    }
    esp_buffer changed;
    esp_buffer_init(&changed, context);
    esp_buffer_append(&changed, text, (size_t)(found - text));
    esp_buffer_text(&changed, to);
    esp_buffer_append(&changed, found + strlen(from),
                      length - (size_t)(found - text) - strlen(from));
    test_write_file(run, path, changed.data, changed.length);
    esp_buffer_free(&changed);
    esp_release(context, text);
}

static void reads_back(test_run *run)
{
    esp_context *context = test_context(run, 2);
    const char *path = make_compressed(run, context);
    check_folder(run, context, path, true, 0);
    test_context_free(run, context);
}

/* ---- config.json ---- */

static void refused_configs(test_run *run)
{
#define A "\"pattern\": \"2:4\", \"shape\": [6, 16], \"dtype\": \"F32\""
    static const struct {
        const char *name, *from, *to, *code;
        esp_status status;
    } rows[] = {
        {"94 version 2", "\"format_version\": 1", "\"format_version\": 2",
         "checkpoint.newer_format", ESP_UNSUPPORTED},
        {"version 0", "\"format_version\": 1", "\"format_version\": 0",
         "checkpoint.bad_format_version", ESP_BAD_FILE},
        {"version is text", "\"format_version\": 1", "\"format_version\": \"1\"",
         "checkpoint.bad_format_version", ESP_BAD_FILE},
        {"another method", "\"espalier\"", "\"awq\"", "checkpoint.foreign_quantization",
         ESP_UNSUPPORTED},
        {"unknown key", "\"format_version\": 1", "\"format_version\": 1, \"x\": 1",
         "checkpoint.unknown_field", ESP_BAD_FILE},
        {"no tensors", "\"tensors\"", "\"tensor\"", "checkpoint.unknown_field", ESP_BAD_FILE},
        {"unknown field of a tensor", A, A ", \"x\": 1", "checkpoint.unknown_field", ESP_BAD_FILE},
        {"bad pattern", "\"pattern\": \"2:4\"", "\"pattern\": \"2:\"", "checkpoint.bad_pattern",
         ESP_BAD_FILE},
        {"pattern is a number", "\"pattern\": \"2:4\"", "\"pattern\": 24", "checkpoint.bad_pattern",
         ESP_BAD_FILE},
        {"pattern of other parts", "\"pattern\": \"2:4\"", "\"pattern\": \"block:2x2@0.5\"",
         "checkpoint.part_mismatch", ESP_BAD_FILE},
        {"negative size", "[6, 16]", "[-6, 16]", "checkpoint.bad_shape", ESP_BAD_FILE},
        {"size is a fraction", "[6, 16]", "[6.0, 16]", "checkpoint.bad_shape", ESP_BAD_FILE},
        {"rank 1", "[6, 16]", "[96]", "checkpoint.bad_shape", ESP_BAD_FILE},
        {"rank 9", "[6, 16]", "[6, 1, 1, 1, 1, 1, 1, 1, 16]", "checkpoint.bad_shape", ESP_BAD_FILE},
        {"enormous", "[6, 16]", "[4611686018427387904, 16]", "checkpoint.bad_shape", ESP_BAD_FILE},
        {"unknown dtype", A, "\"pattern\": \"2:4\", \"shape\": [6, 16], \"dtype\": \"f32\"",
         "checkpoint.bad_dtype", ESP_BAD_FILE},
        {"integer weights", A, "\"pattern\": \"2:4\", \"shape\": [6, 16], \"dtype\": \"I32\"",
         "checkpoint.bad_dtype", ESP_BAD_FILE},
        {"other rows", "[6, 16]", "[7, 16]", "checkpoint.part_mismatch", ESP_BAD_FILE},
        {"other columns", "[6, 16]", "[6, 24]", "checkpoint.part_mismatch", ESP_BAD_FILE},
        {"other dtype", A, "\"pattern\": \"2:4\", \"shape\": [6, 16], \"dtype\": \"BF16\"",
         "checkpoint.part_mismatch", ESP_BAD_FILE},
        {"other shape of a plain one", "\"shape\": [3]", "\"shape\": [4]",
         "checkpoint.part_mismatch", ESP_BAD_FILE},
        {"91 panel count by another V", "\"4:2:8\"", "\"8:2:8\"", "checkpoint.panel_count",
         ESP_BAD_FILE},
        {"a list that the pattern has not", "\"panel:4@0.75\"", "\"2:4\"",
         "checkpoint.part_mismatch", ESP_BAD_FILE},
        {"plain, but in parts", "\"pattern\": \"2:4\"", "\"pattern\": \"dense\"",
         "checkpoint.part_missing", ESP_BAD_FILE},
        {"missing weight", "\"norm.weight\"", "\"norm2.weight\"", "checkpoint.part_missing",
         ESP_BAD_FILE},
        {"entry is a string", "\"scalar\": {", "\"x\": \"dense\", \"scalar\": {",
         "checkpoint.bad_entry", ESP_BAD_FILE},
        {"field missing", "\"pattern\": \"2:4\", ", "", "checkpoint.missing_field", ESP_BAD_FILE},
        {"a part claimed twice", "\"scalar\": {",
         "\"layer.a.weight.values\": {\"pattern\": \"dense\", \"shape\": [6, 8], \"dtype\": "
         "\"F32\", \"crc32c\": \"00000000\"}, \"scalar\": {",
         "checkpoint.part_claimed_twice", ESP_BAD_FILE},
        {"listed twice", "\"scalar\": {", "\"norm.weight\": {}, \"scalar\": {",
         "json.duplicate_key", ESP_BAD_FILE},
        {"crc is a number", "\"crc32c\": \"", "\"crc32c\": 1, \"y\": \"", "checkpoint.bad_crc32c",
         ESP_BAD_FILE},
        {"crc of nine digits", "\"crc32c\": \"", "\"crc32c\": \"0", "checkpoint.bad_crc32c",
         ESP_BAD_FILE},
        {"crc in capitals", "\"crc32c\": \"", "\"crc32c\": \"ABCDEF01\", \"y\": \"",
         "checkpoint.bad_crc32c", ESP_BAD_FILE},
        {"crc is empty", "\"crc32c\": \"", "\"crc32c\": \"\", \"y\": \"", "checkpoint.bad_crc32c",
         ESP_BAD_FILE},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s", rows[i].name);
        esp_context *context = test_context(run, 1);
        const char *path = make_compressed(run, context);
        esp_checkpoint *checkpoint = NULL;
        replace_in_file(run, context, test_path(path, "config.json"), rows[i].from, rows[i].to);
        CHECK_FAILS(esp_checkpoint_open(context, path, &checkpoint, error), rows[i].status,
                    rows[i].code);
        esp_checkpoint_close(checkpoint);
        test_context_free(run, context);
    }
}

static void tensors_not_an_object(test_run *run)
{
    esp_context *context = test_context(run, 1);
    const char *path = make_compressed(run, context);
    esp_checkpoint *checkpoint = NULL;
    write_text(run, test_path(path, "config.json"),
               "{\"quantization_config\":{\"quant_method\":\"espalier\",\"format_version\":1,"
               "\"tensors\":[]}}");
    CHECK_FAILS(esp_checkpoint_open(context, path, &checkpoint, error), ESP_BAD_FILE,
                "checkpoint.bad_tensors");
    write_text(run, test_path(path, "config.json"),
               "{\"quantization_config\":{\"quant_method\":\"espalier\",\"format_version\":1,"
               "\"tensors\":{}}}");
    CHECK_FAILS(esp_checkpoint_open(context, path, &checkpoint, error), ESP_BAD_FILE,
                "checkpoint.part_unlisted");
    /* both numbers are named */
    esp_error problem = {0};
    write_text(run, test_path(path, "config.json"),
               "{\"quantization_config\":{\"quant_method\":\"espalier\",\"format_version\":37}}");
    CHECK_INT(esp_checkpoint_open(context, path, &checkpoint, &problem), ESP_UNSUPPORTED);
    CHECK(strstr(problem.message, "version 37") != NULL);
    CHECK(strstr(problem.message, "version 1;") != NULL);
    test_context_free(run, context);
}

/* ---- parts in the file ---- */

static void refused_parts(test_run *run)
{
    static const struct {
        const char *name, *from, *to, *code;
    } rows[] = {
        {"part renamed", "layer.a.weight.positions", "layer.a.weight.positionz",
         "checkpoint.part_missing"},
        {"91 panel count", "\"shape\":[3,12]", "\"shape\":[4,9] ", "checkpoint.panel_count"},
        {"90 row order in another shape", "rows\":{\"dtype\":\"U16\",\"shape\":[8]",
         "rows\":{\"dtype\":\"U8\",\"shape\":[16]", "checkpoint.part_mismatch"},
        {"92 positions short", "positions\":{\"dtype\":\"U8\",\"shape\":[6,2]",
         "positions\":{\"dtype\":\"U8\",\"shape\":[3,4]", "checkpoint.part_mismatch"},
        {"row order of another name", "layer.c.weight.rows", "layer.c.weight.rowz",
         "checkpoint.part_unlisted"},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s", rows[i].name);
        esp_context *context = test_context(run, 1);
        const char *path = make_compressed(run, context);
        const char *file = test_path(path, "model.safetensors");
        size_t longer = strlen(rows[i].to), shorter = strlen(rows[i].from);
        esp_checkpoint *checkpoint = NULL;
        replace_in_file(run, context, file, rows[i].from, rows[i].to);
        for (; longer > shorter; longer--) { /* the padding makes room */
            replace_in_file(run, context, file, "} ", "}");
        }
        for (; longer < shorter; shorter--) {
            replace_in_file(run, context, file, "\"__metadata__\":{", "\"__metadata__\":{ ");
        }
        CHECK_FAILS(esp_checkpoint_open(context, path, &checkpoint, error), ESP_BAD_FILE,
                    rows[i].code);
        esp_checkpoint_close(checkpoint);
        test_context_free(run, context);
    }
}

/* A row order of another length, in a folder made by hand because sizes shift. */
static void row_order_length(test_run *run)
{
    static const char header[] =
        "{\"w.columns\":{\"dtype\":\"U16\",\"shape\":[2,8],\"data_offsets\":[0,32]},"
        "\"w.rows\":{\"dtype\":\"U16\",\"shape\":[7],\"data_offsets\":[32,46]},"
        "\"w.values\":{\"dtype\":\"F16\",\"shape\":[8,4],\"data_offsets\":[46,110]},"
        "\"w.positions\":{\"dtype\":\"U8\",\"shape\":[8,1],\"data_offsets\":[110,118]}}";
    esp_context *context = test_context(run, 1);
    esp_checkpoint *checkpoint = NULL;
    char path[1000];
    snprintf(path, sizeof path, "%s/rows", test_folder(run));
    mkdir(path, 0700);
    write_safetensors(run, test_path(path, "model.safetensors"), header, NULL, 118);
    write_text(run, test_path(path, "config.json"),
               "{\"quantization_config\":{\"quant_method\":\"espalier\",\"format_version\":1,"
               "\"tensors\":{\"w\":{\"pattern\":\"panel:4@0.75\",\"shape\":[8,16],"
               "\"dtype\":\"F16\",\"crc32c\":\"00000000\"}}}}");
    test_sub(run, "90 row order too short");
    CHECK_FAILS(esp_checkpoint_open(context, path, &checkpoint, error), ESP_BAD_FILE,
                "checkpoint.rows_length");
    test_context_free(run, context);
}

/* One byte of a part changes to a value. */
static void change_data(test_run *run, esp_context *context, const char *folder, const char *part,
                        uint64_t at, unsigned char value)
{
    esp_safetensors *file = NULL;
    const char *path = test_path(folder, "model.safetensors");
    REQUIRE_OK(esp_safetensors_open(context, path, &file, error));
    int64_t index = esp_safetensors_find(file, part);
    CHECK(index >= 0);
    if (index >= 0) {
        esp_tensor_info info = esp_safetensors_get(file, index);
        CHECK(at < info.bytes);
        int descriptor = open(path, O_WRONLY);
        CHECK_INT(pwrite(descriptor, &value, 1, (off_t)(info.file_offset + at)), 1);
        close(descriptor);
    }
    esp_safetensors_close(file);
}

static void refused_contents(test_run *run)
{
    static const struct {
        const char *name, *weight, *part;
        uint64_t at;
        unsigned char value;
        const char *code;
    } rows[] = {
        {"93 another value", "layer.a.weight", "layer.a.weight.values", 1, 0x41,
         "checkpoint.checksum_mismatch"},
        {"93 another value of a plain one", "norm.weight", "norm.weight", 3, 0,
         "checkpoint.checksum_mismatch"},
        {"93 another value of an integer", "ids", "ids", 8, 0, "checkpoint.checksum_mismatch"},
        {"88 positions not increasing", "layer.a.weight", "layer.a.weight.positions", 3, 0x55,
         "sparse.positions_not_increasing"},
        {"87 column outside its group", "layer.b.weight", "layer.b.weight.columns", 6, 9,
         "sparse.column_outside_group"},
        {"87 column that does not exist", "layer.c.weight", "layer.c.weight.columns", 6, 200,
         "sparse.column_out_of_range"},
        {"88 columns not ascending", "layer.c.weight", "layer.c.weight.columns", 2, 15,
         "sparse.columns_not_ascending"},
        {"89 row order not a bijection", "layer.c.weight", "layer.c.weight.rows", 0, 6,
         "sparse.rows_not_bijection"},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s", rows[i].name);
        esp_context *context = test_context(run, 1);
        const char *path = make_compressed(run, context);
        esp_checkpoint *checkpoint = NULL;
        change_data(run, context, path, rows[i].part, rows[i].at, rows[i].value);
        CHECK_OK(esp_checkpoint_open(context, path, &checkpoint, error));
        if (checkpoint != NULL) {
            int64_t index = esp_checkpoint_find(checkpoint, rows[i].weight);
            esp_weight_info info = esp_checkpoint_get(checkpoint, index);
            esp_tensor read = {0};
            CHECK_OK(esp_tensor_create(context, info.dtype, info.rank, info.shape, &read, error));
            CHECK_FAILS(esp_checkpoint_read_dense(checkpoint, index, &read, error), ESP_BAD_FILE,
                        rows[i].code);
            esp_sparse *sparse = NULL;
            if (info.rank == 2) {
                CHECK_FAILS(esp_checkpoint_read_sparse(checkpoint, index, &sparse, error),
                            ESP_BAD_FILE, rows[i].code);
            }
            esp_tensor_free(context, &read);
        }
        esp_checkpoint_close(checkpoint);
        test_context_free(run, context);
    }
}

static const test_case cases[] = {
    {"reads back", reads_back},
    {"refused configs", refused_configs},
    {"tensors not an object", tensors_not_an_object},
    {"refused parts", refused_parts},
    {"row order length", row_order_length},
    {"refused contents", refused_contents},
};
TEST_MAIN(cases)
