/* `espalier bench` of whole models, dense and sparse side by side. */
#ifndef CLI_BENCH_WHOLE_H
#define CLI_BENCH_WHOLE_H

#include "bench.h"
#include "gpu_trace.h"

#define WHOLE_MAX_MODELS 16
#define WHOLE_MAX_PHASES 2
#define WHOLE_NAME_MAX 192
#define WHOLE_SPARSE_SHARE 0.8 /* of FLOPs and of bytes: below it a row is not called sparse */

/* What of a model's products ran how, by the plans of its layers at the phase's token counts. */
typedef struct whole_products {
    double flops, sparse_flops; /* of the dense products, zeros counted */
    double bytes, sparse_bytes; /* of weights, as held */
    double sparse_ms, dense_ms; /* of the chosen kernels: measured, or predicted */
    bool measured;              /* all of them */
} whole_products;

/* One thing that is timed: a batch of images or texts, a prefill, a step of a decode. */
typedef struct whole_phase {
    char name[48]; /* "b256", "32x512", "prefill2048", "decode16" */
    const char *unit;
    int64_t batch,
        tokens; /* tokens: of each text, of the prompt; of a decode, what lies before it */
    int64_t product_tokens; /* of most products */
    double work;            /* units of a run */
    double *ms;             /* [rounds] */
    double given_ms;        /* images: with the pixels copied to a GPU first; 0: not measured */
    whole_products products;
    gpu_trace *trace; /* of one run; NULL: there is none, and why */
    char no_trace[128];
    cli_record explained; /* list, with --explain and --json */
} whole_phase;

typedef struct whole_model {
    const char *path; /* of a model, or of a config.json whose weights are drawn */
    bool drawn;
    esp_pattern pattern; /* of drawn weights */
    char label[ESP_PATTERN_TEXT_MAX];
    char name[64]; /* the folder's */
    char type[8];  /* of its linear layers, "f16" */
    loaded_model loaded;
    esp_vision *vision;
    esp_embedder *embedder;
    esp_session **sessions; /* the first takes the prefill, too */
    int64_t session_count, chunk;
    int32_t *ids;
    int64_t *lengths;
    float *pixels; /* the runner's */
    bool given;    /* the device has them */
    float *outputs;
    int32_t *next; /* what sequences go on with */
    whole_phase phases[WHOLE_MAX_PHASES];
    int phase_count;
    cli_record kernels;      /* of each phase */
    esp_model_memory memory; /* as it was when all was measured */
} whole_model;

static inline double whole_share(double part, double whole)
{
    return whole > 0 ? part / whole : 0;
}

/* Every model of the command line: see cmd_bench.c. */
ESP_MUST_CHECK esp_status bench_whole(cli_state *cli, esp_error *error);

/* bench_whole_run.c: loads and takes memory; runs a phase once; gives everything back but results.
 */
ESP_MUST_CHECK esp_status whole_open(cli_state *cli, whole_model *model, esp_error *error);
ESP_MUST_CHECK esp_status whole_prepare(whole_model *model, int phase, esp_error *error);
ESP_MUST_CHECK esp_status whole_run(whole_model *model, int phase, esp_error *error);
/* The runner anew: what it runs next is not a graph that it kept. */
ESP_MUST_CHECK esp_status whole_renew(const bench_args *args, whole_model *model, esp_error *error);
void whole_release(whole_model *model);

/* Images on a GPU: how long a run takes whose pixels come from the host. */
ESP_MUST_CHECK esp_status whole_time_given(const cli_state *cli, whole_model *model,
                                           esp_error *error);

/* bench_whole_trace.c: of a run of each phase; the runner is new afterwards. */
ESP_MUST_CHECK esp_status whole_trace(const cli_state *cli, whole_model *model, esp_error *error);
/* Where the time of a phase goes, of 1: by the trace, where there is one. */
cli_record whole_time_shares(const whole_phase *phase, double median_ms);
cli_record whole_kernel_times(const whole_phase *phase);
void whole_print_traces(const whole_model *models, int count);

/* bench_whole_tune.c: measures the kernels of a model's layers at the phases' token counts. */
ESP_MUST_CHECK esp_status whole_tune(cli_state *cli, whole_model *model, esp_error *error);

/* As its products see it. */
static inline esp_model_call whole_call(const whole_model *model, int phase)
{
    return (esp_model_call){.tokens = model->phases[phase].product_tokens,
                            .last_only = model->sessions != NULL && phase == 0};
}

/* bench_whole_report.c */
/* While it is loaded: its products, kernels and memory; with --explain all of its candidates. */
ESP_MUST_CHECK esp_status whole_look(cli_state *cli, whole_model *model, esp_error *error);
ESP_MUST_CHECK esp_status whole_print_json(const cli_state *cli, whole_model *models, int count,
                                           esp_error *error);
ESP_MUST_CHECK esp_status whole_print_table(const cli_state *cli, const whole_model *models,
                                            int count, esp_error *error);

#endif
