/* config.json of the Llama family, read strictly: every number has a range, so that nothing is ever
 * allocated from a hostile one, and what would change the result but is not implemented is refused.
 */
#include "model/config.h"

/* uses_window: what "use_sliding_window" means where it is absent. */
static esp_status refuse_variants(const esp_config_file *file, bool uses_window, esp_error *error)
{
    const char *activation = NULL;
    ESP_TRY(esp_config_string(file, "hidden_act", &activation, error));
    if (activation != NULL && strcmp(activation, "silu") != 0) {
        return esp_fail(error, ESP_UNSUPPORTED, "config.unsupported_activation",
                        "%s: hidden_act \"%.64s\" is not supported, only silu", file->path,
                        activation);
    }
    int64_t window = 0;
    ESP_TRY(esp_config_integer(file, "sliding_window", false, 0, INT64_MAX, &window, error));
    ESP_TRY(esp_config_bool(file, "use_sliding_window", &uses_window, error));
    if (window > 0 && uses_window) {
        return esp_fail(error, ESP_UNSUPPORTED, "config.unsupported_sliding_window",
                        "%s: sliding_window %lld: attention with a window is not supported",
                        file->path, (long long)window);
    }
    const json_t *types = json_object_get(file->json, "layer_types");
    for (size_t i = 0; i < json_array_size(types); i++) {
        const char *type = json_string_value(json_array_get(types, i));
        if (type == NULL || strcmp(type, "full_attention") != 0) {
            return esp_fail(error, ESP_UNSUPPORTED, "config.unsupported_sliding_window",
                            "%s: layer_types has \"%.64s\" for layer %zu: only full_attention is "
                            "supported",
                            file->path, type != NULL ? type : "", i);
        }
    }
    return ESP_OK;
}

static esp_status read_sizes(const esp_config_file *file, esp_llama_config *config,
                             esp_error *error)
{
    const struct {
        const char *key;
        int64_t high;
        int64_t *value;
    } sizes[] = {
        {"vocab_size", ESP_MAX_VOCABULARY, &config->vocabulary},
        {"hidden_size", ESP_MAX_FEATURES, &config->hidden},
        {"intermediate_size", ESP_MAX_FEATURES, &config->intermediate},
        {"num_hidden_layers", ESP_MAX_LAYERS, &config->layers},
        {"num_attention_heads", ESP_MAX_HEADS, &config->heads},
        {"max_position_embeddings", INT32_MAX, &config->context},
    };
    for (int i = 0; i < ESP_COUNT(sizes); i++) {
        ESP_TRY(
            esp_config_integer(file, sizes[i].key, true, 1, sizes[i].high, sizes[i].value, error));
    }
    config->kv_heads = config->heads;
    return esp_config_integer(file, "num_key_value_heads", false, 1, ESP_MAX_HEADS,
                              &config->kv_heads, error);
}

static esp_status read_heads(const esp_config_file *file, esp_llama_config *config,
                             esp_error *error)
{
    config->head_dim = 0;
    ESP_TRY(
        esp_config_integer(file, "head_dim", false, 1, ESP_MAX_HEAD_DIM, &config->head_dim, error));
    if (config->head_dim == 0 && config->hidden % config->heads != 0) {
        return esp_fail(
            error, ESP_BAD_FILE, "config.heads_divide_hidden",
            "%s: hidden_size %lld is no multiple of num_attention_heads %lld, and there "
            "is no head_dim",
            file->path, (long long)config->hidden, (long long)config->heads);
    }
    if (config->head_dim == 0) {
        config->head_dim = config->hidden / config->heads;
    }
    if (config->head_dim % 2 != 0 || config->head_dim > ESP_MAX_HEAD_DIM) {
        return esp_fail(error, ESP_BAD_FILE, "config.bad_value",
                        "%s: heads of %lld features; rotary positions need an even number, at most "
                        "%d",
                        file->path, (long long)config->head_dim, ESP_MAX_HEAD_DIM);
    }
    if (config->heads % config->kv_heads != 0) {
        return esp_fail(error, ESP_BAD_FILE, "config.kv_heads_divide_heads",
                        "%s: num_attention_heads %lld is no multiple of num_key_value_heads %lld",
                        file->path, (long long)config->heads, (long long)config->kv_heads);
    }
    return ESP_OK;
}

static esp_status read_token(const esp_config_file *file, const char *key, const json_t *value,
                             int32_t *id, esp_error *error)
{
    json_int_t number = json_is_integer(value) ? json_integer_value(value) : -1;
    if (!json_is_integer(value)) {
        return esp_fail(error, ESP_BAD_FILE, "config.bad_type", "%s: \"%s\" must be an integer%s",
                        file->path, key, key[0] == 'e' ? " or a list of integers" : "");
    }
    if (number < 0 || number > INT32_MAX) {
        return esp_fail(error, ESP_BAD_FILE, "config.bad_value",
                        "%s: \"%s\" holds %lld, which is no token id", file->path, key,
                        (long long)number);
    }
    *id = (int32_t)number;
    return ESP_OK;
}

/* An integer, a list of them, or null. *found: there was one. */
static esp_status read_eos(const esp_config_file *file, esp_llama_config *config, bool *found,
                           esp_error *error)
{
    const json_t *value = json_object_get(file->json, "eos_token_id");
    *found = value != NULL && !json_is_null(value);
    if (!*found) {
        return ESP_OK;
    }
    bool list = json_is_array(value);
    size_t count = list ? json_array_size(value) : 1;
    if (count > ESP_MAX_EOS) {
        return esp_fail(error, ESP_BAD_FILE, "config.bad_value",
                        "%s: \"eos_token_id\" lists %zu tokens, at most %d are accepted",
                        file->path, count, ESP_MAX_EOS);
    }
    for (size_t i = 0; i < count; i++) {
        ESP_TRY(read_token(file, "eos_token_id", list ? json_array_get(value, i) : value,
                           &config->eos[i], error));
    }
    config->eos_count = (int)count;
    return ESP_OK;
}

static esp_status read_tokens(const esp_config_file *file, esp_llama_config *config,
                              esp_error *error)
{
    bool found;
    const json_t *bos = json_object_get(file->json, "bos_token_id");
    config->bos = -1;
    if (bos != NULL && !json_is_null(bos)) {
        ESP_TRY(read_token(file, "bos_token_id", bos, &config->bos, error));
    }
    return read_eos(file, config, &found, error);
}

static esp_status read_common(const esp_config_file *file, esp_llama_config *config,
                              esp_error *error)
{
    double eps = 0;
    ESP_TRY(read_sizes(file, config, error));
    ESP_TRY(read_heads(file, config, error));
    ESP_TRY(esp_config_number(file, "rms_norm_eps", true, ESP_MIN_EPS, &eps, error));
    config->rms_norm_eps = (float)eps;
    ESP_TRY(esp_config_bool(file, "tie_word_embeddings", &config->tied, error));
    ESP_TRY(esp_llama_config_rope(file, &config->rope, error));
    return read_tokens(file, config, error);
}

esp_status esp_llama_config_read(const esp_config_file *file, esp_llama_config *config,
                                 esp_error *error)
{
    esp_llama_config read = {0};
    ESP_TRY(refuse_variants(file, true, error));
    ESP_TRY(read_common(file, &read, error));
    ESP_TRY(esp_config_bool(file, "attention_bias", &read.qkv_bias, error));
    read.o_bias = read.qkv_bias;
    ESP_TRY(esp_config_bool(file, "mlp_bias", &read.mlp_bias, error));
    *config = read;
    return ESP_OK;
}

esp_status esp_qwen2_config_read(const esp_config_file *file, esp_llama_config *config,
                                 esp_error *error)
{
    esp_llama_config read = {0};
    ESP_TRY(refuse_variants(file, false, error));
    ESP_TRY(read_common(file, &read, error));
    read.qkv_bias = true;
    *config = read;
    return ESP_OK;
}

esp_status esp_llama_config_generation(esp_context *context, const char *folder,
                                       esp_llama_config *config, esp_error *error)
{
    esp_buffer path;
    esp_buffer_init(&path, context);
    esp_buffer_printf(&path, "%s/generation_config.json", folder);
    if (path.failed) {
        esp_buffer_free(&path);
        return esp_fail_memory(error, strlen(folder), "a path");
    }
    esp_status status = ESP_OK;
    json_t *json = NULL;
    esp_llama_config read = *config;
    bool found = false;
    if (esp_path_exists(path.data)) {
        status = esp_json_load(context, path.data, 1 << 20, &json, NULL, error);
    }
    if (json != NULL) {
        esp_config_file file = {path.data, json};
        status = read_eos(&file, &read, &found, error);
        json_decref(json);
    }
    if (status == ESP_OK && found) {
        *config = read;
    }
    esp_buffer_free(&path);
    return status;
}
