/* espalier shrink: a smaller dense model, without some of its hidden features and heads. */
#include <stddef.h>

#include "calibration.h"
#include "sizes.h"

typedef struct shrink_args {
    const char *out, *shard_size;
    double hidden, heads;
    int64_t multiple;
    bool force;
    calibration_args calibration;
} shrink_args;

static void print_text(const shrink_args *args, const esp_shrink_summary *summary)
{
    char before[SIZE_TEXT_MAX], after[SIZE_TEXT_MAX];
    printf("hidden features: %lld -> %lld in each of %lld layers\n",
           (long long)summary->hidden_before, (long long)summary->hidden_after,
           (long long)summary->layers);
    printf("heads: %lld -> %lld, of keys and values %lld -> %lld\n",
           (long long)summary->heads_before, (long long)summary->heads_after,
           (long long)summary->kv_heads_before, (long long)summary->kv_heads_after);
    printf("tensors: %s -> %s\n", size_bytes((double)summary->source_bytes, before),
           size_bytes((double)summary->stored_bytes, after));
    printf(args->calibration.path != NULL
               ? "loss: %.4f of the outputs' square, mean of what reads removed channels\n"
               : "loss: %.4f of the squares of the weights that lie along the channels\n",
           summary->mean_loss);
    printf("written to %s\n", args->out);
}

static esp_status print_json(const cli_state *cli, const esp_shrink_summary *summary,
                             esp_error *error)
{
    const shrink_args *args = cli->args;
    cli_record record = record_begin("shrink");
    record_text(&record, "model", cli->operands[0]);
    record_text(&record, "out", args->out);
    record_text(&record, "by", args->calibration.path != NULL ? "outputs" : "squares");
    record_int(&record, "layers", summary->layers);
    record_int(&record, "hidden_before", summary->hidden_before);
    record_int(&record, "hidden_after", summary->hidden_after);
    record_int(&record, "heads_before", summary->heads_before);
    record_int(&record, "heads_after", summary->heads_after);
    record_int(&record, "kv_heads_before", summary->kv_heads_before);
    record_int(&record, "kv_heads_after", summary->kv_heads_after);
    record_int(&record, "source_bytes", (int64_t)summary->source_bytes);
    record_int(&record, "stored_bytes", (int64_t)summary->stored_bytes);
    record_real(&record, "mean_loss", summary->mean_loss);
    record_real(&record, "seconds", summary->seconds);
    return record_print(&record, error);
}

static esp_status shrink(cli_state *cli, calibration_data *data, esp_error *error)
{
    const shrink_args *args = cli->args;
    esp_calibration_options calibration;
    esp_shrink_options options = {.hidden = args->hidden,
                                  .heads = args->heads,
                                  .multiple = args->multiple,
                                  .force = args->force,
                                  .progress = progress_step,
                                  .user = &cli->progress};
    TRY(parse_shard_size(args->shard_size, &options.shard_bytes, error));
    TRY(cli_open_device(cli, error));
    if (args->calibration.path != NULL) {
        TRY(calibration_load(cli, &args->calibration, data, &calibration, error));
        options.calibration = &calibration;
    }
    esp_shrink_summary summary;
    TRY(esp_shrink_checkpoint(cli->device, cli->operands[0], args->out, &options, &summary, error));
    progress_end(&cli->progress);
    if (cli->common.json) {
        return print_json(cli, &summary, error);
    }
    print_text(args, &summary);
    return ESP_OK;
}

static esp_status run(cli_state *cli, esp_error *error)
{
    calibration_data data = {0};
    esp_status status = shrink(cli, &data, error);
    calibration_data_free(&data);
    return status;
}

#define FIELD(member) offsetof(shrink_args, member)
static const cli_option options[] = {
    {.name = "hidden",
     .kind = OPTION_NUMBER,
     .offset = FIELD(hidden),
     .argument = "SHARE",
     .help = "of the hidden features of each feed-forward layer to remove",
     .least = 0,
     .most = 1},
    {.name = "heads",
     .kind = OPTION_NUMBER,
     .offset = FIELD(heads),
     .argument = "SHARE",
     .help = "of the heads of each attention to remove, with the keys and values that they share",
     .least = 0,
     .most = 1},
    {.name = "multiple",
     .kind = OPTION_INTEGER,
     .offset = FIELD(multiple),
     .argument = "N",
     .help = "hidden features that stay are a multiple of it",
     .fallback = "8",
     .least = 1,
     .most = 65536},
    {.name = "calibrate",
     .letter = 'c',
     .kind = OPTION_TEXT,
     .offset = CALIBRATION_FIELD(shrink_args, path),
     .argument = "PATH",
     .help = "remove what costs outputs least on it, and let the other weights make up for that: a "
             "text, for models of images a folder or an index of them"},
    CALIBRATION_SUMS_OPTIONS(shrink_args),
    OUT_OPTION(shrink_args),
    FOLDER_OPTIONS(shrink_args),
    {.name = NULL}};

const cli_command shrink_command = {
    .name = "shrink",
    .summary = "remove hidden features and heads, and write a smaller dense model",
    .operands = "MODEL -o FOLDER (--hidden SHARE | --heads SHARE)",
    .least_operands = 1,
    .most_operands = 1,
    .options = options,
    .args_bytes = sizeof(shrink_args),
    .run = run,
    .notes =
        "Every layer loses as many, because config.json has one number for all, and other programs "
        "load FOLDER like any dense model. A hidden feature is a row of gate and up and a column "
        "of "
        "down; a head is rows of q, k and v and columns of o. Heads can go where config.json has a "
        "head_dim (Llama, Qwen2); hidden features from every architecture that is known. Without "
        "--calibrate those go whose weights have the least squares."};
