/* The comparison of every candidate with the reference back end, before anything is timed.
 *
 * On integers the product is exact in f32, so results must be equal; activations other than relu
 * are left out there. On reals a sum of n products of f32 in any order is within
 * (n + 2) 2^-24 sum |w||x| of the exact one (Higham, Accuracy and Stability, 3.1); the epilogue
 * passes the bound on by its slopes, and both sides round once to the output type. */
#include <math.h>

#include "plan/tune.h"

#define EPS 0x1p-23 /* twice the unit roundoff: first-order terms with room for the others */

static esp_matmul_problem shown_problem(const tune_job *job, tune_numbers numbers)
{
    esp_matmul_problem problem = job->problem;
    if (numbers == TUNE_INTEGERS) {
        problem.epilogue &= ESP_EP_SCALE | ESP_EP_BIAS | ESP_EP_RELU | ESP_EP_RESIDUAL;
    }
    return problem;
}

static esp_status run(const tune_job *job, const esp_plan *plan, const esp_packed *weight, bool few,
                      void *workspace, esp_error *error)
{
    esp_matmul_args args = {.weight = weight,
                            .x = few ? job->few_x : job->x,
                            .y = few ? job->few_y : job->y,
                            .scale = job->scale,
                            .bias = job->bias,
                            .residual = few ? job->few_residual : job->residual,
                            .workspace = workspace};
    return esp_matmul_run(plan, &args, error);
}

static esp_status run_reference(tune_job *job, tune_numbers numbers, esp_error *error)
{
    esp_matmul_problem problem = shown_problem(job, numbers);
    const esp_plan_options options = ESP_PLAN_OPTIONS_INIT;
    esp_packed *weight = NULL;
    esp_plan plan;
    problem.tokens = job->vectors;
    ESP_TRY(esp_plan_fill(job->ref, &problem, &options, &plan, error));
    ESP_TRY(esp_pack(job->ref, job->sparse, &weight, error));
    void *workspace = esp_alloc(job->context, plan.workspace_bytes);
    esp_status status = workspace != NULL
                            ? run(job, &plan, weight, true, workspace, error)
                            : esp_fail_memory(error, plan.workspace_bytes, "a workspace");
    esp_release(job->context, workspace);
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
        magnitude *= fabs((double)job->scale[o]);
        bound = bound * fabs((double)job->scale[o]) + EPS * magnitude;
    }
    if ((epilogue & ESP_EP_BIAS) != 0) {
        magnitude += fabs((double)job->bias[o]);
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
        double residual = (double)esp_weight_at(problem->out_type, job->few_residual, at);
        bound += EPS * (size + fabs(residual));
    }
    double step = problem->out_type == ESP_F32   ? EPS
                  : problem->out_type == ESP_F16 ? 0x1p-10
                                                 : 0x1p-7;
    double smallest = problem->out_type == ESP_F16 ? 0x1p-24 : 0x1p-126;
    double expected = (double)esp_weight_at(problem->out_type, job->few_y, at);
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
            x[r * in + f] = fabsf(esp_weight_at(problem->act_type, job->few_x, at));
        }
    }
    for (int64_t o = 0; o < rows; o++) {
        row_magnitudes(job, pairs ? 2 * o : o, x, w, sums[0]);
        if (pairs) {
            row_magnitudes(job, 2 * o + 1, x, w, sums[1]);
        }
        for (int64_t r = 0; r < job->vectors; r++) {
            job->bounds[o * job->vectors + r] = output_bound(job, o, r, sums[0], sums[1]);
        }
    }
    esp_release(job->context, x);
    return ESP_OK;
}

/* ---- comparing ---- */

/* The largest difference of any output over its bound; above 1, or NaN: wrong. */
static double compare(const tune_job *job, tune_numbers numbers)
{
    esp_matmul_problem problem = shown_problem(job, numbers);
    int64_t rows = tune_rows(&problem);
    double worst = 0;
    for (int64_t o = 0; o < rows; o++) {
        for (int64_t t = 0; t < problem.tokens; t++) {
            int64_t v = tune_vector(job, t);
            int64_t at = place(problem.y_layout, rows, problem.tokens, o, t);
            int64_t few = place(problem.y_layout, rows, job->vectors, o, v);
            float got = esp_weight_at(problem.out_type, job->y, at);
            float wanted = esp_weight_at(problem.out_type, job->few_y, few);
            double off = got == wanted              ? 0
                         : numbers == TUNE_INTEGERS ? (double)INFINITY
                                                    : fabs((double)got - (double)wanted) /
                                                          job->bounds[o * job->vectors + v];
            if (!(off <= worst)) { /* NaN comes through, and stays */
                worst = off;
                if (isnan(off)) {
                    return off;
                }
            }
        }
    }
    return worst;
}

static esp_status verify_one(tune_job *job, tune_numbers numbers, const esp_packed *weight,
                             tune_runner *runner, esp_error *error)
{
    esp_matmul_problem problem = shown_problem(job, numbers);
    esp_plan_options options = {.kernel_glob = runner->candidate.kernel,
                                .forms = ESP_FORM_SPARSE | ESP_FORM_DENSE,
                                .ignore_tuning = true};
    esp_plan plan;
    if (esp_plan_fill(job->device, &problem, &options, &plan, NULL) != ESP_OK) {
        runner->refused = "it cannot run the product without its activation";
        return ESP_OK;
    }
    void *workspace = esp_alloc(job->context, plan.workspace_bytes);
    if (workspace == NULL) {
        return esp_fail_memory(error, plan.workspace_bytes, "a workspace");
    }
    memset(job->y, 0xff, job->y_bytes); /* NaN: what is not written shows */
    memset(workspace, 0xff, plan.workspace_bytes);
    esp_status status = run(job, &plan, weight, false, workspace, error);
    esp_release(job->context, workspace);
    if (status != ESP_OK) {
        runner->refused = "it failed to run";
        return status == ESP_OUT_OF_MEMORY ? status : (esp_status)ESP_OK;
    }
    double error_over_bound = compare(job, numbers);
    if (!(error_over_bound <= 1)) {
        runner->refused = numbers == TUNE_INTEGERS
                              ? "it differs from the reference on integers"
                              : "it differs from the reference by more than rounding";
    }
    runner->error = error_over_bound;
    return ESP_OK;
}

esp_status tune_verify(tune_job *job, tune_numbers numbers, esp_error *error)
{
    esp_packed *weight = NULL;
    const esp_pack_options forms = {ESP_FORM_SPARSE | ESP_FORM_DENSE};
    ESP_TRY(run_reference(job, numbers, error));
    if (numbers == TUNE_REALS) {
        ESP_TRY(find_bounds(job, error));
    }
    ESP_TRY(esp_pack_with(job->device, job->sparse, &forms, &weight, error));
    esp_status status = ESP_OK;
    for (int i = 0; i < job->count && status == ESP_OK; i++) {
        status = tune_step(job, "verifying", error);
        if (status == ESP_OK && job->runners[i].refused == NULL) {
            status = verify_one(job, numbers, weight, &job->runners[i], error);
        }
    }
    esp_packed_free(weight);
    return status;
}
