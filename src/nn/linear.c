/* A linear layer is a packed weight, in one form or two. Which kernel runs it, and which form that
 * reads, is decided for each token count; a session keeps the last decisions, since the choice
 * among all candidates takes microseconds, as a small layer does. */
#include "nn/nn.h"

void esp_linear_free(esp_linear *linear, esp_device *device)
{
    float *const vectors[] = {linear->bias, linear->row_sums, linear->own_bias};
    esp_packed_free(linear->weight);
    for (int i = 0; i < ESP_COUNT(vectors); i++) {
        if (vectors[i] != NULL) {
            device->backend->release(device, vectors[i]);
        }
    }
    *linear = (esp_linear){0};
}

esp_matmul_problem esp_linear_problem(const esp_linear *linear, esp_compute compute,
                                      esp_dtype activations, int64_t tokens)
{
    const esp_packed *weight = linear->weight;
    return (esp_matmul_problem){
        .pattern = weight->pattern,
        .weight_type = weight->dtype,
        .act_type = activations,
        .out_type = linear->is_head ? ESP_F32 : activations,
        .compute = compute,
        .out_features = weight->out_features,
        .in_features = weight->in_features,
        .tokens = tokens,
        .y_layout = linear->is_head ? ESP_TOKEN_MAJOR : ESP_FEATURE_MAJOR,
        .epilogue = (linear->bias != NULL ? (unsigned)ESP_EP_BIAS : 0u) | linear->activation |
                    (linear->adds ? (unsigned)ESP_EP_RESIDUAL : 0u),
    };
}

esp_status esp_linear_plan(esp_device *device, const esp_linear *linear,
                           const esp_matmul_problem *problem, const esp_plan_options *options,
                           esp_plan *plan, esp_error *error)
{
    esp_plan_options own = *options;
    own.forms = esp_packed_forms(linear->weight);
    if (options->require_sparse) { /* dense is not allowed, so it is not held; it is compared */
        own.forms |= ESP_FORM_DENSE;
    }
    esp_status status = esp_plan_fill(device, problem, &own, plan, error);
    return status == ESP_OK ? ESP_OK : esp_fail_within(error, status, "%s", linear->name);
}

esp_status esp_linear_choose(esp_device *device, const esp_linear *linear, const esp_ops *ops,
                             esp_compute compute, int64_t tokens, const esp_plan_options *options,
                             esp_plan *plan, unsigned *later, esp_error *error)
{
    esp_matmul_problem problem = esp_linear_problem(linear, compute, ops->type, tokens);
    unsigned behind = problem.epilogue & ~(unsigned)ESP_EP_RESIDUAL;
    esp_plan made;
    *later = 0;
    ESP_TRY(esp_linear_plan(device, linear, &problem, options, &made, error));
    if (ops->finish != NULL && made.kernel->bare && behind != 0 && !linear->is_head &&
        (behind & ESP_EP_SWIGLU) == 0) {
        problem.epilogue &= (unsigned)ESP_EP_RESIDUAL;
        ESP_TRY(esp_linear_plan(device, linear, &problem, options, &made, error));
        *later = behind;
    }
    *plan = made;
    return ESP_OK;
}

/* Times may have been measured since the workspace was sized; predictions always fit it. */
static esp_status plan_within(const esp_nn *nn, const esp_linear *linear, int64_t tokens,
                              esp_plan_slot *slot, esp_error *error)
{
    ESP_TRY(esp_linear_choose(nn->device, linear, nn->ops, nn->compute, tokens, nn->options,
                              &slot->plan, &slot->later, error));
    if (slot->plan.workspace_bytes <= nn->workspace_bytes) {
        return ESP_OK;
    }
    esp_plan_options predicted = *nn->options;
    predicted.ignore_tuning = true;
    return esp_linear_choose(nn->device, linear, nn->ops, nn->compute, tokens, &predicted,
                             &slot->plan, &slot->later, error);
}

static esp_status finish(const esp_nn *nn, const esp_linear *linear, const esp_linear_call *call,
                         unsigned later, esp_error *error)
{
    const float *bias = (later & ESP_EP_BIAS) != 0 ? linear->bias : NULL;
    return esp_nn_done(nn->ops->finish(nn->device, nn->stream, bias, later & ~(unsigned)ESP_EP_BIAS,
                                       linear->weight->out_features, call->tokens, call->y),
                       "finish", error);
}

esp_prepare esp_prepare_norm(const float *weight, float eps, void *to)
{
    return (esp_prepare){.prologue = {.kind = ESP_PROLOGUE_RMS_NORM, .weight = weight, .eps = eps},
                         .to = to};
}

esp_prepare esp_prepare_gate(const void *up, void *to)
{
    return (esp_prepare){.prologue = {.kind = ESP_PROLOGUE_SWIGLU, .up = up}, .to = to};
}

esp_prepare esp_prepare_layer_norm(const float *weight, const float *bias, float eps, void *to)
{
    return (esp_prepare){
        .prologue = {.weight = weight, .eps = eps}, .centers = true, .bias = bias, .to = to};
}

/* The operation in front of a product, from x. */
static esp_status run_prepare(const esp_nn *nn, const esp_prepare *ahead, const void *x,
                              int64_t features, int64_t tokens, esp_error *error)
{
    const esp_prologue *of = &ahead->prologue;
    if (of->kind == ESP_PROLOGUE_SWIGLU) {
        return esp_nn_done(
            nn->ops->swiglu(nn->device, nn->stream, x, of->up, features * tokens, ahead->to),
            "swiglu", error);
    }
    if (ahead->centers) {
        return esp_nn_done(nn->ops->layer_norm(nn->device, nn->stream, x, of->weight, ahead->bias,
                                               of->eps, features, tokens, ahead->to),
                           "layer_norm", error);
    }
    return esp_nn_done(nn->ops->rms_norm(nn->device, nn->stream, x, of->weight, of->eps, features,
                                         tokens, ahead->to),
                       "rms_norm", error);
}

/* Runs it, once, and has the product read what it made. */
static esp_status prepare(const esp_nn *nn, const esp_linear *linear, esp_linear_call *call,
                          esp_error *error)
{
    esp_prepare *ahead = call->prepare;
    const void *x = call->x;
    call->x = ahead->to;
    call->prepare = NULL;
    if (ahead->done) {
        return ESP_OK;
    }
    ahead->done = true;
    return run_prepare(nn, ahead, x, linear->weight->in_features, call->tokens, error);
}

/* ---- norms that the weight holds ---- */

void esp_moments_forget(const esp_nn *nn, const void *x)
{
    if (nn->moments != NULL && nn->moments->x == x) {
        nn->moments->x = NULL;
    }
}

/* Those of what the product reads: left by the product that wrote it, or found now. */
static esp_status find_moments(const esp_nn *nn, const esp_linear *linear,
                               const esp_linear_call *call, esp_normed *normed, esp_error *error)
{
    esp_known_moments *known = nn->moments;
    if (known->x != call->x || known->tokens != call->tokens) {
        known->x = NULL; /* should it fail */
        ESP_TRY(
            esp_nn_done(nn->ops->moments(nn->device, nn->stream, call->x,
                                         linear->weight->in_features, call->tokens, known->memory),
                        "moments", error));
        known->x = call->x;
        known->tokens = call->tokens;
        known->parts = 1;
    }
    *normed = (esp_normed){.of_x = {known->memory, known->parts},
                           .row_sums = linear->row_sums,
                           .eps = call->prepare->prologue.eps};
    return ESP_OK;
}

static esp_plan_slot *slot_of(const esp_nn *nn, const esp_linear *linear, int64_t tokens,
                              esp_plan_slot *once)
{
    return nn->plans != NULL ? &nn->plans[2 * linear->number + (tokens != 1)] : once;
}

static esp_status find_plan(const esp_nn *nn, const esp_linear *linear, int64_t tokens,
                            esp_plan_slot *slot, esp_error *error)
{
    if (slot->tokens != tokens) {
        slot->tokens = 0; /* should the choice fail */
        ESP_TRY(plan_within(nn, linear, tokens, slot, error));
        slot->tokens = tokens;
    }
    return ESP_OK;
}

bool esp_linear_gates(const esp_nn *nn, const esp_linear *linear, int64_t tokens)
{
    esp_plan_slot once = {.tokens = 0}, *slot = slot_of(nn, linear, tokens, &once);
    esp_error ignored;
    return find_plan(nn, linear, tokens, slot, &ignored) == ESP_OK && slot->later == 0 &&
           esp_plan_gates(&slot->plan, linear->weight);
}

/* Whether the product of a layer finishes the norm that its weight holds. */
static bool norms(const esp_nn *nn, const esp_linear *linear, const esp_plan_slot *slot)
{
    return linear->holds_norm && nn->moments != NULL && esp_plan_norms(&slot->plan, linear->weight);
}

/* The parts in which the product leaves moments of y for its reader; 0: it does not. */
static int parts_left(const esp_nn *nn, const esp_linear *linear, const esp_linear_call *call,
                      const esp_plan_slot *slot)
{
    int parts = call->reader != NULL && nn->moments != NULL && slot->later == 0
                    ? esp_plan_moment_parts(&slot->plan, linear->weight)
                    : 0;
    if (parts == 0 || parts > nn->moments->most || call->tokens > nn->moments->columns) {
        return 0;
    }
    esp_plan_slot once = {.tokens = 0}, *reads = slot_of(nn, call->reader, call->tokens, &once);
    esp_error ignored; /* it comes again where that layer runs */
    return find_plan(nn, call->reader, call->tokens, reads, &ignored) == ESP_OK &&
                   norms(nn, call->reader, reads)
               ? parts
               : 0;
}

/* How the operation in front of the product is done; with `normed` filled in by the product. */
static esp_status open(const esp_nn *nn, const esp_linear *linear, const esp_plan_slot *slot,
                       esp_linear_call *call, esp_normed *normed, esp_error *error)
{
    const esp_prepare *ahead = call->prepare;
    if (ahead == NULL) {
        return ESP_OK;
    }
    bool alone = nn->tap != NULL || ahead->done;
    if (!alone && !ahead->centers && esp_plan_takes(&slot->plan, ahead->prologue.kind)) {
        return ESP_OK;
    }
    if (!alone && !call->gates && ahead->prologue.kind != ESP_PROLOGUE_SWIGLU &&
        norms(nn, linear, slot)) {
        ESP_TRY(find_moments(nn, linear, call, normed, error));
        call->prepare = NULL;
        return ESP_OK;
    }
    return prepare(nn, linear, call, error);
}

static esp_status run_product(const esp_nn *nn, const esp_linear *linear,
                              const esp_linear_call *call, const esp_plan_slot *slot,
                              const esp_normed *normed, esp_error *error)
{
    esp_moments left = {.parts = parts_left(nn, linear, call, slot)};
    left.values = left.parts > 0 ? nn->moments->memory : NULL;
    esp_matmul_args args = {.weight = linear->weight,
                            .x = call->x,
                            .x_stride = call->x_stride,
                            .y = call->y,
                            .bias = linear->bias,
                            .residual = call->residual,
                            .workspace = nn->workspace,
                            .stream = nn->stream};
    const esp_around around = {.prologue = call->prepare != NULL ? &call->prepare->prologue : NULL,
                               .next = call->next != NULL ? call->next->weight : NULL,
                               .gates = call->gates,
                               .normed = normed->of_x.parts > 0 ? normed : NULL,
                               .moments = left.parts > 0 ? &left : NULL};
    esp_moments_forget(nn, call->y);
    ESP_TRY(esp_plan_run(&slot->plan, &args, &around, error));
    if (left.parts > 0) {
        nn->moments->x = call->y;
        nn->moments->tokens = call->tokens;
        nn->moments->parts = left.parts;
    }
    return slot->later != 0 ? finish(nn, linear, call, slot->later, error) : ESP_OK;
}

esp_status esp_linear_run(const esp_nn *nn, const esp_linear *linear, const esp_linear_call *given,
                          esp_error *error)
{
    esp_plan_slot once = {.tokens = 0};
    esp_linear_call own = *given, *call = &own;
    esp_normed normed = {.of_x = {NULL, 0}};
    esp_plan_slot *slot = slot_of(nn, linear, call->tokens, &once);
    ESP_TRY(find_plan(nn, linear, call->tokens, slot, error));
    ESP_TRY(open(nn, linear, slot, call, &normed, error));
    if (nn->tap != NULL) {
        ESP_TRY(nn->tap->see(nn->tap->user, linear, call, error));
    }
    return run_product(nn, linear, call, slot, &normed, error);
}
