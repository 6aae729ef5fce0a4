/* Bitmask folders of compressed-tensors: golden ones made by its own compressors, round trips of
 * every form and dtype bit for bit, and each rule by its code. */
#include <espalier/prune.h>
#include <math.h>

#include "io/bitmask.h"
#include "model_folder.h"

#define GOLDEN ESP_SOURCE_DIR "/tests/golden/bitmask/"

/* ---- golden folders ---- */

static void check_same(test_run *run, esp_context *context, const esp_checkpoint *read,
                       const esp_checkpoint *wanted)
{
    CHECK_INT(esp_checkpoint_count(read), esp_checkpoint_count(wanted));
    for (int64_t i = 0; i < esp_checkpoint_count(wanted); i++) {
        esp_weight_info info = esp_checkpoint_get(wanted, i);
        int64_t index = esp_checkpoint_find(read, info.name);
        esp_tensor a = {0}, b = {0};
        REQUIRE(index >= 0);
        REQUIRE_OK(esp_tensor_create(context, info.dtype, info.rank, info.shape, &a, error));
        REQUIRE_OK(esp_tensor_create(context, info.dtype, info.rank, info.shape, &b, error));
        CHECK_OK(esp_checkpoint_read_dense(wanted, i, &a, error));
        CHECK_OK(esp_checkpoint_read_dense(read, index, &b, error));
        CHECK(memcmp(a.data, b.data, info.dense_bytes) == 0);
        if (info.rank == 2) {
            esp_sparse *sparse = NULL;
            memset(b.data, 0x55, info.dense_bytes);
            REQUIRE_OK(esp_checkpoint_read_sparse(read, index, &sparse, error));
            CHECK_OK(esp_sparse_check(sparse, error));
            CHECK_OK(esp_sparse_decode(sparse, &b, error));
            CHECK(memcmp(a.data, b.data, info.dense_bytes) == 0);
            esp_sparse_free(sparse);
        }
        esp_tensor_free(context, &a);
        esp_tensor_free(context, &b);
    }
}

static void check_folders_same(test_run *run, esp_context *context, const char *path,
                               const char *wanted_path, esp_folder_form form)
{
    esp_checkpoint *read = NULL, *wanted = NULL;
    REQUIRE_OK(esp_checkpoint_open(context, path, &read, error));
    REQUIRE_OK(esp_checkpoint_open(context, wanted_path, &wanted, error));
    CHECK_INT(esp_checkpoint_form(read), form);
    check_same(run, context, read, wanted);
    esp_checkpoint_close(read);
    esp_checkpoint_close(wanted);
}

static void golden(test_run *run)
{
    esp_context *context = test_context(run, 2);
    test_sub(run, "sparse-24-bitmask");
    check_folders_same(run, context, GOLDEN "sparse-24-bitmask", GOLDEN "dense",
                       ESP_FORM_SPARSE_24_BITMASK);
    test_sub(run, "sparse-bitmask");
    check_folders_same(run, context, GOLDEN "sparse-bitmask", GOLDEN "dense",
                       ESP_FORM_SPARSE_BITMASK);
    test_sub(run, "names and vectors as before 0.9");
    check_folders_same(run, context, GOLDEN "old-sparse-bitmask", GOLDEN "dense",
                       ESP_FORM_SPARSE_BITMASK);
    test_sub(run, "patterns and sizes");
    esp_checkpoint *folder = NULL;
    REQUIRE_OK(esp_checkpoint_open(context, GOLDEN "sparse-24-bitmask", &folder, error));
    int64_t a = esp_checkpoint_find(folder, "a.weight"); /* f32 3x8 */
    REQUIRE(a >= 0);
    esp_weight_info info = esp_checkpoint_get(folder, a);
    CHECK(esp_pattern_is_2_4(&info.pattern));
    CHECK_INT(info.stored_bytes, 3 * 4 * 4 + 3 + 16);
    CHECK_INT(info.stored_bytes, esp_bitmask_bytes(ESP_FORM_SPARSE_24_BITMASK, ESP_F32, 3, 8, 0));
    CHECK(!esp_checkpoint_is_compressed(folder) && !info.has_crc32c);
    esp_checkpoint_close(folder);
    test_context_free(run, context);
}

/* ---- conversions ---- */

static void convert(test_run *run, esp_context *context, const char *from, const char *to,
                    esp_convert_target target)
{
    esp_prune_options options = {.pattern = {.kind = ESP_PATTERN_PANEL}};
    esp_prune_summary summary;
    CHECK_OK(esp_convert_checkpoint(context, from, to, target, &options, &summary, error));
    CHECK_INT(summary.pruned_layers, 3);
}

static const struct {
    const char *name;
    esp_convert_target target;
    esp_folder_form form;
} targets[] = {
    {"24", ESP_CONVERT_SPARSE_24_BITMASK, ESP_FORM_SPARSE_24_BITMASK},
    {"any", ESP_CONVERT_SPARSE_BITMASK, ESP_FORM_SPARSE_BITMASK},
    {"ours", ESP_CONVERT_COMPRESS, ESP_FORM_ESPALIER},
};

/* None, one or two of each four; some NaN. */
static void fill_two_four(esp_random *random, esp_tensor *tensor)
{
    size_t width = esp_dtype_bytes(tensor->dtype);
    for (int64_t group = 0; group < tensor->shape[0] * tensor->shape[1] / 4; group++) {
        for (int64_t k = 0; k < group % 3; k++) {
            int64_t at = 4 * group + (int64_t)esp_random_below(random, 4);
            float value = group % 41 == 0 ? NAN : (float)esp_random_below(random, 999) - 500.5f;
            esp_narrow(tensor->dtype, &value, 1, (char *)tensor->data + (size_t)at * width);
        }
    }
}

/* A larger 2:4 model in a dense folder. */
static void make_wide(test_run *run, esp_context *context, const char *path)
{
    static const struct {
        const char *name;
        esp_dtype dtype;
        int64_t out, in;
    } weights[] = {{"x.a.weight", ESP_F32, 48, 64},
                   {"x.b.weight", ESP_F16, 32, 100},
                   {"x.c.weight", ESP_BF16, 40, 72}};
    esp_safetensors_writer *writer = NULL;
    uint64_t bytes;
    mkdir(path, 0700);
    write_text(run, test_path(path, "config.json"), "{\"a\": 1e-05}");
    REQUIRE_OK(esp_safetensors_writer_create(context, &writer, error));
    for (int i = 0; i < 3; i++) {
        esp_tensor tensor = {
            .dtype = weights[i].dtype, .rank = 2, .shape = {weights[i].out, weights[i].in}};
        CHECK_OK(esp_safetensors_writer_declare(writer, weights[i].name, &tensor, error));
    }
    CHECK_OK(esp_safetensors_writer_place(writer, &bytes, error));
    CHECK_OK(esp_safetensors_writer_begin(writer, test_path(path, "model.safetensors"), error));
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < 3; i++) {
        int64_t shape[] = {weights[i].out, weights[i].in};
        esp_tensor tensor = {0};
        REQUIRE_OK(esp_tensor_create(context, weights[i].dtype, 2, shape, &tensor, error));
        fill_two_four(&random, &tensor);
        CHECK_OK(esp_safetensors_writer_write(writer, weights[i].name, tensor.data, error));
        esp_tensor_free(context, &tensor);
    }
    CHECK_OK(esp_safetensors_writer_finish(writer, error));
    esp_safetensors_writer_free(writer);
}

/* From each form to each other and back to dense. */
static void all_ways(test_run *run)
{
    esp_context *context = test_context(run, 2);
    const char *folder = test_folder(run);
    char dense[1000], from[1000], to[1000], back[1000];
    snprintf(dense, sizeof dense, "%s/dense", folder);
    make_wide(run, context, dense);
    for (int i = 0; i < ESP_COUNT(targets); i++) {
        test_sub(run, "dense to %s", targets[i].name);
        snprintf(from, sizeof from, "%s/%s", folder, targets[i].name);
        convert(run, context, dense, from, targets[i].target);
        check_folders_same(run, context, from, dense, targets[i].form);
        for (int k = 0; k < ESP_COUNT(targets); k++) {
            if (targets[i].form == ESP_FORM_ESPALIER && targets[k].form == ESP_FORM_ESPALIER) {
                continue; /* ours is not compressed twice */
            }
            test_sub(run, "%s to %s", targets[i].name, targets[k].name);
            snprintf(to, sizeof to, "%s/%s-%s", folder, targets[i].name, targets[k].name);
            convert(run, context, from, to, targets[k].target);
            check_folders_same(run, context, to, dense, targets[k].form);
        }
        test_sub(run, "%s to dense", targets[i].name);
        snprintf(back, sizeof back, "%s/%s-dense", folder, targets[i].name);
        convert(run, context, from, back, ESP_CONVERT_DENSE);
        check_folders_same(run, context, back, dense, ESP_FORM_ESPALIER);
    }
    test_context_free(run, context);
}

/* -0.0 counts as zero when it is written and when another program stored it. */
static void negative_zero(test_run *run)
{
    uint16_t dense_data[8] = {0x8000, 0x3c00, 0, 0x8000, 0x8000, 0, 0, 0}, back_data[8];
    int64_t shape[2], offsets[1];
    unsigned char bits[1];
    uint16_t values[4];
    esp_tensor dense = {.dtype = ESP_F16, .rank = 2, .shape = {1, 8}, .data = dense_data};
    esp_tensor back = {.dtype = ESP_F16, .rank = 2, .shape = {1, 8}, .data = back_data};
    static const uint16_t expected[8] = {0, 0x3c00, 0, 0, 0, 0, 0, 0};
    esp_sparse_part parts[] = {
        {.name = "shape", .tensor = {.dtype = ESP_I64, .rank = 1, .shape = {2}, .data = shape}},
        {.name = "compressed",
         .tensor = {.dtype = ESP_F16, .rank = 2, .shape = {1, 4}, .data = values}},
        {.name = "bitmask", .tensor = {.dtype = ESP_U8, .rank = 2, .shape = {1, 1}, .data = bits}},
        {.name = "row_offsets",
         .tensor = {.dtype = ESP_I64, .rank = 1, .shape = {1}, .data = offsets}}};
    test_sub(run, "2:4 written");
    REQUIRE_OK(esp_bitmask_encode(ESP_FORM_SPARSE_24_BITMASK, &dense, parts, error));
    CHECK_INT(bits[0], 0x33);
    CHECK(values[0] == 0 && values[1] == 0x3c00 && values[2] == 0 && values[3] == 0);
    test_sub(run, "2:4 read");
    values[2] = 0x8000;
    REQUIRE_OK(esp_bitmask_decode(ESP_FORM_SPARSE_24_BITMASK, parts, &back, error));
    CHECK(memcmp(back_data, expected, sizeof expected) == 0);
    test_sub(run, "any zeros");
    parts[1].tensor = (esp_tensor){.dtype = ESP_F16, .rank = 1, .shape = {1}, .data = values};
    REQUIRE_OK(esp_bitmask_encode(ESP_FORM_SPARSE_BITMASK, &dense, parts, error));
    CHECK(bits[0] == 0x02 && values[0] == 0x3c00);
    REQUIRE_OK(esp_bitmask_decode(ESP_FORM_SPARSE_BITMASK, parts, &back, error));
    CHECK(memcmp(back_data, expected, sizeof expected) == 0);
}

static void does_not_fit(test_run *run)
{
    esp_context *context = test_context(run, 2);
    char source[1000], out[1000];
    snprintf(source, sizeof source, "%s/full", test_folder(run));
    snprintf(out, sizeof out, "%s/full-24", test_folder(run));
    mkdir(source, 0700);
    write_text(run, test_path(source, "config.json"), "{}");
    unsigned char data[256];
    memset(data, 0x3c, sizeof data);
    write_safetensors(run, test_path(source, "model.safetensors"),
                      "{\"m.weight\":{\"dtype\":\"BF16\",\"shape\":[8,16],"
                      "\"data_offsets\":[0,256]}}",
                      data, sizeof data);
    esp_prune_options options = {0};
    test_sub(run, "2:4 names layer and place");
    esp_error why = {0};
    CHECK_INT(esp_convert_checkpoint(context, source, out, ESP_CONVERT_SPARSE_24_BITMASK, &options,
                                     NULL, &why),
              ESP_CHECK_FAILED);
    CHECK_TEXT(why.code, "convert.does_not_fit");
    CHECK(strstr(why.message, "m.weight") != NULL && strstr(why.message, "row 0") != NULL);
    CHECK(!esp_path_exists(out));
    test_sub(run, "a skipped layer is ignored by name");
    const char *skips[] = {"m.weight"};
    options.skips = skips;
    options.skip_count = 1;
    CHECK_OK(esp_convert_checkpoint(context, source, out, ESP_CONVERT_SPARSE_24_BITMASK, &options,
                                    NULL, error));
    test_sub(run, "the encoder itself");
    esp_tensor dense = {.dtype = ESP_BF16, .rank = 2, .shape = {8, 16}, .data = data};
    int64_t shape[2], offsets[8];
    unsigned char bits[16], values[256];
    esp_sparse_part parts[] = {
        {.name = "shape", .tensor = {.dtype = ESP_I64, .rank = 1, .shape = {2}, .data = shape}},
        {.name = "compressed",
         .tensor = {.dtype = ESP_BF16, .rank = 2, .shape = {8, 8}, .data = values}},
        {.name = "bitmask", .tensor = {.dtype = ESP_U8, .rank = 2, .shape = {8, 2}, .data = bits}},
        {.name = "row_offsets",
         .tensor = {.dtype = ESP_I64, .rank = 1, .shape = {8}, .data = offsets}}};
    CHECK_FAILS(esp_bitmask_encode(ESP_FORM_SPARSE_24_BITMASK, &dense, parts, error),
                ESP_CHECK_FAILED, "foreign.does_not_fit");
    CHECK_FAILS(esp_bitmask_encode(ESP_FORM_SPARSE_BITMASK, &dense, parts, error), ESP_BAD_ARGUMENT,
                "foreign.value_count");
    test_context_free(run, context);
}

/* ---- refused folders ---- */

/* One f16 weight of 2x8: a [2,1] shape, 8 values, 2 bytes of bits, 2 row offsets. */
#define SHAPE "\"p.shape\":{\"dtype\":\"I64\",\"shape\":[2,1],\"data_offsets\":[0,16]}"
#define OFFSETS "\"p.row_offsets\":{\"dtype\":\"I64\",\"shape\":[2],\"data_offsets\":[16,32]}"
#define VALUES "\"p.compressed\":{\"dtype\":\"F16\",\"shape\":[2,4],\"data_offsets\":[32,48]}"
#define LIST "\"p.compressed\":{\"dtype\":\"F16\",\"shape\":[8],\"data_offsets\":[32,48]}"
#define BITS "\"p.bitmask\":{\"dtype\":\"U8\",\"shape\":[2,1],\"data_offsets\":[48,50]}"
#define PAD "\"pad\":{\"dtype\":\"I64\",\"shape\":[2],\"data_offsets\":[16,32]}"
#define FOUR SHAPE "," PAD "," VALUES "," BITS
#define ANY SHAPE "," OFFSETS "," LIST "," BITS
#define CONFIG(sparsity)                                                                           \
    "{\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"version\":\"0.9.4\","     \
    "\"sparsity_config\":" sparsity "}}"
#define CONFIG_24                                                                                  \
    CONFIG("{\"format\":\"sparse-24-bitmask\",\"sparsity_structure\":\"2:4\","                     \
           "\"ignore\":[\"lm_head\"]}")
#define CONFIG_ANY CONFIG("{\"format\":\"sparse-bitmask\",\"targets\":[\"Linear\"]}")

typedef struct bits_row {
    const char *name, *config, *header, *code;
    esp_status status;
    int64_t out, in;
    unsigned char bits[2];
    int64_t second_offset;
} bits_row;

/* Opens, and reads every tensor. */
static esp_status open_and_read(test_run *run, esp_context *context, const char *path,
                                esp_error *problem)
{
    esp_checkpoint *folder = NULL;
    esp_status status = esp_checkpoint_open(context, path, &folder, problem);
    for (int64_t i = 0; status == ESP_OK && i < esp_checkpoint_count(folder); i++) {
        esp_weight_info info = esp_checkpoint_get(folder, i);
        esp_tensor dense = {0};
        CHECK_INT(esp_tensor_create(context, info.dtype, info.rank, info.shape, &dense, problem),
                  ESP_OK);
        status = esp_checkpoint_read_dense(folder, i, &dense, problem);
        esp_tensor_free(context, &dense);
    }
    esp_checkpoint_close(folder);
    return status;
}

static const char *make_bits(test_run *run, const bits_row *row)
{
    static char path[1000];
    static int number;
    unsigned char data[50] = {0};
    char header[1000];
    int64_t shape[] = {row->out, row->in};
    snprintf(path, sizeof path, "%s/bits%d", test_folder(run), number++);
    mkdir(path, 0700);
    memcpy(data, shape, 16);
    memcpy(data + 24, &row->second_offset, 8);
    memset(data + 32, 0x3c, 16);
    memcpy(data + 48, row->bits, 2);
    snprintf(header, sizeof header, "{%s}", row->header);
    write_safetensors(run, test_path(path, "model.safetensors"), header, data, sizeof data);
    write_text(run, test_path(path, "config.json"), row->config);
    return path;
}

#define GOOD 2, 8, {0x33, 0x5a}, 4
static const bits_row rows[] = {
    {"2:4, right", CONFIG_24, FOUR, NULL, ESP_OK, GOOD},
    {"any, right", CONFIG_ANY, ANY, NULL, ESP_OK, GOOD},
    {"nested in compression_config",
     "{\"compression_config\":{\"sparsity_config\":{\"format\":\"sparse-bitmask\"}}}", ANY, NULL,
     ESP_OK, GOOD},
    {"at the top", "{\"sparsity_config\":{\"format\":\"sparse-bitmask\"}}", ANY, NULL, ESP_OK,
     GOOD},
    {"zeros in plain tensors", CONFIG("{\"format\":\"dense\"}"), ANY, NULL, ESP_OK, GOOD},
    {"empty quantisation",
     "{\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"format\":\"dense\","
     "\"config_groups\":{},\"kv_cache_scheme\":null,\"transform_config\":{},\"sparsity_config\":"
     "{\"format\":\"sparse-bitmask\"}}}",
     ANY, NULL, ESP_OK, GOOD},
    {"quantised too",
     "{\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"config_groups\":"
     "{\"g\":{}},\"sparsity_config\":{\"format\":\"sparse-bitmask\"}}}",
     ANY, "checkpoint.foreign_quantization", ESP_UNSUPPORTED, GOOD},
    {"version 1",
     "{\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"version\":\"1.0\","
     "\"sparsity_config\":{\"format\":\"sparse-bitmask\"}}}",
     ANY, "foreign.unknown_version", ESP_UNSUPPORTED, GOOD},
    {"version a number",
     "{\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"version\":0.9,"
     "\"sparsity_config\":{\"format\":\"sparse-bitmask\"}}}",
     ANY, "foreign.unknown_version", ESP_UNSUPPORTED, GOOD},
    {"unknown key around",
     "{\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"twist\":1,"
     "\"sparsity_config\":{\"format\":\"sparse-bitmask\"}}}",
     ANY, "foreign.unknown_field", ESP_UNSUPPORTED, GOOD},
    {"unknown key", CONFIG("{\"format\":\"sparse-bitmask\",\"twist\":1}"), ANY,
     "foreign.unknown_field", ESP_UNSUPPORTED, GOOD},
    {"no object", CONFIG("\"sparse-bitmask\""), ANY, "foreign.bad_config", ESP_BAD_FILE, GOOD},
    {"unknown format", CONFIG("{\"format\":\"marlin-24\"}"), ANY, "foreign.unknown_format",
     ESP_UNSUPPORTED, GOOD},
    {"no format", CONFIG("{\"targets\":null}"), ANY, "foreign.unknown_format", ESP_UNSUPPORTED,
     GOOD},
    {"targets no list", CONFIG("{\"format\":\"sparse-bitmask\",\"targets\":\"Linear\"}"), ANY,
     "foreign.bad_list", ESP_BAD_FILE, GOOD},
    {"ignore of numbers", CONFIG("{\"format\":\"sparse-bitmask\",\"ignore\":[1]}"), ANY,
     "foreign.bad_list", ESP_BAD_FILE, GOOD},
    {"ignored and compressed", CONFIG("{\"format\":\"sparse-bitmask\",\"ignore\":[\"p\"]}"), ANY,
     "foreign.ignored_layer", ESP_BAD_FILE, GOOD},
    {"structure of 2:4", CONFIG("{\"format\":\"sparse-24-bitmask\"}"), FOUR,
     "foreign.bad_structure", ESP_BAD_FILE, GOOD},
    {"structure", CONFIG("{\"format\":\"sparse-bitmask\",\"sparsity_structure\":\"8:16\"}"), ANY,
     "foreign.bad_structure", ESP_BAD_FILE, GOOD},
    {"no bits", CONFIG_24,
     FOUR ",\"q.compressed\":{\"dtype\":\"F16\",\"shape\":[0],"
          "\"data_offsets\":[50,50]}",
     "foreign.part_missing", ESP_BAD_FILE, GOOD},
    {"bits alone", CONFIG_24,
     FOUR ",\"q.bitmask\":{\"dtype\":\"U8\",\"shape\":[0],"
          "\"data_offsets\":[50,50]}",
     "foreign.part_alone", ESP_BAD_FILE, GOOD},
    {"offsets where 2:4 has none", CONFIG_24, SHAPE "," OFFSETS "," VALUES "," BITS,
     "foreign.part_alone", ESP_BAD_FILE, GOOD},
    {"dense too", CONFIG_24,
     FOUR ",\"p.weight\":{\"dtype\":\"F16\",\"shape\":[0],"
          "\"data_offsets\":[50,50]}",
     "foreign.stored_twice", ESP_BAD_FILE, GOOD},
    {"under both names", CONFIG_24,
     FOUR ",\"p.weight.compressed\":{\"dtype\":\"F16\","
          "\"shape\":[0],\"data_offsets\":[50,50]}",
     "foreign.stored_twice", ESP_BAD_FILE, GOOD},
    {"values of integers", CONFIG_24,
     SHAPE "," PAD
           ",\"p.compressed\":{\"dtype\":\"I8\",\"shape\":[2,8],\"data_offsets\":[32,48]}," BITS,
     "foreign.unsupported_dtype", ESP_UNSUPPORTED, GOOD},
    {"values of another shape", CONFIG_24, SHAPE "," PAD "," LIST "," BITS, "foreign.part_mismatch",
     ESP_BAD_FILE, GOOD},
    {"bits of another shape", CONFIG_24,
     SHAPE "," PAD "," VALUES ",\"p.bitmask\":{\"dtype\":\"U8\",\"shape\":[1,2],"
           "\"data_offsets\":[48,50]}",
     "foreign.part_mismatch", ESP_BAD_FILE, GOOD},
    {"bits of another type", CONFIG_24,
     SHAPE "," PAD "," VALUES ",\"p.bitmask\":{\"dtype\":\"I8\",\"shape\":[2,1],"
           "\"data_offsets\":[48,50]}",
     "foreign.part_mismatch", ESP_BAD_FILE, GOOD},
    {"shape of floats", CONFIG_24,
     "\"p.shape\":{\"dtype\":\"F64\",\"shape\":[2,1],\"data_offsets\":[0,16]}," PAD "," VALUES
     "," BITS,
     "foreign.part_mismatch", ESP_BAD_FILE, GOOD},
    {"shape in a row", CONFIG_24,
     "\"p.shape\":{\"dtype\":\"I64\",\"shape\":[1,2],\"data_offsets\":[0,16]}," PAD "," VALUES
     "," BITS,
     "foreign.part_mismatch", ESP_BAD_FILE, GOOD},
    {"negative", CONFIG_24, FOUR, "foreign.bad_shape", ESP_BAD_FILE, -2, 8, {0x33, 0x5a}, 4},
    {"no columns", CONFIG_24, FOUR, "foreign.bad_shape", ESP_BAD_FILE, 2, 0, {0x33, 0x5a}, 4},
    {"too large",
     CONFIG_ANY,
     ANY,
     "foreign.bad_shape",
     ESP_BAD_FILE,
     (int64_t)1 << 62,
     8,
     {0x33, 0x5a},
     4},
    {"columns no multiple of 4",
     CONFIG_24,
     FOUR,
     "foreign.bad_shape",
     ESP_BAD_FILE,
     2,
     6,
     {0x33, 0x5a},
     4},
    {"more rows", CONFIG_24, FOUR, "foreign.part_mismatch", ESP_BAD_FILE, 3, 8, {0x33, 0x5a}, 4},
    {"three of four", CONFIG_24, FOUR, "foreign.group_count", ESP_BAD_FILE, 2, 8, {0x33, 0x57}, 4},
    {"one of four", CONFIG_24, FOUR, "foreign.group_count", ESP_BAD_FILE, 2, 8, {0x13, 0x53}, 4},
    {"fewer bits", CONFIG_ANY, ANY, "foreign.value_count", ESP_BAD_FILE, 2, 8, {0x33, 0x50}, 4},
    {"more bits", CONFIG_ANY, ANY, "foreign.value_count", ESP_BAD_FILE, 2, 8, {0x33, 0xff}, 4},
    {"row begins elsewhere",
     CONFIG_ANY,
     ANY,
     "foreign.row_offsets",
     ESP_BAD_FILE,
     2,
     8,
     {0x33, 0x5a},
     3},
    {"bits behind the last column",
     CONFIG_ANY,
     ANY,
     "foreign.pad_bits_set",
     ESP_BAD_FILE,
     2,
     7,
     {0x33, 0xaa},
     4},
};

static void refused(test_run *run)
{
    esp_context *context = test_context(run, 1);
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s", rows[i].name);
        const char *path = make_bits(run, &rows[i]);
        if (rows[i].code == NULL) {
            CHECK_OK(open_and_read(run, context, path, error));
        } else {
            CHECK_FAILS(open_and_read(run, context, path, error), rows[i].status, rows[i].code);
        }
    }
    test_context_free(run, context);
}

/* ---- the writer ---- */

static void writer_refusals(test_run *run)
{
    static const struct {
        const char *name, *weight, *code;
        esp_folder_form form;
        esp_pattern_kind kind;
        int64_t in;
        size_t stored_bytes;
    } declared[] = {
        {"2:4 in the form of any zeros", "w.weight", "checkpoint.wrong_form",
         ESP_FORM_SPARSE_BITMASK, ESP_PATTERN_PANEL, 8, 0},
        {"any zeros in the form of 2:4", "w.weight", "checkpoint.wrong_form",
         ESP_FORM_SPARSE_24_BITMASK, ESP_PATTERN_UNSTRUCTURED, 8, 0},
        {"no .weight", "w.bias", "checkpoint.wrong_form", ESP_FORM_SPARSE_24_BITMASK,
         ESP_PATTERN_PANEL, 8, 0},
        {"columns", "w.weight", "checkpoint.wrong_form", ESP_FORM_SPARSE_24_BITMASK,
         ESP_PATTERN_PANEL, 6, 0},
        {"size of 2:4", "w.weight", "checkpoint.wrong_size", ESP_FORM_SPARSE_24_BITMASK,
         ESP_PATTERN_PANEL, 8, 7},
        {"size with half a value", "w.weight", "checkpoint.wrong_size", ESP_FORM_SPARSE_BITMASK,
         ESP_PATTERN_UNSTRUCTURED, 8, 16 + 2 * 9 + 3},
        {"size with too many values", "w.weight", "checkpoint.wrong_size", ESP_FORM_SPARSE_BITMASK,
         ESP_PATTERN_UNSTRUCTURED, 8, 16 + 2 * 9 + 2 * 17},
    };
    esp_context *context = test_context(run, 1);
    esp_checkpoint *source = NULL;
    REQUIRE_OK(esp_checkpoint_open(context, GOLDEN "dense", &source, error));
    for (int i = 0; i < ESP_COUNT(declared); i++) {
        test_sub(run, "%s", declared[i].name);
        esp_checkpoint_writer *writer = NULL;
        esp_weight_info info = {.name = declared[i].weight,
                                .dtype = ESP_F16,
                                .rank = 2,
                                .shape = {2, declared[i].in},
                                .pattern = {.kind = declared[i].kind, .sparsity = 0.5},
                                .stored_bytes = declared[i].stored_bytes};
        REQUIRE_OK(esp_checkpoint_writer_create(context, source, test_path(test_folder(run), "no"),
                                                false, &writer, error));
        CHECK_OK(esp_checkpoint_writer_set_form(writer, declared[i].form, error));
        CHECK_FAILS(esp_checkpoint_writer_declare(writer, &info, error), ESP_BAD_ARGUMENT,
                    declared[i].code);
        CHECK_FAILS(esp_checkpoint_writer_set_form(writer, ESP_FORM_ESPALIER, error),
                    ESP_BAD_ARGUMENT, "checkpoint.wrong_order");
        esp_checkpoint_writer_free(writer);
    }
    esp_checkpoint_close(source);
    test_context_free(run, context);
}

/* ---- memory ---- */

typedef struct meter {
    long long calls, fail_at, held;
} meter;

static void *meter_allocate(void *user, size_t bytes, size_t alignment)
{
    meter *m = user;
    size_t step = alignment > 64 ? alignment : 64;
    if (++m->calls == m->fail_at) {
        return NULL;
    }
    m->held++;
    return aligned_alloc(step, (bytes + step) / step * step);
}

static void meter_release(void *user, void *memory)
{
    ((meter *)user)->held--;
    free(memory);
}

/* The n-th allocation fails, for every n: out of memory, nothing is left, nothing leaks. */
static void every_allocation(test_run *run)
{
    for (int k = 0; k < 2; k++) {
        esp_status status = ESP_OUT_OF_MEMORY;
        long long n = 1;
        test_sub(run, "in shards to %s", targets[k].name);
        for (; status != ESP_OK && n < 5000; n++) {
            meter m = {.fail_at = n};
            esp_context *context = NULL;
            esp_error error = {0};
            esp_prune_options options = {.shard_bytes = 100};
            char out[1000];
            snprintf(out, sizeof out, "%s/memory-%d", test_folder(run), k);
            esp_context_options set = {.threads = 1,
                                       .allocator = {meter_allocate, meter_release, &m}};
            status = esp_context_create(&set, &context, &error);
            if (status == ESP_OK) {
                status = esp_convert_checkpoint(context, GOLDEN "sparse-24-bitmask", out,
                                                targets[k].target, &options, NULL, &error);
            }
            esp_context_free(context);
            CHECK_INT(m.held, 0);
            CHECK(status == ESP_OK || (status == ESP_OUT_OF_MEMORY && !esp_path_exists(out)));
        }
        CHECK(status == ESP_OK && n > 50);
    }
}

static const test_case cases[] = {
    {"golden", golden},
    {"all ways", all_ways},
    {"negative zero", negative_zero},
    {"does not fit", does_not_fit},
    {"refused", refused},
    {"writer", writer_refusals},
    {"every allocation", every_allocation},
};
TEST_MAIN(cases)
