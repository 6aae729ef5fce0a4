/* Weights of a Llama checkpoint, by name. Every tensor's presence, shape and dtype is checked
 * against config.json before the first one is read, so that a hostile config cannot make the loader
 * allocate what no file backs. */
#include "model/llama.h"

#include <stdio.h>

typedef enum tensor_role { ROLE_LINEAR, ROLE_VECTOR } tensor_role;

/* A tensor that the model needs and where it goes. */
typedef struct wanted {
    char name[96];
    tensor_role role;
    int64_t out, in; /* in: 0 for vectors */
    esp_packed **weight;
    esp_linear *linear; /* NULL: the embedding, whose rows are looked up */
    float **vector;
} wanted;

#define MAX_WANTED (2 + 2 * ESP_LLAMA_LINEARS)

static void want_vector(wanted *list, int *count, const char *prefix, const char *name,
                        int64_t size, float **target)
{
    wanted *entry = &list[(*count)++];
    *entry = (wanted){.role = ROLE_VECTOR, .out = size, .vector = target};
    snprintf(entry->name, sizeof entry->name, "%s%s", prefix, name);
}

static void want_linear(wanted *list, int *count, const char *prefix, const char *name, int64_t out,
                        int64_t in, bool bias, esp_linear *target)
{
    wanted *entry = &list[(*count)++];
    *entry = (wanted){
        .role = ROLE_LINEAR, .out = out, .in = in, .weight = &target->weight, .linear = target};
    snprintf(entry->name, sizeof entry->name, "%s%s.weight", prefix, name);
    snprintf(target->name, sizeof target->name, "%s%s", prefix, name);
    if (bias) {
        char bias_name[64];
        snprintf(bias_name, sizeof bias_name, "%s.bias", name);
        want_vector(list, count, prefix, bias_name, out, &target->bias);
    }
}

static int list_layer(esp_model *model, int64_t index, wanted list[MAX_WANTED])
{
    const esp_llama_config *config = &model->config;
    esp_llama_layer *layer = &model->layers[index];
    esp_attention_layer *attention = &layer->attention;
    esp_mlp_layer *mlp = &layer->mlp;
    int64_t hidden = config->hidden, inner = config->intermediate;
    int64_t q = config->heads * config->head_dim, kv = config->kv_heads * config->head_dim;
    bool bias = config->attention_bias;
    char prefix[48];
    int count = 0;
    snprintf(prefix, sizeof prefix, "model.layers.%lld.", (long long)index);
    want_vector(list, &count, prefix, "input_layernorm.weight", hidden, &layer->input_norm);
    want_linear(list, &count, prefix, "self_attn.q_proj", q, hidden, bias, &attention->q);
    want_linear(list, &count, prefix, "self_attn.k_proj", kv, hidden, bias, &attention->k);
    want_linear(list, &count, prefix, "self_attn.v_proj", kv, hidden, bias, &attention->v);
    want_linear(list, &count, prefix, "self_attn.o_proj", hidden, q, bias, &attention->o);
    want_vector(list, &count, prefix, "post_attention_layernorm.weight", hidden,
                &layer->post_attention_norm);
    want_linear(list, &count, prefix, "mlp.gate_proj", inner, hidden, config->mlp_bias, &mlp->gate);
    want_linear(list, &count, prefix, "mlp.up_proj", inner, hidden, config->mlp_bias, &mlp->up);
    want_linear(list, &count, prefix, "mlp.down_proj", hidden, inner, config->mlp_bias, &mlp->down);
    return count;
}

/* What lies around the layers: number -1 before them, `layers` behind them. */
static int list_part(esp_model *model, int64_t number, wanted list[MAX_WANTED])
{
    const esp_llama_config *config = &model->config;
    int count = 0;
    if (number < 0) {
        want_linear(list, &count, "model.", "embed_tokens", config->vocabulary, config->hidden,
                    false, &model->head);
        list[0].weight = &model->embedding;
        list[0].linear = NULL;
    } else if (number == config->layers) {
        want_vector(list, &count, "model.", "norm.weight", config->hidden, &model->norm);
        if (!config->tied) {
            want_linear(list, &count, "", "lm_head", config->vocabulary, config->hidden, false,
                        &model->head);
        }
    } else {
        count = list_layer(model, number, list);
    }
    return count;
}

/* ---- the linear layers ---- */

static esp_linear *linear_at(esp_model *model, int64_t number)
{
    int64_t index = number / ESP_LLAMA_LINEARS;
    if (index >= model->config.layers) {
        return number == model->config.layers * ESP_LLAMA_LINEARS ? &model->head : NULL;
    }
    esp_llama_layer *layer = &model->layers[index];
    esp_linear *const linears[ESP_LLAMA_LINEARS] = {
        &layer->attention.q, &layer->attention.k, &layer->attention.v, &layer->attention.o,
        &layer->mlp.gate,    &layer->mlp.up,      &layer->mlp.down};
    return linears[number % ESP_LLAMA_LINEARS];
}

/* ---- checking ---- */

static esp_status missing(const esp_checkpoint *checkpoint, const wanted *entry, const char *shape,
                          esp_error *error)
{
    bool head = strcmp(entry->name, "lm_head.weight") == 0;
    return esp_fail(error, ESP_BAD_FILE, "model.missing_tensor",
                    "%s: tensor \"%s\" %s is missing%s", esp_checkpoint_path(checkpoint),
                    entry->name, shape,
                    head ? ", and config.json does not say tie_word_embeddings: true"
                         : "; the checkpoint is incomplete or config.json belongs to another");
}

static esp_status check_one(const esp_checkpoint *checkpoint, const wanted *entry, bool *used,
                            esp_error *error)
{
    int64_t shape[] = {entry->out, entry->in};
    int rank = entry->role == ROLE_LINEAR ? 2 : 1;
    char expected[64], found[160];
    esp_shape_print(rank, shape, expected, sizeof expected);
    int64_t index = esp_checkpoint_find(checkpoint, entry->name);
    if (index < 0) {
        return missing(checkpoint, entry, expected, error);
    }
    used[index] = true;
    esp_weight_info info = esp_checkpoint_get(checkpoint, index);
    if (info.rank != rank || memcmp(info.shape, shape, (size_t)rank * sizeof *shape) != 0) {
        esp_shape_print(info.rank, info.shape, found, sizeof found);
        return esp_fail(error, ESP_BAD_FILE, "model.wrong_shape",
                        "%s: tensor \"%s\" is %s, but config.json makes it %s",
                        esp_checkpoint_path(checkpoint), entry->name, found, expected);
    }
    if (!esp_dtype_is_weight(info.dtype)) {
        return esp_fail(error, ESP_BAD_FILE, "model.wrong_dtype",
                        "%s: tensor \"%s\" is %s, expected F32, F16 or BF16",
                        esp_checkpoint_path(checkpoint), entry->name, esp_dtype_name(info.dtype));
    }
    if (strcmp(entry->name, "model.embed_tokens.weight") == 0 &&
        info.pattern.kind != ESP_PATTERN_DENSE) {
        return esp_fail(error, ESP_UNSUPPORTED, "model.embedding_compressed",
                        "%s: \"%s\" is compressed, but rows of it are looked up: prune without it",
                        esp_checkpoint_path(checkpoint), entry->name);
    }
    return ESP_OK;
}

/* Old checkpoints carry rotary_emb.inv_freq buffers, tied ones sometimes a copy of the embedding:
 * neither is needed. Others are worth a word, but change nothing. */
static void mention_unused(const esp_model *model, const esp_checkpoint *checkpoint,
                           const bool *used)
{
    int64_t unused = 0;
    const char *first = NULL;
    for (int64_t i = 0; i < esp_checkpoint_count(checkpoint); i++) {
        const char *name = esp_checkpoint_get(checkpoint, i).name;
        if (!used[i] && strstr(name, "rotary_emb.inv_freq") == NULL &&
            strcmp(name, "lm_head.weight") != 0) {
            first = first == NULL ? name : first;
            unused++;
        }
    }
    if (unused > 0) {
        esp_log(model->context, ESP_LOG_WARNING,
                "%s: %lld tensors are not used by this architecture, the first is \"%.200s\"",
                esp_checkpoint_path(checkpoint), (long long)unused, first);
    }
}

static esp_status check_all(esp_model *model, const esp_checkpoint *checkpoint, esp_error *error)
{
    size_t count = (size_t)esp_checkpoint_count(checkpoint);
    bool *used = esp_alloc_array(model->context, count, sizeof *used);
    if (used == NULL) {
        return esp_fail_memory(error, count, "checking tensors");
    }
    esp_status status = ESP_OK;
    for (int64_t number = -1; number <= model->config.layers && status == ESP_OK; number++) {
        wanted list[MAX_WANTED];
        int length = list_part(model, number, list);
        for (int i = 0; i < length && status == ESP_OK; i++) {
            status = check_one(checkpoint, &list[i], used, error);
        }
    }
    if (status == ESP_OK) {
        mention_unused(model, checkpoint, used);
    }
    esp_release(model->context, used);
    return status;
}

/* ---- reading ---- */

static void count_linear(esp_model *model, const wanted *entry)
{
    esp_model_info *info = &model->info;
    const esp_packed *weight = *entry->weight;
    size_t bytes = esp_packed_bytes(weight);
    unsigned forms = esp_packed_forms(weight);
    info->parameters += entry->out * entry->in;
    info->resident_bytes += bytes;
    if (strncmp(entry->name, "model.layers.", 13) == 0) {
        info->linear_parameters += entry->out * entry->in;
        info->linear_resident_bytes += bytes;
    }
    if (weight->pattern.kind != ESP_PATTERN_DENSE) {
        info->sparse_layers++;
        info->dense_form_layers += forms == ESP_FORM_DENSE;
        info->two_form_layers += forms == (ESP_FORM_SPARSE | ESP_FORM_DENSE);
    }
}

static esp_status read_linear(esp_model *model, const esp_checkpoint *checkpoint, int64_t index,
                              const wanted *entry, esp_error *error)
{
    esp_sparse *sparse = NULL;
    esp_pack_options options = {0};
    ESP_TRY(esp_checkpoint_read_sparse(checkpoint, index, &sparse, error));
    esp_status status = ESP_OK;
    if (entry->linear != NULL) {
        status = esp_llama_forms(model, entry->linear, sparse, &options.forms, error);
    }
    if (status == ESP_OK) {
        status = esp_pack_with(model->device, sparse, &options, entry->weight, error);
    }
    esp_sparse_free(sparse);
    ESP_TRY(status);
    count_linear(model, entry);
    return ESP_OK;
}

/* Norm weights and biases are kept in f32: they are small, and read as such by every operation. */
static esp_status read_vector(esp_model *model, const esp_checkpoint *checkpoint, int64_t index,
                              const wanted *entry, esp_error *error)
{
    esp_weight_info info = esp_checkpoint_get(checkpoint, index);
    esp_tensor stored = {0};
    size_t bytes = (size_t)entry->out * sizeof(float);
    ESP_TRY(esp_tensor_create(model->context, info.dtype, info.rank, info.shape, &stored, error));
    esp_status status = esp_checkpoint_read_dense(checkpoint, index, &stored, error);
    if (status == ESP_OK) {
        *entry->vector = model->device->backend->alloc(model->device, bytes);
        if (*entry->vector == NULL) {
            status = esp_fail_memory(error, bytes, entry->name);
        } else {
            esp_widen(stored.dtype, stored.data, entry->out, *entry->vector);
        }
    }
    esp_tensor_free(model->context, &stored);
    model->info.parameters += entry->out;
    model->info.resident_bytes += bytes;
    return status;
}

static esp_status read_part(esp_model *model, const esp_checkpoint *checkpoint, int64_t number,
                            esp_error *error)
{
    wanted list[MAX_WANTED];
    int length = list_part(model, number, list);
    for (int role = 0; role < 2; role++) { /* vectors first: a bias belongs to the product */
        for (int i = 0; i < length; i++) {
            int64_t index = esp_checkpoint_find(checkpoint, list[i].name);
            bool linear = list[i].role == ROLE_LINEAR;
            if (linear == (role == 1)) {
                ESP_TRY(linear ? read_linear(model, checkpoint, index, &list[i], error)
                               : read_vector(model, checkpoint, index, &list[i], error));
            }
        }
    }
    return ESP_OK;
}

static esp_status read_all(esp_model *model, const esp_checkpoint *checkpoint,
                           const esp_model_options *options, esp_error *error)
{
    int64_t layers = model->config.layers;
    for (int64_t number = -1; number <= layers; number++) {
        ESP_TRY(read_part(model, checkpoint, number, error));
        if (options->progress != NULL &&
            !options->progress(options->user, "load", (double)(number + 2), (double)(layers + 2),
                               "layers")) {
            return esp_fail(error, ESP_CANCELLED, "cancelled", "loading was cancelled");
        }
    }
    if (model->config.tied) {
        model->head.weight = model->embedding;
    }
    return ESP_OK;
}

/* The table that ids are looked up in is the packed weight's own memory: no second copy. */
static esp_status view_table(esp_model *model, esp_error *error)
{
    const esp_packed *packed = model->embedding;
    if (packed->sparse == NULL || esp_sparse_part_count(packed->sparse) != 1) {
        return esp_fail(error, ESP_UNSUPPORTED, "model.missing_operation",
                        "device '%s' keeps dense weights in a form that has no rows to look up",
                        model->device->name);
    }
    model->table = esp_sparse_get_part(packed->sparse, 0).tensor;
    return ESP_OK;
}

static void set_shapes(esp_model *model)
{
    const esp_llama_config *config = &model->config;
    for (int64_t i = 0; i < config->layers; i++) {
        esp_attention_layer *attention = &model->layers[i].attention;
        attention->heads = config->heads;
        attention->kv_heads = config->kv_heads;
        attention->head_dim = config->head_dim;
        model->layers[i].mlp.intermediate = config->intermediate;
        attention->o.adds = model->layers[i].mlp.down.adds = true;
    }
    model->head.is_head = true;
    esp_linear *linear;
    for (int64_t i = 0; (linear = linear_at(model, i)) != NULL; i++) {
        linear->number = i;
    }
}

/* Before any weight is read, since the choice of forms depends on it. */
static void choose_compute(esp_model *model, const esp_checkpoint *checkpoint)
{
    int64_t first = esp_checkpoint_find(checkpoint, "model.layers.0.self_attn.q_proj.weight");
    if (model->compute == ESP_COMPUTE_AUTO) {
        esp_dtype dtype = esp_checkpoint_get(checkpoint, first).dtype;
        model->compute = model->device->backend->auto_compute(model->device, dtype);
    }
}

esp_status esp_llama_load(esp_model *model, const esp_checkpoint *checkpoint,
                          const esp_model_options *options, esp_error *error)
{
    size_t layers = (size_t)model->config.layers, half = (size_t)model->config.head_dim / 2;
    model->layers = esp_alloc_array(model->context, layers, sizeof *model->layers);
    model->frequencies = esp_alloc_array(model->context, half, sizeof *model->frequencies);
    if (model->layers == NULL || model->frequencies == NULL) {
        return esp_fail_memory(error, layers * sizeof *model->layers, "a model");
    }
    set_shapes(model);
    esp_rope_frequencies(&model->config.rope, model->config.head_dim, model->frequencies);
    ESP_TRY(check_all(model, checkpoint, error));
    choose_compute(model, checkpoint);
    ESP_TRY(read_all(model, checkpoint, options, error));
    return view_table(model, error);
}

/* ---- afterwards ---- */

const esp_linear *esp_llama_linear(const esp_model *model, int64_t number)
{
    return linear_at((esp_model *)(uintptr_t)model, number);
}

int64_t esp_llama_linears(const esp_model *model)
{
    return model->config.layers * ESP_LLAMA_LINEARS + 1;
}

static void free_vector(esp_model *model, float *vector)
{
    if (vector != NULL) {
        model->device->backend->release(model->device, vector);
    }
}

void esp_llama_free(esp_model *model)
{
    for (int64_t i = 0; model->layers != NULL && i < model->config.layers; i++) {
        for (int k = 0; k < ESP_LLAMA_LINEARS; k++) {
            esp_linear_free(linear_at(model, i * ESP_LLAMA_LINEARS + k), model->device);
        }
        free_vector(model, model->layers[i].input_norm);
        free_vector(model, model->layers[i].post_attention_norm);
    }
    if (model->head.weight != model->embedding) {
        esp_packed_free(model->head.weight);
    }
    esp_packed_free(model->embedding);
    free_vector(model, model->norm);
    esp_release(model->context, model->layers);
    esp_release(model->context, model->frequencies);
}
