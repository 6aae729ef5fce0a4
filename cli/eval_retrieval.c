/* Retrieval by an encoder: recall and reciprocal rank over pairs of query and document. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sizes.h"
#include "texts.h"

/* Of a batch. */
static const esp_model_call typical = {.tokens = 2048};

typedef struct retrieval_job {
    cli_state *cli;
    const char *file, *baseline_path;
    loaded_model model, baseline;
    text_lines lines;
    esp_text *documents; /* queries take the place of the lines */
    esp_retrieval_result result;
} retrieval_job;

static esp_status split_pairs(retrieval_job *job, esp_error *error)
{
    TRY(text_lines_load(job->file, &job->lines, error));
    job->documents = calloc((size_t)job->lines.count + 1, sizeof *job->documents);
    if (job->documents == NULL) {
        return cli_fail_memory(error, "pairs of texts");
    }
    for (int64_t i = 0; i < job->lines.count; i++) {
        esp_text *line = &job->lines.lines[i];
        const char *tab = line->length > 0 ? memchr(line->data, '\t', line->length) : NULL;
        if (tab == NULL) {
            return cli_fail(error, ESP_BAD_FILE, "text.no_pair",
                            "%s:%lld: a query, a tab and a document were expected", job->file,
                            (long long)i + 1);
        }
        size_t query = (size_t)(tab - line->data);
        job->documents[i] = (esp_text){tab + 1, line->length - query - 1};
        line->length = query;
    }
    return ESP_OK;
}

static void print_text(const retrieval_job *job)
{
    const esp_retrieval_result *result = &job->result;
    const esp_retrieval_scores *scores = &result->scores, *dense = &result->baseline;
    char size[SIZE_TEXT_MAX], kernels[KERNELS_TEXT_MAX];
    printf("%-16s %s (%s in files)\n", "model", job->cli->operands[0],
           size_bytes((double)job->model.file_bytes, size));
    printf("%-16s %s: %lld pairs; each query looks for its document among all\n", "retrieval",
           job->file, (long long)result->pairs);
    printf("%-16s %.4f\n%-16s %.4f\n%-16s %.4f\n", "recall@1", scores->recall_1, "recall@10",
           scores->recall_10, "MRR", scores->reciprocal_rank);
    if (result->has_baseline) {
        printf("%-16s %s\n", "baseline", job->baseline_path);
        printf("%-16s %.4f\n%-16s %.4f\n%-16s %.4f\n", "  recall@1", dense->recall_1, "  recall@10",
               dense->recall_10, "  MRR", dense->reciprocal_rank);
        printf("%-16s %.4f between the same text's vectors\n", "  mean cosine",
               result->mean_cosine);
    }
    if (result->cut_texts > 0) {
        printf("%-16s %lld texts are longer than %lld tokens: their ends are left out\n", "cut",
               (long long)result->cut_texts, (long long)job->model.info.context);
    }
    printf("%-16s %s, compute %s, %d threads, %lld tokens, %.2f s, %.0f tokens/s\n", "run",
           esp_device_name(job->cli->device), model_compute(&job->model.info),
           esp_context_threads(job->cli->context), (long long)result->tokens, result->seconds,
           (double)result->tokens / fmax(result->seconds, 1e-9));
    printf("%-16s %s\n", "kernels", model_kernels_text(job->model.model, typical, kernels));
    if (job->model.info.sparse_layers > 0) {
        char memory[WHY_TEXT_MAX];
        printf("%-16s %s; %s resident\n", "memory",
               explain_memory(job->cli, &job->model.info, memory),
               size_bytes((double)job->model.info.resident_bytes, size));
    }
    device_bytes_note(job->cli, &job->model);
    explain_note(job->cli, job->model.model, "", "note", typical, stdout);
}

static void scores_json(cli_record *record, const char *prefix, const esp_retrieval_scores *scores,
                        bool there)
{
    const struct {
        const char *name;
        double value;
    } rows[] = {{"recall_1", scores->recall_1},
                {"recall_10", scores->recall_10},
                {"mrr", scores->reciprocal_rank}};
    for (int i = 0; i < COUNT(rows); i++) {
        char key[40];
        snprintf(key, sizeof key, "%s%s", prefix, rows[i].name);
        record_real(record, key, there ? rows[i].value : (double)NAN);
    }
}

static esp_status print_json(const retrieval_job *job, esp_error *error)
{
    const esp_retrieval_result *result = &job->result;
    cli_record record = record_begin("eval");
    record_text(&record, "model", job->cli->operands[0]);
    record_text(&record, "retrieval", job->file);
    record_int(&record, "file_bytes", (int64_t)job->model.file_bytes);
    record_int(&record, "pairs", result->pairs);
    record_int(&record, "tokens", result->tokens);
    record_int(&record, "cut_texts", result->cut_texts);
    scores_json(&record, "", &result->scores, true);
    record_text(&record, "baseline", job->baseline_path);
    scores_json(&record, "baseline_", &result->baseline, result->has_baseline);
    record_real(&record, "mean_cosine", result->has_baseline ? result->mean_cosine : (double)NAN);
    record_real(&record, "seconds", result->seconds);
    record_text(&record, "device", esp_device_name(job->cli->device));
    record_text(&record, "compute", model_compute(&job->model.info));
    record_int(&record, "threads", esp_context_threads(job->cli->context));
    record_child(&record, "kernels", model_kernels_json(job->model.model, typical));
    record_int(&record, "resident_bytes", (int64_t)job->model.info.resident_bytes);
    device_bytes_json(loaded_memory(&job->model), &record);
    explain_memory_json(job->cli, &job->model.info, &record);
    return explain_and_print(job->cli, job->model.model, typical, &record, error);
}

static esp_status evaluate(retrieval_job *job, esp_error *error)
{
    cli_state *cli = job->cli;
    TRY(split_pairs(job, error));
    TRY(load_model(cli, cli->operands[0], true, &job->model, error));
    TRY(check_encoder(cli, &job->model, error));
    if (job->baseline_path != NULL) {
        TRY(load_model(cli, job->baseline_path, false, &job->baseline, error));
    }
    esp_retrieval_options options = {.progress = progress_step, .user = &cli->progress};
    TRY(esp_eval_retrieval(job->model.model, job->baseline.model, job->model.tokenizer,
                           job->lines.lines, job->documents, job->lines.count, &options,
                           &job->result, error));
    progress_end(&cli->progress);
    if (cli->common.json) {
        return print_json(job, error);
    }
    print_text(job);
    return cli->plan->explain ? explain_model(cli, job->model.model, typical, stdout, error)
                              : (esp_status)ESP_OK;
}

esp_status eval_retrieval(cli_state *cli, const char *file, const char *baseline, esp_error *error)
{
    retrieval_job job = {.cli = cli, .file = file, .baseline_path = baseline};
    cli->plan_tokens = typical.tokens;
    esp_status status = evaluate(&job, error);
    loaded_model_free(&job.baseline);
    loaded_model_free(&job.model);
    text_lines_free(&job.lines);
    free(job.documents);
    return status;
}
