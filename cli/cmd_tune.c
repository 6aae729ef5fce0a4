/* espalier tune: measures the kernels of products, of those given or of a model's layers, and keeps
 * the times for every later choice. */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "load.h"
#include "problem_list.h"
#include "token_counts.h"
#include "tuning_file.h"

#define MAX_OPERANDS 1024

typedef struct tune_args {
    const char *tokens;
    int64_t rounds, rotate, seed;
} tune_args;

/* What is shown of one problem: begun at its first kernel, printed when the next one begins. */
typedef struct tune_view {
    cli_state *cli;
    bool begun;
    cli_table table;
    cli_record kernels;
    const char *fastest;
    double fastest_us, dense_us, sparse_us;
    char problem[ESP_PROBLEM_TEXT_MAX]; /* with its compute type */
    esp_status status;                  /* of printing */
    esp_error *error;
} tune_view;

/* ---- which problems ---- */

/* Only the outline of the model is wanted, but shapes and epilogues are known once it is loaded. */
static esp_status add_model(cli_state *cli, const char *path, problem_list *list, esp_error *error)
{
    const tune_args *args = cli->args;
    int64_t counts[MAX_TOKEN_COUNTS];
    int count;
    loaded_model loaded = {0};
    esp_model_layer layer;
    TRY(parse_token_counts(args->tokens, MAX_TOKEN_COUNTS, counts, &count, error));
    esp_status status = load_model(cli, path, false, &loaded, error);
    for (int i = 0; i < count && status == ESP_OK; i++) {
        const esp_model_call call = {.tokens = counts[i]};
        for (int64_t k = 0; status == ESP_OK && esp_model_get_layer(loaded.model, k, call, &layer);
             k++) {
            status = problem_list_add(list, &layer.problem, error);
        }
    }
    loaded_model_free(&loaded);
    return status;
}

static esp_status list_problems(cli_state *cli, problem_list *list, esp_error *error)
{
    for (int i = 0; i < cli->operand_count; i++) {
        esp_matmul_problem problem;
        if (strncmp(cli->operands[i], "matmul/", 7) != 0) {
            TRY(add_model(cli, cli->operands[i], list, error));
            continue;
        }
        TRY(esp_matmul_problem_parse(cli->operands[i], &problem, error));
        if (problem.compute == ESP_COMPUTE_AUTO) {
            problem.compute = (esp_compute)cli->common.compute;
        }
        TRY(problem_list_add(list, &problem, error));
    }
    return ESP_OK;
}

/* ---- measuring and showing ---- */

static void note_best(double *best, double us)
{
    *best = *best == 0 || us < *best ? us : *best;
}

static esp_status print_text(const tune_view *view, esp_error *error)
{
    printf("%s\n", view->problem);
    TRY(table_print(&view->table, stdout, error));
    printf("fastest: %s", view->fastest != NULL ? view->fastest : "none agrees with the reference");
    if (view->dense_us > 0 && view->sparse_us > 0) {
        printf("; sparse is %.2fx as fast as dense", view->dense_us / view->sparse_us);
    }
    printf("\n\n");
    fflush(stdout);
    return ESP_OK;
}

static esp_status print_json(tune_view *view, esp_error *error)
{
    cli_record record = record_begin("tune");
    record_text(&record, "problem", view->problem);
    record_text(&record, "fastest", view->fastest);
    record_real(&record, "sparse_us", view->sparse_us > 0 ? view->sparse_us : (double)NAN);
    record_real(&record, "dense_us", view->dense_us > 0 ? view->dense_us : (double)NAN);
    record_child(&record, "kernels", view->kernels);
    view->kernels = (cli_record){0};
    record_text(&record, "identity", esp_device_identity(view->cli->device));
    record_int(&record, "threads", esp_context_threads(view->cli->context));
    record_text(&record, "device", esp_device_name(view->cli->device));
    record_text(&record, "commit", cli_commit());
    return record_print(&record, error);
}

/* Shows the problem that was begun, if any. */
static void end_view(tune_view *view, bool shown)
{
    if (!view->begun) {
        return;
    }
    progress_end(&view->cli->progress);
    if (shown && view->status == ESP_OK) {
        view->status =
            view->cli->common.json ? print_json(view, view->error) : print_text(view, view->error);
    }
    record_free(&view->kernels);
    table_free(&view->table);
    *view = (tune_view){.cli = view->cli, .status = view->status, .error = view->error};
}

static void begin_view(tune_view *view, const char *problem)
{
    static const char *const heads[] = {"<kernel", ">median us", ">min us", ">predicted us", "<"};
    view->begun = true;
    view->kernels = record_list();
    table_begin(&view->table, COUNT(heads), heads);
    snprintf(view->problem, sizeof view->problem, "%s", problem);
}

static void add_kernel(tune_view *view, const esp_tune_result *result)
{
    const tune_args *args = view->cli->args;
    bool entered = result->refused == NULL, slow = args->rounds > 1 && result->rounds == 1;
    cli_record kernel = record_object();
    record_text(&kernel, "kernel", result->kernel);
    record_bool(&kernel, "runs_dense", result->runs_dense);
    record_text(&kernel, "refused", result->refused);
    record_real(&kernel, "median_us", entered ? result->median_us : (double)NAN);
    record_real(&kernel, "min_us", entered ? result->least_us : (double)NAN);
    record_real(&kernel, "predicted_us", result->predicted_us);
    record_real(&kernel, "error_over_bound", result->error);
    record_int(&kernel, "rounds", result->rounds);
    record_add(&view->kernels, kernel);
    table_cell(&view->table, "%s", result->kernel);
    table_cell(&view->table, entered ? "%.1f" : "-", result->median_us);
    table_cell(&view->table, entered ? "%.1f" : "-", result->least_us);
    table_cell(&view->table, "%.1f", result->predicted_us);
    table_cell(&view->table, "%s%s",
               !entered ? result->refused
               : slow   ? "slow: timed once"
                        : "",
               result->runs_dense ? " (runs dense)" : "");
}

static void on_result(void *user, const esp_matmul_problem *problem, const esp_tune_result *result)
{
    tune_view *view = user;
    char text[ESP_PROBLEM_TEXT_MAX];
    bool dense = result->runs_dense || problem->pattern.kind == ESP_PATTERN_DENSE;
    esp_matmul_problem_print(problem, text);
    if (!view->begun || strcmp(text, view->problem) != 0) {
        end_view(view, true);
        begin_view(view, text);
    }
    add_kernel(view, result);
    if (result->refused != NULL) {
        return;
    }
    if (view->fastest == NULL || result->median_us < view->fastest_us) {
        view->fastest = result->kernel;
        view->fastest_us = result->median_us;
    }
    note_best(dense ? &view->dense_us : &view->sparse_us, result->median_us);
}

/* Problems that differ in token count only: they share weights. */
static esp_status tune_some(cli_state *cli, const esp_matmul_problem *problem,
                            const int64_t *tokens, int count, esp_error *error)
{
    const tune_args *args = cli->args;
    tune_view view = {.cli = cli, .error = error};
    esp_tune_options options = {.rounds = (int)args->rounds,
                                .seed = (uint64_t)args->seed,
                                .on_result = on_result,
                                .progress = cli_progress_step,
                                .user = &view};
    /* The library counts 0 as its default and less as none. */
    options.rotate_bytes = args->rotate < 0 ? 0 : args->rotate == 0 ? -1 : args->rotate;
    esp_status status = esp_tune_tokens(cli->device, problem, tokens, count, &options, error);
    progress_end(&cli->progress);
    end_view(&view, status == ESP_OK);
    return status != ESP_OK ? status : view.status;
}

/* What is measured is kept at once, so that an interrupt loses one group of problems at most. */
static esp_status tune_all(cli_state *cli, problem_list *list, esp_error *error)
{
    TRY(tuning_save(cli, error)); /* before minutes of work: can it be kept? */
    for (int i = 0; i < list->count;) {
        int64_t tokens[MAX_TOKEN_COUNTS];
        int together = problem_list_gather(list, i, tokens);
        TRY(tune_some(cli, &list->problems[i], tokens, together, error));
        TRY(tuning_save(cli, error));
        i += together;
    }
    return ESP_OK;
}

static esp_status run(cli_state *cli, esp_error *error)
{
    problem_list list = {0};
    char path[TUNING_PATH_MAX] = "";
    TRY(cli_open_device(cli, error));
    esp_status status = list_problems(cli, &list, error);
    if (status == ESP_OK) {
        status = tune_all(cli, &list, error);
    }
    if (status == ESP_OK && !cli->common.json && tuning_path(path)) {
        printf("%d problems measured on %s\nkept in %s\n", list.count,
               esp_device_identity(cli->device), path);
    }
    problem_list_free(&list);
    return status;
}

#define FIELD(member) offsetof(tune_args, member)
static const cli_option options[] = {
    {.name = "tokens",
     .kind = OPTION_TEXT,
     .offset = FIELD(tokens),
     .argument = "LIST",
     .help = "models: token counts at which their layers are measured",
     .fallback = "1,16,128,512"},
    {.name = "rounds",
     .letter = 'r',
     .kind = OPTION_INTEGER,
     .offset = FIELD(rounds),
     .argument = "N",
     .help = "interleaved rounds, of which the median counts",
     .fallback = "9",
     .least = 1,
     .most = 10000},
    {.name = "rotate",
     .kind = OPTION_INTEGER,
     .offset = FIELD(rotate),
     .argument = "BYTES",
     .help = "use copies of the weight of that size together in turn; -1: twice the last cache "
             "(64 to 256 MiB) up to 256 tokens, else one copy",
     .fallback = "-1",
     .least = -1,
     .most = (int64_t)1 << 40},
    {.name = "seed",
     .kind = OPTION_INTEGER,
     .offset = FIELD(seed),
     .argument = "S",
     .help = "of random weights and activations",
     .fallback = "1",
     .least = 0,
     .most = INT64_MAX},
    {.name = NULL}};

const cli_command tune_command = {
    .name = "tune",
    .summary = "measure the kernels of products and keep the times for later choices",
    .operands = "PROBLEM... | MODEL...",
    .least_operands = 1,
    .most_operands = MAX_OPERANDS,
    .options = options,
    .args_bytes = sizeof(tune_args),
    .run = run,
    .notes =
        "Every kernel that can run a problem is compared with the reference, on integers bit for "
        "bit and on real numbers within the bound of rounding, at every output; those that agree "
        "are timed in interleaved rounds, dense ones on the same weight with its zeros among them. "
        "Times are kept in the file that ESPALIER_TUNING names, else in espalier/tuning of the "
        "cache folder (XDG_CACHE_HOME, or ~/.cache), under the device's identity: processor, "
        "instruction set, threads, memory, versions of libraries. A later choice takes the nearest "
        "measured token count within a factor of four; measured times win over predicted ones."};
