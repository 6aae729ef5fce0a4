/* The pre-norm layer of image models, its numbers in config.json and its tensors. */
#include <stdio.h>

#include "model/vision.h"

/* ---- config.json ---- */

static esp_status read_activation(const esp_config_file *file, esp_image_config *config,
                                  esp_error *error)
{
    static const struct {
        const char *name;
        unsigned bit;
    } known[] = {{"gelu", ESP_EP_GELU},
                 {"gelu_pytorch_tanh", ESP_EP_GELU_TANH},
                 {"gelu_new", ESP_EP_GELU_TANH},
                 {"relu", ESP_EP_RELU},
                 {"silu", ESP_EP_SILU}};
    const char *name = "gelu";
    ESP_TRY(esp_config_string(file, "hidden_act", &name, error));
    for (int i = 0; i < ESP_COUNT(known); i++) {
        if (strcmp(name, known[i].name) == 0) {
            config->activation = known[i].bit;
            return ESP_OK;
        }
    }
    return esp_fail(error, ESP_UNSUPPORTED, "config.unsupported_activation",
                    "%s: hidden_act \"%.64s\" is not supported; known are gelu, gelu_pytorch_tanh, "
                    "gelu_new, relu and silu",
                    file->path, name);
}

static esp_status read_sizes(const esp_config_file *file, esp_image_config *config,
                             esp_error *error)
{
    const struct {
        const char *key;
        int64_t high;
        int64_t *value;
    } sizes[] = {
        {"hidden_size", ESP_MAX_FEATURES, &config->hidden},
        {"num_hidden_layers", ESP_MAX_LAYERS, &config->layers},
        {"num_attention_heads", ESP_MAX_HEADS, &config->heads},
        {"image_size", ESP_MAX_IMAGE_SIDE, &config->side},
        {"patch_size", 1024, &config->patch},
    };
    for (int i = 0; i < ESP_COUNT(sizes); i++) {
        ESP_TRY(
            esp_config_integer(file, sizes[i].key, true, 1, sizes[i].high, sizes[i].value, error));
    }
    if (config->hidden % config->heads != 0 || config->hidden / config->heads > ESP_MAX_HEAD_DIM) {
        return esp_fail(error, ESP_BAD_FILE, "config.heads_divide_hidden",
                        "%s: hidden_size %lld is no multiple of num_attention_heads %lld, or makes "
                        "heads of more than %d features",
                        file->path, (long long)config->hidden, (long long)config->heads,
                        ESP_MAX_HEAD_DIM);
    }
    config->head_dim = config->hidden / config->heads;
    if (config->side % config->patch != 0) {
        return esp_fail(error, ESP_BAD_FILE, "config.patches_divide_image",
                        "%s: image_size %lld is no multiple of patch_size %lld", file->path,
                        (long long)config->side, (long long)config->patch);
    }
    return ESP_OK;
}

esp_status esp_image_config_read(const esp_config_file *file, esp_image_config *config, double eps,
                                 esp_error *error)
{
    int64_t channels = ESP_IMAGE_CHANNELS;
    ESP_TRY(read_sizes(file, config, error));
    ESP_TRY(esp_config_integer(file, "num_channels", false, 1, 1024, &channels, error));
    if (channels != ESP_IMAGE_CHANNELS) {
        return esp_fail(error, ESP_UNSUPPORTED, "config.unsupported_channels",
                        "%s: num_channels %lld: only images of red, green and blue are supported",
                        file->path, (long long)channels);
    }
    ESP_TRY(esp_config_number(file, "layer_norm_eps", eps == 0, ESP_MIN_EPS, &eps, error));
    config->eps = (float)eps;
    config->qkv_bias = true;
    ESP_TRY(esp_config_bool(file, "qkv_bias", &config->qkv_bias, error));
    return read_activation(file, config, error);
}

/* ---- tensors ---- */

void esp_want_norm(esp_want_list *list, const char *name, int64_t size, float **weight,
                   float **bias)
{
    char full[64];
    snprintf(full, sizeof full, "%s.weight", name);
    esp_want_vector(list, full, size, weight);
    snprintf(full, sizeof full, "%s.bias", name);
    esp_want_vector(list, full, size, bias);
}

static esp_stack qkv_stack(const esp_image_config *config, const esp_image_layer_names *names)
{
    return (esp_stack){.names = {names->qkv[0], names->qkv[1], names->qkv[2]},
                       .rows = {config->hidden, config->hidden, config->hidden},
                       .count = 3};
}

void esp_image_layer_stack(const esp_model *model, const esp_checkpoint *checkpoint,
                           const esp_image_config *config, const esp_image_layer_names *names,
                           const char *prefix, esp_image_layer *layer)
{
    if (names->projections == 3) {
        const esp_stack qkv = qkv_stack(config, names);
        bool one = esp_model_stacks(model, checkpoint, prefix, &qkv);
        layer->attention.projections = one ? 1 : 3;
    }
}

void esp_image_layer_list(const esp_image_config *config, const esp_image_layer_names *names,
                          esp_image_layer *layer, esp_want_list *list)
{
    int64_t hidden = config->hidden, inner = config->intermediate;
    esp_group_layer *attention = &layer->attention;
    esp_want_norm(list, names->norm1, hidden, &layer->norm1_weight, &layer->norm1_bias);
    list->reads = attention->o.adds ? (esp_norm_at){&layer->norm1_weight, &layer->norm1_bias}
                                    : (esp_norm_at){NULL, NULL}; /* what pads windows reads it */
    if (attention->projections < names->projections) {
        const esp_stack qkv = qkv_stack(config, names);
        esp_want_stack(list, &qkv, hidden, config->qkv_bias, &attention->qkv[0]);
    }
    for (int i = 0; attention->projections == names->projections && i < names->projections; i++) {
        esp_want_linear(list, names->qkv[i], 3 / names->projections * hidden, hidden,
                        config->qkv_bias, &attention->qkv[i]);
    }
    list->reads = (esp_norm_at){NULL, NULL};
    esp_want_linear(list, names->o, hidden, hidden, true, &attention->o);
    esp_want_norm(list, names->norm2, hidden, &layer->norm2_weight, &layer->norm2_bias);
    list->reads = (esp_norm_at){&layer->norm2_weight, &layer->norm2_bias};
    esp_want_linear(list, names->up, inner, hidden, true, &layer->up);
    list->reads = (esp_norm_at){NULL, NULL};
    esp_want_linear(list, names->down, hidden, inner, true, &layer->down);
}

void esp_image_layer_prepare(const esp_image_config *config, int projections,
                             esp_image_layer *layer)
{
    layer->attention.projections = projections;
    layer->attention.heads = config->heads;
    layer->attention.head_dim = config->head_dim;
    layer->attention.o.adds = layer->down.adds = true;
    layer->up.activation = config->activation;
}

esp_linear *esp_image_layer_linear(esp_image_layer *layer, int64_t number)
{
    int projections = layer->attention.projections;
    if (number < projections) {
        return &layer->attention.qkv[number];
    }
    esp_linear *const others[] = {&layer->attention.o, &layer->up, &layer->down};
    number -= projections;
    return number < ESP_COUNT(others) ? others[number] : NULL;
}

const esp_linear *esp_image_layer_reader(const esp_image_layer *layers, int64_t count,
                                         int64_t index)
{
    return index + 1 < count ? &layers[index + 1].attention.qkv[0] : NULL;
}

void esp_image_layer_free(const esp_model *model, esp_image_layer *layer)
{
    esp_linear *linear;
    for (int64_t i = 0; (linear = esp_image_layer_linear(layer, i)) != NULL; i++) {
        esp_linear_free(linear, model->device);
    }
    float *const vectors[] = {layer->norm1_weight,        layer->norm1_bias,
                              layer->norm2_weight,        layer->norm2_bias,
                              layer->attention.row_table, layer->attention.column_table};
    for (int i = 0; i < ESP_COUNT(vectors); i++) {
        esp_vector_free(model, vectors[i]);
    }
}
