/* The tensors of a Llama or Qwen2 checkpoint and the layers that they make. */
#include <stdio.h>

#include "model/fold.h"
#include "model/llama.h"

static esp_llama *llama_of(const esp_model *model)
{
    return model->parts;
}

/* ---- config.json ---- */

static esp_status configure(esp_model *model, const esp_config_file *file, const char *folder,
                            esp_error *error)
{
    esp_llama_config *config = &llama_of(model)->config;
    esp_model_info *info = &model->info;
    ESP_TRY(model->family == &esp_qwen2_family ? esp_qwen2_config_read(file, config, error)
                                               : esp_llama_config_read(file, config, error));
    ESP_TRY(esp_llama_config_generation(model->context, folder, config, error));
    info->layers = config->layers;
    info->hidden_size = config->hidden;
    info->vocabulary = config->vocabulary;
    info->context = config->context;
    info->bos = config->bos;
    info->eos_count = config->eos_count;
    memcpy(info->eos, config->eos, sizeof info->eos);
    return ESP_OK;
}

static esp_status take_frequencies(esp_model *model, esp_error *error)
{
    esp_llama *llama = llama_of(model);
    size_t half = (size_t)llama->config.head_dim / 2, bytes = half * sizeof(float);
    float *frequencies = esp_alloc_array(model->context, half, sizeof *frequencies);
    if (frequencies == NULL) {
        return esp_fail_memory(error, bytes, "a model");
    }
    esp_rope_frequencies(&llama->config.rope, llama->config.head_dim, frequencies);
    esp_status status = esp_vector_take(&model->weights, frequencies, (int64_t)half, "frequencies",
                                        &llama->frequencies, error);
    esp_release(model->context, frequencies);
    return status;
}

static esp_status prepare(esp_model *model, const esp_checkpoint *checkpoint, esp_error *error)
{
    (void)checkpoint;
    esp_llama *llama = llama_of(model);
    const esp_llama_config *config = &llama->config;
    size_t layers = (size_t)config->layers;
    llama->layers = esp_alloc_array(model->context, layers, sizeof *llama->layers);
    if (llama->layers == NULL) {
        return esp_fail_memory(error, layers * sizeof *llama->layers, "a model");
    }
    for (int64_t i = 0; i < config->layers; i++) {
        esp_attention_layer *attention = &llama->layers[i].attention;
        attention->heads = config->heads;
        attention->kv_heads = config->kv_heads;
        attention->head_dim = config->head_dim;
        attention->projections = 3;
        llama->layers[i].mlp.intermediate = config->intermediate;
        attention->o.adds = llama->layers[i].mlp.down.adds = true;
    }
    llama->head.is_head = true;
    return take_frequencies(model, error);
}

/* ---- tensors ---- */

static void prefix_of(int64_t index, char *prefix, size_t size)
{
    snprintf(prefix, size, "model.layers.%lld.", (long long)index);
}

static esp_stack qkv_stack(const esp_llama_config *config)
{
    int64_t q = config->heads * config->head_dim, kv = config->kv_heads * config->head_dim;
    return (esp_stack){.names = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
                       .rows = {q, kv, kv},
                       .count = 3};
}

static esp_stack mlp_stack(const esp_llama_config *config, bool pairs)
{
    return (esp_stack){.names = {"mlp.gate_proj", "mlp.up_proj"},
                       .rows = {config->intermediate, config->intermediate},
                       .count = 2,
                       .pairs = pairs};
}

/* One product instead of three, and of two. Gate and up in turn let a kernel join them as it writes
 * them; dense ones leave that to an operation, since the libraries do not. */
static void stack(esp_model *model, const esp_checkpoint *checkpoint)
{
    esp_llama *llama = llama_of(model);
    const esp_stack qkv = qkv_stack(&llama->config);
    const esp_stack paired = mlp_stack(&llama->config, true);
    const esp_stack apart = mlp_stack(&llama->config, false);
    for (int64_t i = 0; i < llama->config.layers; i++) {
        esp_llama_layer *layer = &llama->layers[i];
        char prefix[64], name[96];
        prefix_of(i, prefix, sizeof prefix);
        snprintf(name, sizeof name, "%s%s.weight", prefix, paired.names[0]);
        bool dense =
            esp_checkpoint_get(checkpoint, esp_checkpoint_find(checkpoint, name)).pattern.kind ==
            ESP_PATTERN_DENSE;
        layer->attention.projections = esp_model_stacks(model, checkpoint, prefix, &qkv) ? 1 : 3;
        if (!dense && esp_model_stacks(model, checkpoint, prefix, &paired)) {
            layer->mlp.kind = ESP_MLP_PAIRED;
            layer->mlp.gate.activation = ESP_EP_SWIGLU;
        } else if (esp_model_stacks(model, checkpoint, prefix, &apart)) {
            layer->mlp.kind = ESP_MLP_STACKED;
        }
    }
}

static void list_layer(esp_llama *llama, int64_t index, esp_want_list *list)
{
    const esp_llama_config *config = &llama->config;
    esp_llama_layer *layer = &llama->layers[index];
    esp_attention_layer *attention = &layer->attention;
    esp_mlp_layer *mlp = &layer->mlp;
    int64_t hidden = config->hidden, inner = config->intermediate;
    int64_t q = config->heads * config->head_dim;
    bool bias = config->qkv_bias;
    const esp_stack qkv = qkv_stack(config);
    const esp_stack both = mlp_stack(config, mlp->kind == ESP_MLP_PAIRED);
    prefix_of(index, list->prefix, sizeof list->prefix);
    esp_want_vector(list, "input_layernorm.weight", hidden, &layer->input_norm);
    list->reads.weight = &layer->input_norm;
    for (int i = 0; i < 3 && attention->projections == 3; i++) {
        esp_want_linear(list, qkv.names[i], qkv.rows[i], hidden, bias, &attention->qkv[i]);
    }
    if (attention->projections == 1) {
        esp_want_stack(list, &qkv, hidden, bias, &attention->qkv[0]);
    }
    list->reads.weight = NULL;
    esp_want_linear(list, "self_attn.o_proj", hidden, q, config->o_bias, &attention->o);
    esp_want_vector(list, "post_attention_layernorm.weight", hidden, &layer->post_attention_norm);
    list->reads.weight = &layer->post_attention_norm;
    if (mlp->kind == ESP_MLP_APART) {
        esp_want_linear(list, both.names[0], inner, hidden, config->mlp_bias, &mlp->gate);
        esp_want_linear(list, both.names[1], inner, hidden, config->mlp_bias, &mlp->up);
    } else {
        esp_want_stack(list, &both, hidden, config->mlp_bias, &mlp->gate);
    }
    list->reads.weight = NULL;
    esp_want_linear(list, "mlp.down_proj", hidden, inner, config->mlp_bias, &mlp->down);
}

static int64_t part_count(const esp_model *model)
{
    return llama_of(model)->config.layers + 2;
}

/* The embedding, the final norm with the head, the layers: the largest tensors come while little
 * else is held, since reading and packing one holds it twice. */
static void list_part(esp_model *model, int64_t part, esp_want_list *list)
{
    esp_llama *llama = llama_of(model);
    const esp_llama_config *config = &llama->config;
    if (part == 0) {
        esp_want_table(list, "model.embed_tokens", config->vocabulary, config->hidden,
                       &llama->embedding, &llama->table);
    } else if (part > 1) {
        list_layer(llama, part - 2, list);
    } else {
        esp_want_vector(list, "model.norm.weight", config->hidden, &llama->norm);
        if (!config->tied) {
            esp_want_linear(list, "lm_head", config->vocabulary, config->hidden, false,
                            &llama->head);
        }
    }
}

/* Old checkpoints carry rotary_emb.inv_freq buffers, tied ones sometimes a copy of the embedding.
 */
static bool is_spare(const char *name)
{
    return strstr(name, "rotary_emb.inv_freq") != NULL || strcmp(name, "lm_head.weight") == 0;
}

static void fold(const esp_model *model, esp_fold *fold)
{
    const esp_llama_config *config = &llama_of(model)->config;
    *fold = (esp_fold){.rules = esp_llama_fold,
                       .rule_count = esp_llama_fold_count,
                       .prefix = "",
                       .layers = config->layers,
                       .heads = config->heads,
                       .kv_heads = config->kv_heads,
                       .head_dim = config->head_dim,
                       .positions_in_heads = true,
                       .hidden_key = "intermediate_size",
                       .heads_key = "num_attention_heads",
                       .kv_heads_key = "num_key_value_heads",
                       .head_dim_key = "head_dim"};
}

static void finish(esp_model *model)
{
    esp_llama *llama = llama_of(model);
    if (llama->config.tied) {
        llama->head.weight = llama->embedding;
        snprintf(llama->head.name, sizeof llama->head.name, "model.embed_tokens");
    }
}

/* ---- the linear layers ---- */

enum { MOST_LINEARS = 7 }; /* of one layer */

static int layer_linears(esp_llama_layer *layer, esp_linear *linears[MOST_LINEARS])
{
    int count = 0;
    for (int i = 0; i < layer->attention.projections; i++) {
        linears[count++] = &layer->attention.qkv[i];
    }
    linears[count++] = &layer->attention.o;
    linears[count++] = &layer->mlp.gate;
    if (layer->mlp.kind == ESP_MLP_APART) {
        linears[count++] = &layer->mlp.up;
    }
    linears[count++] = &layer->mlp.down;
    return count;
}

static esp_linear *linear_at(esp_model *model, int64_t number)
{
    esp_llama *llama = llama_of(model);
    for (int64_t i = 0; i < llama->config.layers; i++) {
        esp_linear *linears[MOST_LINEARS];
        int count = layer_linears(&llama->layers[i], linears);
        if (number < count) {
            return linears[number];
        }
        number -= count;
    }
    return number == 0 ? &llama->head : NULL;
}

static int64_t columns_at(const esp_model *model, const esp_linear *linear, esp_model_call call,
                          bool *few)
{
    const esp_llama *llama = model->parts;
    const esp_llama_layer *last = &llama->layers[llama->config.layers - 1];
    *few = call.last_only && call.tokens > 1 &&
           (linear == &last->attention.o || linear == &last->mlp.gate || linear == &last->mlp.up ||
            linear == &last->mlp.down || linear == &llama->head);
    return *few ? 1 : 0;
}

static void release(esp_model *model)
{
    esp_llama *llama = llama_of(model);
    for (int64_t i = 0; llama->layers != NULL && i < llama->config.layers; i++) {
        esp_linear *linears[MOST_LINEARS];
        int count = layer_linears(&llama->layers[i], linears);
        for (int k = 0; k < count; k++) {
            esp_linear_free(linears[k], model->device);
        }
        esp_vector_free(model, llama->layers[i].input_norm);
        esp_vector_free(model, llama->layers[i].post_attention_norm);
    }
    if (llama->head.weight != llama->embedding) {
        esp_packed_free(llama->head.weight);
    }
    esp_packed_free(llama->embedding);
    esp_vector_free(model, llama->norm);
    esp_release(model->context, llama->layers);
    esp_vector_free(model, llama->frequencies);
}

static const char *const llama_names[] = {"LlamaForCausalLM", NULL};
static const char *const qwen2_names[] = {"Qwen2ForCausalLM", NULL};

#define DECODER(type, names)                                                                       \
    {                                                                                              \
        .model_type = (type), .architectures = (names), .kind = ESP_MODEL_DECODER,                 \
        .parts_bytes = sizeof(esp_llama), .configure = configure, .prepare = prepare,              \
        .part_count = part_count, .list_part = list_part, .stack = stack, .is_spare = is_spare,    \
        .fold = fold, .finish = finish, .linear_at = linear_at, .columns_at = columns_at,          \
        .release = release, .layers = &esp_llama_layers,                                           \
    }

const esp_family esp_llama_family = DECODER("llama", llama_names);
const esp_family esp_qwen2_family = DECODER("qwen2", qwen2_names);
