/* config.json and the tensors of SAM's image encoder, under the names of Hugging Face or of the
 * original repository: which ones is seen from the table of positions or of the patches'
 * projection. Prompt encoder and mask decoder of a whole model are left out. */
#include <stdio.h>

#include "model/fold.h"
#include "model/sam.h"

#define DEFAULT_EPS 1e-6 /* of every SAM; config.json need not repeat it */

static esp_sam *sam_of(const esp_model *model)
{
    return model->parts;
}

/* ---- config.json ---- */

static esp_status read_global(esp_model *model, const esp_config_file *file, esp_error *error)
{
    esp_sam *sam = sam_of(model);
    size_t layers = (size_t)sam->config.layers;
    const json_t *list = json_object_get(file->json, "global_attn_indexes");
    if (!json_is_array(list)) {
        return esp_fail(error, ESP_BAD_FILE,
                        list == NULL ? "config.missing_key" : "config.bad_type",
                        "%s: \"global_attn_indexes\" must be a list of layers", file->path);
    }
    sam->global = esp_alloc_array(model->context, layers, sizeof *sam->global);
    if (sam->global == NULL) {
        return esp_fail_memory(error, layers, "a model");
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        json_int_t index = json_is_integer(entry) ? json_integer_value(entry) : -1;
        if (index < 0 || index >= (json_int_t)layers) {
            return esp_fail(error, ESP_BAD_FILE, "config.bad_value",
                            "%s: entry %zu of \"global_attn_indexes\" is no layer: expected 0 to "
                            "%zu",
                            file->path, i, layers - 1);
        }
        sam->global[index] = true;
    }
    return ESP_OK;
}

static esp_status read_intermediate(const esp_config_file *file, esp_image_config *config,
                                    esp_error *error)
{
    double ratio = 4;
    config->intermediate = 0;
    ESP_TRY(esp_config_integer(file, "mlp_dim", false, 1, ESP_MAX_FEATURES, &config->intermediate,
                               error));
    ESP_TRY(esp_config_number(file, "mlp_ratio", false, 0, &ratio, error));
    if (config->intermediate == 0 && ratio * (double)config->hidden > (double)ESP_MAX_FEATURES) {
        return esp_fail(error, ESP_BAD_FILE, "config.bad_value",
                        "%s: \"mlp_ratio\" is %g, which makes more than %lld features", file->path,
                        ratio, (long long)ESP_MAX_FEATURES);
    }
    if (config->intermediate == 0) {
        config->intermediate = ESP_MAX(1, (int64_t)((double)config->hidden * ratio));
    }
    return ESP_OK;
}

static esp_status read_encoder(esp_model *model, const esp_config_file *file, esp_error *error)
{
    esp_sam *sam = sam_of(model);
    esp_image_config *config = &sam->config;
    ESP_TRY(esp_image_config_read(file, config, DEFAULT_EPS, error));
    ESP_TRY(read_intermediate(file, config, error));
    sam->window = 14;
    sam->channels = 256;
    sam->absolute = sam->relative = true;
    ESP_TRY(
        esp_config_integer(file, "window_size", false, 1, ESP_MAX_IMAGE_SIDE, &sam->window, error));
    ESP_TRY(esp_config_integer(file, "output_channels", false, 1, ESP_MAX_FEATURES, &sam->channels,
                               error));
    ESP_TRY(esp_config_bool(file, "use_abs_pos", &sam->absolute, error));
    ESP_TRY(esp_config_bool(file, "use_rel_pos", &sam->relative, error));
    if (sam->window > config->side / config->patch) {
        return esp_fail(error, ESP_BAD_FILE, "config.bad_value",
                        "%s: \"window_size\" %lld is more than the image's %lld patches a side",
                        file->path, (long long)sam->window,
                        (long long)(config->side / config->patch));
    }
    return read_global(model, file, error);
}

/* Attention with relative positions sees grids as large as the image, or as a window. */
static esp_status check_grids(const esp_model *model, const esp_config_file *file, esp_error *error)
{
    const esp_sam *sam = sam_of(model);
    int64_t side = sam->config.side / sam->config.patch, widest = 0;
    int64_t most = esp_nn_any_ops(model->device)->widest_grid;
    for (int64_t i = 0; i < sam->config.layers; i++) {
        widest = ESP_MAX(widest, sam->global[i] ? side : sam->window);
    }
    if (!sam->relative || most == 0 || widest <= most) {
        return ESP_OK;
    }
    return esp_fail(error, ESP_UNSUPPORTED, "model.grid_too_wide",
                    "%s: \"image_size\", \"patch_size\" and \"window_size\" make attention with "
                    "relative positions over %lld patches a side; expected at most %lld on device "
                    "'%s'; use --device cpu",
                    file->path, (long long)widest, (long long)most, model->device->name);
}

/* A whole model keeps the encoder's numbers in "vision_config". */
static esp_status configure(esp_model *model, const esp_config_file *file, const char *folder,
                            esp_error *error)
{
    (void)folder;
    esp_config_file encoder = *file;
    esp_model_info *info = &model->info;
    ESP_TRY(esp_nn_check_image_ops(model->device, error));
    if (model->family == &esp_sam_family) {
        encoder.json = json_object_get(file->json, "vision_config");
        if (!json_is_object(encoder.json)) {
            return esp_fail(error, ESP_BAD_FILE,
                            encoder.json == NULL ? "config.missing_key" : "config.bad_type",
                            "%s: \"vision_config\" must be an object", file->path);
        }
    }
    ESP_TRY(read_encoder(model, &encoder, error));
    ESP_TRY(check_grids(model, &encoder, error));
    const esp_sam *sam = sam_of(model);
    int64_t side = sam->config.side / sam->config.patch;
    info->layers = sam->config.layers;
    info->hidden_size = sam->config.hidden;
    info->context = side * side;
    info->image_size = sam->config.side;
    info->patch_size = sam->config.patch;
    return ESP_OK;
}

/* Whether attention takes windows where they lie; all images have one size. */
static bool windows_stay(const esp_model *model, const esp_group_layer *attention)
{
    const esp_sam *sam = sam_of(model);
    const esp_ops *ops = esp_nn_any_ops(model->device);
    int64_t side = sam->config.side / sam->config.patch, pitch = esp_ops_pitch(ops, side * side);
    const esp_group_call call = {.columns = pitch,
                                 .groups = 1,
                                 .tokens = side * side,
                                 .pitch = pitch,
                                 .grid_width = side,
                                 .window = sam->window};
    return esp_group_takes_windows(model->device, ops, attention, &call);
}

static esp_status prepare(esp_model *model, const esp_checkpoint *checkpoint, esp_error *error)
{
    esp_sam *sam = sam_of(model);
    size_t layers = (size_t)sam->config.layers;
    sam->original = esp_checkpoint_find(checkpoint, "image_encoder.patch_embed.proj.weight") >= 0;
    sam->layers = esp_alloc_array(model->context, layers, sizeof *sam->layers);
    if (sam->layers == NULL) {
        return esp_fail_memory(error, layers * sizeof *sam->layers, "a model");
    }
    for (size_t i = 0; i < layers; i++) {
        esp_image_layer_prepare(&sam->config, 1, &sam->layers[i]);
        esp_group_layer *attention = &sam->layers[i].attention; /* else put together first */
        attention->o.adds = sam->global[i] || windows_stay(model, attention);
    }
    return ESP_OK;
}

/* ---- tensors ---- */

static const esp_image_layer_names hugging_face = {.norm1 = "layer_norm1",
                                                   .qkv = {"attn.qkv"},
                                                   .projections = 1,
                                                   .o = "attn.proj",
                                                   .norm2 = "layer_norm2",
                                                   .up = "mlp.lin1",
                                                   .down = "mlp.lin2"};
static const esp_image_layer_names original = {.norm1 = "norm1",
                                               .qkv = {"attn.qkv"},
                                               .projections = 1,
                                               .o = "attn.proj",
                                               .norm2 = "norm2",
                                               .up = "mlp.lin1",
                                               .down = "mlp.lin2"};

static const char *stem(const esp_sam *sam)
{
    return sam->original ? "image_encoder." : "vision_encoder.";
}

static void list_embedding(esp_sam *sam, esp_want_list *list)
{
    const esp_image_config *config = &sam->config;
    int64_t side = config->side / config->patch;
    const int64_t table[] = {1, side, side, config->hidden};
    snprintf(list->prefix, sizeof list->prefix, "%s", stem(sam));
    if (sam->absolute) {
        esp_want_values(list, "pos_embed", 4, table, &sam->positions);
    }
    esp_want_convolution(list, sam->original ? "patch_embed.proj" : "patch_embed.projection",
                         config->hidden, ESP_IMAGE_CHANNELS, config->patch, true, &sam->patches);
}

static void list_layer(esp_sam *sam, int64_t index, esp_want_list *list)
{
    const esp_image_config *config = &sam->config;
    esp_image_layer *layer = &sam->layers[index];
    int64_t side = sam->global[index] ? config->side / config->patch : sam->window;
    const int64_t table[] = {2 * side - 1, config->head_dim};
    snprintf(list->prefix, sizeof list->prefix, "%s%s.%lld.", stem(sam),
             sam->original ? "blocks" : "layers", (long long)index);
    esp_image_layer_list(config, sam->original ? &original : &hugging_face, layer, list);
    if (sam->relative) {
        esp_want_values(list, "attn.rel_pos_h", 2, table, &layer->attention.row_table);
        esp_want_values(list, "attn.rel_pos_w", 2, table, &layer->attention.column_table);
    }
}

static void list_neck(esp_sam *sam, esp_want_list *list)
{
    static const char *const names[2][4] = {{"conv1", "layer_norm1", "conv2", "layer_norm2"},
                                            {"0", "1", "2", "3"}};
    const char *const *name = names[sam->original];
    int64_t channels = sam->channels;
    snprintf(list->prefix, sizeof list->prefix, "%sneck.", stem(sam));
    esp_want_convolution(list, name[0], channels, sam->config.hidden, 1, false, &sam->neck[0]);
    esp_want_norm(list, name[1], channels, &sam->neck_weight[0], &sam->neck_bias[0]);
    esp_want_convolution(list, name[2], channels, channels, 3, false, &sam->neck[1]);
    esp_want_norm(list, name[3], channels, &sam->neck_weight[1], &sam->neck_bias[1]);
}

static int64_t part_count(const esp_model *model)
{
    return sam_of(model)->config.layers + 2;
}

/* The embedding, the layers, the neck. */
static void list_part(esp_model *model, int64_t part, esp_want_list *list)
{
    esp_sam *sam = sam_of(model);
    if (part == 0) {
        list_embedding(sam, list);
    } else if (part <= sam->config.layers) {
        list_layer(sam, part - 1, list);
    } else {
        list_neck(sam, list);
    }
}

static bool is_spare(const char *name)
{
    static const char *const others[] = {"mask_decoder.", "prompt_encoder.",
                                         "shared_image_embedding.", "pixel_mean", "pixel_std"};
    for (int i = 0; i < ESP_COUNT(others); i++) {
        if (strncmp(name, others[i], strlen(others[i])) == 0) {
            return true;
        }
    }
    return false;
}

static void fold(const esp_model *model, esp_fold *fold)
{
    const esp_sam *sam = sam_of(model);
    *fold =
        (esp_fold){.rules = sam->original ? esp_sam_original_fold : esp_sam_fold,
                   .rule_count = sam->original ? esp_sam_original_fold_count : esp_sam_fold_count,
                   .prefix = stem(sam),
                   .layers = sam->config.layers,
                   .heads = sam->config.heads,
                   .kv_heads = sam->config.heads,
                   .head_dim = sam->config.head_dim,
                   .positions_in_heads = sam->relative,
                   .section = model->family == &esp_sam_family ? "vision_config" : NULL,
                   .hidden_key = "mlp_dim"};
}

/* ---- the linear layers ---- */

enum { EACH = 4 }; /* linear layers of a layer: qkv, o, up, down */

/* The projection of patches, the layers', the neck's. */
static esp_linear *linear_at(esp_model *model, int64_t number)
{
    esp_sam *sam = sam_of(model);
    int64_t behind = number - 1 - sam->config.layers * EACH;
    if (number == 0) {
        return &sam->patches;
    }
    if (behind >= 0) {
        return behind < 2 ? &sam->neck[behind] : NULL;
    }
    return esp_image_layer_linear(&sam->layers[(number - 1) / EACH], (number - 1) % EACH);
}

/* An image's patches, before they have a pitch; and windows, where attention has them put together
 * first. */
static int64_t columns_at(const esp_model *model, const esp_linear *linear, esp_model_call call,
                          bool *few)
{
    const esp_sam *sam = model->parts;
    int64_t each = model->info.context, images = call.tokens / each;
    int64_t layer = (linear->number - 1) / EACH, side = sam->config.side / sam->config.patch;
    (void)few;
    if (call.tokens % each != 0) {
        return 0;
    }
    if (linear == &sam->patches) {
        return esp_ops_columns(model->ops, call.tokens);
    }
    bool attends = layer < sam->config.layers && (linear->number - 1) % EACH < 2;
    return attends && !sam->global[layer] && !sam->layers[layer].attention.o.adds
               ? esp_ops_columns(model->ops, images * esp_sam_windowed(model, side, side))
               : 0;
}

static void release(esp_model *model)
{
    esp_sam *sam = sam_of(model);
    for (int64_t i = 0; sam->layers != NULL && i < sam->config.layers; i++) {
        esp_image_layer_free(model, &sam->layers[i]);
    }
    for (int i = 0; i < 2; i++) {
        esp_linear_free(&sam->neck[i], model->device);
        esp_vector_free(model, sam->neck_weight[i]);
        esp_vector_free(model, sam->neck_bias[i]);
    }
    esp_linear_free(&sam->patches, model->device);
    esp_vector_free(model, sam->positions);
    esp_release(model->context, sam->global);
    esp_release(model->context, sam->layers);
}

static const char *const whole[] = {"SamModel", NULL};
static const char *const alone[] = {"SamVisionModel", NULL};

#define FAMILY                                                                                     \
    .kind = ESP_MODEL_IMAGE_ENCODER, .parts_bytes = sizeof(esp_sam), .configure = configure,       \
    .prepare = prepare, .part_count = part_count, .list_part = list_part, .is_spare = is_spare,    \
    .fold = fold, .linear_at = linear_at, .columns_at = columns_at, .release = release,            \
    .images = &esp_sam_net, .layers = &esp_vision_layers

const esp_family esp_sam_family = {.model_type = "sam", .architectures = whole, FAMILY};
const esp_family esp_sam_vision_family = {
    .model_type = "sam_vision_model", .architectures = alone, FAMILY};
