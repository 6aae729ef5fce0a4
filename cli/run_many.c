/* Several prompts at once: all sequences take their steps together; texts are printed at the end,
 * in the order of the prompts. */
#include "many.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sizes.h"
#include "texts.h"

#define BATCH 512 /* most tokens of a product */

/* One prompt and what comes of it. */
typedef struct sequence {
    int32_t *ids;
    int64_t count;
    esp_session *session;
    esp_generation result;
    char *text;
    size_t bytes;
    FILE *stream; /* writes text */
    utf8_stream out;
    int32_t place;
} sequence;

typedef struct many_job {
    cli_state *cli;
    const run_many_args *args;
    loaded_model model;
    text_lines prompts;
    sequence *sequences;
    esp_prompt *list;
    esp_generation *results;
} many_job;

static const char *const stops[] = {[ESP_STOP_LIMIT] = "limit",
                                    [ESP_STOP_EOS] = "eos",
                                    [ESP_STOP_CONTEXT] = "context",
                                    [ESP_STOP_CALLBACK] = "interrupted"};

static bool on_token(void *user, int64_t index, int32_t id)
{
    many_job *job = user;
    sequence *of = &job->sequences[index];
    size_t length = 0;
    const char *bytes = esp_tokenizer_next(job->model.tokenizer, id, false, &of->place, &length);
    if (bytes != NULL) {
        utf8_push(&of->out, bytes, length);
    }
    return !interrupted();
}

static esp_status open_sequence(many_job *job, int64_t index, esp_error *error)
{
    sequence *of = &job->sequences[index];
    const esp_text *prompt = &job->prompts.lines[index];
    int64_t context = job->model.info.context, most = job->args->max_tokens;
    TRY(esp_tokenizer_encode(job->model.tokenizer, prompt->data, prompt->length,
                             !job->args->no_special, &of->ids, &of->count, error));
    if (of->count == 0 || of->count > context) {
        return cli_fail(
            error, ESP_BAD_ARGUMENT, of->count == 0 ? "run.empty_prompt" : "run.prompt_too_long",
            "%s:%lld: the prompt has %lld tokens; the model takes 1 to %lld", job->args->file,
            (long long)index + 1, (long long)of->count, (long long)context);
    }
    for (int64_t i = 0; i < of->count; i++) {
        size_t length;
        (void)esp_tokenizer_next(job->model.tokenizer, of->ids[i], false, &of->place, &length);
    }
    int64_t room = context - of->count;
    /* Scratch for the prompt, and for a step of all. */
    int64_t batch = of->count > job->prompts.count ? of->count : job->prompts.count;
    TRY(esp_session_create(job->model.model, of->count + (most < room ? most : room),
                           batch < BATCH ? batch : BATCH, &of->session, error));
    of->stream = open_memstream(&of->text, &of->bytes);
    of->out.stream = of->stream;
    job->list[index] = (esp_prompt){of->session, of->ids, of->count};
    return of->stream != NULL ? ESP_OK : cli_fail_memory(error, "the generated text");
}

static esp_status open_all(many_job *job, esp_error *error)
{
    size_t count = (size_t)job->prompts.count + 1;
    job->sequences = calloc(count, sizeof *job->sequences);
    job->list = calloc(count, sizeof *job->list);
    job->results = calloc(count, sizeof *job->results);
    if (job->sequences == NULL || job->list == NULL || job->results == NULL) {
        return cli_fail_memory(error, "prompts");
    }
    for (int64_t i = 0; i < job->prompts.count; i++) {
        TRY(open_sequence(job, i, error));
    }
    return ESP_OK;
}

static esp_status close_texts(many_job *job, esp_error *error)
{
    for (int64_t i = 0; i < job->prompts.count; i++) {
        sequence *of = &job->sequences[i];
        utf8_end(&of->out);
        bool closed = fclose(of->stream) == 0;
        of->stream = NULL;
        if (!closed) {
            return cli_fail_memory(error, "the generated text");
        }
    }
    return ESP_OK;
}

static int64_t new_tokens(const many_job *job)
{
    int64_t sum = 0;
    for (int64_t i = 0; i < job->prompts.count; i++) {
        sum += job->results[i].new_tokens;
    }
    return sum;
}

static int64_t prompt_tokens(const many_job *job)
{
    int64_t sum = 0;
    for (int64_t i = 0; i < job->prompts.count; i++) {
        sum += job->results[i].prompt_tokens;
    }
    return sum;
}

static double rate(int64_t tokens, double seconds)
{
    return seconds > 0 && tokens > 0 ? (double)tokens / seconds : (double)NAN;
}

static void print_text(const many_job *job)
{
    for (int64_t i = 0; i < job->prompts.count; i++) {
        printf("-- %lld (%s)\n%s\n", (long long)i + 1, stops[job->results[i].stop],
               job->sequences[i].text);
    }
    fflush(stdout);
}

static esp_model_call step_of(const many_job *job)
{
    return (esp_model_call){.tokens = job->prompts.count};
}

static void print_statistics(const many_job *job)
{
    const esp_generation *first = &job->results[0];
    char kernels[KERNELS_TEXT_MAX], a[SIZE_TEXT_MAX], b[SIZE_TEXT_MAX];
    fprintf(stderr,
            "espalier: %lld prompts, %lld tokens, %s tokens/s; new %lld tokens, %s tokens/s "
            "together; %s, compute %s, %d threads\n",
            (long long)job->prompts.count, (long long)prompt_tokens(job),
            size_number(rate(prompt_tokens(job), first->prefill_seconds), a),
            (long long)new_tokens(job),
            size_number(rate(new_tokens(job) - job->prompts.count, first->decode_seconds), b),
            esp_device_name(job->cli->device), model_compute(&job->model.info),
            esp_context_threads(job->cli->context));
    fprintf(stderr, "espalier: decode kernels: %s\n",
            model_kernels_text(job->model.model, step_of(job), kernels));
    device_bytes_note(job->cli, &job->model);
    explain_note(job->cli, job->model.model, "espalier: ", "decode", step_of(job), stderr);
}

static cli_record sequence_json(const many_job *job, int64_t index)
{
    cli_record record = record_object();
    record_text(&record, "text", job->sequences[index].text);
    record_int(&record, "prompt_tokens", job->results[index].prompt_tokens);
    record_int(&record, "new_tokens", job->results[index].new_tokens);
    record_text(&record, "stop", stops[job->results[index].stop]);
    return record;
}

static esp_status print_json(const many_job *job, esp_error *error)
{
    const esp_generation *first = &job->results[0];
    cli_record record = record_begin("run"), list = record_list();
    record_text(&record, "model", job->cli->operands[0]);
    record_int(&record, "prompt_tokens", prompt_tokens(job));
    record_int(&record, "new_tokens", new_tokens(job));
    record_real(&record, "prefill_seconds", first->prefill_seconds);
    record_real(&record, "decode_seconds", first->decode_seconds);
    record_real(&record, "prefill_tokens_per_s", rate(prompt_tokens(job), first->prefill_seconds));
    record_real(&record, "decode_tokens_per_s",
                rate(new_tokens(job) - job->prompts.count, first->decode_seconds));
    record_text(&record, "device", esp_device_name(job->cli->device));
    record_text(&record, "compute", model_compute(&job->model.info));
    record_int(&record, "threads", esp_context_threads(job->cli->context));
    record_child(&record, "kernels", model_kernels_json(job->model.model, step_of(job)));
    record_int(&record, "resident_bytes", (int64_t)job->model.info.resident_bytes);
    device_bytes_json(loaded_memory(&job->model), &record);
    explain_memory_json(job->cli, &job->model.info, &record);
    for (int64_t i = 0; i < job->prompts.count; i++) {
        record_add(&list, sequence_json(job, i));
    }
    record_child(&record, "texts", list);
    return explain_and_print(job->cli, job->model.model, step_of(job), &record, error);
}

static esp_status run_opened(many_job *job, esp_error *error)
{
    cli_state *cli = job->cli;
    TRY(text_lines_load(job->args->file, &job->prompts, error));
    if (job->prompts.count == 0) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "run.no_text", "%s: holds no line of text",
                        job->args->file);
    }
    cli->plan_tokens = job->prompts.count;
    TRY(load_model(cli, cli->operands[0], true, &job->model, error));
    TRY(check_decoder(cli, &job->model, error));
    TRY(open_all(job, error));
    TRY(esp_generate_many(job->list, job->prompts.count, job->args->max_tokens,
                          &job->args->sampling, on_token, job, job->results, error));
    TRY(close_texts(job, error));
    if (interrupted()) {
        return cli_fail(error, ESP_CANCELLED, "cancelled", "generation was interrupted");
    }
    if (cli->common.json) {
        return print_json(job, error);
    }
    print_text(job);
    if (!cli->common.quiet) {
        print_statistics(job);
    }
    return cli->plan->explain ? explain_model(cli, job->model.model, step_of(job), stderr, error)
                              : (esp_status)ESP_OK;
}

static void close_sequences(many_job *job)
{
    for (int64_t i = 0; job->sequences != NULL && i < job->prompts.count; i++) {
        sequence *of = &job->sequences[i];
        esp_session_free(of->session);
        if (of->ids != NULL) {
            esp_ids_free(job->model.tokenizer, of->ids);
        }
        if (of->stream != NULL) {
            fclose(of->stream);
        }
        free(of->text);
    }
    free(job->sequences);
}

esp_status run_many(cli_state *cli, const run_many_args *args, esp_error *error)
{
    many_job job = {.cli = cli, .args = args};
    esp_status status = run_opened(&job, error);
    close_sequences(&job);
    loaded_model_free(&job.model);
    text_lines_free(&job.prompts);
    free(job.list);
    free(job.results);
    return status;
}
