/* The two bitmask forms of compressed-tensors folders: one weight's parts and dense data.
 * docs/formats.md, "Foreign forms", draws them. */
#ifndef ESP_IO_BITMASK_H
#define ESP_IO_BITMASK_H

#include "io/io.h"

/* Parts in this order; sparse-24-bitmask has no row offsets. */
enum { ESP_BITMASK_SHAPE, ESP_BITMASK_VALUES, ESP_BITMASK_BITS, ESP_BITMASK_OFFSETS };
#define ESP_BITMASK_MAX_PARTS 4

/* "shape", "compressed", "bitmask", "row_offsets". */
const char *esp_bitmask_part_name(int part);
int esp_bitmask_part_count(esp_folder_form form);
/* Bytes of one row of bits. */
int64_t esp_bitmask_row_bytes(int64_t columns);
/* Fills parts as the form stores a matrix with `live` values (sparse-24-bitmask knows itself). */
void esp_bitmask_layout(esp_folder_form form, const esp_weight_info *weight, int64_t live,
                        esp_sparse_part parts[ESP_BITMASK_MAX_PARTS], int *count);

/* Checks the contents and writes the dense weight; -0.0 becomes +0.0. parts: with data, sizes fit
 * each other. A tensor of rank 1 is one row. Codes "foreign.*". */
ESP_MUST_CHECK esp_status esp_bitmask_decode(esp_folder_form form, const esp_sparse_part *parts,
                                             esp_tensor *dense, esp_error *error);
/* Fills the parts' data from a matrix. "foreign.does_not_fit" when a group of four has more than
 * two non-zeros; "foreign.value_count" when there are not as many as the layout has room for. */
ESP_MUST_CHECK esp_status esp_bitmask_encode(esp_folder_form form, const esp_tensor *dense,
                                             const esp_sparse_part *parts, esp_error *error);

#endif
