/* Norms that the weights behind them hold. Of a norm that only linear layers read,
 *
 *   W ((x - mean) / deviation * g + h) + b  =  (W' x - mean W' 1) / deviation + (b + W h)
 *
 * with W' the weight whose columns are multiplied by g. A kernel that sums W' x ends with the rest
 * of it, given mean and deviation of each token, so that nobody writes a normed x and reads it
 * back; W' 1, a number for each row, is of the weights as they are stored, rounding and all.
 * Kernels that do not end so read the norm with g = 1 and h = 0. Where rounding W' would lose more
 * than rounding loses of normal numbers (too large for f16, or too small), the norm stays what it
 * was, for all who read it. */
#include "model/family.h"

/* A norm, and of each layer that reads it what its rows were found to be; memory of the host. */
typedef struct norm_numbers {
    int64_t features;
    bool centered;
    float *weight, *bias;                   /* [features] */
    esp_scaled_row *rows[ESP_MOST_READERS]; /* [out] of each reader */
    float *vector;                          /* [out] of any */
} norm_numbers;

static void release_numbers(const esp_model *model, const norm_numbers *norm)
{
    esp_release(model->context, norm->weight);
    esp_release(model->context, norm->bias);
    esp_release(model->context, norm->vector);
    for (int i = 0; i < ESP_MOST_READERS; i++) {
        esp_release(model->context, norm->rows[i]);
    }
}

static esp_status take_numbers(const esp_model *model, const esp_readers *readers,
                               norm_numbers *norm, esp_error *error)
{
    size_t features = (size_t)norm->features, most = 0;
    bool there = true;
    for (int i = 0; i < readers->count; i++) {
        size_t out = (size_t)readers->wants[i]->out;
        most = ESP_MAX(most, out);
        norm->rows[i] = esp_alloc_array(model->context, out, sizeof *norm->rows[i]);
        there = there && norm->rows[i] != NULL;
    }
    norm->weight = esp_alloc_array(model->context, features, sizeof *norm->weight);
    norm->bias = esp_alloc_array(model->context, features, sizeof *norm->bias);
    norm->vector = esp_alloc_array(model->context, most, sizeof *norm->vector);
    there = there && norm->weight != NULL && norm->bias != NULL && norm->vector != NULL;
    return there ? ESP_OK : esp_fail_memory(error, most * sizeof *norm->rows[0], "a norm");
}

static esp_status read_norm(const esp_model *model, const esp_readers *readers, norm_numbers *norm,
                            esp_error *error)
{
    const esp_norm_at *at = &readers->wants[0]->reads;
    norm->features = readers->wants[0]->in;
    norm->centered = at->bias != NULL;
    ESP_TRY(take_numbers(model, readers, norm, error));
    ESP_TRY(esp_vector_read(model, *at->weight, norm->features, norm->weight, error));
    return norm->centered ? esp_vector_read(model, *at->bias, norm->features, norm->bias, error)
                          : ESP_OK;
}

/* The type in which a weight will be stored: fit_type of weights.c. */
static esp_dtype stored_type(const esp_model *model, const esp_sparse *sparse)
{
    return model->ops->type == ESP_F32 ? esp_sparse_dtype(sparse) : model->ops->type;
}

static bool scale_all(const esp_model *model, const esp_readers *readers, const norm_numbers *norm)
{
    for (int i = 0; i < readers->count; i++) {
        const esp_scaling scaling = {.factors = norm->weight,
                                     .addends = norm->centered ? norm->bias : NULL,
                                     .stored = stored_type(model, readers->sparse[i]),
                                     .rows = norm->rows[i]};
        if (!esp_sparse_scale(readers->sparse[i], &scaling)) {
            esp_log(model->context, ESP_LOG_INFO,
                    "%s: times the weight of the norm that it reads it would not fit %s well; that "
                    "norm stays by itself",
                    readers->wants[i]->linear->name, esp_dtype_name(scaling.stored));
            return false;
        }
    }
    return true;
}

static esp_status take_vector(esp_model *model, const norm_numbers *norm, int64_t count,
                              const char *name, float **vector, esp_error *error)
{
    return esp_vector_take(&model->weights, norm->vector, count, name, vector, error);
}

/* W h joins the bias; what zeros make stays known. */
static esp_status hold_bias(esp_model *model, const norm_numbers *norm, esp_linear *linear,
                            const esp_scaled_row *rows, int64_t out, esp_error *error)
{
    bool any = false;
    memset(norm->vector, 0, (size_t)out * sizeof *norm->vector);
    if (linear->bias != NULL) {
        ESP_TRY(esp_vector_read(model, linear->bias, out, norm->vector, error));
    }
    for (int64_t row = 0; row < out; row++) {
        any = any || rows[row].addend != 0;
        norm->vector[row] = (float)((double)norm->vector[row] + rows[row].addend);
    }
    linear->own_bias = linear->bias;
    linear->bias = NULL; /* should there be no room */
    return linear->own_bias != NULL || any
               ? take_vector(model, norm, out, linear->name, &linear->bias, error)
               : ESP_OK;
}

static esp_status hold_sums(esp_model *model, const norm_numbers *norm, esp_linear *linear,
                            const esp_scaled_row *rows, int64_t out, esp_error *error)
{
    for (int64_t row = 0; row < out; row++) {
        norm->vector[row] = (float)rows[row].sum;
    }
    return take_vector(model, norm, out, linear->name, &linear->row_sums, error);
}

/* What is left where the norm was. */
static esp_status leave_plain(const esp_model *model, const norm_numbers *norm,
                              const esp_norm_at *at, esp_error *error)
{
    size_t bytes = (size_t)norm->features * sizeof(float);
    for (int64_t i = 0; i < norm->features; i++) {
        norm->weight[i] = 1.0f;
        norm->bias[i] = 0.0f;
    }
    ESP_TRY(esp_device_upload(model->device, *at->weight, norm->weight, bytes, error));
    return norm->centered ? esp_device_upload(model->device, *at->bias, norm->bias, bytes, error)
                          : ESP_OK;
}

static esp_status hold(esp_model *model, const esp_readers *readers, const norm_numbers *norm,
                       esp_error *error)
{
    for (int i = 0; i < readers->count; i++) {
        esp_linear *linear = readers->wants[i]->linear;
        int64_t out = readers->wants[i]->out;
        linear->holds_norm = true;
        if (norm->centered) {
            ESP_TRY(hold_bias(model, norm, linear, norm->rows[i], out, error));
            ESP_TRY(hold_sums(model, norm, linear, norm->rows[i], out, error));
        }
    }
    return leave_plain(model, norm, &readers->wants[0]->reads, error);
}

/* Layer by layer, each weight and what it reads are looked at as they are. */
bool esp_model_holds_norms(const esp_model *model, bool centered)
{
    return model->ops->moments != NULL && !model->by_layer && (centered || !model->ops->rms_apart);
}

esp_status esp_norm_hold(esp_model *model, const esp_readers *readers, bool *held, esp_error *error)
{
    norm_numbers norm = {.features = 0};
    bool fits = false;
    esp_status status = read_norm(model, readers, &norm, error);
    if (status == ESP_OK) {
        fits = scale_all(model, readers, &norm);
        status = fits ? hold(model, readers, &norm, error) : ESP_OK;
    }
    release_numbers(model, &norm);
    *held = fits;
    return status;
}
