/* Folders are written whole or not at all: round trips, what goes along, what may be replaced, a
 * caller's mistakes. Failures and kills: test_checkpoint_interrupted.c. */
#include <limits.h>
#include <unistd.h>

#include "io/config_text.h"
#include "writer_place.h"

static void check_text_file(test_run *run, esp_context *context, const char *path,
                            const char *expected)
{
    char *text = NULL;
    size_t length = 0;
    REQUIRE_OK(esp_file_read_all(context, path, 1 << 20, "x", &text, &length, error));
    CHECK_TEXT(text, expected);
    esp_release(context, text);
}

/* ---- round trips ---- */

static void compressed_and_back(test_run *run)
{
    esp_context *context = test_context(run, 2);
    place at = make_place(run, context);
    char dense[1000];
    snprintf(dense, sizeof dense, "%s/dense", at.parent);
    test_sub(run, "compressed");
    CHECK_OK(write_folder(run, context, at.source, at.target, false, false, 0, error));
    check_folder(run, context, at.target, true, 0);
    CHECK_INT(test_entries(at.parent), 2);
    test_sub(run, "what goes along");
    CHECK(exists(at.target, "tokenizer.json") && exists(at.target, "README.md") &&
          exists(at.target, "espalier.json"));
    CHECK(!exists(at.target, "pytorch_model.bin") && !exists(at.target, "onnx") &&
          !exists(at.target, "model.safetensors.index.json"));
    CHECK_INT(test_entries(at.target), 5);
    check_text_file(run, context, test_path(at.target, "tokenizer.json"), "{\"version\": \"1.0\"}");
    test_sub(run, "back to dense: an ordinary folder");
    CHECK_OK(write_folder(run, context, at.target, dense, false, true, 0, error));
    check_folder(run, context, dense, false, 0);
    check_text_file(run, context, test_path(dense, "config.json"), folder_config);
    test_context_free(run, context);
}

/* The keys of a config.json stay in order and in spelling. */
static void config_texts(test_run *run)
{
    static const struct {
        const char *name, *config, *quantization, *expected;
    } rows[] = {
        {"added", "{\"a\": 1e-05}", "{\"x\": 1}",
         "{\"a\": 1e-05,\n  \"quantization_config\": {\"x\": 1}\n}\n"},
        {"added to nothing", "{}", "{\"x\": 1}", "{\n  \"quantization_config\": {\"x\": 1}\n}\n"},
        {"replaced at the end", "{\"a\":1.50,\"quantization_config\":{\"y\":[1,\"}\"]}}\n",
         "{\"x\": 1}", "{\"a\":1.50,\n  \"quantization_config\": {\"x\": 1}\n}\n"},
        {"replaced in the middle",
         "{\n  \"a\": 1,\n  \"quantization_config\": {\"y\": 2},\n  \"b\": 1E3\n}\n", "{\"x\": 1}",
         "{\n  \"a\": 1,\n  \"b\": 1E3,\n  \"quantization_config\": {\"x\": 1}\n}\n"},
        {"removed at the start", "{\"quantization_config\": null, \"a\": \"\\\"}\"}", NULL,
         "{\"a\": \"\\\"}\"}"},
        {"removed at the end", "{\"a\": 1, \"quantization_config\": null}", NULL, "{\"a\": 1}"},
        {"removed alone", "{\"quantization_config\": {}}", NULL, "{}"},
        {"nothing to remove", "{\"a\": {\"quantization_config\": 1}} ", NULL,
         "{\"a\": {\"quantization_config\": 1}} "},
        {"spelled by an escape", "{\"a\":1e-05,\"quantization\\u005fconfig\":1}", NULL,
         "{\n  \"a\": 1.0000000000000001e-5\n}\n"},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s", rows[i].name);
        esp_context *context = test_context(run, 1);
        char *result = NULL;
        CHECK_OK(esp_config_rewrite(context, rows[i].config, rows[i].quantization, &result, error));
        CHECK_TEXT(result, rows[i].expected);
        esp_release(context, result);
        test_context_free(run, context);
    }
}

static void golden_config(test_run *run)
{
    static const char expected[] =
        "{\n  \"model_type\": \"llama\",\n  \"rms_norm_eps\": 1e-05,\n"
        "  \"nested\": {\"x\": [1.0, \"}\"]},\n  \"quantization_config\": {\n"
        "    \"quant_method\": \"espalier\",\n    \"format_version\": 1,\n    \"tensors\": {\n"
        "      \"ids\": {\"pattern\": \"dense\", \"shape\": [3], \"dtype\": \"I64\", \"crc32c\": ";
    esp_context *context = test_context(run, 1);
    place at = make_place(run, context);
    char *text = NULL;
    size_t length = 0;
    CHECK_OK(write_folder(run, context, at.source, at.target, false, false, 0, error));
    REQUIRE_OK(esp_file_read_all(context, test_path(at.target, "config.json"), 1 << 20, "x", &text,
                                 &length, error));
    CHECK(strncmp(text, expected, sizeof expected - 1) == 0);
    esp_release(context, text);
    test_context_free(run, context);
}

/* ---- replacing ---- */

static void refused_targets(test_run *run)
{
    esp_context *context = test_context(run, 1);
    place at = make_place(run, context);
    char path[1200];
#define REFUSED(target_path, force, status, code)                                                  \
    CHECK_FAILS(write_folder(run, context, at.source, target_path, force, false, 0, error),        \
                status, code)
    test_sub(run, "the source itself");
    REFUSED(at.source, true, ESP_BAD_ARGUMENT, "checkpoint.same_folder");
    test_sub(run, "the source in another spelling");
    snprintf(path, sizeof path, "%s/../place%s/./source//", at.parent, strrchr(at.parent, 'e') + 1);
    REFUSED(path, true, ESP_BAD_ARGUMENT, "checkpoint.same_folder");
    test_sub(run, "the source by a symbolic link");
    snprintf(path, sizeof path, "%s/link", at.parent);
    CHECK_INT(symlink("source", path), 0);
    REFUSED(path, true, ESP_BAD_ARGUMENT, "checkpoint.same_folder");
    test_sub(run, "a folder that holds the source");
    REFUSED(at.parent, true, ESP_BAD_ARGUMENT, "checkpoint.same_folder");
    test_sub(run, "no such parent");
    snprintf(path, sizeof path, "%s/absent/target", at.parent);
    REFUSED(path, false, ESP_BAD_ARGUMENT, "checkpoint.no_parent");
    test_sub(run, "parent is a file");
    snprintf(path, sizeof path, "%s/config.json/target", at.source);
    REFUSED(path, false, ESP_BAD_ARGUMENT, "checkpoint.no_parent");
    test_sub(run, "target is a file");
    snprintf(path, sizeof path, "%s/file", at.parent);
    write_text(run, path, "x");
    REFUSED(path, true, ESP_FAILED, "checkpoint.not_a_folder");
    test_sub(run, "target is a link to nowhere");
    snprintf(path, sizeof path, "%s/nowhere", at.parent);
    CHECK_INT(symlink("absent", path), 0);
    REFUSED(path, true, ESP_BAD_ARGUMENT, "checkpoint.bad_target");
    test_sub(run, "no name at all");
    REFUSED("", false, ESP_BAD_ARGUMENT, "checkpoint.bad_target");
    REFUSED("/", false, ESP_BAD_ARGUMENT, "checkpoint.bad_target");
    REFUSED("..", false, ESP_BAD_ARGUMENT, "checkpoint.bad_target");
    test_sub(run, "a name too long");
    memset(path, 'n', 300);
    path[300] = '\0';
    REFUSED(path, false, ESP_BAD_ARGUMENT, "checkpoint.bad_target");
    test_sub(run, "exists, without force");
    mkdir(at.target, 0700);
    REFUSED(at.target, false, ESP_FAILED, "checkpoint.exists");
    test_sub(run, "exists, empty, not ours");
    REFUSED(at.target, true, ESP_FAILED, "checkpoint.not_ours");
    test_sub(run, "exists with another program's espalier.json");
    write_text(run, test_path(at.target, "espalier.json"), "{\"made_by\": \"gardener\"}");
    REFUSED(at.target, true, ESP_FAILED, "checkpoint.not_ours");
    test_sub(run, "nothing was left behind");
    CHECK_INT(test_entries(at.parent), 5);
    CHECK_INT(test_entries(at.target), 1);
    test_context_free(run, context);
}

/* Root may write everywhere, so the case is run as somebody else. */
static void parent_not_writable(test_run *run)
{
    esp_context *context = test_context(run, 1);
    place at = make_place(run, context);
    bool root = geteuid() == 0;
    chmod(test_folder(run), 0755);
    chmod(at.source, 0755);
    chmod(at.parent, 0555);
    if (root && seteuid(65534) != 0) {
        test_skip(run, "cannot become another user");
    } else {
        CHECK_FAILS(write_folder(run, context, at.source, at.target, false, false, 0, error),
                    ESP_IO, "checkpoint.parent_not_writable");
    }
    if (root) {
        CHECK_INT(seteuid(0), 0);
    }
    chmod(at.parent, 0755);
    CHECK_INT(test_entries(at.parent), 1);
    test_context_free(run, context);
}

static void force(test_run *run)
{
    esp_context *context = test_context(run, 1);
    place at = make_place(run, context);
    CHECK_OK(write_folder(run, context, at.source, at.target, true, false, 0, error));
    test_sub(run, "not without force, though it is ours");
    CHECK_FAILS(write_folder(run, context, at.source, at.target, false, false, 1, error),
                ESP_FAILED, "checkpoint.exists");
    check_folder(run, context, at.target, true, 0);
    test_sub(run, "replaced");
    CHECK_OK(write_folder(run, context, at.source, at.target, true, false, 1, error));
    check_folder(run, context, at.target, true, 1);
    CHECK_INT(test_entries(at.parent), 2);
    test_sub(run, "replaced through a link");
    char link[1200];
    snprintf(link, sizeof link, "%s/link", at.parent);
    CHECK_INT(symlink("target", link), 0);
    CHECK_OK(write_folder(run, context, at.source, link, true, true, 2, error));
    check_folder(run, context, at.target, false, 2);
    CHECK_INT(test_entries(at.parent), 3);
    test_sub(run, "not when somebody put a file into it");
    write_text(run, test_path(at.target, "notes.txt"), "mine");
    CHECK_FAILS(write_folder(run, context, at.source, at.target, true, false, 3, error), ESP_FAILED,
                "checkpoint.foreign_files");
    check_folder(run, context, at.target, false, 2);
    test_context_free(run, context);
}

/* Modules of sentence-transformers go along, and belong to what --force replaces; other folders do
 * not. */
static void modules(test_run *run)
{
    esp_context *context = test_context(run, 1);
    place at = make_place(run, context);
    char path[1200];
    static const char *const folders[] = {"1_Pooling", "2_Normalize", "3d", "other"};
    for (int i = 0; i < ESP_COUNT(folders); i++) {
        snprintf(path, sizeof path, "%s/%s", at.source, folders[i]);
        mkdir(path, 0700);
        if (strcmp(folders[i], "2_Normalize") != 0) {
            write_text(run, test_path(path, "config.json"), "{\"a\": 1}");
            write_text(run, test_path(path, "pytorch_model.bin"), "weights");
        }
    }
    CHECK_OK(write_folder(run, context, at.source, at.target, false, false, 0, error));
    CHECK(!exists(at.target, "2_Normalize") && !exists(at.target, "3d") &&
          !exists(at.target, "other"));
    check_text_file(run, context, test_path(at.target, "1_Pooling/config.json"), "{\"a\": 1}");
    CHECK(!exists(at.target, "1_Pooling/pytorch_model.bin"));
    test_sub(run, "replaced with what is in it");
    CHECK_OK(write_folder(run, context, at.source, at.target, true, false, 1, error));
    check_folder(run, context, at.target, true, 1);
    CHECK(exists(at.target, "1_Pooling/config.json"));
    CHECK_INT(test_entries(at.parent), 2);
    test_sub(run, "not when somebody put a file into the module");
    write_text(run, test_path(at.target, "1_Pooling/notes.txt"), "mine");
    CHECK_FAILS(write_folder(run, context, at.source, at.target, true, false, 2, error), ESP_FAILED,
                "checkpoint.foreign_files");
    check_folder(run, context, at.target, true, 1);
    CHECK(exists(at.target, "1_Pooling/notes.txt"));
    test_sub(run, "not when the module is no folder any more");
    unlink(test_path(at.target, "1_Pooling/notes.txt"));
    unlink(test_path(at.target, "1_Pooling/config.json"));
    rmdir(test_path(at.target, "1_Pooling"));
    write_text(run, test_path(at.target, "1_Pooling"), "mine");
    CHECK_FAILS(write_folder(run, context, at.source, at.target, true, false, 2, error), ESP_FAILED,
                "checkpoint.foreign_files");
    test_context_free(run, context);
}

/* ---- a caller's mistakes ---- */

static void mistakes_in_declaring(test_run *run)
{
    static const struct {
        const char *name, *code;
        esp_weight_info info;
    } rows[] = {
        {"no name", "checkpoint.bad_name", {.name = "", .dtype = ESP_F32}},
        {"name not UTF-8", "checkpoint.bad_name", {.name = "\xff", .dtype = ESP_F32}},
        {"compressed vector",
         "checkpoint.not_a_matrix",
         {.name = "w",
          .dtype = ESP_F32,
          .rank = 1,
          .shape = {8},
          .pattern = {.kind = ESP_PATTERN_PANEL}}},
        {"stored size of no form",
         "checkpoint.wrong_size",
         {.name = "w",
          .dtype = ESP_F32,
          .rank = 2,
          .shape = {8, 8},
          .stored_bytes = 5,
          .pattern = {.kind = ESP_PATTERN_PANEL}}},
        {"plain with another size",
         "checkpoint.wrong_size",
         {.name = "w", .dtype = ESP_F32, .rank = 1, .shape = {8}, .stored_bytes = 31}},
        {"negative shape",
         "tensor.bad_shape",
         {.name = "w", .dtype = ESP_F32, .rank = 1, .shape = {-8}}},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s", rows[i].name);
        esp_context *context = test_context(run, 1);
        place at = make_place(run, context);
        esp_checkpoint_writer *writer = make_writer(run, context, &at);
        CHECK_FAILS(esp_checkpoint_writer_declare(writer, &rows[i].info, error), ESP_BAD_ARGUMENT,
                    rows[i].code);
        CHECK_FAILS(esp_checkpoint_writer_begin(writer, error), ESP_BAD_ARGUMENT,
                    "checkpoint.wrong_order");
        free_and_check(run, &at, writer);
        test_context_free(run, context);
    }
}

static void names_that_collide(test_run *run)
{
    esp_context *context = test_context(run, 1);
    place at = make_place(run, context);
    esp_checkpoint_writer *writer = make_writer(run, context, &at);
    esp_weight_info part = {
        .name = "layer.a.weight.values", .dtype = ESP_F32, .rank = 1, .shape = {2}};
    CHECK_OK(declare_folder_weight(run, writer, &folder_weights[1], false, error));
    CHECK_OK(esp_checkpoint_writer_declare(writer, &part, error));
    CHECK_FAILS(esp_checkpoint_writer_begin(writer, error), ESP_BAD_ARGUMENT,
                "safetensors.declared_twice");
    free_and_check(run, &at, writer);
    test_context_free(run, context);
}

static void mistakes_in_writing(test_run *run)
{
    const folder_weight *a = &folder_weights[1], *b = &folder_weights[2],
                        *norm = &folder_weights[5];
    esp_context *context = test_context(run, 1);
    place at = make_place(run, context);
    esp_checkpoint_writer *writer = make_writer(run, context, &at);
    esp_tensor dense = folder_tensor(context, a, 0), other = folder_tensor(context, b, 0);
    CHECK_FAILS(esp_checkpoint_writer_write_dense(writer, "x", &dense, error), ESP_BAD_ARGUMENT,
                "checkpoint.wrong_order");
    CHECK_OK(declare_folder_weight(run, writer, a, false, error));
    CHECK_OK(declare_folder_weight(run, writer, norm, false, error));
    CHECK_OK(esp_checkpoint_writer_begin(writer, error));
    CHECK_FAILS(esp_checkpoint_writer_begin(writer, error), ESP_BAD_ARGUMENT,
                "checkpoint.wrong_order");
    CHECK_FAILS(esp_checkpoint_writer_write_dense(writer, "x", &dense, error), ESP_BAD_ARGUMENT,
                "checkpoint.not_declared");
    CHECK_FAILS(esp_checkpoint_writer_write_dense(writer, a->name, &dense, error), ESP_BAD_ARGUMENT,
                "checkpoint.not_as_declared");
    CHECK_FAILS(esp_checkpoint_writer_write_dense(writer, norm->name, &dense, error),
                ESP_BAD_ARGUMENT, "checkpoint.not_as_declared");
    esp_sparse *sparse = folder_sparse(run, context, b, &other);
    CHECK_FAILS(esp_checkpoint_writer_write_sparse(writer, a->name, sparse, error),
                ESP_BAD_ARGUMENT, "checkpoint.not_as_declared");
    esp_sparse_free(sparse);
    CHECK_OK(write_folder_weight(run, context, writer, a, false, 0, error));
    CHECK_FAILS(write_folder_weight(run, context, writer, a, false, 0, error), ESP_BAD_ARGUMENT,
                "checkpoint.written_twice");
    CHECK_FAILS(esp_checkpoint_writer_finish(writer, error), ESP_BAD_ARGUMENT,
                "checkpoint.not_written");
    free_and_check(run, &at, writer);
    esp_tensor_free(context, &dense);
    esp_tensor_free(context, &other);
    test_context_free(run, context);
}

static void lone_source(test_run *run)
{
    esp_context *context = test_context(run, 1);
    place at = make_place(run, context);
    char path[1100];
    snprintf(path, sizeof path, "%s/model.safetensors", at.source);
    CHECK_FAILS(write_folder(run, context, path, at.target, false, false, 0, error),
                ESP_BAD_ARGUMENT, "checkpoint.no_config");
    CHECK_INT(test_entries(at.parent), 1);
    esp_checkpoint_writer_free(NULL);
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"compressed and back", compressed_and_back},
    {"config texts", config_texts},
    {"golden config", golden_config},
    {"refused targets", refused_targets},
    {"parent not writable", parent_not_writable},
    {"force", force},
    {"modules", modules},
    {"mistakes in declaring", mistakes_in_declaring},
    {"names that collide", names_that_collide},
    {"mistakes in writing", mistakes_in_writing},
    {"lone source", lone_source},
};
TEST_MAIN(cases)
