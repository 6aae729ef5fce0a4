/* The door: checks what is asked, sends the tensor to the method of its pattern, reports. */
#include "prune/prune.h"

#include "prune/select.h"

static void keep_all(const esp_prune_job *job)
{
    for (int64_t row = 0; row < job->out; row++) {
        uint64_t *words = esp_mask_row_mut(job->mask, row);
        for (int64_t left = job->in; left > 0; left -= 64) {
            *words++ = left >= 64 ? UINT64_MAX : ((uint64_t)1 << left) - 1;
        }
    }
}

/* Rows and columns are blocks that span the weight. */
static esp_status select_units(const esp_prune_job *job, esp_error *error)
{
    const esp_pattern *pattern = job->pattern;
    int64_t out = ESP_MAX(1, job->out), in = ESP_MAX(1, job->in);
    if (pattern->kind == ESP_PATTERN_ROWS) {
        return esp_select_units(job, 1, in, esp_pattern_kept_of(pattern, job->out), error);
    }
    if (pattern->kind == ESP_PATTERN_COLS) {
        return esp_select_units(job, out, 1, esp_pattern_kept_of(pattern, job->in), error);
    }
    int64_t blocks =
        esp_ceil_div(job->out, pattern->block_rows) * esp_ceil_div(job->in, pattern->block_cols);
    return esp_select_units(job, pattern->block_rows, pattern->block_cols,
                            esp_pattern_kept_of(pattern, blocks), error);
}

static esp_status select_mask(const esp_prune_job *job, esp_error *error)
{
    const esp_pattern *pattern = job->pattern;
    switch (pattern->kind) {
    case ESP_PATTERN_DENSE:
        keep_all(job);
        return ESP_OK;
    case ESP_PATTERN_NM:
        return esp_select_nm(job, pattern->keep, pattern->group, error);
    case ESP_PATTERN_PANEL:
        if (esp_pattern_is_2_4(pattern)) {
            return esp_select_nm(job, 2, 4, error);
        }
        return pattern->m != 0 ? esp_select_vnm(job, error) : esp_select_free_panels(job, error);
    case ESP_PATTERN_UNSTRUCTURED:
        return esp_select_unstructured(job, error);
    default:
        return select_units(job, error);
    }
}

esp_status esp_prune_check_tensor(const esp_tensor *dense, esp_error *error)
{
    if (dense->rank != 2 || !esp_dtype_is_weight(dense->dtype)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "prune.bad_tensor",
                        "a weight must be F32, F16 or BF16 of rank 2, not %s of rank %d",
                        esp_dtype_name(dense->dtype), dense->rank);
    }
    if (dense->shape[1] >= UINT32_MAX) {
        return esp_fail(error, ESP_UNSUPPORTED, "format.too_large",
                        "a weight has at most 4294967294 columns here, not %lld",
                        (long long)dense->shape[1]);
    }
    return ESP_OK;
}

esp_status esp_prune_check_search(esp_search search, const esp_pattern *pattern, esp_error *error)
{
    if (search == ESP_SEARCH_EXACT && pattern->kind == ESP_PATTERN_PANEL &&
        pattern->m > ESP_EXACT_MAX_WIDTH) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "prune.exact_too_wide",
                        "the exact search looks at every quadruple and takes M up to %d, not %lld; "
                        "use the search with swaps",
                        ESP_EXACT_MAX_WIDTH, (long long)pattern->m);
    }
    return ESP_OK;
}

static esp_status check_request(const esp_tensor *dense, const esp_pattern *pattern,
                                const esp_mask_options *options, esp_error *error)
{
    ESP_TRY(esp_pattern_check(pattern, error));
    ESP_TRY(esp_prune_check_tensor(dense, error));
    if (options->score != ESP_SCORE_ABS && options->score != ESP_SCORE_SQUARE) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "prune.bad_score", "score %d is none of esp_score",
                        (int)options->score);
    }
    if (options->search < ESP_SEARCH_AUTO || options->search > ESP_SEARCH_JOINT) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "prune.bad_search",
                        "search %d is none of esp_search", (int)options->search);
    }
    if (options->scope != ESP_SCOPE_TENSOR && options->scope != ESP_SCOPE_ROW) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "prune.bad_scope", "scope %d is none of esp_scope",
                        (int)options->scope);
    }
    return esp_prune_check_search(options->search, pattern, error);
}

esp_search esp_prune_search_of(esp_search search, const esp_pattern *pattern)
{
    bool free = pattern->kind == ESP_PATTERN_PANEL && pattern->m == 0;
    if (search != ESP_SEARCH_AUTO && (search != ESP_SEARCH_JOINT || free)) {
        return search;
    }
    return pattern->m <= ESP_EXACT_MAX_WIDTH ? ESP_SEARCH_EXACT : ESP_SEARCH_SWAPS;
}

esp_status esp_prune_mask(esp_context *context, const esp_tensor *dense, const esp_pattern *pattern,
                          const esp_mask_options *options, esp_mask **mask, esp_mask_report *report,
                          esp_error *error)
{
    static const esp_mask_options defaults = {0};
    options = options != NULL ? options : &defaults;
    ESP_TRY(check_request(dense, pattern, options, error));
    esp_prune_job job = {.context = context,
                         .dense = dense,
                         .pattern = pattern,
                         .score = options->score,
                         .search = esp_prune_search_of(options->search, pattern),
                         .scope = options->scope,
                         .out = dense->shape[0],
                         .in = dense->shape[1]};
    ESP_TRY(esp_mask_create(context, job.out, job.in, &job.mask, error));
    esp_mask_report judged = {0};
    esp_status status = esp_prune_stores_rows(options, pattern, job.out)
                            ? esp_select_regrouped(&job, error)
                            : select_mask(&job, error);
    if (status == ESP_OK && report != NULL) {
        status = esp_mask_judge(&job, &judged, error);
    }
    if (status != ESP_OK) {
        esp_mask_free(job.mask);
        return status;
    }
    *mask = job.mask;
    if (report != NULL) {
        *report = judged;
    }
    return ESP_OK;
}
