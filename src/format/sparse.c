/* Compressed weights, whatever their format: make, take apart, checksum, print. The formats
 * themselves are records in an explicit list. */
#include "format/formats.h"

static const esp_format *const formats[] = {&esp_format_dense, &esp_format_panel, &esp_format_nm,
                                            &esp_format_csr,   &esp_format_bsr,   &esp_format_rows,
                                            &esp_format_cols};

const esp_format *esp_format_for(const esp_pattern *pattern)
{
    for (int i = 0; i < ESP_COUNT(formats); i++) {
        if (formats[i]->accepts(pattern)) {
            return formats[i];
        }
    }
    return NULL;
}

const esp_tensor *esp_sparse_find_part(const esp_sparse *sparse, const char *name)
{
    for (int i = 0; i < sparse->part_count; i++) {
        if (strcmp(sparse->parts[i].name, name) == 0) {
            return &sparse->parts[i].tensor;
        }
    }
    return NULL;
}

/* ---- layout ---- */

static esp_status find_format(const esp_pattern *pattern, const esp_format **format,
                              esp_error *error)
{
    ESP_TRY(esp_pattern_check(pattern, error));
    *format = esp_format_for(pattern);
    return ESP_OK;
}

esp_status esp_sparse_layout(const esp_pattern *pattern, esp_dtype dtype, int64_t out_features,
                             int64_t in_features, bool has_rows,
                             esp_sparse_part parts[ESP_SPARSE_MAX_PARTS], int *count,
                             esp_error *error)
{
    const esp_format *format = NULL;
    esp_sparse_part made[ESP_SPARSE_MAX_PARTS] = {0};
    int made_count = 0;
    ESP_TRY(find_format(pattern, &format, error));
    if (!esp_dtype_is_weight(dtype)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "format.bad_dtype",
                        "weights are F32, F16 or BF16, not %s", esp_dtype_name(dtype));
    }
    esp_tensor dense = {.dtype = dtype, .rank = 2, .shape = {out_features, in_features}};
    ESP_TRY(esp_tensor_size(&dense, NULL, NULL, error));
    ESP_TRY(format->layout(pattern, dtype, out_features, in_features, has_rows, made, &made_count,
                           error));
    for (int i = 0; i < made_count; i++) {
        ESP_TRY(esp_tensor_size(&made[i].tensor, NULL, NULL, error));
    }
    memcpy(parts, made, sizeof made);
    *count = made_count;
    return ESP_OK;
}

esp_status esp_sparse_layout_bytes(const esp_pattern *pattern, esp_dtype dtype,
                                   int64_t out_features, int64_t in_features, bool has_rows,
                                   size_t *bytes, esp_error *error)
{
    esp_sparse_part parts[ESP_SPARSE_MAX_PARTS];
    int count = 0;
    size_t total = 0;
    ESP_TRY(esp_sparse_layout(pattern, dtype, out_features, in_features, has_rows, parts, &count,
                              error));
    for (int i = 0; i < count; i++) {
        size_t part;
        ESP_TRY(esp_tensor_size(&parts[i].tensor, NULL, &part, error));
        if (!esp_add_size(total, part, &total)) {
            return esp_fail(error, ESP_OUT_OF_MEMORY, "tensor.too_large",
                            "a weight of [%lld, %lld]: its size does not fit an address space",
                            (long long)out_features, (long long)in_features);
        }
    }
    *bytes = total;
    return ESP_OK;
}

/* Sizes were checked when the parts were made, so they can only succeed here. */
static size_t part_bytes(const esp_sparse_part *part)
{
    size_t bytes = 0;
    return esp_tensor_size(&part->tensor, NULL, &bytes, NULL) == ESP_OK ? bytes : 0;
}

/* ---- create and free ---- */

esp_status esp_sparse_create(esp_context *context, const esp_pattern *pattern, esp_dtype dtype,
                             int64_t out_features, int64_t in_features, bool has_rows,
                             esp_sparse **sparse, esp_error *error)
{
    esp_sparse_part parts[ESP_SPARSE_MAX_PARTS];
    int count = 0;
    ESP_TRY(esp_sparse_layout(pattern, dtype, out_features, in_features, has_rows, parts, &count,
                              error));
    esp_sparse *made = esp_alloc_zero(context, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "a compressed weight");
    }
    *made = (esp_sparse){.context = context,
                         .pattern = *pattern,
                         .dtype = dtype,
                         .out_features = out_features,
                         .in_features = in_features};
    for (int i = 0; i < count; i++) {
        const esp_tensor *wanted = &parts[i].tensor;
        esp_status status = esp_tensor_create(context, wanted->dtype, wanted->rank, wanted->shape,
                                              &made->parts[i].tensor, error);
        if (status != ESP_OK) {
            esp_sparse_free(made);
            return status;
        }
        made->parts[i].name = parts[i].name;
        made->part_count = i + 1;
    }
    *sparse = made;
    return ESP_OK;
}

void esp_sparse_free(esp_sparse *sparse)
{
    if (sparse != NULL) {
        for (int i = 0; i < sparse->part_count; i++) {
            esp_tensor_free(sparse->context, &sparse->parts[i].tensor);
        }
        esp_release(sparse->context, sparse);
    }
}

static esp_status encode_under(esp_context *context, const esp_pattern *pattern,
                               const esp_tensor *dense, const esp_mask *mask, esp_sparse **sparse,
                               esp_error *error)
{
    esp_sparse *made = NULL;
    bool has_rows = pattern->kind == ESP_PATTERN_PANEL && esp_mask_rows(mask) != NULL;
    if (esp_mask_out_features(mask) != dense->shape[0] ||
        esp_mask_in_features(mask) != dense->shape[1]) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "mask.shape_mismatch",
                        "a mask of [%lld, %lld] does not fit a tensor of [%lld, %lld]",
                        (long long)esp_mask_out_features(mask),
                        (long long)esp_mask_in_features(mask), (long long)dense->shape[0],
                        (long long)dense->shape[1]);
    }
    ESP_TRY(esp_sparse_create(context, pattern, dense->dtype, dense->shape[0], dense->shape[1],
                              has_rows, &made, error));
    esp_status status = esp_format_for(pattern)->encode(dense, mask, made, error);
    if (status != ESP_OK) {
        esp_sparse_free(made);
        return status;
    }
    *sparse = made;
    return ESP_OK;
}

/* Pattern dense, no mask: every entry verbatim. */
static esp_status encode_verbatim(esp_context *context, const esp_pattern *pattern,
                                  const esp_tensor *dense, esp_sparse **sparse, esp_error *error)
{
    esp_sparse_part part = {.name = "", .tensor = *dense};
    return esp_sparse_from_parts(context, pattern, dense->dtype, dense->shape[0], dense->shape[1],
                                 &part, 1, sparse, error);
}

esp_status esp_sparse_encode(esp_context *context, const esp_pattern *pattern,
                             const esp_tensor *dense, const esp_mask *mask, esp_sparse **sparse,
                             esp_error *error)
{
    const esp_format *format = NULL;
    ESP_TRY(find_format(pattern, &format, error));
    if (dense->rank != 2 || !esp_dtype_is_weight(dense->dtype)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "format.bad_tensor",
                        "a weight must be F32, F16 or BF16 of rank 2, not %s of rank %d",
                        esp_dtype_name(dense->dtype), dense->rank);
    }
    if (mask != NULL) {
        return encode_under(context, pattern, dense, mask, sparse, error);
    }
    if (format == &esp_format_dense) {
        return encode_verbatim(context, pattern, dense, sparse, error);
    }
    esp_mask *nonzero = NULL;
    ESP_TRY(esp_mask_from_dense(context, dense, &nonzero, error));
    esp_status status = encode_under(context, pattern, dense, nonzero, sparse, error);
    esp_mask_free(nonzero);
    return status;
}

/* ---- from parts ---- */

static const esp_sparse_part *find_given(const esp_sparse_part *parts, int count, const char *name)
{
    for (int i = 0; i < count; i++) {
        if (strcmp(parts[i].name, name) == 0) {
            return &parts[i];
        }
    }
    return NULL;
}

static const char *shown_name(const char *name)
{
    return name[0] != '\0' ? name : "the tensor itself";
}

/* Every given part is one of the layout's, and none is given twice. */
static esp_status check_names(const esp_pattern *pattern, const esp_sparse_part *wanted,
                              int wanted_count, const esp_sparse_part *parts, int count,
                              esp_error *error)
{
    for (int i = 0; i < count; i++) {
        if (find_given(wanted, wanted_count, parts[i].name) == NULL) {
            char text[ESP_PATTERN_TEXT_MAX];
            esp_pattern_print(pattern, text);
            return esp_fail(error, ESP_BAD_FILE, "sparse.unknown_part",
                            "part \"%s\" does not belong to a weight of pattern %s", parts[i].name,
                            text);
        }
        if (find_given(parts, count, parts[i].name) != &parts[i]) {
            return esp_fail(error, ESP_BAD_FILE, "sparse.duplicate_part", "part \"%s\" came twice",
                            parts[i].name);
        }
    }
    return ESP_OK;
}

static esp_status check_shape(const esp_sparse_part *wanted, const esp_tensor *given,
                              esp_error *error)
{
    const esp_tensor *right = &wanted->tensor;
    if (given->dtype != right->dtype) {
        return esp_fail(error, ESP_BAD_FILE, "sparse.wrong_dtype", "%s is %s, expected %s",
                        shown_name(wanted->name), esp_dtype_name(given->dtype),
                        esp_dtype_name(right->dtype));
    }
    size_t shape_bytes = (size_t)right->rank * sizeof right->shape[0];
    if (given->rank == right->rank && memcmp(given->shape, right->shape, shape_bytes) == 0) {
        return ESP_OK;
    }
    char is[128], should_be[128];
    bool printable = given->rank >= 0 && given->rank <= ESP_MAX_RANK;
    esp_shape_print(printable ? given->rank : 0, given->shape, is, sizeof is);
    esp_shape_print(right->rank, right->shape, should_be, sizeof should_be);
    if (strcmp(wanted->name, "columns") == 0 && right->rank == 2 && given->rank == 2 &&
        given->shape[0] != right->shape[0]) {
        return esp_fail(error, ESP_BAD_FILE, "sparse.panel_count",
                        "columns is %s: %lld panels, expected %lld (out / V rounded up), %s", is,
                        (long long)given->shape[0], (long long)right->shape[0], should_be);
    }
    return esp_fail(error, ESP_BAD_FILE, "sparse.wrong_shape", "%s is %s, expected %s",
                    shown_name(wanted->name), is, should_be);
}

/* Before anything is allocated: a hostile shape must fail as such, not as lack of memory. */
static esp_status check_parts(const esp_pattern *pattern, const esp_sparse_part *wanted,
                              int wanted_count, const esp_sparse_part *parts, int count,
                              esp_error *error)
{
    ESP_TRY(check_names(pattern, wanted, wanted_count, parts, count, error));
    for (int i = 0; i < wanted_count; i++) {
        const esp_sparse_part *given = find_given(parts, count, wanted[i].name);
        if (given == NULL) {
            return esp_fail(error, ESP_BAD_FILE, "sparse.missing_part", "part \"%s\" is missing",
                            wanted[i].name);
        }
        ESP_TRY(check_shape(&wanted[i], &given->tensor, error));
    }
    return ESP_OK;
}

esp_status esp_sparse_from_parts(esp_context *context, const esp_pattern *pattern, esp_dtype dtype,
                                 int64_t out_features, int64_t in_features,
                                 const esp_sparse_part *parts, int count, esp_sparse **sparse,
                                 esp_error *error)
{
    bool has_rows = pattern->kind == ESP_PATTERN_PANEL && find_given(parts, count, "rows") != NULL;
    esp_sparse_part wanted[ESP_SPARSE_MAX_PARTS];
    int wanted_count = 0;
    ESP_TRY(esp_sparse_layout(pattern, dtype, out_features, in_features, has_rows, wanted,
                              &wanted_count, error));
    ESP_TRY(check_parts(pattern, wanted, wanted_count, parts, count, error));
    esp_sparse *made = NULL;
    ESP_TRY(esp_sparse_create(context, pattern, dtype, out_features, in_features, has_rows, &made,
                              error));
    for (int i = 0; i < made->part_count; i++) {
        size_t bytes = part_bytes(&made->parts[i]);
        if (bytes > 0) {
            memcpy(made->parts[i].tensor.data,
                   find_given(parts, count, made->parts[i].name)->tensor.data, bytes);
        }
    }
    *sparse = made;
    return ESP_OK;
}

/* ---- use ---- */

esp_status esp_sparse_decode(const esp_sparse *sparse, esp_tensor *dense, esp_error *error)
{
    if (dense->rank != 2 || dense->dtype != sparse->dtype ||
        dense->shape[0] != sparse->out_features || dense->shape[1] != sparse->in_features) {
        char shape[128];
        bool printable = dense->rank >= 0 && dense->rank <= ESP_MAX_RANK;
        esp_shape_print(printable ? dense->rank : 0, dense->shape, shape, sizeof shape);
        return esp_fail(error, ESP_BAD_ARGUMENT, "format.bad_tensor",
                        "decoding needs a tensor %s [%lld, %lld], not %s %s",
                        esp_dtype_name(sparse->dtype), (long long)sparse->out_features,
                        (long long)sparse->in_features, esp_dtype_name(dense->dtype), shape);
    }
    return esp_format_for(&sparse->pattern)->decode(sparse, dense, error);
}

esp_status esp_sparse_check(const esp_sparse *sparse, esp_error *error)
{
    return esp_format_for(&sparse->pattern)->check(sparse, error);
}

esp_pattern esp_sparse_pattern(const esp_sparse *sparse)
{
    return sparse->pattern;
}

esp_dtype esp_sparse_dtype(const esp_sparse *sparse)
{
    return sparse->dtype;
}

int64_t esp_sparse_out_features(const esp_sparse *sparse)
{
    return sparse->out_features;
}

int64_t esp_sparse_in_features(const esp_sparse *sparse)
{
    return sparse->in_features;
}

int esp_sparse_part_count(const esp_sparse *sparse)
{
    return sparse->part_count;
}

esp_sparse_part esp_sparse_get_part(const esp_sparse *sparse, int index)
{
    return sparse->parts[index];
}

size_t esp_sparse_bytes(const esp_sparse *sparse)
{
    size_t total = 0;
    for (int i = 0; i < sparse->part_count; i++) {
        total += part_bytes(&sparse->parts[i]);
    }
    return total;
}

uint32_t esp_sparse_crc32c(const esp_sparse *sparse)
{
    uint32_t crc = 0;
    for (int i = 0; i < sparse->part_count; i++) {
        crc = esp_crc32c(crc, sparse->parts[i].tensor.data, part_bytes(&sparse->parts[i]));
    }
    return crc;
}

/* ---- print ---- */

static void print_head(const esp_sparse *sparse, esp_buffer *text)
{
    char pattern[ESP_PATTERN_TEXT_MAX], shape[128];
    size_t dense_bytes =
        (size_t)(sparse->out_features * sparse->in_features) * esp_dtype_bytes(sparse->dtype);
    esp_pattern_print(&sparse->pattern, pattern);
    esp_buffer_printf(text, "%s %s [%lld, %lld], %zu bytes (dense %zu), crc32c %08x\n", pattern,
                      esp_dtype_short_name(sparse->dtype), (long long)sparse->out_features,
                      (long long)sparse->in_features, esp_sparse_bytes(sparse), dense_bytes,
                      esp_sparse_crc32c(sparse));
    for (int i = 0; i < sparse->part_count && sparse->parts[i].name[0] != '\0'; i++) {
        const esp_tensor *part = &sparse->parts[i].tensor;
        esp_shape_print(part->rank, part->shape, shape, sizeof shape);
        esp_buffer_printf(text, "  %s %s %s\n", sparse->parts[i].name, esp_dtype_name(part->dtype),
                          shape);
    }
}

void esp_sparse_print(const esp_sparse *sparse, int64_t max_rows, esp_write_fn write, void *user)
{
    esp_buffer text;
    esp_buffer_init(&text, sparse->context);
    print_head(sparse, &text);
    int64_t shown = ESP_MIN(max_rows, sparse->out_features);
    for (int64_t row = 0; row < shown && !text.failed; row++) {
        esp_format_for(&sparse->pattern)->print_row(sparse, row, &text);
    }
    if (shown < sparse->out_features) {
        esp_buffer_printf(&text, "... %lld more rows\n",
                          (long long)(sparse->out_features - ESP_MAX(0, shown)));
    }
    if (text.data != NULL) {
        write(user, text.data, text.length);
    }
    esp_buffer_free(&text);
}
