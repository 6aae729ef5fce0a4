/* Parts of `espalier bench`: problems (one product), models, and a model against its pruned forms.
 */
#ifndef CLI_BENCH_H
#define CLI_BENCH_H

#include <string.h>

#include "explain.h"
#include "load.h"
#include "timing.h"

typedef struct bench_args {
    int64_t rounds, rotate;
    const char *against;
    bool all_kernels;
    int64_t prompt_tokens, new_tokens;
    const char *patterns, *text, *images, *work;
    int64_t max_tokens, max_images, context;
    int64_t seed;
    const char *random_weights, *pattern, *baseline; /* whole models: bench_whole.c */
    int64_t batch, tokens;
    int type; /* of drawn weights */
    text_list skips;
    bool tunes;
    plan_args plan;
} bench_args;

/* Whether --device names a GPU ("cuda", "cuda:1"); before it is opened, too. */
static inline bool bench_on_gpu(const cli_state *cli)
{
    return strncmp(cli->common.device, "cuda", strlen("cuda")) == 0;
}

/* ---- numbers ---- */

double bench_median(double *values, int count); /* sorts */
double bench_least(const double *values, int count);

/* splitmix64: the same values on every machine. */
static inline uint64_t bench_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* ---- one product ---- */

#define BENCH_MAX_KERNELS 32 /* rivals of a row */
#define BENCH_MAX_GROUP 16   /* problems that are measured together */
#define BENCH_MAX_MISSING 8

typedef struct kernel_times {
    char name[96];
    double median_us, least_us;
    timing_spread ratio; /* its time over that of the row's kernel, round by round */
} kernel_times;

/* One kernel on one problem. What was not measured is NaN. */
typedef struct problem_result {
    char problem[ESP_PROBLEM_TEXT_MAX], kernel[96];
    esp_compute compute;
    bool chosen; /* by the plan */
    double median_us, least_us;
    double error;                           /* largest difference to ref over its largest value */
    kernel_times rivals[BENCH_MAX_KERNELS]; /* on the same operands; the kernel itself excepted */
    int rival_count;
    kernel_times widened[BENCH_MAX_KERNELS]; /* libraries on the same values as f32 weights */
    int wide_count;
    char dense_kernel[96];  /* the fastest dense one, perhaps the kernel itself; "": none ran */
    timing_spread to_dense; /* that one's time over the kernel's, round by round */
    double gb_per_s, gflops;
    size_t weight_bytes, stream_bytes, dense_bytes; /* of one copy */
    int copies;                                     /* of the weight, used in turn */
    double read_gb_per_s;     /* of the bandwidth probe: rows that memory binds */
    timing_spread read_share; /* of that, by the weight's bytes alone, round by round */
    bool on_gpu;              /* then read_gb_per_s is of a copy, read and written */
    double tflops;            /* of what is not zero */
    double host_us;           /* of a call on a GPU */
    double clock_mhz;         /* 0: unknown */
    struct {
        char name[64], reason[192];
    } missing[BENCH_MAX_MISSING]; /* rivals that did not run */
    int missing_count;
    int rounds;
    bool pinned;
    double load_average; /* of the last minute, at the end: above the threads: others ran too */
} problem_result;

/* Problems that differ in pattern only and follow each other are measured in the same rounds.
 * Prints JSON lines as they come, or one table at the end. */
ESP_MUST_CHECK esp_status bench_problems(cli_state *cli, const char *const *texts, int count,
                                         esp_error *error);
/* bench_report.c */
ESP_MUST_CHECK esp_status bench_print_json(const cli_state *cli, const problem_result *result,
                                           esp_error *error);
ESP_MUST_CHECK esp_status bench_print_table(const cli_state *cli, const problem_result *results,
                                            int count, esp_error *error);
/* bench_machine.c: processor, memory, libraries with their versions, variables that steer them. */
cli_record bench_machine_json(const cli_state *cli);
void bench_machine_print(const cli_state *cli);

/* ---- how its kernel is chosen (bench_explain.c) ---- */

/* --require-sparse, before anything is measured. */
ESP_MUST_CHECK esp_status bench_check_sparse(cli_state *cli, const char *text, esp_error *error);
/* A line when a plan would run the problem dense; with --explain every candidate. */
ESP_MUST_CHECK esp_status bench_explain_text(const cli_state *cli, const char *text,
                                             esp_error *error);
/* With --explain, "explain"; the record is freed on failure. */
ESP_MUST_CHECK esp_status bench_explain_json(const cli_state *cli, const char *text,
                                             cli_record *record, esp_error *error);

/* ---- models ---- */

typedef struct model_row {
    char label[64];
    const char *path;
    loaded_model loaded;
    esp_session *session;
    esp_embedder *embedder; /* of an encoder, which has no session */
    esp_vision *vision;     /* of a model of images, which has neither */
    int32_t *ids;
    float *pixels;                     /* of a batch of images */
    float *outputs;                    /* logits, or vectors of texts, or results of images */
    int64_t *lengths, texts;           /* of an encoder's batch; texts: or images */
    int64_t prompt_tokens, new_tokens; /* an encoder's: of a text in the batch, of a text alone */
    double *prefill_s, *decode_s;      /* per round */
    double prefill_rate, decode_rate;
    char prefill_kernels[KERNELS_TEXT_MAX], decode_kernels[KERNELS_TEXT_MAX];
    cli_record kernels; /* the same as JSON */
    layer_counts prefill_layers, decode_layers;
    cli_record explained; /* list, with --explain */
    bool has_eval;
    esp_eval_result eval;
    bool has_image_eval;
    esp_image_eval_result image_eval;
    esp_model_memory memory; /* as it was when all was measured */
    int clamped;             /* layers whose V was clamped */
} model_row;

/* row: zero but for label and path. Loads, takes memory, warms up. */
ESP_MUST_CHECK esp_status bench_row_open(cli_state *cli, model_row *row, bool with_tokenizer,
                                         esp_error *error);
/* Interleaved rounds over all rows, then medians. */
ESP_MUST_CHECK esp_status bench_rows_measure(cli_state *cli, model_row *rows, int count,
                                             esp_error *error);
/* What is measured: "prefill" and "decode", or an encoder's "batch" and "single"; the tokens of one
 * product there. */
const char *bench_phase(const model_row *row, int phase);
int64_t bench_phase_tokens(const model_row *row, int phase);
/* Gives back the model and its memory; what was measured stays. */
void bench_row_release(model_row *row);
void bench_row_close(model_row *row);
ESP_MUST_CHECK esp_status bench_model(cli_state *cli, const char *path, esp_error *error);
/* Lines that say which sparse layers run dense, or should; nothing when all is well. */
void bench_row_notes(const cli_state *cli, const model_row *row, const char *prefix);
/* What every JSON line of a model holds; takes the row's kernels. */
cli_record bench_row_json(const cli_state *cli, model_row *row, const char *kind);

/* --patterns: prunes, evaluates and measures. */
ESP_MUST_CHECK esp_status bench_patterns(cli_state *cli, const char *path, esp_error *error);

#endif
