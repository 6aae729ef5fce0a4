/* Which weights of a layer stay: by scores, in steps, or with updates of what is kept, and all of
 * these on rows that are grouped in panels first. */
#include "assess/calibrate_layer.h"

/* job->scores of weights. */
static esp_status score(const esp_layer_job *job, esp_layer_score by, const double *weights,
                        esp_error *error)
{
    esp_calibration *calibration = job->calibration;
    double *diagonal = NULL;
    if (by == ESP_LAYER_OBS) {
        ESP_TRY(esp_calibration_invert(job->calibration, error));
        diagonal = esp_alloc_array(calibration->context, (size_t)job->in, sizeof *diagonal);
        if (diagonal == NULL) {
            return esp_fail_memory(error, (size_t)job->in * sizeof *diagonal, "scores");
        }
        for (int64_t j = 0; j < job->in; j++) {
            diagonal[j] = calibration->inputs.inverse[j * job->in + j];
        }
    }
    esp_status status = esp_score_layer(calibration->context, by, &job->inputs, diagonal, job->out,
                                        job->in, weights, job->scores, error);
    esp_release(calibration->context, diagonal);
    return status;
}

static esp_status mask_of(const esp_layer_job *job, esp_layer_score by, const double *weights,
                          const esp_mask_options *options, esp_mask **mask, esp_error *error)
{
    esp_mask_options how = *options;
    ESP_TRY(score(job, by, weights, error));
    const esp_tensor scores = {
        .dtype = ESP_F32, .rank = 2, .shape = {job->out, job->in}, .data = job->scores};
    how.score = ESP_SCORE_ABS;
    return esp_prune_mask(job->calibration->context, &scores, job->pattern, &how, mask, NULL,
                          error);
}

static esp_status mask_by_score(const esp_layer_job *job, esp_layer_score by, const double *weights,
                                esp_mask **mask, esp_error *error)
{
    return mask_of(job, by, weights, &job->calibration->prune->mask, mask, error);
}

/* The result becomes the least squares of a mask that keeps more than the pattern does, and from
 * there of one that keeps less, until the pattern's own is next. */
static esp_status tighten(const esp_layer_job *job, esp_layer_score by,
                          const esp_gradual_step *step, esp_error *error)
{
    esp_calibration *calibration = job->calibration;
    esp_mask *mask = NULL;
    ESP_TRY(score(job, by, job->result, error));
    ESP_TRY(esp_gradual_mask(calibration->context, job->pattern, step, job->out, job->in,
                             job->scores, &mask, error));
    esp_status status = esp_refit(calibration->algebra, &job->inputs, mask, job->goal, job->result,
                                  NULL, NULL, error);
    esp_mask_free(mask);
    return status;
}

/* Mask and values by updates, from the result as it is. */
typedef esp_status updating_fn(const esp_algebra *algebra, const esp_pattern *pattern,
                               const esp_mask_options *options, int64_t out, int64_t in,
                               const double *inverse, double *weights, esp_mask **mask,
                               esp_error *error);

static esp_status by_panel_obs(const esp_algebra *algebra, const esp_pattern *pattern,
                               const esp_mask_options *options, int64_t out, int64_t in,
                               const double *inverse, double *weights, esp_mask **mask,
                               esp_error *error)
{
    (void)options;
    return esp_panel_obs(algebra, pattern, out, in, inverse, weights, mask, error);
}

static esp_status by_joint_search(const esp_algebra *algebra, const esp_pattern *pattern,
                                  const esp_mask_options *options, int64_t out, int64_t in,
                                  const double *inverse, double *weights, esp_mask **mask,
                                  esp_error *error)
{
    (void)options;
    return esp_joint_panels(algebra, pattern, out, in, inverse, weights, mask, error);
}

static updating_fn *updating_by(esp_method method, const esp_pattern *pattern)
{
    return method == ESP_METHOD_JOINT && esp_joint_takes(pattern)       ? by_joint_search
           : method == ESP_METHOD_OBS && esp_panel_obs_takes(pattern)   ? by_panel_obs
           : method == ESP_METHOD_VENOM && esp_group_obs_takes(pattern) ? esp_group_obs
                                                                        : esp_sparse_gpt_of;
}

/* how: an updating_fn */
static esp_status run_updates(const esp_layer_job *job, const void *how, esp_mask **mask,
                              esp_error *error)
{
    updating_fn *const *by = how;
    const esp_calibration *calibration = job->calibration;
    esp_mask_options options = calibration->prune->mask;
    options.score = ESP_SCORE_ABS;
    options.regroup = false;
    return (*by)(calibration->algebra, job->pattern, &options, job->out, job->in,
                 calibration->inputs.inverse, job->result, mask, error);
}

/* An order of rows: stored row i is row rows[i] of the layer. */
typedef struct row_order {
    uint32_t *rows;
    double *row; /* [in] */
    bool *seen;  /* [out] */
} row_order;

/* Row rows[i] of matrix [out][in] becomes row i. */
static void gather_rows(const esp_layer_job *job, const row_order *order, double *matrix)
{
    size_t bytes = (size_t)job->in * sizeof *matrix;
    memset(order->seen, 0, (size_t)job->out * sizeof *order->seen);
    for (int64_t first = 0; first < job->out; first++) {
        int64_t at = first;
        if (order->seen[first]) {
            continue;
        }
        memcpy(order->row, matrix + first * job->in, bytes);
        for (int64_t from = order->rows[at]; from != first; from = order->rows[at]) {
            memcpy(matrix + at * job->in, matrix + from * job->in, bytes);
            order->seen[at] = true;
            at = from;
        }
        memcpy(matrix + at * job->in, order->row, bytes);
        order->seen[at] = true;
    }
}

/* And back: row i becomes row rows[i]. */
static void scatter_rows(const esp_layer_job *job, const row_order *order, double *matrix)
{
    memset(order->seen, 0, (size_t)job->out * sizeof *order->seen);
    for (int64_t first = 0; first < job->out; first++) {
        memcpy(order->row, matrix + first * job->in, (size_t)job->in * sizeof *matrix);
        for (int64_t at = first; !order->seen[at]; at = order->rows[at]) {
            double *to = matrix + (int64_t)order->rows[at] * job->in;
            for (int64_t j = 0; j < job->in; j++) {
                double held = to[j];
                to[j] = order->row[j];
                order->row[j] = held;
            }
            order->seen[at] = true;
        }
    }
}

/* What runs on a result whose rows lie in the order that panels will have. */
typedef esp_status ordered_fn(const esp_layer_job *job, const void *how, esp_mask **mask,
                              esp_error *error);

/* Panels of rows that go well together, by scores of `from`: whatever chooses their columns then
 * sees them as neighbours. */
static esp_status run_in_groups(const esp_layer_job *job, esp_layer_score by, const double *from,
                                const row_order *order, ordered_fn *run, const void *how,
                                esp_mask **mask, esp_error *error)
{
    esp_context *context = job->calibration->context;
    esp_mask *stored = NULL;
    ESP_TRY(score(job, by, from, error));
    ESP_TRY(esp_regroup_rows(context, job->pattern, &job->calibration->prune->mask, job->out,
                             job->in, job->scores, order->rows, error));
    esp_layer_copy(job, job->result, from);
    gather_rows(job, order, job->result);
    gather_rows(job, order, job->goal);
    esp_status status = run(job, how, &stored, error);
    scatter_rows(job, order, job->result);
    scatter_rows(job, order, job->goal);
    if (status == ESP_OK) {
        status = esp_mask_of_stored(context, stored, order->rows, mask, error);
    }
    esp_mask_free(stored);
    return status;
}

static esp_status in_groups(const esp_layer_job *job, esp_layer_score by, const double *from,
                            ordered_fn *run, const void *how, esp_mask **mask, esp_error *error)
{
    esp_context *context = job->calibration->context;
    size_t out = (size_t)job->out;
    const row_order order = {esp_alloc_array(context, out, sizeof *order.rows),
                             esp_alloc_array(context, (size_t)job->in, sizeof *order.row),
                             esp_alloc_array(context, out, sizeof *order.seen)};
    esp_status status = order.rows != NULL && order.row != NULL && order.seen != NULL
                            ? run_in_groups(job, by, from, &order, run, how, mask, error)
                            : esp_fail_memory(error, out * sizeof *order.rows, "an order of rows");
    esp_release(context, order.rows);
    esp_release(context, order.row);
    esp_release(context, order.seen);
    return status;
}

static bool stores_rows(const esp_layer_job *job)
{
    return esp_prune_stores_rows(&job->calibration->prune->mask, job->pattern, job->out);
}

typedef struct steps_job {
    esp_layer_score by;
    const esp_gradual_step *steps;
    int count;
} steps_job;

/* how: a steps_job; from the result as it is. */
static esp_status run_steps(const esp_layer_job *job, const void *how, esp_mask **mask,
                            esp_error *error)
{
    const steps_job *steps = how;
    esp_mask_options options = job->calibration->prune->mask;
    options.regroup = false;
    for (int i = 0; i < steps->count; i++) {
        ESP_TRY(tighten(job, steps->by, &steps->steps[i], error));
    }
    return mask_of(job, steps->by, job->result, &options, mask, error);
}

static esp_status by_steps(const esp_layer_job *job, esp_layer_score by,
                           const esp_gradual_step *steps, int count, esp_mask **mask,
                           esp_error *error)
{
    const steps_job how = {by, steps, count};
    if (stores_rows(job)) {
        return in_groups(job, by, job->weights, run_steps, &how, mask, error);
    }
    esp_layer_copy(job, job->result, job->weights);
    return run_steps(job, &how, mask, error);
}

/* Methods with updates. Where they take a mask, it is one by scores, which groups rows itself. */
static esp_status by_updates(const esp_layer_job *job, esp_mask **mask, esp_error *error)
{
    const esp_calibration *calibration = job->calibration;
    updating_fn *by = updating_by(calibration->options->method, job->pattern);
    ESP_TRY(esp_calibration_invert(job->calibration, error));
    if (by == esp_sparse_gpt_of && !esp_sparse_gpt_chooses(job->pattern)) {
        ESP_TRY(mask_by_score(job, ESP_LAYER_OBS, job->target, mask, error));
    } else if (stores_rows(job)) {
        return in_groups(job, ESP_LAYER_OBS, job->target, run_updates, &by, mask, error);
    }
    esp_layer_copy(job, job->result, job->target);
    return run_updates(job, &by, mask, error);
}

esp_status esp_layer_choose(const esp_layer_job *job, esp_mask **mask, esp_error *error)
{
    static const esp_layer_score scores[] = {ESP_LAYER_ABS, ESP_LAYER_SQUARE, ESP_LAYER_OBD,
                                             ESP_LAYER_WANDA, ESP_LAYER_RIA};
    esp_method method = job->calibration->options->method;
    esp_gradual_step steps[ESP_GRADUAL_MAX_STEPS];
    int count = job->calibration->options->gradual ? esp_gradual_steps(job->pattern, steps) : 0;
    if (count > 0) {
        return by_steps(job, method < ESP_METHOD_SPARSE_GPT ? scores[method] : ESP_LAYER_OBS, steps,
                        count, mask, error);
    }
    if (method >= ESP_METHOD_SPARSE_GPT) {
        return by_updates(job, mask, error);
    }
    ESP_TRY(mask_by_score(job, scores[method], job->weights, mask, error));
    esp_layer_copy(job, job->result, job->weights);
    return ESP_OK;
}
