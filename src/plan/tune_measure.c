/* The rounds of a measurement. They are interleaved over all candidates, so that a change of the
 * machine's mood hits all alike. Threads of libraries spin after a call: whoever follows one runs
 * untimed until they rest. Up to COLD_TOKENS copies of the weight are used in turn, more than the
 * last cache holds, because a model reads its weights once per pass: found warm, the larger weight,
 * the dense one, would gain more. With more tokens products hide it. Who is far behind at first
 * sight is timed no further. */
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "plan/tune.h"

#define COLD_TOKENS 256
#define MAX_COPIES 256
#define LEAST_ROUND_S 3e-3
#define LEAST_RECORDED_S 0.4e-3 /* of a GPU's own clock */
#define RECORDED_RUNS 4         /* of a recording at least: a replay's start weighs little */
#define SETTLE_S 3e-3
#define SETTLE_LIBRARY_S 40e-3 /* OpenBLAS' threads spin for 2^26 cycles after a call */
#define HOPELESS 4             /* times the fastest */

static bool is_recorded(const tune_job *job)
{
    return job->device->backend->record != NULL;
}

/* ---- weights ---- */

/* A GPU's last cache has 40 to 130 MB, which its host does not know. */
static size_t rotate_bytes(const tune_job *job, const tune_point *point)
{
    int64_t asked = job->options.rotate_bytes;
    if (asked != 0 || point->problem.tokens > COLD_TOKENS) {
        return asked > 0 ? (size_t)asked : 0;
    }
    if (is_recorded(job)) {
        return (size_t)128 << 20;
    }
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    size_t wanted = cache > 0 ? 2 * (size_t)cache : (size_t)64 << 20;
    return ESP_MIN(ESP_MAX(wanted, (size_t)64 << 20), (size_t)256 << 20);
}

/* As many copies as the point wants in turn, beginning with the job's weight. */
static esp_status make_copies(tune_job *job, const tune_point *point, unsigned form,
                              tune_copies *copies, esp_error *error)
{
    const esp_pack_options options = {form};
    const esp_packed *weight = job->weight;
    const esp_packed *read = form == ESP_FORM_SPREAD                           ? weight->spread
                             : form == ESP_FORM_DENSE && weight->dense != NULL ? weight->dense
                                                                               : weight;
    size_t bytes = ESP_MAX(read->bytes, 1);
    if (copies->copies == NULL) {
        copies->copies = esp_alloc_array(job->context, MAX_COPIES, sizeof(esp_packed *));
        if (copies->copies == NULL) {
            return esp_fail_memory(error, MAX_COPIES * sizeof(esp_packed *), "copies of a weight");
        }
        copies->copies[copies->count++] = job->weight;
    }
    copies->used = (int)ESP_MIN(rotate_bytes(job, point) / bytes + 1, MAX_COPIES);
    while (copies->count < copies->used) {
        esp_packed **copy = &copies->copies[copies->count];
        ESP_TRY(esp_pack_with(job->device, job->sparse, &options, copy, error));
        copies->count++;
    }
    return ESP_OK;
}

static void free_copies(tune_job *job, tune_copies *copies)
{
    for (int i = 1; i < copies->count; i++) {
        esp_packed_free(copies->copies[i]);
    }
    esp_release(job->context, copies->copies);
    *copies = (tune_copies){0};
}

void tune_copies_free(tune_job *job)
{
    free_copies(job, &job->sparse_copies);
    free_copies(job, &job->dense_copies);
    free_copies(job, &job->spread_copies);
}

static tune_copies *copies_of(tune_job *job, const tune_runner *runner)
{
    return runner->plan.form == ESP_FORM_DENSE    ? &job->dense_copies
           : runner->plan.form == ESP_FORM_SPREAD ? &job->spread_copies
                                                  : &job->sparse_copies;
}

/* ---- runners ---- */

static esp_status run_in(tune_job *job, tune_runner *runner, void *stream, esp_error *error)
{
    tune_copies *weight = copies_of(job, runner);
    const tune_memory *mirror = &job->mirror;
    weight->next = (weight->next + 1) % weight->used;
    esp_matmul_args args = {.weight = weight->copies[weight->next],
                            .x = job->x,
                            .y = job->y,
                            .scale = mirror->scale,
                            .bias = mirror->bias,
                            .residual = job->residual,
                            .workspace = job->workspace,
                            .stream = stream};
    return esp_matmul_run(&runner->plan, &args, error);
}

static esp_status run_once(tune_job *job, tune_runner *runner, esp_error *error)
{
    return run_in(job, runner, NULL, error);
}

/* What a recording holds: every copy of the weight as often as the others. */
static esp_status run_all(void *user, void *stream, esp_error *error)
{
    tune_runner *runner = user;
    for (int i = 0; i < runner->runs; i++) {
        ESP_TRY(run_in(runner->job, runner, stream, error));
    }
    return ESP_OK;
}

static esp_status prepare(tune_job *job, const tune_point *point, tune_runner *runner,
                          esp_error *error)
{
    esp_plan_options options = {
        .kernel_glob = runner->candidate.kernel, .forms = PLAN_ALL_FORMS, .ignore_tuning = true};
    size_t rounds = (size_t)job->options.rounds;
    ESP_TRY(esp_plan_fill(job->device, &point->problem, &options, &runner->plan, error));
    runner->round_us = esp_alloc_array(job->context, rounds, sizeof(double));
    runner->repeats = runner->runs = 1;
    if (runner->round_us == NULL) {
        return esp_fail_memory(error, rounds * sizeof(double), "a measurement");
    }
    ESP_TRY(tune_workspace(job, runner->plan.workspace_bytes, error));
    return make_copies(job, point, runner->plan.form, copies_of(job, runner), error);
}

/* Anew, of so many runs. */
static esp_status record(tune_job *job, tune_runner *runner, int runs, esp_error *error)
{
    esp_recording_free(runner->recording);
    runner->recording = NULL;
    runner->runs = runs;
    return esp_record(job->device, run_all, runner, &runner->recording, error);
}

static void release(tune_job *job, tune_runner *runner)
{
    esp_recording_free(runner->recording);
    esp_release(job->context, runner->round_us);
    runner->recording = NULL;
    runner->round_us = NULL;
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
static esp_status time_calls(tune_job *job, tune_runner *runner, double *us, esp_error *error)
{
    double start = esp_seconds();
    for (int i = 0; i < runner->repeats; i++) {
        ESP_TRY(run_once(job, runner, error));
    }
    *us = 1e6 * (esp_seconds() - start) / runner->repeats;
    return ESP_OK;
}

static esp_status time_recording(tune_runner *runner, double *us, esp_error *error)
{
    ESP_TRY(esp_recording_time(runner->recording, 1, us, error)); /* who ran before is gone */
    ESP_TRY(esp_recording_time(runner->recording, runner->repeats, us, error));
    *us /= (double)runner->runs * runner->repeats;
    return ESP_OK;
}

static void set_repeats(const tune_job *job, tune_runner *runner)
{
    double least_s = is_recorded(job) ? LEAST_RECORDED_S / runner->runs : LEAST_ROUND_S;
    double wanted = least_s * 1e6 / fmax(runner->least_us, 0.1);
    if (runner->least_us <= 0) { /* not seen yet: once tells enough */
        wanted = 0;
    }
    runner->repeats = wanted < 1 ? 1 : wanted > 10000 ? 10000 : (int)wanted + 1;
}

/* Notes a reading: a timed one, or one of the first two, which tell how long a round takes and who
 * is hopeless: by the better of two, since OpenMP's threads may happen to wait in one. */
static void note(const tune_job *job, tune_runner *runner, int round, double us)
{
    if (round >= 0) {
        runner->round_us[runner->rounds++] = us;
        return;
    }
    runner->least_us = round == -2 ? us : fmin(us, runner->least_us);
    runner->median_us = runner->least_us; /* all there will be, if it is hopeless */
    set_repeats(job, runner);
}

/* Everyone once; rounds -2 and -1 are not timed. */
static esp_status do_round(tune_job *job, tune_point *point, int round, esp_error *error)
{
    bool library_before = false;
    for (int i = 0; i < point->count; i++) {
        tune_runner *runner = &point->runners[i];
        double us = 0;
        ESP_TRY(tune_step(job, "tuning", error));
        if (runner->refused != NULL || runner->rounds < 0) {
            continue;
        }
        if (is_recorded(job)) {
            ESP_TRY(time_recording(runner, &us, error));
        } else {
            bool rest = library_before || is_library(runner);
            ESP_TRY(run_for(job, runner, rest ? SETTLE_LIBRARY_S : SETTLE_S, error));
            ESP_TRY(time_calls(job, runner, &us, error));
            library_before = is_library(runner);
        }
        note(job, runner, round, us);
    }
    return ESP_OK;
}

static void drop_hopeless(tune_point *point)
{
    double best = INFINITY;
    for (int i = 0; i < point->count; i++) {
        const tune_runner *runner = &point->runners[i];
        best = runner->refused == NULL ? fmin(best, runner->median_us) : best;
    }
    for (int i = 0; i < point->count; i++) {
        tune_runner *runner = &point->runners[i];
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

/* Recordings of few runs are enough to see who is hopeless. */
static esp_status record_all(tune_job *job, tune_point *point, bool every_copy, esp_error *error)
{
    for (int i = 0; is_recorded(job) && i < point->count; i++) {
        tune_runner *runner = &point->runners[i];
        int used = copies_of(job, runner)->used;
        bool more = !every_copy || used > runner->runs;
        if (runner->refused == NULL && runner->rounds >= 0 && more) {
            ESP_TRY(record(job, runner, every_copy ? used : RECORDED_RUNS, error));
            set_repeats(job, runner);
        }
    }
    return ESP_OK;
}

static esp_status measure(tune_job *job, tune_point *point, esp_error *error)
{
    for (int i = 0; i < point->count; i++) {
        if (point->runners[i].refused == NULL) {
            ESP_TRY(prepare(job, point, &point->runners[i], error));
        }
    }
    ESP_TRY(record_all(job, point, false, error));
    ESP_TRY(do_round(job, point, -2, error));
    ESP_TRY(do_round(job, point, -1, error));
    drop_hopeless(point);
    ESP_TRY(record_all(job, point, true, error));
    for (int round = 0; round < job->options.rounds; round++) {
        ESP_TRY(do_round(job, point, round, error));
    }
    for (int i = 0; i < point->count; i++) {
        if (point->runners[i].refused == NULL) {
            summarise(&point->runners[i]);
        }
    }
    return ESP_OK;
}

esp_status tune_measure(tune_job *job, tune_point *point, esp_error *error)
{
    esp_status status = measure(job, point, error);
    for (int i = 0; i < point->count; i++) {
        release(job, &point->runners[i]);
    }
    return status;
}
