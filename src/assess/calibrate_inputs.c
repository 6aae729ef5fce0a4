/* What linear layers read, while the model is walked.
 *
 * Linear layers that run one after the other on the same memory read the same; they are a group,
 * for which every sample goes through the layer in both models up to the group's first product, and
 * no farther. Layers that come before it in the pruned model are pruned by then. */
#include "assess/calibrate.h"

/* ---- one run up to a group ---- */

typedef struct look {
    const esp_calibration *calibration;
    int wanted; /* group; -1: find out which there are */
    int group;  /* at which the run is; -1: before the first */
    const void *memory;
    bool found;
    int64_t in, out, tokens;
    esp_walk_places places; /* of the sample */
    /* Of the host, copies, for which the caller has room; on a device they are where they are. */
    float *x, *residual;
    bool wants_residual, has_residual;
    esp_token_rows read, stream;    /* both of them */
    esp_calibrated_linear *linears; /* of the layer, for finding out */
    int64_t linear_count;
} look;

static void name_group(const look *l, const struct esp_linear *linear)
{
    size_t length = strlen(linear->name);
    for (int64_t i = 0; i < l->linear_count; i++) {
        const char *name = l->linears[i].name;
        if (strncmp(name, linear->name, length) == 0 && strcmp(name + length, ".weight") == 0) {
            l->linears[i].group = l->group;
        }
    }
}

static void copy_rows(const float *from, int64_t stride, int64_t rows, int64_t tokens, float *to)
{
    for (int64_t r = 0; r < rows; r++) {
        memcpy(to + r * tokens, from + r * stride, (size_t)tokens * sizeof *to);
    }
}

/* Where activations are copied they are tight. */
static void keep_rows(look *l, const struct esp_linear_call *call)
{
    int64_t stride = call->x_stride > 0 ? call->x_stride : call->tokens;
    const esp_calibration *calibration = l->calibration;
    esp_dtype type = esp_walk_type(calibration->dense);
    bool far = esp_device_is_far(calibration->device);
    l->read = (esp_token_rows){.data = call->x,
                               .type = type,
                               .features = l->in,
                               .stride = stride,
                               .on_device = far,
                               .run = far ? l->places.run : 0,
                               .pitch = l->places.pitch};
    l->stream = l->read;
    l->stream.data = call->residual;
    l->stream.features = l->out;
    l->stream.stride = call->tokens;
    if (!far && l->x != NULL) {
        copy_rows(call->x, stride, l->in, call->tokens, l->x);
        l->read.data = l->x;
        l->read.stride = call->tokens;
    }
    if (!far && l->has_residual) {
        copy_rows(call->residual, call->tokens, l->out, call->tokens, l->residual);
        l->stream.data = l->residual;
    }
}

static esp_status see(void *user, const struct esp_linear *linear,
                      const struct esp_linear_call *call, esp_error *error)
{
    look *l = user;
    if (l->group < 0 || l->memory != call->x) {
        l->group++;
        l->memory = call->x;
    }
    if (l->wanted < 0) {
        name_group(l, linear);
        return ESP_OK;
    }
    if (l->group != l->wanted) {
        return ESP_OK;
    }
    l->found = true;
    l->in = linear->weight->in_features;
    l->out = linear->weight->out_features;
    l->tokens = call->tokens;
    l->has_residual = l->wants_residual && linear->adds && call->residual != NULL;
    keep_rows(l, call);
    return esp_fail(error, ESP_CANCELLED, "calibrate.seen", "seen");
}

/* x of the sample is left as it was when the run ends early, and to be given up when not. */
static esp_status run_until(esp_walk *walk, const esp_walked_batch *sample, void *x, look *l,
                            esp_error *error)
{
    esp_device *device = l->calibration->device;
    const esp_tap tap = {see, l};
    l->group = -1;
    l->memory = NULL;
    l->found = false;
    l->places = esp_walk_places_of(walk, &sample->batch);
    esp_status status = esp_walk_run(walk, &sample->batch, x, &tap, error);
    if (status != ESP_CANCELLED || !l->found) {
        return status;
    }
    if (!esp_device_is_far(device)) {
        return ESP_OK;
    }
    l->tokens = sample->tokens; /* of the columns */
    return device->backend->wait(device, error);
}

/* ---- the groups of a layer ---- */

static esp_status find_groups(esp_calibration *calibration, esp_error *error)
{
    const esp_walked_batch *sample = &calibration->samples[0];
    const esp_walk *walk = calibration->pruned;
    void *x = NULL;
    ESP_TRY(esp_walk_stream_take(walk, &sample->batch, &x, error));
    look l = {.calibration = calibration,
              .wanted = -1,
              .linears = calibration->linears,
              .linear_count = calibration->linear_count};
    esp_status status = esp_walk_stream_copy(walk, &sample->batch, x, sample->pruned, error);
    status = status == ESP_OK ? run_until(calibration->pruned, sample, x, &l, error) : status;
    esp_walk_stream_free(walk, x);
    return status;
}

/* ---- sums ---- */

void esp_calibration_let_go(const esp_calibration *calibration, const esp_group_inputs *inputs)
{
    const double *const held[] = {inputs->gram, inputs->cross, inputs->residual, inputs->inverse};
    esp_device_algebra *device =
        calibration->algebra != NULL ? esp_algebra_device(calibration->algebra) : NULL;
    for (int i = 0; i < ESP_COUNT(held) && device != NULL; i++) {
        device->ops->drop(device, held[i]);
    }
}

void esp_group_inputs_free(const esp_calibration *calibration, esp_group_inputs *inputs)
{
    double *const areas[] = {inputs->gram, inputs->cross, inputs->residual, inputs->inverse};
    esp_calibration_let_go(calibration, inputs);
    for (int i = 0; i < ESP_COUNT(areas); i++) {
        esp_release(calibration->context, areas[i]);
    }
    *inputs = (esp_group_inputs){.group = -1};
}

/* Buffers of one sample's group. */
typedef struct collect_job {
    esp_calibration *calibration;
    look dense, pruned;
    float *room;
    float *scratch;
    double weights; /* for the progress */
} collect_job;

/* Zeros, or anything where a device sums. */
static double *take(const esp_calibration *calibration, int64_t rows, int64_t columns)
{
    size_t count = 0;
    bool on_device = esp_algebra_device(calibration->algebra) != NULL;
    if (!esp_mul_size((size_t)rows, (size_t)columns, &count)) {
        return NULL;
    }
    return on_device ? esp_alloc_large(calibration->context, count, sizeof(double))
                     : esp_alloc_array(calibration->context, count, sizeof(double));
}

bool esp_calibration_looks_at_dense(const esp_calibration_options *options)
{
    return options->targets != ESP_TARGETS_LAYER && !options->dense_inputs &&
           (options->refit || options->method >= ESP_METHOD_SPARSE_GPT);
}

/* Zeros, on the algebra's device where it has one. */
static esp_status begin_moments(const esp_calibration *calibration, const double *moments,
                                int64_t rows, int64_t columns, esp_error *error)
{
    esp_device_algebra *device = esp_algebra_device(calibration->algebra);
    return device != NULL ? device->ops->hold(device, moments, rows * columns, true, error)
                          : ESP_OK;
}

/* moments += X Y^T of so many tokens */
static esp_status add_moments(const esp_calibration *calibration, const esp_token_rows *x,
                              const esp_token_rows *y, int64_t tokens, float *scratch,
                              double *moments, esp_error *error)
{
    esp_device_algebra *device = esp_algebra_device(calibration->algebra);
    if (device != NULL) {
        return device->ops->add_gram(device, x, y, tokens, moments, error);
    }
    esp_algebra_add_gram(calibration->algebra, x->data, x->features, y->data, y->features, tokens,
                         scratch, moments);
    return ESP_OK;
}

/* Sizes are known after a run over the first sample that copies nothing. */
static esp_status measure(collect_job *job, look *l, esp_error *error)
{
    esp_calibration *calibration = job->calibration;
    *l = (look){.calibration = calibration, .wanted = job->pruned.wanted};
    ESP_TRY(run_until(calibration->pruned, &calibration->samples[0], calibration->samples[0].pruned,
                      l, error));
    return l->found ? ESP_OK
                    : esp_fail(error, ESP_FAILED, "calibrate.not_reached",
                               "layer %lld does not come to its linear layers",
                               (long long)calibration->layer);
}

static esp_status make_room(collect_job *job, const look *sizes, esp_error *error)
{
    esp_calibration *calibration = job->calibration;
    esp_context *context = calibration->context;
    bool dense = esp_calibration_looks_at_dense(calibration->options);
    bool stream = dense && calibration->options->targets == ESP_TARGETS_STREAM;
    int64_t in = sizes->in, out = sizes->out, tokens = 0;
    for (int64_t i = 0; i < calibration->sample_count; i++) { /* windows may add tokens */
        int64_t own = sizes->tokens * calibration->samples[i].tokens;
        tokens = ESP_MAX(tokens, esp_ceil_div(own, calibration->samples[0].tokens));
    }
    bool copies = !esp_device_is_far(calibration->device);
    size_t each = copies ? (size_t)((in + (stream ? out : 0)) * tokens) : 1;
    esp_group_inputs *inputs = &calibration->inputs;
    inputs->in = in;
    inputs->gram = take(calibration, in, in);
    inputs->cross = dense ? take(calibration, in, in) : NULL;
    job->room = esp_alloc_array(context, (dense ? 2 : 1) * each, sizeof *job->room);
    job->scratch = esp_alloc_array(context, esp_algebra_gram_floats(calibration->algebra, in),
                                   sizeof *job->scratch);
    if (inputs->gram == NULL || (dense && inputs->cross == NULL) || job->room == NULL ||
        job->scratch == NULL) {
        return esp_fail_memory(error, 2 * (size_t)(in * in) * sizeof(double), "input moments");
    }
    ESP_TRY(begin_moments(calibration, inputs->gram, in, in, error));
    ESP_TRY(dense ? begin_moments(calibration, inputs->cross, in, in, error) : ESP_OK);
    job->pruned.wants_residual = job->dense.wants_residual = stream;
    if (copies) {
        job->pruned.x = job->room;
        job->pruned.residual = stream ? job->room + in * tokens : NULL;
        job->dense.x = dense ? job->room + each : NULL;
        job->dense.residual = stream ? job->room + each + in * tokens : NULL;
    }
    return ESP_OK;
}

/* (dense - pruned residual) X^T */
static esp_status add_residual(collect_job *job, esp_error *error)
{
    esp_calibration *calibration = job->calibration;
    esp_group_inputs *inputs = &calibration->inputs;
    const look *pruned = &job->pruned;
    int64_t count = pruned->out * pruned->tokens;
    if (inputs->residual == NULL) {
        inputs->out = pruned->out;
        inputs->residual = take(calibration, pruned->out, pruned->in);
        if (inputs->residual == NULL) {
            return esp_fail_memory(error, (size_t)(pruned->out * pruned->in) * sizeof(double),
                                   "residual moments");
        }
        ESP_TRY(begin_moments(calibration, inputs->residual, pruned->out, pruned->in, error));
    }
    esp_token_rows lost = job->dense.stream;
    if (esp_algebra_device(calibration->algebra) != NULL) {
        lost.less = pruned->stream.data;
    } else {
        for (int64_t i = 0; i < count; i++) {
            job->dense.residual[i] -= pruned->residual[i];
        }
    }
    return add_moments(calibration, &lost, &pruned->read, pruned->tokens, job->scratch,
                       inputs->residual, error);
}

static esp_status add_sample(collect_job *job, const esp_walked_batch *sample, esp_error *error)
{
    esp_calibration *calibration = job->calibration;
    esp_group_inputs *inputs = &calibration->inputs;
    look *pruned = &job->pruned;
    ESP_TRY(run_until(calibration->pruned, sample, sample->pruned, pruned, error));
    ESP_TRY(add_moments(calibration, &pruned->read, &pruned->read, pruned->tokens, job->scratch,
                        inputs->gram, error));
    inputs->tokens += pruned->tokens;
    if (inputs->cross == NULL) {
        return ESP_OK;
    }
    ESP_TRY(run_until(calibration->dense, sample, sample->dense, &job->dense, error));
    ESP_TRY(add_moments(calibration, &job->dense.read, &pruned->read, pruned->tokens, job->scratch,
                        inputs->cross, error));
    return pruned->has_residual ? add_residual(job, error) : ESP_OK;
}

/* gram, whole, from the device that summed it. */
static esp_status bring_moments(const esp_calibration *calibration, double *gram, int64_t in,
                                esp_error *error)
{
    esp_device_algebra *device = esp_algebra_device(calibration->algebra);
    if (device == NULL) {
        esp_algebra_mirror(gram, in);
        return ESP_OK;
    }
    ESP_TRY(device->ops->mirror(device, gram, in, error));
    return device->ops->fetch(device, gram, error);
}

/* Whether the host changes more of the sums than what damping adds. */
static bool changes(const esp_calibration *calibration)
{
    return calibration->prune->permutation != NULL || calibration->turning != NULL;
}

/* What the host reads or changes of the sums. */
static esp_status end_moments(const esp_calibration *calibration, esp_error *error)
{
    const esp_group_inputs *inputs = &calibration->inputs;
    esp_device_algebra *device = esp_algebra_device(calibration->algebra);
    double *const others[] = {changes(calibration) ? inputs->cross : NULL, inputs->residual};
    ESP_TRY(bring_moments(calibration, inputs->gram, inputs->in, error));
    for (int i = 0; i < ESP_COUNT(others) && device != NULL; i++) {
        ESP_TRY(others[i] != NULL ? device->ops->fetch(device, others[i], error) : ESP_OK);
    }
    return ESP_OK;
}

esp_status esp_calibration_hold(const esp_calibration *calibration, esp_error *error)
{
    const esp_group_inputs *inputs = &calibration->inputs;
    const double *cross = changes(calibration) ? inputs->cross : NULL; /* else it is there */
    const double *const squares[] = {inputs->gram, cross, inputs->inverse};
    esp_device_algebra *device = esp_algebra_device(calibration->algebra);
    if (device == NULL) {
        return ESP_OK;
    }
    device->ops->drop(device, inputs->residual);
    for (int i = 0; i < ESP_COUNT(squares); i++) {
        if (squares[i] != NULL) {
            ESP_TRY(device->ops->hold(device, squares[i], inputs->in * inputs->in, false, error));
        }
    }
    return ESP_OK;
}

/* The damping that keeps H invertible; it counts as a wish to stay near the dense weights. */
static void damp(const esp_calibration_options *options, esp_group_inputs *inputs)
{
    double trace = 0, share = options->damping > 0 ? options->damping : 0.01;
    for (int64_t j = 0; j < inputs->in; j++) {
        double square = inputs->gram[j * inputs->in + j];
        trace += square;
        inputs->dead += square == 0;
    }
    inputs->damping = trace == 0 ? 1 : share * trace / (double)inputs->in; /* NaN stays NaN */
    for (int64_t j = 0; j < inputs->in; j++) {
        inputs->gram[j * inputs->in + j] += inputs->damping;
    }
}

/* What is pruned lies in the order of the permutation, what is run in the model's own. */
static esp_status reorder(const esp_calibration *calibration, const char *name,
                          const esp_group_inputs *inputs, esp_error *error)
{
    const esp_permutation *permutation = calibration->prune->permutation;
    if (permutation == NULL) {
        return ESP_OK;
    }
    int columns = esp_permutation_axis(permutation, name, 1);
    double *const square[] = {inputs->gram, inputs->cross};
    for (int i = 0; i < ESP_COUNT(square) && square[i] != NULL; i++) {
        ESP_TRY(esp_permutation_apply_to(permutation, columns, 1, inputs->in, square[i], error));
        ESP_TRY(esp_permutation_apply_to(permutation, columns, inputs->in, 1, square[i], error));
    }
    if (inputs->residual == NULL) {
        return ESP_OK;
    }
    int rows = esp_permutation_axis(permutation, name, 0);
    ESP_TRY(esp_permutation_apply_to(permutation, rows, 1, inputs->in, inputs->residual, error));
    return esp_permutation_apply_to(permutation, columns, inputs->out, 1, inputs->residual, error);
}

static esp_status sum_group(collect_job *job, esp_error *error)
{
    esp_calibration *calibration = job->calibration;
    look sizes;
    ESP_TRY(measure(job, &sizes, error));
    ESP_TRY(make_room(job, &sizes, error));
    for (int64_t i = 0; i < calibration->sample_count; i++) {
        double share = 0.5 * (double)i / (double)calibration->sample_count;
        ESP_TRY(esp_calibration_step(calibration, share, job->weights, error));
        ESP_TRY(add_sample(job, &calibration->samples[i], error));
    }
    ESP_TRY(end_moments(calibration, error));
    damp(calibration->options, &calibration->inputs);
    return ESP_OK;
}

esp_status esp_calibration_collect(esp_calibration *calibration,
                                   const esp_calibrated_linear *linear, esp_error *error)
{
    esp_group_inputs *inputs = &calibration->inputs;
    if (inputs->group == linear->group && inputs->layer == linear->layer) {
        return ESP_OK;
    }
    esp_group_inputs_free(calibration, inputs);
    esp_weight_info weight = esp_checkpoint_get(calibration->checkpoint, linear->index);
    collect_job job = {.calibration = calibration,
                       .weights = (double)weight.shape[0] * (double)weight.shape[1]};
    job.dense = job.pruned = (look){.calibration = calibration, .wanted = linear->group};
    esp_status status = sum_group(&job, error);
    status = status == ESP_OK ? esp_calibration_check_inputs(calibration, error) : status;
    status = status == ESP_OK ? reorder(calibration, linear->name, inputs, error) : status;
    if (status == ESP_OK) {
        status = esp_calibration_turn_inputs(calibration, linear, inputs->cross, error);
    }
    status = status == ESP_OK ? esp_calibration_hold(calibration, error) : status;
    esp_release(calibration->context, job.room);
    esp_release(calibration->context, job.scratch);
    if (status == ESP_OK) {
        inputs->group = linear->group;
        inputs->layer = linear->layer;
    }
    return status;
}

/* ---- what the dense model reads ---- */

static esp_status add_dense(esp_calibration *calibration, const esp_calibrated_linear *linear,
                            const esp_walked_batch *sample, float *scratch, double *gram,
                            esp_error *error)
{
    look l = {.calibration = calibration, .wanted = linear->group};
    float *x = NULL;
    ESP_TRY(run_until(calibration->dense, sample, sample->dense, &l, error));
    if (!esp_device_is_far(calibration->device)) {
        size_t floats = (size_t)(l.in * l.tokens);
        x = esp_alloc_array(calibration->context, floats, sizeof *x);
        if (x == NULL) {
            return esp_fail_memory(error, floats * sizeof *x, "activations");
        }
        l.x = x;
    }
    esp_status status =
        x != NULL ? run_until(calibration->dense, sample, sample->dense, &l, error) : ESP_OK;
    if (status == ESP_OK) {
        status = add_moments(calibration, &l.read, &l.read, l.tokens, scratch, gram, error);
    }
    esp_release(calibration->context, x);
    return status;
}

esp_status esp_calibration_dense_moments(esp_calibration *calibration,
                                         const esp_calibrated_linear *linear, int64_t most_samples,
                                         double *gram, esp_error *error)
{
    int64_t in = esp_checkpoint_get(calibration->checkpoint, linear->index).shape[1];
    size_t floats = esp_algebra_gram_floats(calibration->algebra, in);
    esp_device_algebra *device = esp_algebra_device(calibration->algebra);
    float *scratch = esp_alloc_array(calibration->context, floats, sizeof *scratch);
    if (scratch == NULL) {
        return esp_fail_memory(error, floats * sizeof *scratch, "moments");
    }
    memset(gram, 0, (size_t)(in * in) * sizeof *gram);
    esp_status status = begin_moments(calibration, gram, in, in, error);
    for (int64_t i = 0; i < ESP_MIN(calibration->sample_count, most_samples) && status == ESP_OK;
         i++) {
        status = add_dense(calibration, linear, &calibration->samples[i], scratch, gram, error);
    }
    status = status == ESP_OK ? bring_moments(calibration, gram, in, error) : status;
    if (device != NULL) {
        device->ops->drop(device, gram);
    }
    esp_release(calibration->context, scratch);
    return status;
}

/* ---- from layer to layer ---- */

static esp_status run_through(esp_calibration *calibration, esp_error *error)
{
    bool dense = !calibration->looks_only && esp_calibration_looks_at_dense(calibration->options);
    for (int64_t i = 0; i < calibration->sample_count; i++) {
        esp_walked_batch *sample = &calibration->samples[i];
        ESP_TRY(esp_calibration_step(calibration, 0, 0, error));
        if (dense) {
            ESP_TRY(esp_walk_run(calibration->dense, &sample->batch, sample->dense, NULL, error));
        }
        ESP_TRY(esp_walk_run(calibration->pruned, &sample->batch, sample->pruned, NULL, error));
    }
    return ESP_OK;
}

esp_status esp_calibration_advance(esp_calibration *calibration, int64_t layer, esp_error *error)
{
    while (calibration->layer < layer) {
        if (calibration->layer >= 0) {
            ESP_TRY(run_through(calibration, error));
        }
        calibration->layer++;
        if (!calibration->looks_only) {
            ESP_TRY(esp_walk_load(calibration->dense, calibration->layer, error));
        }
        ESP_TRY(esp_walk_load(calibration->pruned, calibration->layer, error));
        ESP_TRY(find_groups(calibration, error));
    }
    return ESP_OK;
}
