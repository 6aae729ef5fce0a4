/* espalier turn: a dense model that computes the same and is better to prune. */
#include <stddef.h>

#include <espalier/turn.h>

#include "calibration.h"
#include "sizes.h"

typedef struct turn_args {
    const char *out, *shard_size, *pattern;
    bool force;
    calibration_args calibration;
} turn_args;

static void print_text(const turn_args *args, const esp_turn_summary *summary)
{
    char before[SIZE_TEXT_MAX], after[SIZE_TEXT_MAX];
    printf("the stream's %lld channels, as %lld layers read them\n", (long long)summary->channels,
           (long long)summary->readers);
    printf("the strongest quarter makes %.4f of these layers' outputs, of the axes %.4f\n",
           summary->strongest_channels, summary->strongest_axes);
    printf("tensors: %s -> %s%s\n", size_bytes((double)summary->source_bytes, before),
           size_bytes((double)summary->stored_bytes, after),
           summary->untied ? ", the output head being no longer the embedding" : "");
    printf("written to %s\n", args->out);
}

static esp_status print_json(const cli_state *cli, const esp_turn_summary *summary,
                             esp_error *error)
{
    const turn_args *args = cli->args;
    cli_record record = record_begin("turn");
    record_text(&record, "model", cli->operands[0]);
    record_text(&record, "out", args->out);
    record_int(&record, "channels", summary->channels);
    record_int(&record, "readers", summary->readers);
    record_real(&record, "strongest_channels", summary->strongest_channels);
    record_real(&record, "strongest_axes", summary->strongest_axes);
    record_bool(&record, "untied", summary->untied);
    record_int(&record, "source_bytes", (int64_t)summary->source_bytes);
    record_int(&record, "stored_bytes", (int64_t)summary->stored_bytes);
    record_real(&record, "seconds", summary->seconds);
    return record_print(&record, error);
}

static esp_status turn(cli_state *cli, calibration_data *data, esp_error *error)
{
    const turn_args *args = cli->args;
    esp_calibration_options calibration;
    esp_turn_options options = {
        .force = args->force, .progress = progress_step, .user = &cli->progress};
    TRY(esp_pattern_parse(args->pattern, &options.pattern, error));
    TRY(parse_shard_size(args->shard_size, &options.shard_bytes, error));
    TRY(cli_open_device(cli, error));
    TRY(calibration_load(cli, &args->calibration, data, &calibration, error));
    options.calibration = &calibration;
    esp_turn_summary summary;
    TRY(esp_turn_checkpoint(cli->device, cli->operands[0], args->out, &options, &summary, error));
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
    esp_status status = turn(cli, &data, error);
    calibration_data_free(&data);
    return status;
}

#define FIELD(member) offsetof(turn_args, member)
static const cli_option options[] = {
    {.name = "calibrate",
     .letter = 'c',
     .kind = OPTION_TEXT,
     .offset = CALIBRATION_FIELD(turn_args, path),
     .argument = "PATH",
     .help = "a text, of which the axes are learned",
     .required = true},
    {.name = "pattern",
     .letter = 'p',
     .kind = OPTION_TEXT,
     .offset = FIELD(pattern),
     .argument = "PATTERN",
     .help = "that the model is to be pruned by: strong and weak axes are dealt to its groups",
     .fallback = "2:4"},
    CALIBRATION_TOKENS_OPTION(turn_args, ""),
    CALIBRATION_SEED_OPTION(turn_args, ""),
    OUT_OPTION(turn_args),
    FOLDER_OPTIONS(turn_args),
    {.name = NULL}};

const cli_command turn_command = {
    .name = "turn",
    .summary = "turn a model's residual stream, so that pruning costs less",
    .operands = "MODEL -o FOLDER -c TEXT [-p PATTERN]",
    .least_operands = 1,
    .most_operands = 1,
    .options = options,
    .args_bytes = sizeof(turn_args),
    .run = run,
    .notes =
        "Llama and Qwen2. FOLDER is a dense model that computes what MODEL does, to within the "
        "rounding of its weights: embeddings and all that writes to the residual stream are turned "
        "to its principal axes, all that reads it back, and norms' weights go into what reads "
        "them. An output head that is the embedding becomes a tensor of its own. Other programs "
        "load FOLDER like any dense model, and prune takes it in turn."};
