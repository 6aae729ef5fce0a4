/* A model with all that belongs to it, and text files. */
#ifndef CLI_LOAD_H
#define CLI_LOAD_H

#include <string.h>

#include "cli.h"
#include "output.h"

typedef struct loaded_model {
    esp_checkpoint *checkpoint;
    esp_tokenizer *tokenizer; /* NULL when not asked for */
    esp_model *model;
    esp_model_info info;
    uint64_t file_bytes;
} loaded_model;

/* loaded: zero; it is to be freed after a failure too. */
ESP_MUST_CHECK esp_status load_model(cli_state *cli, const char *path, bool with_tokenizer,
                                     loaded_model *loaded, esp_error *error);
/* The same of a checkpoint that is open already: loaded->checkpoint, else zero. */
ESP_MUST_CHECK esp_status load_opened(cli_state *cli, loaded_model *loaded, esp_error *error);
void loaded_model_free(loaded_model *loaded);

/* Bytes of its device that the model has taken so far. */
esp_model_memory loaded_memory(const loaded_model *loaded);
/* device_bytes: {weights, activations}. */
void device_bytes_json(esp_model_memory memory, cli_record *record);
/* "1.20 GB of weights, at most 310.00 MB of activations, caches and workspaces". */
#define DEVICE_BYTES_TEXT_MAX 160
const char *device_bytes_text(esp_model_memory memory, char text[DEVICE_BYTES_TEXT_MAX]);
/* The same as a line on stderr, where the device is a GPU; behind all that the model does. */
void device_bytes_note(const cli_state *cli, const loaded_model *loaded);

static inline bool device_is_gpu(const esp_device *device)
{
    return strncmp(esp_device_name(device), "cuda:", strlen("cuda:")) == 0;
}

/* Whole file, or stdin for "-"; *text is to be freed. At most 1 GiB. */
ESP_MUST_CHECK esp_status load_text(const char *path, char **text, size_t *length,
                                    esp_error *error);
/* The same, and no file of bytes that are none: "text.not_text"; *text may be there all the same.
 */
ESP_MUST_CHECK esp_status load_prose(const char *path, char **text, size_t *length,
                                     esp_error *error);

/* The type to which inputs of products are rounded: that of activations where they are narrower
 * than what --compute became. */
const char *model_compute(const esp_model_info *info);

/* "matmul_panel_bf16 x28, matmul_dense_bf16 x1": kernels of the linear layers at a token count. */
#define KERNELS_TEXT_MAX 512
const char *model_kernels_text(const esp_model *model, esp_model_call call,
                               char text[KERNELS_TEXT_MAX]);
cli_record model_kernels_json(const esp_model *model, esp_model_call call);

#endif
