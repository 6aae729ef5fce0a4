/* The tensors of a BERT checkpoint and the layers that they make. */
#include <stdio.h>

#include "model/bert.h"
#include "model/fold.h"

static esp_bert *bert_of(const esp_model *model)
{
    return model->parts;
}

static esp_status configure(esp_model *model, const esp_config_file *file, const char *folder,
                            esp_error *error)
{
    esp_bert_config *config = &bert_of(model)->config;
    esp_model_info *info = &model->info;
    ESP_TRY(esp_bert_config_read(file, config, error));
    info->layers = config->layers;
    info->hidden_size = info->embedding_size = config->hidden;
    info->vocabulary = config->vocabulary;
    info->context = config->positions;
    return esp_sentence_config_read(model->context, folder, info, error);
}

static esp_status prepare(esp_model *model, const esp_checkpoint *checkpoint, esp_error *error)
{
    esp_bert *bert = bert_of(model);
    const esp_bert_config *config = &bert->config;
    size_t layers = (size_t)config->layers;
    bert->layers = esp_alloc_array(model->context, layers, sizeof *bert->layers);
    if (bert->layers == NULL) {
        return esp_fail_memory(error, layers * sizeof *bert->layers, "a model");
    }
    for (int64_t i = 0; i < config->layers; i++) {
        esp_bert_layer *layer = &bert->layers[i];
        layer->attention.heads = config->heads;
        layer->attention.projections = 3;
        layer->attention.head_dim = config->hidden / config->heads;
        layer->attention.o.adds = layer->down.adds = true;
        layer->up.activation = config->activation;
    }
    /* Models with a head keep the encoder under a name of its own. */
    bool within = esp_checkpoint_find(checkpoint, "bert.embeddings.word_embeddings.weight") >= 0;
    snprintf(bert->prefix, sizeof bert->prefix, "%s", within ? "bert." : "");
    return ESP_OK;
}

/* ---- tensors ---- */

/* Old files, converted from TensorFlow's, say gamma and beta. */
static void want_norm(esp_want_list *list, const char *name, int64_t size, esp_bert_norm *norm)
{
    char full[64];
    snprintf(full, sizeof full, "%s.weight", name);
    esp_want_vector(list, full, size, &norm->weight);
    snprintf(list->wants[list->count - 1].old_name, sizeof list->wants->old_name, "%s%s.gamma",
             list->prefix, name);
    snprintf(full, sizeof full, "%s.bias", name);
    esp_want_vector(list, full, size, &norm->bias);
    snprintf(list->wants[list->count - 1].old_name, sizeof list->wants->old_name, "%s%s.beta",
             list->prefix, name);
}

static void prefix_of(const esp_bert *bert, int64_t index, char *prefix, size_t size)
{
    snprintf(prefix, size, "%sencoder.layer.%lld.", bert->prefix, (long long)index);
}

static esp_stack qkv_stack(const esp_bert_config *config)
{
    return (esp_stack){
        .names = {"attention.self.query", "attention.self.key", "attention.self.value"},
        .rows = {config->hidden, config->hidden, config->hidden},
        .count = 3};
}

/* One product instead of three. */
static void stack(esp_model *model, const esp_checkpoint *checkpoint)
{
    esp_bert *bert = bert_of(model);
    const esp_stack qkv = qkv_stack(&bert->config);
    for (int64_t i = 0; i < bert->config.layers; i++) {
        char prefix[64];
        prefix_of(bert, i, prefix, sizeof prefix);
        bert->layers[i].attention.projections =
            esp_model_stacks(model, checkpoint, prefix, &qkv) ? 1 : 3;
    }
}

static void list_layer(esp_bert *bert, int64_t index, esp_want_list *list)
{
    esp_bert_layer *layer = &bert->layers[index];
    int64_t hidden = bert->config.hidden, inner = bert->config.intermediate;
    const esp_stack qkv = qkv_stack(&bert->config);
    prefix_of(bert, index, list->prefix, sizeof list->prefix);
    for (int i = 0; i < 3 && layer->attention.projections == 3; i++) {
        esp_want_linear(list, qkv.names[i], hidden, hidden, true, &layer->attention.qkv[i]);
    }
    if (layer->attention.projections == 1) {
        esp_want_stack(list, &qkv, hidden, true, &layer->attention.qkv[0]);
    }
    esp_want_linear(list, "attention.output.dense", hidden, hidden, true, &layer->attention.o);
    want_norm(list, "attention.output.LayerNorm", hidden, &layer->attention_norm);
    esp_want_linear(list, "intermediate.dense", inner, hidden, true, &layer->up);
    esp_want_linear(list, "output.dense", hidden, inner, true, &layer->down);
    want_norm(list, "output.LayerNorm", hidden, &layer->output_norm);
}

static int64_t part_count(const esp_model *model)
{
    return bert_of(model)->config.layers + 1;
}

/* The embeddings, then the layers. */
static void list_part(esp_model *model, int64_t part, esp_want_list *list)
{
    esp_bert *bert = bert_of(model);
    const esp_bert_config *config = &bert->config;
    if (part > 0) {
        list_layer(bert, part - 1, list);
        return;
    }
    snprintf(list->prefix, sizeof list->prefix, "%sembeddings.", bert->prefix);
    esp_want_table(list, "word_embeddings", config->vocabulary, config->hidden, &bert->packed[0],
                   &bert->words);
    esp_want_table(list, "position_embeddings", config->positions, config->hidden, &bert->packed[1],
                   &bert->positions);
    esp_want_table(list, "token_type_embeddings", config->types, config->hidden, &bert->packed[2],
                   &bert->types);
    want_norm(list, "LayerNorm", config->hidden, &bert->norm);
}

/* A buffer of old files, the pooler and the heads of pre-training. */
static bool is_spare(const char *name)
{
    const char *plain = strncmp(name, "bert.", 5) == 0 ? name + 5 : name;
    return strcmp(plain, "embeddings.position_ids") == 0 || strncmp(plain, "pooler.", 7) == 0 ||
           strncmp(name, "cls.", 4) == 0;
}

static void fold(const esp_model *model, esp_fold *fold)
{
    const esp_bert *bert = bert_of(model);
    *fold = (esp_fold){.rules = esp_bert_fold,
                       .rule_count = esp_bert_fold_count,
                       .prefix = "bert.",
                       .layers = bert->config.layers,
                       .heads = bert->config.heads,
                       .kv_heads = bert->config.heads,
                       .head_dim = bert->config.hidden / bert->config.heads,
                       .residual_is_output = true,
                       .hidden_key = "intermediate_size"};
}

/* ---- the linear layers ---- */

enum { MOST_LINEARS = 6 }; /* of one layer */

static int layer_linears(esp_bert_layer *layer, esp_linear *linears[MOST_LINEARS])
{
    int count = 0;
    for (int i = 0; i < layer->attention.projections; i++) {
        linears[count++] = &layer->attention.qkv[i];
    }
    linears[count++] = &layer->attention.o;
    linears[count++] = &layer->up;
    linears[count++] = &layer->down;
    return count;
}

static esp_linear *linear_at(esp_model *model, int64_t number)
{
    esp_bert *bert = bert_of(model);
    for (int64_t i = 0; i < bert->config.layers; i++) {
        esp_linear *linears[MOST_LINEARS];
        int count = layer_linears(&bert->layers[i], linears);
        if (number < count) {
            return linears[number];
        }
        number -= count;
    }
    return NULL;
}

static void free_norm(const esp_model *model, const esp_bert_norm *norm)
{
    esp_vector_free(model, norm->weight);
    esp_vector_free(model, norm->bias);
}

static void release(esp_model *model)
{
    esp_bert *bert = bert_of(model);
    for (int64_t i = 0; bert->layers != NULL && i < bert->config.layers; i++) {
        esp_linear *linears[MOST_LINEARS];
        int count = layer_linears(&bert->layers[i], linears);
        for (int k = 0; k < count; k++) {
            esp_linear_free(linears[k], model->device);
        }
        free_norm(model, &bert->layers[i].attention_norm);
        free_norm(model, &bert->layers[i].output_norm);
    }
    for (int i = 0; i < ESP_COUNT(bert->packed); i++) {
        esp_packed_free(bert->packed[i]);
    }
    free_norm(model, &bert->norm);
    esp_release(model->context, bert->layers);
}

/* With heads of pre-training, which are left alone; a head for labels would be another result. */
static const char *const architectures[] = {"BertModel", "BertForMaskedLM", "BertForPreTraining",
                                            NULL};

const esp_family esp_bert_family = {
    .model_type = "bert",
    .architectures = architectures,
    .kind = ESP_MODEL_ENCODER,
    .parts_bytes = sizeof(esp_bert),
    .configure = configure,
    .prepare = prepare,
    .part_count = part_count,
    .list_part = list_part,
    .stack = stack,
    .is_spare = is_spare,
    .fold = fold,
    .linear_at = linear_at,
    .release = release,
    .layers = &esp_bert_layers,
};
