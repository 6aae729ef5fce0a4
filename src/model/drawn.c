/* Checkpoints of random numbers, for measuring shapes of which there are no weights: the tensors
 * are those that the family of config.json asks for, drawn when they are read and pruned as a real
 * checkpoint would be.
 *
 * What a tensor holds depends on seed, shape and what it is for, so layers of one shape are alike:
 * choosing the mask of each shape once is enough, and the finished weight is kept for the next
 * layer. Matrices have a variance of 1 / columns, so that activations keep their size. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "io/io.h"
#include "model/family.h"
#include "pipeline/pipeline.h"

#define KEPT 8 /* finished weights */
#define KEPT_BYTES ((size_t)512 << 20)
#define BLOCK 4096 /* numbers drawn from one state */

typedef struct kept_weight {
    esp_pattern pattern;
    int64_t out, in;
    esp_sparse *sparse; /* NULL: free */
} kept_weight;

typedef struct drawing {
    esp_context *context;
    esp_draw_options options; /* but prune */
    esp_mask_options mask;
    kept_weight kept[KEPT];
    int next; /* of kept, to be given up */
} drawing;

/* ---- numbers ---- */

typedef struct draw_job {
    esp_tensor *to;
    int64_t count;
    uint64_t seed;
    double mean, spread;
} draw_job;

static int64_t tensor_count(const esp_weight_info *weight)
{
    int64_t count = 1;
    for (int i = 0; i < weight->rank; i++) {
        count *= weight->shape[i];
    }
    return count;
}

/* The sum of four uniform numbers: near enough to normal, with variance 1. */
static double draw_one(uint64_t *state)
{
    uint64_t bits = esp_splitmix64(state);
    double sum = 0;
    for (int i = 0; i < 4; i++, bits >>= 16) {
        sum += (double)(bits & 0xffff);
    }
    return (sum / 65535 - 2) * sqrt(3.0);
}

static void draw_blocks(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const draw_job *job = user;
    for (int64_t block = begin; block < end; block++) {
        uint64_t state = job->seed + (uint64_t)block;
        state = esp_splitmix64(&state);
        for (int64_t i = block * BLOCK; i < ESP_MIN(job->count, (block + 1) * BLOCK); i++) {
            float value = (float)(job->mean + job->spread * draw_one(&state));
            if (job->to->dtype == ESP_F32) {
                ((float *)job->to->data)[i] = value;
            } else {
                ((uint16_t *)job->to->data)[i] =
                    job->to->dtype == ESP_F16 ? esp_f16_of_float(value) : esp_bf16_of_float(value);
            }
        }
    }
}

static bool scales_a_norm(const char *name)
{
    const char *end = strrchr(name, '.');
    bool norm = strstr(name, "norm") != NULL || strstr(name, "Norm") != NULL ||
                strstr(name, "neck.") != NULL;
    return norm && end != NULL && strcmp(end, ".weight") == 0;
}

static esp_status draw_dense(void *user, const esp_weight_info *weight, esp_tensor *to,
                             esp_error *error)
{
    (void)error;
    const drawing *mine = user;
    bool vector = weight->rank < 2, scale = vector && scales_a_norm(weight->name);
    draw_job job = {.to = to, .count = tensor_count(weight), .seed = mine->options.seed};
    for (int i = 0; i < weight->rank; i++) {
        job.seed += (uint64_t)weight->shape[i];
        job.seed = esp_splitmix64(&job.seed);
    }
    job.mean = scale ? 1 : 0;
    job.spread = vector ? 0.02 : 1 / sqrt((double)job.count / (double)weight->shape[0]);
    esp_parallel_for(mine->context, esp_ceil_div(job.count, BLOCK), 4, draw_blocks, &job);
    return ESP_OK;
}

/* ---- weights ---- */

static esp_status copy(const drawing *mine, const kept_weight *kept, esp_dtype dtype,
                       esp_sparse **sparse, esp_error *error)
{
    esp_sparse_part parts[ESP_SPARSE_MAX_PARTS];
    int count = esp_sparse_part_count(kept->sparse);
    for (int i = 0; i < count; i++) {
        parts[i] = esp_sparse_get_part(kept->sparse, i);
    }
    return esp_sparse_from_parts(mine->context, &kept->pattern, dtype, kept->out, kept->in, parts,
                                 count, sparse, error);
}

static esp_status finish(const drawing *mine, const esp_weight_info *weight, esp_tensor *dense,
                         esp_sparse **sparse, esp_error *error)
{
    esp_mask *mask = NULL;
    if (weight->pattern.kind != ESP_PATTERN_DENSE) {
        ESP_TRY(esp_prune_mask(mine->context, dense, &weight->pattern, &mine->mask, &mask, NULL,
                               error));
    }
    esp_status status =
        esp_sparse_encode(mine->context, &weight->pattern, dense, mask, sparse, error);
    esp_mask_free(mask);
    return status;
}

static esp_status draw_and_finish(drawing *mine, const esp_weight_info *weight, esp_sparse **sparse,
                                  esp_error *error)
{
    esp_tensor dense = {0};
    ESP_TRY(esp_tensor_create(mine->context, weight->dtype, 2, weight->shape, &dense, error));
    esp_status status = draw_dense(mine, weight, &dense, error);
    status = status == ESP_OK ? finish(mine, weight, &dense, sparse, error) : status;
    esp_tensor_free(mine->context, &dense);
    return status;
}

static bool is_kept(const kept_weight *kept, const esp_weight_info *weight)
{
    char mine[ESP_PATTERN_TEXT_MAX], wanted[ESP_PATTERN_TEXT_MAX];
    if (kept->sparse == NULL || kept->out != weight->shape[0] || kept->in != weight->shape[1]) {
        return false;
    }
    esp_pattern_print(&kept->pattern, mine);
    esp_pattern_print(&weight->pattern, wanted);
    return strcmp(mine, wanted) == 0;
}

static esp_status draw_sparse(void *user, const esp_weight_info *weight, esp_sparse **sparse,
                              esp_error *error)
{
    drawing *mine = user;
    for (int i = 0; i < KEPT; i++) {
        if (is_kept(&mine->kept[i], weight)) {
            return copy(mine, &mine->kept[i], weight->dtype, sparse, error);
        }
    }
    if (weight->stored_bytes > KEPT_BYTES) {
        return draw_and_finish(mine, weight, sparse, error);
    }
    kept_weight *place = &mine->kept[mine->next];
    mine->next = (mine->next + 1) % KEPT;
    esp_sparse_free(place->sparse);
    *place = (kept_weight){weight->pattern, weight->shape[0], weight->shape[1], NULL};
    ESP_TRY(draw_and_finish(mine, weight, &place->sparse, error));
    return copy(mine, place, weight->dtype, sparse, error);
}

static void release(void *user)
{
    drawing *mine = user;
    for (int i = 0; i < KEPT; i++) {
        esp_sparse_free(mine->kept[i].sparse);
    }
    esp_release(mine->context, mine);
}

static const esp_weight_maker maker = {
    .dense = draw_dense, .sparse = draw_sparse, .release = release};

/* ---- what the family asks for ---- */

typedef struct info_list {
    esp_context *context;
    esp_weight_info *infos;
    int64_t count, capacity;
} info_list;

static esp_status add_info(info_list *list, const esp_want *want, esp_dtype dtype, esp_error *error)
{
    if (list->count == list->capacity) {
        int64_t capacity = 2 * list->capacity + 64;
        esp_weight_info *grown =
            esp_alloc_array(list->context, (size_t)capacity, sizeof *list->infos);
        if (grown == NULL) {
            return esp_fail_memory(error, (size_t)capacity * sizeof *grown, "a table of weights");
        }
        if (list->count > 0) {
            memcpy(grown, list->infos, (size_t)list->count * sizeof *grown);
        }
        esp_release(list->context, list->infos);
        list->infos = grown;
        list->capacity = capacity;
    }
    esp_weight_info info = {.name = esp_strdup(list->context, want->name),
                            .dtype = dtype,
                            .rank = want->rank,
                            .pattern = {.kind = ESP_PATTERN_DENSE}};
    if (info.name == NULL) {
        return esp_fail_memory(error, sizeof want->name, "a name");
    }
    memcpy(info.shape, want->shape, sizeof want->shape);
    info.dense_bytes = info.stored_bytes =
        (size_t)tensor_count(&info) * esp_dtype_bytes(dtype); /* config.c bounds the numbers */
    list->infos[list->count++] = info;
    return ESP_OK;
}

static void free_infos(info_list *list)
{
    for (int64_t i = 0; i < list->count; i++) {
        union {
            const char *read;
            char *held;
        } name = {list->infos[i].name};
        esp_release(list->context, name.held);
    }
    esp_release(list->context, list->infos);
}

static esp_status list_wants(esp_model *model, esp_dtype dtype, info_list *list, esp_error *error)
{
    int64_t parts = model->family->part_count(model);
    for (int64_t part = 0; part < parts; part++) {
        esp_want_list wants = {.count = 0};
        model->family->list_part(model, part, &wants);
        for (int i = 0; i < wants.count; i++) {
            ESP_TRY(add_info(list, &wants.wants[i], dtype, error));
        }
    }
    return ESP_OK;
}

/* A model that is never loaded: only its lists of tensors are asked for. */
static esp_status list_family(esp_model *model, const esp_checkpoint *checkpoint, esp_dtype dtype,
                              info_list *list, esp_error *error)
{
    const char *folder = esp_checkpoint_path(checkpoint), *text = esp_checkpoint_config(checkpoint);
    const char *architecture = NULL;
    char name[4096];
    json_t *json = NULL;
    snprintf(name, sizeof name, "%s/config.json", folder);
    ESP_TRY(esp_config_parse(text, name, &json, error));
    esp_config_file config = {name, json};
    esp_status status = esp_family_find(&config, &model->family, &architecture, error);
    if (status == ESP_OK) {
        model->parts = esp_alloc_zero(model->context, model->family->parts_bytes);
        status = model->parts != NULL
                     ? model->family->configure(model, &config, folder, error)
                     : esp_fail_memory(error, model->family->parts_bytes, "a model");
    }
    json_decref(json);
    ESP_TRY(status);
    ESP_TRY(model->family->prepare(model, checkpoint, error));
    return list_wants(model, dtype, list, error);
}

static esp_status prune_all(esp_checkpoint *checkpoint, esp_context *context,
                            const esp_prune_options *prune, esp_error *error)
{
    int64_t count = esp_checkpoint_count(checkpoint);
    esp_pattern *patterns = esp_alloc_array(context, (size_t)count, sizeof *patterns);
    if (patterns == NULL) {
        return esp_fail_memory(error, (size_t)count * sizeof *patterns, "a table of patterns");
    }
    esp_status status = esp_prune_patterns(context, checkpoint, prune, patterns, error);
    for (int64_t i = 0; i < count && status == ESP_OK; i++) {
        if (patterns[i].kind != ESP_PATTERN_DENSE) {
            status = esp_checkpoint_set_pattern(checkpoint, i, &patterns[i], error);
        }
    }
    esp_release(context, patterns);
    return status;
}

static esp_status fill(esp_device *device, esp_checkpoint *checkpoint,
                       const esp_draw_options *options, esp_error *error)
{
    esp_context *context = device->context;
    info_list list = {.context = context};
    esp_model *model = esp_model_blank(device);
    if (model == NULL) {
        return esp_fail_memory(error, sizeof *model, "a model");
    }
    esp_status status = list_family(model, checkpoint, options->dtype, &list, error);
    if (status == ESP_OK) {
        status = esp_checkpoint_set_weights(checkpoint, list.infos, list.count, error);
    }
    if (status == ESP_OK && options->prune != NULL) {
        status = prune_all(checkpoint, context, options->prune, error);
    }
    free_infos(&list);
    if (model->parts == NULL) { /* nothing that its family would know */
        model->family = NULL;
    }
    esp_model_free(model);
    return status;
}

esp_status esp_checkpoint_draw(esp_device *device, const char *folder,
                               const esp_draw_options *options, esp_checkpoint **checkpoint,
                               esp_error *error)
{
    esp_context *context = device->context;
    esp_checkpoint *made = NULL;
    if (!esp_dtype_is_weight(options->dtype)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "draw.bad_dtype",
                        "weights of %s: expected F32, F16 or BF16", esp_dtype_name(options->dtype));
    }
    drawing *mine = esp_alloc_zero(context, sizeof *mine);
    if (mine == NULL) {
        return esp_fail_memory(error, sizeof *mine, "a drawing");
    }
    mine->context = context;
    mine->options = *options;
    mine->options.prune = NULL;
    if (options->prune != NULL) {
        mine->mask = options->prune->mask;
    }
    ESP_TRY(esp_checkpoint_make(context, folder, &maker, mine, &made, error));
    esp_status status = fill(device, made, options, error);
    if (status != ESP_OK) {
        esp_checkpoint_close(made);
        return status;
    }
    *checkpoint = made;
    return ESP_OK;
}
