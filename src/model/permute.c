/* A permutation for a whole model: which layers prune would take (pipeline), which orders are free
 * (fold.c), then the search (src/prune) over the scores of those layers. */
#include <float.h>
#include <math.h>
#include <stdio.h>

#include "model/fold.h"
#include "pipeline/pipeline.h"

typedef struct permuting {
    esp_context *context;
    const esp_checkpoint *checkpoint;
    const esp_prune_options *prune;
    const esp_permute_options *options;
    esp_fold_plan plan;
    esp_pattern *patterns; /* [tensors] */
    esp_permute_weight *weights;
    int64_t *tensors; /* [weight_count]: of the checkpoint */
    int64_t weight_count;
} permuting;

/* ---- scores ---- */

static void score_weights(const esp_tensor *dense, bool square, float *scores)
{
    int64_t count = dense->shape[0] * dense->shape[1];
    esp_widen(dense->dtype, dense->data, count, scores);
    for (int64_t i = 0; i < count; i++) {
        float magnitude = fabsf(scores[i]);
        scores[i] = square ? magnitude * magnitude : magnitude;
    }
}

/* NaN and infinity are kept before all else. */
static void bound_scores(float *scores, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        scores[i] = scores[i] >= 0 && scores[i] < ESP_PERMUTE_MOST ? scores[i] : ESP_PERMUTE_MOST;
    }
}

static esp_status read_scores(const permuting *job, int64_t index, esp_permute_weight *weight,
                              esp_error *error)
{
    esp_tensor dense;
    esp_weight_info info = esp_checkpoint_get(job->checkpoint, index);
    size_t count = (size_t)weight->out * (size_t)weight->in; /* elements of a tensor that exists */
    weight->scores = esp_alloc_array(job->context, count, sizeof *weight->scores);
    if (weight->scores == NULL) {
        return esp_fail_memory(error, count * sizeof *weight->scores, "scores of a whole model");
    }
    ESP_TRY(esp_tensor_create(job->context, info.dtype, info.rank, info.shape, &dense, error));
    esp_status status = esp_checkpoint_read_dense(job->checkpoint, index, &dense, error);
    if (status == ESP_OK && job->options->scores != NULL) {
        status = job->options->scores(job->options->score_user, info.name, &dense, weight->scores,
                                      error);
    } else if (status == ESP_OK) {
        score_weights(&dense, job->prune->mask.score == ESP_SCORE_SQUARE, weight->scores);
    }
    if (status == ESP_OK) {
        bound_scores(weight->scores, (int64_t)count);
    }
    esp_tensor_free(job->context, &dense);
    return status;
}

/* Lists are chosen anew after every step: those of a joint search, which costs a hundred times as
 * much, are left to the masks. */
static esp_search search_of(const permuting *job, const esp_pattern *pattern)
{
    esp_search search = job->prune->mask.search;
    return esp_prune_search_of(search == ESP_SEARCH_JOINT ? ESP_SEARCH_AUTO : search, pattern);
}

static esp_status add_weight(permuting *job, int64_t index, esp_error *error)
{
    const esp_permutation *permutation = job->plan.permutation;
    esp_weight_info info = esp_checkpoint_get(job->checkpoint, index);
    const esp_pattern *pattern = &job->patterns[index];
    int rows = esp_permutation_axis(permutation, info.name, 0);
    int columns = esp_permutation_axis(permutation, info.name, 1);
    if (pattern->kind != ESP_PATTERN_PANEL || (rows < 0 && columns < 0)) {
        return ESP_OK;
    }
    job->tensors[job->weight_count] = index;
    esp_permute_weight *weight = &job->weights[job->weight_count++];
    *weight = (esp_permute_weight){.out = info.shape[0],
                                   .in = info.shape[1],
                                   .pattern = *pattern,
                                   .search = search_of(job, pattern),
                                   .rows = rows,
                                   .columns = columns};
    return read_scores(job, index, weight, error);
}

static esp_status add_weights(permuting *job, esp_error *error)
{
    int64_t count = esp_checkpoint_count(job->checkpoint);
    for (int64_t i = 0; i < count; i++) {
        if (job->options->progress != NULL &&
            !job->options->progress(job->options->user, "reading", (double)i, (double)count,
                                    "tensors")) {
            return esp_fail(error, ESP_CANCELLED, "cancelled",
                            "permuting was interrupted; nothing was written");
        }
        ESP_TRY(add_weight(job, i, error));
    }
    if (job->weight_count == 0) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "permutation.no_pattern",
                        "%s: no layer gains by another order of channels: it matters for 2:4, "
                        "V:2:M and panel:V@S",
                        esp_checkpoint_path(job->checkpoint));
    }
    return ESP_OK;
}

/* ---- the whole ---- */

static esp_status make_plan(permuting *job, esp_error *error)
{
    esp_device *device;
    esp_model *model = NULL;
    ESP_TRY(esp_device_open(job->context, "cpu", &device, error));
    esp_status status = esp_model_outline(device, job->checkpoint, &model, error);
    if (status == ESP_OK) {
        status =
            esp_fold_make(model, job->checkpoint, job->options->keep_residual, &job->plan, error);
    }
    esp_model_free(model);
    esp_device_close(device);
    return status;
}

static esp_status error_of(void *user, int64_t weight, double *layer_error, esp_error *error)
{
    const permuting *job = user;
    const esp_permute_options *options = job->options;
    int64_t index = job->tensors[weight];
    if (options->progress != NULL &&
        !options->progress(options->user, "judging orders", (double)weight,
                           (double)job->weight_count, "layers")) {
        return esp_fail(error, ESP_CANCELLED, "cancelled",
                        "permuting was interrupted; nothing was written");
    }
    return options->order_error(options->error_user,
                                esp_checkpoint_get(job->checkpoint, index).name,
                                &job->patterns[index], job->plan.permutation, layer_error, error);
}

static esp_status search(permuting *job, esp_error *error)
{
    size_t count = (size_t)esp_checkpoint_count(job->checkpoint);
    job->patterns = esp_alloc_array(job->context, count, sizeof *job->patterns);
    job->weights = esp_alloc_array(job->context, count, sizeof *job->weights);
    job->tensors = esp_alloc_array(job->context, count, sizeof *job->tensors);
    if (job->patterns == NULL || job->weights == NULL || job->tensors == NULL) {
        return esp_fail_memory(error, count * sizeof *job->weights, "the list of layers");
    }
    ESP_TRY(esp_prune_patterns(job->context, job->checkpoint, job->prune, job->patterns, error));
    ESP_TRY(make_plan(job, error));
    ESP_TRY(add_weights(job, error));
    const esp_permute_job permute = {.context = job->context,
                                     .weights = job->weights,
                                     .weight_count = job->weight_count,
                                     .spaces = job->plan.spaces,
                                     .space_count = job->plan.space_count,
                                     .rounds = job->options->rounds > 0 ? job->options->rounds : 2,
                                     .permutation = job->plan.permutation,
                                     .progress = job->options->progress,
                                     .user = job->options->user,
                                     .error_of =
                                         job->options->order_error != NULL ? error_of : NULL,
                                     .error_user = job};
    ESP_TRY(esp_permute(&permute, error));
    return esp_permutation_check(job->plan.permutation, error);
}

static const char *score_name(const permuting *job)
{
    if (job->options->scores != NULL) {
        return job->options->score_name != NULL ? job->options->score_name : "given";
    }
    return job->prune->mask.score == ESP_SCORE_SQUARE ? "square" : "abs";
}

static esp_status check_source(const esp_checkpoint *checkpoint, esp_error *error)
{
    if (esp_checkpoint_is_compressed(checkpoint) ||
        esp_checkpoint_form(checkpoint) != ESP_FORM_ESPALIER) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "permutation.compressed",
                        "%s: is compressed already; start from the dense model, or make one with "
                        "'espalier convert --dense'",
                        esp_checkpoint_path(checkpoint));
    }
    return ESP_OK;
}

esp_status esp_permutation_search(esp_context *context, const char *model_dir,
                                  const esp_prune_options *prune,
                                  const esp_permute_options *options, esp_permutation **permutation,
                                  esp_error *error)
{
    static const esp_permute_options defaults = {0};
    permuting job = {
        .context = context, .prune = prune, .options = options != NULL ? options : &defaults};
    esp_checkpoint *checkpoint;
    ESP_TRY(esp_checkpoint_open(context, model_dir, &checkpoint, error));
    job.checkpoint = checkpoint;
    esp_status status = check_source(checkpoint, error);
    if (status == ESP_OK) {
        status = search(&job, error);
    }
    for (int64_t i = 0; i < job.weight_count; i++) {
        esp_release(context, job.weights[i].scores);
    }
    esp_release(context, job.weights);
    esp_release(context, job.tensors);
    esp_release(context, job.patterns);
    if (status == ESP_OK) {
        esp_permutation *made = job.plan.permutation;
        made->score = score_name(&job);
        job.plan.permutation = NULL;
        *permutation = made;
    }
    esp_fold_plan_free(context, &job.plan);
    esp_checkpoint_close(checkpoint);
    return status;
}
