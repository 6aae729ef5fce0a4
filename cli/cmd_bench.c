/* espalier bench: measures products and models. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

#define MAX_OPERANDS 64

/* What is measured when nothing is asked for: decode (1 token) and prefill of one 7B-like layer. */
static const char *const default_problems[] = {
    "matmul/dense/bf16/4096x4096x1/a:f32",  "matmul/2:4/bf16/4096x4096x1/a:f32",
    "matmul/64:2:8/bf16/4096x4096x1/a:f32", "matmul/dense/bf16/4096x4096x128/a:f32",
    "matmul/2:4/bf16/4096x4096x128/a:f32",  "matmul/64:2:8/bf16/4096x4096x128/a:f32"};

/* ---- numbers ---- */

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, compare);
    return count % 2 != 0 ? values[count / 2] : 0.5 * (values[count / 2 - 1] + values[count / 2]);
}

double bench_least(const double *values, int count)
{
    double least = values[0];
    for (int i = 1; i < count; i++) {
        least = values[i] < least ? values[i] : least;
    }
    return least;
}

/* ---- output of problems ---- */

/* Variables by which users steer the libraries; a set one belongs to the reading. */
static const char *const library_variables[] = {
    "OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "OPENBLAS_L2_SIZE",   "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",   "OMP_PROC_BIND",        "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"};

static esp_status print_json(const cli_state *cli, const problem_result *result, esp_error *error)
{
    cli_record record = record_begin("bench"), rivals = record_object();
    cli_record least = record_object(), widened = record_object(), variables = record_object();
    record_text(&record, "kind", "problem");
    record_text(&record, "problem", result->problem);
    record_text(&record, "kernel", result->chosen.name);
    record_real(&record, "median_us", result->chosen.median_us);
    record_real(&record, "min_us", result->chosen.least_us);
    for (int i = 0; i < result->rival_count; i++) {
        record_real(&rivals, result->rivals[i].name, result->rivals[i].median_us);
        record_real(&least, result->rivals[i].name, result->rivals[i].least_us);
    }
    record_child(&record, "rivals", rivals);
    record_child(&record, "rivals_min_us", least);
    for (int i = 0; i < result->wide_count; i++) {
        record_real(&widened, result->widened[i].name, result->widened[i].median_us);
    }
    record_child(&record, "f32_weight_libraries", widened);
    for (int i = 0; i < COUNT(library_variables); i++) {
        if (getenv(library_variables[i]) != NULL) {
            record_text(&variables, library_variables[i], getenv(library_variables[i]));
        }
    }
    record_child(&record, "library_variables", variables);
    record_real(&record, "ratio_to_dense", result->ratio_to_dense);
    record_real(&record, "gb_per_s", result->gb_per_s);
    record_real(&record, "gflops", result->gflops);
    record_real(&record, "error_to_ref", result->chosen.error);
    record_int(&record, "weight_bytes", (int64_t)result->weight_bytes);
    record_int(&record, "dense_weight_bytes", (int64_t)result->dense_bytes);
    record_int(&record, "weight_copies", result->copies);
    record_int(&record, "rounds", result->rounds);
    record_int(&record, "threads", esp_context_threads(cli->context));
    record_real(&record, "load_average", result->load_average);
    record_text(&record, "compute", esp_compute_name(result->compute));
    record_text(&record, "device", esp_device_name(cli->device));
    record_text(&record, "commit", cli_commit());
    TRY(bench_explain_json(cli, result->problem, &record, error));
    return record_print(&record, error);
}

static void rival_rows(cli_table *table, const char *label, const kernel_times *times, int count,
                       double dense_us)
{
    for (int i = 0; i < count; i++) {
        table_cell(table, "%s", label);
        table_cell(table, "%s", times[i].name);
        table_cell(table, "%.1f", times[i].median_us);
        table_cell(table, "%.1f", times[i].least_us);
        table_cell(table, "%.2fx", dense_us / times[i].median_us);
        table_cell(table, "%s", "");
        table_cell(table, "%s", "");
    }
}

static void problem_rows(cli_table *table, const problem_result *result)
{
    bool lone = result->rival_count == 0;
    table_cell(table, "%s", result->problem);
    table_cell(table, "%s", result->chosen.name);
    table_cell(table, "%.1f", result->chosen.median_us);
    table_cell(table, "%.1f", result->chosen.least_us);
    table_cell(table, lone ? "-" : "%.2fx", result->ratio_to_dense);
    table_cell(table, "%.2f", result->gb_per_s);
    table_cell(table, "%.1f", result->gflops);
    rival_rows(table, "  rival", result->rivals, result->rival_count, result->dense_us);
    rival_rows(table, "  context: f32 weights", result->widened, result->wide_count,
               result->dense_us);
}

static esp_status print_table(const cli_state *cli, const problem_result *results, int count,
                              esp_error *error)
{
    static const char *const heads[] = {"<problem",  "<kernel", ">median us", ">min us",
                                        ">to dense", ">GB/s",   ">GFLOP/s"};
    cli_table table;
    table_begin(&table, COUNT(heads), heads);
    for (int i = 0; i < count; i++) {
        problem_rows(&table, &results[i]);
    }
    esp_status status = table_print(&table, stdout, error);
    table_free(&table);
    printf("\ndevice %s, %d threads, median of %d interleaved rounds; 'to dense' is the fastest "
           "dense kernel's time\nover this one's, GFLOP/s count the dense product\n",
           esp_device_name(cli->device), esp_context_threads(cli->context), results[0].rounds);
    for (int i = 0; i < count; i++) {
        if (results[i].rival_count > 0 && results[i].ratio_to_dense < 0.995) {
            printf("%s is slower than the fastest dense kernel on this machine: %.2fx\n",
                   results[i].problem, results[i].ratio_to_dense);
        }
    }
    for (int i = 0; i < COUNT(library_variables); i++) {
        if (getenv(library_variables[i]) != NULL) {
            printf("%s=%s steers the libraries\n", library_variables[i],
                   getenv(library_variables[i]));
        }
    }
    return status;
}

/* ---- operands ---- */

static bool is_problem(const char *text)
{
    return strncmp(text, "matmul/", 7) == 0;
}

static esp_status run_problems(cli_state *cli, const char *const *texts, int count,
                               esp_error *error)
{
    problem_result *results = calloc((size_t)count, sizeof *results);
    if (results == NULL) {
        return cli_fail_memory(error, "results");
    }
    esp_status status = ESP_OK;
    for (int i = 0; i < count && status == ESP_OK; i++) {
        status = bench_check_sparse(cli, texts[i], error);
        if (status == ESP_OK) {
            status = bench_problem(cli, texts[i], &results[i], error);
        }
        if (status == ESP_OK && cli->common.json) {
            status = print_json(cli, &results[i], error);
        }
    }
    if (status == ESP_OK && !cli->common.json) {
        status = print_table(cli, results, count, error);
    }
    for (int i = 0; i < count && status == ESP_OK && !cli->common.json; i++) {
        status = bench_explain_text(cli, results[i].problem, error);
    }
    free(results);
    return status;
}

static esp_status run(cli_state *cli, esp_error *error)
{
    const bench_args *args = cli->args;
    const char *const *operands = cli->operands;
    int count = cli->operand_count;
    cli->plan = &args->plan;
    if (args->patterns != NULL) {
        return count == 1 && !is_problem(operands[0])
                   ? bench_patterns(cli, operands[0], error)
                   : cli_fail(error, ESP_BAD_ARGUMENT, "usage.bad_value",
                              "--patterns needs one model; see 'espalier bench --help'");
    }
    if (count == 0) {
        return run_problems(cli, default_problems, COUNT(default_problems), error);
    }
    for (int i = 0; i < count;) {
        int problems = 0;
        while (i + problems < count && is_problem(operands[i + problems])) {
            problems++;
        }
        if (problems > 0) {
            TRY(run_problems(cli, operands + i, problems, error));
        } else {
            TRY(bench_model(cli, operands[i], error));
        }
        i += problems > 0 ? problems : 1;
    }
    return ESP_OK;
}

#define FIELD(member) offsetof(bench_args, member)
static const cli_option options[] = {
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
     .help = "problems: use copies of the weight of that size together in turn; -1: twice the last "
             "cache (64 to 512 MiB) up to 16 tokens, else one copy",
     .fallback = "-1",
     .least = -1,
     .most = (int64_t)1 << 40},
    {.name = "prompt-tokens",
     .kind = OPTION_INTEGER,
     .offset = FIELD(prompt_tokens),
     .argument = "N",
     .help = "models: tokens of the prefill; 0: 256 or half the context",
     .fallback = "0",
     .least = 0,
     .most = INT32_MAX},
    {.name = "new-tokens",
     .kind = OPTION_INTEGER,
     .offset = FIELD(new_tokens),
     .argument = "N",
     .help = "models: tokens of the decode; 0: 64 or a quarter of the context",
     .fallback = "0",
     .least = 0,
     .most = INT32_MAX},
    {.name = "patterns",
     .kind = OPTION_TEXT,
     .offset = FIELD(patterns),
     .argument = "LIST",
     .help = "prune the model into each of these, for example 2:4,64:2:8, and compare with dense"},
    {.name = "text",
     .letter = 't',
     .kind = OPTION_TEXT,
     .offset = FIELD(text),
     .argument = "FILE",
     .help = "with --patterns: text to evaluate on"},
    {.name = "max-tokens",
     .kind = OPTION_INTEGER,
     .offset = FIELD(max_tokens),
     .argument = "N",
     .help = "with --text: score only the first N tokens; 0: all",
     .fallback = "0",
     .least = 0,
     .most = INT64_MAX},
    {.name = "context",
     .kind = OPTION_INTEGER,
     .offset = FIELD(context),
     .argument = "N",
     .help = "with --text: tokens of a window; 0: as in eval",
     .fallback = "0",
     .least = 0,
     .most = INT32_MAX},
    {.name = "work",
     .kind = OPTION_TEXT,
     .offset = FIELD(work),
     .argument = "FOLDER",
     .help = "with --patterns: keep the pruned models there; without, they are removed"},
    {.name = "seed",
     .kind = OPTION_INTEGER,
     .offset = FIELD(seed),
     .argument = "S",
     .help = "of random weights and tokens",
     .fallback = "1",
     .least = 0,
     .most = INT64_MAX},
    MEMORY_OPTION(bench_args),
    PLAN_OPTIONS(bench_args),
    {.name = NULL}};

const cli_command bench_command = {
    .name = "bench",
    .summary = "measure products and models, and show what each pattern costs and gains",
    .operands = "[PROBLEM... | MODEL...]",
    .most_operands = MAX_OPERANDS,
    .options = options,
    .args_bytes = sizeof(bench_args),
    .run = run,
    .notes =
        "PROBLEM is matmul/PATTERN/TYPE/OUTxINxTOKENS; without any, a few are measured. The "
        "weights are random and pruned by magnitude; results are compared with the reference "
        "before they are timed (exit code 5 when they differ). Rivals are the dense kernels that "
        "can run the shape: ours and every library's. A MODEL is measured at prefill and decode "
        "on random tokens. With "
        "--patterns, one table compares the dense model with its pruned forms."};
