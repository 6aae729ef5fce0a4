/* Orders of channels under calibration: the dense model is walked once over the samples. Inside the
 * search each weight is scored by what dropping it costs the outputs that the samples give, all
 * others of its row following: w^2 / [H^-1]_jj (Optimal Brain Surgeon). What that leads to counts
 * only where the layers that it touches, pruned anew in the new order by the method of the
 * calibration, lose less of their outputs (the step rule of Zhao et al., arXiv 2410.16135). */
#include "assess/calibrate.h"

/* What is kept of the damped second moments H of what a group of linear layers reads: those of all
 * groups together, so f32, and each pair of inputs once. Sums of 512 tokens are rounded to f32
 * anyway where the host adds them. */
typedef struct kept_inputs {
    int group;
    int64_t layer, in, tokens, dead;
    double damping;
    float *triangle;  /* rows of the lower one, behind one another */
    double *diagonal; /* of H^-1 */
} kept_inputs;

typedef struct order_job {
    esp_calibration calibration;
    const esp_calibration_options *method; /* by which layers are pruned */
    kept_inputs **inputs;                  /* [linears]; who reads the same shares them */
    kept_inputs *groups;                   /* [linears], fewer are used */
    int64_t group_count;
} order_job;

/* ---- what layers read ---- */

static int64_t triangle_of(int64_t n)
{
    return n * (n + 1) / 2;
}

/* NULL: not looked at yet. */
static kept_inputs *known_inputs(const order_job *job, const esp_calibrated_linear *linear)
{
    for (int64_t i = job->group_count - 1; i >= 0; i--) {
        if (job->groups[i].layer == linear->layer && job->groups[i].group == linear->group) {
            return &job->groups[i];
        }
    }
    return NULL;
}

static esp_status keep(const esp_calibration *calibration, kept_inputs *kept, esp_error *error)
{
    const esp_group_inputs *from = &calibration->inputs;
    int64_t n = from->in;
    size_t count = (size_t)triangle_of(n);
    kept->in = n;
    kept->tokens = from->tokens;
    kept->dead = from->dead;
    kept->damping = from->damping;
    kept->triangle = esp_alloc_array(calibration->context, count, sizeof *kept->triangle);
    kept->diagonal = esp_alloc_array(calibration->context, (size_t)n, sizeof *kept->diagonal);
    if (kept->triangle == NULL || kept->diagonal == NULL) {
        return esp_fail_memory(error, count * sizeof *kept->triangle, "what a layer reads");
    }
    for (int64_t i = 0; i < n; i++) {
        kept->diagonal[i] = from->inverse[i * (n + 1)];
        for (int64_t j = 0; j <= i; j++) {
            kept->triangle[triangle_of(i) + j] = (float)from->gram[i * n + j];
        }
    }
    return ESP_OK;
}

static esp_status look_at_group(order_job *job, const esp_calibrated_linear *linear,
                                kept_inputs **kept, esp_error *error)
{
    esp_calibration *calibration = &job->calibration;
    ESP_TRY(esp_calibration_collect(calibration, linear, error));
    ESP_TRY(esp_calibration_invert(calibration, error));
    *kept = &job->groups[job->group_count++];
    **kept = (kept_inputs){.group = linear->group, .layer = linear->layer};
    ESP_TRY(keep(calibration, *kept, error));
    esp_group_inputs_free(calibration, &calibration->inputs);
    return ESP_OK;
}

static esp_status look(order_job *job, int64_t number, esp_error *error)
{
    esp_calibration *calibration = &job->calibration;
    const esp_calibrated_linear *linear = &calibration->linears[number];
    ESP_TRY(esp_calibration_advance(calibration, linear->layer, error));
    kept_inputs *inputs = known_inputs(job, linear);
    if (inputs == NULL) {
        esp_status status = look_at_group(job, linear, &inputs, error);
        if (status != ESP_OK) {
            return esp_fail_within(error, status, "%s", linear->name);
        }
    }
    job->inputs[number] = inputs;
    esp_weight_info weight = esp_checkpoint_get(calibration->checkpoint, linear->index);
    calibration->done += (double)weight.shape[0] * (double)weight.shape[1];
    return ESP_OK;
}

esp_status esp_orders_check_memory(double bytes, uint64_t available, esp_error *error)
{
    return available == 0 || bytes <= (double)available
               ? ESP_OK
               : esp_fail(error, ESP_OUT_OF_MEMORY, "permutation.needs_memory",
                          "orders of channels keep what every layer reads, %.1f GiB, but %.1f GiB "
                          "of memory are free; prune without --permute, or order by weights alone "
                          "(--permute without --calibrate)",
                          bytes * 0x1p-30, (double)available * 0x1p-30);
}

static bool is_first_of_group(const esp_calibrated_linear *linears, int64_t i)
{
    for (int64_t k = 0; k < i; k++) {
        if (linears[k].group == linears[i].group) {
            return false;
        }
    }
    return true;
}

/* Before the first group is summed: what is kept of all groups, those of each layer being taken for
 * as many as those of the first one, a score of every weight, and the widest layer at work. */
static esp_status check_memory(const order_job *job, esp_error *error)
{
    const esp_calibration *calibration = &job->calibration;
    double bytes = 0, at_work = 0;
    int64_t of_layer = 0;
    for (int64_t i = 0; i < calibration->linear_count && calibration->linears[i].layer == 0; i++) {
        of_layer++;
    }
    for (int64_t i = 0; i < calibration->linear_count; i++) {
        esp_weight_info weight =
            esp_checkpoint_get(calibration->checkpoint, calibration->linears[i].index);
        double out = (double)weight.shape[0], in = (double)weight.shape[1];
        bytes += out * in * sizeof(float);
        if (is_first_of_group(calibration->linears, i % of_layer)) {
            bytes += in * in / 2 * sizeof(float);
        }
        at_work = ESP_MAX(at_work, (2 * in * in + 5 * out * in) * sizeof(double));
    }
    bytes += at_work;
    esp_log(calibration->context, ESP_LOG_INFO,
            "orders of channels keep what every layer reads: %.1f GiB", bytes * 0x1p-30);
    return esp_orders_check_memory(bytes, esp_memory_available(), error);
}

static esp_status look_at_all(order_job *job, const char *model_dir, esp_error *error)
{
    esp_calibration *calibration = &job->calibration;
    ESP_TRY(esp_calibration_open(calibration, model_dir, error));
    size_t count = (size_t)calibration->linear_count;
    job->inputs = esp_alloc_zero(calibration->context, count * sizeof(kept_inputs *));
    job->groups = esp_alloc_zero(calibration->context, count * sizeof *job->groups);
    if (job->inputs == NULL || job->groups == NULL) {
        return esp_fail_memory(error, count * sizeof *job->groups, "what layers read");
    }
    ESP_TRY(esp_calibration_advance(calibration, 0, error)); /* which finds groups */
    ESP_TRY(check_memory(job, error));
    for (int64_t i = 0; i < calibration->linear_count; i++) {
        ESP_TRY(look(job, i, error));
    }
    return ESP_OK;
}

/* -1: no sample reaches it. */
static int64_t number_of(const order_job *job, const char *name)
{
    for (int64_t i = 0; i < job->calibration.linear_count; i++) {
        if (strcmp(job->calibration.linears[i].name, name) == 0) {
            return i;
        }
    }
    return -1;
}

/* ---- scores ---- */

/* An esp_scores_fn. Layers that no sample reaches are scored by their weights alone. */
static esp_status score(void *user, const char *name, const esp_tensor *dense, float *scores,
                        esp_error *error)
{
    (void)error;
    const order_job *job = user;
    int64_t number = number_of(job, name), out = dense->shape[0], in = dense->shape[1];
    const double *diagonal = number >= 0 ? job->inputs[number]->diagonal : NULL;
    esp_widen(dense->dtype, dense->data, out * in, scores);
    double most = 0;
    for (int scaled = 0; scaled < 2; scaled++) { /* layers count by the share that they lose */
        double sum = 0;
        for (int64_t i = 0; i < out * in; i++) {
            double w = (double)scores[i], each = diagonal != NULL ? diagonal[i % in] : 1;
            double cost = scaled == 0 ? w * w / each : 0;
            sum += cost;
            scores[i] = scaled == 0 ? (float)cost : (float)((double)scores[i] / most);
        }
        most = scaled == 0 ? (sum > 0 ? sum : 1) : most;
    }
    return ESP_OK;
}

/* ---- errors ---- */

/* What the layer reads, in the new order, where the layer's pruning looks for it, and inverts it if
 * it has to. */
static esp_status take_inputs(order_job *job, int64_t number, const esp_permutation *orders,
                              esp_error *error)
{
    esp_calibration *calibration = &job->calibration;
    const kept_inputs *from = job->inputs[number];
    esp_group_inputs *to = &calibration->inputs;
    int axis = esp_permutation_axis(orders, calibration->linears[number].name, 1);
    int64_t n = from->in;
    size_t count = (size_t)(n * n);
    esp_group_inputs_free(calibration, to);
    to->in = n;
    to->tokens = from->tokens;
    to->damping = from->damping;
    to->dead = from->dead;
    to->gram = esp_alloc_large(calibration->context, count, sizeof *to->gram);
    if (to->gram == NULL) {
        return esp_fail_memory(error, count * sizeof *to->gram, "what a layer reads");
    }
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j <= i; j++) {
            to->gram[i * n + j] = (double)from->triangle[triangle_of(i) + j];
        }
    }
    esp_algebra_mirror(to->gram, n);
    ESP_TRY(esp_permutation_apply_to(orders, axis, 1, n, to->gram, error));
    ESP_TRY(esp_permutation_apply_to(orders, axis, n, 1, to->gram, error));
    return esp_calibration_hold(calibration, error);
}

static esp_status prune_one(order_job *job, int64_t number, const esp_pattern *pattern,
                            const esp_permutation *orders, esp_tensor *values, double *layer_error,
                            esp_error *error)
{
    esp_calibration *calibration = &job->calibration;
    const esp_calibrated_linear *linear = &calibration->linears[number];
    esp_calibrated_layer report = {0};
    esp_mask *mask = NULL;
    ESP_TRY(esp_checkpoint_read_dense(calibration->checkpoint, linear->index, values, error));
    ESP_TRY(esp_calibration_check_dense(calibration, values, error));
    ESP_TRY(esp_permutation_apply(orders, linear->name, values, error));
    ESP_TRY(take_inputs(job, number, orders, error));
    ESP_TRY(esp_calibration_prune(calibration, linear, pattern, values, &mask, &report, error));
    esp_mask_free(mask);
    *layer_error = report.error;
    return ESP_OK;
}

/* An esp_order_error_fn. Layers that no sample reaches have no say. */
static esp_status error_of(void *user, const char *name, const esp_pattern *pattern,
                           const esp_permutation *orders, double *layer_error, esp_error *error)
{
    order_job *job = user;
    int64_t number = number_of(job, name);
    *layer_error = 0;
    if (number < 0) {
        return ESP_OK;
    }
    esp_calibration *calibration = &job->calibration;
    esp_weight_info weight =
        esp_checkpoint_get(calibration->checkpoint, calibration->linears[number].index);
    esp_tensor values;
    ESP_TRY(esp_tensor_create(calibration->context, weight.dtype, weight.rank, weight.shape,
                              &values, error));
    esp_status status = prune_one(job, number, pattern, orders, &values, layer_error, error);
    esp_tensor_free(calibration->context, &values);
    return status == ESP_OK ? ESP_OK : esp_fail_within(error, status, "%s", name);
}

/* ---- all of it ---- */

static void close(order_job *job)
{
    esp_calibration *calibration = &job->calibration;
    for (int64_t i = 0; i < job->group_count; i++) {
        esp_release(calibration->context, job->groups[i].triangle);
        esp_release(calibration->context, job->groups[i].diagonal);
    }
    esp_release(calibration->context, job->groups);
    esp_release(calibration->context, job->inputs);
    esp_calibration_close(calibration);
}

static esp_status search(order_job *job, const char *model_dir, const esp_prune_options *prune,
                         const esp_permute_options *permute, esp_permutation **permutation,
                         esp_error *error)
{
    esp_permute_options options = *permute;
    options.scores = score;
    options.score_user = job;
    options.score_name = "obs";
    options.order_error = error_of;
    options.error_user = job;
    job->calibration.options = job->method;
    job->calibration.judges = true;
    return esp_permutation_search(job->calibration.context, model_dir, prune, &options, permutation,
                                  error);
}

esp_status esp_permutation_calibrate(esp_device *device, const char *model_dir,
                                     const esp_prune_options *prune,
                                     const esp_permute_options *permute,
                                     const esp_calibration_options *calibration,
                                     esp_permutation **permutation, esp_error *error)
{
    static const esp_permute_options defaults = {0};
    esp_prune_options plain = *prune;
    esp_calibration_options look = *calibration, method = *calibration;
    ESP_TRY(esp_calibration_check(calibration, error)); /* look's are others */
    permute = permute != NULL ? permute : &defaults;
    plain.permutation = NULL;
    plain.progress = permute->progress;
    plain.user = permute->user;
    look.method = ESP_METHOD_OBD; /* of the inputs, their moments alone */
    look.refit = look.gradual = look.turn_values = false;
    look.norm_power = 0;
    method.targets = ESP_TARGETS_LAYER; /* the inputs are the dense model's */
    method.turn_values = false;
    order_job job = {.method = &method,
                     .calibration = {.context = device->context,
                                     .device = device,
                                     .prune = &plain,
                                     .options = &look,
                                     .looks_only = true}};
    esp_status status = look_at_all(&job, model_dir, error);
    if (status == ESP_OK) {
        status = search(&job, model_dir, prune, permute, permutation, error);
    }
    close(&job);
    return status;
}
