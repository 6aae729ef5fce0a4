/* Valid files, damaged at random: each mutant is refused with a code, or what is read from it
 * agrees with its bytes and, where a checksum or another file tells, with the original. Never a
 * crash, a hang, or more memory than 64 MiB and four times the file. Replay: TEST_SEED as printed,
 * TEST_MUTANT=NUMBER for one mutant of a kind. */
#include <limits.h>
#include <signal.h>

#include "faults/injector.h"
#include "faults/mutate.h"
#include "faults/small_model.h"
#include "model_folder.h"

#define MUTANTS 2000
#define MOST_SECONDS 10
#define MOST_BYTES ((long long)64 << 20)

typedef struct subject {
    test_run *run;
    const char *kind;
    esp_context *context;
    esp_device *device;
    char folder[900], file[1000]; /* the folder that is opened, the file in it that is damaged */
    unsigned char *good;
    size_t length;
    json_t *tensors; /* of the good config.json */
    long long budget;
} subject;

/* Status of reading all there is to read of a mutant; disagreements are failures of the test. */
typedef esp_status (*read_fn)(subject *on, const mutant *bytes, esp_error *error);

/* For the alarm, which has no arguments. */
static struct {
    const char *kind;
    int number;
} running;

static void hang(int signal_number)
{
    (void)signal_number;
    printf("FAIL test_mutants: %s, mutant %d: reading takes more than %d s\n", running.kind,
           running.number, MOST_SECONDS);
    fflush(stdout);
    _exit(1);
}

/* ---- tensors ---- */

static bool fits_budget(subject *on, uint64_t bytes)
{
    test_run *run = on->run;
    CHECK(bytes <= (uint64_t)on->budget);
    return bytes <= (uint64_t)on->budget;
}

/* Recounted here: the data of every tensor lie where the file says, side by side, to its end. */
static esp_status read_safetensors(subject *on, const mutant *bytes, esp_error *error)
{
    test_run *run = on->run;
    esp_safetensors *file = NULL;
    uint64_t header = 0, sum = 0;
    ESP_TRY(esp_safetensors_open(on->context, on->file, &file, error));
    for (int i = 7; i >= 0; i--) {
        header = header << 8 | bytes->bytes[i];
    }
    esp_status status = ESP_OK;
    for (int64_t i = 0; i < esp_safetensors_count(file) && status == ESP_OK; i++) {
        esp_tensor_info info = esp_safetensors_get(file, i);
        uint64_t bits = esp_dtype_bits(info.dtype);
        for (int k = 0; k < info.rank; k++) {
            bits *= (uint64_t)info.shape[k];
        }
        CHECK(bits == info.bytes * 8 && info.file_offset == 8 + header + sum);
        CHECK(info.file_offset + info.bytes <= bytes->length);
        CHECK(esp_safetensors_find(file, info.name) == i);
        sum += info.bytes;
        unsigned char *data = malloc(info.bytes + 1);
        status = fits_budget(on, info.bytes) ? esp_safetensors_read(file, i, data, error) : ESP_OK;
        CHECK(status != ESP_OK || test_failed(run) ||
              memcmp(data, bytes->bytes + info.file_offset, info.bytes) == 0);
        free(data);
    }
    CHECK(status != ESP_OK || 8 + header + sum == bytes->length);
    esp_safetensors_close(file);
    return status;
}

/* Both ways of reading a weight agree. */
static void compare_sparse(subject *on, const esp_checkpoint *folder, int64_t index,
                           const esp_tensor *dense, size_t bytes)
{
    test_run *run = on->run;
    esp_weight_info info = esp_checkpoint_get(folder, index);
    esp_sparse *sparse = NULL;
    esp_tensor decoded = *dense;
    if (info.rank != 2 || !esp_dtype_is_weight(info.dtype)) {
        return;
    }
    decoded.data = malloc(bytes + 1);
    CHECK_OK(esp_checkpoint_read_sparse(folder, index, &sparse, error));
    if (sparse != NULL) {
        CHECK_OK(esp_sparse_check(sparse, error));
        CHECK_OK(esp_sparse_decode(sparse, &decoded, error));
        CHECK(memcmp(decoded.data, dense->data, bytes) == 0);
        CHECK(!info.has_crc32c || esp_sparse_crc32c(sparse) == info.crc32c);
    }
    esp_sparse_free(sparse);
    free(decoded.data);
}

static void check_identical(subject *on, const esp_checkpoint *folder)
{
    test_run *run = on->run;
    CHECK_INT(esp_checkpoint_count(folder), ESP_COUNT(folder_weights));
    for (int i = 0; i < ESP_COUNT(folder_weights); i++) {
        int64_t index = esp_checkpoint_find(folder, folder_weights[i].name);
        esp_tensor right = folder_tensor(on->context, &folder_weights[i], 0);
        esp_tensor read = folder_tensor(on->context, &folder_weights[i], 7);
        size_t bytes = 0;
        CHECK_OK(esp_tensor_size(&right, NULL, &bytes, error));
        CHECK(index >= 0);
        if (index >= 0) {
            CHECK_OK(esp_checkpoint_read_dense(folder, index, &read, error));
            CHECK(memcmp(right.data, read.data, bytes) == 0);
        }
        esp_tensor_free(on->context, &right);
        esp_tensor_free(on->context, &read);
    }
}

/* identical: every weight of model_folder.h must be there with its values. */
static esp_status read_folder(subject *on, bool identical, esp_error *error)
{
    esp_checkpoint *folder = NULL;
    ESP_TRY(esp_checkpoint_open(on->context, on->folder, &folder, error));
    esp_status status = ESP_OK;
    for (int64_t i = 0; i < esp_checkpoint_count(folder) && status == ESP_OK; i++) {
        esp_weight_info info = esp_checkpoint_get(folder, i);
        esp_tensor dense = {.dtype = info.dtype, .rank = info.rank};
        memcpy(dense.shape, info.shape, sizeof dense.shape);
        if (!fits_budget(on, info.dense_bytes)) {
            break;
        }
        dense.data = malloc(info.dense_bytes + 1);
        status = esp_checkpoint_read_dense(folder, i, &dense, error);
        if (status == ESP_OK) {
            compare_sparse(on, folder, i, &dense, info.dense_bytes);
        }
        free(dense.data);
    }
    if (status == ESP_OK && identical) {
        check_identical(on, folder);
    }
    esp_checkpoint_close(folder);
    return status;
}

/* config.json lists every weight with a checksum: nothing may differ. */
static esp_status read_compressed(subject *on, const mutant *bytes, esp_error *error)
{
    (void)bytes;
    return read_folder(on, true, error);
}

static json_t *listed_tensors(json_t *config)
{
    return json_object_get(json_object_get(config, "quantization_config"), "tensors");
}

/* While the list of weights means the same, the weights are the same. */
static esp_status read_config(subject *on, const mutant *bytes, esp_error *error)
{
    json_t *config = json_loadb((const char *)bytes->bytes, bytes->length, 0, NULL);
    json_t *listed = listed_tensors(config);
    bool identical = listed != NULL && json_equal(listed, on->tensors) == 1;
    json_decref(config);
    return read_folder(on, identical, error);
}

/* An index says only where tensors are. */
static esp_status read_index(subject *on, const mutant *bytes, esp_error *error)
{
    (void)bytes;
    return read_folder(on, true, error);
}

/* ---- models and tokenizers ---- */

static esp_status run_model(subject *on, const esp_model *model, const esp_model_info *info,
                            esp_error *error)
{
    test_run *run = on->run;
    esp_session *session = NULL;
    const int32_t ids[] = {65, 66};
    float *logits = malloc((size_t)info->vocabulary * sizeof *logits);
    esp_status status = esp_session_create(model, ESP_MIN(info->context, 4), 2, &session, error);
    if (status == ESP_OK && info->context >= 2) {
        status = esp_session_feed(session, ids, 2, logits, false, error);
        CHECK_INT(esp_session_length(session), status == ESP_OK ? 2 : 0);
    }
    esp_session_free(session);
    free(logits);
    return status;
}

static esp_status read_model(subject *on, const mutant *bytes, esp_error *error)
{
    test_run *run = on->run;
    esp_checkpoint *folder = NULL;
    esp_model *model = NULL;
    esp_model_info info = {0};
    (void)bytes;
    ESP_TRY(esp_checkpoint_open(on->context, on->folder, &folder, error));
    esp_status status = esp_model_load(on->device, folder, NULL, &model, error);
    if (status == ESP_OK) {
        esp_model_get_info(model, &info);
        /* what the weights say cannot be talked away */
        CHECK(info.vocabulary == 258 && info.hidden_size == TINY_HIDDEN);
        CHECK(info.eos_count >= 0 && info.eos_count <= ESP_COUNT(info.eos) && info.context > 0);
        status = run_model(on, model, &info, error);
    }
    esp_model_free(model);
    esp_checkpoint_close(folder);
    return status;
}

static esp_status read_tokenizer(subject *on, const mutant *bytes, esp_error *error)
{
    static const char text[] =
        "Hello  world, 12345 it's \xc3\xa9t\xc3\xa9\n\xf0\x9f\x8c\xb3 <s>\xff";
    test_run *run = on->run;
    esp_tokenizer *tokenizer = NULL;
    int32_t *ids = NULL;
    int64_t count = 0;
    (void)bytes;
    ESP_TRY(esp_tokenizer_open(on->context, on->folder, &tokenizer, error));
    int64_t size = esp_tokenizer_size(tokenizer);
    esp_status status =
        esp_tokenizer_encode(tokenizer, text, sizeof text - 1, true, &ids, &count, error);
    for (int64_t i = 0; i < count && status == ESP_OK; i++) {
        size_t length;
        CHECK(ids[i] >= 0 && ids[i] < size);
        CHECK(esp_tokenizer_token(tokenizer, ids[i], true, &length) != NULL);
    }
    esp_ids_free(tokenizer, ids);
    esp_tokenizer_close(tokenizer);
    return status;
}

/* ---- each mutant ---- */

static void load_good(subject *on, const char *folder, const char *file)
{
    test_run *run = on->run;
    char *text = NULL;
    snprintf(on->folder, sizeof on->folder, "%s", folder);
    snprintf(on->file, sizeof on->file, "%s/%s", folder, file);
    CHECK_OK(esp_file_read_all(on->context, on->file, 1 << 20, "x", &text, &on->length, error));
    on->good = malloc(on->length);
    memcpy(on->good, text, on->length);
    esp_release(on->context, text);
}

static bool is_refusal(esp_status status)
{
    return status == ESP_BAD_FILE || status == ESP_UNSUPPORTED;
}

/* Returns whether it was refused. */
static bool try_mutant(subject *on, const mutant *bytes, int number, read_fn read)
{
    test_run *run = on->run;
    esp_error problem = {0};
    bool failed = test_failed(run);
    long live = atomic_load(&injecting.live);
    long long held = atomic_load(&injecting.live_bytes);
    running.kind = on->kind;
    running.number = number;
    on->budget = MOST_BYTES + 4 * (long long)bytes->length;
    test_write_file(run, on->file, bytes->bytes, bytes->length);
    atomic_store(&injecting.peak_bytes, held);
    alarm(MOST_SECONDS);
    esp_status status = read(on, bytes, &problem);
    alarm(0);
    CHECK(status == ESP_OK || is_refusal(status));
    CHECK(status == ESP_OK || (strchr(problem.code, '.') != NULL && problem.message[0] != '\0'));
    CHECK_INT(atomic_load(&injecting.live), live);
    CHECK(atomic_load(&injecting.peak_bytes) - held <= on->budget);
    if (test_failed(run) && !failed) {
        test_fail(run, __FILE__, __LINE__, "%s, TEST_MUTANT=%d: %s \"%s\" %s; %lld bytes", on->kind,
                  number, esp_status_name(status), problem.code, problem.message,
                  (long long)(atomic_load(&injecting.peak_bytes) - held));
    }
    return status != ESP_OK;
}

static void try_mutants(subject *on, bool safetensors, read_fn read)
{
    test_run *run = on->run;
    const char *only = getenv("TEST_MUTANT");
    size_t capacity = on->length + 8192;
    mutant bytes = {malloc(capacity), on->length, capacity};
    int refused = 0, same = 0;
    memcpy(bytes.bytes, on->good, on->length);
    test_sub(run, "%s: as it was", on->kind);
    CHECK(!try_mutant(on, &bytes, -1, read));
    test_sub(run, "%s: mutants", on->kind);
    for (int number = 0; number < MUTANTS; number++) {
        esp_random random;
        if (only != NULL && atoi(only) != number) {
            continue;
        }
        esp_random_seed(&random, test_seed(run) ^ (uint64_t)number << 32 ^
                                     esp_crc32c(0, on->kind, strlen(on->kind)));
        bytes.length = on->length;
        memcpy(bytes.bytes, on->good, on->length);
        do {
            (safetensors ? mutate_safetensors : mutate)(&bytes, &random);
        } while (bytes.length == on->length && memcmp(bytes.bytes, on->good, on->length) == 0);
        bool is_refused = try_mutant(on, &bytes, number, read);
        refused += is_refused;
        same += !is_refused;
    }
    CHECK(only != NULL || (refused > MUTANTS / 10 && refused + same == MUTANTS));
    printf("mutants: %s: %d refused with a code, %d read and right: 0 crashes, 0 hangs\n", on->kind,
           refused, same);
    test_write_file(run, on->file, on->good, on->length);
    free(bytes.bytes);
    free(on->good);
}

static subject open_subject(test_run *run, const char *kind)
{
    subject on = {.run = run, .kind = kind};
    injecting.source = INJECT_NEVER;
    injector_hook_json();
    prefer_memory_disk();
    signal(SIGALRM, hang);
    CHECK_OK(injector_context(1, &on.context, error));
    return on;
}

static void close_subject(subject *on)
{
    test_run *run = on->run;
    json_decref(on->tensors);
    esp_device_close(on->device);
    esp_context_free(on->context);
    CHECK_INT(atomic_load(&injecting.live), 0);
}

/* A dense folder and its compressed form. */
static void make_folders(subject *on, char *source, char *compressed, size_t capacity)
{
    test_run *run = on->run;
    static int number;
    snprintf(source, capacity, "%s/source%d", test_folder(run), number);
    snprintf(compressed, capacity, "%s/compressed%d", test_folder(run), number++);
    make_source_folder(run, on->context, source);
    CHECK_OK(write_folder(run, on->context, source, compressed, false, false, 0, error));
}

static void dense_weights(test_run *run)
{
    char source[800], compressed[800];
    subject on = open_subject(run, "safetensors, dense");
    make_folders(&on, source, compressed, sizeof source);
    load_good(&on, source, "model.safetensors");
    try_mutants(&on, true, read_safetensors);
    close_subject(&on);
}

static void compressed_weights(test_run *run)
{
    char source[800], compressed[800];
    subject on = open_subject(run, "safetensors, compressed parts");
    make_folders(&on, source, compressed, sizeof source);
    load_good(&on, compressed, "model.safetensors");
    try_mutants(&on, true, read_compressed);
    close_subject(&on);
}

static void compressed_config(test_run *run)
{
    char source[800], compressed[800];
    subject on = open_subject(run, "config.json of a compressed folder");
    make_folders(&on, source, compressed, sizeof source);
    load_good(&on, compressed, "config.json");
    json_t *config = json_loadb((const char *)on.good, on.length, 0, NULL);
    on.tensors = json_incref(listed_tensors(config));
    json_decref(config);
    try_mutants(&on, false, read_config);
    close_subject(&on);
}

/* The dense weights once more, each in a file of its own. */
static void make_sharded(subject *on, const char *folder)
{
    test_run *run = on->run;
    char index[4096];
    int used = snprintf(index, sizeof index, "{\"metadata\": {}, \"weight_map\": {");
    mkdir(folder, 0700);
    write_text(run, test_path(folder, "config.json"), folder_config);
    for (int i = 0; i < ESP_COUNT(folder_weights); i++) {
        esp_safetensors_writer *writer = NULL;
        esp_tensor tensor = folder_tensor(on->context, &folder_weights[i], 0);
        char name[64];
        uint64_t bytes;
        snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", i + 1,
                 (int)ESP_COUNT(folder_weights));
        CHECK_OK(esp_safetensors_writer_create(on->context, &writer, error));
        CHECK_OK(esp_safetensors_writer_declare(writer, folder_weights[i].name, &tensor, error));
        CHECK_OK(esp_safetensors_writer_place(writer, &bytes, error));
        CHECK_OK(esp_safetensors_writer_begin(writer, test_path(folder, name), error));
        CHECK_OK(esp_safetensors_writer_write(writer, folder_weights[i].name, tensor.data, error));
        CHECK_OK(esp_safetensors_writer_finish(writer, error));
        esp_safetensors_writer_free(writer);
        esp_tensor_free(on->context, &tensor);
        used += snprintf(index + used, sizeof index - (size_t)used, "%s\"%s\": \"%s\"",
                         i > 0 ? ",\n" : "", folder_weights[i].name, name);
    }
    snprintf(index + used, sizeof index - (size_t)used, "}}\n");
    write_text(run, test_path(folder, "model.safetensors.index.json"), index);
}

static void index_of_shards(test_run *run)
{
    char folder[800];
    subject on = open_subject(run, "model.safetensors.index.json");
    snprintf(folder, sizeof folder, "%s/sharded", test_folder(run));
    make_sharded(&on, folder);
    load_good(&on, folder, "model.safetensors.index.json");
    try_mutants(&on, false, read_index);
    close_subject(&on);
}

static void models(test_run *run)
{
    static const char *const files[] = {"config.json", "generation_config.json"};
    char folder[800];
    prefer_memory_disk();
    snprintf(folder, sizeof folder, "%s/model", test_folder(run));
    CHECK(tiny_model_write(folder, "plain"));
    for (int i = 0; i < ESP_COUNT(files); i++) {
        subject on = open_subject(run, files[i]);
        CHECK_OK(esp_device_open(on.context, "ref", &on.device, error));
        load_good(&on, folder, files[i]);
        try_mutants(&on, false, read_model);
        close_subject(&on);
    }
}

static void tokenizers(test_run *run)
{
    static const char *const names[] = {"gpt2", "llama3", "qwen2", "bert"};
    char folder[800], path[1000];
    for (int i = 0; i < ESP_COUNT(names) + 1; i++) {
        char kind[64];
        char *text = NULL;
        size_t length = 0;
        snprintf(kind, sizeof kind, "tokenizer.json%s%s", i > 0 ? " like " : "",
                 i > 0 ? names[i - 1] : "");
        subject on = open_subject(run, kind);
        snprintf(folder, sizeof folder, "%s/tokenizer%d", test_folder(run), i);
        CHECK(tiny_model_write(folder, "plain"));
        if (i > 0) {
            snprintf(path, sizeof path, "%s/tests/golden/tokenizer/%s.tokenizer.json",
                     ESP_SOURCE_DIR, names[i - 1]);
            CHECK_OK(esp_file_read_all(on.context, path, 1 << 20, "x", &text, &length, error));
            test_write_file(run, test_path(folder, "tokenizer.json"), text, length);
            esp_release(on.context, text);
        }
        load_good(&on, folder, "tokenizer.json");
        try_mutants(&on, false, read_tokenizer);
        close_subject(&on);
    }
}

static const test_case cases[] = {
    {"dense weights", dense_weights},
    {"compressed weights", compressed_weights},
    {"compressed config", compressed_config},
    {"index of shards", index_of_shards},
    {"models", models},
    {"tokenizers", tokenizers},
};
TEST_MAIN(cases)
