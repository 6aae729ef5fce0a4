/* Pruning a whole folder with calibration: the pipeline asks for one layer after the other in the
 * order of the walk, and gets mask and values. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "assess/calibrate.h"

static const char *const method_names[] = {"magnitude", "square", "obd",   "wanda", "ria",
                                           "sparsegpt", "obs",    "joint", "venom"};
static const char *const targets_names[] = {"stream", "dense", "layer"};

const char *esp_method_name(esp_method method)
{
    return (unsigned)method < (unsigned)ESP_COUNT(method_names) ? method_names[method] : "unknown";
}

const char *esp_targets_name(esp_targets targets)
{
    return (unsigned)targets < (unsigned)ESP_COUNT(targets_names) ? targets_names[targets]
                                                                  : "unknown";
}

/* ---- what can be made ---- */

static esp_status list_linears(esp_calibration *calibration, esp_error *error)
{
    int64_t layers = esp_walk_info(calibration->dense)->layers, count = 0;
    for (int64_t layer = 0; layer < layers; layer++) {
        for (int k = 0; esp_walk_linear(calibration->dense, layer, k) >= 0; k++) {
            count++;
        }
    }
    calibration->linears =
        esp_alloc_array(calibration->context, (size_t)count, sizeof *calibration->linears);
    if (calibration->linears == NULL) {
        return esp_fail_memory(error, (size_t)count * sizeof *calibration->linears, "layers");
    }
    for (int64_t layer = 0; layer < layers; layer++) {
        int64_t index;
        for (int k = 0; (index = esp_walk_linear(calibration->dense, layer, k)) >= 0; k++) {
            esp_weight_info weight = esp_checkpoint_get(calibration->checkpoint, index);
            calibration->linears[calibration->linear_count++] = (esp_calibrated_linear){
                .index = index, .layer = layer, .name = weight.name, .group = -1};
            calibration->total += (double)weight.shape[0] * (double)weight.shape[1];
            calibration->summary.widest_in =
                ESP_MAX(calibration->summary.widest_in, weight.shape[1]);
        }
    }
    return ESP_OK;
}

esp_calibrated_linear *esp_calibration_linear(const esp_calibration *calibration, int64_t index)
{
    for (int64_t i = 0; i < calibration->linear_count; i++) {
        if (calibration->linears[i].index == index) {
            return &calibration->linears[i];
        }
    }
    return NULL;
}

/* ---- enough samples? ---- */

static esp_status check_samples(esp_calibration *calibration, esp_error *error)
{
    esp_calibration_summary *summary = &calibration->summary;
    const esp_calibration_options *options = calibration->options;
    summary->tokens_per_input = (double)summary->tokens / (double)ESP_MAX(1, summary->widest_in);
    bool solves = options->refit || options->method >= ESP_METHOD_SPARSE_GPT;
    if (solves && summary->tokens < summary->widest_in) {
        return esp_fail(
            error, ESP_BAD_ARGUMENT, "calibrate.too_short",
            "%s: %lld tokens for layers that read %lld features: weights would be fitted to "
            "accidents; at least as many tokens are needed, and 20 times as many wanted",
            esp_calibration_source(options), (long long)summary->tokens,
            (long long)summary->widest_in);
    }
    if (summary->tokens_per_input < 20 && esp_calibration_looks(options)) {
        esp_log(
            calibration->context, ESP_LOG_WARNING,
            "%lld calibration tokens are %.1f for each input feature of the widest layer (%lld); "
            "20 are wanted: expect less on other data than the errors say",
            (long long)summary->tokens, summary->tokens_per_input, (long long)summary->widest_in);
    }
    return ESP_OK;
}

esp_status esp_calibration_step(const esp_calibration *calibration, double share, double weights,
                                esp_error *error)
{
    const esp_prune_options *prune = calibration->prune;
    if (prune->progress != NULL &&
        !prune->progress(prune->user, "calibrating", calibration->done + share * weights,
                         calibration->total, "weights")) {
        const char *kept = calibration->options->state_dir;
        return esp_fail(error, ESP_CANCELLED, "cancelled",
                        "calibrating was interrupted; nothing was written%s%s",
                        kept != NULL ? ", and finished layers are kept in " : "",
                        kept != NULL ? kept : "");
    }
    return ESP_OK;
}

/* ---- one layer ---- */

static void report_layer(esp_calibration *calibration, esp_calibrated_linear *linear,
                         const esp_calibrated_layer *layer, char *note)
{
    const esp_calibration_options *options = calibration->options;
    if (esp_calibration_looks(options)) {
        int used = snprintf(note, ESP_MAKER_NOTE, "error %.4g", layer->error);
        if (options->refit && used > 0 && used < ESP_MAKER_NOTE) {
            snprintf(note + used, (size_t)(ESP_MAKER_NOTE - used), ", %.4g before the refit",
                     layer->masked_error);
        }
    }
    linear->pruned = true;
    linear->error = layer->error;
    linear->masked_error = layer->masked_error;
    linear->own_error = layer->own_error;
    calibration->error_sum += layer->error;
    calibration->summary.dead_inputs += layer->dead_inputs;
    calibration->pruned_count++;
    if (options->on_layer != NULL) {
        options->on_layer(options->user, layer);
    }
}

esp_status esp_calibration_replace(esp_calibration *calibration, const char *name,
                                   const esp_tensor *values, esp_error *error)
{
    static const char suffix[] = ".weight";
    size_t length = strlen(name) - (sizeof suffix - 1);
    char *stem = esp_strndup(calibration->context, name, length);
    if (stem == NULL) {
        return esp_fail_memory(error, length, "a name");
    }
    esp_status status = esp_walk_replace(calibration->pruned, stem, values, error);
    esp_release(calibration->context, stem);
    return status;
}

/* In the model's own order, in which it is run. */
static esp_status replace_permuted(esp_calibration *calibration, const char *name,
                                   const esp_tensor *values, esp_error *error)
{
    esp_context *context = calibration->context;
    size_t bytes = 0;
    esp_tensor own;
    ESP_TRY(esp_tensor_size(values, NULL, &bytes, error));
    ESP_TRY(esp_tensor_create(context, values->dtype, values->rank, values->shape, &own, error));
    memcpy(own.data, values->data, bytes);
    esp_status status = esp_permutation_undo(calibration->prune->permutation, name, &own, error);
    status = status == ESP_OK ? esp_calibration_replace(calibration, name, &own, error) : status;
    esp_tensor_free(context, &own);
    return status;
}

/* Mask and values from the inputs. */
static esp_status find(esp_calibration *calibration, const esp_calibrated_linear *linear,
                       const esp_pattern *pattern, esp_tensor *values, esp_mask **mask,
                       esp_calibrated_layer *report, esp_error *error)
{
    double weights = (double)values->shape[0] * (double)values->shape[1];
    if (esp_calibration_looks(calibration->options)) {
        double start = esp_seconds();
        ESP_TRY(esp_calibration_collect(calibration, linear, error));
        report->moments_seconds = esp_seconds() - start;
        report->tokens = calibration->inputs.tokens;
        report->dead_inputs = calibration->inputs.dead;
    }
    ESP_TRY(esp_calibration_step(calibration, 0.5, weights, error));
    return esp_calibration_prune(calibration, linear, pattern, values, mask, report, error);
}

static esp_status recall_or_find(esp_calibration *calibration, const esp_calibrated_linear *linear,
                                 const esp_pattern *pattern, esp_tensor *values, esp_mask **mask,
                                 esp_calibrated_layer *report, esp_error *error)
{
    char key[ESP_STATE_KEY];
    esp_mask *found = NULL;
    ESP_TRY(
        esp_calibration_recall(calibration, linear, pattern, values, &found, report, key, error));
    if (found == NULL) {
        ESP_TRY(find(calibration, linear, pattern, values, &found, report, error));
        esp_status status =
            esp_calibration_remember(calibration, linear, key, values, found, report, error);
        if (status != ESP_OK) {
            esp_mask_free(found);
            return status;
        }
    }
    *mask = found;
    return ESP_OK;
}

static esp_status make(void *user, int64_t index, const esp_pattern *pattern, esp_tensor *values,
                       esp_mask **mask, char *note, esp_error *error)
{
    esp_calibration *calibration = user;
    esp_calibrated_linear *linear = esp_calibration_linear(calibration, index);
    esp_calibrated_layer report = {.name = linear->name};
    double weights = (double)values->shape[0] * (double)values->shape[1];
    bool looks = esp_calibration_looks(calibration->options);
    ESP_TRY(esp_calibration_check_dense(calibration, values, error));
    if (looks) {
        ESP_TRY(esp_calibration_advance(calibration, linear->layer, error));
    }
    ESP_TRY(recall_or_find(calibration, linear, pattern, values, mask, &report, error));
    if (looks && !calibration->options->dense_inputs) {
        ESP_TRY(calibration->prune->permutation != NULL
                    ? replace_permuted(calibration, linear->name, values, error)
                    : esp_calibration_replace(calibration, linear->name, values, error));
    }
    calibration->done += weights;
    report_layer(calibration, linear, &report, note);
    return ESP_OK;
}

/* ---- the record ---- */

static int compare(const void *a, const void *b)
{
    double first = *(const double *)a, second = *(const double *)b;
    return (first > second) - (first < second);
}

static double median(double *values, int64_t count)
{
    qsort(values, (size_t)count, sizeof *values, compare);
    return count > 0 ? (values[(count - 1) / 2] + values[count / 2]) / 2 : 0;
}

static esp_status find_medians(esp_calibration *calibration, esp_error *error)
{
    esp_calibration_summary *summary = &calibration->summary;
    int64_t count = 0, most = calibration->linear_count;
    double *errors = esp_alloc_array(calibration->context, (size_t)(3 * most), sizeof *errors);
    if (errors == NULL) {
        return esp_fail_memory(error, (size_t)(3 * most) * sizeof *errors, "errors of layers");
    }
    for (int64_t i = 0; i < most; i++) {
        const esp_calibrated_linear *linear = &calibration->linears[i];
        if (linear->pruned) {
            errors[count] = linear->error;
            errors[most + count] = linear->masked_error;
            errors[2 * most + count++] = linear->own_error;
        }
    }
    summary->median_error = median(errors, count);
    summary->median_masked_error = median(errors + most, count);
    summary->median_own_error = median(errors + 2 * most, count);
    esp_release(calibration->context, errors);
    return ESP_OK;
}

/* 0: the method has none */
static double norm_power_of(const esp_calibration_options *options)
{
    return options->norm_power > 0               ? options->norm_power
           : options->method == ESP_METHOD_WANDA ? 1
           : options->method == ESP_METHOD_RIA   ? 0.5
                                                 : 0;
}

static void finish_summary(esp_calibration *calibration)
{
    esp_calibration_summary *summary = &calibration->summary;
    const esp_calibration_options *options = calibration->options;
    summary->mean_error = calibration->pruned_count > 0
                              ? calibration->error_sum / (double)calibration->pruned_count
                              : 0;
    summary->damping = options->damping > 0 ? options->damping : 0.01;
    summary->norm_power = norm_power_of(options);
    summary->algebra = esp_algebra_name(calibration->algebra);
    memcpy(summary->layers_on, calibration->device->name, sizeof summary->layers_on);
}

static esp_status record(void *user, esp_buffer *json, esp_error *error)
{
    esp_calibration *calibration = user;
    const esp_calibration_options *options = calibration->options;
    const esp_calibration_summary *summary = &calibration->summary;
    finish_summary(calibration);
    ESP_TRY(find_medians(calibration, error));
    esp_buffer_printf(json, "{\"method\": \"%s\", \"refit\": %s, \"targets\": \"%s\"",
                      esp_method_name(options->method), options->refit ? "true" : "false",
                      esp_targets_name(options->targets));
    esp_buffer_printf(json, ", \"gradual\": %s, \"turned_values\": %s",
                      options->gradual ? "true" : "false", options->turn_values ? "true" : "false");
    esp_buffer_printf(json, ", \"inputs\": \"%s\"", options->dense_inputs ? "dense" : "pruned");
    esp_buffer_printf(json, ", \"norm_power\": %g", norm_power_of(options));
    esp_buffer_printf(json, ", \"dead_inputs\": %lld", (long long)summary->dead_inputs);
    esp_buffer_printf(json, ", \"samples\": %lld, \"tokens\": %lld, \"data\": \"%s\"",
                      (long long)summary->samples, (long long)summary->tokens,
                      options->images != NULL ? "images" : "text");
    esp_buffer_printf(json, ", \"data_crc32c\": \"%08x\", \"seed\": %llu, \"damping\": %g",
                      (unsigned)summary->data_crc32c, (unsigned long long)options->seed,
                      summary->damping);
    esp_buffer_printf(json, ", \"mean_error\": %.9g, \"median_error\": %.9g", summary->mean_error,
                      summary->median_error);
    esp_buffer_printf(json, ", \"algebra\": \"%s\"}", summary->algebra);
    return ESP_OK;
}

/* ---- all of it ---- */

esp_status esp_calibration_check(const esp_calibration_options *options, esp_error *error)
{
    if ((unsigned)options->method > ESP_METHOD_VENOM ||
        (unsigned)options->targets > ESP_TARGETS_LAYER) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "calibrate.bad_method",
                        "method %d or targets %d are none of the known ones", (int)options->method,
                        (int)options->targets);
    }
    if (options->turn_values && (options->respect || !esp_calibration_looks(options))) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "calibrate.bad_options",
                        "values can only be turned by a method that looks at inputs, and where "
                        "zeros need not stay");
    }
    if (options->gradual &&
        (!options->refit || options->respect || options->method > ESP_METHOD_SPARSE_GPT)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "calibrate.bad_options",
                        "gradual pruning refits between its steps: it needs a refit and a method "
                        "that chooses masks by scores (magnitude to sparsegpt; obs, joint and "
                        "venom look at what goes together anyway), and zeros need not stay");
    }
    bool has_power = options->method == ESP_METHOD_WANDA || options->method == ESP_METHOD_RIA;
    if (!(options->norm_power >= 0) || options->norm_power > 8 ||
        (options->norm_power > 0 && !has_power)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "calibrate.bad_options",
                        "a power of %g of the inputs' norm: methods wanda and ria have one, up to "
                        "8 (0: their own, 1 and 0.5)",
                        options->norm_power);
    }
    if (!(options->damping >= 0) || options->damping > 100 || options->tokens < 0 ||
        options->context < 0) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "calibrate.bad_options",
                        "damping %g (0 to 100), tokens %lld or context %lld (0 or more) is out of "
                        "range",
                        options->damping, (long long)options->tokens, (long long)options->context);
    }
    return ESP_OK;
}

static esp_status prune_all(esp_calibration *calibration, const char *out_dir,
                            esp_prune_summary *summary, esp_error *error)
{
    size_t count = (size_t)calibration->linear_count;
    int64_t *order = esp_alloc_array(calibration->context, count, sizeof *order);
    if (order == NULL) {
        return esp_fail_memory(error, count * sizeof *order, "layers");
    }
    for (size_t i = 0; i < count; i++) {
        order[i] = calibration->linears[i].index;
    }
    const esp_layer_maker maker = {.user = calibration,
                                   .order = order,
                                   .count = calibration->linear_count,
                                   .why_not = "not reached by calibration",
                                   .make = make,
                                   .record = record,
                                   .record_name = "calibration"};
    esp_prune_options prune = *calibration->prune;
    prune.progress = NULL; /* the calibration shows its own */
    esp_status status = esp_prune_by(calibration->context, calibration->checkpoint, out_dir, &prune,
                                     &maker, summary, error);
    esp_release(calibration->context, order);
    return status;
}

static esp_status open_device_algebra(esp_device *device, esp_device_algebra **algebra,
                                      esp_error *error)
{
    return device->backend->algebra_open != NULL
               ? device->backend->algebra_open(device, algebra, error)
               : esp_fail(error, ESP_UNSUPPORTED, "calibrate.bad_device",
                          "device '%s' has no linear algebra for calibration; use --device cpu",
                          device->name);
}

/* A device with memory of its own does the algebra, and runs the layers where it can; else the host
 * does. */
static esp_status share_out(esp_calibration *calibration, esp_error *error)
{
    esp_device *device = calibration->device;
    esp_device_algebra *algebra = NULL;
    bool fits = false;
    esp_error why = {0};
    if (!esp_device_is_far(device)) {
        return ESP_OK;
    }
    ESP_TRY(esp_device_open(calibration->context, "cpu", &calibration->host, error));
    esp_status status = open_device_algebra(device, &algebra, &why);
    if (status == ESP_UNSUPPORTED && calibration->host_will_do) {
        esp_log(calibration->context, ESP_LOG_WARNING,
                "device '%s' has no algebra for calibration (%s), so the host calibrates, which "
                "takes many times longer",
                device->name, why.code);
        calibration->device = calibration->host;
        return ESP_OK;
    }
    if (status != ESP_OK) {
        return esp_fail(error, status, why.code, "%s", why.message);
    }
    esp_algebra_set_device(calibration->algebra, algebra);
    ESP_TRY(esp_walk_fits(device, calibration->checkpoint, &fits, error));
    calibration->device = fits ? device : calibration->host;
    return ESP_OK;
}

esp_status esp_calibration_open(esp_calibration *calibration, const char *model_dir,
                                esp_error *error)
{
    calibration->layer = -1;
    calibration->inputs.group = -1;
    ESP_TRY(esp_calibration_check(calibration->options, error));
    ESP_TRY(esp_checkpoint_open(calibration->context, model_dir, &calibration->checkpoint, error));
    ESP_TRY(esp_algebra_open(calibration->context, &calibration->algebra, error));
    ESP_TRY(share_out(calibration, error));
    ESP_TRY(esp_calibration_load(calibration, model_dir, error));
    ESP_TRY(list_linears(calibration, error));
    ESP_TRY(check_samples(calibration, error));
    return esp_calibration_turn_open(calibration, error);
}

void esp_calibration_close(esp_calibration *calibration)
{
    esp_group_inputs_free(calibration, &calibration->inputs);
    esp_calibration_turn_close(calibration);
    esp_calibration_drop(calibration);
    esp_release(calibration->context, calibration->linears);
    esp_release(calibration->context, calibration->layer_room);
    esp_algebra_close(calibration->algebra);
    esp_device_close(calibration->host);
    esp_checkpoint_close(calibration->checkpoint);
}

esp_status esp_prune_calibrated(esp_device *device, const char *model_dir, const char *out_dir,
                                const esp_prune_options *prune,
                                const esp_calibration_options *options, esp_prune_summary *summary,
                                esp_calibration_summary *calibration, esp_error *error)
{
    double start = esp_seconds();
    if (out_dir == NULL || prune->dry_run) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "prune.no_target",
                        "calibrated pruning writes a new folder: give its name, and no dry run");
    }
    esp_calibration job = {
        .context = device->context, .device = device, .prune = prune, .options = options};
    esp_status status = esp_calibration_open(&job, model_dir, error);
    status = status == ESP_OK ? esp_calibration_state_check(&job, error) : status;
    status = status == ESP_OK ? prune_all(&job, out_dir, summary, error) : status;
    if (status == ESP_OK) {
        esp_calibration_state_drop(&job);
    }
    job.summary.recalled = job.recalled;
    job.summary.turned_layers = status == ESP_OK ? esp_calibration_turned(&job) : 0;
    job.summary.seconds = esp_seconds() - start;
    esp_calibration_close(&job);
    if (status == ESP_OK && calibration != NULL) {
        *calibration = job.summary;
    }
    return status;
}
