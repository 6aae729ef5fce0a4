/* checkpoint.h - model folders and safetensors files: strict reading, whole-or-nothing writing.
 *
 * Everything read is untrusted. What is refused, and by which code, is listed in
 * docs/refused-inputs.md. */
#ifndef ESPALIER_CHECKPOINT_H
#define ESPALIER_CHECKPOINT_H

#include <espalier/sparse.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- one safetensors file ---- */

typedef struct esp_safetensors esp_safetensors;

typedef struct esp_tensor_info {
    const char *name; /* owned by the file handle */
    esp_dtype dtype;
    int rank; /* 0..64 */
    const int64_t *shape;
    uint64_t file_offset; /* of the first data byte in the file */
    uint64_t bytes;
} esp_tensor_info;

/* Validates the whole header before returning; data is read by pread when asked for. */
ESP_MUST_CHECK ESP_API esp_status esp_safetensors_open(esp_context *context, const char *path,
                                                       esp_safetensors **file, esp_error *error);
ESP_API void esp_safetensors_close(esp_safetensors *file);
ESP_API int64_t esp_safetensors_count(const esp_safetensors *file);
/* In order of file offset. */
ESP_API esp_tensor_info esp_safetensors_get(const esp_safetensors *file, int64_t index);
/* -1 when absent. */
ESP_API int64_t esp_safetensors_find(const esp_safetensors *file, const char *name);
/* NULL when absent. */
ESP_API const char *esp_safetensors_metadata(const esp_safetensors *file, const char *key);
/* Copies all bytes of a tensor to buffer (tensor_info.bytes long, any alignment). */
ESP_MUST_CHECK ESP_API esp_status esp_safetensors_read(const esp_safetensors *file, int64_t index,
                                                       void *buffer, esp_error *error);

/* Writes a file of tensors (data as declared, any memory): under another name, synced, renamed.
 * "file.exists" if it is there. */
ESP_MUST_CHECK ESP_API esp_status esp_safetensors_write(esp_context *context, const char *path,
                                                        const char *const *names,
                                                        const esp_tensor *tensors, int count,
                                                        esp_error *error);

/* ---- a model folder: config.json + one or several safetensors, dense or compressed ---- */

typedef struct esp_checkpoint esp_checkpoint;

/* A logical tensor: a compressed weight is one entry, whatever parts it is stored in. */
typedef struct esp_weight_info {
    const char *name; /* as the model calls it, e.g. "model.layers.0.mlp.up_proj.weight" */
    esp_dtype dtype;
    int rank;
    int64_t shape[ESP_MAX_RANK]; /* dense shape */
    esp_pattern pattern;         /* kind DENSE when stored plain */
    size_t dense_bytes, stored_bytes;
    bool has_crc32c;
    uint32_t crc32c; /* as promised by config.json; valid if has_crc32c */
} esp_weight_info;

/* path: a folder with config.json, and model.safetensors or model.safetensors.index.json. A lone
 * .safetensors file is accepted too (no config). pickle (.bin), GGUF and others are refused by
 * name, with the remedy. */
ESP_MUST_CHECK ESP_API esp_status esp_checkpoint_open(esp_context *context, const char *path,
                                                      esp_checkpoint **checkpoint,
                                                      esp_error *error);
ESP_API void esp_checkpoint_close(esp_checkpoint *checkpoint);
ESP_API const char *esp_checkpoint_path(const esp_checkpoint *checkpoint);
/* The text of config.json; NULL for a lone file. */
ESP_API const char *esp_checkpoint_config(const esp_checkpoint *checkpoint);
ESP_API int64_t esp_checkpoint_count(const esp_checkpoint *checkpoint);
/* Sorted by file, then by offset. */
ESP_API esp_weight_info esp_checkpoint_get(const esp_checkpoint *checkpoint, int64_t index);
ESP_API int64_t esp_checkpoint_find(const esp_checkpoint *checkpoint, const char *name);
/* Size of all safetensors files together, headers included. */
ESP_API uint64_t esp_checkpoint_file_bytes(const esp_checkpoint *checkpoint);
/* True when config.json carries our quantization_config. */
ESP_API bool esp_checkpoint_is_compressed(const esp_checkpoint *checkpoint);

/* Whose way of storing compressed weights a folder follows. The other two are those of
 * compressed-tensors (docs/formats.md, "Foreign forms"). Weights of a sparse-24-bitmask folder have
 * the pattern 2:4; those of a sparse-bitmask folder read as dense weights with zeros, their
 * stored_bytes being what the files hold. */
typedef enum esp_folder_form {
    ESP_FORM_ESPALIER = 0, /* ours, and plain folders */
    ESP_FORM_SPARSE_24_BITMASK,
    ESP_FORM_SPARSE_BITMASK
} esp_folder_form;
ESP_API esp_folder_form esp_checkpoint_form(const esp_checkpoint *checkpoint);
/* Dense form into caller's memory (dtype and shape as in esp_weight_info); decodes if compressed.
 */
ESP_MUST_CHECK ESP_API esp_status esp_checkpoint_read_dense(const esp_checkpoint *checkpoint,
                                                            int64_t index, esp_tensor *dense,
                                                            esp_error *error);
/* As stored (kind DENSE for plain rank-2 weights); contents and checksum verified. */
ESP_MUST_CHECK ESP_API esp_status esp_checkpoint_read_sparse(const esp_checkpoint *checkpoint,
                                                             int64_t index, esp_sparse **sparse,
                                                             esp_error *error);

/* ---- writing a folder: declared first, streamed tensor by tensor, renamed into place at the end
 * ---- */

typedef struct esp_checkpoint_writer esp_checkpoint_writer;

/* Will make target_dir, carrying over from source (an open checkpoint of a folder) config.json,
 * tokenizer and the like; source may be closed before the writer. Refuses an existing target
 * ("checkpoint.exists") unless force and it is a folder that espalier made ("checkpoint.not_ours"
 * otherwise). Nothing is visible at target_dir before finish. */
ESP_MUST_CHECK ESP_API esp_status esp_checkpoint_writer_create(esp_context *context,
                                                               const esp_checkpoint *source,
                                                               const char *target_dir, bool force,
                                                               esp_checkpoint_writer **writer,
                                                               esp_error *error);
/* Declares a tensor before begin. Rank-2 with any pattern; other ranks must be dense. Of the info,
 * stored_bytes tells whether a row order will be stored: 0, or the layout's size without one or
 * with one (as esp_sparse_bytes and the info of an open checkpoint say); anything else is refused.
 */
ESP_MUST_CHECK ESP_API esp_status esp_checkpoint_writer_declare(esp_checkpoint_writer *writer,
                                                                const esp_weight_info *weight,
                                                                esp_error *error);
/* Stores compressed weights in another program's form. Before the first declare. A weight declared
 * as 2:4 becomes a part of sparse-24-bitmask and is written as such (write_sparse; in a multiple of
 * 4); one declared as unstructured becomes a part of sparse-bitmask, is written by write_dense, and
 * its stored_bytes say how many non-zeros will come:
 * nonzeros * bytes of dtype + out * (ceil(in / 8) + 8) + 16. */
ESP_MUST_CHECK ESP_API esp_status esp_checkpoint_writer_set_form(esp_checkpoint_writer *writer,
                                                                 esp_folder_form form,
                                                                 esp_error *error);
/* Starts another file whenever the tensors of one would take more than shard_bytes (0: never). A
 * weight's parts stay together; one that is larger has a file to itself. Before the first declare.
 */
ESP_MUST_CHECK ESP_API esp_status esp_checkpoint_writer_set_shard_bytes(
    esp_checkpoint_writer *writer, uint64_t shard_bytes, esp_error *error);
/* Checks free disk, writes the header. */
ESP_MUST_CHECK ESP_API esp_status esp_checkpoint_writer_begin(esp_checkpoint_writer *writer,
                                                              esp_error *error);
/* Each declared tensor once, in any order. */
ESP_MUST_CHECK ESP_API esp_status esp_checkpoint_writer_write_dense(esp_checkpoint_writer *writer,
                                                                    const char *name,
                                                                    const esp_tensor *dense,
                                                                    esp_error *error);
ESP_MUST_CHECK ESP_API esp_status esp_checkpoint_writer_write_sparse(esp_checkpoint_writer *writer,
                                                                     const char *name,
                                                                     const esp_sparse *sparse,
                                                                     esp_error *error);
/* Syncs everything and renames into place. The writer is still to be freed. */
ESP_MUST_CHECK ESP_API esp_status esp_checkpoint_writer_finish(esp_checkpoint_writer *writer,
                                                               esp_error *error);
/* Without a finish: removes what was written and leaves the target as it was. */
ESP_API void esp_checkpoint_writer_free(esp_checkpoint_writer *writer);

#ifdef __cplusplus
}
#endif
#endif
