/* Lists of the tensors that a part of a model is made of: what is wanted, by name, and where it
 * goes. */
#include <stdio.h>

#include "model/family.h"

static esp_want *add(esp_want_list *list, esp_role role, const char *name, const char *end)
{
    esp_want *want = &list->wants[list->count++];
    *want = (esp_want){.role = role};
    snprintf(want->name, sizeof want->name, "%s%s%s", list->prefix, name, end);
    return want;
}

void esp_want_vector(esp_want_list *list, const char *name, int64_t size, float **target)
{
    esp_want_values(list, name, 1, &size, target);
}

void esp_want_values(esp_want_list *list, const char *name, int rank, const int64_t *shape,
                     float **target)
{
    esp_want *want = add(list, ESP_ROLE_VECTOR, name, "");
    want->out = 1;
    want->rank = rank;
    for (int i = 0; i < rank; i++) {
        want->out *= shape[i];
        want->shape[i] = shape[i];
    }
    want->vector = target;
}

static void set_matrix(esp_want *want, int64_t out, int64_t in)
{
    want->out = want->shape[0] = out;
    want->in = want->shape[1] = in;
    want->rank = 2;
}

void esp_want_linear(esp_want_list *list, const char *name, int64_t out, int64_t in, bool bias,
                     esp_linear *target)
{
    esp_want *want = add(list, ESP_ROLE_LINEAR, name, ".weight");
    want->weight = &target->weight;
    want->linear = target;
    want->inner = !target->is_head;
    want->reads = list->reads;
    snprintf(target->name, sizeof target->name, "%s%s", list->prefix, name);
    set_matrix(want, out, in);
    if (bias) {
        esp_want *of_bias = add(list, ESP_ROLE_VECTOR, name, ".bias");
        of_bias->out = of_bias->shape[0] = out;
        of_bias->rank = 1;
        of_bias->vector = &target->bias;
    }
}

/* "a.b.q_proj+k_proj+v_proj" */
static void name_stack(const esp_want_list *list, const esp_stack *stack, esp_linear *target)
{
    size_t used =
        (size_t)snprintf(target->name, sizeof target->name, "%s%s", list->prefix, stack->names[0]);
    for (int i = 1; i < stack->count && used < sizeof target->name; i++) {
        const char *dot = strrchr(stack->names[i], '.');
        used += (size_t)snprintf(target->name + used, sizeof target->name - used, "+%s",
                                 dot != NULL ? dot + 1 : stack->names[i]);
    }
}

void esp_want_stack(esp_want_list *list, const esp_stack *stack, int64_t in, bool bias,
                    esp_linear *target)
{
    int first = list->count;
    int64_t out = 0;
    for (int i = 0; i < stack->count; i++) {
        out += stack->rows[i];
    }
    esp_want_linear(list, stack->names[0], out, in, bias, target);
    name_stack(list, stack, target);
    for (int i = first; i < list->count; i++) {
        esp_want *want = &list->wants[i];
        const char *end = want->role == ESP_ROLE_VECTOR ? ".bias" : ".weight";
        want->stacked = stack->count;
        want->pairs = stack->pairs;
        memcpy(want->rows, stack->rows, sizeof want->rows);
        for (int k = 1; k < stack->count; k++) {
            snprintf(want->others[k - 1], sizeof want->others[k - 1], "%s%s%s", list->prefix,
                     stack->names[k], end);
        }
    }
}

bool esp_model_stacks(const esp_model *model, const esp_checkpoint *checkpoint, const char *prefix,
                      const esp_stack *stack)
{
    esp_weight_info first = {0};
    /* Near, a launch costs nothing; layer by layer, each weight is looked at and changed. */
    if (!esp_device_is_far(model->device) || model->by_layer) {
        return false;
    }
    for (int i = 0; i < stack->count; i++) {
        char name[160];
        snprintf(name, sizeof name, "%s%s.weight", prefix, stack->names[i]);
        int64_t index = esp_checkpoint_find(checkpoint, name);
        if (index < 0) {
            return false;
        }
        esp_weight_info info = esp_checkpoint_get(checkpoint, index);
        first = i == 0 ? info : first;
        if (info.dtype != first.dtype || !esp_pattern_equal(&info.pattern, &first.pattern)) {
            return false;
        }
    }
    return esp_pattern_stacks(&first.pattern, stack->rows, stack->count, stack->pairs);
}

void esp_want_convolution(esp_want_list *list, const char *name, int64_t out, int64_t channels,
                          int64_t side, bool bias, esp_linear *target)
{
    int at = list->count;
    esp_want_linear(list, name, out, channels * side * side, bias, target);
    esp_want *want = &list->wants[at];
    want->rank = 4;
    memcpy(want->shape, (int64_t[]){out, channels, side, side}, sizeof want->shape);
    want->inner = false;
}

void esp_want_table(esp_want_list *list, const char *name, int64_t rows, int64_t columns,
                    esp_packed **target, esp_tensor *view)
{
    esp_want *want = add(list, ESP_ROLE_TABLE, name, ".weight");
    set_matrix(want, rows, columns);
    want->weight = target;
    want->table = view;
}

void esp_weights_list(esp_model *model, int64_t part, esp_want_list *list)
{
    list->count = 0;
    list->prefix[0] = '\0';
    list->reads = (esp_norm_at){NULL, NULL};
    model->family->list_part(model, part, list);
}
