/* Model folders as they come from outside: one file, several with an index, and what is none. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/io.h"
#include "safetensors_bytes.h"

#define TENSOR(name, begin, end)                                                                   \
    "\"" name "\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[" #begin "," #end "]}"
#define SHARD_1 "model-00001-of-00002.safetensors"
#define SHARD_2 "model-00002-of-00002.safetensors"
#define GOOD_MAP "\"a\":\"" SHARD_1 "\",\"b\":\"" SHARD_1 "\",\"c\":\"" SHARD_2 "\""
#define INDEX "model.safetensors.index.json"

typedef struct log_state {
    int warnings;
    char last[512];
} log_state;

static void take_log(void *user, esp_log_level level, const char *message)
{
    log_state *state = user;
    if (level == ESP_LOG_WARNING) {
        state->warnings++;
        snprintf(state->last, sizeof state->last, "%s", message);
    }
}

/* A fresh folder with config.json; its path lives until the next call. */
static const char *make_folder(test_run *run)
{
    static char path[1024];
    static int number;
    snprintf(path, sizeof path, "%s/model%d", test_folder(run), number++);
    mkdir(path, 0700);
    write_text(run, test_path(path, "config.json"), "{\"model_type\": \"llama\"}");
    return path;
}

static const char *make_sharded(test_run *run, const char *index)
{
    const char *folder = make_folder(run);
    write_safetensors(run, test_path(folder, SHARD_1),
                      "{" TENSOR("a", 0, 4) "," TENSOR("b", 4, 8) "}", "aaaabbbb", 8);
    write_safetensors(run, test_path(folder, SHARD_2), "{" TENSOR("c", 0, 4) "}", "cccc", 4);
    write_text(run, test_path(folder, INDEX), index);
    return folder;
}

static void check_refused(test_run *run, const char *path, esp_status wanted, const char *code)
{
    esp_context *context = test_context(run, 1);
    esp_checkpoint *checkpoint = NULL;
    CHECK_FAILS(esp_checkpoint_open(context, path, &checkpoint, error), wanted, code);
    CHECK(checkpoint == NULL);
    esp_checkpoint_close(checkpoint);
    test_context_free(run, context);
}

/* ---- accepted ---- */

static void check_contents(test_run *run, const esp_checkpoint *checkpoint)
{
    static const char *const names[] = {"a", "b", "c"};
    CHECK_INT(esp_checkpoint_count(checkpoint), 3);
    for (int i = 0; i < 3; i++) {
        char data[5] = {0}, expected[5] = {names[i][0], names[i][0], names[i][0], names[i][0], 0};
        esp_weight_info info = esp_checkpoint_get(checkpoint, i);
        esp_tensor tensor = {.dtype = ESP_U8, .rank = 1, .shape = {4}, .data = data};
        CHECK_TEXT(info.name, names[i]);
        CHECK_INT(esp_checkpoint_find(checkpoint, names[i]), i);
        CHECK_INT(info.stored_bytes, 4);
        CHECK_INT(info.pattern.kind, ESP_PATTERN_DENSE);
        CHECK(!info.has_crc32c);
        CHECK_OK(esp_checkpoint_read_dense(checkpoint, i, &tensor, error));
        CHECK_TEXT(data, expected);
        tensor.shape[0] = 3;
        CHECK_FAILS(esp_checkpoint_read_dense(checkpoint, i, &tensor, error), ESP_BAD_ARGUMENT,
                    "checkpoint.wrong_tensor");
        esp_sparse *sparse = NULL;
        CHECK_FAILS(esp_checkpoint_read_sparse(checkpoint, i, &sparse, error), ESP_BAD_ARGUMENT,
                    "checkpoint.not_a_matrix");
    }
    CHECK_INT(esp_checkpoint_find(checkpoint, "d"), -1);
}

/* Opens and reads all; the number of warnings. */
static int check_accepted(test_run *run, const char *path, bool has_config)
{
    log_state log = {0};
    esp_context_options options = {.threads = 1, .log = take_log, .log_user = &log};
    esp_context *context = NULL;
    esp_checkpoint *checkpoint = NULL;
    CHECK_OK(esp_context_create(&options, &context, error));
    CHECK_OK(esp_checkpoint_open(context, path, &checkpoint, error));
    if (checkpoint != NULL) {
        check_contents(run, checkpoint);
        CHECK(!esp_checkpoint_is_compressed(checkpoint));
        CHECK((esp_checkpoint_config(checkpoint) != NULL) == has_config);
        CHECK_TEXT(esp_checkpoint_path(checkpoint), path);
        CHECK(esp_checkpoint_file_bytes(checkpoint) > 12 + 8);
    }
    esp_checkpoint_close(checkpoint);
    esp_context_free(context);
    return log.warnings;
}

static void accepted(test_run *run)
{
    static const char single[] =
        "{" TENSOR("a", 0, 4) "," TENSOR("b", 4, 8) "," TENSOR("c", 8, 12) "}";
    const char *folder = make_folder(run);
    test_sub(run, "one file in a folder");
    write_safetensors(run, test_path(folder, "model.safetensors"), single, "aaaabbbbcccc", 12);
    CHECK_INT(check_accepted(run, folder, true), 0);
    test_sub(run, "a lone file");
    char lone[1100];
    snprintf(lone, sizeof lone, "%s/model.safetensors", folder);
    CHECK_INT(check_accepted(run, lone, false), 0);
    test_sub(run, "both a file and an index: warns");
    write_text(run, test_path(folder, INDEX), "{}");
    CHECK_INT(check_accepted(run, folder, true), 1);
    test_sub(run, "two shards");
    folder = make_sharded(run, "{\"metadata\":{\"total_size\":12},\"weight_map\":{" GOOD_MAP "}}");
    CHECK_INT(check_accepted(run, folder, true), 0);
    test_sub(run, "without metadata, with other keys");
    folder = make_sharded(run, "{\"weight_map\":{" GOOD_MAP "},\"extra\":[1.5]}");
    CHECK_INT(check_accepted(run, folder, true), 0);
    test_sub(run, "69 total_size wrong: warns");
    folder = make_sharded(run, "{\"metadata\":{\"total_size\":13},\"weight_map\":{" GOOD_MAP "}}");
    CHECK_INT(check_accepted(run, folder, true), 1);
    test_sub(run, "a shard that is a symbolic link");
    folder = make_sharded(run, "{\"weight_map\":{" GOOD_MAP "}}");
    rename(test_path(folder, SHARD_2), test_path(folder, "blob"));
    CHECK_INT(symlink("blob", test_path(folder, SHARD_2)), 0);
    CHECK_INT(check_accepted(run, folder, true), 0);
    test_sub(run, "the folder behind a link and with a slash");
    char link[1024], slash[1030];
    snprintf(link, sizeof link, "%s/link", test_folder(run));
    CHECK_INT(symlink(folder, link), 0);
    snprintf(slash, sizeof slash, "%s/", link);
    CHECK_INT(check_accepted(run, slash, true), 0);
}

/* ---- refused ---- */

static void refused_indexes(test_run *run)
{
#define MAP_C(shard)                                                                               \
    "{\"weight_map\":{\"a\":\"" SHARD_1 "\",\"b\":\"" SHARD_1 "\",\"c\":" shard "}}"
    static const struct {
        int number;
        const char *name, *index, *code;
    } rows[] = {
        {61, "a shard is missing", MAP_C("\"model-3.safetensors\""), "sharded.shard_missing"},
        {62, "shard ../x", MAP_C("\"../x.safetensors\""), "index.shard_parent"},
        {62, "shard ..", MAP_C("\"..\""), "index.shard_parent"},
        {62, "shard a/../../x", MAP_C("\"a/../../x.safetensors\""), "index.shard_parent"},
        {63, "absolute shard", MAP_C("\"/etc/x.safetensors\""), "index.shard_absolute"},
        {64, "shard with a slash", MAP_C("\"x/" SHARD_2 "\""), "index.shard_slash"},
        {64, "shard with a backslash", MAP_C("\"..\\\\x.safetensors\""), "index.shard_slash"},
        {64, "shard with NUL", MAP_C("\"" SHARD_2 "\\u0000x\""), "json.nul_character"},
        {65, "map value is an object", MAP_C("{\"file\":\"x\"}"), "index.entry_not_string"},
        {65, "map value is null", MAP_C("null"), "index.entry_not_string"},
        {66, "listed and absent", "{\"weight_map\":{" GOOD_MAP ",\"d\":\"" SHARD_2 "\"}}",
         "sharded.tensor_absent"},
        {66, "listed in another shard than it is in", MAP_C("\"" SHARD_1 "\""),
         "sharded.tensor_absent"},
        {67, "present and not listed",
         "{\"weight_map\":{\"a\":\"" SHARD_1 "\",\"c\":\"" SHARD_2 "\"}}",
         "sharded.tensor_unlisted"},
        {66, "listed in the wrong one of two shards",
         "{\"weight_map\":{\"a\":\"" SHARD_1 "\",\"b\":\"" SHARD_2 "\",\"c\":\"" SHARD_2 "\"}}",
         "sharded.wrong_shard"},
        {0, "shard is a pickle", MAP_C("\"pytorch_model.bin\""), "index.shard_not_safetensors"},
        {0, "no weight_map", "{\"metadata\":{}}", "index.no_weight_map"},
        {0, "empty weight_map", "{\"weight_map\":{}}", "index.no_weight_map"},
        {0, "weight_map is an array", "{\"weight_map\":[]}", "index.no_weight_map"},
        {0, "duplicate tensor", "{\"weight_map\":{\"a\":\"" SHARD_1 "\",\"a\":\"" SHARD_2 "\"}}",
         "json.duplicate_key"},
        {0, "not JSON", "{\"weight_map\":", "json.syntax"},
        {0, "git-lfs pointer", "version https://git-lfs.github.com/spec/v1\n", "json.syntax"},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%d %s", rows[i].number, rows[i].name);
        check_refused(run, make_sharded(run, rows[i].index), ESP_BAD_FILE, rows[i].code);
    }
}

static void refused_shards(test_run *run)
{
    const char *folder = make_sharded(run, "{\"weight_map\":{" GOOD_MAP "}}");
    test_sub(run, "68 one tensor in two shards");
    write_safetensors(run, test_path(folder, SHARD_2),
                      "{" TENSOR("a", 0, 4) "," TENSOR("c", 4, 8) "}", NULL, 8);
    check_refused(run, folder, ESP_BAD_FILE, "sharded.tensor_twice");
    test_sub(run, "a shard that is cut");
    folder = make_sharded(run, "{\"weight_map\":{" GOOD_MAP "}}");
    write_safetensors(run, test_path(folder, SHARD_2), "{" TENSOR("c", 0, 4) "}", "cc", 2);
    check_refused(run, folder, ESP_BAD_FILE, "safetensors.truncated");
    test_sub(run, "a shard that is a folder");
    folder = make_sharded(run, "{\"weight_map\":{" GOOD_MAP "}}");
    unlink(test_path(folder, SHARD_2));
    mkdir(test_path(folder, SHARD_2), 0700);
    check_refused(run, folder, ESP_BAD_FILE, "file.not_regular");
    test_sub(run, "70 an index of 1 GB");
    folder = make_sharded(run, "{}");
    CHECK_INT(truncate(test_path(folder, INDEX), 1 << 30), 0);
    check_refused(run, folder, ESP_BAD_FILE, "index.too_large");
}

/* Many shard names in an index must not cost more than their number. */
static void too_many_shards(test_run *run)
{
    char *index = malloc(9000 * 60), *at = index;
    at += sprintf(at, "{\"weight_map\":{");
    for (int i = 0; i < 8193; i++) {
        at += sprintf(at, "%s\"t%d\":\"s%d.safetensors\"", i > 0 ? "," : "", i, i);
    }
    strcpy(at, "}}");
    check_refused(run, make_sharded(run, index), ESP_BAD_FILE, "index.too_many_shards");
    free(index);
}

static void refused_folders(test_run *run)
{
    static const struct {
        const char *file, *code;
    } rows[] = {
        {"pytorch_model.bin", "checkpoint.pickle"},
        {"pytorch_model-00001-of-00002.bin", "checkpoint.pickle"},
        {"consolidated.00.pth", "checkpoint.pickle"},
        {"model.ckpt", "checkpoint.pickle"},
        {"model-q4_k_m.gguf", "checkpoint.gguf"},
        {"model.onnx", "checkpoint.onnx"},
        {"tf_model.h5", "checkpoint.tensorflow"},
        {"flax_model.msgpack", "checkpoint.flax"},
        {"weights.npz", "checkpoint.numpy"},
        {"adapter_model.safetensors", "checkpoint.adapter"},
        {"training_args.bin", "checkpoint.no_weights"},
        {"notes.txt", "checkpoint.no_weights"},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        const char *folder = make_folder(run);
        char path[1100];
        snprintf(path, sizeof path, "%s/%s", folder, rows[i].file);
        test_sub(run, "folder with %s", rows[i].file);
        write_text(run, path, "x");
        check_refused(run, folder, ESP_BAD_FILE, rows[i].code);
        bool foreign = strcmp(rows[i].code, "checkpoint.no_weights") != 0 &&
                       strcmp(rows[i].code, "checkpoint.adapter") != 0;
        if (foreign) {
            test_sub(run, "file %s", rows[i].file);
            check_refused(run, path, ESP_BAD_FILE, rows[i].code);
        }
    }
    const char *folder = make_sharded(run, "{\"weight_map\":{" GOOD_MAP "}}");
    test_sub(run, "no config.json");
    unlink(test_path(folder, "config.json"));
    check_refused(run, folder, ESP_BAD_FILE, "checkpoint.no_config");
    test_sub(run, "config.json is not JSON");
    write_text(run, test_path(folder, "config.json"), "{,}");
    check_refused(run, folder, ESP_BAD_FILE, "json.syntax");
    test_sub(run, "config.json is too large");
    CHECK_INT(truncate(test_path(folder, "config.json"), 17 << 20), 0);
    check_refused(run, folder, ESP_BAD_FILE, "json.too_large");
    test_sub(run, "an index given as the model");
    char path[1100];
    snprintf(path, sizeof path, "%s/" INDEX, folder);
    check_refused(run, path, ESP_BAD_FILE, "safetensors.is_json");
    test_sub(run, "nothing there, whatever it is called");
    check_refused(run, test_path(folder, "absent.bin"), ESP_BAD_FILE, "file.not_found");
    check_refused(run, test_path(folder, "absent"), ESP_BAD_FILE, "file.not_found");
}

static void foreign_quantization(test_run *run)
{
    static const struct {
        const char *name, *config;
    } rows[] = {
        {"84 gptq", "{\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4}}"},
        {"84 compressed-tensors", "{\"quantization_config\":{\"quant_method\":"
                                  "\"compressed-tensors\",\"format\":\"sparse-24-bitmask\"}}"},
        {"84 no method", "{\"quantization_config\":{\"load_in_8bit\":true}}"},
        {"84 not an object", "{\"quantization_config\":\"int8\"}"},
        {"84 compression_config", "{\"compression_config\":{\"format\":\"sparse-bitmask\"}}"},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        const char *folder = make_sharded(run, "{\"weight_map\":{" GOOD_MAP "}}");
        test_sub(run, "%s", rows[i].name);
        write_text(run, test_path(folder, "config.json"), rows[i].config);
        check_refused(run, folder, ESP_UNSUPPORTED, "checkpoint.foreign_quantization");
    }
    test_sub(run, "null is as if absent");
    const char *folder = make_sharded(run, "{\"weight_map\":{" GOOD_MAP "}}");
    write_text(run, test_path(folder, "config.json"), "{\"quantization_config\":null}");
    CHECK_INT(check_accepted(run, folder, true), 0);
}

static void rank_nine(test_run *run)
{
    const char *folder = make_folder(run);
    write_safetensors(run, test_path(folder, "model.safetensors"),
                      "{\"w\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,2],\"data_offsets\":"
                      "[0,2]}}",
                      "ab", 2);
    check_refused(run, folder, ESP_UNSUPPORTED, "checkpoint.rank_too_high");
}

static const test_case cases[] = {
    {"accepted", accepted},
    {"refused indexes", refused_indexes},
    {"refused shards", refused_shards},
    {"too many shards", too_many_shards},
    {"refused folders", refused_folders},
    {"foreign quantization", foreign_quantization},
    {"rank nine", rank_nine},
};
TEST_MAIN(cases)
