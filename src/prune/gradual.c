/* Gradual pruning of V:2:M: the steps, and the mask of one.
 *
 * Dropping six of eight at once judges every weight by what it is worth beside all others. In steps
 * the others follow: weights that stand in for dropped ones have grown by the time that the next
 * are chosen. For M = 8 rows keep 5, 4, 3 and then 2, from 7, 6, 4 and 4 columns of the panel
 * (Zhao et al., "Beyond 2:4", arXiv 2410.16135); other M begin at M / 2 + 1 likewise. */
#include "prune/select.h"

#define MOST_GROUP 1024 /* esp_pattern_check takes no larger M */

int esp_gradual_steps(const esp_pattern *pattern, esp_gradual_step steps[ESP_GRADUAL_MAX_STEPS])
{
    int count = 0;
    if (pattern->kind != ESP_PATTERN_PANEL || pattern->m <= 4) {
        return 0;
    }
    int64_t first = pattern->m / 2 + 1, last = 2;
    for (int i = 0; i < ESP_GRADUAL_MAX_STEPS; i++) {
        int64_t left = ESP_GRADUAL_MAX_STEPS - i;
        int64_t kept = last + ((first - last) * left + 1) / ESP_GRADUAL_MAX_STEPS;
        bool further = kept > last && (count == 0 || kept < steps[count - 1].kept);
        if (further) {
            steps[count++] = (esp_gradual_step){kept > 3 ? kept + 2 : 4, kept};
        }
    }
    return count;
}

typedef struct gradual_job {
    const esp_gradual_step *step;
    int64_t v, m, out, in;
    const float *scores;
    esp_mask *mask;
} gradual_job;

static uint64_t bits_of(float score)
{
    uint32_t bits;
    memcpy(&bits, &score, sizeof bits); /* not negative: bits grow with it */
    return bits;
}

static uint64_t key_of_sum(double sum)
{
    uint64_t bits;
    memcpy(&bits, &sum, sizeof bits);
    return bits;
}

static void keep_in_row(const gradual_job *job, int64_t row, const esp_ranked *columns,
                        int64_t pool)
{
    esp_ranked own[MOST_GROUP];
    uint64_t *words = esp_mask_row_mut(job->mask, row);
    int64_t kept = ESP_MIN(job->step->kept, pool);
    for (int64_t i = 0; i < pool; i++) {
        uint32_t column = columns[i].index;
        own[i] = (esp_ranked){bits_of(job->scores[row * job->in + column]), column};
    }
    esp_take_best(own, pool, kept);
    for (int64_t i = 0; i < kept; i++) {
        words[own[i].index / 64] |= (uint64_t)1 << own[i].index % 64;
    }
}

static void keep_in_group(const gradual_job *job, int64_t row, int64_t rows, int64_t column)
{
    esp_ranked columns[MOST_GROUP];
    int64_t width = ESP_MIN(job->m, job->in - column), pool = ESP_MIN(job->step->pool, width);
    for (int64_t j = 0; j < width; j++) {
        double sum = 0;
        for (int64_t r = row; r < row + rows; r++) {
            sum += (double)job->scores[r * job->in + column + j];
        }
        columns[j] = (esp_ranked){key_of_sum(sum), (uint32_t)(column + j)};
    }
    esp_take_best(columns, width, pool);
    for (int64_t r = row; r < row + rows; r++) {
        keep_in_row(job, r, columns, pool);
    }
}

static void keep_in_panels(void *user, int64_t begin, int64_t end, int thread)
{
    const gradual_job *job = user;
    (void)thread;
    for (int64_t panel = begin; panel < end; panel++) {
        int64_t row = panel * job->v, rows = ESP_MIN(job->v, job->out - row);
        for (int64_t column = 0; column < job->in; column += job->m) {
            keep_in_group(job, row, rows, column);
        }
    }
}

esp_status esp_gradual_mask(esp_context *context, const esp_pattern *pattern,
                            const esp_gradual_step *step, int64_t out, int64_t in,
                            const float *scores, esp_mask **mask, esp_error *error)
{
    gradual_job job = {.step = step,
                       .v = esp_pattern_panel_rows(pattern, out),
                       .m = pattern->m,
                       .out = out,
                       .in = in,
                       .scores = scores};
    ESP_TRY(esp_mask_create(context, out, in, &job.mask, error));
    esp_parallel_for(context, esp_ceil_div(out, job.v), 1, keep_in_panels, &job);
    *mask = job.mask;
    return ESP_OK;
}
