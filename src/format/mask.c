/* Masks: one bit an entry, rows padded to whole 64-bit words whose unused bits are always zero, so
 * that rows can be combined and counted word by word. Columns and row order of panels ride along.
 */
#include "format/format.h"

#include <string.h>

#include "format/nonzero.h"

struct esp_mask {
    esp_context *context;
    int64_t out_features, in_features;
    int64_t row_words;
    uint64_t *bits; /* [out][row_words] */
    int64_t v, kept;
    uint32_t *columns; /* [ceil(out / v)][kept], or NULL */
    uint32_t *rows;    /* [out], or NULL */
};

esp_status esp_mask_create(esp_context *context, int64_t out_features, int64_t in_features,
                           esp_mask **mask, esp_error *error)
{
    if (out_features < 0 || in_features < 0) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "mask.bad_shape",
                        "a mask of %lld x %lld: sizes must not be negative",
                        (long long)out_features, (long long)in_features);
    }
    esp_mask *made = esp_alloc_zero(context, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "a mask");
    }
    *made = (esp_mask){.context = context,
                       .out_features = out_features,
                       .in_features = in_features,
                       .row_words = esp_ceil_div(in_features, 64)};
    size_t words = 0;
    bool fits = esp_mul_size((size_t)out_features, (size_t)made->row_words, &words);
    made->bits = fits ? esp_alloc_array(context, words, sizeof *made->bits) : NULL;
    if (made->bits == NULL) {
        esp_release(context, made);
        return esp_fail_memory(error, fits ? words * sizeof(uint64_t) : SIZE_MAX, "a mask");
    }
    *mask = made;
    return ESP_OK;
}

void esp_mask_free(esp_mask *mask)
{
    if (mask != NULL) {
        esp_release(mask->context, mask->bits);
        esp_release(mask->context, mask->columns);
        esp_release(mask->context, mask->rows);
        esp_release(mask->context, mask);
    }
}

int64_t esp_mask_out_features(const esp_mask *mask)
{
    return mask->out_features;
}

int64_t esp_mask_in_features(const esp_mask *mask)
{
    return mask->in_features;
}

const uint64_t *esp_mask_row(const esp_mask *mask, int64_t row)
{
    return mask->bits + row * mask->row_words;
}

uint64_t *esp_mask_row_mut(esp_mask *mask, int64_t row)
{
    return mask->bits + row * mask->row_words;
}

int64_t esp_mask_row_words(const esp_mask *mask)
{
    return mask->row_words;
}

bool esp_mask_get(const esp_mask *mask, int64_t row, int64_t column)
{
    return esp_mask_row(mask, row)[column / 64] >> column % 64 & 1;
}

void esp_mask_set(esp_mask *mask, int64_t row, int64_t column, bool live)
{
    uint64_t *word = esp_mask_row_mut(mask, row) + column / 64;
    uint64_t bit = (uint64_t)1 << column % 64;
    *word = live ? *word | bit : *word & ~bit;
}

int64_t esp_mask_count(const esp_mask *mask)
{
    int64_t count = 0;
    for (int64_t i = 0; i < mask->out_features * mask->row_words; i++) {
        count += __builtin_popcountll(mask->bits[i]);
    }
    return count;
}

/* ---- from and to dense tensors ---- */

static esp_status check_dense(const esp_tensor *dense, esp_error *error)
{
    if (dense->rank != 2 || !esp_dtype_is_weight(dense->dtype)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "mask.bad_tensor",
                        "a weight must be F32, F16 or BF16 of rank 2, not %s of rank %d",
                        esp_dtype_name(dense->dtype), dense->rank);
    }
    return ESP_OK;
}

typedef struct dense_job {
    esp_mask *mask;
    const esp_mask *fixed_mask;
    const esp_tensor *dense;
} dense_job;

static void find_live_rows(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const dense_job *job = user;
    int64_t in = job->mask->in_features;
    for (int64_t row = begin; row < end; row++) {
        uint64_t *words = esp_mask_row_mut(job->mask, row);
        for (int64_t i = 0; i < job->mask->row_words; i++) {
            int64_t column = i * 64;
            words[i] = esp_nonzero_word(job->dense, row * in + column, ESP_MIN(64, in - column));
        }
    }
}

/* Rows of one piece of a parallel loop: about 64 Ki weights. */
static int64_t row_grain(int64_t in_features)
{
    return 1 + 65536 / ESP_MAX(1, in_features);
}

esp_status esp_mask_from_dense(esp_context *context, const esp_tensor *dense, esp_mask **mask,
                               esp_error *error)
{
    ESP_TRY(check_dense(dense, error));
    esp_mask *made = NULL;
    ESP_TRY(esp_mask_create(context, dense->shape[0], dense->shape[1], &made, error));
    dense_job job = {made, made, dense};
    esp_parallel_for(context, made->out_features, row_grain(made->in_features), find_live_rows,
                     &job);
    *mask = made;
    return ESP_OK;
}

static void apply_rows(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const dense_job *job = user;
    size_t width = esp_dtype_bytes(job->dense->dtype);
    int64_t in = job->fixed_mask->in_features;
    for (int64_t row = begin; row < end; row++) {
        const uint64_t *words = esp_mask_row(job->fixed_mask, row);
        for (int64_t i = 0; i < job->fixed_mask->row_words; i++) {
            int64_t first = row * in + i * 64, count = ESP_MIN(64, in - i * 64);
            uint64_t live = words[i] & esp_nonzero_word(job->dense, first, count);
            if (live == (count == 64 ? UINT64_MAX : ((uint64_t)1 << count) - 1)) {
                continue;
            }
            for (int64_t k = 0; k < count; k++) {
                if ((live >> k & 1) == 0) {
                    memset((char *)job->dense->data + (size_t)(first + k) * width, 0, width);
                }
            }
        }
    }
}

esp_status esp_mask_apply(const esp_mask *mask, esp_tensor *dense, esp_error *error)
{
    ESP_TRY(check_dense(dense, error));
    if (dense->shape[0] != mask->out_features || dense->shape[1] != mask->in_features) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "mask.shape_mismatch",
                        "a mask of [%lld, %lld] does not fit a tensor of [%lld, %lld]",
                        (long long)mask->out_features, (long long)mask->in_features,
                        (long long)dense->shape[0], (long long)dense->shape[1]);
    }
    dense_job job = {NULL, mask, dense};
    esp_parallel_for(mask->context, mask->out_features, row_grain(mask->in_features), apply_rows,
                     &job);
    return ESP_OK;
}

/* ---- columns and row order of panels ---- */

/* Each group of four ascending, padding last, columns in range and none twice in the panel.
 * seen: row_words words of scratch. */
static esp_status check_columns(const esp_mask *mask, int64_t panel, int64_t kept,
                                const uint32_t *columns, uint64_t *seen, esp_error *error)
{
    memset(seen, 0, (size_t)mask->row_words * sizeof *seen);
    for (int64_t i = 0; i < kept; i++) {
        uint32_t column = columns[i];
        const char *wrong = NULL;
        if (i % 4 != 0 && column != UINT32_MAX && column <= columns[i - 1]) {
            wrong = "a group of four must ascend, padding last";
        } else if (column != UINT32_MAX && column >= mask->in_features) {
            wrong = "it lies outside the tensor";
        } else if (column != UINT32_MAX && seen[column / 64] >> column % 64 & 1) {
            wrong = "the panel has it already";
        }
        if (wrong != NULL) {
            return esp_fail(error, ESP_BAD_ARGUMENT, "mask.bad_columns",
                            "panel %lld, group %lld, column %u: %s", (long long)panel,
                            (long long)(i / 4), column, wrong);
        }
        if (column != UINT32_MAX) {
            seen[column / 64] |= (uint64_t)1 << column % 64;
        }
    }
    return ESP_OK;
}

esp_status esp_mask_set_columns(esp_mask *mask, int64_t v, int64_t kept, const uint32_t *columns,
                                esp_error *error)
{
    if (v < 1 || kept < 4 || kept % 4 != 0) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "mask.bad_columns",
                        "panels of %lld rows that keep %lld columns: at least one row and a "
                        "multiple of four columns are needed",
                        (long long)v, (long long)kept);
    }
    int64_t panels = esp_ceil_div(mask->out_features, v);
    size_t count = 0;
    bool fits = esp_mul_size((size_t)panels, (size_t)kept, &count);
    uint32_t *copy = fits ? esp_alloc_array(mask->context, count, sizeof *copy) : NULL;
    uint64_t *seen = esp_alloc_array(mask->context, (size_t)mask->row_words, sizeof *seen);
    esp_status status = ESP_OK;
    if (copy == NULL || seen == NULL) {
        status = esp_fail_memory(error, fits ? count * sizeof *copy : SIZE_MAX, "panel columns");
    }
    for (int64_t panel = 0; panel < panels && status == ESP_OK; panel++) {
        status = check_columns(mask, panel, kept, columns + panel * kept, seen, error);
    }
    esp_release(mask->context, seen);
    if (status != ESP_OK) {
        esp_release(mask->context, copy);
        return status;
    }
    if (count > 0) {
        memcpy(copy, columns, count * sizeof *copy);
    }
    esp_release(mask->context, mask->columns);
    mask->columns = copy;
    mask->v = v;
    mask->kept = kept;
    return ESP_OK;
}

const uint32_t *esp_mask_columns(const esp_mask *mask, int64_t *v, int64_t *kept)
{
    if (mask->columns != NULL) {
        *v = mask->v;
        *kept = mask->kept;
    }
    return mask->columns;
}

esp_status esp_mask_set_rows(esp_mask *mask, const uint32_t *rows, esp_error *error)
{
    size_t count = (size_t)mask->out_features;
    uint32_t *copy = esp_alloc_array(mask->context, count, sizeof *copy);
    unsigned char *seen = esp_alloc_zero(mask->context, count);
    esp_status status = ESP_OK;
    if (copy == NULL || seen == NULL) {
        status = esp_fail_memory(error, count * sizeof *copy, "a row order");
    }
    for (size_t i = 0; i < count && status == ESP_OK; i++) {
        if (rows[i] >= count || seen[rows[i]] != 0) {
            status = esp_fail(error, ESP_BAD_ARGUMENT, "mask.bad_rows",
                              "stored row %zu is output row %u, which %s", i, rows[i],
                              rows[i] >= count ? "does not exist" : "came before");
        } else {
            seen[rows[i]] = 1;
            copy[i] = rows[i];
        }
    }
    esp_release(mask->context, seen);
    if (status != ESP_OK) {
        esp_release(mask->context, copy);
        return status;
    }
    esp_release(mask->context, mask->rows);
    mask->rows = copy;
    return ESP_OK;
}

const uint32_t *esp_mask_rows(const esp_mask *mask)
{
    return mask->rows;
}
