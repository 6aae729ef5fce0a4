/* Several weights of one input as one weight: rows one behind the other, or those of two in turn.
 * Products of the parts become one product. Dense weights and panels only. */
#include "format/format.h"

/* Where row r of part i of `count` goes. */
typedef struct stacking {
    const esp_sparse *const *parts;
    int count;
    bool pairs;
    int64_t first[ESP_MOST_STACKED];
} stacking;

static int64_t place_of(const stacking *of, int part, int64_t row)
{
    return of->pairs ? 2 * row + part : of->first[part] + row;
}

static const char *bytes_of(const esp_tensor *tensor)
{
    return tensor->data;
}

/* Rows of `name` that belong to the weight's own. */
static void copy_rows(const stacking *of, const char *name, esp_sparse *to)
{
    const esp_tensor *made = esp_sparse_find_part(to, name);
    size_t width = (size_t)made->shape[1] * esp_dtype_bytes(made->dtype);
    for (int i = 0; i < of->count; i++) {
        const esp_tensor *from = esp_sparse_find_part(of->parts[i], name);
        for (int64_t row = 0; row < from->shape[0]; row++) {
            memcpy((char *)made->data + (size_t)place_of(of, i, row) * width,
                   bytes_of(from) + (size_t)row * width, width);
        }
    }
}

/* Lists of panels, which are whole: one list behind the other. */
static void copy_columns(const stacking *of, esp_sparse *to)
{
    const esp_tensor *made = esp_sparse_find_part(to, "columns");
    char *at = made != NULL ? made->data : NULL;
    for (int i = 0; at != NULL && i < of->count; i++) {
        const esp_tensor *from = esp_sparse_find_part(of->parts[i], "columns");
        size_t bytes = (size_t)(from->shape[0] * from->shape[1]) * esp_dtype_bytes(from->dtype);
        memcpy(at, from->data, bytes);
        at += bytes;
    }
}

static int64_t row_at(const esp_tensor *rows, int64_t i)
{
    return rows == NULL             ? i
           : rows->dtype == ESP_U32 ? (int64_t)((const uint32_t *)rows->data)[i]
                                    : (int64_t)((const uint16_t *)rows->data)[i];
}

static void copy_order(const stacking *of, esp_sparse *to)
{
    const esp_tensor *made = esp_sparse_find_part(to, "rows");
    for (int i = 0; made != NULL && i < of->count; i++) {
        const esp_tensor *from = esp_sparse_find_part(of->parts[i], "rows");
        for (int64_t row = 0; row < of->parts[i]->out_features; row++) {
            int64_t stored = place_of(of, i, row), output = place_of(of, i, row_at(from, row));
            if (made->dtype == ESP_U32) {
                ((uint32_t *)made->data)[stored] = (uint32_t)output;
            } else {
                ((uint16_t *)made->data)[stored] = (uint16_t)output;
            }
        }
    }
}

bool esp_pattern_stacks(const esp_pattern *pattern, const int64_t *rows, int count, bool pairs)
{
    if (pattern->kind == ESP_PATTERN_DENSE || esp_pattern_is_2_4(pattern)) {
        for (int i = 1; i < count; i++) {
            if (pairs && rows[i] != rows[0]) {
                return false;
            }
        }
        return !pairs || count == 2;
    }
    bool whole = pattern->kind == ESP_PATTERN_PANEL && !pairs;
    for (int i = 0; i < count && whole; i++) {
        whole = rows[i] % pattern->v == 0;
    }
    return whole;
}

/* Takes memory for the parts of the whole. */
static esp_status make(const esp_sparse *like, int64_t out, bool has_rows, esp_sparse **sparse,
                       esp_error *error)
{
    esp_context *context = like->context;
    esp_sparse *made = esp_alloc_zero(context, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "a weight");
    }
    *made = (esp_sparse){.context = context,
                         .pattern = like->pattern,
                         .dtype = like->dtype,
                         .out_features = out,
                         .in_features = like->in_features};
    esp_sparse_part parts[ESP_SPARSE_MAX_PARTS];
    int count = 0;
    esp_status status = esp_sparse_layout(&like->pattern, like->dtype, out, like->in_features,
                                          has_rows, parts, &count, error);
    for (int i = 0; i < count && status == ESP_OK; i++) {
        made->parts[i] = parts[i];
        made->parts[i].tensor = (esp_tensor){0};
        status = esp_tensor_create(context, parts[i].tensor.dtype, parts[i].tensor.rank,
                                   parts[i].tensor.shape, &made->parts[i].tensor, error);
        made->part_count = i + 1;
    }
    if (status != ESP_OK) {
        esp_sparse_free(made);
        return status;
    }
    *sparse = made;
    return ESP_OK;
}

esp_status esp_sparse_stack(const esp_sparse *const *parts, int count, bool pairs,
                            esp_sparse **sparse, esp_error *error)
{
    stacking of = {.parts = parts, .count = count, .pairs = pairs};
    int64_t out = 0;
    bool ordered = false;
    for (int i = 0; i < count; i++) {
        of.first[i] = out;
        out += parts[i]->out_features;
        ordered = ordered || esp_sparse_find_part(parts[i], "rows") != NULL;
    }
    esp_sparse *made = NULL;
    ESP_TRY(make(parts[0], out, ordered, &made, error));
    if (made->pattern.kind == ESP_PATTERN_DENSE) {
        copy_rows(&of, "", made);
    } else {
        copy_rows(&of, "values", made);
        copy_rows(&of, "positions", made);
        copy_columns(&of, made);
        copy_order(&of, made);
    }
    *sparse = made;
    return ESP_OK;
}
