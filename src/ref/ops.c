/* What the other operations mean: scalar C, sums in double, activations f32 [features][tokens].
 * Contracts: op/op.h. */
#include <math.h>

#include "ref/kernels.h"

float esp_ref_activate(unsigned epilogue, float value)
{
    double v = (double)value;
    if ((epilogue & ESP_EP_RELU) != 0) {
        return v < 0 ? 0.0f : value; /* NaN stays */
    }
    if ((epilogue & ESP_EP_GELU) != 0) {
        return (float)(0.5 * v * (1 + erf(v / sqrt(2.0))));
    }
    if ((epilogue & ESP_EP_GELU_TANH) != 0) {
        double inner = sqrt(2.0 / M_PI) * (v + 0.044715 * v * v * v);
        return (float)(0.5 * v * (1 + tanh(inner)));
    }
    if ((epilogue & ESP_EP_SILU) != 0) {
        return (float)(v / (1 + exp(-v)));
    }
    return value;
}

static esp_status embed(esp_device *device, void *stream, const esp_embedding *embedding)
{
    (void)device, (void)stream;
    int64_t columns = embedding->columns;
    for (int k = 0; k < embedding->count; k++) {
        const esp_tensor *table = embedding->tables[k];
        int64_t hidden = table->shape[1];
        for (int64_t t = 0; t < columns; t++) {
            int64_t row = embedding->rows[k][t] * hidden;
            for (int64_t i = 0; i < hidden; i++) {
                float *x = (float *)embedding->x + i * columns + t;
                float value = esp_weight_at(table->dtype, table->data, row + i);
                *x = k > 0 ? *x + value : value;
            }
        }
    }
    return ESP_OK;
}

static esp_status rms_norm(esp_device *device, void *stream, const void *from, const float *weight,
                           float eps, int64_t features, int64_t tokens, void *to)
{
    (void)device, (void)stream;
    const float *x = from;
    float *y = to;
    for (int64_t t = 0; t < tokens; t++) {
        double sum = 0;
        for (int64_t i = 0; i < features; i++) {
            double value = (double)x[i * tokens + t];
            sum += value * value;
        }
        float factor = (float)(1 / sqrt(sum / (double)features + (double)eps));
        for (int64_t i = 0; i < features; i++) {
            y[i * tokens + t] = x[i * tokens + t] * factor * weight[i];
        }
    }
    return ESP_OK;
}

static esp_status layer_norm(esp_device *device, void *stream, const void *from,
                             const float *weight, const float *bias, float eps, int64_t features,
                             int64_t tokens, void *to)
{
    (void)device, (void)stream;
    const float *x = from;
    float *y = to;
    for (int64_t t = 0; t < tokens; t++) {
        double sum = 0, squares = 0;
        for (int64_t i = 0; i < features; i++) {
            sum += (double)x[i * tokens + t];
        }
        double mean = sum / (double)features;
        for (int64_t i = 0; i < features; i++) {
            double apart = (double)x[i * tokens + t] - mean;
            squares += apart * apart;
        }
        double factor = 1 / sqrt(squares / (double)features + (double)eps);
        for (int64_t i = 0; i < features; i++) {
            double value = ((double)x[i * tokens + t] - mean) * factor;
            y[i * tokens + t] = (float)(value * (double)weight[i] + (double)bias[i]);
        }
    }
    return ESP_OK;
}

static esp_status rope(esp_device *device, float *x, const float *cosines, const float *sines,
                       int64_t heads, int64_t head_dim, int64_t tokens)
{
    (void)device;
    int64_t half = head_dim / 2 * tokens; /* elements */
    for (int64_t head = 0; head < heads; head++) {
        float *low = x + head * head_dim * tokens;
        float *high = low + half;
        for (int64_t i = 0; i < half; i++) {
            float a = low[i], b = high[i];
            low[i] = a * cosines[i] - b * sines[i];
            high[i] = b * cosines[i] + a * sines[i];
        }
    }
    return ESP_OK;
}

static esp_status cache_append(esp_device *device, const float *x, int64_t stride, int64_t kv_heads,
                               int64_t head_dim, int64_t tokens, int64_t past, int64_t capacity,
                               float *cache)
{
    (void)device;
    for (int64_t head = 0; head < kv_heads; head++) {
        for (int64_t t = 0; t < tokens; t++) {
            float *row = cache + (head * capacity + past + t) * head_dim;
            for (int64_t d = 0; d < head_dim; d++) {
                row[d] = x[(head * head_dim + d) * stride + t];
            }
        }
    }
    return ESP_OK;
}

static esp_status cache_scatter(esp_device *device, const float *x, int64_t stride,
                                int64_t kv_heads, int64_t head_dim, int64_t tokens,
                                const esp_cache_place *places, bool values)
{
    (void)device;
    for (int64_t t = 0; t < tokens; t++) {
        const esp_cache_place *place = &places[t];
        float *cache = values ? place->values : place->keys;
        for (int64_t head = 0; head < kv_heads; head++) {
            float *row = cache + (head * place->capacity + place->past) * head_dim;
            for (int64_t d = 0; d < head_dim; d++) {
                row[d] = x[(head * head_dim + d) * stride + t];
            }
        }
    }
    return ESP_OK;
}

/* Room for the scores of one token: f64. */
static size_t attention_workspace_bytes(const esp_device *device, const esp_attention *attention)
{
    (void)device;
    return (size_t)(attention->past + attention->tokens) * sizeof(double);
}

static double grid_bias(const esp_attention *a, int64_t head, int64_t key, int64_t token,
                        int64_t stride)
{
    if (a->row_bias == NULL) {
        return 0;
    }
    int64_t width = a->grid_width, height = a->tokens / width;
    return (double)a->row_bias[(head * height + key / width) * stride + token] +
           (double)a->column_bias[(head * width + key % width) * stride + token];
}

static void attend(const esp_attention *a, int64_t head, int64_t token, double *scores)
{
    int64_t seen = a->past + (a->both_ways ? a->tokens : token + 1);
    int64_t stride = a->stride != 0 ? a->stride : a->tokens;
    int64_t kv_offset = head / (a->heads / a->kv_heads) * a->capacity * a->head_dim;
    const float *keys = a->keys + kv_offset, *values = a->values + kv_offset;
    const float *q = a->q + head * a->head_dim * stride + token;
    double most = -HUGE_VAL, total = 0;
    for (int64_t s = 0; s < seen; s++) {
        double sum = 0;
        for (int64_t d = 0; d < a->head_dim; d++) {
            sum += (double)q[d * stride] * (double)keys[s * a->head_dim + d];
        }
        scores[s] = sum * (double)a->scale + grid_bias(a, head, s, token, stride);
        most = scores[s] > most ? scores[s] : most;
    }
    for (int64_t s = 0; s < seen; s++) {
        scores[s] = exp(scores[s] - most);
        total += scores[s];
    }
    for (int64_t d = 0; d < a->head_dim; d++) {
        double sum = 0;
        for (int64_t s = 0; s < seen; s++) {
            sum += scores[s] * (double)values[s * a->head_dim + d];
        }
        a->y[(head * a->head_dim + d) * stride + token] = (float)(sum / total);
    }
}

static esp_status attention(esp_device *device, const esp_attention *attention)
{
    (void)device;
    for (int64_t head = 0; head < attention->heads; head++) {
        for (int64_t t = 0; t < attention->tokens; t++) {
            attend(attention, head, t, attention->workspace);
        }
    }
    return ESP_OK;
}

static esp_status swiglu(esp_device *device, void *stream, const void *gate, const void *up,
                         int64_t count, void *y)
{
    (void)device, (void)stream;
    const float *from = gate, *by = up;
    for (int64_t i = 0; i < count; i++) {
        ((float *)y)[i] = esp_ref_activate(ESP_EP_SILU, from[i]) * by[i];
    }
    return ESP_OK;
}

static esp_status gather_tokens(esp_device *device, void *stream, const void *from,
                                int64_t features, int64_t tokens, const int32_t *index,
                                int64_t count, bool adds, void *to)
{
    (void)device, (void)stream;
    const float *x = from;
    float *y = to;
    for (int64_t f = 0; f < features; f++) {
        for (int64_t i = 0; i < count; i++) {
            float value = index[i] < 0 ? 0.0f : x[f * tokens + index[i]];
            y[f * count + i] = adds ? y[f * count + i] + value : value;
        }
    }
    return ESP_OK;
}

static esp_status relative_bias(esp_device *device, const esp_relative *r)
{
    (void)device;
    int64_t size = r->by_row ? r->height : r->width, grid = r->height * r->width;
    for (int64_t head = 0; head < r->heads; head++) {
        for (int64_t k = 0; k < size; k++) {
            for (int64_t t = 0; t < r->columns; t++) {
                int64_t in_grid = t % r->pitch % grid; /* padding: any place */
                int64_t place = r->by_row ? in_grid / r->width : in_grid % r->width;
                const float *row = r->table + (place - k + size - 1) * r->head_dim;
                double sum = 0;
                for (int64_t d = 0; d < r->head_dim; d++) {
                    sum += (double)r->q[(head * r->head_dim + d) * r->columns + t] * (double)row[d];
                }
                r->y[(head * size + k) * r->columns + t] = (float)sum;
            }
        }
    }
    return ESP_OK;
}

static esp_status unfold(esp_device *device, void *stream, const esp_unfold *u)
{
    (void)device, (void)stream;
    int64_t grid = u->height * u->width, half = u->side / 2;
    for (int64_t row = 0; row < u->features * u->side * u->side; row++) {
        int64_t feature = row / (u->side * u->side);
        int64_t down = row / u->side % u->side - half, right = row % u->side - half;
        const float *from = (const float *)u->x + feature * u->columns;
        float *to = (float *)u->y + row * u->columns;
        for (int64_t t = 0; t < u->columns; t++) {
            int64_t in_grid = t % u->pitch;
            int64_t y = in_grid / u->width + down, x = in_grid % u->width + right;
            bool inside = in_grid < grid && y >= 0 && y < u->height && x >= 0 && x < u->width;
            to[t] = inside ? from[t + down * u->width + right] : 0.0f;
        }
    }
    return ESP_OK;
}

const esp_ops esp_ref_ops = {
    .type = ESP_F32,
    .step = 1,
    .embed = embed,
    .rms_norm = rms_norm,
    .layer_norm = layer_norm,
    .rope_angles = esp_host_rope_angles,
    .rope_append = esp_host_rope_append,
    .past_workspace_bytes = esp_host_past_workspace,
    .attend_past = esp_host_attend_past,
    .attend_step = esp_host_attend_step,
    .group_workspace_bytes = esp_host_group_workspace,
    .attend_groups = esp_host_attend_groups,
    .swiglu = swiglu,
    .gather_tokens = gather_tokens,
    .unfold = unfold,
    .place_tokens = esp_host_place_tokens,
    .patches = esp_host_patches,
    .pool = esp_host_pool,
    .widen = esp_host_widen,
    .argmax = esp_host_argmax,
    .rope = rope,
    .cache_append = cache_append,
    .cache_scatter = cache_scatter,
    .relative_bias = relative_bias,
    .attention_workspace_bytes = attention_workspace_bytes,
    .attention = attention,
};
