/* The rounds of a measurement. They are interleaved over all candidates, so that a change of the
 * machine's mood hits all alike. Threads of libraries spin after a call: whoever follows one runs
 * untimed until they rest. With few tokens a product is bound by reading the weight: then copies
 * are used in turn, more than the last cache holds, because a model reads its weights once per
 * token. Who is far behind at first sight is timed no further. */
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "plan/tune.h"

#define FEW_TOKENS 16
#define MAX_COPIES 256
#define LEAST_ROUND_S 3e-3
#define SETTLE_S 3e-3
#define SETTLE_LIBRARY_S 40e-3 /* OpenBLAS' threads spin for 2^26 cycles after a call */
#define HOPELESS 4             /* times the fastest */

/* ---- weights ---- */

static size_t rotate_bytes(const tune_job *job)
{
    int64_t asked = job->options.rotate_bytes;
    if (asked != 0 || job->problem.tokens > FEW_TOKENS) {
        return asked > 0 ? (size_t)asked : 0;
    }
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    size_t wanted = cache > 0 ? 2 * (size_t)cache : (size_t)64 << 20;
    return ESP_MIN(ESP_MAX(wanted, (size_t)64 << 20), (size_t)256 << 20);
}

static esp_status make_copies(tune_job *job, unsigned form, tune_copies *copies, esp_error *error)
{
    const esp_pack_options options = {form};
    int wanted = 1;
    copies->copies = esp_alloc_array(job->context, MAX_COPIES, sizeof(esp_packed *));
    if (copies->copies == NULL) {
        return esp_fail_memory(error, MAX_COPIES * sizeof(esp_packed *), "copies of the weight");
    }
    while (copies->count < wanted) {
        esp_packed **copy = &copies->copies[copies->count];
        ESP_TRY(esp_pack_with(job->device, job->sparse, &options, copy, error));
        copies->count++;
        size_t bytes = ESP_MAX(esp_packed_bytes(*copy), 1);
        wanted = (int)ESP_MIN(rotate_bytes(job) / bytes + 1, MAX_COPIES);
    }
    return ESP_OK;
}

static void free_copies(tune_job *job, tune_copies *copies)
{
    for (int i = 0; i < copies->count; i++) {
        esp_packed_free(copies->copies[i]);
    }
    esp_release(job->context, copies->copies);
    *copies = (tune_copies){0};
}

static tune_copies *copies_of(tune_job *job, const tune_runner *runner)
{
    return runner->plan.form == ESP_FORM_DENSE ? &job->dense_copies : &job->sparse_copies;
}

/* ---- runners ---- */

static esp_status prepare(tune_job *job, tune_runner *runner, esp_error *error)
{
    esp_plan_options options = {.kernel_glob = runner->candidate.kernel,
                                .forms = ESP_FORM_SPARSE | ESP_FORM_DENSE,
                                .ignore_tuning = true};
    size_t rounds = (size_t)job->options.rounds;
    ESP_TRY(esp_plan_fill(job->device, &job->problem, &options, &runner->plan, error));
    runner->workspace = esp_alloc(job->context, runner->plan.workspace_bytes);
    runner->round_us = esp_alloc_array(job->context, rounds, sizeof(double));
    runner->repeats = 1;
    if (runner->workspace == NULL || runner->round_us == NULL) {
        return esp_fail_memory(error, runner->plan.workspace_bytes, "a workspace");
    }
    tune_copies *copies = copies_of(job, runner);
    return copies->count > 0 ? ESP_OK : make_copies(job, runner->plan.form, copies, error);
}

static esp_status run_once(tune_job *job, tune_runner *runner, esp_error *error)
{
    tune_copies *weight = copies_of(job, runner);
    esp_matmul_args args = {.weight = weight->copies[weight->next],
                            .x = job->x,
                            .y = job->y,
                            .scale = job->scale,
                            .bias = job->bias,
                            .residual = job->residual,
                            .workspace = runner->workspace};
    weight->next = (weight->next + 1) % weight->count;
    return esp_matmul_run(&runner->plan, &args, error);
}

static bool is_library(const tune_runner *runner)
{
    const char *level = runner->plan.kernel->level;
    return strcmp(level, "openblas") == 0 || strcmp(level, "onednn") == 0;
}

/* ---- rounds ---- */

static esp_status run_for(tune_job *job, tune_runner *runner, double seconds, esp_error *error)
{
    double start = esp_seconds();
    do {
        ESP_TRY(run_once(job, runner, error));
    } while (esp_seconds() - start < seconds);
    return ESP_OK;
}

/* Microseconds of one run, over `repeats` of them. */
static esp_status time_runs(tune_job *job, tune_runner *runner, double *us, esp_error *error)
{
    double start = esp_seconds();
    for (int i = 0; i < runner->repeats; i++) {
        ESP_TRY(run_once(job, runner, error));
    }
    *us = 1e6 * (esp_seconds() - start) / runner->repeats;
    return ESP_OK;
}

/* Everyone once; round -2 and -1: to warm up, to find the number of repeats and who is hopeless: by
 * the better of two readings, since OpenMP's threads may happen to wait in one. */
static esp_status do_round(tune_job *job, int round, esp_error *error)
{
    bool library_before = false;
    for (int i = 0; i < job->count; i++) {
        tune_runner *runner = &job->runners[i];
        double us = 0;
        ESP_TRY(tune_step(job, "tuning", error));
        if (runner->refused != NULL || runner->rounds < 0) {
            continue;
        }
        bool rest = library_before || is_library(runner);
        ESP_TRY(run_for(job, runner, rest ? SETTLE_LIBRARY_S : SETTLE_S, error));
        ESP_TRY(time_runs(job, runner, &us, error));
        library_before = is_library(runner);
        if (round >= 0) {
            runner->round_us[runner->rounds++] = us;
        } else {
            double wanted = LEAST_ROUND_S * 1e6 / fmax(us, 0.1);
            runner->least_us = round == -2 ? us : fmin(us, runner->least_us);
            runner->median_us = runner->least_us; /* all there will be, if it is hopeless */
            runner->repeats = wanted < 1 ? 1 : wanted > 10000 ? 10000 : (int)wanted + 1;
        }
    }
    return ESP_OK;
}

static void drop_hopeless(tune_job *job)
{
    double best = INFINITY;
    for (int i = 0; i < job->count; i++) {
        const tune_runner *runner = &job->runners[i];
        best = runner->refused == NULL ? fmin(best, runner->median_us) : best;
    }
    for (int i = 0; i < job->count; i++) {
        tune_runner *runner = &job->runners[i];
        if (runner->refused == NULL && runner->median_us > HOPELESS * best) {
            runner->rounds = -1;
        }
    }
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void summarise(tune_runner *runner)
{
    int count = runner->rounds;
    if (count <= 0) { /* what was seen at first sight */
        runner->rounds = 1;
        return;
    }
    qsort(runner->round_us, (size_t)count, sizeof *runner->round_us, compare);
    runner->least_us = runner->round_us[0];
    runner->median_us = count % 2 != 0
                            ? runner->round_us[count / 2]
                            : 0.5 * (runner->round_us[count / 2 - 1] + runner->round_us[count / 2]);
}

static esp_status measure(tune_job *job, esp_error *error)
{
    for (int i = 0; i < job->count; i++) {
        if (job->runners[i].refused == NULL) {
            ESP_TRY(prepare(job, &job->runners[i], error));
        }
    }
    ESP_TRY(do_round(job, -2, error));
    ESP_TRY(do_round(job, -1, error));
    drop_hopeless(job);
    for (int round = 0; round < job->options.rounds; round++) {
        ESP_TRY(do_round(job, round, error));
    }
    for (int i = 0; i < job->count; i++) {
        if (job->runners[i].refused == NULL) {
            summarise(&job->runners[i]);
        }
    }
    return ESP_OK;
}

esp_status tune_measure(tune_job *job, esp_error *error)
{
    esp_status status = measure(job, error);
    for (int i = 0; i < job->count; i++) {
        esp_release(job->context, job->runners[i].workspace);
        esp_release(job->context, job->runners[i].round_us);
    }
    free_copies(job, &job->sparse_copies);
    free_copies(job, &job->dense_copies);
    return status;
}
