/* espalier bench: measures products and models. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "bench_whole.h"

#define MAX_OPERANDS 1024

/* What is measured when nothing is asked for: decode (1 token) and prefill of one 7B-like layer. */
static const char *const default_problems[] = {
    "matmul/dense/bf16/4096x4096x1/a:f32",  "matmul/2:4/bf16/4096x4096x1/a:f32",
    "matmul/64:2:8/bf16/4096x4096x1/a:f32", "matmul/dense/bf16/4096x4096x128/a:f32",
    "matmul/2:4/bf16/4096x4096x128/a:f32",  "matmul/64:2:8/bf16/4096x4096x128/a:f32"};
static const char *const default_gpu_problems[] = {
    "matmul/2:4/f16/4096x4096x1",       "matmul/64:2:8/f16/4096x4096x1",
    "matmul/128:2:8/f16/4096x4096x1",   "matmul/2:4/f16/4096x4096x4096",
    "matmul/64:2:8/f16/4096x4096x4096", "matmul/128:2:8/f16/4096x4096x4096"};

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

/* ---- operands ---- */

static bool is_problem(const char *text)
{
    return strncmp(text, "matmul/", 7) == 0;
}

static const char *const bench_types[] = {"f16", "bf16", "f32", NULL};

static esp_status run_whole(cli_state *cli, esp_error *error)
{
    const bench_args *args = cli->args;
    bool drawn = args->random_weights != NULL, one = cli->operand_count == 1;
    if (drawn == (args->baseline != NULL) || (drawn ? cli->operand_count > 0 : !one) ||
        (one && is_problem(cli->operands[0]))) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.bad_value",
                        "--random-weights takes no MODEL, and --baseline takes one; see 'espalier "
                        "bench --help'");
    }
    if (args->pattern != NULL && !drawn) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.bad_value",
                        "--pattern is for --random-weights; for a model there is --patterns");
    }
    if (args->skips.count > 0 && !drawn) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.bad_value",
                        "--skip is for --random-weights: what MODEL prunes is settled");
    }
    return bench_whole(cli, error);
}

static esp_status run(cli_state *cli, esp_error *error)
{
    const bench_args *args = cli->args;
    const char *const *operands = cli->operands;
    int count = cli->operand_count;
    cli->plan = &args->plan;
    if (args->random_weights != NULL || args->baseline != NULL || args->pattern != NULL) {
        return run_whole(cli, error);
    }
    if (args->patterns != NULL) {
        return count == 1 && !is_problem(operands[0])
                   ? bench_patterns(cli, operands[0], error)
                   : cli_fail(error, ESP_BAD_ARGUMENT, "usage.bad_value",
                              "--patterns needs one model; see 'espalier bench --help'");
    }
    if (count == 0 && bench_on_gpu(cli)) {
        return bench_problems(cli, default_gpu_problems, COUNT(default_gpu_problems), error);
    }
    if (count == 0) {
        return bench_problems(cli, default_problems, COUNT(default_problems), error);
    }
    for (int i = 0; i < count;) {
        int problems = 0;
        while (i + problems < count && is_problem(operands[i + problems])) {
            problems++;
        }
        if (problems > 0) {
            TRY(bench_problems(cli, operands + i, problems, error));
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
     .help = "problems: use copies of the weight of that size together in turn; -1: 1 GiB (or what "
             "half of the memory allows; on a GPU 512 MiB) up to 256 tokens, else one copy",
     .fallback = "-1",
     .least = -1,
     .most = (int64_t)1 << 40},
    {.name = "against",
     .kind = OPTION_TEXT,
     .offset = FIELD(against),
     .argument = "WHOM",
     .help = "problems: dense (ours and every library's), none, or globs of kernels, with commas",
     .fallback = "dense"},
    {.name = "all-kernels",
     .kind = OPTION_FLAG,
     .offset = FIELD(all_kernels),
     .help = "problems: time every kernel that can run them, not only the chosen one"},
    {.name = "prompt-tokens",
     .kind = OPTION_INTEGER,
     .offset = FIELD(prompt_tokens),
     .argument = "N",
     .help =
         "models: tokens of the prefill, or of an encoder's texts; 0: 256 or half the context, 128",
     .fallback = "0",
     .least = 0,
     .most = INT32_MAX},
    {.name = "new-tokens",
     .kind = OPTION_INTEGER,
     .offset = FIELD(new_tokens),
     .argument = "N",
     .help =
         "models: tokens of the decode, or of a text alone; 0: 64 or a quarter of the context, 16",
     .fallback = "0",
     .least = 0,
     .most = INT32_MAX},
    {.name = "random-weights",
     .kind = OPTION_TEXT,
     .offset = FIELD(random_weights),
     .argument = "FOLDER",
     .help = "a whole model of the shape of FOLDER/config.json, its weights drawn"},
    {.name = "pattern",
     .letter = 'p',
     .kind = OPTION_TEXT,
     .offset = FIELD(pattern),
     .argument = "LIST",
     .help = "with --random-weights: prune into each of these, beside the dense one"},
    {.name = "skip",
     .kind = OPTION_LIST,
     .offset = FIELD(skips),
     .argument = "GLOB",
     .help = "with --random-weights: leave layers of that name dense"},
    {.name = "tune",
     .kind = OPTION_FLAG,
     .offset = FIELD(tunes),
     .help = "whole models: first measure every kernel on the shapes of their layers (up to 12800 "
             "tokens), and choose by these times; they are not kept"},
    {.name = "baseline",
     .letter = 'b',
     .kind = OPTION_TEXT,
     .offset = FIELD(baseline),
     .argument = "DENSE",
     .help = "measure MODEL beside this dense one"},
    {.name = "batch",
     .kind = OPTION_INTEGER,
     .offset = FIELD(batch),
     .argument = "N",
     .help = "whole models: images, texts or sequences that run together; 0: a few",
     .fallback = "0",
     .least = 0,
     .most = 1 << 16},
    {.name = "tokens",
     .kind = OPTION_INTEGER,
     .offset = FIELD(tokens),
     .argument = "N",
     .help = "whole models: of a text, of the prompt; 0: 128 or 256, or what the model takes",
     .fallback = "0",
     .least = 0,
     .most = INT32_MAX},
    {.name = "type",
     .kind = OPTION_CHOICE,
     .offset = FIELD(type),
     .argument = "TYPE",
     .help = "of drawn weights",
     .fallback = "f16",
     .choices = bench_types},
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
    {.name = "images",
     .kind = OPTION_TEXT,
     .offset = FIELD(images),
     .argument = "PATH",
     .help = "with --patterns: images to evaluate on, as eval has them"},
    {.name = "max-images",
     .kind = OPTION_INTEGER,
     .offset = FIELD(max_images),
     .argument = "N",
     .help = "only N images, spread over the set; 0: all",
     .fallback = "0",
     .least = 0,
     .most = INT64_MAX},
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
        "can run the shape: ours and every library's. Problems that differ in pattern only and "
        "follow each other are measured in the same rounds. Up to 16 tokens the weights come from "
        "memory, not from a cache, and a probe measures how fast memory can be read. A MODEL is "
        "measured at prefill and decode "
        "on random tokens. With "
        "--patterns, one table compares the dense model with its pruned forms. --random-weights "
        "and --baseline measure whole models side by side; a JSON line each has the problem "
        "model/NAME/PATTERN/TYPE/b256 (images), 32x512 (texts), prefill2048 or decode1."};
