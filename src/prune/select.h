/* Private to src/prune: one tensor on its way to a mask, and what the methods share. */
#ifndef ESP_PRUNE_SELECT_H
#define ESP_PRUNE_SELECT_H

#include "prune/prune.h"

typedef struct esp_prune_job {
    esp_context *context;
    const esp_tensor *dense;
    const esp_pattern *pattern;
    esp_score score;
    esp_search search; /* never AUTO */
    esp_scope scope;
    int64_t out, in;
    esp_mask *mask;
} esp_prune_job;

/* ---- score.c ---- */

/* Infinity and NaN as scores: above every finite score and every sum of them, NaN above infinity.
 */
#define ESP_SCORE_OF_INFINITY 0x1p500
#define ESP_SCORE_OF_NAN 0x1p700

/* Scores of count neighbouring weights of a row as doubles: sums of them keep order. */
void esp_score_segment(const esp_prune_job *job, int64_t row, int64_t column, int64_t count,
                       double *scores);
/* Order keys of a whole row: |w| as an integer that grows with it, all NaN equal and highest. w^2
 * orders single weights the same way, so keys serve both scores. */
void esp_score_keys(const esp_prune_job *job, int64_t row, uint32_t *keys);

/* ---- top.c ---- */

typedef struct esp_ranked {
    uint64_t key; /* larger is better; equal keys: lower index */
    uint32_t index;
} esp_ranked;

/* Brings the `keep` best to the front, in no order. 0 <= keep <= count. */
void esp_take_best(esp_ranked *entries, int64_t count, int64_t keep);

/* ---- best.c ---- */

/* lines * width keys, larger is better, equal ones: lower line, then lower place. */
typedef struct esp_contest {
    esp_context *context;
    const void *user;
    /* All keys of one line; asked for several times, by several threads. */
    void (*keys)(const void *user, int64_t line, int thread, uint64_t *keys);
    int64_t lines, width;
    int key_bits;   /* 16, 32 or 64: keys are below 2^key_bits */
    int64_t grain;  /* lines of one piece of work */
    uint64_t *bits; /* out: [lines][ceil(width / 64)], the best are set; zero before */
} esp_contest;
/* 0 <= keep <= lines * width */
esp_status esp_keep_best(const esp_contest *contest, int64_t keep, esp_error *error);

/* The two largest keys of up to four, as bits; equal keys: lower index. */
static inline unsigned esp_best_two(const uint32_t *keys, int count)
{
    unsigned bits = 0;
    for (int i = 0; i < count; i++) {
        int above = 0;
        for (int j = 0; j < count; j++) {
            above += keys[j] > keys[i] || (keys[j] == keys[i] && j < i);
        }
        bits |= (unsigned)(above < 2) << i;
    }
    return bits;
}

/* ---- the methods: each fills job->mask ---- */

esp_status esp_select_nm(const esp_prune_job *job, int64_t keep, int64_t group, esp_error *error);
esp_status esp_select_vnm(const esp_prune_job *job, esp_error *error);
esp_status esp_select_free_panels(const esp_prune_job *job, esp_error *error);
/* Their first halves: the columns of each panel, [ceil(out / V)][esp_pattern_kept], UINT32_MAX for
 * padding. job->mask is not looked at. */
esp_status esp_vnm_columns(const esp_prune_job *job, uint32_t *columns, esp_error *error);
esp_status esp_free_panel_columns(const esp_prune_job *job, uint32_t *columns, esp_error *error);
/* unit_mask.c */
esp_status esp_select_unstructured(const esp_prune_job *job, esp_error *error);
/* The `keep` blocks of rows x columns of largest mean score. */
esp_status esp_select_units(const esp_prune_job *job, int64_t rows, int64_t columns, int64_t keep,
                            esp_error *error);

/* Two of each four listed columns, row by row. columns: [ceil(out / v)][kept]. */
esp_status esp_select_in_panels(const esp_prune_job *job, int64_t v, int64_t kept,
                                const uint32_t *columns, esp_error *error);

/* vnm_exact.c: kept[4], relative to the group, of the quadruple of largest retained score; the
 * lowest of equal ones. 5 <= width <= 10. */
#define ESP_EXACT_MAX_WIDTH 10
void esp_exact_columns(const esp_prune_job *job, int64_t row, int64_t rows, int64_t column,
                       int width, uint32_t kept[4]);
/* vnm_swaps.c: the same by column sums, then, with swaps, improved. scratch: 6 * width doubles. */
void esp_greedy_columns(const esp_prune_job *job, int64_t row, int64_t rows, int64_t column,
                        int width, bool swaps, double *scratch, uint32_t kept[4]);

/* panel_search.c: exchanges columns of a free panel with those that it drops and among its quads,
 * where it keeps more by that; columns: [kept]. scratch: [in]. */
esp_status esp_improve_panel(const esp_prune_job *job, int64_t row, int64_t rows, int64_t kept,
                             double *scratch, uint32_t *columns, esp_error *error);

/* prune.c: "prune.bad_tensor", "format.too_large" */
esp_status esp_prune_check_tensor(const esp_tensor *dense, esp_error *error);

/* report.c */
esp_status esp_mask_judge(const esp_prune_job *job, esp_mask_report *report, esp_error *error);

#endif
