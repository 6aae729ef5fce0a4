/* Lists of stored units: made in two parallel passes over the lines (count what lives, then write),
 * between which the room left over is given to the lowest free places. */
#include "format/lists.h"

#include <stdio.h>

esp_status esp_list_check_sizes(int64_t out_features, int64_t in_features, bool has_rows,
                                esp_error *error)
{
    if (has_rows) {
        return esp_fail(error, ESP_UNSUPPORTED, "format.no_row_order",
                        "only panel formats have a row order");
    }
    if (out_features > ESP_FORMAT_MAX_FEATURES || in_features > ESP_FORMAT_MAX_FEATURES) {
        return esp_fail(error, ESP_UNSUPPORTED, "format.too_large",
                        "a weight has at most 4294967295 rows and columns here, not [%lld, %lld]",
                        (long long)out_features, (long long)in_features);
    }
    return ESP_OK;
}

void esp_list_set_parts(const esp_list_words *words, int64_t lines, int64_t places, int64_t kept,
                        esp_sparse_part *list, esp_sparse_part *offsets)
{
    esp_format_set_part(list, words->list, places <= 65536 ? ESP_U16 : ESP_U32, kept, -1);
    if (words->offsets != NULL) {
        esp_format_set_part(offsets, words->offsets, kept <= UINT32_MAX ? ESP_U32 : ESP_U64,
                            lines + 1, -1);
    }
}

esp_list_view esp_list_view_of(const esp_sparse *sparse, const esp_list_words *words, int64_t lines,
                               int64_t places)
{
    const esp_tensor *list = esp_sparse_find_part(sparse, words->list);
    esp_list_view view = {.words = words,
                          .lines = lines,
                          .places = places,
                          .kept = list->shape[0],
                          .list = list->data,
                          .wide_list = list->dtype == ESP_U32};
    if (words->offsets != NULL) {
        const esp_tensor *offsets = esp_sparse_find_part(sparse, words->offsets);
        view.offsets = offsets->data;
        view.wide_offsets = offsets->dtype == ESP_U64;
    }
    return view;
}

bool esp_any_bit(const uint64_t *words, int64_t begin, int64_t end)
{
    for (int64_t word = begin / 64; word * 64 < end; word++) {
        uint64_t bits = words[word];
        if (word * 64 < begin) {
            bits &= UINT64_MAX << begin % 64;
        }
        if (end - word * 64 < 64) {
            bits &= ((uint64_t)1 << (end - word * 64)) - 1;
        }
        if (bits != 0) {
            return true;
        }
    }
    return false;
}

/* ---- encode ---- */

typedef struct encode_job {
    const esp_list_view *view;
    const esp_list_source *source;
    int64_t line_words;
    uint64_t *scratch; /* [threads][line_words + source->scratch_words] */
    int64_t *counts;   /* [lines]: live units */
} encode_job;

static uint64_t *live_of_line(const encode_job *job, int64_t line, int thread)
{
    uint64_t *live = job->scratch + thread * (job->line_words + job->source->scratch_words);
    job->source->live_line(job->source->user, line, live + job->line_words, live);
    return live;
}

static void count_lines(void *user, int64_t begin, int64_t end, int thread)
{
    const encode_job *job = user;
    for (int64_t line = begin; line < end; line++) {
        const uint64_t *live = live_of_line(job, line, thread);
        int64_t count = 0;
        for (int64_t i = 0; i < job->line_words; i++) {
            count += __builtin_popcountll(live[i]);
        }
        job->counts[line] = count;
    }
}

static void put_place(const esp_list_view *view, int64_t k, int64_t place)
{
    if (view->wide_list) {
        ((uint32_t *)view->list)[k] = (uint32_t)place;
    } else {
        ((uint16_t *)view->list)[k] = (uint16_t)place;
    }
}

static void put_offset(const esp_list_view *view, int64_t line, int64_t offset)
{
    if (view->offsets != NULL && view->wide_offsets) {
        ((uint64_t *)view->offsets)[line] = (uint64_t)offset;
    } else if (view->offsets != NULL) {
        ((uint32_t *)view->offsets)[line] = (uint32_t)offset;
    }
}

/* Live places ascend; others are taken while there is room for zeros. */
static void write_lines(void *user, int64_t begin, int64_t end, int thread)
{
    const encode_job *job = user;
    const esp_list_view *view = job->view;
    for (int64_t line = begin; line < end; line++) {
        const uint64_t *live = live_of_line(job, line, thread);
        int64_t k = esp_list_begin(view, line), stop = esp_list_begin(view, line + 1);
        int64_t fill = stop - k - job->counts[line];
        for (int64_t place = 0; k < stop; place++) {
            if (fill == 0 && live[place / 64] >> place % 64 == 0) {
                place |= 63; /* nothing more in this word */
                continue;
            }
            bool lives = esp_bit(live, place);
            if (!lives && fill == 0) {
                continue;
            }
            fill -= !lives;
            if (lives && job->source->store != NULL) {
                job->source->store(job->source->user, line, place, k);
            }
            put_place(view, k++, place);
        }
    }
}

/* Names the first live unit that finds no room. */
static esp_status too_many_live(const encode_job *job, int64_t total, esp_error *error)
{
    const esp_list_view *view = job->view;
    int64_t line = 0, room = view->kept, place = 0;
    while (job->counts[line] <= room) {
        room -= job->counts[line++];
    }
    const uint64_t *live = live_of_line(job, line, 0);
    for (; room > 0 || !esp_bit(live, place); place++) {
        room -= esp_bit(live, place);
    }
    char where[64] = "";
    if (view->words->line != NULL) {
        snprintf(where, sizeof where, "%s %lld, ", view->words->line, (long long)line);
    }
    return esp_fail(error, ESP_CHECK_FAILED, "format.mask_mismatch",
                    "%s%s %lld: no room for it; %lld %s hold weights, the pattern keeps %lld of "
                    "%lld",
                    where, view->words->place, (long long)place, (long long)total,
                    view->words->units, (long long)view->kept,
                    (long long)(view->lines * view->places));
}

static esp_status encode_lines(const encode_job *job, esp_context *context, esp_error *error)
{
    const esp_list_view *view = job->view;
    encode_job copy = *job;
    esp_parallel_for(context, view->lines, job->source->grain, count_lines, &copy);
    int64_t total = 0;
    for (int64_t line = 0; line < view->lines; line++) {
        total += job->counts[line];
    }
    if (total > view->kept) {
        return too_many_live(job, total, error);
    }
    int64_t fill = view->kept - total, offset = 0;
    for (int64_t line = 0; line < view->lines; line++) {
        int64_t own = ESP_MIN(fill, view->places - job->counts[line]);
        put_offset(view, line, offset);
        offset += job->counts[line] + own;
        fill -= own;
    }
    put_offset(view, view->lines, offset);
    esp_parallel_for(context, view->lines, job->source->grain, write_lines, &copy);
    return ESP_OK;
}

esp_status esp_list_encode(const esp_sparse *sparse, const esp_list_view *view,
                           const esp_list_source *source, esp_error *error)
{
    esp_context *context = sparse->context;
    encode_job job = {.view = view, .source = source, .line_words = esp_ceil_div(view->places, 64)};
    size_t words = (size_t)context->threads * (size_t)(job.line_words + source->scratch_words);
    job.scratch = esp_alloc_array(context, words, sizeof *job.scratch);
    job.counts = esp_alloc_array(context, (size_t)view->lines, sizeof *job.counts);
    esp_status status = job.scratch == NULL || job.counts == NULL
                            ? esp_fail_memory(error, words * sizeof *job.scratch, "live units")
                            : encode_lines(&job, context, error);
    esp_release(context, job.scratch);
    esp_release(context, job.counts);
    return status;
}

/* ---- check ---- */

typedef struct check_job {
    const esp_list_view *view;
    esp_list_unit_fn unit;
    const void *user;
} check_job;

esp_status esp_list_bad_unit(const esp_list_view *view, const char *code, const char *part,
                             int64_t line, int64_t k, const char *wrong, esp_error *error)
{
    char where[64] = "";
    if (view->words->line != NULL) {
        snprintf(where, sizeof where, "%s %lld, ", view->words->line, (long long)line);
    }
    return esp_fail(error, ESP_BAD_FILE, code, "%s: %sentry %lld: %s", part, where,
                    (long long)(k - esp_list_begin(view, line)), wrong);
}

static esp_status check_offsets(const esp_list_view *view, esp_error *error)
{
    const char *part = view->words->offsets;
    if (esp_list_offset(view, 0) != 0 ||
        esp_list_offset(view, view->lines) != (uint64_t)view->kept) {
        return esp_fail(error, ESP_BAD_FILE, "sparse.offsets_wrong_ends",
                        "%s: from %llu to %llu, expected from 0 to %lld, the number of stored "
                        "%s",
                        part, (unsigned long long)esp_list_offset(view, 0),
                        (unsigned long long)esp_list_offset(view, view->lines),
                        (long long)view->kept, view->words->units);
    }
    for (int64_t line = 0; line < view->lines; line++) {
        uint64_t begin = esp_list_offset(view, line), end = esp_list_offset(view, line + 1);
        if (end < begin || end - begin > (uint64_t)view->places) {
            return esp_fail(error, ESP_BAD_FILE, "sparse.offsets_not_increasing",
                            "%s: %s %lld goes from %llu to %llu; offsets never decrease and a "
                            "line has at most %lld entries",
                            part, view->words->line, (long long)line, (unsigned long long)begin,
                            (unsigned long long)end, (long long)view->places);
        }
    }
    return ESP_OK;
}

static esp_status check_line(void *user, int64_t line, int thread, esp_error *error)
{
    (void)thread;
    const check_job *job = user;
    const esp_list_view *view = job->view;
    int64_t begin = esp_list_begin(view, line), end = esp_list_begin(view, line + 1), next = 0;
    /* Lines before this one are full as long as they leave no place out. */
    bool gap = begin != line * view->places;
    for (int64_t k = begin; k < end; k++) {
        int64_t place = esp_list_place(view, k);
        bool zero = false;
        if (place >= view->places) {
            return esp_list_bad_unit(view, "sparse.index_out_of_range", view->words->list, line, k,
                                     "it does not exist in a weight of this shape", error);
        }
        if (place < next) {
            return esp_list_bad_unit(view, "sparse.indices_not_ascending", view->words->list, line,
                                     k, "it must be above the one before", error);
        }
        gap |= place > next;
        next = place + 1;
        ESP_TRY(job->unit(job->user, line, k, &zero, error));
        if (zero && gap) {
            return esp_list_bad_unit(view, "sparse.fill_not_canonical", view->words->list, line, k,
                                     "zeros that fill up take the lowest free places", error);
        }
    }
    return ESP_OK;
}

esp_status esp_list_check(const esp_sparse *sparse, const esp_list_view *view,
                          esp_list_unit_fn unit, const void *user, esp_error *error)
{
    if (view->offsets != NULL) {
        ESP_TRY(check_offsets(view, error));
    }
    check_job job = {view, unit, user};
    return esp_format_each(sparse->context, view->lines, esp_format_row_grain(sparse->in_features),
                           check_line, &job, error);
}
