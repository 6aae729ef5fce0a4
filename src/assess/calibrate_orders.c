/* Orders of channels under calibration: the dense model is walked once over the samples, and each
 * weight scored by what dropping it costs the outputs that the samples give, all others of its row
 * following: w^2 / [H^-1]_jj (Optimal Brain Surgeon). A step of the search (src/prune/permute.c) is
 * taken only where by this measure less is lost. */
#include "assess/calibrate.h"

typedef struct order_job {
    esp_calibration calibration;
    double **diagonals; /* [linears][in]: of H^-1; NULL: not pruned */
} order_job;

static esp_status look(order_job *job, int64_t number, esp_error *error)
{
    esp_calibration *calibration = &job->calibration;
    const esp_calibrated_linear *linear = &calibration->linears[number];
    const esp_group_inputs *inputs = &calibration->inputs;
    ESP_TRY(esp_calibration_advance(calibration, linear->layer, error));
    ESP_TRY(esp_calibration_collect(calibration, linear, error));
    ESP_TRY(esp_calibration_invert(calibration, error));
    double *diagonal = esp_alloc_array(calibration->context, (size_t)inputs->in, sizeof *diagonal);
    if (diagonal == NULL) {
        return esp_fail_memory(error, (size_t)inputs->in * sizeof *diagonal, "scores");
    }
    for (int64_t j = 0; j < inputs->in; j++) {
        diagonal[j] = inputs->inverse[j * inputs->in + j];
    }
    job->diagonals[number] = diagonal;
    esp_weight_info weight = esp_checkpoint_get(calibration->checkpoint, linear->index);
    calibration->done += (double)weight.shape[0] * (double)weight.shape[1];
    return ESP_OK;
}

static esp_status look_at_all(order_job *job, const char *model_dir, esp_error *error)
{
    esp_calibration *calibration = &job->calibration;
    ESP_TRY(esp_calibration_open(calibration, model_dir, error));
    size_t count = (size_t)calibration->linear_count;
    job->diagonals = esp_alloc_zero(calibration->context, count * sizeof *job->diagonals);
    if (job->diagonals == NULL) {
        return esp_fail_memory(error, count * sizeof *job->diagonals, "scores");
    }
    for (int64_t i = 0; i < calibration->linear_count; i++) {
        ESP_TRY(look(job, i, error));
    }
    return ESP_OK;
}

/* An esp_scores_fn. Layers that no sample reaches are scored by their weights alone. */
static esp_status score(void *user, const char *name, const esp_tensor *dense, float *scores,
                        esp_error *error)
{
    (void)error;
    const order_job *job = user;
    const double *diagonal = NULL;
    int64_t out = dense->shape[0], in = dense->shape[1];
    for (int64_t i = 0; i < job->calibration.linear_count; i++) {
        if (strcmp(job->calibration.linears[i].name, name) == 0) {
            diagonal = job->diagonals[i];
        }
    }
    esp_widen(dense->dtype, dense->data, out * in, scores);
    double most = 0;
    for (int scaled = 0; scaled < 2; scaled++) { /* layers count by the share that they lose */
        double sum = 0;
        for (int64_t i = 0; i < out * in; i++) {
            double w = (double)scores[i];
            double cost = scaled == 0 ? w * w / (diagonal != NULL ? diagonal[i % in] : 1) : 0;
            sum += cost;
            scores[i] = scaled == 0 ? (float)cost : (float)((double)scores[i] / most);
        }
        most = scaled == 0 ? (sum > 0 ? sum : 1) : most;
    }
    return ESP_OK;
}

static void close(order_job *job)
{
    esp_calibration *calibration = &job->calibration;
    for (int64_t i = 0; job->diagonals != NULL && i < calibration->linear_count; i++) {
        esp_release(calibration->context, job->diagonals[i]);
    }
    esp_release(calibration->context, job->diagonals);
    esp_calibration_close(calibration);
}

esp_status esp_permutation_calibrate(esp_device *device, const char *model_dir,
                                     const esp_prune_options *prune,
                                     const esp_permute_options *permute,
                                     const esp_calibration_options *calibration,
                                     esp_permutation **permutation, esp_error *error)
{
    static const esp_permute_options defaults = {0};
    esp_prune_options plain = *prune;
    esp_calibration_options options = *calibration;
    plain.permutation = NULL;
    plain.progress = permute != NULL ? permute->progress : NULL;
    plain.user = permute != NULL ? permute->user : NULL;
    options.method = ESP_METHOD_OBD; /* of the inputs, their moments alone */
    options.refit = false;
    order_job job = {.calibration = {.context = device->context,
                                     .device = device,
                                     .prune = &plain,
                                     .options = &options,
                                     .looks_only = true}};
    esp_status status = look_at_all(&job, model_dir, error);
    if (status == ESP_OK) {
        esp_permute_options search = permute != NULL ? *permute : defaults;
        search.scores = score;
        search.score_user = &job;
        search.score_name = "obs";
        status =
            esp_permutation_search(device->context, model_dir, prune, &search, permutation, error);
    }
    close(&job);
    return status;
}
