/* Writing bitmask weights: sizes when they are declared, bytes when they come, config at the end.
 */
#ifndef ESP_IO_FOREIGN_WRITE_H
#define ESP_IO_FOREIGN_WRITE_H

#include "io/bitmask.h"
#include "io/checkpoint_writer.h"

/* Fills parts of a weight declared with a pattern in a foreign form; finds how many values it has.
 * "checkpoint.wrong_form" when the form does not take it, "checkpoint.wrong_size". */
ESP_MUST_CHECK esp_status esp_foreign_layout(esp_folder_form form, const esp_weight_info *weight,
                                             esp_sparse_part parts[ESP_BITMASK_MAX_PARTS],
                                             int *count, esp_error *error);
/* Writes the parts of such a weight from its dense form. */
ESP_MUST_CHECK esp_status esp_foreign_write(esp_checkpoint_writer *writer, esp_promised *weight,
                                            const esp_tensor *dense, esp_error *error);
/* The text of "quantization_config"; false when no weight is compressed. */
bool esp_foreign_print_config(const esp_checkpoint_writer *writer, esp_buffer *text);

#endif
