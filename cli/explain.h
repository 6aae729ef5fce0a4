/* Which kernel runs a product and why: the options that decide it, and what is shown of it. */
#ifndef CLI_EXPLAIN_H
#define CLI_EXPLAIN_H

#include "cli.h"
#include "output.h"

/* ---- options ---- */

struct plan_args {
    int memory; /* esp_memory */
    bool require_sparse, explain;
};

extern const char *const memory_names[]; /* of esp_memory, NULL-terminated */

/* Entries of an option table for the struct `type` that holds a plan_args named `plan`. */
#define MEMORY_OPTION(type)                                                                        \
    {                                                                                              \
        .name = "memory", .kind = OPTION_CHOICE, .offset = offsetof(type, plan.memory),            \
        .argument = "FORMS",                                                                       \
        .help =                                                                                    \
            "what is held of a sparse layer: the one form that is faster, its sparse form, or "    \
            "two where each wins somewhere (dense for prefill, sparse for decode)",                \
        .fallback = "one", .choices = memory_names                                                 \
    }
#define PLAN_OPTIONS(type)                                                                         \
    {.name = "require-sparse",                                                                     \
     .kind = OPTION_FLAG,                                                                          \
     .offset = offsetof(type, plan.require_sparse),                                                \
     .help = "fail where a sparse layer would run dense because that is faster"},                  \
    {                                                                                              \
        .name = "explain", .kind = OPTION_FLAG, .offset = offsetof(type, plan.explain),            \
        .help = "show each candidate kernel with its time or why it cannot run"                    \
    }

/* ---- one product ---- */

/* Candidates of the device with times, the chosen one and why. forms: what the weight holds. */
ESP_MUST_CHECK esp_status explain_problem(const cli_state *cli, const esp_matmul_problem *problem,
                                          unsigned forms, FILE *stream, esp_error *error);
/* {problem, forms, chosen, runs_dense, why, candidates: [...]} */
ESP_MUST_CHECK esp_status explain_problem_json(const cli_state *cli,
                                               const esp_matmul_problem *problem, unsigned forms,
                                               cli_record *record, esp_error *error);
/* "12.3 us measured at 16 tokens; the fastest dense one, NAME, 20.1 us". */
#define WHY_TEXT_MAX 320
const char *explain_reason(const esp_plan *plan, char text[WHY_TEXT_MAX]);
/* Options of the plan that a command would make; forms 0: both. */
esp_plan_options explain_plan_options(const cli_state *cli, unsigned forms);
/* An error where --require-sparse forbids what is fastest; ESP_OK without it. */
ESP_MUST_CHECK esp_status explain_check_sparse(const cli_state *cli,
                                               const esp_matmul_problem *problem, esp_error *error);

/* ---- models ---- */

/* How the sparse layers of a model run in a call. */
typedef struct layer_counts {
    int64_t sparse;      /* layers that the checkpoint holds sparse */
    int64_t runs_dense;  /* of them */
    int64_t would_dense; /* run sparse, though dense would be faster if it were held */
    bool measured;       /* by measured times, one of them at least */
} layer_counts;
layer_counts explain_count(const cli_state *cli, const esp_model *model, esp_model_call call);
/* What the counts say that a reader should know, as lines that begin with `prefix`. */
void explain_note(const cli_state *cli, const esp_model *model, const char *prefix,
                  const char *phase, esp_model_call call, FILE *stream);
void explain_counts(const cli_state *cli, const layer_counts *counts, const char *prefix,
                    const char *phase, int64_t tokens, FILE *stream);
/* Every distinct product of the model. */
ESP_MUST_CHECK esp_status explain_model(const cli_state *cli, const esp_model *model,
                                        esp_model_call call, FILE *stream, esp_error *error);
ESP_MUST_CHECK esp_status explain_model_json(const cli_state *cli, const esp_model *model,
                                             esp_model_call call, cli_record *list,
                                             esp_error *error);
/* Prints what a command found, with --explain the same as "explain". Takes the record. */
ESP_MUST_CHECK esp_status explain_and_print(const cli_state *cli, const esp_model *model,
                                            esp_model_call call, cli_record *record,
                                            esp_error *error);
/* layers_run_dense: {prefill, decode}. */
void explain_dense_json(const cli_state *cli, const esp_model *model, esp_model_call prefill,
                        cli_record *record);
/* memory, sparse_layers, dense_form_layers, two_form_layers. */
void explain_memory_json(const cli_state *cli, const esp_model_info *info, cli_record *record);
/* "one form each: 3 of 14 sparse layers held dense, 2 in two forms"; "" without sparse layers. */
const char *explain_memory(const cli_state *cli, const esp_model_info *info,
                           char text[WHY_TEXT_MAX]);

#endif
