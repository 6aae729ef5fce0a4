/* Turning the values of attention, so that pruning what mixes them costs less.
 *
 * Attention weighs values token by token and the same for all channels of a head, so with any
 * orthogonal R of a head's channels
 *     rows of v: R W_v,   columns of o that read the head: W_o R^T
 * compute what they did. R's rows are the principal axes of what o reads of the head in the dense
 * model (summed over the query heads that share it), which gathers its energy in few channels and
 * leaves these uncorrelated; they are dealt so that each group of M columns gets one of each rank
 * band, and what its panel drops is the weakest. It costs nothing when the model runs. Rotations of
 * this kind are known from quantisation and slicing (SliceGPT, arXiv 2401.15024), there against
 * outliers or to cut the weakest channels off.
 *
 * Only where v has no bias, and where both weights are pruned. */
#include "assess/calibrate.h"

#define MOST_SAMPLES 16

struct esp_turning {
    esp_value_places *places;
    esp_pattern *patterns; /* [tensors] */
    int64_t layer;         /* that matrix is of; -1: none */
    double *matrix;        /* [key-value heads][head][head] */
};

static bool is_pruned(const esp_calibration *calibration, const char *name)
{
    int64_t index = name != NULL ? esp_checkpoint_find(calibration->checkpoint, name) : -1;
    return index >= 0 && calibration->turning->patterns[index].kind != ESP_PATTERN_DENSE;
}

/* heads->o is NULL where the layer cannot be turned. */
static esp_value_heads look_up(const esp_calibration *calibration, int64_t layer)
{
    esp_value_heads found = esp_value_places_of(calibration->turning->places, layer);
    bool turns =
        !found.has_bias && is_pruned(calibration, found.v) && is_pruned(calibration, found.o);
    return turns ? found : (esp_value_heads){0};
}

/* ---- which way ---- */

/* What o reads of one head, summed over the heads that share its values; in the order of pruning.
 */
static void head_moments(const esp_calibration *calibration, const esp_value_heads *of, int64_t in,
                         const double *gram, int64_t head, double *moments)
{
    const esp_permutation *orders = calibration->prune->permutation;
    int axis = orders != NULL ? esp_permutation_axis(orders, of->o, 1) : -1;
    const uint32_t *order = axis >= 0 ? orders->axes[axis].order : NULL;
    int64_t n = of->head;
    memset(moments, 0, (size_t)(n * n) * sizeof *moments);
    for (int64_t copy = 0; copy < of->mixed.copies; copy++) {
        for (int64_t i = 0; i < n; i++) {
            for (int64_t j = 0; j < n; j++) {
                int64_t a = esp_space_place(&of->mixed, head * n + i, copy);
                int64_t b = esp_space_place(&of->mixed, head * n + j, copy);
                a = order != NULL ? order[a] : a;
                b = order != NULL ? order[b] : b;
                moments[i * n + j] += gram[a * in + b];
            }
        }
    }
}

static esp_status find_axes(esp_calibration *calibration, const esp_value_heads *of, int64_t in,
                            const double *gram, esp_error *error)
{
    esp_context *context = calibration->context;
    int64_t n = of->head, index = esp_checkpoint_find(calibration->checkpoint, of->o);
    const esp_pattern *pattern = &calibration->turning->patterns[index];
    size_t square = (size_t)(n * n);
    double *room = esp_alloc_array(context, 2 * square + (size_t)n, sizeof *room);
    int64_t *rank_of = esp_alloc_array(context, (size_t)n, sizeof *rank_of);
    double *matrix = esp_alloc_array(context, (size_t)of->heads * square, sizeof *matrix);
    esp_status status = ESP_OK;
    if (room == NULL || rank_of == NULL || matrix == NULL) {
        esp_release(context, matrix);
        status = esp_fail_memory(error, (size_t)of->heads * square * sizeof *matrix, "rotations");
    } else {
        esp_deal_ranks(n, esp_turn_group(pattern), rank_of);
        for (int64_t h = 0; h < of->heads && status == ESP_OK; h++) {
            head_moments(calibration, of, in, gram, h, room);
            status = esp_principal_axes(calibration->algebra, room, n, room + 2 * square,
                                        room + square, NULL, error);
            for (int64_t place = 0; place < n && status == ESP_OK; place++) {
                memcpy(matrix + (h * n + place) * n, room + square + rank_of[place] * n,
                       (size_t)n * sizeof *matrix);
            }
        }
        esp_release(context, calibration->turning->matrix);
        calibration->turning->matrix = matrix;
    }
    esp_release(context, room);
    esp_release(context, rank_of);
    return status;
}

static const esp_calibrated_linear *linear_named(const esp_calibration *calibration,
                                                 const char *name)
{
    for (int64_t i = 0; i < calibration->linear_count; i++) {
        if (strcmp(calibration->linears[i].name, name) == 0) {
            return &calibration->linears[i];
        }
    }
    return NULL;
}

static esp_status learn(esp_calibration *calibration, const esp_value_heads *of, int64_t layer,
                        esp_error *error)
{
    const esp_calibrated_linear *o = linear_named(calibration, of->o);
    int64_t in = esp_checkpoint_get(calibration->checkpoint, o->index).shape[1];
    double *gram = esp_alloc_array(calibration->context, (size_t)(in * in), sizeof *gram);
    if (gram == NULL) {
        return esp_fail_memory(error, (size_t)(in * in) * sizeof *gram, "moments of values");
    }
    esp_status status = esp_calibration_dense_moments(calibration, o, MOST_SAMPLES, gram, error);
    status = status == ESP_OK ? find_axes(calibration, of, in, gram, error) : status;
    esp_release(calibration->context, gram);
    calibration->turning->layer = status == ESP_OK ? layer : -1;
    return status;
}

/* ---- turning ---- */

/* lines[place(d)] of each head becomes sum of R_dj lines[place(j)]; lines are `stride` apart, each
 * of `count` numbers `step` apart. */
static esp_status turn_lines(const esp_calibration *calibration, const esp_value_heads *of,
                             const esp_space_part *part, double *lines, int64_t stride,
                             int64_t count, int64_t step, esp_error *error)
{
    int64_t n = of->head;
    double *old = esp_alloc_array(calibration->context, (size_t)n, sizeof *old);
    if (old == NULL) {
        return esp_fail_memory(error, (size_t)n * sizeof *old, "a rotation");
    }
    for (int64_t h = 0; h < of->heads * part->copies; h++) {
        int64_t head = h / part->copies, copy = h % part->copies;
        const double *r = calibration->turning->matrix + head * n * n;
        for (int64_t k = 0; k < count; k++) {
            for (int64_t j = 0; j < n; j++) {
                old[j] = lines[esp_space_place(part, head * n + j, copy) * stride + k * step];
            }
            for (int64_t d = 0; d < n; d++) {
                double sum = 0;
                for (int64_t j = 0; j < n; j++) {
                    sum += r[d * n + j] * old[j];
                }
                lines[esp_space_place(part, head * n + d, copy) * stride + k * step] = sum;
            }
        }
    }
    esp_release(calibration->context, old);
    return ESP_OK;
}

/* Whether the weight is turned; then the layer's matrix is there. */
static esp_status prepare(esp_calibration *calibration, const esp_calibrated_linear *linear,
                          esp_value_heads *of, bool *is_v, bool *is_o, esp_error *error)
{
    *is_v = *is_o = false;
    if (calibration->turning == NULL) {
        return ESP_OK;
    }
    *of = look_up(calibration, linear->layer);
    *is_v = of->o != NULL && strcmp(linear->name, of->v) == 0;
    *is_o = of->o != NULL && strcmp(linear->name, of->o) == 0;
    return (*is_v || *is_o) && calibration->turning->layer != linear->layer
               ? learn(calibration, of, linear->layer, error)
               : ESP_OK;
}

esp_status esp_calibration_turn_weights(esp_calibration *calibration,
                                        const esp_calibrated_linear *linear, int64_t out,
                                        int64_t in, double *weights, esp_error *error)
{
    esp_value_heads of;
    bool is_v, is_o;
    ESP_TRY(prepare(calibration, linear, &of, &is_v, &is_o, error));
    if (is_v) {
        ESP_TRY(turn_lines(calibration, &of, &of.values, weights, in, in, 1, error));
    }
    return is_o ? turn_lines(calibration, &of, &of.mixed, weights, 1, out, in, error) : ESP_OK;
}

esp_status esp_calibration_turn_inputs(esp_calibration *calibration,
                                       const esp_calibrated_linear *linear, double *cross,
                                       esp_error *error)
{
    esp_value_heads of;
    bool is_v, is_o;
    ESP_TRY(prepare(calibration, linear, &of, &is_v, &is_o, error));
    int64_t in = calibration->inputs.in;
    return is_o && cross != NULL ? turn_lines(calibration, &of, &of.mixed, cross, in, in, 1, error)
                                 : ESP_OK;
}

/* ---- begin and end ---- */

esp_status esp_calibration_turn_open(esp_calibration *calibration, esp_error *error)
{
    esp_context *context = calibration->context;
    if (!calibration->options->turn_values) {
        return ESP_OK;
    }
    size_t tensors = (size_t)esp_checkpoint_count(calibration->checkpoint);
    esp_turning *turning = esp_alloc_zero(context, sizeof *turning);
    if (turning == NULL) {
        return esp_fail_memory(error, sizeof *turning, "rotations");
    }
    turning->layer = -1;
    calibration->turning = turning;
    turning->patterns = esp_alloc_array(context, tensors, sizeof *turning->patterns);
    if (turning->patterns == NULL) {
        return esp_fail_memory(error, tensors * sizeof *turning->patterns, "rotations");
    }
    ESP_TRY(esp_prune_patterns(context, calibration->checkpoint, calibration->prune,
                               turning->patterns, error));
    return esp_value_places_find(calibration->device, calibration->checkpoint, &turning->places,
                                 error);
}

int esp_calibration_turned(const esp_calibration *calibration)
{
    int count = 0;
    int64_t layers = calibration->turning != NULL ? esp_walk_info(calibration->dense)->layers : 0;
    for (int64_t layer = 0; layer < layers; layer++) {
        count += look_up(calibration, layer).o != NULL;
    }
    return count;
}

void esp_calibration_turn_close(esp_calibration *calibration)
{
    esp_turning *turning = calibration->turning;
    if (turning != NULL) {
        esp_value_places_free(turning->places);
        esp_release(calibration->context, turning->patterns);
        esp_release(calibration->context, turning->matrix);
        esp_release(calibration->context, turning);
    }
}
