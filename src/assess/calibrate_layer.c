/* One linear layer: target, mask, values, error.
 *
 * The target T are the weights that give the wanted outputs best without any mask:
 *     min over T of |T X - Y|^2 + d |T - W|^2,   T (X X^T + d) = Y X^T + d W,
 * X being the pruned model's inputs and Y the dense model's outputs, W Z of its own inputs Z, plus
 * what the residual stream lacks. With T every method and the refit have one form: what |(Q - T) X|
 * is. For targets of the layer itself T is W. */
#include <math.h>

#include "assess/calibrate_layer.h"

#define ROWS_AT_ONCE 16

bool esp_calibration_looks(const esp_calibration_options *options)
{
    return options->refit || options->method > ESP_METHOD_SQUARE;
}

static bool needs_target(const esp_calibration_options *options)
{
    return options->refit || options->method >= ESP_METHOD_SPARSE_GPT;
}

typedef struct matrix_copy {
    double *to;
    const double *from;
    int64_t in;
} matrix_copy;

static void copy_rows(void *user, int64_t begin, int64_t end, int thread)
{
    const matrix_copy *copy = user;
    (void)thread;
    memcpy(copy->to + begin * copy->in, copy->from + begin * copy->in,
           (size_t)((end - begin) * copy->in) * sizeof *copy->to);
}

void esp_layer_copy(const esp_layer_job *job, double *to, const double *from)
{
    matrix_copy both = {to, from, job->in};
    esp_parallel_for(job->calibration->context, job->out, ROWS_AT_ONCE, copy_rows, &both);
}

static esp_status multiply(const esp_layer_job *job, const double *a, const double *b, double *c,
                           esp_error *error)
{
    const esp_algebra *algebra = job->calibration->algebra;
    esp_device_algebra *device = esp_algebra_device(algebra);
    const esp_algebra_product product = {.rows = job->out,
                                         .columns = job->in,
                                         .depth = job->in,
                                         .alpha = 1,
                                         .a = a,
                                         .a_stride = job->in,
                                         .b = b,
                                         .b_stride = job->in,
                                         .c = c,
                                         .c_stride = job->in};
    if (device != NULL) {
        return device->ops->multiply(device, &product, error);
    }
    esp_algebra_multiply(algebra, &product);
    return ESP_OK;
}

/* What several calls in a row read stays with a device that does the algebra. */
static esp_status hold(const esp_layer_job *job, const double *matrix, esp_error *error)
{
    esp_device_algebra *device = esp_algebra_device(job->calibration->algebra);
    return device != NULL ? device->ops->hold(device, matrix, job->out * job->in, false, error)
                          : ESP_OK;
}

static void drop(const esp_layer_job *job, const double *matrix)
{
    esp_device_algebra *device = esp_algebra_device(job->calibration->algebra);
    if (device != NULL) {
        device->ops->drop(device, matrix);
    }
}

static esp_status not_definite(const esp_calibration *calibration, esp_error *error)
{
    return esp_fail(error, ESP_CHECK_FAILED, "calibrate.not_definite",
                    "the inputs' second moments cannot be inverted, with %g added to their "
                    "diagonal: give more samples or a larger damping",
                    calibration->inputs.damping);
}

esp_status esp_calibration_invert(esp_calibration *calibration, esp_error *error)
{
    esp_group_inputs *inputs = &calibration->inputs;
    size_t count = (size_t)(inputs->in * inputs->in);
    if (inputs->inverse != NULL) {
        return ESP_OK;
    }
    double *inverse = esp_alloc_large(calibration->context, count, sizeof *inverse);
    if (inverse == NULL) {
        return esp_fail_memory(error, count * sizeof *inverse, "an inverse");
    }
    esp_device_algebra *device = esp_algebra_device(calibration->algebra);
    if (device != NULL && device->ops->invert != NULL) {
        bool definite = false;
        esp_status status =
            device->ops->invert(device, inputs->gram, inputs->in, inverse, &definite, error);
        if (status != ESP_OK || !definite) {
            esp_release(calibration->context, inverse);
            return status != ESP_OK ? status : not_definite(calibration, error);
        }
        inputs->inverse = inverse;
        return ESP_OK;
    }
    memcpy(inverse, inputs->gram, count * sizeof *inverse);
    if (!esp_algebra_factor(calibration->algebra, inverse, inputs->in)) {
        esp_release(calibration->context, inverse);
        return not_definite(calibration, error);
    }
    esp_algebra_invert(calibration->algebra, inverse, inputs->in);
    inputs->inverse = inverse;
    return ESP_OK;
}

static void add_to_goal(void *user, int64_t begin, int64_t end, int thread)
{
    const esp_layer_job *job = user;
    const esp_group_inputs *inputs = &job->calibration->inputs;
    (void)thread;
    for (int64_t i = begin * job->in; i < end * job->in; i++) {
        job->goal[i] += inputs->damping * job->weights[i];
        job->goal[i] += inputs->residual != NULL ? inputs->residual[i] : 0;
    }
}

/* goal and target; without other inputs than the pruned model's, T is W exactly. */
static esp_status find_target(esp_layer_job *job, esp_error *error)
{
    const esp_group_inputs *inputs = &job->calibration->inputs;
    if (inputs->cross == NULL) {
        esp_layer_copy(job, job->target, job->weights);
        return multiply(job, job->weights, inputs->gram, job->goal, error);
    }
    ESP_TRY(multiply(job, job->weights, inputs->cross, job->goal, error));
    esp_parallel_for(job->calibration->context, job->out, ROWS_AT_ONCE, add_to_goal, job);
    ESP_TRY(esp_calibration_invert(job->calibration, error));
    return multiply(job, job->goal, inputs->inverse, job->target, error);
}

typedef struct cut_job {
    const esp_layer_job *layer;
    esp_mask *mask;
} cut_job;

static void cut_rows(void *user, int64_t begin, int64_t end, int thread)
{
    const cut_job *cut = user;
    const esp_layer_job *job = cut->layer;
    bool respect = job->calibration->options->respect;
    (void)thread;
    for (int64_t r = begin; r < end; r++) {
        uint64_t *words = esp_mask_row_mut(cut->mask, r);
        for (int64_t j = 0; j < job->in; j++) {
            int64_t at = r * job->in + j;
            if (respect && job->weights[at] == 0) {
                words[j / 64] &= ~((uint64_t)1 << j % 64);
            }
            if ((words[j / 64] >> j % 64 & 1) == 0) {
                job->result[at] = 0;
            }
        }
    }
}

/* Zeros of the weights leave the mask, where they are to stay. */
static void cut_to_mask(const esp_layer_job *job, esp_mask *mask)
{
    cut_job cut = {job, mask};
    esp_parallel_for(job->calibration->context, job->out, ROWS_AT_ONCE, cut_rows, &cut);
}

/* ---- values ---- */

static esp_status error_of(const esp_layer_job *job, double energy, double *share, esp_error *error)
{
    double squared = 0;
    ESP_TRY(esp_layer_error(job->calibration->algebra, &job->inputs, job->out, job->result,
                            job->target, &squared, error));
    *share = energy > 0 ? squared / energy : 0;
    return ESP_OK;
}

/* What it does to what it reads; leaves the weights as they were in the target's place. */
static esp_status find_own_error(const esp_layer_job *job, double *share, esp_error *error)
{
    double energy = 0;
    drop(job, job->target);
    esp_layer_copy(job, job->target, job->weights);
    ESP_TRY(hold(job, job->target, error));
    ESP_TRY(esp_layer_energy(job->calibration->algebra, &job->inputs, job->out, job->target,
                             &energy, error));
    return error_of(job, energy, share, error);
}

typedef struct round_job {
    const esp_layer_job *layer;
    esp_tensor *values;
} round_job;

static void round_rows(void *user, int64_t begin, int64_t end, int thread)
{
    const round_job *rounding = user;
    const esp_layer_job *job = rounding->layer;
    esp_dtype dtype = rounding->values->dtype;
    size_t width = esp_dtype_bytes(dtype);
    float row[256];
    (void)thread;
    for (int64_t i = begin * job->in; i < end * job->in; i += ESP_COUNT(row)) {
        int64_t count = ESP_MIN(ESP_COUNT(row), end * job->in - i);
        char *to = (char *)rounding->values->data + (size_t)i * width;
        for (int64_t k = 0; k < count; k++) {
            row[k] = (float)job->result[i + k];
        }
        esp_narrow(dtype, row, count, to);
        esp_widen(dtype, to, count, row);
        for (int64_t k = 0; k < count; k++) {
            job->result[i + k] = (double)row[k];
        }
    }
}

static void round_into(const esp_layer_job *job, esp_tensor *values)
{
    round_job rounding = {job, values};
    esp_parallel_for(job->calibration->context, job->out, ROWS_AT_ONCE, round_rows, &rounding);
}

static void widen_rows(void *user, int64_t begin, int64_t end, int thread)
{
    const round_job *widening = user;
    const esp_layer_job *job = widening->layer;
    const esp_tensor *values = widening->values;
    int64_t first = begin * job->in, count = (end - begin) * job->in;
    const char *from = values->data;
    (void)thread;
    esp_widen(values->dtype, from + (size_t)first * esp_dtype_bytes(values->dtype), count,
              job->scores + first);
    for (int64_t i = first; i < first + count; i++) {
        job->weights[i] = (double)job->scores[i];
    }
}

/* Seconds since *start, which becomes now. */
static double since(double *start)
{
    double before = *start;
    *start = esp_seconds();
    return *start - before;
}

static esp_status prune(esp_layer_job *job, esp_tensor *values, esp_mask **mask,
                        esp_calibrated_layer *report, esp_error *error)
{
    const esp_calibration *calibration = job->calibration;
    bool looks = calibration->judges || esp_calibration_looks(calibration->options);
    double energy = 0, start = esp_seconds();
    esp_refit_report refit = {0};
    if (needs_target(calibration->options)) {
        ESP_TRY(find_target(job, error));
    } else {
        esp_layer_copy(job, job->target, job->weights);
    }
    report->target_seconds = since(&start);
    ESP_TRY(esp_layer_choose(job, mask, error));
    cut_to_mask(job, *mask);
    report->mask_seconds = since(&start);
    if (looks) {
        ESP_TRY(hold(job, job->target, error));
        ESP_TRY(esp_layer_energy(calibration->algebra, &job->inputs, job->out, job->target, &energy,
                                 error));
        ESP_TRY(error_of(job, energy, &report->masked_error, error));
    }
    if (calibration->options->refit) {
        (void)since(&start);
        ESP_TRY(esp_refit(calibration->algebra, &job->inputs, *mask, job->goal, job->result, NULL,
                          &refit, error));
        report->refit_seconds = since(&start);
    }
    round_into(job, values);
    report->iterations = refit.iterations;
    report->residual = refit.residual;
    if (!looks) {
        return ESP_OK;
    }
    ESP_TRY(error_of(job, energy, &report->error, error));
    return find_own_error(job, &report->own_error, error);
}

/* The weights without some of their columns. */
static esp_status do_without(esp_layer_job *job, esp_tensor *values, esp_calibrated_layer *report,
                             esp_error *error)
{
    const esp_calibration *calibration = job->calibration;
    const esp_unit_choice *units = job->units;
    double energy = 0;
    ESP_TRY(find_target(job, error));
    ESP_TRY(esp_calibration_invert(job->calibration, error));
    esp_layer_copy(job, job->result, job->target);
    ESP_TRY(esp_unit_obs(calibration->algebra, job->out, units->units, units->width, units->keep,
                         calibration->inputs.inverse, job->result, units->kept, error));
    ESP_TRY(esp_layer_energy(calibration->algebra, &job->inputs, job->out, job->target, &energy,
                             error));
    round_into(job, values);
    ESP_TRY(error_of(job, energy, &report->error, error));
    report->masked_error = report->error;
    return find_own_error(job, &report->own_error, error);
}

/* With room for it all; mask: of a pruning. */
static esp_status work(esp_layer_job *job, const esp_calibrated_linear *linear, esp_tensor *values,
                       esp_mask **mask, esp_calibrated_layer *report, esp_error *error)
{
    round_job widening = {job, values};
    esp_parallel_for(job->calibration->context, job->out, ROWS_AT_ONCE, widen_rows, &widening);
    ESP_TRY(esp_calibration_turn_weights(job->calibration, linear, job->out, job->in, job->weights,
                                         error));
    return job->units != NULL ? do_without(job, values, report, error)
                              : prune(job, values, mask, report, error);
}

/* Kept from layer to layer, since the system takes long to give so much memory anew. */
static esp_status take_room(esp_layer_job *job, esp_error *error)
{
    esp_calibration *calibration = job->calibration;
    size_t count = (size_t)(job->out * job->in), wanted = 4 * count + (count + 1) / 2;
    if (calibration->layer_doubles < wanted) {
        esp_release(calibration->context, calibration->layer_room);
        calibration->layer_room =
            esp_alloc_large(calibration->context, wanted, sizeof *calibration->layer_room);
        calibration->layer_doubles = calibration->layer_room != NULL ? wanted : 0;
    }
    if (calibration->layer_room == NULL) {
        return esp_fail_memory(error, wanted * sizeof *calibration->layer_room, "a layer in f64");
    }
    job->weights = calibration->layer_room;
    job->goal = job->weights + count;
    job->target = job->goal + count;
    job->result = job->target + count;
    job->scores = (float *)(job->result + count);
    return ESP_OK;
}

static esp_status run(esp_layer_job *job, const esp_calibrated_linear *linear, esp_tensor *values,
                      esp_mask **mask, esp_calibrated_layer *report, esp_error *error)
{
    const esp_calibration *calibration = job->calibration;
    job->out = values->shape[0];
    job->in = values->shape[1];
    job->inputs = (esp_layer_inputs){.in = job->in,
                                     .tokens = calibration->inputs.tokens,
                                     .gram = calibration->inputs.gram,
                                     .norm_power = calibration->options->norm_power};
    ESP_TRY(take_room(job, error));
    esp_status status = work(job, linear, values, mask, report, error);
    drop(job, job->target);
    return status;
}

esp_status esp_calibration_prune(esp_calibration *calibration, const esp_calibrated_linear *linear,
                                 const esp_pattern *pattern, esp_tensor *values, esp_mask **mask,
                                 esp_calibrated_layer *report, esp_error *error)
{
    esp_layer_job job = {.calibration = calibration, .pattern = pattern};
    esp_mask *made = NULL;
    esp_status status = run(&job, linear, values, &made, report, error);
    if (status != ESP_OK) {
        esp_mask_free(made);
        return status;
    }
    *mask = made;
    return ESP_OK;
}

esp_status esp_calibration_remove(esp_calibration *calibration, const esp_calibrated_linear *linear,
                                  const esp_unit_choice *units, esp_tensor *values,
                                  esp_calibrated_layer *report, esp_error *error)
{
    esp_layer_job job = {.calibration = calibration, .units = units};
    return run(&job, linear, values, NULL, report, error);
}
