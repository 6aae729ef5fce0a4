/* The comparison of every candidate with the reference back end, before anything is timed.
 *
 * On integers the product is exact in f32, so results must be equal; activations other than relu
 * are left out there. On reals a sum of n products of f32 in any order is within
 * (n + 2) 2^-24 sum |w||x| of the exact one (Higham, Accuracy and Stability, 3.1); the epilogue
 * passes the bound on by its slopes, and both sides round once to the output type. */
#include <math.h>

#include "plan/tune.h"

#define EPS 0x1p-23 /* twice the unit roundoff: first-order terms with room for the others */

static esp_matmul_problem shown_problem(const esp_matmul_problem *problem, tune_numbers numbers)
{
    esp_matmul_problem shown = *problem;
    if (numbers == TUNE_INTEGERS) {
        shown.epilogue &= ESP_EP_SCALE | ESP_EP_BIAS | ESP_EP_RELU | ESP_EP_RESIDUAL;
    }
    return shown;
}

static esp_status run_reference(tune_job *job, tune_numbers numbers, esp_error *error)
{
    esp_matmul_problem problem = shown_problem(&job->problem, numbers);
    const esp_plan_options options = ESP_PLAN_OPTIONS_INIT;
    const tune_memory *host = &job->host;
    esp_packed *weight = NULL;
    esp_plan plan;
    problem.tokens = job->vectors;
    ESP_TRY(esp_plan_fill(job->ref, &problem, &options, &plan, error));
    ESP_TRY(esp_pack(job->ref, job->sparse, &weight, error));
    esp_matmul_args args = {.weight = weight,
                            .x = host->few_x,
                            .y = host->few_y,
                            .scale = host->scale,
                            .bias = host->bias,
                            .residual = host->few_residual,
                            .workspace = esp_alloc(job->context, plan.workspace_bytes)};
    esp_status status = args.workspace != NULL
                            ? esp_matmul_run(&plan, &args, error)
                            : esp_fail_memory(error, plan.workspace_bytes, "a workspace");
    esp_release(job->context, args.workspace);
    esp_packed_free(weight);
    return status;
}

/* ---- the bound ---- */

static int64_t place(esp_layout layout, int64_t features, int64_t tokens, int64_t feature,
                     int64_t token)
{
    return layout == ESP_FEATURE_MAJOR ? feature * tokens + token : token * features + feature;
}

/* sums[r] = sum |w||x| of row o for each vector; x: [vectors][in] of |x|. */
static void row_magnitudes(const tune_job *job, int64_t o, const float *x, float *w, double *sums)
{
    int64_t in = job->problem.in_features;
    size_t row = (size_t)in * esp_dtype_bytes(job->dense.dtype);
    esp_widen(job->dense.dtype, (const char *)job->dense.data + (size_t)o * row, in, w);
    for (int64_t r = 0; r < job->vectors; r++) {
        double sum = 0;
        for (int64_t f = 0; f < in; f++) {
            sum += fabs((double)w[f]) * (double)x[r * in + f];
        }
        sums[r] = 1.02 * sum; /* bf16 rounding of inputs */
    }
}

/* Bound of row o before the activation; *size: how large it can be. */
static double linear_bound(const tune_job *job, int64_t o, double sum, double *size)
{
    unsigned epilogue = job->problem.epilogue;
    double magnitude = sum, bound = (double)(job->problem.in_features + 2) * EPS / 2 * sum;
    if ((epilogue & ESP_EP_SCALE) != 0) {
        magnitude *= fabs((double)job->host.scale[o]);
        bound = bound * fabs((double)job->host.scale[o]) + EPS * magnitude;
    }
    if ((epilogue & ESP_EP_BIAS) != 0) {
        magnitude += fabs((double)job->host.bias[o]);
        bound += EPS * magnitude;
    }
    *size = magnitude;
    return bound;
}

/* Of output row o, vector r; sums: of weight row o, or of rows 2o and 2o + 1 for swiglu. */
static double output_bound(const tune_job *job, int64_t o, int64_t r, const double *sums,
                           const double *up_sums)
{
    const double slope = 1.13; /* gelu's largest; silu 1.1, relu 1 */
    const esp_matmul_problem *problem = &job->problem;
    int64_t at = place(problem->y_layout, tune_rows(problem), job->vectors, o, r);
    double size, up_size, bound;
    if ((problem->epilogue & ESP_EP_SWIGLU) != 0) {
        double gate = linear_bound(job, 2 * o, sums[r], &size);
        double up = linear_bound(job, 2 * o + 1, up_sums[r], &up_size);
        bound = slope * gate * (up_size + up) + size * up + 8 * EPS * size * up_size;
        size *= up_size;
    } else {
        bound = linear_bound(job, o, sums[r], &size) * slope + 8 * EPS * size;
    }
    if ((problem->epilogue & ESP_EP_RESIDUAL) != 0) {
        double residual = (double)esp_weight_at(problem->out_type, job->host.few_residual, at);
        bound += EPS * (size + fabs(residual));
    }
    double step = problem->out_type == ESP_F32   ? EPS
                  : problem->out_type == ESP_F16 ? 0x1p-10
                                                 : 0x1p-7;
    double smallest = problem->out_type == ESP_F16 ? 0x1p-24 : 0x1p-126;
    double expected = (double)esp_weight_at(problem->out_type, job->host.few_y, at);
    return bound + step * (fabs(expected) + bound) + smallest;
}

/* few_y holds what the reference says. */
static esp_status find_bounds(tune_job *job, esp_error *error)
{
    const esp_matmul_problem *problem = &job->problem;
    int64_t in = problem->in_features, rows = tune_rows(problem);
    bool pairs = (problem->epilogue & ESP_EP_SWIGLU) != 0;
    double sums[2][64]; /* vectors are fewer */
    size_t floats = (size_t)in * (size_t)(job->vectors + 1);
    float *x = esp_alloc_array(job->context, floats, sizeof *x), *w;
    if (x == NULL) {
        return esp_fail_memory(error, floats * sizeof *x, "a measurement");
    }
    w = x + in * job->vectors;
    for (int64_t r = 0; r < job->vectors; r++) {
        for (int64_t f = 0; f < in; f++) {
            int64_t at = place(problem->x_layout, in, job->vectors, f, r);
            x[r * in + f] = fabsf(esp_weight_at(problem->act_type, job->host.few_x, at));
        }
    }
    for (int64_t o = 0; o < rows; o++) {
        row_magnitudes(job, pairs ? 2 * o : o, x, w, sums[0]);
        if (pairs) {
            row_magnitudes(job, 2 * o + 1, x, w, sums[1]);
        }
        for (int64_t r = 0; r < job->vectors; r++) {
            job->host.bounds[o * job->vectors + r] = output_bound(job, o, r, sums[0], sums[1]);
        }
    }
    esp_release(job->context, x);
    return ESP_OK;
}

esp_status tune_expect(tune_job *job, tune_numbers numbers, esp_error *error)
{
    const esp_matmul_problem *problem = &job->problem;
    size_t outputs = (size_t)tune_rows(problem) * (size_t)job->vectors;
    ESP_TRY(run_reference(job, numbers, error));
    if (numbers == TUNE_REALS) {
        ESP_TRY(find_bounds(job, error));
        ESP_TRY(esp_device_upload(job->device, job->mirror.bounds, job->host.bounds,
                                  outputs * sizeof *job->host.bounds, error));
    }
    size_t y_bytes =
        (size_t)problem->out_features * (size_t)job->vectors * esp_dtype_bytes(problem->out_type);
    return esp_device_upload(job->device, job->mirror.few_y, job->host.few_y, y_bytes, error);
}

/* ---- comparing ---- */

/* The largest difference of any output over its bound; above 1, or NaN: wrong. */
static esp_status compare(tune_job *job, const esp_matmul_problem *problem, tune_numbers numbers,
                          double *worst, esp_error *error)
{
    esp_difference difference = {.layout = problem->y_layout,
                                 .rows = tune_rows(problem),
                                 .tokens = problem->tokens,
                                 .vectors = job->vectors,
                                 .dtype = problem->out_type,
                                 .map = job->mirror.map,
                                 .few = job->mirror.few_y,
                                 .bounds = numbers == TUNE_REALS ? job->mirror.bounds : NULL,
                                 .all = job->y};
    if (job->device->backend->differ != NULL) {
        return job->device->backend->differ(job->device, &difference, worst, error);
    }
    *worst = esp_differ_host(&difference);
    return ESP_OK;
}

/* Y and the workspace hold NaN before: what is not written shows. */
static esp_status run(tune_job *job, const esp_plan *plan, esp_error *error)
{
    const tune_memory *mirror = &job->mirror;
    const esp_matmul_problem *problem = &plan->problem;
    esp_matmul_args args = {.weight = job->weight,
                            .x = job->x,
                            .y = job->y,
                            .scale = mirror->scale,
                            .bias = mirror->bias,
                            .residual = job->residual,
                            .workspace = job->workspace};
    size_t y_bytes = (size_t)problem->out_features * (size_t)problem->tokens *
                     esp_dtype_bytes(problem->out_type);
    ESP_TRY(esp_device_fill(job->device, job->y, 0xff, y_bytes, error));
    ESP_TRY(esp_device_fill(job->device, job->workspace, 0xff, plan->workspace_bytes, error));
    ESP_TRY(esp_matmul_run(plan, &args, error));
    return esp_device_wait(job->device, error);
}

static esp_status verify_one(tune_job *job, const tune_point *point, tune_numbers numbers,
                             tune_runner *runner, esp_error *error)
{
    esp_matmul_problem problem = shown_problem(&point->problem, numbers);
    esp_plan_options options = {
        .kernel_glob = runner->candidate.kernel, .forms = PLAN_ALL_FORMS, .ignore_tuning = true};
    esp_plan plan;
    if (esp_plan_fill(job->device, &problem, &options, &plan, NULL) != ESP_OK) {
        runner->refused = "it cannot run the product without its activation";
        return ESP_OK;
    }
    ESP_TRY(tune_workspace(job, plan.workspace_bytes, error));
    esp_status status = run(job, &plan, error);
    if (status != ESP_OK) {
        runner->refused = "it failed to run";
        return status == ESP_OUT_OF_MEMORY ? status : (esp_status)ESP_OK;
    }
    ESP_TRY(compare(job, &problem, numbers, &runner->error, error));
    if (!(runner->error <= 1)) {
        runner->refused = numbers == TUNE_INTEGERS
                              ? "it differs from the reference on integers"
                              : "it differs from the reference by more than rounding";
    }
    return ESP_OK;
}

esp_status tune_verify(tune_job *job, tune_point *point, tune_numbers numbers, esp_error *error)
{
    esp_matmul_problem shown = shown_problem(&point->problem, numbers);
    ESP_TRY(tune_operands_spread(job, &shown, error));
    for (int i = 0; i < point->count; i++) {
        ESP_TRY(tune_step(job, "verifying", error));
        if (point->runners[i].refused == NULL) {
            ESP_TRY(verify_one(job, point, numbers, &point->runners[i], error));
        }
    }
    return ESP_OK;
}
