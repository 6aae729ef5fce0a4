/* Which way the residual stream is turned: the dense model is walked over the samples, and every
 * layer that reads the stream says what each direction of it makes of its outputs.
 *
 * Let x be the stream as the norm leaves it, W a reader with the norm's weights in its columns, and
 * H the sum of x x^T. Of the outputs' square t = tr(W H W^T) a direction u makes u^T M H u by
 * itself and with the others, M = W^T W: the symmetric part of M H / t, summed over the readers, is
 * the form whose principal axes gather most of all outputs in few channels. What of it a pattern's
 * panels drop first is then the least. Rotations of the stream are known from slicing (SliceGPT,
 * arXiv 2401.15024, by H alone) and quantisation. */
#include "assess/calibrate.h"

#include <espalier/turn.h>

#include <math.h>
#include <stdlib.h>

typedef struct turn_job {
    esp_calibration calibration;
    esp_turn *turn;
    int64_t n;             /* channels */
    double *form;          /* [n][n] */
    double *square;        /* [n][n]: W^T W */
    double *product;       /* [n][n]: that times what the layer reads */
    double *norm, *values; /* [n]: values of channels, then of axes */
    double *q;             /* [n][n] */
    esp_turn_summary summary;
} turn_job;

static esp_status make_room(turn_job *job, esp_error *error)
{
    esp_context *context = job->calibration.context;
    size_t n = (size_t)job->n, square = n * n;
    double **const areas[] = {&job->form, &job->square, &job->product, &job->q};
    job->norm = esp_alloc_array(context, n, sizeof *job->norm);
    job->values = esp_alloc_array(context, n, sizeof *job->values);
    bool made = job->norm != NULL && job->values != NULL;
    for (int i = 0; i < ESP_COUNT(areas); i++) {
        *areas[i] = esp_alloc_array(context, square, sizeof **areas[i]);
        made &= *areas[i] != NULL;
    }
    if (!made) {
        return esp_fail_memory(error, 4 * square * sizeof(double), "moments of the stream");
    }
    memset(job->form, 0, square * sizeof *job->form);
    return ESP_OK;
}

/* ---- the form ---- */

/* c [n][n] = a [n][depth] b; transposed: b [n][depth], else [n][n]. */
static void multiply(const turn_job *job, const double *a, int64_t depth, const double *b,
                     bool transposed, double *c)
{
    const esp_algebra_product product = {.rows = job->n,
                                         .columns = job->n,
                                         .depth = depth,
                                         .alpha = 1,
                                         .a = a,
                                         .a_stride = depth,
                                         .b = b,
                                         .b_stride = transposed ? depth : job->n,
                                         .b_transposed = transposed,
                                         .c = c,
                                         .c_stride = job->n};
    esp_algebra_multiply(job->calibration.algebra, &product);
}

/* product is W^T W G, G of what the layer reads, y = N x with N the norm's weights: M H is
 * N W^T W G N^-1. What no channel of y shows is no part of it. */
static esp_status add_form(turn_job *job, const char *name, esp_error *error)
{
    int64_t n = job->n;
    const double *p = job->product, *norm = job->norm;
    double trace = 0;
    for (int64_t i = 0; i < n; i++) {
        trace += p[i * (n + 1)];
    }
    if (!isfinite(trace)) {
        return esp_fail(
            error, ESP_CHECK_FAILED, "turn.not_finite",
            "%s: the outputs of \"%s\" are no numbers; 'espalier verify --strict' finds "
            "weights that are none",
            esp_checkpoint_path(job->calibration.checkpoint), name);
    }
    if (trace <= 0) {
        return ESP_OK; /* a layer of zeros */
    }
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n; j++) {
            bool seen = norm[i] != 0 && norm[j] != 0;
            double ratio = seen ? norm[i] / norm[j] : 0;
            job->form[i * n + j] +=
                seen ? 0.5 * (ratio * p[i * n + j] + p[j * n + i] / ratio) / trace : 0;
        }
    }
    job->summary.readers++;
    return ESP_OK;
}

static void add_to_diagonal(double *gram, int64_t n, double number)
{
    for (int64_t i = 0; i < n; i++) {
        gram[i * (n + 1)] += number;
    }
}

static esp_status look(turn_job *job, const esp_calibrated_linear *linear, esp_error *error)
{
    esp_calibration *calibration = &job->calibration;
    double *rows = NULL;
    int64_t out = 0;
    bool reads = false;
    ESP_TRY(esp_turn_reader(job->turn, linear->name, &reads, &rows, &out, job->norm, error));
    esp_weight_info weight = esp_checkpoint_get(calibration->checkpoint, linear->index);
    calibration->done += (double)weight.shape[0] * (double)weight.shape[1];
    if (!reads) {
        return ESP_OK;
    }
    esp_status status = esp_calibration_advance(calibration, linear->layer, error);
    status = status == ESP_OK ? esp_calibration_collect(calibration, linear, error) : status;
    if (status == ESP_OK) {
        esp_group_inputs *inputs = &calibration->inputs;
        multiply(job, rows, out, rows, true, job->square);
        add_to_diagonal(inputs->gram, job->n, -inputs->damping);
        multiply(job, job->square, job->n, inputs->gram, false, job->product);
        add_to_diagonal(inputs->gram, job->n, inputs->damping);
        status = add_form(job, linear->name, error);
    }
    esp_release(calibration->context, rows);
    return status;
}

/* ---- the axes ---- */

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x > y ? -1 : x < y;
}

/* What the largest quarter of the values has of all of them. */
static double strongest_quarter(turn_job *job)
{
    int64_t n = job->n;
    double sum = 0;
    qsort(job->values, (size_t)n, sizeof *job->values, compare);
    for (int64_t i = 0; i < n / 4; i++) {
        sum += job->values[i];
    }
    return sum / (double)ESP_MAX(1, job->summary.readers);
}

static esp_status tell(void *user, double share, esp_error *error)
{
    const turn_job *job = user;
    const esp_prune_options *options = job->calibration.prune;
    double n = (double)job->n;
    return options->progress == NULL ||
                   options->progress(options->user, "finding axes", share * n, n, "channels")
               ? ESP_OK
               : esp_fail(error, ESP_CANCELLED, "cancelled",
                          "turning was interrupted; nothing was written");
}

static esp_status find_axes(turn_job *job, const esp_pattern *pattern, esp_error *error)
{
    const esp_axes_options how = {.step = tell, .user = job};
    int64_t n = job->n;
    double *axes = job->square; /* is no longer needed */
    int64_t *rank_of = esp_alloc_array(job->calibration.context, (size_t)n, sizeof *rank_of);
    if (rank_of == NULL) {
        return esp_fail_memory(error, (size_t)n * sizeof *rank_of, "axes");
    }
    for (int64_t i = 0; i < n; i++) {
        job->values[i] = job->form[i * (n + 1)];
    }
    job->summary.strongest_channels = strongest_quarter(job);
    esp_status status =
        esp_principal_axes(job->calibration.algebra, job->form, n, job->values, axes, &how, error);
    if (status == ESP_OK) {
        job->summary.strongest_axes = strongest_quarter(job);
        esp_deal_ranks(n, esp_turn_group(pattern), rank_of);
        for (int64_t place = 0; place < n; place++) {
            memcpy(job->q + place * n, axes + rank_of[place] * n, (size_t)n * sizeof *axes);
        }
    }
    esp_release(job->calibration.context, rank_of);
    return status;
}

/* ---- all of it ---- */

static esp_status turn(turn_job *job, const char *model_dir, const char *out_dir,
                       const esp_turn_options *options, esp_error *error)
{
    esp_calibration *calibration = &job->calibration;
    ESP_TRY(esp_calibration_open(calibration, model_dir, error));
    ESP_TRY(esp_turn_open(calibration->device, calibration->checkpoint, &job->turn, error));
    job->n = job->summary.channels = esp_turn_channels(job->turn);
    ESP_TRY(make_room(job, error));
    for (int64_t i = 0; i < calibration->linear_count; i++) {
        ESP_TRY(look(job, &calibration->linears[i], error));
    }
    ESP_TRY(find_axes(job, &options->pattern, error));
    return esp_turn_write(job->turn, calibration->algebra, job->q, out_dir, options, &job->summary,
                          error);
}

static void close(turn_job *job)
{
    esp_context *context = job->calibration.context;
    double *const areas[] = {job->form, job->square, job->product, job->q, job->norm, job->values};
    for (int i = 0; i < ESP_COUNT(areas); i++) {
        esp_release(context, areas[i]);
    }
    esp_turn_close(job->turn);
    esp_calibration_close(&job->calibration);
}

/* Whether a folder can be made there: none is made yet. */
static esp_status check_target(esp_context *context, const esp_checkpoint *checkpoint,
                               const char *out_dir, bool force, esp_error *error)
{
    esp_checkpoint_writer *writer = NULL;
    ESP_TRY(esp_checkpoint_writer_create(context, checkpoint, out_dir, force, &writer, error));
    esp_checkpoint_writer_free(writer);
    return ESP_OK;
}

/* What no calibration need be opened for to refuse. */
static esp_status check(esp_device *device, const char *model_dir, const char *out_dir,
                        const esp_turn_options *options, esp_error *error)
{
    esp_checkpoint *checkpoint;
    esp_turn *turn = NULL;
    if (out_dir == NULL) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "prune.no_target",
                        "turning writes a new folder: give its name");
    }
    if (options == NULL || options->calibration == NULL) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "turn.no_samples",
                        "%s: which way a model is turned is learned of samples: give a text",
                        model_dir);
    }
    ESP_TRY(esp_pattern_check(&options->pattern, error));
    ESP_TRY(esp_checkpoint_open(device->context, model_dir, &checkpoint, error));
    esp_status status = esp_turn_open(device, checkpoint, &turn, error);
    if (status == ESP_OK) {
        status = check_target(device->context, checkpoint, out_dir, options->force, error);
    }
    esp_turn_close(turn);
    esp_checkpoint_close(checkpoint);
    return status;
}

esp_status esp_turn_checkpoint(esp_device *device, const char *model_dir, const char *out_dir,
                               const esp_turn_options *options, esp_turn_summary *summary,
                               esp_error *error)
{
    double start = esp_seconds();
    ESP_TRY(check(device, model_dir, out_dir, options, error));
    const esp_prune_options prune = {.progress = options->progress, .user = options->user};
    esp_calibration_options how = *options->calibration;
    how.method = ESP_METHOD_OBD; /* of the inputs, their moments alone */
    how.targets = ESP_TARGETS_LAYER;
    how.refit = how.gradual = how.turn_values = how.respect = how.dense_inputs = false;
    how.damping = 0;
    how.state_dir = NULL;
    how.on_layer = NULL;
    turn_job job = {.calibration = {.context = device->context,
                                    .device = device,
                                    .prune = &prune,
                                    .options = &how,
                                    .looks_only = true}};
    esp_status status = turn(&job, model_dir, out_dir, options, error);
    close(&job);
    job.summary.seconds = esp_seconds() - start;
    if (status == ESP_OK && summary != NULL) {
        *summary = job.summary;
    }
    return status;
}
