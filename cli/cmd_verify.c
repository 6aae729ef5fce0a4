/* espalier verify: reads everything that a checkpoint holds. */
#include <stddef.h>

#include "cli.h"
#include "output.h"
#include "sizes.h"

typedef struct verify_args {
    bool strict;
} verify_args;

typedef struct verify_view {
    cli_state *cli;
    cli_table table;
    cli_record layers;
    int64_t rows; /* rank-2 weights, which the table shows */
} verify_view;

static void add_row(cli_table *table, const esp_verify_layer *layer, const char *pattern)
{
    const esp_weight_info *weight = &layer->weight;
    char shape[SHAPE_TEXT_MAX];
    double weights = 1;
    for (int i = 0; i < weight->rank; i++) {
        weights *= (double)weight->shape[i];
    }
    table_cell(table, "%s", layer->name);
    table_cell(table, "%s", size_shape(weight->rank, weight->shape, shape));
    table_cell(table, "%s", esp_dtype_short_name(weight->dtype));
    table_cell(table, "%s", pattern);
    table_cell(table, "%.4f", weights > 0 ? (double)layer->zeros / weights : 0.0);
    table_cell(table, "%lld", (long long)layer->negative_zeros);
    table_cell(table, "%lld", (long long)layer->nans);
    table_cell(table, "%lld", (long long)layer->infinities);
    table_cell(table, "%s", layer->checked_crc32c ? "ok" : "-");
    table_cell(table, "%s", layer->fits[0] != '\0' ? layer->fits : "-");
    table_cell(table, "%s", layer->qualifies);
}

static void add_json(cli_record *list, const esp_verify_layer *layer, const char *pattern)
{
    cli_record record = record_object();
    record_text(&record, "name", layer->name);
    record_text(&record, "dtype", esp_dtype_name(layer->weight.dtype));
    record_shape(&record, "shape", layer->weight.rank, layer->weight.shape);
    record_text(&record, "pattern", pattern);
    record_int(&record, "zeros", layer->zeros);
    record_int(&record, "negative_zeros", layer->negative_zeros);
    record_int(&record, "nans", layer->nans);
    record_int(&record, "infinities", layer->infinities);
    record_bool(&record, "checksum_verified", layer->checked_crc32c);
    record_text(&record, "fits", layer->fits);
    record_text(&record, "qualifies", layer->qualifies);
    record_add(list, record);
}

static void on_layer(void *user, const esp_verify_layer *layer)
{
    verify_view *view = user;
    char pattern[ESP_PATTERN_TEXT_MAX];
    esp_pattern_print(&layer->weight.pattern, pattern);
    if (view->cli->common.json) {
        add_json(&view->layers, layer, pattern);
    } else if (layer->weight.rank == 2 || layer->nans + layer->infinities > 0) {
        add_row(&view->table, layer, pattern);
        view->rows++;
    }
}

static esp_status print_text(verify_view *view, const esp_verify_summary *summary, esp_error *error)
{
    TRY(table_print(&view->table, stdout, error));
    printf("\n%lld tensors (%lld shown), %lld weights, %lld compressed tensors, %lld checksums "
           "verified\n",
           (long long)summary->tensors, (long long)view->rows, (long long)summary->weights,
           (long long)summary->compressed_tensors, (long long)summary->checksums);
    printf("%lld zeros (%lld of them -0.0), %lld NaN, %lld infinite\n", (long long)summary->zeros,
           (long long)summary->negative_zeros, (long long)summary->nans,
           (long long)summary->infinities);
    if (summary->nans + summary->infinities > 0) {
        fprintf(stderr, "espalier: warning: there are NaN or infinite weights; --strict makes this "
                        "an error\n");
    }
    return ESP_OK;
}

static esp_status print_json(verify_view *view, const esp_verify_summary *summary, esp_error *error)
{
    cli_record record = record_begin("verify");
    record_text(&record, "path", view->cli->operands[0]);
    record_int(&record, "tensors", summary->tensors);
    record_int(&record, "weights", summary->weights);
    record_int(&record, "compressed_tensors", summary->compressed_tensors);
    record_int(&record, "checksums", summary->checksums);
    record_int(&record, "zeros", summary->zeros);
    record_int(&record, "negative_zeros", summary->negative_zeros);
    record_int(&record, "nans", summary->nans);
    record_int(&record, "infinities", summary->infinities);
    record_child(&record, "layers", view->layers);
    view->layers = (cli_record){0};
    return record_print(&record, error);
}

static esp_status run(cli_state *cli, esp_error *error)
{
    static const char *const heads[] = {"<tensor", ">shape",     "<type",         "<stored as",
                                        ">zeros",  ">-0.0",      ">NaN",          ">inf",
                                        "<crc32c", "<zeros fit", "<qualifies for"};
    const verify_args *args = cli->args;
    verify_view view = {.cli = cli, .layers = record_list()};
    table_begin(&view.table, COUNT(heads), heads);
    esp_verify_options options = {
        .strict = args->strict, .on_layer = on_layer, .progress = cli_progress_step, .user = &view};
    esp_verify_summary summary;
    esp_status status =
        esp_verify_checkpoint(cli->context, cli->operands[0], &options, &summary, error);
    progress_end(&cli->progress);
    if (status == ESP_OK) {
        status = cli->common.json ? print_json(&view, &summary, error)
                                  : print_text(&view, &summary, error);
    }
    record_free(&view.layers);
    table_free(&view.table);
    return status;
}

static const cli_option options[] = {{.name = "strict",
                                      .kind = OPTION_FLAG,
                                      .offset = offsetof(verify_args, strict),
                                      .help = "NaN or infinite weights are an error (exit code 5)"},
                                     {.name = NULL}};

const cli_command verify_command = {
    .name = "verify",
    .summary = "read a whole checkpoint: structure, checksums, values, what its zeros fit",
    .operands = "MODEL",
    .least_operands = 1,
    .most_operands = 1,
    .options = options,
    .args_bytes = sizeof(verify_args),
    .run = run,
    .notes = "For anybody's checkpoint, dense or compressed, a folder or one .safetensors file. "
             "'zeros fit' names the patterns that the zeros of a dense weight fit, when at least a "
             "quarter are zero. 'qualifies for' says what the usual patterns make of the shape: "
             "V=... when a panel is clamped to the rows there are, 'last group' when M does not "
             "divide the columns. Exit code 3 when something is wrong with the file."};
