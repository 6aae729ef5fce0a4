/* Multiple choice by a decoder: questions as JSON lines. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sizes.h"
#include "texts.h"

#define MOST_CHOICES 1024
/* Of a context and a choice. */
static const esp_model_call typical = {.tokens = 64};

typedef struct choices_job {
    cli_state *cli;
    const char *file, *baseline_path;
    loaded_model model, baseline;
    text_lines lines;
    json_t **objects; /* of each question: its texts lie there */
    esp_text **endings;
    esp_question *questions;
    int64_t count;
    esp_choice_result result;
} choices_job;

/* ---- the file ---- */

static esp_status refuse(const choices_job *job, int64_t line, const char *what, esp_error *error)
{
    return cli_fail(error, ESP_BAD_FILE, "text.bad_question",
                    "%s:%lld: %s; expected {\"context\": \"...\", \"choices\": [\"...\", \"...\"], "
                    "\"answer\": 0}",
                    job->file, (long long)line + 1, what);
}

static bool text_of(const json_t *json, esp_text *text)
{
    if (!json_is_string(json)) {
        return false;
    }
    *text = (esp_text){json_string_value(json), json_string_length(json)};
    return true;
}

static esp_status read_choices(choices_job *job, int64_t line, const json_t *list,
                               esp_question *question, esp_error *error)
{
    size_t count = json_array_size(list);
    if (count < 2 || count > MOST_CHOICES) {
        return refuse(job, line, "\"choices\" is no list of 2 to 1024 texts", error);
    }
    esp_text *endings = calloc(count, sizeof *endings);
    if (endings == NULL) {
        return cli_fail_memory(error, "choices");
    }
    question->endings = job->endings[job->count - 1] = endings;
    question->count = (int)count;
    for (size_t i = 0; i < count; i++) {
        if (!text_of(json_array_get(list, i), &endings[i]) || endings[i].length == 0) {
            return refuse(job, line, "a choice is no text, or an empty one", error);
        }
    }
    return ESP_OK;
}

static esp_status read_question(choices_job *job, int64_t line, const esp_text *text,
                                esp_error *error)
{
    json_error_t why;
    json_t *object = json_loadb(text->data, text->length, JSON_REJECT_DUPLICATES, &why);
    if (!json_is_object(object)) {
        json_decref(object);
        return refuse(job, line, object == NULL ? why.text : "the line is no object", error);
    }
    esp_question *question = &job->questions[job->count];
    job->objects[job->count++] = object;
    const json_t *answer = json_object_get(object, "answer");
    if (!text_of(json_object_get(object, "context"), &question->context)) {
        return refuse(job, line, "\"context\" is no text", error);
    }
    TRY(read_choices(job, line, json_object_get(object, "choices"), question, error));
    json_int_t number = json_is_integer(answer) ? json_integer_value(answer) : -1;
    if (number < 0 || number >= question->count) {
        return refuse(job, line, "\"answer\" is no number of a choice, counted from 0", error);
    }
    question->answer = (int)number;
    return ESP_OK;
}

static bool is_blank(const esp_text *line)
{
    size_t i = 0;
    while (i < line->length && (line->data[i] == ' ' || line->data[i] == '\t')) {
        i++;
    }
    return i == line->length;
}

static esp_status read_questions(choices_job *job, esp_error *error)
{
    TRY(text_lines_load(job->file, &job->lines, error));
    size_t lines = (size_t)job->lines.count;
    job->objects = calloc(lines + 1, sizeof(json_t *));
    job->endings = calloc(lines + 1, sizeof(esp_text *));
    job->questions = calloc(lines + 1, sizeof *job->questions);
    if (job->objects == NULL || job->endings == NULL || job->questions == NULL) {
        return cli_fail_memory(error, "questions");
    }
    for (int64_t i = 0; i < job->lines.count; i++) {
        if (!is_blank(&job->lines.lines[i])) {
            TRY(read_question(job, i, &job->lines.lines[i], error));
        }
    }
    return ESP_OK;
}

static void free_questions(choices_job *job)
{
    for (int64_t i = 0; i < job->count; i++) {
        free(job->endings[i]);
        json_decref(job->objects[i]);
    }
    free(job->questions);
    free((void *)job->endings);
    free((void *)job->objects);
    text_lines_free(&job->lines);
}

/* ---- results ---- */

static void print_scores(const char *indent, const esp_choice_scores *scores)
{
    printf("%s%-*s %.4f\n", indent, 16 - (int)strlen(indent), "accuracy", scores->accuracy);
    printf("%s%-*s %.4f\n", indent, 16 - (int)strlen(indent), "by bytes",
           scores->accuracy_normalized);
}

static void print_text(const choices_job *job)
{
    const esp_choice_result *result = &job->result;
    char size[SIZE_TEXT_MAX], kernels[KERNELS_TEXT_MAX];
    printf("%-16s %s (%s in files)\n", "model", job->cli->operands[0],
           size_bytes((double)job->model.file_bytes, size));
    printf("%-16s %s: %lld questions, %lld choices; the likeliest is chosen, by ln p and by ln p a "
           "byte\n",
           "multiple choice", job->file, (long long)result->questions, (long long)result->endings);
    print_scores("", &result->scores);
    if (result->has_baseline) {
        printf("%-16s %s\n", "baseline", job->baseline_path);
        print_scores("  ", &result->baseline);
        printf("%-16s %.4f by bytes\n", "  same choice", result->agreement);
    }
    if (result->cut_questions > 0) {
        printf("%-16s %lld questions are longer than %lld tokens: their beginnings are left out\n",
               "cut", (long long)result->cut_questions, (long long)job->model.info.context);
    }
    printf("%-16s %s, compute %s, %d threads, %.2f s, %.1f questions/s\n", "run",
           esp_device_name(job->cli->device), model_compute(&job->model.info),
           esp_context_threads(job->cli->context), result->seconds,
           (double)result->questions / fmax(result->seconds, 1e-9));
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

static esp_status print_json(const choices_job *job, esp_error *error)
{
    const esp_choice_result *result = &job->result;
    const esp_choice_scores *dense = &result->baseline;
    bool has = result->has_baseline;
    cli_record record = record_begin("eval");
    record_text(&record, "model", job->cli->operands[0]);
    record_text(&record, "multiple_choice", job->file);
    record_int(&record, "file_bytes", (int64_t)job->model.file_bytes);
    record_int(&record, "questions", result->questions);
    record_int(&record, "choices", result->endings);
    record_int(&record, "cut_questions", result->cut_questions);
    record_real(&record, "accuracy", result->scores.accuracy);
    record_real(&record, "accuracy_normalized", result->scores.accuracy_normalized);
    record_text(&record, "baseline", job->baseline_path);
    record_real(&record, "baseline_accuracy", has ? dense->accuracy : (double)NAN);
    record_real(&record, "baseline_accuracy_normalized",
                has ? dense->accuracy_normalized : (double)NAN);
    record_real(&record, "agreement", has ? result->agreement : (double)NAN);
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

static esp_status evaluate(choices_job *job, esp_error *error)
{
    cli_state *cli = job->cli;
    TRY(read_questions(job, error));
    TRY(load_model(cli, cli->operands[0], true, &job->model, error));
    TRY(check_decoder(cli, &job->model, error));
    if (job->baseline_path != NULL) {
        TRY(load_model(cli, job->baseline_path, false, &job->baseline, error));
    }
    esp_choice_options options = {.progress = progress_step, .user = &cli->progress};
    TRY(esp_eval_choices(job->model.model, job->baseline.model, job->model.tokenizer,
                         job->questions, job->count, &options, &job->result, error));
    progress_end(&cli->progress);
    if (cli->common.json) {
        return print_json(job, error);
    }
    print_text(job);
    return cli->plan->explain ? explain_model(cli, job->model.model, typical, stdout, error)
                              : (esp_status)ESP_OK;
}

esp_status eval_choices(cli_state *cli, const char *file, const char *baseline, esp_error *error)
{
    choices_job job = {.cli = cli, .file = file, .baseline_path = baseline};
    cli->plan_tokens = typical.tokens;
    esp_status status = evaluate(&job, error);
    loaded_model_free(&job.baseline);
    loaded_model_free(&job.model);
    free_questions(&job);
    return status;
}
