/* From the rules of folding: values within heads are a space that lies on an axis of mixed values
 * and on one of values (or of queries, keys and values together). */
#include "model/values.h"

#include <stdio.h>

#include "model/fold.h"

struct esp_value_places {
    esp_context *context;
    esp_fold_plan fold;
};

esp_status esp_value_places_find(esp_device *device, const esp_checkpoint *checkpoint,
                                 esp_value_places **places, esp_error *error)
{
    esp_model *model = NULL;
    esp_value_places *made = esp_alloc_zero(device->context, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "places of values");
    }
    made->context = device->context;
    esp_status status = esp_model_outline(device, checkpoint, &model, error);
    status = status == ESP_OK ? esp_fold_make(model, checkpoint, true, &made->fold, error) : status;
    esp_model_free(model);
    if (status != ESP_OK) {
        esp_release(device->context, made);
        return status;
    }
    *places = made;
    return ESP_OK;
}

void esp_value_places_free(esp_value_places *places)
{
    if (places != NULL) {
        esp_fold_plan_free(places->context, &places->fold);
        esp_release(places->context, places);
    }
}

static bool is_axis(const esp_fold_plan *fold, int axis, const char *name)
{
    return strcmp(fold->permutation->axes[axis].name, name) == 0;
}

/* The space of values within the layer's heads. */
static const esp_space *find_space(const esp_fold_plan *fold, int64_t layer)
{
    char name[48];
    snprintf(name, sizeof name, "layers.%lld.mixed", (long long)layer);
    for (int i = 0; i < fold->space_count; i++) {
        const esp_space *space = &fold->spaces[i];
        if (space->unit == 1 && space->part_count == 2 &&
            (is_axis(fold, space->parts[0].axis, name) ||
             is_axis(fold, space->parts[1].axis, name))) {
            return space;
        }
    }
    return NULL;
}

static bool is_weight(const char *name)
{
    static const char end[] = ".weight";
    size_t length = strlen(name);
    return length >= sizeof end && strcmp(name + length - (sizeof end - 1), end) == 0;
}

static void find_tensors(const esp_permutation *names, esp_value_heads *heads)
{
    for (int64_t i = 0; i < names->binding_count; i++) {
        const esp_axis_binding *binding = &names->bindings[i];
        if (binding->axis == heads->mixed.axis && binding->dimension == 1) {
            heads->o = binding->tensor;
        } else if (binding->axis == heads->values.axis && is_weight(binding->tensor)) {
            heads->v = binding->tensor;
        } else if (binding->axis == heads->values.axis) {
            heads->has_bias = true;
        }
    }
}

esp_value_heads esp_value_places_of(const esp_value_places *places, int64_t layer)
{
    esp_value_heads heads = {0};
    char name[48];
    const esp_space *space = find_space(&places->fold, layer);
    if (space == NULL) {
        return heads;
    }
    snprintf(name, sizeof name, "layers.%lld.mixed", (long long)layer);
    int mixed = is_axis(&places->fold, space->parts[0].axis, name) ? 0 : 1;
    heads.mixed = space->parts[mixed];
    heads.values = space->parts[1 - mixed];
    heads.head = space->block;
    heads.heads = space->channels / space->block;
    find_tensors(places->fold.permutation, &heads);
    return heads;
}
