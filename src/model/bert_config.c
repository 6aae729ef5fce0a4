/* config.json of BERT, read strictly: every number has a range, and what would change the result
 * but is not implemented is refused. */
#include "model/bert.h"

static esp_status read_sizes(const esp_config_file *file, esp_bert_config *config, esp_error *error)
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
        {"max_position_embeddings", ESP_MAX_FEATURES, &config->positions},
        {"type_vocab_size", ESP_MAX_FEATURES, &config->types},
    };
    for (int i = 0; i < ESP_COUNT(sizes); i++) {
        ESP_TRY(
            esp_config_integer(file, sizes[i].key, true, 1, sizes[i].high, sizes[i].value, error));
    }
    if (config->hidden % config->heads != 0) {
        return esp_fail(error, ESP_BAD_FILE, "config.heads_divide_hidden",
                        "%s: hidden_size %lld is no multiple of num_attention_heads %lld",
                        file->path, (long long)config->hidden, (long long)config->heads);
    }
    return ESP_OK;
}

static esp_status read_activation(const esp_config_file *file, unsigned *activation,
                                  esp_error *error)
{
    static const struct {
        const char *name;
        unsigned epilogue;
    } known[] = {{"gelu", ESP_EP_GELU},           {"gelu_python", ESP_EP_GELU},
                 {"gelu_new", ESP_EP_GELU_TANH},  {"gelu_pytorch_tanh", ESP_EP_GELU_TANH},
                 {"gelu_fast", ESP_EP_GELU_TANH}, {"relu", ESP_EP_RELU},
                 {"silu", ESP_EP_SILU},           {"swish", ESP_EP_SILU}};
    const char *name = NULL;
    ESP_TRY(esp_config_string(file, "hidden_act", &name, error));
    if (name == NULL) {
        return esp_fail(error, ESP_BAD_FILE, "config.missing_key",
                        "%s: \"hidden_act\" is missing, and no value may be assumed for it",
                        file->path);
    }
    for (int i = 0; i < ESP_COUNT(known); i++) {
        if (strcmp(known[i].name, name) == 0) {
            *activation = known[i].epilogue;
            return ESP_OK;
        }
    }
    return esp_fail(error, ESP_UNSUPPORTED, "config.unsupported_activation",
                    "%s: hidden_act \"%.64s\" is not supported; known are gelu, gelu_new (and its "
                    "other names), relu, silu",
                    file->path, name);
}

static esp_status refuse_variants(const esp_config_file *file, esp_error *error)
{
    static const char *const decoders[] = {"is_decoder", "add_cross_attention"};
    const char *positions = "absolute";
    ESP_TRY(esp_config_string(file, "position_embedding_type", &positions, error));
    if (strcmp(positions, "absolute") != 0) {
        return esp_fail(error, ESP_UNSUPPORTED, "config.unsupported_positions",
                        "%s: position_embedding_type \"%.64s\" is not supported, only absolute",
                        file->path, positions);
    }
    for (int i = 0; i < ESP_COUNT(decoders); i++) {
        bool set = false;
        ESP_TRY(esp_config_bool(file, decoders[i], &set, error));
        if (set) {
            return esp_fail(error, ESP_UNSUPPORTED, "config.unsupported_decoder",
                            "%s: %s is set: BERT as a decoder is not supported", file->path,
                            decoders[i]);
        }
    }
    return ESP_OK;
}

esp_status esp_bert_config_read(const esp_config_file *file, esp_bert_config *config,
                                esp_error *error)
{
    esp_bert_config read = {0};
    double eps = 0;
    ESP_TRY(refuse_variants(file, error));
    ESP_TRY(read_sizes(file, &read, error));
    ESP_TRY(esp_config_number(file, "layer_norm_eps", true, ESP_MIN_EPS, &eps, error));
    read.eps = (float)eps;
    ESP_TRY(read_activation(file, &read.activation, error));
    *config = read;
    return ESP_OK;
}
