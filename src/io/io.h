/* The door of src/io: files in and out.
 *
 * Everything read here is untrusted: sizes are checked before they are used, nothing is allocated
 * from a number that the file's own bytes do not back, and a fault is refused, never repaired. */
#ifndef ESP_SRC_IO_H
#define ESP_SRC_IO_H

#include <espalier/checkpoint.h>

#include "base/base.h"
#include "format/format.h"
#include "tensor/tensor.h"

/* Newest "format_version" of a compressed folder that this build reads, and the one it writes. */
#define ESP_FOLDER_FORMAT_VERSION 1

/* The file that says a folder was made by espalier. */
#define ESP_MARKER_FILE "espalier.json"

/* "sparse-24-bitmask"; "espalier" for our own form. */
const char *esp_form_name(esp_folder_form form);
/* Whether a tensor lies in the files as it is, not as parts. */
bool esp_checkpoint_is_plain(const esp_checkpoint *checkpoint, int64_t index);
/* What a matrix with `live` non-zeros takes in a foreign form, all parts together. The dense weight
 * exists, so nothing overflows. */
size_t esp_bitmask_bytes(esp_folder_form form, esp_dtype dtype, int64_t out_features,
                         int64_t in_features, int64_t live);

/* Says in the new folder's marker how it was made: a member `name` with the JSON text `value`,
 * which readers of the marker pass over. Before finish. */
ESP_MUST_CHECK esp_status esp_checkpoint_writer_record(esp_checkpoint_writer *writer,
                                                       const char *name, const char *value,
                                                       esp_error *error);
/* A remark that the "quantization_config" of a written folder keeps under a key of its own, as JSON
 * text: known keys are "permutation". Before begin; left out where nothing is compressed. */
ESP_MUST_CHECK esp_status esp_checkpoint_writer_note(esp_checkpoint_writer *writer, const char *key,
                                                     const char *json, esp_error *error);

/* A number, and a truth, of the new config.json (config_text.h). Before begin. */
ESP_MUST_CHECK esp_status esp_checkpoint_writer_set_integer(esp_checkpoint_writer *writer,
                                                            const char *section, const char *key,
                                                            int64_t value, esp_error *error);
ESP_MUST_CHECK esp_status esp_checkpoint_writer_set_bool(esp_checkpoint_writer *writer,
                                                         const char *section, const char *key,
                                                         bool value, esp_error *error);

/* ---- weights that no file has ---- */

/* Makes them when they are read. to: memory as the info says. */
typedef struct esp_weight_maker {
    esp_status (*dense)(void *user, const esp_weight_info *weight, esp_tensor *to,
                        esp_error *error);
    esp_status (*sparse)(void *user, const esp_weight_info *weight, esp_sparse **sparse,
                         esp_error *error);
    void (*release)(void *user);
} esp_weight_maker;

/* A checkpoint of folder's config.json that has no weights yet; takes user over, on failure too. */
ESP_MUST_CHECK esp_status esp_checkpoint_make(esp_context *context, const char *folder,
                                              const esp_weight_maker *maker, void *user,
                                              esp_checkpoint **checkpoint, esp_error *error);
/* Once, before anything is read; names are copied. */
ESP_MUST_CHECK esp_status esp_checkpoint_set_weights(esp_checkpoint *checkpoint,
                                                     const esp_weight_info *infos, int64_t count,
                                                     esp_error *error);
/* Whether it is one. */
bool esp_checkpoint_is_made(const esp_checkpoint *checkpoint);
/* From now on the weight is stored so. */
ESP_MUST_CHECK esp_status esp_checkpoint_set_pattern(esp_checkpoint *checkpoint, int64_t index,
                                                     const esp_pattern *pattern, esp_error *error);

/* ---- writing one safetensors file: all sizes first, then the data in any order ---- */

typedef struct esp_safetensors_writer esp_safetensors_writer;

ESP_MUST_CHECK esp_status esp_safetensors_writer_create(esp_context *context,
                                                        esp_safetensors_writer **writer,
                                                        esp_error *error);
/* Copies name and shape. "safetensors.bad_name" for a name that no file may hold. */
ESP_MUST_CHECK esp_status esp_safetensors_writer_declare(esp_safetensors_writer *writer,
                                                         const char *name, const esp_tensor *tensor,
                                                         esp_error *error);
/* Orders the tensors, places them and makes the header; no file is touched. *bytes: the whole file.
 * "safetensors.declared_twice" when a name occurs twice. */
ESP_MUST_CHECK esp_status esp_safetensors_writer_place(esp_safetensors_writer *writer,
                                                       uint64_t *bytes, esp_error *error);
/* Makes the file (it must not exist) and writes the header. */
ESP_MUST_CHECK esp_status esp_safetensors_writer_begin(esp_safetensors_writer *writer,
                                                       const char *path, esp_error *error);
/* Each declared tensor once, any order; data as declared. */
ESP_MUST_CHECK esp_status esp_safetensors_writer_write(esp_safetensors_writer *writer,
                                                       const char *name, const void *data,
                                                       esp_error *error);
/* Brings the file to disk; "safetensors.not_written" when a tensor is missing. */
ESP_MUST_CHECK esp_status esp_safetensors_writer_finish(esp_safetensors_writer *writer,
                                                        esp_error *error);
/* Closes; what was written stays where it is. */
void esp_safetensors_writer_free(esp_safetensors_writer *writer);

#endif
