/* Times whole models on random tokens: prefill (the prompt in batches) and decode (one token after
 * the other); of encoders and models of images many at a time and one alone. Rounds go over all
 * models in turn, so that a change of the machine's mood hits all alike; the median of the rounds
 * counts. */
#include <math.h>
#include <stdlib.h>

#include "bench.h"
#include "sizes.h"

#define BATCH 512
#define ENCODER_BATCH 2048 /* as embedders have it */

/* Of texts or images: many at a time, or one alone. */
static bool is_encoder(const model_row *row)
{
    return row->loaded.info.kind != ESP_MODEL_DECODER;
}

static bool takes_images(const model_row *row)
{
    return row->loaded.info.image_size > 0;
}

const char *bench_phase(const model_row *row, int phase)
{
    static const char *const names[2][2] = {{"prefill", "decode"}, {"batch", "single"}};
    return names[is_encoder(row)][phase];
}

int64_t bench_phase_tokens(const model_row *row, int phase)
{
    if (is_encoder(row)) {
        return phase == 0 ? row->texts * row->prompt_tokens : row->new_tokens;
    }
    return phase == 1 ? 1 : row->prompt_tokens < BATCH ? row->prompt_tokens : BATCH;
}

static esp_status choose_texts(const bench_args *args, model_row *row, esp_error *error)
{
    int64_t context = row->loaded.info.context;
    if (takes_images(row)) { /* of the size that the model was trained at */
        row->prompt_tokens = row->new_tokens = context;
        row->texts = context < ENCODER_BATCH ? ENCODER_BATCH / context : 1;
        return ESP_OK;
    }
    row->prompt_tokens = args->prompt_tokens > 0 ? args->prompt_tokens
                         : context < 128         ? context
                                                 : 128;
    row->new_tokens = args->new_tokens > 0 ? args->new_tokens : context < 16 ? context : 16;
    if (row->prompt_tokens > context || row->new_tokens > context) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "bench.context_too_short",
                        "%s: texts of %lld and %lld tokens do not fit the model's %lld", row->path,
                        (long long)row->prompt_tokens, (long long)row->new_tokens,
                        (long long)context);
    }
    row->texts = row->prompt_tokens < ENCODER_BATCH ? ENCODER_BATCH / row->prompt_tokens : 1;
    return ESP_OK;
}

static esp_status choose_lengths(const bench_args *args, model_row *row, esp_error *error)
{
    int64_t context = row->loaded.info.context;
    if (is_encoder(row)) {
        return choose_texts(args, row, error);
    }
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

static esp_status open_runner(model_row *row, int64_t total, esp_error *error)
{
    if (takes_images(row)) {
        return esp_vision_create(row->loaded.model, 0, 0, row->texts, &row->vision, error);
    }
    if (is_encoder(row)) {
        for (int64_t i = 0; i < row->texts; i++) {
            row->lengths[i] = row->prompt_tokens;
        }
        return esp_embedder_create(row->loaded.model, 0, &row->embedder, error);
    }
    int64_t batch = row->prompt_tokens < BATCH ? row->prompt_tokens : BATCH;
    return esp_session_create(row->loaded.model, total, batch, &row->session, error);
}

/* Numbers that one text or image gives. */
static int64_t output_size(const model_row *row)
{
    int64_t shape[3], size = 1;
    if (!takes_images(row)) {
        return row->loaded.info.embedding_size;
    }
    int rank = esp_vision_output_shape(row->loaded.model, shape);
    for (int i = 0; i < rank; i++) {
        size *= shape[i];
    }
    return size;
}

/* Random ids, or pixels. */
static esp_status draw_input(model_row *row, int64_t total, uint64_t seed, esp_error *error)
{
    const esp_model_info *info = &row->loaded.info;
    int64_t values = takes_images(row) ? row->texts * 3 * info->image_size * info->image_size : 0;
    row->ids = calloc((size_t)total, sizeof *row->ids);
    row->pixels = calloc((size_t)values + 1, sizeof *row->pixels);
    if (row->ids == NULL || row->pixels == NULL) {
        return cli_fail_memory(error, "a measurement");
    }
    for (int64_t i = 0; i < values; i++) {
        row->pixels[i] = (float)(bench_random(&seed) >> 40) * 0x1p-23f - 1;
    }
    for (int64_t i = 0; i < total && values == 0; i++) {
        row->ids[i] = (int32_t)(bench_random(&seed) % (uint64_t)info->vocabulary);
    }
    return ESP_OK;
}

static esp_status take_memory(const bench_args *args, model_row *row, esp_error *error)
{
    const esp_model_info *info = &row->loaded.info;
    bool encoder = is_encoder(row);
    int64_t total = encoder ? row->texts * row->prompt_tokens + row->new_tokens
                            : row->prompt_tokens + row->new_tokens;
    int64_t outputs = encoder ? row->texts * output_size(row) : info->vocabulary;
    size_t rounds = (size_t)args->rounds;
    row->outputs = calloc((size_t)outputs, sizeof *row->outputs);
    row->lengths = calloc((size_t)row->texts + 1, sizeof *row->lengths);
    row->prefill_s = calloc(rounds, sizeof(double));
    row->decode_s = calloc(rounds, sizeof(double));
    if (row->outputs == NULL || row->lengths == NULL || row->prefill_s == NULL ||
        row->decode_s == NULL) {
        return cli_fail_memory(error, "a measurement");
    }
    TRY(draw_input(row, total, (uint64_t)args->seed, error));
    return open_runner(row, total, error);
}

static esp_status feed_prompt(model_row *row, esp_error *error)
{
    for (int64_t at = 0; at < row->prompt_tokens; at += BATCH) {
        int64_t left = row->prompt_tokens - at, count = left < BATCH ? left : BATCH;
        TRY(esp_session_feed(row->session, row->ids + at, count,
                             count == left ? row->outputs : NULL, false, error));
    }
    return ESP_OK;
}

static esp_status decode(model_row *row, esp_error *error)
{
    for (int64_t i = 0; i < row->new_tokens; i++) {
        TRY(esp_session_feed(row->session, row->ids + row->prompt_tokens + i, 1, row->outputs,
                             false, error));
    }
    return ESP_OK;
}

static esp_status run_phase(model_row *row, int phase, esp_error *error)
{
    if (takes_images(row)) {
        return esp_vision_run(row->vision, row->pixels, phase == 0 ? row->texts : 1, row->outputs,
                              error);
    }
    if (!is_encoder(row)) {
        return phase == 0 ? feed_prompt(row, error) : decode(row, error);
    }
    return phase == 0
               ? esp_embed_ids(row->embedder, row->ids, row->lengths, row->texts, row->outputs,
                               error)
               : esp_embed_ids(row->embedder, row->ids, &row->new_tokens, 1, row->outputs, error);
}

static esp_status measure_once(model_row *row, int round, esp_error *error)
{
    if (row->session != NULL) {
        esp_session_truncate(row->session, 0);
    }
    double start = seconds_now();
    TRY(run_phase(row, 0, error));
    double middle = seconds_now();
    TRY(run_phase(row, 1, error));
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

static esp_model_call phase_call(const model_row *row, int phase)
{
    return (esp_model_call){.tokens = bench_phase_tokens(row, phase),
                            .last_only = phase == 0 && !is_encoder(row)};
}

static void remember_kernels(const cli_state *cli, model_row *row)
{
    const esp_model *model = row->loaded.model;
    const esp_model_call first = phase_call(row, 0), second = phase_call(row, 1);
    model_kernels_text(model, first, row->prefill_kernels);
    model_kernels_text(model, second, row->decode_kernels);
    record_free(&row->kernels);
    row->kernels = record_object();
    record_child(&row->kernels, bench_phase(row, 0), model_kernels_json(model, first));
    record_child(&row->kernels, bench_phase(row, 1), model_kernels_json(model, second));
    row->prefill_layers = explain_count(cli, model, first);
    row->decode_layers = explain_count(cli, model, second);
    row->memory = loaded_memory(&row->loaded);
}

/* While the model is there. */
static esp_status explain_row(const cli_state *cli, model_row *row, esp_error *error)
{
    const esp_model_call calls[] = {phase_call(row, 0), phase_call(row, 1)};
    record_free(&row->explained);
    row->explained = record_list();
    for (int i = 0; i < (calls[0].tokens == calls[1].tokens ? 1 : 2); i++) {
        if (cli->common.json) {
            TRY(explain_model_json(cli, row->loaded.model, calls[i], &row->explained, error));
        } else {
            fprintf(stderr, "\n%s at %lld tokens\n", row->path, (long long)calls[i].tokens);
            TRY(explain_model(cli, row->loaded.model, calls[i], stderr, error));
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
        int64_t tokens = is_encoder(row) ? bench_phase_tokens(row, 0) : row->prompt_tokens;
        row->prefill_rate = (double)tokens / bench_median(row->prefill_s, rounds);
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
    esp_embedder_free(row->embedder);
    esp_vision_free(row->vision);
    loaded_model_free(&row->loaded);
    row->session = NULL;
    row->embedder = NULL;
    row->vision = NULL;
    row->loaded.info = info;
    row->loaded.file_bytes = file_bytes;
}

void bench_row_close(model_row *row)
{
    bench_row_release(row);
    record_free(&row->kernels);
    record_free(&row->explained);
    free(row->ids);
    free(row->pixels);
    free(row->outputs);
    free(row->lengths);
    free(row->prefill_s);
    free(row->decode_s);
    row->ids = NULL;
    row->pixels = NULL;
    row->outputs = NULL;
    row->lengths = NULL;
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
    device_bytes_json(row->memory, &record);
    record_int(&record, "parameters", info->parameters);
    record_int(&record, "linear_parameters", info->linear_parameters);
    record_int(&record, "prompt_tokens", row->prompt_tokens);
    record_int(&record, "new_tokens", row->new_tokens);
    record_int(&record, "rounds", args->rounds);
    const char *rates[] = {"prefill_tokens_per_s", "decode_tokens_per_s"};
    if (is_encoder(row)) {
        record_int(&record, takes_images(row) ? "images" : "texts", row->texts);
        rates[0] = "batch_tokens_per_s";
        rates[1] = "single_tokens_per_s";
    }
    record_real(&record, rates[0], row->prefill_rate);
    record_real(&record, rates[1], row->decode_rate);
    record_child(&record, "kernels", row->kernels);
    row->kernels = (cli_record){0};
    explain_memory_json(cli, info, &record);
    cli_record run_dense = record_object();
    record_int(&run_dense, bench_phase(row, 0), row->prefill_layers.runs_dense);
    record_int(&run_dense, bench_phase(row, 1), row->decode_layers.runs_dense);
    record_child(&record, "layers_run_dense", run_dense);
    if (args->plan.explain) {
        record_child(&record, "explain", row->explained);
        row->explained = (cli_record){0};
    }
    record_int(&record, "threads", esp_context_threads(cli->context));
    record_text(&record, "compute", model_compute(info));
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
           esp_device_name(cli->device), model_compute(info), esp_context_threads(cli->context),
           (long long)((const bench_args *)cli->args)->rounds);
    char length[48] = "";
    if (is_encoder(row)) {
        snprintf(length, sizeof length, "%lld %s of ", (long long)row->texts,
                 takes_images(row) ? "images" : "texts");
    }
    printf("%-10s %s tokens/s (%s%lld tokens): %s\n", bench_phase(row, 0),
           size_number(row->prefill_rate, a), length, (long long)row->prompt_tokens,
           row->prefill_kernels);
    printf("%-10s %s tokens/s (%lld tokens): %s\n", bench_phase(row, 1),
           size_number(row->decode_rate, b), (long long)row->new_tokens, row->decode_kernels);
    if (info->sparse_layers > 0) {
        char memory[WHY_TEXT_MAX];
        printf("%-10s %s\n", "memory", explain_memory(cli, info, memory));
    }
    if (device_is_gpu(cli->device)) {
        char memory[DEVICE_BYTES_TEXT_MAX];
        printf("%-10s %s\n", "device", device_bytes_text(row->memory, memory));
    }
    bench_row_notes(cli, row, "");
}

void bench_row_notes(const cli_state *cli, const model_row *row, const char *prefix)
{
    explain_counts(cli, &row->prefill_layers, prefix, bench_phase(row, 0),
                   bench_phase_tokens(row, 0), stdout);
    explain_counts(cli, &row->decode_layers, prefix, bench_phase(row, 1),
                   bench_phase_tokens(row, 1), stdout);
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
