/* The list of axes and bindings, reordering tensors by it, and its record in a folder. */
#include "prune/permutation.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

esp_status esp_permutation_create(esp_context *context, esp_permutation **permutation,
                                  esp_error *error)
{
    esp_permutation *made = esp_alloc_zero(context, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "a permutation");
    }
    made->context = context;
    made->score = "";
    *permutation = made;
    return ESP_OK;
}

void esp_permutation_free(esp_permutation *permutation)
{
    if (permutation == NULL) {
        return;
    }
    esp_context *context = permutation->context;
    for (int i = 0; i < permutation->axis_count; i++) {
        esp_release(context, permutation->axes[i].order);
    }
    for (int64_t i = 0; i < permutation->binding_count; i++) {
        esp_release(context, permutation->bindings[i].tensor);
    }
    esp_release(context, permutation->axes);
    esp_release(context, permutation->bindings);
    esp_release(context, permutation);
}

esp_status esp_permutation_add_axis(esp_permutation *permutation, const char *name, int64_t count,
                                    int *axis, esp_error *error)
{
    esp_context *context = permutation->context;
    if (permutation->axis_count == permutation->axis_capacity) {
        size_t old = (size_t)permutation->axis_capacity, capacity = old > 0 ? 2 * old : 16;
        esp_axis *grown =
            esp_realloc(context, permutation->axes, old * sizeof *grown, capacity * sizeof *grown);
        if (grown == NULL) {
            return esp_fail_memory(error, capacity * sizeof *grown, "a permutation");
        }
        permutation->axes = grown;
        permutation->axis_capacity = (int)capacity;
    }
    uint32_t *order = esp_alloc_array(context, (size_t)count, sizeof *order);
    if (order == NULL) {
        return esp_fail_memory(error, (size_t)count * sizeof *order, "an order of channels");
    }
    for (int64_t i = 0; i < count; i++) {
        order[i] = (uint32_t)i;
    }
    esp_axis *added = &permutation->axes[permutation->axis_count];
    *added = (esp_axis){.count = count, .order = order};
    snprintf(added->name, sizeof added->name, "%s", name);
    *axis = permutation->axis_count++;
    return ESP_OK;
}

esp_status esp_permutation_bind(esp_permutation *permutation, const char *tensor, int dimension,
                                int axis, esp_error *error)
{
    esp_context *context = permutation->context;
    if (permutation->binding_count == permutation->binding_capacity) {
        size_t old = (size_t)permutation->binding_capacity, capacity = old > 0 ? 2 * old : 64;
        esp_axis_binding *grown = esp_realloc(context, permutation->bindings, old * sizeof *grown,
                                              capacity * sizeof *grown);
        if (grown == NULL) {
            return esp_fail_memory(error, capacity * sizeof *grown, "a permutation");
        }
        permutation->bindings = grown;
        permutation->binding_capacity = (int64_t)capacity;
    }
    char *name = esp_strdup(context, tensor);
    if (name == NULL) {
        return esp_fail_memory(error, strlen(tensor) + 1, "a tensor name");
    }
    permutation->bindings[permutation->binding_count++] =
        (esp_axis_binding){.tensor = name, .dimension = dimension, .axis = axis};
    return ESP_OK;
}

int esp_permutation_axis(const esp_permutation *permutation, const char *tensor, int dimension)
{
    for (int64_t i = 0; i < permutation->binding_count; i++) {
        const esp_axis_binding *binding = &permutation->bindings[i];
        if (binding->dimension == dimension && strcmp(binding->tensor, tensor) == 0) {
            return binding->axis;
        }
    }
    return -1;
}

bool esp_axis_is_moved(const esp_axis *axis)
{
    for (int64_t i = 0; i < axis->count; i++) {
        if (axis->order[i] != i) {
            return true;
        }
    }
    return false;
}

esp_status esp_permutation_check(const esp_permutation *permutation, esp_error *error)
{
    esp_context *context = permutation->context;
    for (int i = 0; i < permutation->axis_count; i++) {
        const esp_axis *axis = &permutation->axes[i];
        size_t words = (size_t)axis->count / 64 + 1;
        uint64_t *seen = esp_alloc_array(context, words, sizeof *seen);
        if (seen == NULL) {
            return esp_fail_memory(error, words * sizeof *seen, "checking an order");
        }
        bool fine = esp_is_bijection(axis->order, axis->count, seen);
        esp_release(context, seen);
        if (!fine) {
            return esp_fail(error, ESP_BAD_ARGUMENT, "permutation.not_bijection",
                            "the order of \"%s\" does not name each of its %lld channels once",
                            axis->name, (long long)axis->count);
        }
    }
    return ESP_OK;
}

/* ---- applying ---- */

/* items[i] = items[order[i]] among `count` items of `bytes` each, in each of `outer` runs; back:
 * items[order[i]] = items[i]. */
static esp_status reorder(esp_context *context, const esp_axis *axis, bool back, size_t outer,
                          size_t bytes, char *data, esp_error *error)
{
    size_t run = (size_t)axis->count * bytes;
    char *old = esp_alloc(context, run);
    if (old == NULL) {
        return esp_fail_memory(error, run, "reordering a tensor");
    }
    for (size_t i = 0; i < outer; i++, data += run) {
        memcpy(old, data, run);
        for (int64_t at = 0; at < axis->count; at++) {
            size_t from = (size_t)(back ? at : axis->order[at]);
            size_t to = (size_t)(back ? axis->order[at] : at);
            memcpy(data + to * bytes, old + from * bytes, bytes);
        }
    }
    esp_release(context, old);
    return ESP_OK;
}

static esp_status apply_one(const esp_permutation *permutation, const esp_axis_binding *binding,
                            bool back, esp_tensor *tensor, esp_error *error)
{
    const esp_axis *axis = &permutation->axes[binding->axis];
    if (binding->dimension >= tensor->rank || tensor->shape[binding->dimension] != axis->count) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "permutation.wrong_shape",
                        "tensor \"%s\" has no %lld channels in dimension %d, which the order of "
                        "\"%s\" is for",
                        binding->tensor, (long long)axis->count, binding->dimension, axis->name);
    }
    size_t outer = 1, bytes = esp_dtype_bytes(tensor->dtype);
    for (int i = 0; i < tensor->rank; i++) {
        outer *= i < binding->dimension ? (size_t)tensor->shape[i] : 1;
        bytes *= i > binding->dimension ? (size_t)tensor->shape[i] : 1;
    }
    return esp_axis_is_moved(axis)
               ? reorder(permutation->context, axis, back, outer, bytes, tensor->data, error)
               : ESP_OK;
}

static esp_status apply_all(const esp_permutation *permutation, const char *name, bool back,
                            esp_tensor *tensor, esp_error *error)
{
    for (int64_t i = 0; i < permutation->binding_count; i++) {
        if (strcmp(permutation->bindings[i].tensor, name) == 0) {
            ESP_TRY(apply_one(permutation, &permutation->bindings[i], back, tensor, error));
        }
    }
    return ESP_OK;
}

esp_status esp_permutation_apply(const esp_permutation *permutation, const char *name,
                                 esp_tensor *tensor, esp_error *error)
{
    return apply_all(permutation, name, false, tensor, error);
}

esp_status esp_permutation_undo(const esp_permutation *permutation, const char *name,
                                esp_tensor *tensor, esp_error *error)
{
    return apply_all(permutation, name, true, tensor, error);
}

esp_status esp_permutation_apply_to(const esp_permutation *permutation, int axis, int64_t outer,
                                    int64_t inner, double *items, esp_error *error)
{
    return axis >= 0 && esp_axis_is_moved(&permutation->axes[axis])
               ? reorder(permutation->context, &permutation->axes[axis], false, (size_t)outer,
                         (size_t)inner * sizeof *items, (char *)items, error)
               : ESP_OK;
}

/* ---- telling ---- */

void esp_permutation_print(const esp_permutation *permutation, esp_buffer *text)
{
    bool first = true;
    esp_permutation_summary summary;
    esp_permutation_get_summary(permutation, &summary);
    esp_buffer_printf(text, "{\"score\": \"%s\", \"kept_before\": %.9g, \"kept_after\": %.9g, ",
                      permutation->score, summary.kept_before, summary.kept_after);
    if (summary.judged_layers > 0) {
        esp_buffer_printf(text, "\"error_before\": %.9g, \"error_after\": %.9g, ",
                          summary.error_before, summary.error_after);
    }
    esp_buffer_text(text, "\"orders\": {");
    for (int i = 0; i < permutation->axis_count; i++) {
        const esp_axis *axis = &permutation->axes[i];
        if (!esp_axis_is_moved(axis)) {
            continue;
        }
        esp_buffer_printf(text, "%s\n      \"%s\": [", first ? "" : ",", axis->name);
        for (int64_t at = 0; at < axis->count; at++) {
            esp_buffer_printf(text, "%s%" PRIu32, at > 0 ? "," : "", axis->order[at]);
        }
        esp_buffer_text(text, "]");
        first = false;
    }
    esp_buffer_text(text, "}}");
}

void esp_permutation_get_summary(const esp_permutation *permutation,
                                 esp_permutation_summary *summary)
{
    double all = permutation->all > 0 ? permutation->all : 1;
    double judged = permutation->judged > 0 ? (double)permutation->judged : 1;
    *summary = (esp_permutation_summary){.kept_before = permutation->kept_before / all,
                                         .kept_after = permutation->kept_after / all,
                                         .judged_layers = permutation->judged,
                                         .error_before = permutation->error_before / judged,
                                         .error_after = permutation->error_after / judged};
    for (int i = 0; i < permutation->axis_count; i++) {
        const esp_axis *axis = &permutation->axes[i];
        summary->orders++;
        summary->moved_orders += esp_axis_is_moved(axis);
        for (int64_t at = 0; at < axis->count; at++) {
            summary->moved_channels += axis->order[at] != at;
        }
    }
}
