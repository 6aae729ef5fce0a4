/* Operations of models as the host's back ends run them: made of the finer operations of the
 * device's own table, so that ref and cpu share the order of the steps. Contracts: op.h. */
#include <math.h>

#include "op/op.h"

#define LEAST_LENGTH 1e-12 /* of a vector that is divided by its length */

/* ---- rotation and cache ---- */

esp_status esp_host_rope_angles(esp_device *device, void *stream, const float *frequencies,
                                const int32_t *positions, int64_t head_dim, int64_t tokens,
                                float *cosines, float *sines)
{
    (void)device, (void)stream;
    for (int64_t i = 0; i < head_dim / 2; i++) {
        for (int64_t t = 0; t < tokens; t++) {
            float angle = frequencies[i] * (float)positions[t];
            cosines[i * tokens + t] = (float)cos((double)angle);
            sines[i * tokens + t] = (float)sin((double)angle);
        }
    }
    return ESP_OK;
}

static esp_status append(esp_device *device, const esp_rope_append *a, const float *x, bool values)
{
    const esp_ops *ops = device->backend->ops;
    if (a->places != NULL) {
        return ops->cache_scatter(device, x, a->columns, a->kv_heads, a->head_dim, a->tokens,
                                  a->places, values);
    }
    float *cache = values ? a->one.values : a->one.keys;
    return ops->cache_append(device, x, a->columns, a->kv_heads, a->head_dim, a->tokens,
                             a->one.past, a->one.capacity, cache);
}

esp_status esp_host_rope_append(esp_device *device, void *stream, const esp_rope_append *a)
{
    (void)stream;
    const esp_ops *ops = device->backend->ops;
    ESP_TRY(ops->rope(device, a->q, a->cosines, a->sines, a->heads, a->head_dim, a->columns));
    ESP_TRY(ops->rope(device, a->k, a->cosines, a->sines, a->kv_heads, a->head_dim, a->columns));
    ESP_TRY(append(device, a, a->k, false));
    return append(device, a, a->v, true);
}

/* ---- attention ---- */

static esp_attention of_place(const esp_cache_place *place, int64_t heads, int64_t kv_heads,
                              int64_t head_dim)
{
    return (esp_attention){.keys = place->keys,
                           .values = place->values,
                           .heads = heads,
                           .kv_heads = kv_heads,
                           .head_dim = head_dim,
                           .past = place->past,
                           .capacity = place->capacity};
}

size_t esp_host_past_workspace(const esp_device *device, const esp_past_attention *a)
{
    esp_attention sizes = of_place(&a->one, a->heads, a->kv_heads, a->head_dim);
    sizes.tokens = a->tokens;
    return device->backend->ops->attention_workspace_bytes(device, &sizes);
}

esp_status esp_host_attend_past(esp_device *device, void *stream, const esp_past_attention *a)
{
    (void)stream;
    esp_attention one = of_place(&a->one, a->heads, a->kv_heads, a->head_dim);
    one.q = a->q;
    one.y = a->y;
    one.tokens = a->tokens;
    one.stride = a->columns;
    one.scale = a->scale;
    one.workspace = a->workspace;
    return device->backend->ops->attention(device, &one);
}

esp_status esp_host_attend_step(esp_device *device, void *stream, const esp_step_attention *a)
{
    (void)stream;
    for (int64_t t = 0; t < a->sequences; t++) { /* a column each */
        esp_attention one = of_place(&a->places[t], a->heads, a->kv_heads, a->head_dim);
        one.q = (const float *)a->q + t;
        one.y = (float *)a->y + t;
        one.tokens = 1;
        one.stride = a->columns;
        one.scale = a->scale;
        one.workspace = a->workspaces[t];
        ESP_TRY(device->backend->ops->attention(device, &one));
    }
    return ESP_OK;
}

/* Keys and values of all columns token by token, as attention reads them; what relative positions
 * add; and behind them what the longest group needs. */
typedef struct group_room {
    float *keys, *values, *row_bias, *column_bias;
    void *workspace;
} group_room;

static size_t lines(int64_t rows, int64_t columns)
{
    return ((size_t)rows * (size_t)columns + 15) / 16 * 16; /* floats */
}

/* Cuts the workspace (NULL: nothing) up; *floats is what lies before the attention's own. */
static group_room room_of(const esp_group_attention *a, float *memory, size_t *floats)
{
    int64_t heights = a->row_table != NULL ? a->heads * (a->tokens / a->grid_width) : 0;
    int64_t widths = a->row_table != NULL ? a->heads * a->grid_width : 0;
    const size_t parts[] = {lines(a->heads * a->head_dim, a->columns),
                            lines(a->heads * a->head_dim, a->columns), lines(heights, a->columns),
                            lines(widths, a->columns)};
    float *at[5] = {memory};
    *floats = 0;
    for (int i = 0; i < ESP_COUNT(parts); i++) {
        *floats += parts[i];
        at[i + 1] = memory != NULL ? memory + *floats : NULL;
    }
    return (group_room){at[0], at[1], at[2], at[3], at[4]};
}

size_t esp_host_group_workspace(const esp_device *device, const esp_group_attention *a)
{
    esp_attention longest = {.heads = a->heads,
                             .kv_heads = a->heads,
                             .head_dim = a->head_dim,
                             .capacity = a->columns,
                             .stride = a->columns,
                             .both_ways = true};
    size_t most = 0, floats;
    for (longest.tokens = a->varied ? 1 : a->tokens; longest.tokens <= a->tokens;
         longest.tokens++) {
        size_t bytes = device->backend->ops->attention_workspace_bytes(device, &longest);
        most = ESP_MAX(most, bytes);
    }
    (void)room_of(a, NULL, &floats);
    return floats * sizeof(float) + most;
}

static esp_status relate(esp_device *device, const esp_group_attention *a, const group_room *room)
{
    if (a->row_table == NULL) {
        return ESP_OK;
    }
    esp_relative relative = {.q = a->q,
                             .table = a->row_table,
                             .y = room->row_bias,
                             .heads = a->heads,
                             .head_dim = a->head_dim,
                             .columns = a->columns,
                             .height = a->tokens / a->grid_width,
                             .width = a->grid_width,
                             .pitch = a->pitch,
                             .by_row = true};
    ESP_TRY(device->backend->ops->relative_bias(device, &relative));
    relative.table = a->column_table;
    relative.y = room->column_bias;
    relative.by_row = false;
    return device->backend->ops->relative_bias(device, &relative);
}

static esp_attention of_group(const esp_group_attention *a, const group_room *room, int64_t first,
                              int64_t tokens)
{
    bool grid = a->row_table != NULL;
    return (esp_attention){.q = (const float *)a->q + first,
                           .keys = room->keys + first * a->head_dim,
                           .values = room->values + first * a->head_dim,
                           .y = (float *)a->y + first,
                           .heads = a->heads,
                           .kv_heads = a->heads,
                           .head_dim = a->head_dim,
                           .tokens = tokens,
                           .capacity = a->columns,
                           .stride = a->columns,
                           .both_ways = true,
                           .scale = a->scale,
                           .row_bias = grid ? room->row_bias + first : NULL,
                           .column_bias = grid ? room->column_bias + first : NULL,
                           .grid_width = a->grid_width,
                           .workspace = room->workspace};
}

esp_status esp_host_attend_groups(esp_device *device, void *stream, const esp_group_attention *a)
{
    (void)stream;
    const esp_ops *ops = device->backend->ops;
    size_t floats;
    group_room room = room_of(a, a->workspace, &floats);
    ESP_TRY(ops->cache_append(device, a->k, a->columns, a->heads, a->head_dim, a->columns, 0,
                              a->columns, room.keys));
    ESP_TRY(ops->cache_append(device, a->v, a->columns, a->heads, a->head_dim, a->columns, 0,
                              a->columns, room.values));
    ESP_TRY(relate(device, a, &room));
    for (int64_t i = 0; i < a->groups; i++) {
        int64_t first = a->varied ? a->starts[i] : i * a->pitch;
        esp_attention one = of_group(a, &room, first, a->varied ? a->counts[i] : a->tokens);
        ESP_TRY(ops->attention(device, &one));
    }
    return ESP_OK;
}

/* ---- images ---- */

static void place_features(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const esp_image_tokens *job = user;
    for (int64_t f = begin; f < end; f++) {
        const float *positions = job->positions + f * job->pitch;
        for (int64_t image = 0; image < job->images; image++) {
            const float *from = (const float *)job->from + f * job->from_columns +
                                image * job->patches - job->specials;
            float *x = (float *)job->x + f * job->columns + image * job->pitch;
            for (int64_t t = 0; t < job->specials; t++) {
                x[t] = 0.0f + positions[t]; /* no -0 */
            }
            for (int64_t t = job->specials; t < job->specials + job->patches; t++) {
                x[t] = from[t] + positions[t];
            }
        }
    }
}

esp_status esp_host_place_tokens(esp_device *device, void *stream, const esp_image_tokens *tokens)
{
    (void)stream;
    esp_image_tokens job = *tokens;
    esp_parallel_for(device->context, job.features, 1 + 65536 / job.columns, place_features, &job);
    return ESP_OK;
}

typedef struct cut_job {
    const esp_patches *cut;
    int64_t rows, columns;
} cut_job;

/* Row i of y: one pixel of one channel of every patch. */
static void cut_rows(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const cut_job *job = user;
    const esp_patches *cut = job->cut;
    int64_t area = cut->height * cut->width;
    for (int64_t i = begin; i < end; i++) {
        int64_t channel = i / (cut->patch * cut->patch);
        int64_t down = i / cut->patch % cut->patch, right = i % cut->patch;
        float *y = (float *)cut->y + i * cut->columns;
        for (int64_t image = 0; image < cut->images; image++) {
            const float *plane = cut->pixels + (image * cut->channels + channel) * area;
            for (int64_t row = 0; row < job->rows; row++) {
                const float *line = plane + (row * cut->patch + down) * cut->width + right;
                for (int64_t column = 0; column < job->columns; column++) {
                    *y++ = line[column * cut->patch];
                }
            }
        }
    }
}

esp_status esp_host_patches(esp_device *device, void *stream, const esp_patches *cut)
{
    (void)stream;
    cut_job job = {cut, cut->height / cut->patch, cut->width / cut->patch};
    esp_parallel_for(device->context, cut->channels * cut->patch * cut->patch, 8, cut_rows, &job);
    return ESP_OK;
}

/* ---- pooling ---- */

/* Of tokens [first, end) of one feature's row. */
static float pool_row(esp_pool_kind kind, const float *row, int64_t first, int64_t end)
{
    double sum = 0;
    float most = row[first];
    for (int64_t t = first; t < end; t++) {
        sum += (double)row[t];
        most = row[t] > most ? row[t] : most;
    }
    return kind == ESP_POOL_FIRST  ? row[first]
           : kind == ESP_POOL_MOST ? most
                                   : (float)(sum / (double)(end - first));
}

static void normalize(float *vector, int64_t size)
{
    double squares = 0;
    for (int64_t i = 0; i < size; i++) {
        squares += (double)vector[i] * (double)vector[i];
    }
    double length = fmax(sqrt(squares), LEAST_LENGTH);
    for (int64_t i = 0; i < size; i++) {
        vector[i] = (float)((double)vector[i] / length);
    }
}

esp_status esp_host_pool(esp_device *device, void *stream, const esp_pool *pool)
{
    (void)device, (void)stream;
    for (int64_t i = 0; i < pool->groups; i++) {
        float *vector = pool->y + i * pool->features;
        int64_t first = pool->starts[i], end = first + pool->counts[i];
        for (int64_t k = 0; k < pool->features; k++) {
            vector[k] =
                pool_row(pool->kind, (const float *)pool->x + k * pool->columns, first, end);
        }
        if (pool->normalizes) {
            normalize(vector, pool->features);
        }
    }
    return ESP_OK;
}

/* Activations are f32 already. */
esp_status esp_host_widen(esp_device *device, void *stream, const void *x, int64_t count, float *y)
{
    (void)device, (void)stream;
    memcpy(y, x, (size_t)count * sizeof *y);
    return ESP_OK;
}

/* ---- choosing ---- */

static int32_t largest_of(const float *row, int64_t size)
{
    int64_t best = -1;
    float most = -INFINITY;
    for (int64_t i = 0; i < size; i++) {
        if (row[i] > most) {
            most = row[i];
            best = i;
        }
    }
    return (int32_t)best;
}

esp_status esp_host_argmax(esp_device *device, void *stream, const float *rows, int64_t count,
                           int64_t size, int32_t *best)
{
    (void)device, (void)stream;
    for (int64_t i = 0; i < count; i++) {
        best[i] = largest_of(rows + i * size, size);
    }
    return ESP_OK;
}
