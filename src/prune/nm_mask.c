/* n:m masks: the `keep` largest of each group of a row; a remainder group of r columns keeps
 * min(keep, r). Small groups count who is above whom; large ones are selected from a list. */
#include "prune/select.h"

#define COUNTED_GROUP 16

typedef struct nm_job {
    const esp_prune_job *prune;
    int64_t keep, group;
    uint32_t *keys;     /* [threads][in] */
    esp_ranked *ranked; /* [threads][group], NULL for small groups */
} nm_job;

/* ORs count <= 64 bits into a row of mask words. */
static void put_bits(uint64_t *words, int64_t at, uint64_t bits)
{
    words[at / 64] |= bits << at % 64;
    if (at % 64 != 0 && bits >> (64 - at % 64) != 0) {
        words[at / 64 + 1] |= bits >> (64 - at % 64);
    }
}

/* Inlined for constant sizes. */
static inline __attribute__((always_inline)) uint64_t count_above(const uint32_t *keys, int size,
                                                                  int keep)
{
    uint64_t bits = 0;
    for (int i = 0; i < size; i++) {
        int above = 0;
        for (int j = 0; j < i; j++) {
            above += keys[j] >= keys[i];
        }
        for (int j = i + 1; j < size; j++) {
            above += keys[j] > keys[i];
        }
        bits |= (uint64_t)(above < keep) << i;
    }
    return bits;
}

static void select_large(const nm_job *job, const uint32_t *keys, int64_t first, int64_t size,
                         esp_ranked *ranked, uint64_t *words)
{
    for (int64_t i = 0; i < size; i++) {
        ranked[i] = (esp_ranked){.key = keys[first + i], .index = (uint32_t)i};
    }
    int64_t keep = ESP_MIN(job->keep, size);
    esp_take_best(ranked, size, keep);
    for (int64_t i = 0; i < keep; i++) {
        put_bits(words, first + ranked[i].index, 1);
    }
}

static void select_row(const nm_job *job, int64_t row, int thread)
{
    int64_t in = job->prune->in, group = job->group, first = 0;
    uint32_t *keys = job->keys + thread * in;
    uint64_t *words = esp_mask_row_mut(job->prune->mask, row);
    esp_score_keys(job->prune, row, keys);
    if (group == 4 && job->keep == 2) {
        for (; first + 4 <= in; first += 4) {
            words[first / 64] |= count_above(keys + first, 4, 2) << first % 64;
        }
    }
    for (; first < in; first += group) {
        int64_t size = ESP_MIN(group, in - first);
        if (group <= COUNTED_GROUP) {
            put_bits(words, first, count_above(keys + first, (int)size, (int)job->keep));
        } else {
            select_large(job, keys, first, size, job->ranked + thread * group, words);
        }
    }
}

static void select_rows(void *user, int64_t begin, int64_t end, int thread)
{
    const nm_job *job = user;
    for (int64_t row = begin; row < end; row++) {
        select_row(job, row, thread);
    }
}

esp_status esp_select_nm(const esp_prune_job *prune, int64_t keep, int64_t group, esp_error *error)
{
    esp_context *context = prune->context;
    nm_job job = {.prune = prune, .keep = keep, .group = group};
    size_t threads = (size_t)context->threads;
    job.keys = esp_alloc_array(context, threads * (size_t)prune->in, sizeof *job.keys);
    bool listed = group > COUNTED_GROUP;
    if (listed) {
        job.ranked = esp_alloc_array(context, threads * (size_t)group, sizeof *job.ranked);
    }
    esp_status status = ESP_OK;
    if (job.keys == NULL || (listed && job.ranked == NULL)) {
        status = esp_fail_memory(error, threads * (size_t)prune->in * sizeof *job.keys, "scores");
    } else {
        esp_parallel_for(context, prune->out, 1 + 65536 / ESP_MAX(1, prune->in), select_rows, &job);
    }
    esp_release(context, job.keys);
    esp_release(context, job.ranked);
    return status;
}
