/* The data of a calibration, and its results as text and JSON. */
#include "calibration.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "images.h"
#include "load.h"

const char *const calibration_methods[] = {"magnitude", "square", "obd",   "wanda", "ria",
                                           "sparsegpt", "obs",    "joint", "venom", NULL};
const char *const calibration_targets[] = {"stream", "dense", "layer", NULL};
const char *const calibration_inputs[] = {"pruned", "dense", NULL};

#define PERMUTE_ROUNDS 4 /* beside a calibration they cost little */

typedef struct calibration_job {
    cli_state *cli;
    const calibration_args *args;
    layer_report *report;
    cli_record layers;
    esp_calibration_summary summary;
    char state_dir[4096]; /* of finished layers, beside the new folder */
} calibration_job;

/* Models of images have a preprocessor and no tokenizer. */
static bool takes_images(const char *model)
{
    char file[4096];
    struct stat known;
    snprintf(file, sizeof file, "%s/tokenizer.json", model);
    bool tokenizer = stat(file, &known) == 0;
    snprintf(file, sizeof file, "%s/preprocessor_config.json", model);
    return !tokenizer && stat(file, &known) == 0;
}

static void add_layer(void *user, const esp_calibrated_layer *layer)
{
    calibration_job *job = user;
    cli_record record = record_object();
    record_text(&record, "name", layer->name);
    record_int(&record, "tokens", layer->tokens);
    record_int(&record, "dead_inputs", layer->dead_inputs);
    record_real(&record, "masked_error", layer->masked_error);
    record_real(&record, "error", layer->error);
    record_real(&record, "own_error", layer->own_error);
    record_int(&record, "iterations", layer->iterations);
    record_real(&record, "residual", layer->residual);
    record_real(&record, "moments_seconds", layer->moments_seconds);
    record_real(&record, "target_seconds", layer->target_seconds);
    record_real(&record, "mask_seconds", layer->mask_seconds);
    record_real(&record, "refit_seconds", layer->refit_seconds);
    record_add(&job->layers, record);
}

static void keep_results(calibration_job *job)
{
    const esp_calibration_summary *summary = &job->summary;
    const calibration_args *args = job->args;
    layer_report *report = job->report;
    char crc[16];
    snprintf(crc, sizeof crc, "%08x", (unsigned)summary->data_crc32c);
    cli_record record = record_object();
    record_text(&record, "path", args->path);
    record_text(&record, "method", calibration_methods[args->method]);
    record_real(&record, "norm_power", summary->norm_power > 0 ? summary->norm_power : (double)NAN);
    record_bool(&record, "refit", args->refit);
    record_bool(&record, "gradual", args->gradual);
    record_text(&record, "targets", calibration_targets[args->targets]);
    record_text(&record, "inputs", calibration_inputs[args->inputs]);
    record_int(&record, "samples", summary->samples);
    record_int(&record, "tokens", summary->tokens);
    record_int(&record, "dead_inputs", summary->dead_inputs);
    record_real(&record, "tokens_per_input", summary->tokens_per_input);
    record_text(&record, "data_crc32c", crc);
    record_int(&record, "seed", args->seed);
    record_real(&record, "damping", summary->damping);
    record_real(&record, "mean_error", summary->mean_error);
    record_real(&record, "median_error", summary->median_error);
    record_real(&record, "median_masked_error", summary->median_masked_error);
    record_real(&record, "median_own_error", summary->median_own_error);
    record_text(&record, "algebra", summary->algebra);
    record_text(&record, "layers_on", summary->layers_on);
    record_int(&record, "recalled_layers", summary->recalled);
    record_int(&record, "turned_layers", summary->turned_layers);
    record_real(&record, "seconds", summary->seconds);
    record_child(&record, "layers", job->layers);
    job->layers = (cli_record){0};
    report->calibration = record;
    snprintf(
        report->calibration_text, sizeof report->calibration_text,
        "calibrated: %s%s, targets %s, inputs %s, %lld samples, %lld tokens (%.1f for each "
        "input of the "
        "widest layer), crc32c %s, seed %lld, damping %g; layers run on %s, algebra by %s\n"
        "errors of outputs, as shares of their square: mean %.4g, median %.4g; inputs that are "
        "always 0: %lld; %d layers finished before, values of %d turned; %.1f s\n",
        calibration_methods[args->method],
        args->gradual ? " in steps with refit"
        : args->refit ? " with refit"
                      : "",
        calibration_targets[args->targets], calibration_inputs[args->inputs],
        (long long)summary->samples, (long long)summary->tokens, summary->tokens_per_input, crc,
        (long long)args->seed, summary->damping, summary->layers_on, summary->algebra,
        summary->mean_error, summary->median_error, (long long)summary->dead_inputs,
        summary->recalled, summary->turned_layers, summary->seconds);
}

/* Orders first, where they are wanted, then the pruning in them. */
static esp_status permute_and_prune(calibration_job *job, const char *out,
                                    const esp_prune_options *prune,
                                    const esp_calibration_options *options,
                                    esp_permutation **permutation, esp_prune_summary *summary,
                                    esp_error *error)
{
    cli_state *cli = job->cli;
    esp_prune_options ordered = *prune;
    if (permutation != NULL) {
        const esp_permute_options permute = {
            .rounds = PERMUTE_ROUNDS, .progress = prune->progress, .user = prune->user};
        TRY(esp_permutation_calibrate(cli->device, cli->operands[0], prune, &permute, options,
                                      permutation, error));
        ordered.permutation = job->report->permutation = *permutation;
    }
    return esp_prune_calibrated(cli->device, cli->operands[0], out, &ordered, options, summary,
                                &job->summary, error);
}

esp_status calibration_check(const calibration_args *args, esp_error *error)
{
    bool power = args->norm_power > 0;
    if (args->path != NULL ||
        !(args->refit || args->gradual || args->respect || args->turn || power)) {
        return ESP_OK;
    }
    return cli_fail(error, ESP_BAD_ARGUMENT, "usage.missing_option",
                    "%s needs --calibrate TEXT_OR_IMAGES",
                    args->refit     ? "--refit"
                    : args->gradual ? "--gradual"
                    : args->turn    ? "--turn-values"
                    : power         ? "--norm-power"
                                    : "--respect");
}

esp_status calibration_load(cli_state *cli, const calibration_args *args, calibration_data *data,
                            esp_calibration_options *options, esp_error *error)
{
    *data = (calibration_data){0};
    *options = (esp_calibration_options){.source = args->path,
                                         .method = (esp_method)args->method,
                                         .norm_power = args->norm_power,
                                         .refit = args->refit,
                                         .gradual = args->gradual,
                                         .turn_values = args->turn,
                                         .respect = args->respect,
                                         .targets = (esp_targets)args->targets,
                                         .dense_inputs = args->inputs == 1,
                                         .damping = args->damping,
                                         .tokens = args->tokens,
                                         .context = args->context,
                                         .seed = (uint64_t)args->seed};
    if (takes_images(cli->operands[0])) {
        TRY(opened_images_list(cli, args->path, &data->images, error));
        data->set = opened_images_set(data->images);
        options->images = &data->set;
        return ESP_OK;
    }
    TRY(load_prose(args->path, &data->text, &options->text_bytes, error));
    options->text = data->text;
    return ESP_OK;
}

void calibration_data_free(calibration_data *data)
{
    opened_images_free(data->images);
    free(data->text);
}

static esp_status run(calibration_job *job, const char *out, const esp_prune_options *prune,
                      esp_permutation **permutation, esp_prune_summary *summary, esp_error *error)
{
    cli_state *cli = job->cli;
    calibration_data data = {0};
    esp_calibration_options options;
    TRY(cli_open_device(cli, error));
    esp_status status = calibration_load(cli, job->args, &data, &options, error);
    options.state_dir = job->state_dir;
    options.on_layer = add_layer;
    options.user = job;
    if (status == ESP_OK) {
        status = permute_and_prune(job, out, prune, &options, permutation, summary, error);
    }
    if (status == ESP_OK) {
        keep_results(job);
    }
    calibration_data_free(&data);
    return status;
}

esp_status prune_calibrated(cli_state *cli, const calibration_args *args, const char *out,
                            const esp_prune_options *prune, esp_permutation **permutation,
                            layer_report *report, esp_prune_summary *summary, esp_error *error)
{
    calibration_job job = {.cli = cli, .args = args, .report = report, .layers = record_list()};
    size_t length = strlen(out);
    while (length > 1 && out[length - 1] == '/') {
        length--;
    }
    snprintf(job.state_dir, sizeof job.state_dir, "%.*s.unfinished", (int)length, out);
    esp_status status = run(&job, out, prune, permutation, summary, error);
    record_free(&job.layers);
    return status;
}
