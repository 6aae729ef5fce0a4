/* Vectors of texts: one line each, or one JSON object. */
#include <stdlib.h>
#include <string.h>

#include "sizes.h"
#include "texts.h"

#define TYPICAL_TOKENS 128 /* of a batch: for which kernels and forms are chosen */

typedef struct texts_job {
    cli_state *cli;
    loaded_model model;
    text_lines file;
    esp_text *texts;
    int64_t count;
    float *vectors; /* [count][embedding_size] */
    esp_embed_result result;
} texts_job;

static const char *const poolings[] = {
    [ESP_POOLING_MEAN] = "mean", [ESP_POOLING_CLS] = "cls", [ESP_POOLING_MAX] = "max"};

bool run_texts_wanted(const run_texts_args *args)
{
    return args->texts.count > 0 || args->file != NULL;
}

static esp_status gather(texts_job *job, const run_texts_args *args, esp_error *error)
{
    if (args->file != NULL) {
        TRY(text_lines_load(args->file, &job->file, error));
    }
    size_t count = (size_t)args->texts.count + (size_t)job->file.count;
    job->texts = calloc(count + 1, sizeof *job->texts);
    if (job->texts == NULL) {
        return cli_fail_memory(error, "texts");
    }
    for (int i = 0; i < args->texts.count; i++) {
        const char *text = args->texts.items[i];
        job->texts[job->count++] = (esp_text){text, strlen(text)};
    }
    for (int64_t i = 0; i < job->file.count; i++) {
        job->texts[job->count++] = job->file.lines[i];
    }
    if (job->count == 0) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "run.no_text", "%s: holds no line of text",
                        args->file);
    }
    return ESP_OK;
}

static esp_status embed(texts_job *job, esp_error *error)
{
    const esp_model_info *info = &job->model.info;
    esp_embedder *embedder = NULL;
    job->vectors = calloc((size_t)job->count, (size_t)info->embedding_size * sizeof(float));
    if (job->vectors == NULL) {
        return cli_fail_memory(error, "the vectors");
    }
    TRY(esp_embedder_create(job->model.model, 0, &embedder, error));
    esp_status status =
        esp_embed_texts(embedder, job->model.tokenizer, job->texts, job->count, progress_step,
                        &job->cli->progress, job->vectors, &job->result, error);
    progress_end(&job->cli->progress);
    esp_embedder_free(embedder);
    return status;
}

static esp_model_call mean_call(const texts_job *job)
{
    int64_t batch = job->result.tokens < 2048 ? job->result.tokens : 2048;
    return (esp_model_call){.tokens = batch > 0 ? batch : 1};
}

static void print_statistics(const texts_job *job)
{
    const esp_model_info *info = &job->model.info;
    char kernels[KERNELS_TEXT_MAX], rate[SIZE_TEXT_MAX], memory[WHY_TEXT_MAX];
    double seconds = job->result.seconds;
    fprintf(stderr, "espalier: %lld texts, %lld tokens, %s tokens/s; pooling %s%s; ",
            (long long)job->count, (long long)job->result.tokens,
            size_number(seconds > 0 ? (double)job->result.tokens / seconds : 0, rate),
            poolings[info->pooling], info->normalizes ? ", normalised" : "");
    fprintf(stderr, "%s, compute %s, %d threads\n", esp_device_name(job->cli->device),
            model_compute(info), esp_context_threads(job->cli->context));
    if (job->result.cut_texts > 0) {
        fprintf(stderr,
                "espalier: %lld texts are longer than %lld tokens: their ends are left out\n",
                (long long)job->result.cut_texts, (long long)info->context);
    }
    fprintf(stderr, "espalier: kernels: %s\n",
            model_kernels_text(job->model.model, mean_call(job), kernels));
    if (info->sparse_layers > 0) {
        fprintf(stderr, "espalier: memory %s; %s resident\n",
                explain_memory(job->cli, info, memory),
                size_bytes((double)info->resident_bytes, rate));
    }
    device_bytes_note(job->cli, &job->model);
    explain_note(job->cli, job->model.model, "espalier: ", "batch", mean_call(job), stderr);
}

static void print_text(const texts_job *job)
{
    int64_t size = job->model.info.embedding_size;
    for (int64_t i = 0; i < job->count; i++) {
        for (int64_t k = 0; k < size; k++) {
            printf("%s%.9g", k > 0 ? " " : "", (double)job->vectors[i * size + k]);
        }
        putchar('\n');
    }
}

static cli_record vector_json(const texts_job *job, int64_t number)
{
    int64_t size = job->model.info.embedding_size;
    cli_record record = record_object();
    json_t *list = json_array();
    for (int64_t k = 0; k < size; k++) {
        record.failed |=
            json_array_append_new(list, json_real((double)job->vectors[number * size + k])) != 0;
    }
    const esp_text *text = &job->texts[number];
    json_t *shown = json_stringn(text->data, text->length); /* NULL for what is no UTF-8 */
    record.failed |=
        json_object_set_new(record.json, "text", shown != NULL ? shown : json_null()) != 0;
    record.failed |= json_object_set_new(record.json, "embedding", list) != 0;
    return record;
}

static esp_status print_json(const texts_job *job, esp_error *error)
{
    const esp_model_info *info = &job->model.info;
    cli_record record = record_begin("run"), list = record_list();
    record_text(&record, "model", job->cli->operands[0]);
    record_int(&record, "embedding_size", info->embedding_size);
    record_text(&record, "pooling", poolings[info->pooling]);
    record_bool(&record, "normalized", info->normalizes);
    record_int(&record, "tokens", job->result.tokens);
    record_int(&record, "cut_texts", job->result.cut_texts);
    record_real(&record, "seconds", job->result.seconds);
    record_text(&record, "device", esp_device_name(job->cli->device));
    record_text(&record, "compute", model_compute(info));
    record_int(&record, "threads", esp_context_threads(job->cli->context));
    record_child(&record, "kernels", model_kernels_json(job->model.model, mean_call(job)));
    record_int(&record, "resident_bytes", (int64_t)info->resident_bytes);
    device_bytes_json(loaded_memory(&job->model), &record);
    explain_memory_json(job->cli, info, &record);
    for (int64_t i = 0; i < job->count; i++) {
        record_add(&list, vector_json(job, i));
    }
    record_child(&record, "texts", list);
    return explain_and_print(job->cli, job->model.model, mean_call(job), &record, error);
}

static esp_status run_opened(texts_job *job, const run_texts_args *args, esp_error *error)
{
    cli_state *cli = job->cli;
    cli->plan_tokens = TYPICAL_TOKENS;
    TRY(gather(job, args, error));
    TRY(load_model(cli, cli->operands[0], true, &job->model, error));
    TRY(check_encoder(cli, &job->model, error));
    TRY(embed(job, error));
    if (cli->common.json) {
        return print_json(job, error);
    }
    print_text(job);
    fflush(stdout);
    if (!cli->common.quiet) {
        print_statistics(job);
    }
    return cli->plan->explain ? explain_model(cli, job->model.model, mean_call(job), stderr, error)
                              : (esp_status)ESP_OK;
}

esp_status run_texts(cli_state *cli, const run_texts_args *args, esp_error *error)
{
    texts_job job = {.cli = cli};
    esp_status status = run_opened(&job, args, error);
    loaded_model_free(&job.model);
    text_lines_free(&job.file);
    free(job.texts);
    free(job.vectors);
    return status;
}
