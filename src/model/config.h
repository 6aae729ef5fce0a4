/* config.json of the Llama family as plain numbers, every one of them checked. */
#ifndef ESP_MODEL_CONFIG_H
#define ESP_MODEL_CONFIG_H

#include "nn/nn.h"

#define ESP_MAX_EOS 16

typedef struct esp_llama_config {
    char architecture[64];
    int64_t vocabulary, hidden, intermediate, layers, heads, kv_heads, head_dim, context;
    float rms_norm_eps;
    bool tied, attention_bias, mlp_bias;
    esp_rope_config rope;
    int32_t bos; /* -1: none */
    int32_t eos[ESP_MAX_EOS];
    int eos_count;
} esp_llama_config;

/* What the readers of a part share: the object and the file's name for messages. */
typedef struct esp_config_file {
    const char *path;
    const json_t *json;
} esp_config_file;

/* text: config.json; path: for messages. Codes "config.*". Unknown keys are ignored. */
ESP_MUST_CHECK esp_status esp_llama_config_parse(const char *text, const char *path,
                                                 esp_llama_config *config, esp_error *error);
/* rope_parameters, or rope_theta with rope_scaling. */
ESP_MUST_CHECK esp_status esp_llama_config_rope(const esp_config_file *file, esp_rope_config *rope,
                                                esp_error *error);
/* Replaces config's eos by that of generation_config.json when the folder has one that names it. */
ESP_MUST_CHECK esp_status esp_llama_config_generation(esp_context *context, const char *folder,
                                                      esp_llama_config *config, esp_error *error);

/* Members of an object. An absent or null one leaves *value alone, unless required
 * ("config.missing_key"); another type is "config.bad_type", out of range "config.bad_value". */
ESP_MUST_CHECK esp_status esp_config_integer(const esp_config_file *file, const char *key,
                                             bool required, int64_t low, int64_t high,
                                             int64_t *value, esp_error *error);
/* A finite number > low. */
ESP_MUST_CHECK esp_status esp_config_number(const esp_config_file *file, const char *key,
                                            bool required, double low, double *value,
                                            esp_error *error);
ESP_MUST_CHECK esp_status esp_config_bool(const esp_config_file *file, const char *key, bool *value,
                                          esp_error *error);
/* The string lives as long as the JSON. */
ESP_MUST_CHECK esp_status esp_config_string(const esp_config_file *file, const char *key,
                                            const char **value, esp_error *error);

#endif
