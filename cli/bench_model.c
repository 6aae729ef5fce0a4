/* Times whole models: prefill (the prompt in batches) and decode (one token after the other), on
 * random tokens. Rounds go over all models in turn, so that a change of the machine's mood hits all
 * alike; the median of the rounds counts. */
#include <math.h>
#include <stdlib.h>

#include "bench.h"
#include "sizes.h"

#define BATCH 512

static esp_status choose_lengths(const bench_args *args, model_row *row, esp_error *error)
{
    int64_t context = row->loaded.info.context;
    row->prompt_tokens = args->prompt_tokens;
    row->new_tokens = args->new_tokens;
    if (row->prompt_tokens == 0) {
        row->prompt_tokens = context / 2 < 256 ? (context + 1) / 2 : 256;
    }
    if (row->new_tokens == 0) {
        row->new_tokens = context / 4 < 64 ? context / 4 : 64;
    }
    if (row->prompt_tokens + row->new_tokens > context) {
        return cli_fail(
            error, ESP_BAD_ARGUMENT, "bench.context_too_short",
            "%s: %lld prompt and %lld new tokens do not fit the model's context of %lld", row->path,
            (long long)row->prompt_tokens, (long long)row->new_tokens, (long long)context);
    }
    return ESP_OK;
}

static esp_status take_memory(const bench_args *args, model_row *row, esp_error *error)
{
    int64_t total = row->prompt_tokens + row->new_tokens;
    size_t rounds = (size_t)args->rounds;
    uint64_t seed = (uint64_t)args->seed;
    row->ids = calloc((size_t)total, sizeof *row->ids);
    row->logits = calloc((size_t)row->loaded.info.vocabulary, sizeof *row->logits);
    row->prefill_s = calloc(rounds, sizeof(double));
    row->decode_s = calloc(rounds, sizeof(double));
    if (row->ids == NULL || row->logits == NULL || row->prefill_s == NULL ||
        row->decode_s == NULL) {
        return cli_fail_memory(error, "a measurement");
    }
    for (int64_t i = 0; i < total; i++) {
        row->ids[i] = (int32_t)(bench_random(&seed) % (uint64_t)row->loaded.info.vocabulary);
    }
    int64_t batch = row->prompt_tokens < BATCH ? row->prompt_tokens : BATCH;
    return esp_session_create(row->loaded.model, total, batch, &row->session, error);
}

static esp_status feed_prompt(model_row *row, esp_error *error)
{
    for (int64_t at = 0; at < row->prompt_tokens; at += BATCH) {
        int64_t left = row->prompt_tokens - at, count = left < BATCH ? left : BATCH;
        TRY(esp_session_feed(row->session, row->ids + at, count, count == left ? row->logits : NULL,
                             false, error));
    }
    return ESP_OK;
}

static esp_status measure_once(model_row *row, int round, esp_error *error)
{
    esp_session_truncate(row->session, 0);
    double start = seconds_now();
    TRY(feed_prompt(row, error));
    double middle = seconds_now();
    for (int64_t i = 0; i < row->new_tokens; i++) {
        TRY(esp_session_feed(row->session, row->ids + row->prompt_tokens + i, 1, row->logits, false,
                             error));
    }
    if (round >= 0) {
        row->prefill_s[round] = middle - start;
        row->decode_s[round] = seconds_now() - middle;
    }
    return ESP_OK;
}

esp_status bench_row_open(cli_state *cli, model_row *row, bool with_tokenizer, esp_error *error)
{
    TRY(load_model(cli, row->path, with_tokenizer, &row->loaded, error));
    TRY(choose_lengths(cli->args, row, error));
    return take_memory(cli->args, row, error);
}

/* Tokens of the prefill's first product. */
static int64_t batch_of(const model_row *row)
{
    return row->prompt_tokens < BATCH ? row->prompt_tokens : BATCH;
}

static void remember_kernels(const cli_state *cli, model_row *row)
{
    model_kernels_text(row->loaded.model, row->prompt_tokens, row->prefill_kernels);
    model_kernels_text(row->loaded.model, 1, row->decode_kernels);
    record_free(&row->kernels);
    row->kernels = record_object();
    record_child(&row->kernels, "prefill",
                 model_kernels_json(row->loaded.model, row->prompt_tokens));
    record_child(&row->kernels, "decode", model_kernels_json(row->loaded.model, 1));
    row->prefill_layers = explain_count(cli, row->loaded.model, batch_of(row));
    row->decode_layers = explain_count(cli, row->loaded.model, 1);
}

/* While the model is there. */
static esp_status explain_row(const cli_state *cli, model_row *row, esp_error *error)
{
    const int64_t counts[] = {batch_of(row), 1};
    record_free(&row->explained);
    row->explained = record_list();
    for (int i = 0; i < (counts[0] == 1 ? 1 : 2); i++) {
        if (cli->common.json) {
            TRY(explain_model_json(cli, row->loaded.model, counts[i], &row->explained, error));
        } else {
            fprintf(stderr, "\n%s at %lld tokens\n", row->path, (long long)counts[i]);
            TRY(explain_model(cli, row->loaded.model, counts[i], stderr, error));
        }
    }
    return ESP_OK;
}

esp_status bench_rows_measure(cli_state *cli, model_row *rows, int count, esp_error *error)
{
    const bench_args *args = cli->args;
    int rounds = (int)args->rounds;
    for (int round = -1; round < rounds; round++) { /* one to warm up */
        for (int i = 0; i < count; i++) {
            if (!progress_step(&cli->progress, "measuring", (round + 1) * count + i,
                               (rounds + 1) * count, "runs")) {
                return cli_fail(error, ESP_CANCELLED, "cancelled",
                                "the measurement was interrupted");
            }
            TRY(measure_once(&rows[i], round, error));
        }
    }
    for (int i = 0; i < count; i++) {
        model_row *row = &rows[i];
        row->prefill_rate = (double)row->prompt_tokens / bench_median(row->prefill_s, rounds);
        row->decode_rate = (double)row->new_tokens / bench_median(row->decode_s, rounds);
        remember_kernels(cli, row);
        if (args->plan.explain) {
            progress_end(&cli->progress);
            TRY(explain_row(cli, row, error));
        }
    }
    return ESP_OK;
}

void bench_row_release(model_row *row)
{
    esp_model_info info = row->loaded.info;
    uint64_t file_bytes = row->loaded.file_bytes;
    esp_session_free(row->session);
    loaded_model_free(&row->loaded);
    row->session = NULL;
    row->loaded.info = info;
    row->loaded.file_bytes = file_bytes;
}

void bench_row_close(model_row *row)
{
    bench_row_release(row);
    record_free(&row->kernels);
    record_free(&row->explained);
    free(row->ids);
    free(row->logits);
    free(row->prefill_s);
    free(row->decode_s);
    row->ids = NULL;
    row->logits = NULL;
    row->prefill_s = row->decode_s = NULL;
}

cli_record bench_row_json(const cli_state *cli, model_row *row, const char *kind)
{
    const bench_args *args = cli->args;
    const esp_model_info *info = &row->loaded.info;
    cli_record record = record_begin("bench");
    record_text(&record, "kind", kind);
    record_text(&record, "model", row->path);
    record_int(&record, "file_bytes", (int64_t)row->loaded.file_bytes);
    record_int(&record, "resident_bytes", (int64_t)info->resident_bytes);
    record_int(&record, "linear_resident_bytes", (int64_t)info->linear_resident_bytes);
    record_int(&record, "parameters", info->parameters);
    record_int(&record, "linear_parameters", info->linear_parameters);
    record_int(&record, "prompt_tokens", row->prompt_tokens);
    record_int(&record, "new_tokens", row->new_tokens);
    record_int(&record, "rounds", args->rounds);
    record_real(&record, "prefill_tokens_per_s", row->prefill_rate);
    record_real(&record, "decode_tokens_per_s", row->decode_rate);
    record_child(&record, "kernels", row->kernels);
    row->kernels = (cli_record){0};
    explain_memory_json(cli, info, &record);
    cli_record run_dense = record_object();
    record_int(&run_dense, "prefill", row->prefill_layers.runs_dense);
    record_int(&run_dense, "decode", row->decode_layers.runs_dense);
    record_child(&record, "layers_run_dense", run_dense);
    if (args->plan.explain) {
        record_child(&record, "explain", row->explained);
        row->explained = (cli_record){0};
    }
    record_int(&record, "threads", esp_context_threads(cli->context));
    record_text(&record, "compute", esp_compute_name(info->compute));
    record_text(&record, "device", esp_device_name(cli->device));
    record_text(&record, "commit", cli_commit());
    return record;
}

static void print_row(const cli_state *cli, const model_row *row)
{
    const esp_model_info *info = &row->loaded.info;
    char size[SIZE_TEXT_MAX], a[SIZE_TEXT_MAX], b[SIZE_TEXT_MAX];
    printf("%-10s %s, %s resident\n", "model", row->path,
           size_bytes((double)info->resident_bytes, size));
    printf("%-10s %s, compute %s, %d threads, %lld rounds, median\n", "run",
           esp_device_name(cli->device), esp_compute_name(info->compute),
           esp_context_threads(cli->context), (long long)((const bench_args *)cli->args)->rounds);
    printf("%-10s %s tokens/s (%lld tokens): %s\n", "prefill", size_number(row->prefill_rate, a),
           (long long)row->prompt_tokens, row->prefill_kernels);
    printf("%-10s %s tokens/s (%lld tokens): %s\n", "decode", size_number(row->decode_rate, b),
           (long long)row->new_tokens, row->decode_kernels);
    if (info->sparse_layers > 0) {
        char memory[WHY_TEXT_MAX];
        printf("%-10s %s\n", "memory", explain_memory(cli, info, memory));
    }
    bench_row_notes(cli, row, "");
}

void bench_row_notes(const cli_state *cli, const model_row *row, const char *prefix)
{
    explain_counts(cli, &row->prefill_layers, prefix, "prefill", batch_of(row), stdout);
    explain_counts(cli, &row->decode_layers, prefix, "decode", 1, stdout);
}

esp_status bench_model(cli_state *cli, const char *path, esp_error *error)
{
    model_row row = {.path = path};
    esp_status status = bench_row_open(cli, &row, false, error);
    if (status == ESP_OK) {
        status = bench_rows_measure(cli, &row, 1, error);
        progress_end(&cli->progress);
    }
    if (status == ESP_OK && cli->common.json) {
        cli_record record = bench_row_json(cli, &row, "model");
        status = record_print(&record, error);
    } else if (status == ESP_OK) {
        print_row(cli, &row);
    }
    bench_row_close(&row);
    return status;
}
