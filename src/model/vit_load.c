/* config.json and the tensors of ViT and DeiT classifiers, under the names that Hugging Face gives
 * them or those of timm and the original repository. Which names a file has is seen from its class
 * token. */
#include <stdio.h>

#include "model/fold.h"
#include "model/timm_config.h"
#include "model/vit.h"

#define MAX_LABELS (1 << 20)
#define MAX_LABEL_BYTES 1024

static esp_vit *vit_of(const esp_model *model)
{
    return model->parts;
}

/* ---- config.json ---- */

/* An object of "0": "cat", "1": "dog"... without a gap. */
static esp_status read_labels(esp_model *model, const esp_config_file *file, const json_t *object,
                              esp_error *error)
{
    esp_vit *vit = vit_of(model);
    size_t count = json_object_size(object);
    if (!json_is_object(object) || count == 0 || count > MAX_LABELS) {
        return esp_fail(error, ESP_BAD_FILE, "config.bad_labels",
                        "%s: \"id2label\" must be an object of 1 to %d labels", file->path,
                        MAX_LABELS);
    }
    vit->names = esp_alloc_array(model->context, count, sizeof *vit->names);
    if (vit->names == NULL) {
        return esp_fail_memory(error, count * sizeof *vit->names, "labels");
    }
    vit->labels = (int64_t)count;
    for (size_t i = 0; i < count; i++) {
        char key[24];
        snprintf(key, sizeof key, "%zu", i);
        const char *name = json_string_value(json_object_get(object, key));
        if (name == NULL || strlen(name) > MAX_LABEL_BYTES) {
            return esp_fail(error, ESP_BAD_FILE, "config.bad_labels",
                            "%s: \"id2label\" has %zu entries, but no text of up to %d bytes for "
                            "\"%s\"",
                            file->path, count, MAX_LABEL_BYTES, key);
        }
        vit->names[i] = esp_strdup(model->context, name);
        if (vit->names[i] == NULL) {
            return esp_fail_memory(error, strlen(name), "a label");
        }
    }
    return ESP_OK;
}

/* Without id2label: LABEL_0, LABEL_1... num_labels of them; two when that is missing too, as the
 * reference has it, which leaves both out then. */
static esp_status number_labels(esp_model *model, const esp_config_file *file, esp_error *error)
{
    int64_t count = 2;
    ESP_TRY(esp_config_integer(file, "num_labels", false, 1, MAX_LABELS, &count, error));
    json_t *object = json_object();
    for (int64_t i = 0; i < count; i++) {
        char key[24], name[32];
        snprintf(key, sizeof key, "%lld", (long long)i);
        snprintf(name, sizeof name, "LABEL_%lld", (long long)i);
        if (json_object_set_new(object, key, json_string(name)) != 0) {
            json_decref(object);
            return esp_fail_memory(error, (size_t)count, "labels");
        }
    }
    esp_status status = read_labels(model, file, object, error);
    json_decref(object);
    return status;
}

static esp_status configure(esp_model *model, const esp_config_file *file, const char *folder,
                            esp_error *error)
{
    (void)folder;
    esp_vit *vit = vit_of(model);
    esp_image_config *config = &vit->config;
    esp_model_info *info = &model->info;
    ESP_TRY(esp_nn_check_image_ops(model->device, error));
    ESP_TRY(esp_image_config_read(file, config, 0, error));
    ESP_TRY(esp_config_integer(file, "intermediate_size", true, 1, ESP_MAX_FEATURES,
                               &config->intermediate, error));
    const json_t *labels = json_object_get(file->json, "id2label");
    ESP_TRY(labels == NULL || json_is_null(labels) ? number_labels(model, file, error)
                                                   : read_labels(model, file, labels, error));
    int64_t side = config->side / config->patch;
    vit->specials = model->family == &esp_deit_family ? 2 : 1;
    vit->timm_config = json_object_get(file->json, ESP_TIMM_MARK) != NULL;
    vit->two_heads = strcmp(info->architecture, "DeiTForImageClassificationWithTeacher") == 0;
    info->layers = config->layers;
    info->hidden_size = config->hidden;
    info->context = vit->specials + side * side;
    info->image_size = config->side;
    info->patch_size = config->patch;
    info->labels = vit->labels;
    return ESP_OK;
}

static esp_status prepare(esp_model *model, const esp_checkpoint *checkpoint, esp_error *error)
{
    esp_vit *vit = vit_of(model);
    size_t layers = (size_t)vit->config.layers;
    vit->timm = esp_checkpoint_find(checkpoint, "cls_token") >= 0;
    vit->layers = esp_alloc_array(model->context, layers, sizeof *vit->layers);
    if (vit->layers == NULL) {
        return esp_fail_memory(error, layers * sizeof *vit->layers, "a model");
    }
    for (size_t i = 0; i < layers; i++) {
        esp_image_layer_prepare(&vit->config, vit->timm ? 1 : 3, &vit->layers[i]);
    }
    vit->heads[0].is_head = vit->heads[1].is_head = true;
    return ESP_OK;
}

/* ---- tensors ---- */

static const esp_image_layer_names hugging_face = {
    .norm1 = "layernorm_before",
    .qkv = {"attention.attention.query", "attention.attention.key", "attention.attention.value"},
    .projections = 3,
    .o = "attention.output.dense",
    .norm2 = "layernorm_after",
    .up = "intermediate.dense",
    .down = "output.dense"};

static const esp_image_layer_names timm = {.norm1 = "norm1",
                                           .qkv = {"attn.qkv"},
                                           .projections = 1,
                                           .o = "attn.proj",
                                           .norm2 = "norm2",
                                           .up = "mlp.fc1",
                                           .down = "mlp.fc2"};

/* "vit." or "deit."; nothing in timm's files. */
static const char *stem(const esp_model *model)
{
    return vit_of(model)->timm ? "" : model->family == &esp_deit_family ? "deit." : "vit.";
}

static void list_embedding(esp_model *model, esp_want_list *list)
{
    esp_vit *vit = vit_of(model);
    const esp_image_config *config = &vit->config;
    int64_t hidden = config->hidden, side = config->side / config->patch;
    const int64_t token[] = {1, 1, hidden}, table[] = {1, vit->specials + side * side, hidden};
    snprintf(list->prefix, sizeof list->prefix, "%s%s", stem(model),
             vit->timm ? "" : "embeddings.");
    esp_want_values(list, "cls_token", 3, token, &vit->tokens[0]);
    if (vit->specials == 2) {
        esp_want_values(list, vit->timm ? "dist_token" : "distillation_token", 3, token,
                        &vit->tokens[1]);
    }
    esp_want_values(list, vit->timm ? "pos_embed" : "position_embeddings", 3, table,
                    &vit->positions);
    esp_want_convolution(list, vit->timm ? "patch_embed.proj" : "patch_embeddings.projection",
                         hidden, ESP_IMAGE_CHANNELS, config->patch, true, &vit->patches);
}

static void prefix_of(const esp_model *model, int64_t index, char *prefix, size_t size)
{
    snprintf(prefix, size, vit_of(model)->timm ? "%sblocks.%lld." : "%sencoder.layer.%lld.",
             stem(model), (long long)index);
}

static void stack(esp_model *model, const esp_checkpoint *checkpoint)
{
    esp_vit *vit = vit_of(model);
    for (int64_t i = 0; i < vit->config.layers; i++) {
        char prefix[64];
        prefix_of(model, i, prefix, sizeof prefix);
        esp_image_layer_stack(model, checkpoint, &vit->config, vit->timm ? &timm : &hugging_face,
                              prefix, &vit->layers[i]);
    }
}

static void list_heads(esp_model *model, esp_want_list *list)
{
    esp_vit *vit = vit_of(model);
    int64_t hidden = vit->config.hidden;
    snprintf(list->prefix, sizeof list->prefix, "%s", stem(model));
    esp_want_norm(list, vit->timm ? "norm" : "layernorm", hidden, &vit->norm_weight,
                  &vit->norm_bias);
    list->prefix[0] = '\0';
    const char *first = vit->timm ? "head" : vit->two_heads ? "cls_classifier" : "classifier";
    esp_want_linear(list, first, vit->labels, hidden, true, &vit->heads[0]);
    if (vit->two_heads) {
        esp_want_linear(list, vit->timm ? "head_dist" : "distillation_classifier", vit->labels,
                        hidden, true, &vit->heads[1]);
    }
}

static int64_t part_count(const esp_model *model)
{
    return vit_of(model)->config.layers + 2;
}

/* The embedding, the layers, the final norm with the heads. */
static void list_part(esp_model *model, int64_t part, esp_want_list *list)
{
    esp_vit *vit = vit_of(model);
    if (part == 0) {
        list_embedding(model, list);
    } else if (part <= vit->config.layers) {
        prefix_of(model, part - 1, list->prefix, sizeof list->prefix);
        esp_image_layer_list(&vit->config, vit->timm ? &timm : &hugging_face,
                             &vit->layers[part - 1], list);
    } else {
        list_heads(model, list);
    }
}

/* The pooler of a base model, the mask token of pre-training, the distillation head of a model that
 * is read without it. */
static bool is_spare(const char *name)
{
    return strstr(name, "pooler.dense.") != NULL || strstr(name, "mask_token") != NULL ||
           strncmp(name, "head_dist.", 10) == 0;
}

static void fold(const esp_model *model, esp_fold *fold)
{
    const esp_vit *vit = vit_of(model);
    *fold = (esp_fold){.rules = vit->timm ? esp_timm_fold : esp_vit_fold,
                       .rule_count = vit->timm ? esp_timm_fold_count : esp_vit_fold_count,
                       .prefix = stem(model),
                       .layers = vit->config.layers,
                       .heads = vit->config.heads,
                       .kv_heads = vit->config.heads,
                       .head_dim = vit->config.head_dim,
                       .hidden_key = vit->timm_config ? NULL : "intermediate_size"};
}

/* ---- the linear layers ---- */

/* The projection of patches, the layers', the heads. */
static esp_linear *linear_at(esp_model *model, int64_t number)
{
    esp_vit *vit = vit_of(model);
    if (number == 0) {
        return &vit->patches;
    }
    number--;
    for (int64_t i = 0; i < vit->config.layers; i++) {
        int64_t each = vit->layers[i].attention.projections + 3;
        if (number < each) {
            return esp_image_layer_linear(&vit->layers[i], number);
        }
        number -= each;
    }
    return number < (vit->two_heads ? 2 : 1) ? &vit->heads[number] : NULL;
}

/* An image's patches, without its special tokens; behind the last attention what heads read. */
static int64_t columns_at(const esp_model *model, const esp_linear *linear, esp_model_call call,
                          bool *few)
{
    const esp_vit *vit = model->parts;
    const esp_image_layer *last = &vit->layers[vit->config.layers - 1];
    int64_t each = model->info.context, images = call.tokens / each;
    if (call.tokens == 0 || call.tokens % each != 0) {
        return 0;
    }
    if (linear == &vit->patches) {
        return esp_ops_columns(model->ops, images * (each - vit->specials));
    }
    bool is_head = linear == &vit->heads[0] || linear == &vit->heads[1];
    *few = is_head || linear == &last->attention.o || linear == &last->up || linear == &last->down;
    int64_t heads = vit->two_heads && !is_head ? 2 : 1;
    return *few ? heads * esp_ops_columns(model->ops, images) : 0;
}

static void release(esp_model *model)
{
    esp_vit *vit = vit_of(model);
    for (int64_t i = 0; vit->layers != NULL && i < vit->config.layers; i++) {
        esp_image_layer_free(model, &vit->layers[i]);
    }
    for (int64_t i = 0; vit->names != NULL && i < vit->labels; i++) {
        esp_release(model->context, vit->names[i]);
    }
    float *const vectors[] = {vit->tokens[0], vit->tokens[1], vit->positions, vit->norm_weight,
                              vit->norm_bias};
    for (int i = 0; i < ESP_COUNT(vectors); i++) {
        esp_vector_free(model, vectors[i]);
    }
    esp_linear_free(&vit->patches, model->device);
    esp_linear_free(&vit->heads[0], model->device);
    esp_linear_free(&vit->heads[1], model->device);
    esp_release(model->context, vit->names);
    esp_release(model->context, vit->layers);
}

static const char *const vit_architectures[] = {"ViTForImageClassification", NULL};
static const char *const deit_architectures[] = {"DeiTForImageClassification",
                                                 "DeiTForImageClassificationWithTeacher", NULL};

#define FAMILY                                                                                     \
    .kind = ESP_MODEL_CLASSIFIER, .parts_bytes = sizeof(esp_vit), .configure = configure,          \
    .prepare = prepare, .part_count = part_count, .list_part = list_part, .stack = stack,          \
    .is_spare = is_spare, .fold = fold, .linear_at = linear_at, .columns_at = columns_at,          \
    .release = release, .images = &esp_vit_net, .layers = &esp_vision_layers

const esp_family esp_vit_family = {.model_type = "vit", .architectures = vit_architectures, FAMILY};
const esp_family esp_deit_family = {
    .model_type = "deit", .architectures = deit_architectures, FAMILY};
