/* Compressed folders that break the format's rules, each on disk as a whole and with a checksum
 * that matches, so that it is the rule that refuses: the numbered cases 86 to 95 of the list of bad
 * inputs, through opening, reading, verifying and loading. */
#include <math.h>
#include <stdio.h>

#include <espalier/assess.h>
#include <espalier/prune.h>

#include "model_folder.h"

typedef enum damage {
    DAMAGE_BYTE,   /* one byte of a part; the checksum is made right again */
    DAMAGE_SUM,    /* the same with the old checksum */
    DAMAGE_SHAPE,  /* a part has another shape: the first bytes of its data, or zeros behind them */
    DAMAGE_CONFIG, /* text of config.json */
} damage;

typedef struct broken_row {
    int number; /* of the case */
    const char *name;
    damage how;
    const char *weight, *part;
    int at;
    uint8_t byte;
    int rank;
    int64_t shape[2];
    const char *from, *to;
    const char *code;
} broken_row;

static const char A[] = "layer.a.weight", B[] = "layer.b.weight", C[] = "layer.c.weight",
                  D[] = "layer.d.weight";

static const broken_row rows[] = {
    {86, "two values for each group of 1:4", DAMAGE_SHAPE, D, "values", .rank = 2, .shape = {5, 4},
     .code = "checkpoint.part_mismatch"},
    {86, "values of 2:4 called 1:4", DAMAGE_CONFIG, .from = "\"pattern\": \"2:4\"",
     .to = "\"pattern\": \"1:4\"", .code = "checkpoint.part_mismatch"},
    {87, "a column that does not exist", DAMAGE_BYTE, C, "columns", 6, 200,
     .code = "sparse.column_out_of_range"},
    {87, "a column outside its group", DAMAGE_BYTE, B, "columns", 6, 9,
     .code = "sparse.column_outside_group"},
    {88, "positions twice the same", DAMAGE_BYTE, A, "positions", 3, 0x55,
     .code = "sparse.positions_not_increasing"},
    {88, "columns that do not ascend", DAMAGE_BYTE, C, "columns", 2, 15,
     .code = "sparse.columns_not_ascending"},
    {88, "a column twice in a panel", DAMAGE_BYTE, C, "columns", 8, 2,
     .code = "sparse.column_twice"},
    {89, "a row named twice", DAMAGE_BYTE, C, "rows", 0, 6, .code = "sparse.rows_not_bijection"},
    {89, "a row that does not exist", DAMAGE_BYTE, C, "rows", 0, 8,
     .code = "sparse.rows_not_bijection"},
    {90, "a row order that is short", DAMAGE_SHAPE, C, "rows", .rank = 1, .shape = {7},
     .code = "checkpoint.rows_length"},
    {90, "a row order that is long", DAMAGE_SHAPE, C, "rows", .rank = 1, .shape = {9},
     .code = "checkpoint.rows_length"},
    {91, "a panel too few", DAMAGE_SHAPE, B, "columns", .rank = 2, .shape = {2, 12},
     .code = "checkpoint.panel_count"},
    {91, "a panel too many", DAMAGE_SHAPE, B, "columns", .rank = 2, .shape = {4, 12},
     .code = "checkpoint.panel_count"},
    {91, "panels of another V", DAMAGE_CONFIG, .from = "\"4:2:8\"", .to = "\"8:2:8\"",
     .code = "checkpoint.panel_count"},
    {92, "positions cut short", DAMAGE_SHAPE, A, "positions", .rank = 2, .shape = {6, 1},
     .code = "checkpoint.part_mismatch"},
    {92, "columns cut short", DAMAGE_SHAPE, C, "columns", .rank = 2, .shape = {2, 7},
     .code = "checkpoint.part_mismatch"},
    {92, "no positions", DAMAGE_SHAPE, A, "positions", .rank = 2, .shape = {0, 0},
     .code = "checkpoint.part_mismatch"},
    {93, "another value", DAMAGE_SUM, A, "values", 1, 0x41, .code = "checkpoint.checksum_mismatch"},
    {93, "another value of a plain tensor", DAMAGE_SUM, "norm.weight", "", 3, 0,
     .code = "checkpoint.checksum_mismatch"},
    {93, "another value of whole numbers", DAMAGE_SUM, "ids", "", 8, 0,
     .code = "checkpoint.checksum_mismatch"},
    {94, "format version 2", DAMAGE_CONFIG, .from = "\"format_version\": 1",
     .to = "\"format_version\": 2", .code = "checkpoint.newer_format"},
    {94, "format version 10^18", DAMAGE_CONFIG, .from = "\"format_version\": 1",
     .to = "\"format_version\": 1000000000000000000", .code = "checkpoint.newer_format"},
    {95, "-0.0 is stored", DAMAGE_BYTE, .weight = NULL, .code = "sparse.negative_zero"},
};

/* ---- damage ---- */

static char *read_text(test_run *run, esp_context *context, const char *path)
{
    char *text = NULL;
    size_t length = 0;
    CHECK_OK(esp_file_read_all(context, path, 1 << 20, "x", &text, &length, error));
    return text;
}

/* The first `from` behind the first `behind` becomes `to`. */
static void replace_text(test_run *run, esp_context *context, const char *path, const char *behind,
                         const char *from, const char *to)
{
    char *text = read_text(run, context, path);
    char *start = strstr(text, behind), *found = start != NULL ? strstr(start, from) : NULL;
    CHECK(found != NULL);
    if (found != NULL) {
        esp_buffer changed;
        esp_buffer_init(&changed, context);
        esp_buffer_append(&changed, text, (size_t)(found - text));
        esp_buffer_text(&changed, to);
        esp_buffer_text(&changed, found + strlen(from));
        test_write_file(run, path, changed.data, changed.length);
        esp_buffer_free(&changed);
    }
    esp_release(context, text);
}

/* All tensors of a file in memory, to be changed and written again. */
typedef struct loose_file {
    int count;
    struct {
        char name[64];
        esp_tensor tensor;
        size_t bytes;
    } parts[32];
} loose_file;

static void take_apart(test_run *run, esp_context *context, const char *path, loose_file *loose)
{
    esp_safetensors *file = NULL;
    loose->count = 0;
    REQUIRE_OK(esp_safetensors_open(context, path, &file, error));
    for (int64_t i = 0; i < esp_safetensors_count(file); i++, loose->count++) {
        esp_tensor_info info = esp_safetensors_get(file, i);
        esp_tensor *tensor = &loose->parts[i].tensor;
        snprintf(loose->parts[i].name, sizeof loose->parts[i].name, "%s", info.name);
        *tensor = (esp_tensor){.dtype = info.dtype, .rank = info.rank};
        for (int k = 0; k < info.rank; k++) {
            tensor->shape[k] = info.shape[k];
        }
        loose->parts[i].bytes = info.bytes;
        tensor->data = calloc(1, 4096);
        CHECK_OK(esp_safetensors_read(file, i, tensor->data, error));
    }
    esp_safetensors_close(file);
}

static void put_together(test_run *run, esp_context *context, const char *path, loose_file *loose)
{
    esp_safetensors_writer *writer = NULL;
    uint64_t bytes;
    remove(path);
    REQUIRE_OK(esp_safetensors_writer_create(context, &writer, error));
    for (int i = 0; i < loose->count; i++) {
        CHECK_OK(esp_safetensors_writer_declare(writer, loose->parts[i].name,
                                                &loose->parts[i].tensor, error));
    }
    CHECK_OK(esp_safetensors_writer_place(writer, &bytes, error));
    CHECK_OK(esp_safetensors_writer_begin(writer, path, error));
    for (int i = 0; i < loose->count; i++) {
        CHECK_OK(esp_safetensors_writer_write(writer, loose->parts[i].name,
                                              loose->parts[i].tensor.data, error));
    }
    CHECK_OK(esp_safetensors_writer_finish(writer, error));
    esp_safetensors_writer_free(writer);
}

static int find_part(const loose_file *loose, const char *weight, const char *part)
{
    char name[80];
    snprintf(name, sizeof name, "%s%s%s", weight, part[0] != '\0' ? "." : "", part);
    for (int i = 0; i < loose->count; i++) {
        if (strcmp(loose->parts[i].name, name) == 0) {
            return i;
        }
    }
    return -1;
}

/* crc32c over the parts in the layout's order. */
static uint32_t sum_of(const loose_file *loose, const char *weight)
{
    static const char *const order[] = {"values", "positions", "columns", "rows"};
    uint32_t crc = 0;
    for (int i = 0; i < ESP_COUNT(order); i++) {
        int at = find_part(loose, weight, order[i]);
        crc = at >= 0 ? esp_crc32c(crc, loose->parts[at].tensor.data, loose->parts[at].bytes) : crc;
    }
    return crc;
}

static void repair_sum(test_run *run, esp_context *context, const char *config, const char *weight,
                       uint32_t old, uint32_t new)
{
    char behind[80], from[16], to[16];
    snprintf(behind, sizeof behind, "\"%s\"", weight);
    snprintf(from, sizeof from, "%08x", old);
    snprintf(to, sizeof to, "%08x", new);
    replace_text(run, context, config, behind, from, to);
}

static void change_byte(uint8_t *data, const broken_row *row, loose_file *loose)
{
    if (row->weight != NULL) {
        data[row->at] = row->byte;
        return;
    }
    /* -0.0 in f32 instead of the first value of a row */
    int at = find_part(loose, A, "values");
    memcpy(loose->parts[at].tensor.data, (const uint8_t[]){0, 0, 0, 0x80}, 4);
}

static void break_folder(test_run *run, esp_context *context, const char *folder,
                         const broken_row *row)
{
    char weights[1100], config[1100];
    const char *weight = row->weight != NULL ? row->weight : A;
    loose_file loose;
    snprintf(weights, sizeof weights, "%s/model.safetensors", folder);
    snprintf(config, sizeof config, "%s/config.json", folder);
    if (row->how == DAMAGE_CONFIG) {
        replace_text(run, context, config, "{", row->from, row->to);
        return;
    }
    take_apart(run, context, weights, &loose);
    int part = find_part(&loose, weight, row->part != NULL ? row->part : "values");
    uint32_t old = sum_of(&loose, weight);
    REQUIRE(part >= 0);
    if (row->how == DAMAGE_SHAPE) {
        loose.parts[part].tensor.rank = row->rank;
        memcpy(loose.parts[part].tensor.shape, row->shape, sizeof row->shape);
        CHECK_OK(esp_tensor_size(&loose.parts[part].tensor, NULL, &loose.parts[part].bytes, error));
    } else {
        change_byte(loose.parts[part].tensor.data, row, &loose);
    }
    if (row->how == DAMAGE_BYTE || row->how == DAMAGE_SHAPE) {
        repair_sum(run, context, config, weight, old, sum_of(&loose, weight));
    }
    put_together(run, context, weights, &loose);
    for (int i = 0; i < loose.count; i++) {
        free(loose.parts[i].tensor.data);
    }
}

/* ---- refused everywhere ---- */

static esp_status read_all(esp_context *context, const char *folder, esp_error *error)
{
    esp_checkpoint *checkpoint = NULL;
    ESP_TRY(esp_checkpoint_open(context, folder, &checkpoint, error));
    esp_status status = ESP_OK;
    for (int64_t i = 0; i < esp_checkpoint_count(checkpoint) && status == ESP_OK; i++) {
        esp_weight_info info = esp_checkpoint_get(checkpoint, i);
        esp_tensor dense = {0};
        status = esp_tensor_create(context, info.dtype, info.rank, info.shape, &dense, error);
        if (status == ESP_OK) {
            status = esp_checkpoint_read_dense(checkpoint, i, &dense, error);
        }
        esp_tensor_free(context, &dense);
    }
    esp_checkpoint_close(checkpoint);
    return status;
}

static void make_place(test_run *run, esp_context *context, char source[800], char folder[800])
{
    static int number;
    snprintf(source, 800, "%s/source%d", test_folder(run), number);
    snprintf(folder, 800, "%s/compressed%d", test_folder(run), number++);
    make_source_folder(run, context, source);
    CHECK_OK(write_folder(run, context, source, folder, false, false, 0, error));
    CHECK_OK(read_all(context, folder, error));
}

static void numbered_cases(test_run *run)
{
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        char source[800], folder[800], out[900];
        test_sub(run, "%d %s", rows[i].number, rows[i].name);
        esp_context *context = test_context(run, 1);
        make_place(run, context, source, folder);
        break_folder(run, context, folder, &rows[i]);
        bool newer = rows[i].number == 94;
        esp_status wanted = newer ? ESP_UNSUPPORTED : ESP_BAD_FILE;
        esp_verify_options verify = {0};
        esp_verify_summary summary;
        esp_prune_options options = {0};
        snprintf(out, sizeof out, "%s-dense", folder);
        CHECK_FAILS(read_all(context, folder, error), wanted, rows[i].code);
        CHECK_FAILS(esp_verify_checkpoint(context, folder, &verify, &summary, error), wanted,
                    rows[i].code);
        CHECK_FAILS(
            esp_convert_checkpoint(context, folder, out, ESP_CONVERT_DENSE, &options, NULL, error),
            wanted, rows[i].code);
        CHECK(!esp_path_exists(out));
        test_context_free(run, context);
    }
}

/* ---- in dense folders ---- */

/* layer.a is 2:4; the rows decide what its first group holds. */
static void write_dense(test_run *run, esp_context *context, const char *folder,
                        const float group[4])
{
    loose_file loose;
    char weights[1100];
    snprintf(weights, sizeof weights, "%s/model.safetensors", folder);
    take_apart(run, context, weights, &loose);
    int at = find_part(&loose, A, "");
    REQUIRE(at >= 0);
    memcpy(loose.parts[at].tensor.data, group, 4 * sizeof *group);
    put_together(run, context, weights, &loose);
    for (int i = 0; i < loose.count; i++) {
        free(loose.parts[i].tensor.data);
    }
}

static esp_status compress(test_run *run, esp_context *context, const char *source, const char *out,
                           esp_error *problem)
{
    static const char *const skips[] = {"layer.b*", "layer.c*", "layer.d*"};
    esp_prune_options options = {.skips = skips, .skip_count = ESP_COUNT(skips)};
    CHECK_OK(esp_pattern_parse("2:4", &options.pattern, error));
    return esp_convert_checkpoint(context, source, out, ESP_CONVERT_COMPRESS, &options, NULL,
                                  problem);
}

static void more_non_zeros_than_the_pattern(test_run *run)
{
    char source[800], folder[800], out[900];
    esp_context *context = test_context(run, 1);
    test_sub(run, "86 three non-zeros in a group of a dense folder");
    make_place(run, context, source, folder);
    snprintf(out, sizeof out, "%s-out", source);
    write_dense(run, context, source, (const float[]){1, 2, 3, 0});
    CHECK_FAILS(compress(run, context, source, out, error), ESP_CHECK_FAILED,
                "convert.does_not_fit");
    CHECK(!esp_path_exists(out));
    test_context_free(run, context);
}

/* -0.0 counts as zero: it does not use up a place of its group, and comes back as +0.0. */
static void negative_zeros_count_as_zero(test_run *run)
{
    char source[800], folder[800], out[900];
    float dense[6 * 16];
    esp_context *context = test_context(run, 1);
    test_sub(run, "95 -0.0 in a dense folder");
    make_place(run, context, source, folder);
    snprintf(out, sizeof out, "%s-out", source);
    write_dense(run, context, source, (const float[]){-0.0f, 5, 6, -0.0f});
    CHECK_OK(compress(run, context, source, out, error));
    esp_checkpoint *checkpoint = NULL;
    esp_tensor read = {.dtype = ESP_F32, .rank = 2, .shape = {6, 16}, .data = dense};
    CHECK_OK(esp_checkpoint_open(context, out, &checkpoint, error));
    if (checkpoint != NULL) {
        CHECK_OK(esp_checkpoint_read_dense(checkpoint, esp_checkpoint_find(checkpoint, A), &read,
                                           error));
        CHECK(dense[1] == 5 && dense[2] == 6 && dense[0] == 0 && dense[3] == 0);
        CHECK(!signbit(dense[0]) && !signbit(dense[3]));
    }
    esp_checkpoint_close(checkpoint);
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"numbered cases", numbered_cases},
    {"more non-zeros than the pattern", more_non_zeros_than_the_pattern},
    {"negative zeros count as zero", negative_zeros_count_as_zero},
};
TEST_MAIN(cases)
