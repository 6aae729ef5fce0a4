/* panel:V@S: which columns a panel lists. Two candidates, and the one whose rows retain more wins:
 *  - the columns of largest score summed over the panel's rows, four by four in ascending order;
 *  - as many groups of neighbouring columns as there are groups of four, each searched as V:2:M
 *    would. So at equal sizes a free panel never retains less than a V:2:M one.
 * A greedy search takes the first, unseen. Equal ones: the first. A joint search goes on from there
 * (panel_search.c). */
#include <stdatomic.h>

#include "prune/select.h"

typedef struct free_job {
    const esp_prune_job *prune;
    int64_t v, kept, quads;
    int64_t widest;      /* group of neighbouring columns */
    uint32_t *columns;   /* [panels][kept] */
    uint32_t *candidate; /* [threads][kept] */
    double *scores;      /* [threads][2 * in + 6 * widest] */
    esp_ranked *ranked;  /* [threads][in] */
    atomic_bool *failed; /* an allocation */
} free_job;

static double *scores_of(const free_job *job, int thread)
{
    return job->scores + thread * (2 * job->prune->in + 6 * job->widest);
}

/* ---- the first candidate ---- */

static void list_largest(const free_job *job, int64_t row, int64_t rows, int thread, uint32_t *to)
{
    const esp_prune_job *prune = job->prune;
    int64_t in = prune->in, real = ESP_MIN(in, job->kept);
    double *scores = scores_of(job, thread), *sums = scores + in;
    esp_ranked *ranked = job->ranked + thread * in;
    memset(sums, 0, (size_t)in * sizeof *sums);
    for (int64_t r = row; r < row + rows; r++) {
        esp_score_segment(prune, r, 0, in, scores);
        for (int64_t c = 0; c < in; c++) {
            sums[c] += scores[c];
        }
    }
    for (int64_t c = 0; c < in; c++) {
        ranked[c].index = (uint32_t)c;
        memcpy(&ranked[c].key, &sums[c], sizeof sums[c]); /* positive doubles order as integers */
    }
    esp_take_best(ranked, in, real);
    memset(sums, 0, (size_t)in * sizeof *sums); /* have served: their room marks the chosen */
    for (int64_t i = 0; i < real; i++) {
        sums[ranked[i].index] = 1;
    }
    for (int64_t c = 0; c < in; c++) {
        if (sums[c] != 0) {
            *to++ = (uint32_t)c;
        }
    }
    for (int64_t i = real; i < job->kept; i++) {
        *to++ = UINT32_MAX;
    }
}

/* ---- the second ---- */

/* Where group g of neighbouring columns begins: g * in / quads without overflow. */
static int64_t group_begin(const free_job *job, int64_t g)
{
    int64_t in = job->prune->in, quads = job->quads;
    return in / quads * g + in % quads * g / quads;
}

static void search_groups(const free_job *job, int64_t row, int64_t rows, int thread, uint32_t *to)
{
    const esp_prune_job *prune = job->prune;
    double *scratch = scores_of(job, thread) + 2 * prune->in;
    for (int64_t g = 0; g < job->quads; g++) {
        int64_t begin = group_begin(job, g);
        int width = (int)(group_begin(job, g + 1) - begin);
        uint32_t kept[4] = {0, 1, 2, 3};
        bool exact = width <= ESP_EXACT_MAX_WIDTH && prune->search != ESP_SEARCH_SWAPS;
        if (width > 4 && exact) {
            esp_exact_columns(prune, row, rows, begin, width, kept);
        } else if (width > 4) {
            esp_greedy_columns(prune, row, rows, begin, width, true, scratch, kept);
        }
        for (int i = 0; i < 4; i++) {
            *to++ = i < width ? (uint32_t)begin + kept[i] : UINT32_MAX;
        }
    }
}

/* ---- which ---- */

static double best_two_of(const uint32_t *columns, const double *scores)
{
    double first = 0, second = 0;
    for (int i = 0; i < 4 && columns[i] != UINT32_MAX; i++) {
        double score = scores[columns[i]];
        double lower = score < first ? score : first;
        first = score < first ? first : score;
        second = lower > second ? lower : second;
    }
    return first + second;
}

/* Whether b retains more than a over the panel's rows. */
static bool retains_more(const free_job *job, int64_t row, int64_t rows, int thread,
                         const uint32_t *a, const uint32_t *b)
{
    double *scores = scores_of(job, thread), of_a = 0, of_b = 0;
    for (int64_t r = row; r < row + rows; r++) {
        esp_score_segment(job->prune, r, 0, job->prune->in, scores);
        for (int64_t i = 0; i < job->kept; i += 4) {
            of_a += best_two_of(a + i, scores);
            of_b += best_two_of(b + i, scores);
        }
    }
    return of_b > of_a;
}

/* A failed search leaves the panel as it was. */
static void improve(const free_job *job, int64_t row, int64_t rows, int thread, uint32_t *chosen)
{
    uint32_t *better = job->candidate + thread * job->kept;
    memcpy(better, chosen, (size_t)job->kept * sizeof *chosen);
    if (esp_improve_panel(job->prune, row, rows, job->kept, scores_of(job, thread), better, NULL) !=
        ESP_OK) {
        atomic_store(job->failed, true);
    } else if (retains_more(job, row, rows, thread, chosen, better)) {
        memcpy(chosen, better, (size_t)job->kept * sizeof *chosen);
    }
}

static void list_panels(void *user, int64_t begin, int64_t end, int thread)
{
    const free_job *job = user;
    for (int64_t panel = begin; panel < end; panel++) {
        int64_t row = panel * job->v, rows = ESP_MIN(job->v, job->prune->out - row);
        uint32_t *chosen = job->columns + panel * job->kept;
        list_largest(job, row, rows, thread, chosen);
        if (job->prune->search == ESP_SEARCH_GREEDY) {
            continue;
        }
        uint32_t *other = job->candidate + thread * job->kept;
        search_groups(job, row, rows, thread, other);
        if (retains_more(job, row, rows, thread, chosen, other)) {
            memcpy(chosen, other, (size_t)job->kept * sizeof *chosen);
        }
        if (job->prune->search == ESP_SEARCH_JOINT) {
            improve(job, row, rows, thread, chosen);
        }
    }
}

static esp_status make_room(free_job *job, esp_error *error)
{
    esp_context *context = job->prune->context;
    size_t threads = (size_t)context->threads, in = (size_t)job->prune->in;
    size_t kept = (size_t)job->kept;
    job->candidate = esp_alloc_array(context, threads * kept, sizeof *job->candidate);
    job->scores =
        esp_alloc_array(context, threads * (2 * in + 6 * (size_t)job->widest), sizeof *job->scores);
    job->ranked = esp_alloc_array(context, threads * in, sizeof *job->ranked);
    if (job->candidate == NULL || job->scores == NULL || job->ranked == NULL) {
        return esp_fail_memory(error, threads * in * sizeof *job->ranked, "panel columns");
    }
    return ESP_OK;
}

/* [panels][kept] of panel:V@S. */
esp_status esp_free_panel_columns(const esp_prune_job *prune, uint32_t *columns, esp_error *error)
{
    esp_context *context = prune->context;
    int64_t kept = esp_pattern_kept(prune->pattern, prune->in);
    free_job job = {.prune = prune,
                    .v = esp_pattern_panel_rows(prune->pattern, prune->out),
                    .kept = kept,
                    .quads = kept / 4,
                    .widest = esp_ceil_div(prune->in, kept / 4),
                    .columns = columns};
    atomic_bool failed = false;
    job.failed = &failed;
    esp_status status = make_room(&job, error);
    if (status == ESP_OK) {
        esp_parallel_for(context, esp_ceil_div(prune->out, job.v), 1, list_panels, &job);
    }
    if (status == ESP_OK && failed) {
        status = esp_fail_memory(error, (size_t)job.v * (size_t)prune->in * sizeof(float),
                                 "searching panels");
    }
    esp_release(context, job.candidate);
    esp_release(context, job.scores);
    esp_release(context, job.ranked);
    return status;
}

esp_status esp_select_free_panels(const esp_prune_job *prune, esp_error *error)
{
    esp_context *context = prune->context;
    int64_t v = esp_pattern_panel_rows(prune->pattern, prune->out);
    int64_t kept = esp_pattern_kept(prune->pattern, prune->in);
    size_t count = 0;
    bool fits = esp_mul_size((size_t)esp_ceil_div(prune->out, v), (size_t)kept, &count);
    uint32_t *columns = fits ? esp_alloc_array(context, count, sizeof *columns) : NULL;
    if (columns == NULL) {
        return esp_fail_memory(error, fits ? count * sizeof *columns : SIZE_MAX, "panel columns");
    }
    esp_status status = esp_free_panel_columns(prune, columns, error);
    if (status == ESP_OK) {
        status = esp_select_in_panels(prune, v, kept, columns, error);
    }
    if (status == ESP_OK) {
        status = esp_mask_set_columns(prune->mask, v, kept, columns, error);
    }
    esp_release(context, columns);
    return status;
}
