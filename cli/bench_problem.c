/* Times products: the kernel that is chosen for each problem (or every candidate) and, as rivals,
 * the dense kernels that could run the same shape: ours at its best level and every library's.
 * Where the weights are narrower than f32 and computed in f32, libraries run the same values as f32
 * weights besides: context, not rivals, since that weight takes more memory.
 *
 * Problems that differ in pattern only make a group, whose contestants all meet in the same rounds
 * (timing.h): one run of a dense rival serves every pattern. With at most 16 tokens a product is
 * bound by reading the weight: then each contestant goes round copies of its own, in distinct
 * memory and together 1 GiB, beyond any cache, because a model reads its weights once per token;
 * and a probe of the memory's read bandwidth takes part in the rounds. With more tokens (on a
 * GPU, more than 256) one copy serves; where a cache holds it, that helps the larger weight, the
 * dense one, more. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench_job.h"
#include "pinning.h"

#define COLD_TOKENS 256 /* a model reads a weight once for so many and more; as esp_tune has it */
#define ROTATE_BYTES ((size_t)1 << 30)
#define TURN_S 10e-3
#define SETTLE_S 40e-3 /* OpenBLAS' threads spin for 2^26 cycles after a call */
#define GPU_ROTATE_BYTES ((size_t)512 << 20)
#define GPU_TURN_S 4e-3
#define GPU_SETTLE_S 1e-3

/* ---- rounds ---- */

static esp_status open_probe(problem_group *group, read_probe **kept, esp_error *error)
{
    if (group->rotate_bytes == 0 && group->gpu == NULL) {
        return ESP_OK;
    }
    group->probe_us = calloc((size_t)group->args->rounds, sizeof(double));
    if (group->probe_us == NULL) {
        return cli_fail_memory(error, "a measurement");
    }
    if (group->gpu != NULL) {
        group->probe_bytes = group->gpu->probe_bytes;
        return ESP_OK;
    }
    if (*kept == NULL) {
        int threads = esp_context_threads(group->cli->context);
        TRY(read_probe_open(threads, group->rotate_bytes, kept, error));
        pinning_new_threads();
        read_probe_tune(*kept);
    }
    group->probe = *kept;
    group->probe_bytes = (double)read_probe_piece_bytes(*kept);
    return ESP_OK;
}

static timed_runner runner_of(const problem_group *group, contestant *runner)
{
    return (timed_runner){.run = bench_run_once,
                          .user = runner,
                          .round_us = runner->round_us,
                          .time = group->gpu != NULL ? bench_gpu_time : NULL};
}

static timed_runner runner_of_probe(problem_group *group)
{
    return group->gpu != NULL
               ? (timed_runner){.user = group, .round_us = group->probe_us, .time = bench_gpu_probe}
               : (timed_runner){
                     .run = read_probe_run, .user = group->probe, .round_us = group->probe_us};
}

static esp_status time_all(problem_group *group, esp_error *error)
{
    int count = group->contestant_count;
    timed_runner *runners = calloc((size_t)count + 1, sizeof *runners);
    if (runners == NULL) {
        return cli_fail_memory(error, "a measurement");
    }
    for (int i = 0; i < count; i++) {
        runners[i] = runner_of(group, &group->contestants[i]);
    }
    if (group->probe_us != NULL) {
        runners[count] = runner_of_probe(group);
    }
    timing_options options = {.rounds = (int)group->args->rounds,
                              .settle_s = group->gpu != NULL ? GPU_SETTLE_S : SETTLE_S,
                              .turn_s = group->gpu != NULL ? GPU_TURN_S : TURN_S,
                              .progress = progress_step,
                              .user = &group->cli->progress};
    esp_status status = timing_rounds(runners, count + (group->probe_us != NULL), &options, error);
    for (int i = 0; i < count; i++) {
        group->contestants[i].least_us = runners[i].least_us;
    }
    free(runners);
    return status;
}

/* ---- results ---- */

static double median_of(const problem_group *group, int place)
{
    return timing_spread_of(group->contestants[place].round_us, (int)group->args->rounds).median;
}

/* A rival that was lost on the way has no times. */
static bool took_part(const problem_group *group, int place)
{
    for (int i = 0; i < (int)group->args->rounds; i++) {
        if (!isfinite(group->contestants[place].round_us[i])) {
            return false;
        }
    }
    return true;
}

static void fill_times(const problem_group *group, const contestant *mine, int place,
                       kernel_times *times)
{
    const contestant *rival = &group->contestants[place];
    snprintf(times->name, sizeof times->name, "%s", rival->name);
    times->median_us = median_of(group, place);
    times->least_us = rival->least_us;
    times->ratio = timing_ratio(rival->round_us, mine->round_us, (int)group->args->rounds);
}

/* The fastest by its median of all that ran the dense weight, the row's own kernel included. */
static int fastest_dense(const problem_group *group, const bench_row *row)
{
    bool dense = group->problems[row->problem].pattern.kind == ESP_PATTERN_DENSE;
    int best = dense ? row->runner : -1;
    for (int i = 0; i < row->rival_count; i++) {
        int rival = row->rivals[i];
        bool can = group->contestants[rival].problem.pattern.kind == ESP_PATTERN_DENSE &&
                   took_part(group, rival);
        if (can && (best < 0 || median_of(group, rival) < median_of(group, best))) {
            best = rival;
        }
    }
    return best;
}

static timing_spread share_of_reading(const problem_group *group, const contestant *mine,
                                      double *read_gb_per_s)
{
    int rounds = (int)group->args->rounds;
    double unknown = (double)NAN;
    if (group->probe_us == NULL) {
        *read_gb_per_s = unknown;
        return (timing_spread){unknown, unknown, unknown, unknown, unknown};
    }
    double piece = group->probe_bytes;
    double scale = (double)mine->weight->stream_bytes / piece;
    timing_spread share = timing_ratio(group->probe_us, mine->round_us, rounds);
    *read_gb_per_s = 1e-3 * piece / timing_spread_of(group->probe_us, rounds).median;
    return (timing_spread){scale * share.median, scale * share.low, scale * share.high,
                           scale * share.least, scale * share.most};
}

static size_t dense_bytes(const problem_group *group)
{
    const esp_matmul_problem *dense = &group->dense;
    return (size_t)dense->out_features * (size_t)dense->in_features *
           (esp_dtype_bits(dense->weight_type) / 8);
}

static void fill_dense(const problem_group *group, const bench_row *row, problem_result *result)
{
    const contestant *mine = &group->contestants[row->runner];
    int dense = fastest_dense(group, row), rounds = (int)group->args->rounds;
    double unknown = (double)NAN;
    result->to_dense = (timing_spread){unknown, unknown, unknown, unknown, unknown};
    if (dense >= 0) {
        const contestant *best = &group->contestants[dense];
        snprintf(result->dense_kernel, sizeof result->dense_kernel, "%s", best->name);
        result->to_dense = timing_ratio(best->round_us, mine->round_us, rounds);
        result->dense_bytes = best->weight != NULL ? best->weight->bytes : dense_bytes(group);
    }
}

static esp_status fill_result(const problem_group *group, const bench_row *row,
                              problem_result *result, esp_error *error)
{
    contestant *mine = &group->contestants[row->runner];
    const esp_matmul_problem *problem = &group->problems[row->problem];
    *result = (problem_result){.compute = problem->compute,
                               .chosen = row->chosen,
                               .error = mine->error,
                               .least_us = mine->least_us,
                               .median_us = median_of(group, row->runner),
                               .weight_bytes = mine->weight->bytes,
                               .stream_bytes = mine->weight->stream_bytes,
                               .copies = mine->weight->used,
                               .rounds = (int)group->args->rounds,
                               .pinned = group->pinned,
                               .load_average = (double)NAN};
    esp_matmul_problem_print(problem, result->problem);
    snprintf(result->kernel, sizeof result->kernel, "%s", mine->name);
    for (int i = 0; i < row->rival_count; i++) {
        if (row->rivals[i] != row->runner && took_part(group, row->rivals[i])) {
            fill_times(group, mine, row->rivals[i], &result->rivals[result->rival_count++]);
        }
    }
    for (int i = 0; i < row->wide_count; i++) {
        fill_times(group, mine, row->widened[i], &result->widened[result->wide_count++]);
    }
    fill_dense(group, row, result);
    result->read_share = share_of_reading(group, mine, &result->read_gb_per_s);
    double bytes =
        (double)result->stream_bytes + (double)group->data.x_bytes + (double)group->data.y_bytes;
    result->gb_per_s = 1e-3 * bytes / result->median_us;
    result->gflops = 2e-3 * (double)problem->out_features * (double)problem->in_features *
                     (double)problem->tokens / result->median_us;
    (void)!getloadavg(&result->load_average, 1);
    return bench_gpu_fill(group, mine, result, error);
}

/* ---- a group ---- */

/* With AUTO resolved, so that types and rivals are known. */
static esp_status parse(cli_state *cli, const char *text, esp_matmul_problem *problem,
                        esp_error *error)
{
    esp_plan *plan;
    TRY(esp_matmul_problem_parse(text, problem, error));
    if (problem->compute == ESP_COMPUTE_AUTO) {
        problem->compute = (esp_compute)cli->common.compute;
    }
    const esp_plan_options options = {.kernel_glob = cli->common.kernel, .forms = BENCH_FORMS};
    TRY(esp_plan_create_with(cli->device, problem, &options, &plan, error));
    problem->compute = esp_plan_compute(plan);
    esp_plan_free(plan);
    return ESP_OK;
}

static bool same_but_pattern(const esp_matmul_problem *a, const esp_matmul_problem *b)
{
    char text_a[ESP_PROBLEM_TEXT_MAX], text_b[ESP_PROBLEM_TEXT_MAX];
    esp_matmul_problem dense_a = *a, dense_b = *b;
    dense_a.pattern = dense_b.pattern = (esp_pattern){.kind = ESP_PATTERN_DENSE};
    esp_matmul_problem_print(&dense_a, text_a);
    esp_matmul_problem_print(&dense_b, text_b);
    return strcmp(text_a, text_b) == 0;
}

/* 1 GiB for every weight, or what half of the machine's memory allows. */
static size_t rotate_bytes(const problem_group *group)
{
    if (group->args->rotate >= 0) {
        return (size_t)group->args->rotate;
    }
    if (group->dense.tokens > COLD_TOKENS) {
        return 0;
    }
    if (group->gpu != NULL) { /* whose cache has 40 to 130 MB */
        return GPU_ROTATE_BYTES;
    }
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    size_t weights = (size_t)group->problem_count + 3; /* dense, widened, the probe's buffer */
    size_t room = pages > 0 ? (size_t)pages * (size_t)page / 2 / weights : ROTATE_BYTES;
    return room < ROTATE_BYTES ? room : ROTATE_BYTES;
}

static esp_status measure(problem_group *group, read_probe **probe, esp_error *error)
{
    TRY(bench_make_operands(group, error));
    TRY(bench_add_rows(group, error));
    TRY(open_probe(group, probe, error));
    TRY(bench_check_all(group, error));
    return time_all(group, error);
}

static void free_group(problem_group *group)
{
    if (group->gpu != NULL) {
        group->gpu->part(group->gpu);
    }
    for (int i = 0; i < group->contestant_count; i++) {
        recorded_free(&group->contestants[i].runs);
        esp_plan_free(group->contestants[i].plan);
        esp_device_release(group->cli->device, group->contestants[i].workspace);
        free(group->contestants[i].round_us);
    }
    free(group->contestants);
    free(group->rows);
    free(group->probe_us);
    bench_free_operands(group);
}

/* ---- all ---- */

typedef struct measurement {
    cli_state *cli;
    weight_store store;
    read_probe *probe;
    bench_gpu *gpu; /* NULL on a processor */
    problem_result *results;
    int count;
    bool pinned;
} measurement;

static esp_status keep_results(measurement *all, const problem_group *group, esp_error *error)
{
    problem_result *results =
        realloc(all->results, (size_t)(all->count + group->row_count) * sizeof(problem_result));
    if (results == NULL) {
        return cli_fail_memory(error, "results");
    }
    all->results = results;
    for (int i = 0; i < group->row_count; i++) {
        problem_result *result = &results[all->count++];
        TRY(fill_result(group, &group->rows[i], result, error));
        if (all->cli->common.json) {
            TRY(bench_print_json(all->cli, result, error));
        }
    }
    return ESP_OK;
}

static esp_status run_group(measurement *all, const esp_matmul_problem *problems, int count,
                            esp_error *error)
{
    problem_group group = {.cli = all->cli,
                           .args = all->cli->args,
                           .store = &all->store,
                           .gpu = all->gpu,
                           .problem_count = count,
                           .dense = problems[0],
                           .pinned = all->pinned};
    group.dense.pattern = (esp_pattern){.kind = ESP_PATTERN_DENSE};
    memcpy(group.problems, problems, (size_t)count * sizeof *problems);
    group.rotate_bytes = rotate_bytes(&group);
    group.contestants = calloc(BENCH_MAX_CONTESTANTS, sizeof(contestant));
    group.rows = calloc(BENCH_MAX_CONTESTANTS, sizeof(bench_row));
    esp_status status = group.contestants != NULL && group.rows != NULL
                            ? measure(&group, &all->probe, error)
                            : cli_fail_memory(error, "a measurement");
    progress_end(&all->cli->progress);
    if (status == ESP_OK) {
        status = keep_results(all, &group, error);
    }
    free_group(&group);
    return status;
}

static esp_status run_all(measurement *all, const char *const *texts, int count, esp_error *error)
{
    esp_matmul_problem problems[BENCH_MAX_GROUP];
    TRY(cli_open_device(all->cli, error));
    if (device_is_gpu(all->cli->device)) {
        TRY(bench_gpu_open(all->cli->device, &all->gpu, error));
    } else {
        all->pinned = pinning_begin(esp_context_threads(all->cli->context));
    }
    for (int i = 0; i < count; i++) {
        TRY(bench_check_sparse(all->cli, texts[i], error));
    }
    for (int done = 0; done < count;) {
        int together = 0;
        while (done + together < count && together < BENCH_MAX_GROUP) {
            TRY(parse(all->cli, texts[done + together], &problems[together], error));
            if (!same_but_pattern(&problems[0], &problems[together])) {
                break;
            }
            together++;
        }
        TRY(run_group(all, problems, together, error));
        done += together;
    }
    if (all->cli->common.json) {
        return ESP_OK;
    }
    TRY(bench_print_table(all->cli, all->results, all->count, error));
    for (int i = 0; i < all->count; i++) {
        TRY(bench_explain_text(all->cli, all->results[i].problem, error));
    }
    return ESP_OK;
}

esp_status bench_problems(cli_state *cli, const char *const *texts, int count, esp_error *error)
{
    measurement all = {.cli = cli, .store = {.cli = cli}};
    esp_status status = run_all(&all, texts, count, error);
    read_probe_close(all.probe);
    if (all.gpu != NULL) {
        all.gpu->close(all.gpu);
    }
    bench_weights_free(&all.store);
    free(all.results);
    pinning_end();
    return status;
}
