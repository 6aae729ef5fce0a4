/* config.json of timm's folders, said as Hugging Face's classes say it. */
#ifndef ESP_MODEL_TIMM_CONFIG_H
#define ESP_MODEL_TIMM_CONFIG_H

#include "model/config_value.h"

/* A key that a translated object has besides: timm's name of the architecture. */
#define ESP_TIMM_MARK "timm_architecture"

bool esp_timm_config_is(const json_t *json);
/* The model as ViT or DeiT. "config.unsupported_architecture" for a name of which too little is
 * known, "config.unsupported_timm", and the codes of reading. */
ESP_MUST_CHECK esp_status esp_timm_config_translate(const esp_config_file *file, json_t **config,
                                                    esp_error *error);
/* How its images are prepared, as a preprocessor_config.json says it, but that an odd number of
 * pixels is cut off as timm does it. */
ESP_MUST_CHECK esp_status esp_timm_preprocessor(const esp_config_file *file, json_t **config,
                                                esp_error *error);

#endif
