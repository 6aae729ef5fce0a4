/* config.json of the Llama family as plain numbers, every one of them checked. */
#ifndef ESP_MODEL_CONFIG_H
#define ESP_MODEL_CONFIG_H

#include "model/config_value.h"
#include "nn/nn.h"

#define ESP_MAX_EOS 16

typedef struct esp_llama_config {
    int64_t vocabulary, hidden, intermediate, layers, heads, kv_heads, head_dim, context;
    float rms_norm_eps;
    bool tied, qkv_bias, o_bias, mlp_bias;
    esp_rope_config rope;
    int32_t bos; /* -1: none */
    int32_t eos[ESP_MAX_EOS];
    int eos_count;
} esp_llama_config;

/* Codes "config.*". Unknown keys are ignored. */
ESP_MUST_CHECK esp_status esp_llama_config_read(const esp_config_file *file,
                                                esp_llama_config *config, esp_error *error);
/* The same for Qwen2, which has biases on q, k and v alone, and a window only if
 * use_sliding_window. */
ESP_MUST_CHECK esp_status esp_qwen2_config_read(const esp_config_file *file,
                                                esp_llama_config *config, esp_error *error);
/* rope_parameters, or rope_theta with rope_scaling. */
ESP_MUST_CHECK esp_status esp_llama_config_rope(const esp_config_file *file, esp_rope_config *rope,
                                                esp_error *error);
/* Replaces config's eos by that of generation_config.json when the folder has one that names it. */
ESP_MUST_CHECK esp_status esp_llama_config_generation(esp_context *context, const char *folder,
                                                      esp_llama_config *config, esp_error *error);

#endif
