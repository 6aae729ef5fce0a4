/* The values of a compressed weight in another type; what they belong to stays. */
#include <math.h>

#include "format/format.h"

#define PIECE 256 /* values at a time */

static esp_status retype_values(esp_dtype from_type, const char *from, esp_dtype to_type, char *to,
                                int64_t count, esp_error *error)
{
    size_t from_width = esp_dtype_bytes(from_type), to_width = esp_dtype_bytes(to_type);
    for (int64_t first = 0; first < count; first += PIECE) {
        float wide[PIECE], back[PIECE];
        int64_t some = ESP_MIN(PIECE, count - first);
        char *at = to + (size_t)first * to_width;
        esp_widen(from_type, from + (size_t)first * from_width, some, wide);
        esp_narrow(to_type, wide, some, at);
        esp_widen(to_type, at, some, back);
        for (int64_t i = 0; i < some; i++) {
            if (isinf(back[i]) && !isinf(wide[i])) {
                return esp_fail(error, ESP_UNSUPPORTED, "sparse.type_overflow",
                                "a weight of %g is too large for %s; use --compute bf16",
                                (double)wide[i], esp_dtype_name(to_type));
            }
        }
    }
    return ESP_OK;
}

static bool holds_values(const esp_sparse *sparse, const esp_sparse_part *part)
{
    return part->tensor.dtype == sparse->dtype &&
           (part->name[0] == '\0' || strcmp(part->name, "values") == 0);
}

esp_status esp_sparse_retype(esp_sparse *sparse, esp_dtype dtype, esp_error *error)
{
    for (int i = 0; i < sparse->part_count && sparse->dtype != dtype; i++) {
        esp_tensor *old = &sparse->parts[i].tensor, made = {0};
        if (!holds_values(sparse, &sparse->parts[i])) {
            continue;
        }
        int64_t count = 1;
        for (int k = 0; k < old->rank; k++) {
            count *= old->shape[k];
        }
        ESP_TRY(esp_tensor_create(sparse->context, dtype, old->rank, old->shape, &made, error));
        esp_status status = retype_values(old->dtype, old->data, dtype, made.data, count, error);
        if (status != ESP_OK) {
            esp_tensor_free(sparse->context, &made);
            return status;
        }
        esp_tensor_free(sparse->context, old);
        *old = made;
        sparse->dtype = dtype;
        return ESP_OK;
    }
    return ESP_OK;
}
