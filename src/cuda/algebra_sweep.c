/* SparseGPT's sweep on a GPU: src/prune/sparse_gpt.c, a launch for each block of columns and a
 * product behind it. Masks that rows choose by themselves are chosen in the launch; those that
 * panels choose come from the host's search, group by group. */
#include "cuda/algebra.h"

typedef struct sweep_job {
    const cuda_algebra *algebra;
    const esp_device_sweep *sweep;
    double *factor, *weights, *errors;
    uint64_t *mask;   /* [out][mask_words], or the words of one group */
    float *scores;    /* [out][group] */
    float *scored;    /* the same on the host */
    uint64_t *picked; /* words of one group on the host */
} sweep_job;

static esp_status update_right(const cuda_algebra *algebra, const gpu_sweep *s, esp_error *error)
{
    int64_t block = s->end - s->begin;
    const algebra_product rest = {.rows = s->rows,
                                  .columns = s->in - s->end,
                                  .depth = block,
                                  .alpha = -1,
                                  .beta = 1,
                                  .a = s->errors,
                                  .a_stride = block,
                                  .b = s->factor + s->begin * s->in + s->end,
                                  .b_stride = s->in,
                                  .c = s->weights + s->end,
                                  .c_stride = s->in};
    return algebra_multiply(algebra, &rest, error);
}

esp_status algebra_sweep_block(const cuda_algebra *algebra, gpu_sweep *sweep, esp_error *error)
{
    sweep->first = sweep->begin;
    sweep->stop = sweep->end;
    ESP_TRY(algebra_check(algebra, gpu_sweep_columns(sweep, algebra->stream), "a sweep", error));
    return update_right(algebra, sweep, error);
}

/* ---- groups that the host chooses ---- */

static esp_status choose(const sweep_job *job, gpu_sweep *s, int64_t width, esp_error *error)
{
    const esp_device_sweep *sweep = job->sweep;
    const cuda_algebra *algebra = job->algebra;
    size_t bytes = (size_t)(s->rows * width) * sizeof *job->scores;
    int64_t first = s->first / 64, words = (s->first + width - 1) / 64 - first + 1;
    ESP_TRY(algebra_check(algebra, gpu_sweep_scores(s, width, job->scores, algebra->stream),
                          "scoring", error));
    ESP_TRY(algebra_bring(algebra, job->scored, job->scores, bytes, error));
    ESP_TRY(sweep->choose(sweep->user, s->first, width, job->scored, error));
    for (int64_t r = 0; r < s->rows; r++) {
        memcpy(job->picked + r * words, sweep->mask + r * sweep->mask_words + first,
               (size_t)words * sizeof *job->picked);
    }
    s->mask_words = words;
    s->mask_first = first;
    return algebra_send(algebra, job->mask, job->picked,
                        (size_t)(s->rows * words) * sizeof *job->picked, error);
}

static esp_status choose_block(const sweep_job *job, gpu_sweep *s, esp_error *error)
{
    for (int64_t at = s->begin; at < s->end; at += job->sweep->group) {
        int64_t width = ESP_MIN(job->sweep->group, s->end - at);
        s->first = at;
        s->stop = at + width;
        ESP_TRY(choose(job, s, width, error));
        ESP_TRY(algebra_check(job->algebra, gpu_sweep_columns(s, job->algebra->stream), "a sweep",
                              error));
    }
    return update_right(job->algebra, s, error);
}

/* ---- all of it ---- */

static bool hosts(const esp_device_sweep *sweep)
{
    return sweep->group > 0 && (sweep->keep == 0 || sweep->group > GPU_SWEEP_GROUP);
}

static esp_status make_room(sweep_job *job, esp_error *error)
{
    const esp_device_sweep *sweep = job->sweep;
    const cuda_algebra *algebra = job->algebra;
    esp_context *context = algebra->device->context;
    size_t out = (size_t)sweep->out, in = (size_t)sweep->in, width = (size_t)sweep->group;
    size_t words = hosts(sweep) ? width / 64 + 2 : (size_t)sweep->mask_words;
    ESP_TRY(algebra_take(algebra, in * in * sizeof(double), "a factor", &job->factor, error));
    ESP_TRY(algebra_take(algebra, out * in * sizeof(double), "weights", &job->weights, error));
    ESP_TRY(algebra_take(algebra, out * (size_t)sweep->block * sizeof(double), "errors",
                         &job->errors, error));
    ESP_TRY(algebra_take(algebra, out * words * sizeof(uint64_t), "a mask", &job->mask, error));
    ESP_TRY(algebra_send(algebra, job->weights, sweep->weights, out * in * sizeof(double), error));
    if (!hosts(sweep)) {
        return algebra_send(algebra, job->mask, sweep->mask, out * words * sizeof(uint64_t), error);
    }
    ESP_TRY(algebra_take(algebra, out * width * sizeof(float), "scores", &job->scores, error));
    job->scored = esp_alloc_array(context, out * width, sizeof *job->scored);
    job->picked = esp_alloc_array(context, out * words, sizeof *job->picked);
    return job->scored != NULL && job->picked != NULL
               ? ESP_OK
               : esp_fail_memory(error, out * width * sizeof *job->scored, "scores");
}

static esp_status factor(const sweep_job *job, esp_error *error)
{
    int64_t n = job->sweep->in;
    double *from = NULL, *own = NULL;
    bool definite = false;
    ESP_TRY(
        algebra_lend(job->algebra, job->sweep->inverse, n * n, "an inverse", &from, &own, error));
    int failed =
        gpu_move(job->factor, from, (size_t)(n * n) * sizeof(double), job->algebra->stream);
    algebra_give(job->algebra, own);
    ESP_TRY(algebra_check(job->algebra, failed, "copying", error));
    ESP_TRY(algebra_factor(job->algebra, job->factor, n, &definite, error));
    return definite ? ESP_OK : algebra_not_definite(error);
}

static esp_status run(sweep_job *job, esp_error *error)
{
    const esp_device_sweep *sweep = job->sweep;
    size_t weights = (size_t)(sweep->out * sweep->in) * sizeof(double);
    ESP_TRY(make_room(job, error));
    ESP_TRY(factor(job, error));
    gpu_sweep s = {.rows = sweep->out,
                   .in = sweep->in,
                   .factor = job->factor,
                   .weights = job->weights,
                   .errors = job->errors,
                   .mask = job->mask,
                   .mask_words = sweep->mask_words,
                   .group = sweep->group,
                   .keep = hosts(sweep) ? 0 : sweep->keep};
    for (s.begin = 0; s.begin < s.in; s.begin = s.end) {
        s.end = ESP_MIN(s.in, s.begin + sweep->block);
        ESP_TRY(hosts(sweep) ? choose_block(job, &s, error)
                             : algebra_sweep_block(job->algebra, &s, error));
    }
    if (!hosts(sweep)) {
        ESP_TRY(algebra_bring(job->algebra, sweep->mask, job->mask,
                              (size_t)(sweep->out * sweep->mask_words) * sizeof(uint64_t), error));
    }
    return algebra_bring(job->algebra, sweep->weights, job->weights, weights, error);
}

esp_status cuda_algebra_sweep(esp_device_algebra *algebra, const esp_device_sweep *sweep,
                              esp_error *error)
{
    sweep_job job = {.algebra = (cuda_algebra *)algebra, .sweep = sweep};
    esp_context *context = job.algebra->device->context;
    esp_status status = run(&job, error);
    void *const taken[] = {job.factor, job.weights, job.errors, job.mask, job.scores};
    for (int i = 0; i < ESP_COUNT(taken); i++) {
        algebra_give(job.algebra, taken[i]);
    }
    esp_release(context, job.scored);
    esp_release(context, job.picked);
    return status;
}
