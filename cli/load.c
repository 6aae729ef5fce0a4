#include "load.h"

#include "explain.h"
#include "sizes.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TEXT_MAX_BYTES ((size_t)1 << 30)
#define MAX_KERNELS 16

/* A folder that prepares images and has no tokenizer takes no text. */
static esp_status check_text(const char *path, esp_error *error)
{
    char tokenizer[4096], processor[4096];
    snprintf(tokenizer, sizeof tokenizer, "%s/tokenizer.json", path);
    snprintf(processor, sizeof processor, "%s/preprocessor_config.json", path);
    if (access(tokenizer, F_OK) != 0 && access(processor, F_OK) == 0) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "run.needs_images",
                        "%s: takes images, not text; name images or, to judge it, give --images",
                        path);
    }
    return ESP_OK;
}

esp_status load_model(cli_state *cli, const char *path, bool with_tokenizer, loaded_model *loaded,
                      esp_error *error)
{
    TRY(cli_open_device(cli, error));
    TRY(esp_checkpoint_open(cli->context, path, &loaded->checkpoint, error));
    loaded->file_bytes = esp_checkpoint_file_bytes(loaded->checkpoint);
    if (with_tokenizer) {
        TRY(check_text(path, error));
        TRY(esp_tokenizer_open(cli->context, path, &loaded->tokenizer, error));
    }
    return load_opened(cli, loaded, error);
}

esp_status load_opened(cli_state *cli, loaded_model *loaded, esp_error *error)
{
    esp_model_options options = {.compute = (esp_compute)cli->common.compute,
                                 .kernel_glob = cli->common.kernel,
                                 .progress = progress_step,
                                 .user = &cli->progress,
                                 .tokens = cli->plan_tokens};
    if (cli->plan != NULL) {
        options.memory = (esp_memory)cli->plan->memory;
        options.require_sparse = cli->plan->require_sparse;
    }
    TRY(esp_model_load(cli->device, loaded->checkpoint, &options, &loaded->model, error));
    progress_end(&cli->progress);
    esp_model_get_info(loaded->model, &loaded->info);
    return ESP_OK;
}

void loaded_model_free(loaded_model *loaded)
{
    esp_model_free(loaded->model);
    esp_tokenizer_close(loaded->tokenizer);
    esp_checkpoint_close(loaded->checkpoint);
    *loaded = (loaded_model){0};
}

/* ---- memory of the device ---- */

esp_model_memory loaded_memory(const loaded_model *loaded)
{
    esp_model_memory memory;
    esp_model_get_memory(loaded->model, &memory);
    return memory;
}

void device_bytes_json(esp_model_memory memory, cli_record *record)
{
    cli_record bytes = record_object();
    record_int(&bytes, "weights", (int64_t)memory.weights);
    record_int(&bytes, "activations", (int64_t)memory.activations);
    record_child(record, "device_bytes", bytes);
}

const char *device_bytes_text(esp_model_memory memory, char text[DEVICE_BYTES_TEXT_MAX])
{
    char weights[SIZE_TEXT_MAX], activations[SIZE_TEXT_MAX];
    snprintf(text, DEVICE_BYTES_TEXT_MAX,
             "%s of weights, at most %s of activations, caches and workspaces",
             size_bytes((double)memory.weights, weights),
             size_bytes((double)memory.activations, activations));
    return text;
}

void device_bytes_note(const cli_state *cli, const loaded_model *loaded)
{
    char text[DEVICE_BYTES_TEXT_MAX];
    if (device_is_gpu(cli->device) && !cli->common.quiet) {
        fprintf(stderr, "espalier: memory of %s: %s\n", esp_device_name(cli->device),
                device_bytes_text(loaded_memory(loaded), text));
    }
}

/* ---- text files ---- */

static esp_status read_failed(const char *path, int why, esp_error *error)
{
    if (interrupted()) {
        return cli_fail(error, ESP_CANCELLED, "cancelled", "reading %s was interrupted", path);
    }
    if (why == ENOENT || why == ENOTDIR || why == EACCES || why == EISDIR) {
        return cli_fail(error, ESP_BAD_FILE, "text.unreadable", "%s: %s; a text file was expected",
                        path, strerror(why));
    }
    return cli_fail(error, ESP_IO, "text.read_failed", "%s: %s", path, strerror(why));
}

static esp_status read_to_end(int descriptor, const char *path, char **text, size_t *length,
                              esp_error *error)
{
    size_t used = 0, capacity = 0;
    char *data = NULL;
    for (;;) {
        if (used == capacity) {
            capacity = capacity * 2 + 65536;
            char *grown = capacity <= 2 * TEXT_MAX_BYTES ? realloc(data, capacity) : NULL;
            if (grown == NULL) {
                free(data);
                return cli_fail_memory(error, path);
            }
            data = grown;
        }
        ssize_t got = read(descriptor, data + used, capacity - used);
        if (got == 0) {
            break;
        }
        if (got < 0 && (errno != EINTR || interrupted())) {
            int why = errno;
            free(data);
            return read_failed(path, why, error);
        }
        used += got > 0 ? (size_t)got : 0;
        if (used > TEXT_MAX_BYTES) {
            free(data);
            return cli_fail(error, ESP_BAD_FILE, "text.too_large",
                            "%s: is larger than 1 GiB; give a part of it", path);
        }
    }
    *text = data;
    *length = used;
    return ESP_OK;
}

esp_status load_text(const char *path, char **text, size_t *length, esp_error *error)
{
    if (strcmp(path, "-") == 0) {
        return read_to_end(STDIN_FILENO, "standard input", text, length, error);
    }
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) {
        return read_failed(path, errno, error);
    }
    esp_status status = read_to_end(descriptor, path, text, length, error);
    close(descriptor);
    return status;
}

esp_status load_prose(const char *path, char **text, size_t *length, esp_error *error)
{
    TRY(load_text(path, text, length, error));
    const char *zero = memchr(*text, '\0', *length);
    return zero == NULL
               ? ESP_OK
               : cli_fail(error, ESP_BAD_FILE, "text.not_text",
                          "%s: byte %lld is 0, so this is no text; a text in UTF-8 was expected",
                          path, (long long)(zero - *text));
}

/* ---- kernels ---- */

const char *model_compute(const esp_model_info *info)
{
    switch (info->activations) {
    case ESP_F16:
        return "f16";
    case ESP_BF16:
        return "bf16";
    default:
        return esp_compute_name(info->compute);
    }
}

const char *model_kernels_text(const esp_model *model, esp_model_call call,
                               char text[KERNELS_TEXT_MAX])
{
    const char *names[MAX_KERNELS];
    int counts[MAX_KERNELS];
    int total = esp_model_kernels(model, call, names, counts, MAX_KERNELS);
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; i < total && i < MAX_KERNELS && used < KERNELS_TEXT_MAX; i++) {
        used += (size_t)snprintf(text + used, KERNELS_TEXT_MAX - used, "%s%s x%d",
                                 i > 0 ? ", " : "", names[i], counts[i]);
    }
    return text;
}

cli_record model_kernels_json(const esp_model *model, esp_model_call call)
{
    const char *names[MAX_KERNELS];
    int counts[MAX_KERNELS];
    int total = esp_model_kernels(model, call, names, counts, MAX_KERNELS);
    cli_record list = record_list();
    for (int i = 0; i < total && i < MAX_KERNELS; i++) {
        cli_record kernel = record_object();
        record_text(&kernel, "name", names[i]);
        record_int(&kernel, "layers", counts[i]);
        record_add(&list, kernel);
    }
    return list;
}
