/* espalier run: continues a prompt; vectors of texts are in run_texts.c. */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "explain.h"
#include "images.h"
#include "load.h"
#include "many.h"
#include "sizes.h"
#include "texts.h"

#define BATCH 512 /* most tokens of a product, as sessions have it */

typedef struct run_args {
    const char *prompt, *prompt_file, *prompts;
    int64_t max_tokens, seed;
    double temperature, top_p;
    bool no_special;
    run_texts_args texts;
    run_images_args images;
    plan_args plan;
} run_args;

typedef struct run_job {
    cli_state *cli;
    const run_args *args;
    loaded_model model;
    char *file_text;
    const char *prompt;
    size_t prompt_bytes;
    int32_t *ids;
    int64_t id_count;
    esp_session *session;
    esp_generation result;
    utf8_stream out;
    int32_t place; /* in the text that the prompt begins; see esp_tokenizer_next */
    char *text;    /* what was generated, when it is not streamed */
    size_t text_bytes;
} run_job;

static const char *const stops[] = {[ESP_STOP_LIMIT] = "limit",
                                    [ESP_STOP_EOS] = "eos",
                                    [ESP_STOP_CONTEXT] = "context",
                                    [ESP_STOP_CALLBACK] = "interrupted"};

static bool on_token(void *user, int32_t id)
{
    run_job *job = user;
    size_t length = 0;
    const char *bytes = esp_tokenizer_next(job->model.tokenizer, id, false, &job->place, &length);
    if (bytes != NULL) {
        utf8_push(&job->out, bytes, length);
        fflush(job->out.stream);
    }
    return !interrupted() && !ferror(job->out.stream);
}

static esp_status get_prompt(run_job *job, esp_error *error)
{
    const run_args *args = job->args;
    if (args->prompt != NULL && args->prompt_file != NULL) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.extra_option",
                        "--prompt and --prompt-file exclude each other; see 'espalier run --help'");
    }
    if (args->prompt != NULL) {
        job->prompt = args->prompt;
        job->prompt_bytes = strlen(args->prompt);
        return ESP_OK;
    }
    if (args->prompt_file == NULL && isatty(STDIN_FILENO) && !job->cli->common.quiet) {
        fputs("espalier: the prompt is read from the terminal; Ctrl-D ends it\n", stderr);
    }
    TRY(load_text(args->prompt_file != NULL ? args->prompt_file : "-", &job->file_text,
                  &job->prompt_bytes, error));
    job->prompt = job->file_text;
    return ESP_OK;
}

static esp_status encode_prompt(run_job *job, esp_error *error)
{
    int64_t context = job->model.info.context;
    TRY(esp_tokenizer_encode(job->model.tokenizer, job->prompt, job->prompt_bytes,
                             !job->args->no_special, &job->ids, &job->id_count, error));
    if (job->id_count == 0) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "run.empty_prompt",
                        "the prompt is empty and the tokenizer puts no BOS before it; give a text");
    }
    for (int64_t i = 0; i < job->id_count; i++) {
        size_t length;
        (void)esp_tokenizer_next(job->model.tokenizer, job->ids[i], false, &job->place, &length);
    }
    if (job->id_count > context) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "run.prompt_too_long",
                        "the prompt has %lld tokens, but the model's context holds %lld; shorten "
                        "the prompt",
                        (long long)job->id_count, (long long)context);
    }
    return ESP_OK;
}

static esp_status generate(run_job *job, esp_error *error)
{
    const run_args *args = job->args;
    int64_t context = job->model.info.context;
    int64_t room = context - job->id_count;
    int64_t capacity = job->id_count + (args->max_tokens < room ? args->max_tokens : room);
    TRY(esp_session_create(job->model.model, capacity, 0, &job->session, error));
    esp_sampling sampling = {.temperature = (float)args->temperature,
                             .top_p = (float)args->top_p,
                             .seed = (uint64_t)args->seed};
    esp_status status = esp_generate(job->session, job->ids, job->id_count, args->max_tokens,
                                     &sampling, on_token, job, &job->result, error);
    utf8_end(&job->out);
    return status;
}

static double rate(int64_t tokens, double seconds)
{
    return seconds > 0 && tokens > 0 ? (double)tokens / seconds : (double)NAN;
}

/* The first new token comes out of the prefill. */
static double decode_rate(const esp_generation *result)
{
    return rate(result->new_tokens - 1, result->decode_seconds);
}

/* A prompt goes in pieces. */
static esp_model_call prefill_of(const run_job *job)
{
    int64_t tokens = job->result.prompt_tokens < BATCH ? job->result.prompt_tokens : BATCH;
    return (esp_model_call){.tokens = tokens, .last_only = true};
}

static const esp_model_call decode = {.tokens = 1};

static void print_statistics(const run_job *job)
{
    const esp_generation *result = &job->result;
    char kernels[KERNELS_TEXT_MAX], a[SIZE_TEXT_MAX], b[SIZE_TEXT_MAX];
    fprintf(stderr,
            "espalier: prompt %lld tokens, %s tokens/s; new %lld tokens, %s tokens/s; stopped by "
            "%s; %s, compute %s, %d threads\n",
            (long long)result->prompt_tokens,
            size_number(rate(result->prompt_tokens, result->prefill_seconds), a),
            (long long)result->new_tokens, size_number(decode_rate(result), b), stops[result->stop],
            esp_device_name(job->cli->device), model_compute(&job->model.info),
            esp_context_threads(job->cli->context));
    fprintf(stderr, "espalier: prefill kernels: %s\n",
            model_kernels_text(job->model.model, prefill_of(job), kernels));
    fprintf(stderr, "espalier: decode kernels: %s\n",
            model_kernels_text(job->model.model, decode, kernels));
    if (job->model.info.sparse_layers > 0) {
        char memory[WHY_TEXT_MAX];
        fprintf(stderr, "espalier: memory %s; %s resident\n",
                explain_memory(job->cli, &job->model.info, memory),
                size_bytes((double)job->model.info.resident_bytes, a));
    }
    device_bytes_note(job->cli, &job->model);
    explain_note(job->cli, job->model.model, "espalier: ", "prefill", prefill_of(job), stderr);
    explain_note(job->cli, job->model.model, "espalier: ", "decode", decode, stderr);
}

static esp_status explain_text(const run_job *job, esp_error *error)
{
    const esp_model_call calls[] = {prefill_of(job), decode};
    for (int i = 0; i < (calls[0].tokens == 1 ? 1 : 2); i++) {
        fprintf(stderr, "\nespalier: kernels at %lld tokens\n", (long long)calls[i].tokens);
        TRY(explain_model(job->cli, job->model.model, calls[i], stderr, error));
    }
    return ESP_OK;
}

static esp_status print_json(run_job *job, esp_error *error)
{
    const esp_generation *result = &job->result;
    cli_record record = record_begin("run"), kernels = record_object();
    record_text(&record, "model", job->cli->operands[0]);
    record_text(&record, "text", job->text);
    record_int(&record, "prompt_tokens", result->prompt_tokens);
    record_int(&record, "new_tokens", result->new_tokens);
    record_text(&record, "stop", stops[result->stop]);
    record_real(&record, "prefill_seconds", result->prefill_seconds);
    record_real(&record, "decode_seconds", result->decode_seconds);
    record_real(&record, "prefill_tokens_per_s",
                rate(result->prompt_tokens, result->prefill_seconds));
    record_real(&record, "decode_tokens_per_s", decode_rate(result));
    record_real(&record, "temperature", job->args->temperature);
    record_real(&record, "top_p", job->args->top_p);
    record_int(&record, "seed", job->args->seed);
    record_text(&record, "device", esp_device_name(job->cli->device));
    record_text(&record, "compute", model_compute(&job->model.info));
    record_int(&record, "threads", esp_context_threads(job->cli->context));
    record_child(&kernels, "prefill", model_kernels_json(job->model.model, prefill_of(job)));
    record_child(&kernels, "decode", model_kernels_json(job->model.model, decode));
    record_child(&record, "kernels", kernels);
    record_int(&record, "resident_bytes", (int64_t)job->model.info.resident_bytes);
    device_bytes_json(loaded_memory(&job->model), &record);
    explain_memory_json(job->cli, &job->model.info, &record);
    explain_dense_json(job->cli, job->model.model, prefill_of(job), &record);
    esp_status status = ESP_OK;
    if (job->args->plan.explain) {
        cli_record list = record_list();
        status = explain_model_json(job->cli, job->model.model, prefill_of(job), &list, error);
        if (status == ESP_OK && prefill_of(job).tokens != 1) {
            status = explain_model_json(job->cli, job->model.model, decode, &list, error);
        }
        record_child(&record, "explain", list);
    }
    if (status != ESP_OK) {
        record_free(&record);
        return status;
    }
    return record_print(&record, error);
}

static esp_status run_opened(run_job *job, esp_error *error)
{
    cli_state *cli = job->cli;
    TRY(get_prompt(job, error));
    TRY(load_model(cli, cli->operands[0], true, &job->model, error));
    TRY(check_decoder(cli, &job->model, error));
    TRY(encode_prompt(job, error));
    job->out.stream = cli->common.json ? open_memstream(&job->text, &job->text_bytes) : stdout;
    if (job->out.stream == NULL) {
        return cli_fail_memory(error, "the generated text");
    }
    esp_status status = generate(job, error);
    bool closed = !cli->common.json || fclose(job->out.stream) == 0;
    TRY(status);
    if (!closed) {
        return cli_fail_memory(error, "the generated text");
    }
    if (interrupted()) {
        return cli_fail(error, ESP_CANCELLED, "cancelled", "generation was interrupted");
    }
    if (cli->common.json) {
        return print_json(job, error);
    }
    fputc('\n', stdout);
    fflush(stdout);
    if (!cli->common.quiet) {
        print_statistics(job);
    }
    return job->args->plan.explain ? explain_text(job, error) : (esp_status)ESP_OK;
}

static esp_status run_prompts(cli_state *cli, const run_args *args, esp_error *error)
{
    if (args->prompt != NULL || args->prompt_file != NULL) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.extra_option",
                        "--prompts excludes --prompt and --prompt-file; see 'espalier run --help'");
    }
    run_many_args many = {.file = args->prompts,
                          .max_tokens = args->max_tokens,
                          .sampling = {.temperature = (float)args->temperature,
                                       .top_p = (float)args->top_p,
                                       .seed = (uint64_t)args->seed},
                          .no_special = args->no_special};
    return run_many(cli, &many, error);
}

static esp_status run(cli_state *cli, esp_error *error)
{
    run_job job = {.cli = cli, .args = cli->args};
    cli->plan = &job.args->plan;
    if (run_texts_wanted(&job.args->texts)) {
        return run_texts(cli, &job.args->texts, error);
    }
    if (job.args->prompts != NULL) {
        return run_prompts(cli, job.args, error);
    }
    if (cli->operand_count > 1) {
        return run_images(cli, &job.args->images, error);
    }
    esp_status status = run_opened(&job, error);
    esp_session_free(job.session);
    if (job.ids != NULL) {
        esp_ids_free(job.model.tokenizer, job.ids);
    }
    loaded_model_free(&job.model);
    free(job.file_text);
    free(job.text);
    return status;
}

#define FIELD(member) offsetof(run_args, member)
static const cli_option options[] = {
    {.name = "prompt",
     .letter = 'p',
     .kind = OPTION_TEXT,
     .offset = FIELD(prompt),
     .argument = "TEXT",
     .help = "text to go on from; without it, standard input"},
    {.name = "prompt-file",
     .kind = OPTION_TEXT,
     .offset = FIELD(prompt_file),
     .argument = "FILE",
     .help = "text to go on from"},
    {.name = "prompts",
     .kind = OPTION_TEXT,
     .offset = FIELD(prompts),
     .argument = "FILE",
     .help = "a prompt a line; all of them run together"},
    {.name = "max-tokens",
     .letter = 'n',
     .kind = OPTION_INTEGER,
     .offset = FIELD(max_tokens),
     .argument = "N",
     .help = "most new tokens",
     .fallback = "128",
     .least = 0,
     .most = INT32_MAX},
    {.name = "temperature",
     .kind = OPTION_NUMBER,
     .offset = FIELD(temperature),
     .argument = "T",
     .help = "0: always the likeliest token",
     .fallback = "0",
     .least = 0,
     .most = 100},
    {.name = "top-p",
     .kind = OPTION_NUMBER,
     .offset = FIELD(top_p),
     .argument = "P",
     .help = "draw from the likeliest tokens of that probability together; 1: from all",
     .fallback = "1",
     .least = 0,
     .most = 1},
    {.name = "seed",
     .kind = OPTION_INTEGER,
     .offset = FIELD(seed),
     .argument = "S",
     .help = "the same seed gives the same text",
     .fallback = "0",
     .least = 0,
     .most = INT64_MAX},
    {.name = "no-special",
     .kind = OPTION_FLAG,
     .offset = FIELD(no_special),
     .help = "do not put BOS before the prompt"},
    RUN_TEXTS_OPTIONS(run_args),
    RUN_IMAGES_OPTIONS(run_args),
    MEMORY_OPTION(run_args),
    PLAN_OPTIONS(run_args),
    {.name = NULL}};

const cli_command run_command = {
    .name = "run",
    .summary = "continue a prompt, make vectors of texts, or say what is in images",
    .operands = "MODEL [IMAGE...]",
    .least_operands = 1,
    .most_operands = 1 + RUN_MOST_IMAGES,
    .options = options,
    .args_bytes = sizeof(run_args),
    .run = run,
    .notes =
        "The new text goes to stdout as it comes, always in whole characters; rates, kernels "
        "and the stop reason go to stderr. It stops at an EOS token of generation_config.json "
        "(eos), after --max-tokens (limit), or when the model's context is full (context): "
        "nothing is dropped from the front. A prompt longer than the context is an error.\n"
        "An encoder (BERT) makes a vector of each --text and each line of --text-file: numbers "
        "with spaces between, a text a line, pooled and normalised as the folder's "
        "modules.json says. Longer texts than the model takes are cut, which is said.\n"
        "With images (JPEG or PNG) a classifier prints the likeliest labels of each, and an image "
        "encoder (SAM) what its embedding is like; --out keeps the embeddings, "
        "[images][channels][rows][columns] in f32."};
