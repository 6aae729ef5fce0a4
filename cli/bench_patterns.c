/* `espalier bench MODEL --patterns ...`: one table of what each pattern costs and gains.
 *
 * The model is pruned into one folder per pattern, each is evaluated against the dense one, then
 * all are timed in interleaved rounds (or, when their files are large, one after the other). Where
 * a pattern is slower than dense, a line below the table says so. */
#include <errno.h>
#include <ftw.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "bench.h"
#include "images.h"
#include "sizes.h"

#define MAX_PATTERNS 16
#define PATH_MAX_BYTES 1024
#define TOGETHER_BYTES ((uint64_t)1 << 30) /* files of all models that are held at once */

typedef struct pattern_job {
    cli_state *cli;
    const bench_args *args;
    char folder[PATH_MAX_BYTES];
    bool is_temporary;
    esp_pattern patterns[MAX_PATTERNS + 1]; /* the first is dense */
    model_row rows[MAX_PATTERNS + 1];
    char paths[MAX_PATTERNS + 1][PATH_MAX_BYTES];
    int count;
    char *text;
    size_t length;
    opened_images *images; /* NULL: none are judged */
} pattern_job;

/* ---- patterns and folders ---- */

static esp_status add_pattern(pattern_job *job, const char *text, size_t length, esp_error *error)
{
    char name[ESP_PATTERN_TEXT_MAX];
    if (job->count > MAX_PATTERNS || length >= sizeof name) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.bad_value",
                        "--patterns: at most %d patterns, separated by commas, were expected",
                        MAX_PATTERNS);
    }
    memcpy(name, text, length);
    name[length] = '\0';
    esp_pattern *pattern = &job->patterns[job->count];
    TRY(esp_pattern_parse(name, pattern, error));
    if (pattern->kind != ESP_PATTERN_DENSE) { /* dense is there anyway */
        esp_pattern_print(pattern, job->rows[job->count].label);
        job->count++;
    }
    return ESP_OK;
}

static esp_status parse_patterns_list(pattern_job *job, esp_error *error)
{
    snprintf(job->rows[0].label, sizeof job->rows[0].label, "dense");
    job->count = 1;
    for (const char *at = job->args->patterns;;) {
        size_t length = strcspn(at, ",");
        TRY(add_pattern(job, at, length, error));
        if (at[length] == '\0') {
            return ESP_OK;
        }
        at += length + 1;
    }
}

static esp_status make_folder(pattern_job *job, esp_error *error)
{
    const char *base = getenv("TMPDIR");
    if (job->args->work != NULL) {
        snprintf(job->folder, sizeof job->folder, "%s", job->args->work);
        if (mkdir(job->folder, 0777) != 0 && errno != EEXIST) {
            return cli_fail(error, ESP_IO, "bench.no_folder", "%s: %s", job->folder,
                            strerror(errno));
        }
        return ESP_OK;
    }
    snprintf(job->folder, sizeof job->folder, "%s/espalier-bench-XXXXXX",
             base != NULL && base[0] != '\0' ? base : "/tmp");
    if (mkdtemp(job->folder) == NULL) {
        return cli_fail(error, ESP_IO, "bench.no_folder", "%s: %s", job->folder, strerror(errno));
    }
    job->is_temporary = true;
    return ESP_OK;
}

static int remove_entry(const char *path, const struct stat *entry, int kind, struct FTW *place)
{
    (void)entry, (void)kind, (void)place;
    return remove(path);
}

/* "64:2:8" -> FOLDER/64-2-8 */
static esp_status name_folders(pattern_job *job, const char *model, esp_error *error)
{
    job->rows[0].path = model;
    for (int i = 1; i < job->count; i++) {
        char path[PATH_MAX_BYTES]; /* gcc cannot see that fields of one struct do not overlap */
        int used = snprintf(path, sizeof path, "%s/%s", job->folder, job->rows[i].label);
        if (used < 0 || used >= PATH_MAX_BYTES) {
            return cli_fail(error, ESP_BAD_ARGUMENT, "bench.path_too_long",
                            "%s: the path is too long; give a shorter --work", job->folder);
        }
        memcpy(job->paths[i], path, sizeof path);
        for (char *at = job->paths[i] + strlen(job->folder) + 1; *at != '\0'; at++) {
            *at = *at == ':' ? '-' : *at;
        }
        job->rows[i].path = job->paths[i];
    }
    return ESP_OK;
}

typedef struct prune_view {
    cli_state *cli;
    model_row *row;
} prune_view;

static void count_clamped(void *user, const esp_layer_report *layer)
{
    prune_view *view = user;
    view->row->clamped += layer->pruned && strstr(layer->note, "clamped") != NULL;
}

static esp_status prune_all(pattern_job *job, esp_error *error)
{
    for (int i = 1; i < job->count; i++) {
        prune_view view = {job->cli, &job->rows[i]};
        esp_prune_options options = {.pattern = job->patterns[i],
                                     .force = true,
                                     .on_layer = count_clamped,
                                     .progress = cli_progress_step,
                                     .user = &view};
        TRY(esp_prune_checkpoint(job->cli->context, job->rows[0].path, job->rows[i].path, &options,
                                 NULL, error));
    }
    return ESP_OK;
}

/* ---- quality and speed ---- */

static esp_status judge_images(pattern_job *job, model_row *row, esp_error *error)
{
    const model_row *dense = &job->rows[0];
    TRY(opened_images_eval(job->images, row->loaded.model,
                           row == dense ? NULL : dense->loaded.model, NULL, &row->image_eval,
                           error));
    row->has_image_eval = true;
    return ESP_OK;
}

static esp_status evaluate_row(pattern_job *job, model_row *row, esp_error *error)
{
    if (job->images != NULL) {
        return judge_images(job, row, error);
    }
    if (job->text == NULL) {
        return ESP_OK;
    }
    const model_row *dense = &job->rows[0];
    esp_eval_options options = {.context = job->args->context,
                                .max_tokens = job->args->max_tokens,
                                .progress = progress_step,
                                .user = &job->cli->progress};
    TRY(esp_eval_text(row->loaded.model, row == dense ? NULL : dense->loaded.model,
                      dense->loaded.tokenizer, job->text, job->length, &options, &row->eval,
                      error));
    row->has_eval = true;
    return ESP_OK;
}

static bool fits_together(const pattern_job *job)
{
    return job->rows[0].loaded.file_bytes * (uint64_t)job->count <= TOGETHER_BYTES;
}

static esp_status measure_together(pattern_job *job, esp_error *error)
{
    for (int i = 1; i < job->count; i++) {
        TRY(bench_row_open(job->cli, &job->rows[i], false, error));
    }
    for (int i = 0; i < job->count; i++) {
        TRY(evaluate_row(job, &job->rows[i], error));
    }
    return bench_rows_measure(job->cli, job->rows, job->count, error);
}

static esp_status measure_in_turn(pattern_job *job, esp_error *error)
{
    TRY(evaluate_row(job, &job->rows[0], error));
    TRY(bench_rows_measure(job->cli, &job->rows[0], 1, error));
    for (int i = 1; i < job->count; i++) {
        TRY(bench_row_open(job->cli, &job->rows[i], false, error));
        TRY(evaluate_row(job, &job->rows[i], error));
        TRY(bench_rows_measure(job->cli, &job->rows[i], 1, error));
        bench_row_release(&job->rows[i]);
    }
    return ESP_OK;
}

/* ---- the table ---- */

static double linear_ratio(const pattern_job *job, const model_row *row)
{
    size_t dense = job->rows[0].loaded.info.linear_resident_bytes;
    return dense > 0 ? (double)row->loaded.info.linear_resident_bytes / (double)dense : (double)NAN;
}

/* Accuracy and KL of a classifier, cosine and relative error of an encoder. */
static bool classifies(const model_row *row)
{
    return row->loaded.info.kind == ESP_MODEL_CLASSIFIER;
}

static void add_image_quality(const model_row *row, bool dense, cli_table *table)
{
    const esp_image_eval_result *eval = &row->image_eval;
    if (classifies(row)) {
        table_cell(table, "%.4f", (double)eval->top1 / (double)eval->images);
        table_cell(table, "%.4f", dense ? 0.0 : eval->mean_kl);
    } else {
        table_cell(table, "%.4f", dense ? 1.0 : eval->mean_cosine);
        table_cell(table, "%.4f", dense ? 0.0 : eval->relative_error);
    }
}

static void add_row(const pattern_job *job, const model_row *row, cli_table *table)
{
    const esp_model_info *info = &row->loaded.info;
    const model_row *dense = &job->rows[0];
    char text[SIZE_TEXT_MAX];
    table_cell(table, "%s", row->label);
    table_cell(table, "%llu", (unsigned long long)row->loaded.file_bytes);
    table_cell(table, "%.3f", (double)row->loaded.file_bytes / (double)dense->loaded.file_bytes);
    table_cell(table, "%zu", info->resident_bytes);
    table_cell(table, "%zu", info->linear_resident_bytes);
    table_cell(table, "%.3f", linear_ratio(job, row));
    if (row->has_eval) {
        double perplexity = row->eval.perplexity;
        table_cell(table, "%.*f", perplexity < 1000 ? 3 : 0, perplexity);
        table_cell(table, "%.4f", row == dense ? 0.0 : row->eval.mean_kl);
    } else if (row->has_image_eval) {
        add_image_quality(row, row == dense, table);
    } else {
        table_cell(table, "-");
        table_cell(table, "-");
    }
    table_cell(table, "%s", size_number(row->prefill_rate, text));
    table_cell(table, "%.2fx", row->prefill_rate / dense->prefill_rate);
    table_cell(table, "%s", size_number(row->decode_rate, text));
    table_cell(table, "%.2fx", row->decode_rate / dense->decode_rate);
}

static esp_status print_speed_table(const pattern_job *job, esp_error *error)
{
    char first[32], second[32];
    snprintf(first, sizeof first, ">%s tok/s", bench_phase(&job->rows[0], 0));
    snprintf(second, sizeof second, ">%s tok/s", bench_phase(&job->rows[0], 1));
    const model_row *dense = &job->rows[0];
    bool encodes = dense->has_image_eval && !classifies(dense);
    const char *const heads[] = {"<pattern",
                                 ">file bytes",
                                 ">/dense",
                                 ">resident",
                                 ">pruned layers",
                                 ">/dense",
                                 encodes                 ? ">cosine"
                                 : dense->has_image_eval ? ">top-1"
                                                         : ">perplexity",
                                 encodes ? ">error" : ">KL to dense",
                                 first,
                                 ">",
                                 second,
                                 ">"};
    cli_table table;
    table_begin(&table, COUNT(heads), heads);
    for (int i = 0; i < job->count; i++) {
        add_row(job, &job->rows[i], &table);
    }
    esp_status status = table_print(&table, stdout, error);
    table_free(&table);
    return status;
}

static void add_kernels(cli_table *table, const model_row *row, const char *phase,
                        const char *kernels)
{
    table_cell(table, "%s", row->label);
    table_cell(table, "%s", phase);
    table_cell(table, "%s", kernels);
}

static esp_status print_kernel_table(const pattern_job *job, esp_error *error)
{
    static const char *const heads[] = {"<pattern", "<phase", "<kernels that ran x layers"};
    cli_table table;
    table_begin(&table, COUNT(heads), heads);
    for (int i = 0; i < job->count; i++) {
        const model_row *row = &job->rows[i];
        if (strcmp(row->prefill_kernels, row->decode_kernels) == 0) {
            add_kernels(&table, row, "both", row->prefill_kernels);
        } else {
            add_kernels(&table, row, bench_phase(row, 0), row->prefill_kernels);
            add_kernels(&table, row, bench_phase(row, 1), row->decode_kernels);
        }
    }
    printf("\n");
    esp_status status = table_print(&table, stdout, error);
    table_free(&table);
    return status;
}

static void print_slower(const model_row *row, const char *phase, double rate, double dense)
{
    if (rate < 0.995 * dense) { /* else it prints as 1.00x */
        printf("%s %s is slower than dense on this machine: %.2fx\n", row->label, phase,
               rate / dense);
    }
}

static void print_remarks(const pattern_job *job)
{
    for (int i = 1; i < job->count; i++) {
        const model_row *row = &job->rows[i], *dense = &job->rows[0];
        print_slower(row, bench_phase(row, 0), row->prefill_rate, dense->prefill_rate);
        print_slower(row, bench_phase(row, 1), row->decode_rate, dense->decode_rate);
        char prefix[80];
        snprintf(prefix, sizeof prefix, "%s ", row->label);
        bench_row_notes(job->cli, row, prefix);
        if (row->clamped > 0) {
            printf("%s: V is larger than the rows of %d layers and was clamped to them\n",
                   row->label, row->clamped);
        }
    }
    if (!job->is_temporary) {
        printf("pruned models: %s\n", job->folder);
    }
}

static esp_status print_text(const pattern_job *job, esp_error *error)
{
    const model_row *dense = &job->rows[0];
    const esp_model_info *info = &dense->loaded.info;
    char all[SIZE_TEXT_MAX], linear[SIZE_TEXT_MAX];
    printf("%s: %s parameters, %s of them in linear layers\n", dense->path,
           size_count((double)info->parameters, all),
           size_count((double)info->linear_parameters, linear));
    printf("device %s, compute %s, %d threads; %s %lld tokens, %s %lld tokens, median of "
           "%lld rounds\n",
           esp_device_name(job->cli->device), model_compute(info),
           esp_context_threads(job->cli->context), bench_phase(dense, 0),
           (long long)(dense->texts > 0 ? bench_phase_tokens(dense, 0) : dense->prompt_tokens),
           bench_phase(dense, 1), (long long)dense->new_tokens, (long long)job->args->rounds);
    if (dense->has_eval) {
        printf("text %s: %lld tokens scored, context %lld, stride %lld, prefix %lld\n",
               job->args->text, (long long)dense->eval.tokens, (long long)dense->eval.context,
               (long long)dense->eval.stride, (long long)dense->eval.prefix);
    }
    if (dense->has_image_eval) {
        printf("images %s: %lld\n", job->args->images, (long long)dense->image_eval.images);
    }
    printf("\n");
    TRY(print_speed_table(job, error));
    TRY(print_kernel_table(job, error));
    printf("\n");
    print_remarks(job);
    return ESP_OK;
}

static void add_image_json(const model_row *row, bool dense, cli_record *record)
{
    const esp_image_eval_result *eval = &row->image_eval;
    double unknown = (double)NAN, images = (double)eval->images;
    record_int(record, "judged_images", eval->images);
    record_real(record, "top1", classifies(row) ? (double)eval->top1 / images : unknown);
    record_real(record, "top5", classifies(row) ? (double)eval->top5 / images : unknown);
    record_real(record, "image_kl", classifies(row) && !dense ? eval->mean_kl : unknown);
    record_real(record, "mean_cosine", dense ? unknown : eval->mean_cosine);
    record_real(record, "relative_error", dense ? unknown : eval->relative_error);
}

static esp_status print_json(pattern_job *job, esp_error *error)
{
    for (int i = 0; i < job->count; i++) {
        model_row *row = &job->rows[i];
        const model_row *dense = &job->rows[0];
        double unknown = (double)NAN;
        cli_record record = bench_row_json(job->cli, row, "pattern");
        record_text(&record, "pattern", row->label);
        record_int(&record, "clamped_layers", row->clamped);
        record_real(&record, "linear_ratio", linear_ratio(job, row));
        record_real(&record, "file_ratio",
                    (double)row->loaded.file_bytes / (double)dense->loaded.file_bytes);
        record_real(&record, "perplexity", row->has_eval ? row->eval.perplexity : unknown);
        record_real(&record, "bits_per_byte", row->has_eval ? row->eval.bits_per_byte : unknown);
        record_real(&record, "mean_kl",
                    row->has_eval && row != dense ? row->eval.mean_kl : unknown);
        if (row->has_image_eval) {
            add_image_json(row, row == dense, &record);
        }
        const double ratios[] = {row->prefill_rate / dense->prefill_rate,
                                 row->decode_rate / dense->decode_rate};
        for (int phase = 0; phase < 2; phase++) {
            char key[40];
            snprintf(key, sizeof key, "%s_ratio_to_dense", bench_phase(row, phase));
            record_real(&record, key, ratios[phase]);
        }
        TRY(record_print(&record, error));
    }
    return ESP_OK;
}

static esp_status run_job(pattern_job *job, const char *model, esp_error *error)
{
    TRY(parse_patterns_list(job, error));
    if (job->args->text != NULL) {
        TRY(load_prose(job->args->text, &job->text, &job->length, error));
    }
    job->rows[0].path = model;
    TRY(bench_row_open(job->cli, &job->rows[0], job->args->text != NULL, error));
    if (job->args->images != NULL) {
        TRY(opened_images_create(job->cli, job->args->images, job->args->max_images,
                                 &job->rows[0].loaded, &job->images, error));
    }
    TRY(make_folder(job, error));
    TRY(name_folders(job, model, error));
    TRY(prune_all(job, error));
    TRY(fits_together(job) ? measure_together(job, error) : measure_in_turn(job, error));
    progress_end(&job->cli->progress);
    return job->cli->common.json ? print_json(job, error) : print_text(job, error);
}

esp_status bench_patterns(cli_state *cli, const char *path, esp_error *error)
{
    pattern_job *job = calloc(1, sizeof *job);
    if (job == NULL) {
        return cli_fail_memory(error, "a measurement");
    }
    job->cli = cli;
    job->args = cli->args;
    esp_status status = run_job(job, path, error);
    for (int i = 0; i <= MAX_PATTERNS; i++) {
        bench_row_close(&job->rows[i]);
    }
    if (job->is_temporary) {
        nftw(job->folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    }
    opened_images_free(job->images);
    free(job->text);
    free(job);
    return status;
}
