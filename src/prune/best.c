/* The best of very many, without sorting or listing them: keys are asked for line by line, and a
 * histogram of 16 bits at a time closes in on the key of the last one kept. Then each line keeps
 * what is above that key, and of its equals the first ones, counted line by line. Linear time,
 * memory of a few histograms; the choice depends on keys and places alone. */
#include "prune/select.h"

#define DIGIT_BITS 16
#define DIGITS ((int64_t)1 << DIGIT_BITS)

typedef struct best_job {
    const esp_contest *contest;
    int64_t words;      /* of a line's bits */
    uint64_t *keys;     /* [threads][width] */
    int64_t *histogram; /* [threads][DIGITS] */
    int64_t *equals;    /* [lines]: keys equal to the last kept; then how many of them are kept */
    uint64_t prefix;    /* the digits found so far */
    int shift;          /* of the digit that is being found */
} best_job;

static const uint64_t *keys_of_line(const best_job *job, int64_t line, int thread)
{
    uint64_t *keys = job->keys + thread * job->contest->width;
    job->contest->keys(job->contest->user, line, thread, keys);
    return keys;
}

static void count_digits(void *user, int64_t begin, int64_t end, int thread)
{
    const best_job *job = user;
    int64_t *histogram = job->histogram + thread * DIGITS;
    for (int64_t line = begin; line < end; line++) {
        const uint64_t *keys = keys_of_line(job, line, thread);
        for (int64_t i = 0; i < job->contest->width; i++) {
            uint64_t above =
                job->shift + DIGIT_BITS < 64 ? keys[i] >> (job->shift + DIGIT_BITS) : 0;
            if (above == job->prefix) {
                histogram[keys[i] >> job->shift & (DIGITS - 1)]++;
            }
        }
    }
}

/* Appends one digit to the prefix; *keep: how many of the keys with this prefix are kept. */
static void find_digit(best_job *job, int64_t *keep)
{
    esp_context *context = job->contest->context;
    size_t threads = (size_t)context->threads;
    memset(job->histogram, 0, threads * (size_t)DIGITS * sizeof *job->histogram);
    esp_parallel_for(context, job->contest->lines, job->contest->grain, count_digits, job);
    for (int64_t digit = DIGITS - 1;; digit--) {
        int64_t count = 0;
        for (size_t t = 0; t < threads; t++) {
            count += job->histogram[(int64_t)t * DIGITS + digit];
        }
        if (count >= *keep) { /* keep >= 1, and at least so many share the prefix */
            job->prefix = job->prefix << DIGIT_BITS | (uint64_t)digit;
            return;
        }
        *keep -= count;
    }
}

static void count_equals(void *user, int64_t begin, int64_t end, int thread)
{
    const best_job *job = user;
    for (int64_t line = begin; line < end; line++) {
        const uint64_t *keys = keys_of_line(job, line, thread);
        int64_t count = 0;
        for (int64_t i = 0; i < job->contest->width; i++) {
            count += keys[i] == job->prefix;
        }
        job->equals[line] = count;
    }
}

static void mark_lines(void *user, int64_t begin, int64_t end, int thread)
{
    const best_job *job = user;
    for (int64_t line = begin; line < end; line++) {
        const uint64_t *keys = keys_of_line(job, line, thread);
        uint64_t *bits = job->contest->bits + line * job->words;
        int64_t equals = job->equals[line];
        for (int64_t i = 0; i < job->contest->width; i++) {
            bool kept = keys[i] > job->prefix || (keys[i] == job->prefix && equals-- > 0);
            bits[i / 64] |= (uint64_t)kept << i % 64;
        }
    }
}

static void keep_best(best_job *job, int64_t keep)
{
    const esp_contest *contest = job->contest;
    for (job->shift = contest->key_bits - DIGIT_BITS; job->shift >= 0; job->shift -= DIGIT_BITS) {
        find_digit(job, &keep);
    }
    esp_parallel_for(contest->context, contest->lines, contest->grain, count_equals, job);
    for (int64_t line = 0; line < contest->lines; line++) {
        job->equals[line] = ESP_MIN(keep, job->equals[line]);
        keep -= job->equals[line];
    }
    esp_parallel_for(contest->context, contest->lines, contest->grain, mark_lines, job);
}

esp_status esp_keep_best(const esp_contest *contest, int64_t keep, esp_error *error)
{
    if (keep <= 0) {
        return ESP_OK;
    }
    esp_context *context = contest->context;
    size_t threads = (size_t)context->threads, width = (size_t)contest->width;
    best_job job = {.contest = contest, .words = esp_ceil_div(contest->width, 64)};
    job.keys = esp_alloc_array(context, threads * width, sizeof *job.keys);
    job.histogram = esp_alloc_array(context, threads * (size_t)DIGITS, sizeof *job.histogram);
    job.equals = esp_alloc_array(context, (size_t)contest->lines, sizeof *job.equals);
    esp_status status = ESP_OK;
    if (job.keys == NULL || job.histogram == NULL || job.equals == NULL) {
        status = esp_fail_memory(error, threads * (width + (size_t)DIGITS) * sizeof *job.keys,
                                 "choosing the best");
    } else {
        keep_best(&job, keep);
    }
    esp_release(context, job.keys);
    esp_release(context, job.histogram);
    esp_release(context, job.equals);
    return status;
}
