/* espalier eval: how well a model predicts a text. */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>

#include "cli.h"
#include "eval_parts.h"
#include "explain.h"
#include "images.h"
#include "load.h"
#include "sizes.h"
#include "texts.h"

#define DEFAULT_CONTEXT 512 /* unless the model's is shorter */

typedef struct eval_args {
    const char *text, *retrieval, *choices, *images, *baseline;
    int64_t context, stride, max_tokens, max_images;
    eval_parts_args parts;
    plan_args plan;
} eval_args;

typedef struct eval_job {
    cli_state *cli;
    const eval_args *args;
    loaded_model model, baseline;
    eval_parts parts;
    char *text;
    size_t length;
    esp_eval_result result;
} eval_job;

/* Every token of a window is scored but the first. */
static esp_model_call window_of(const eval_job *job)
{
    return (esp_model_call){.tokens = job->result.context - 1};
}

static void print_text(const eval_job *job)
{
    const esp_eval_result *result = &job->result;
    char size[SIZE_TEXT_MAX], kernels[KERNELS_TEXT_MAX];
    printf("%-16s %s (%s in files)\n", "model", job->cli->operands[0],
           size_bytes((double)job->model.file_bytes, size));
    printf("%-16s %s, %zu bytes\n", "text", job->args->text, job->length);
    printf("%-16s context %lld, stride %lld, prefix %lld%s; each token scored once\n", "protocol",
           (long long)result->context, (long long)result->stride, (long long)result->prefix,
           result->prefix > 0 ? " (BOS)" : " (no BOS; the first token is not scored)");
    printf("%-16s %lld tokens, %zu bytes\n", "scored", (long long)result->tokens,
           result->text_bytes);
    printf("%-16s %.4f\n", "perplexity", result->perplexity);
    printf("%-16s %.4f\n", "bits per byte", result->bits_per_byte);
    if (result->has_baseline) {
        printf("%-16s %s\n", "baseline", job->args->baseline);
        printf("%-16s %.4f (ratio %.4f)\n", "  perplexity", result->baseline_perplexity,
               result->perplexity / result->baseline_perplexity);
        printf("%-16s %.5f nats\n", "  mean KL", result->mean_kl);
        printf("%-16s %.4f\n", "  same top token", result->top1_agreement);
    }
    eval_parts_print(&job->parts, &result->intervals, result->has_baseline, false);
    printf("%-16s %s, compute %s, %d threads, %.2f s, %.0f tokens/s\n", "run",
           esp_device_name(job->cli->device), model_compute(&job->model.info),
           esp_context_threads(job->cli->context), result->seconds,
           (double)result->tokens / fmax(result->seconds, 1e-9));
    printf("%-16s %s\n", "kernels", model_kernels_text(job->model.model, window_of(job), kernels));
    if (job->model.info.sparse_layers > 0) {
        char memory[WHY_TEXT_MAX];
        printf("%-16s %s; %s resident\n", "memory",
               explain_memory(job->cli, &job->model.info, memory),
               size_bytes((double)job->model.info.resident_bytes, size));
    }
    device_bytes_note(job->cli, &job->model);
    explain_note(job->cli, job->model.model, "", "note", window_of(job), stdout);
}

static esp_status print_json(eval_job *job, esp_error *error)
{
    const esp_eval_result *result = &job->result;
    double unknown = (double)NAN;
    bool has = result->has_baseline;
    cli_record record = record_begin("eval");
    record_text(&record, "model", job->cli->operands[0]);
    record_text(&record, "text", job->args->text);
    record_int(&record, "file_bytes", (int64_t)job->model.file_bytes);
    record_int(&record, "context", result->context);
    record_int(&record, "stride", result->stride);
    record_int(&record, "prefix", result->prefix);
    record_int(&record, "tokens", result->tokens);
    record_int(&record, "text_bytes", (int64_t)result->text_bytes);
    record_real(&record, "nats", result->nats);
    record_real(&record, "mean_nats", result->nats / (double)result->tokens);
    record_real(&record, "perplexity", result->perplexity);
    record_real(&record, "bits_per_byte", result->bits_per_byte);
    record_text(&record, "baseline", job->args->baseline);
    record_real(&record, "baseline_perplexity", has ? result->baseline_perplexity : unknown);
    record_real(&record, "perplexity_ratio",
                has ? result->perplexity / result->baseline_perplexity : unknown);
    record_real(&record, "mean_kl", has ? result->mean_kl : unknown);
    record_real(&record, "top1_agreement", has ? result->top1_agreement : unknown);
    eval_parts_json(&job->parts, &result->intervals, has, false, &record);
    record_real(&record, "seconds", result->seconds);
    record_text(&record, "device", esp_device_name(job->cli->device));
    record_text(&record, "compute", model_compute(&job->model.info));
    record_int(&record, "threads", esp_context_threads(job->cli->context));
    record_child(&record, "kernels", model_kernels_json(job->model.model, window_of(job)));
    record_int(&record, "resident_bytes", (int64_t)job->model.info.resident_bytes);
    device_bytes_json(loaded_memory(&job->model), &record);
    explain_memory_json(job->cli, &job->model.info, &record);
    layer_counts counts = explain_count(job->cli, job->model.model, window_of(job));
    record_int(&record, "layers_run_dense", counts.runs_dense);
    return explain_and_print(job->cli, job->model.model, window_of(job), &record, error);
}

static esp_status evaluate(eval_job *job, esp_error *error)
{
    cli_state *cli = job->cli;
    const eval_args *args = job->args;
    TRY(eval_parts_open(&job->parts, &args->parts, error));
    TRY(load_prose(args->text, &job->text, &job->length, error));
    TRY(load_model(cli, cli->operands[0], true, &job->model, error));
    if (args->baseline != NULL) {
        TRY(load_model(cli, args->baseline, false, &job->baseline, error));
    }
    esp_eval_options options = {.context = args->context,
                                .stride = args->stride,
                                .max_tokens = args->max_tokens,
                                .parts = eval_parts_options(&job->parts),
                                .progress = progress_step,
                                .user = &cli->progress};
    TRY(esp_eval_text(job->model.model, job->baseline.model, job->model.tokenizer, job->text,
                      job->length, &options, &job->result, error));
    progress_end(&cli->progress);
    if (cli->common.json) {
        return print_json(job, error);
    }
    print_text(job);
    return job->args->plan.explain
               ? explain_model(cli, job->model.model, window_of(job), stdout, error)
               : (esp_status)ESP_OK;
}

/* Options that only mean something for texts, or for texts and images. */
static esp_status check_parts(const eval_args *args, esp_error *error)
{
    if (args->parts.documents != NULL && args->text == NULL) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.extra_option",
                        "--documents goes with --text");
    }
    if (args->parts.bootstrap > 0 && args->text == NULL && args->images == NULL) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.extra_option",
                        "--bootstrap goes with --text and --images");
    }
    return ESP_OK;
}

static esp_status run(cli_state *cli, esp_error *error)
{
    eval_job job = {.cli = cli, .args = cli->args};
    cli->plan = &job.args->plan;
    const eval_args *args = job.args;
    int given = (args->text != NULL) + (args->retrieval != NULL) + (args->choices != NULL) +
                (args->images != NULL);
    if (given != 1) {
        return cli_fail(error, ESP_BAD_ARGUMENT,
                        given > 0 ? "usage.extra_option" : "usage.missing_option",
                        "one of --text, --retrieval, --multiple-choice and --images must be given; "
                        "see 'espalier eval --help'");
    }
    TRY(check_parts(args, error));
    if (args->retrieval != NULL) {
        return eval_retrieval(cli, args->retrieval, args->baseline, error);
    }
    if (args->choices != NULL) {
        return eval_choices(cli, args->choices, args->baseline, error);
    }
    if (args->images != NULL) {
        return eval_images(cli, args->images, args->baseline, args->max_images, &args->parts,
                           error);
    }
    cli->plan_tokens = (job.args->context > 0 ? job.args->context : DEFAULT_CONTEXT) - 1;
    esp_status status = evaluate(&job, error);
    loaded_model_free(&job.baseline);
    loaded_model_free(&job.model);
    eval_parts_free(&job.parts);
    free(job.text);
    return status;
}

#define FIELD(member) offsetof(eval_args, member)
static const cli_option options[] = {
    {.name = "text",
     .letter = 't',
     .kind = OPTION_TEXT,
     .offset = FIELD(text),
     .argument = "FILE",
     .help = "text to predict, UTF-8; - for standard input"},
    {.name = "retrieval",
     .kind = OPTION_TEXT,
     .offset = FIELD(retrieval),
     .argument = "FILE",
     .help = "encoders: pairs, a query, a tab and its document a line"},
    {.name = "multiple-choice",
     .kind = OPTION_TEXT,
     .offset = FIELD(choices),
     .argument = "FILE",
     .help = "questions, a JSON object a line: {\"context\": TEXT, \"choices\": [TEXT, ...], "
             "\"answer\": NUMBER}"},
    {.name = "images",
     .kind = OPTION_TEXT,
     .offset = FIELD(images),
     .argument = "PATH",
     .help = "models of images: a folder with a folder of images for each label, or an index, a "
             "path, a tab and a label a line"},
    {.name = "baseline",
     .letter = 'b',
     .kind = OPTION_TEXT,
     .offset = FIELD(baseline),
     .argument = "MODEL",
     .help = "dense model to compare with"},
    {.name = "context",
     .kind = OPTION_INTEGER,
     .offset = FIELD(context),
     .argument = "N",
     .help = "tokens of a window, BOS included; 0: 512 or the model's context if that is shorter",
     .fallback = "0",
     .least = 0,
     .most = INT32_MAX},
    {.name = "stride",
     .kind = OPTION_INTEGER,
     .offset = FIELD(stride),
     .argument = "N",
     .help = "newly scored tokens of a window; 0: all but BOS",
     .fallback = "0",
     .least = 0,
     .most = INT32_MAX},
    {.name = "max-tokens",
     .kind = OPTION_INTEGER,
     .offset = FIELD(max_tokens),
     .argument = "N",
     .help = "score only the first N tokens; 0: all",
     .fallback = "0",
     .least = 0,
     .most = INT64_MAX},
    {.name = "max-images",
     .kind = OPTION_INTEGER,
     .offset = FIELD(max_images),
     .argument = "N",
     .help = "only N images, spread over the set; 0: all",
     .fallback = "0",
     .least = 0,
     .most = INT64_MAX},
    EVAL_PARTS_OPTIONS(eval_args),
    MEMORY_OPTION(eval_args),
    PLAN_OPTIONS(eval_args),
    {.name = NULL}};

const cli_command eval_command = {
    .name = "eval",
    .summary = "measure quality on texts or images, and the distance to a dense model",
    .operands = "MODEL --text FILE | --retrieval FILE | --multiple-choice FILE | --images PATH",
    .least_operands = 1,
    .most_operands = 1,
    .options = options,
    .args_bytes = sizeof(eval_args),
    .run = run,
    .notes =
        "The text is tokenised once, without template. Each window starts with the tokenizer's "
        "prefix (BOS), holds CONTEXT tokens in all and scores its last STRIDE tokens, so that "
        "every token is scored exactly once; with a smaller stride, earlier tokens serve as "
        "context. Softmax and sums are in double. With a baseline: its perplexity on the same "
        "windows, the mean of KL(baseline || model) in nats, and how often both prefer the same "
        "token. --bootstrap draws documents (without --documents windows) or images with "
        "replacement, N times, and shows between what 95 % of the results lie.\n"
        "With --retrieval an encoder makes a vector of every text, and each query looks for its "
        "document among all documents by cosine: the share of queries that find it first, among "
        "the first ten, and the mean of 1 / rank.\n"
        "With --multiple-choice a decoder says how likely each choice is to go on from the "
        "context: "
        "the share of questions whose answer has the largest sum of ln p, and the largest sum "
        "divided by the choice's bytes. Answers count from 0; a space between context and choice "
        "belongs to the choice."};
