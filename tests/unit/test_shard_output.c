/* Folders in several files: where each weight goes, what the index says, and that they read back.
 */
#include <espalier/prune.h>

#include "model_folder.h"

/* Stored bytes by the file that holds the first part, and whether all parts are in one file. */
static void check_files(test_run *run, esp_context *context, const char *path, uint64_t limit)
{
    char *text = NULL;
    size_t length = 0;
    json_t *index = NULL;
    REQUIRE_OK(esp_file_read_all(context, test_path(path, "model.safetensors.index.json"), 1 << 20,
                                 "x", &text, &length, error));
    REQUIRE_OK(esp_json_parse(text, length, "index", &index, error));
    json_t *map = json_object_get(index, "weight_map");
    uint64_t total = 0;
    int files = 0;
    for (;; files++) {
        char name[64];
        esp_safetensors *file = NULL;
        esp_error ignored;
        bool found = false;
        for (int count = files + 1; count <= 20 && !found; count++) {
            snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", files + 1, count);
            found = esp_path_exists(test_path(path, name));
        }
        if (!found ||
            esp_safetensors_open(context, test_path(path, name), &file, &ignored) != ESP_OK) {
            break;
        }
        uint64_t bytes = 0;
        char stem[64] = "";
        bool alone = true;
        for (int64_t i = 0; i < esp_safetensors_count(file); i++) {
            esp_tensor_info info = esp_safetensors_get(file, i);
            json_t *listed = json_object_get(map, info.name);
            CHECK(json_is_string(listed) && strcmp(json_string_value(listed), name) == 0);
            bytes += info.bytes;
            size_t stem_bytes = strcspn(info.name, ".") + 9; /* "layer.a.weight" without parts */
            alone &= stem[0] == '\0' || strncmp(stem, info.name, stem_bytes) == 0;
            snprintf(stem, sizeof stem, "%.14s", info.name);
        }
        CHECK(bytes <= limit || alone);
        total += bytes;
        esp_safetensors_close(file);
    }
    CHECK(files > 1);
    CHECK_INT(json_integer_value(json_object_get(json_object_get(index, "metadata"), "total_size")),
              (int64_t)total);
    json_decref(index);
    esp_release(context, text);
}

/* The small model of folder_weights, compressed, in files of `limit` bytes. */
static esp_status write_shards(test_run *run, esp_context *context, const char *source_path,
                               const char *target, uint64_t limit, esp_error *error)
{
    esp_checkpoint *source = NULL;
    esp_checkpoint_writer *writer = NULL;
    ESP_TRY(esp_checkpoint_open(context, source_path, &source, error));
    esp_status status =
        esp_checkpoint_writer_create(context, source, target, false, &writer, error);
    esp_checkpoint_close(source);
    ESP_TRY(status);
    status = esp_checkpoint_writer_set_shard_bytes(writer, limit, error);
    for (int i = 0; status == ESP_OK && i < ESP_COUNT(folder_weights); i++) {
        status = declare_folder_weight(run, writer, &folder_weights[i], false, error);
    }
    if (status == ESP_OK) {
        status = esp_checkpoint_writer_begin(writer, error);
    }
    for (int i = ESP_COUNT(folder_weights) - 1; status == ESP_OK && i >= 0; i--) {
        status = write_folder_weight(run, context, writer, &folder_weights[i], false, 0, error);
    }
    if (status == ESP_OK) {
        status = esp_checkpoint_writer_finish(writer, error);
    }
    esp_checkpoint_writer_free(writer);
    return status;
}

static void reads_back(test_run *run)
{
    static const uint64_t limits[] = {1, 20, 100, 216, 217, 300, 500};
    esp_context *context = test_context(run, 2);
    char source[1000], target[1000];
    snprintf(source, sizeof source, "%s/source", test_folder(run));
    make_source_folder(run, context, source);
    for (int i = 0; i < ESP_COUNT(limits); i++) {
        test_sub(run, "files of %llu bytes", (unsigned long long)limits[i]);
        snprintf(target, sizeof target, "%s/shards%d", test_folder(run), i);
        REQUIRE_OK(write_shards(run, context, source, target, limits[i], error));
        check_folder(run, context, target, true, 0);
        check_files(run, context, target, limits[i]);
        CHECK(!esp_path_exists(test_path(target, "model.safetensors")));
    }
    test_sub(run, "room for all: one file and no index");
    snprintf(target, sizeof target, "%s/one", test_folder(run));
    REQUIRE_OK(write_shards(run, context, source, target, 1 << 20, error));
    check_folder(run, context, target, true, 0);
    CHECK(esp_path_exists(test_path(target, "model.safetensors")));
    CHECK(!esp_path_exists(test_path(target, "model.safetensors.index.json")));
    test_context_free(run, context);
}

/* Dense to dense in several files, and replacing them by one. */
static void through_convert(test_run *run)
{
    esp_context *context = test_context(run, 2);
    char source[1000], target[1000], again[1000];
    snprintf(source, sizeof source, "%s/dense", test_folder(run));
    snprintf(target, sizeof target, "%s/split", test_folder(run));
    snprintf(again, sizeof again, "%s/joined", test_folder(run));
    make_source_folder(run, context, source);
    esp_prune_options options = {.shard_bytes = 200};
    test_sub(run, "split");
    CHECK_OK(
        esp_convert_checkpoint(context, source, target, ESP_CONVERT_DENSE, &options, NULL, error));
    check_folder(run, context, target, false, 0);
    check_files(run, context, target, 200);
    test_sub(run, "replaced by one file, with nothing left");
    options.shard_bytes = 1 << 20;
    options.force = true;
    CHECK_OK(
        esp_convert_checkpoint(context, target, again, ESP_CONVERT_DENSE, &options, NULL, error));
    CHECK_OK(
        esp_convert_checkpoint(context, again, target, ESP_CONVERT_DENSE, &options, NULL, error));
    check_folder(run, context, target, false, 0);
    CHECK(!esp_path_exists(test_path(target, "model.safetensors.index.json")));
    test_sub(run, "without a size dense stays refused");
    options.shard_bytes = 0;
    CHECK_FAILS(
        esp_convert_checkpoint(context, source, again, ESP_CONVERT_DENSE, &options, NULL, error),
        ESP_BAD_ARGUMENT, "convert.not_compressed");
    test_context_free(run, context);
}

static void refusals(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_checkpoint *source = NULL;
    esp_checkpoint_writer *writer = NULL;
    char path[1000];
    snprintf(path, sizeof path, "%s/plain", test_folder(run));
    make_source_folder(run, context, path);
    REQUIRE_OK(esp_checkpoint_open(context, path, &source, error));
    REQUIRE_OK(esp_checkpoint_writer_create(context, source, test_path(test_folder(run), "no"),
                                            false, &writer, error));
    CHECK_OK(esp_checkpoint_writer_set_shard_bytes(writer, 1, error));
    esp_weight_info info = {.name = "a", .dtype = ESP_U8, .rank = 1, .shape = {1}};
    CHECK_OK(esp_checkpoint_writer_declare(writer, &info, error));
    test_sub(run, "a size after the first tensor");
    CHECK_FAILS(esp_checkpoint_writer_set_shard_bytes(writer, 2, error), ESP_BAD_ARGUMENT,
                "checkpoint.wrong_order");
    test_sub(run, "one name in two files");
    CHECK_OK(esp_checkpoint_writer_declare(writer, &info, error));
    CHECK_FAILS(esp_checkpoint_writer_begin(writer, error), ESP_BAD_ARGUMENT,
                "safetensors.declared_twice");
    esp_checkpoint_writer_free(writer);
    test_sub(run, "too many files");
    REQUIRE_OK(esp_checkpoint_writer_create(context, source, test_path(test_folder(run), "no"),
                                            false, &writer, error));
    CHECK_OK(esp_checkpoint_writer_set_shard_bytes(writer, 1, error));
    for (int i = 0; i < 8192; i++) {
        char name[16];
        snprintf(name, sizeof name, "t%d", i);
        info.name = name;
        CHECK_OK(esp_checkpoint_writer_declare(writer, &info, error));
    }
    info.name = "last";
    CHECK_FAILS(esp_checkpoint_writer_declare(writer, &info, error), ESP_BAD_ARGUMENT,
                "checkpoint.too_many_shards");
    esp_checkpoint_writer_free(writer);
    esp_checkpoint_close(source);
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"reads back", reads_back}, {"through convert", through_convert}, {"refusals", refusals}};
TEST_MAIN(cases)
