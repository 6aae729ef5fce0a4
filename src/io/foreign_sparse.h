/* Sparse folders of other programs: reading what compressed-tensors wrote, and writing it. */
#ifndef ESP_IO_FOREIGN_SPARSE_H
#define ESP_IO_FOREIGN_SPARSE_H

#include "io/bitmask.h"
#include "io/folder.h"

/* foreign_config.c: whether the section of config.json says anything about sparsity. */
bool esp_foreign_has_sparsity(json_t *section);
/* foreign_config.c: section: "quantization_config" or the like, or the whole config of the oldest
 * folders. Fills form and weights; leaves both alone when the zeros lie in plain tensors. */
ESP_MUST_CHECK esp_status esp_foreign_read_config(esp_checkpoint *folder, json_t *section,
                                                  esp_error *error);
/* foreign_weights.c: gathers the parts of every compressed weight. ignore: list of layers that must
 * not be compressed, or NULL. */
ESP_MUST_CHECK esp_status esp_foreign_list_weights(esp_checkpoint *folder, esp_folder_form form,
                                                   json_t *ignore, esp_error *error);
/* foreign_weights.c: the dense form of a weight that is stored as a bitmask. */
ESP_MUST_CHECK esp_status esp_foreign_read_dense(const esp_checkpoint *folder,
                                                 const esp_weight *weight, esp_tensor *dense,
                                                 esp_error *error);
/* foreign_weights.c: the same as a canonical weight of its pattern. */
ESP_MUST_CHECK esp_status esp_foreign_read_sparse(const esp_checkpoint *folder,
                                                  const esp_weight *weight, esp_sparse **sparse,
                                                  esp_error *error);

#endif
