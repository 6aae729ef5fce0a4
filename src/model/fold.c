/* From a family's rules to axes, bindings and spaces.
 *
 * What is free, and why the model computes the same:
 *  - hidden channels of a feed-forward layer: rows of what comes in, columns of what goes out; the
 *    activation between works channel by channel;
 *  - values within a head: rows of v, and the columns of o that read this head; where query heads
 *    share a value head, all their columns of o;
 *  - queries and keys within a head, the same way in both: their products are summed. Not where
 *    rotary positions or tables of relative positions treat channels one by one;
 *  - whole heads (with grouped queries, whole groups): rows of q, k, v, columns of o;
 *  - the residual stream, everywhere at once, unless it is what the model returns. */
#include "model/fold.h"

#include <ctype.h>
#include <stdio.h>

typedef struct folding {
    esp_context *context;
    const esp_checkpoint *checkpoint;
    const esp_family *family;
    esp_fold fold;
    esp_permutation *permutation;
    int *axes; /* [layers + 1][kinds]: axis plus one; 0: none yet. The last row: no layer's */
    esp_space *spaces;
    int space_count;
} folding;

/* ---- names ---- */

/* Whether name is the rule's; *layer: what '#' stands for, -1 without one. */
static bool matches(const char *rule, const char *name, int64_t layers, int64_t *layer)
{
    *layer = -1;
    for (; *rule != '\0'; rule++) {
        if (*rule != '#') {
            if (*rule != *name++) {
                return false;
            }
            continue;
        }
        int64_t number = 0;
        if (!isdigit((unsigned char)*name) || (name[0] == '0' && isdigit((unsigned char)name[1]))) {
            return false;
        }
        for (; isdigit((unsigned char)*name) && number < layers; name++) {
            number = 10 * number + (*name - '0');
        }
        if (number >= layers) {
            return false;
        }
        *layer = number;
    }
    return *name == '\0';
}

const esp_fold_rule *esp_fold_rule_of(const esp_fold *fold, const char *name, int64_t *layer)
{
    size_t length = strlen(fold->prefix);
    const char *within = strncmp(name, fold->prefix, length) == 0 ? name + length : name;
    for (int i = 0; i < fold->rule_count; i++) {
        if (matches(fold->rules[i].name, within, fold->layers, layer)) {
            return &fold->rules[i];
        }
    }
    return NULL;
}

/* ---- axes ---- */

static const char *const kind_names[ESP_CHANNELS_KINDS] = {"",     "residual", "hidden", "queries",
                                                           "keys", "values",   "mixed",  "qkv"};

static int *axis_of(const folding *job, int64_t layer, int kind)
{
    int64_t row = kind == ESP_CHANNELS_RESIDUAL ? job->fold.layers : layer;
    return &job->axes[row * ESP_CHANNELS_KINDS + kind];
}

/* As many channels as the heads make; `count` itself for kinds without heads. */
static int64_t expected_count(const esp_fold *fold, int kind, int64_t count)
{
    switch (kind) {
    case ESP_CHANNELS_QUERIES:
    case ESP_CHANNELS_MIXED:
        return fold->heads * fold->head_dim;
    case ESP_CHANNELS_KEYS:
    case ESP_CHANNELS_VALUES:
        return fold->kv_heads * fold->head_dim;
    case ESP_CHANNELS_QKV:
        return 3 * fold->heads * fold->head_dim;
    default:
        return count;
    }
}

static esp_status wrong_shape(const folding *job, const esp_weight_info *weight, int dimension,
                              const char *axis, int64_t count, esp_error *error)
{
    return esp_fail(error, ESP_BAD_FILE, "permutation.wrong_shape",
                    "%s: tensor \"%s\" must have %lld channels (%s) in dimension %d; the "
                    "checkpoint is damaged or config.json belongs to another",
                    esp_checkpoint_path(job->checkpoint), weight->name, (long long)count, axis,
                    dimension);
}

static esp_status bind(folding *job, const esp_weight_info *weight, int dimension, int64_t layer,
                       int kind, esp_error *error)
{
    int *axis = axis_of(job, layer, kind);
    int64_t count = dimension < weight->rank ? weight->shape[dimension] : -1;
    if (*axis == 0) {
        char name[48];
        int made = 0;
        snprintf(name, sizeof name, "%s", kind_names[kind]);
        if (kind != ESP_CHANNELS_RESIDUAL) {
            snprintf(name, sizeof name, "layers.%lld.%s", (long long)layer, kind_names[kind]);
        }
        int64_t expected = expected_count(&job->fold, kind, count);
        if (count != expected) {
            return wrong_shape(job, weight, dimension, name, expected, error);
        }
        ESP_TRY(esp_permutation_add_axis(job->permutation, name, count, &made, error));
        *axis = made + 1;
    }
    const esp_axis *of = &job->permutation->axes[*axis - 1];
    if (count != of->count || !esp_dtype_is_weight(weight->dtype)) {
        return wrong_shape(job, weight, dimension, of->name, of->count, error);
    }
    return esp_permutation_bind(job->permutation, weight->name, dimension, *axis - 1, error);
}

static esp_status bind_tensor(folding *job, const esp_weight_info *weight, esp_error *error)
{
    int64_t layer;
    const esp_fold_rule *rule = esp_fold_rule_of(&job->fold, weight->name, &layer);
    if (rule == NULL && !job->family->is_spare(weight->name)) {
        return esp_fail(error, ESP_UNSUPPORTED, "permutation.unknown_tensor",
                        "%s: nothing is known of the channels of tensor \"%s\", so that others "
                        "can be neither reordered nor removed; prune without a permutation",
                        esp_checkpoint_path(job->checkpoint), weight->name);
    }
    for (int i = 0; rule != NULL && i < ESP_FOLD_RANK; i++) {
        bool stays = rule->channels[i] == ESP_CHANNELS_STAY ||
                     (rule->channels[i] == ESP_CHANNELS_RESIDUAL && job->fold.residual_is_output);
        if (!stays) {
            ESP_TRY(bind(job, weight, i, layer, rule->channels[i], error));
        }
    }
    return ESP_OK;
}

/* ---- spaces ---- */

static esp_space *add_space(folding *job, int64_t channels, int64_t block, int64_t unit)
{
    esp_space *space = &job->spaces[job->space_count++];
    *space = (esp_space){.channels = channels, .block = block, .unit = unit};
    return space;
}

/* Adds the axis to the space, if there is one. */
static void add_part(const folding *job, esp_space *space, int64_t layer, int kind, int64_t offset,
                     int64_t head, int64_t copies)
{
    int axis = *axis_of(job, layer, kind) - 1;
    if (axis >= 0) {
        space->parts[space->part_count++] = (esp_space_part){axis, offset, head, copies};
    }
}

/* An axis that is one order as it is. */
static void add_plain(folding *job, int64_t layer, int kind)
{
    int axis = *axis_of(job, layer, kind) - 1;
    if (axis >= 0) {
        int64_t count = job->permutation->axes[axis].count;
        add_part(job, add_space(job, count, count, 1), layer, kind, 0, count, 1);
    }
}

/* Queries, keys or values, which are on an axis of their own or on that of all three. */
static void add_heads(const folding *job, esp_space *space, int64_t layer, int kind)
{
    const esp_fold *fold = &job->fold;
    int64_t third = kind - ESP_CHANNELS_QUERIES;
    int64_t copies = kind == ESP_CHANNELS_QUERIES ? fold->heads / fold->kv_heads : 1;
    add_part(job, space, layer, kind, 0, fold->head_dim, copies);
    add_part(job, space, layer, ESP_CHANNELS_QKV, third * fold->heads * fold->head_dim,
             fold->head_dim, copies);
}

static void add_attention(folding *job, int64_t layer)
{
    const esp_fold *fold = &job->fold;
    int64_t head = fold->head_dim, channels = fold->kv_heads * head;
    esp_space *values = add_space(job, channels, head, 1);
    add_heads(job, values, layer, ESP_CHANNELS_VALUES);
    add_part(job, values, layer, ESP_CHANNELS_MIXED, 0, head, fold->heads / fold->kv_heads);
    if (!fold->positions_in_heads) {
        esp_space *keys = add_space(job, channels, head, 1);
        add_heads(job, keys, layer, ESP_CHANNELS_QUERIES);
        add_heads(job, keys, layer, ESP_CHANNELS_KEYS);
    }
    esp_space *heads = add_space(job, channels, channels, head);
    add_heads(job, heads, layer, ESP_CHANNELS_QUERIES);
    add_heads(job, heads, layer, ESP_CHANNELS_KEYS);
    add_heads(job, heads, layer, ESP_CHANNELS_VALUES);
    add_part(job, heads, layer, ESP_CHANNELS_MIXED, 0, head, fold->heads / fold->kv_heads);
}

static void add_spaces(folding *job, bool keep_residual)
{
    if (!keep_residual) {
        add_plain(job, -1, ESP_CHANNELS_RESIDUAL);
    }
    for (int64_t layer = 0; layer < job->fold.layers; layer++) {
        add_plain(job, layer, ESP_CHANNELS_HIDDEN);
        add_attention(job, layer);
    }
}

static esp_status make(folding *job, bool keep_residual, esp_error *error)
{
    size_t layers = (size_t)job->fold.layers;
    job->axes = esp_alloc_array(job->context, (layers + 1) * ESP_CHANNELS_KINDS, sizeof *job->axes);
    job->spaces = esp_alloc_array(job->context, 4 * layers + 1, sizeof *job->spaces);
    if (job->axes == NULL || job->spaces == NULL) {
        return esp_fail_memory(error, 4 * layers * sizeof *job->spaces, "orders of channels");
    }
    ESP_TRY(esp_permutation_create(job->context, &job->permutation, error));
    for (int64_t i = 0; i < esp_checkpoint_count(job->checkpoint); i++) {
        esp_weight_info weight = esp_checkpoint_get(job->checkpoint, i);
        ESP_TRY(bind_tensor(job, &weight, error));
    }
    add_spaces(job, keep_residual);
    return ESP_OK;
}

esp_status esp_fold_make(const esp_model *model, const esp_checkpoint *checkpoint,
                         bool keep_residual, esp_fold_plan *plan, esp_error *error)
{
    folding job = {.context = model->context, .checkpoint = checkpoint, .family = model->family};
    model->family->fold(model, &job.fold);
    esp_status status = make(&job, keep_residual, error);
    esp_release(job.context, job.axes);
    esp_fold_plan made = {job.permutation, job.spaces, job.space_count};
    if (status != ESP_OK) {
        esp_fold_plan_free(job.context, &made);
        return status;
    }
    *plan = made;
    return ESP_OK;
}

void esp_fold_plan_free(esp_context *context, esp_fold_plan *plan)
{
    esp_permutation_free(plan->permutation);
    esp_release(context, plan->spaces);
    *plan = (esp_fold_plan){0};
}
