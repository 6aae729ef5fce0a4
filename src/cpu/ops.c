/* The other operations, threaded; vector loops are the level's (isa/). Each result element is
 * computed by one thread in a fixed order, so that thread counts do not change results. */
#include <string.h>

#include "cpu/kernels.h"
#include "cpu/level.h"

#define TOKENS 64   /* of one piece, where tokens are cut */
#define GRAIN 16384 /* elements worth handing to another thread */

/* ---- embed ---- */

typedef struct embed_job {
    const esp_tensor *table;
    const int32_t *ids;
    int64_t tokens;
    float *x;
    bool adds;
} embed_job;

/* Blocks of features, so that the strided writes of neighbouring tokens share cache lines. */
static void embed_features(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const embed_job *job = user;
    int64_t hidden = job->table->shape[1];
    const char *data = job->table->data;
    int64_t width = (int64_t)esp_dtype_bytes(job->table->dtype);
    for (int64_t block = begin; block < end; block++) {
        int64_t first = block * TOKENS, count = ESP_MIN(TOKENS, hidden - first);
        for (int64_t t = 0; t < job->tokens; t++) {
            float row[TOKENS];
            esp_widen(job->table->dtype, data + (job->ids[t] * hidden + first) * width, count, row);
            float *x = job->x + first * job->tokens + t;
            for (int64_t i = 0; i < count; i++) {
                x[i * job->tokens] = job->adds ? x[i * job->tokens] + row[i] : row[i];
            }
        }
    }
}

static void run_embed(esp_device *device, embed_job job)
{
    esp_parallel_for(device->context, esp_ceil_div(job.table->shape[1], TOKENS),
                     1 + GRAIN / (TOKENS * job.tokens), embed_features, &job);
}

static esp_status embed(esp_device *device, void *stream, const esp_embedding *embedding)
{
    (void)stream;
    for (int k = 0; k < embedding->count; k++) {
        run_embed(device, (embed_job){embedding->tables[k], embedding->rows[k], embedding->columns,
                                      embedding->x, k > 0});
    }
    return ESP_OK;
}

/* ---- rms_norm ---- */

typedef struct norm_job {
    const cpu_level *level;
    const float *x, *weight;
    float eps;
    int64_t features, tokens;
    float *y;
} norm_job;

static void norm_tokens(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const norm_job *job = user;
    for (int64_t block = begin; block < end; block++) {
        float factors[TOKENS];
        int64_t first = block * TOKENS;
        job->level->rms_norm(job->x + first, job->weight, job->eps, job->features,
                             ESP_MIN(TOKENS, job->tokens - first), job->tokens, factors,
                             job->y + first);
    }
}

static esp_status rms_norm(esp_device *device, void *stream, const void *x, const float *weight,
                           float eps, int64_t features, int64_t tokens, void *y)
{
    (void)stream;
    norm_job job = {cpu_level_of(device), x, weight, eps, features, tokens, y};
    esp_parallel_for(device->context, esp_ceil_div(tokens, TOKENS), 1, norm_tokens, &job);
    return ESP_OK;
}

/* ---- layer_norm ---- */

typedef struct layer_norm_job {
    const cpu_level *level;
    const float *x, *weight, *bias;
    float eps;
    int64_t features, tokens;
    float *y;
} layer_norm_job;

static void layer_norm_tokens(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const layer_norm_job *job = user;
    for (int64_t block = begin; block < end; block++) {
        float means[TOKENS], factors[TOKENS];
        int64_t first = block * TOKENS;
        job->level->layer_norm(job->x + first, job->weight, job->bias, job->eps, job->features,
                               ESP_MIN(TOKENS, job->tokens - first), job->tokens, means, factors,
                               job->y + first);
    }
}

static esp_status layer_norm(esp_device *device, void *stream, const void *x, const float *weight,
                             const float *bias, float eps, int64_t features, int64_t tokens,
                             void *y)
{
    (void)stream;
    layer_norm_job job = {cpu_level_of(device), x, weight, bias, eps, features, tokens, y};
    esp_parallel_for(device->context, esp_ceil_div(tokens, TOKENS), 1, layer_norm_tokens, &job);
    return ESP_OK;
}

/* ---- rope ---- */

typedef struct rope_job {
    float *x;
    const float *cosines, *sines;
    int64_t half; /* elements of half a head */
} rope_job;

static void rotate_heads(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const rope_job *job = user;
    for (int64_t head = begin; head < end; head++) {
        float *low = job->x + 2 * head * job->half, *high = low + job->half;
        for (int64_t i = 0; i < job->half; i++) {
            float a = low[i], b = high[i];
            low[i] = a * job->cosines[i] - b * job->sines[i];
            high[i] = b * job->cosines[i] + a * job->sines[i];
        }
    }
}

static esp_status rope(esp_device *device, float *x, const float *cosines, const float *sines,
                       int64_t heads, int64_t head_dim, int64_t tokens)
{
    rope_job job = {x, cosines, sines, head_dim / 2 * tokens};
    esp_parallel_for(device->context, heads, 1 + GRAIN / (head_dim * tokens), rotate_heads, &job);
    return ESP_OK;
}

/* ---- cache_append ---- */

typedef struct append_job {
    const float *x;
    int64_t stride, head_dim, tokens, past, capacity;
    float *cache;
} append_job;

/* Tokens in blocks, so that the rows that are written stay in the first cache. */
static void append_heads(void *user, int64_t begin, int64_t end, int thread)
{
    enum { BLOCK = 16 };
    (void)thread;
    const append_job *job = user;
    for (int64_t head = begin; head < end; head++) {
        float *rows = job->cache + (head * job->capacity + job->past) * job->head_dim;
        for (int64_t first = 0; first < job->tokens; first += BLOCK) {
            int64_t last = ESP_MIN(first + BLOCK, job->tokens);
            for (int64_t d = 0; d < job->head_dim; d++) {
                const float *from = job->x + (head * job->head_dim + d) * job->stride;
                for (int64_t t = first; t < last; t++) {
                    rows[t * job->head_dim + d] = from[t];
                }
            }
        }
    }
}

static esp_status cache_append(esp_device *device, const float *x, int64_t stride, int64_t kv_heads,
                               int64_t head_dim, int64_t tokens, int64_t past, int64_t capacity,
                               float *cache)
{
    append_job job = {x, stride, head_dim, tokens, past, capacity, cache};
    esp_parallel_for(device->context, kv_heads, 1 + GRAIN / (head_dim * tokens), append_heads,
                     &job);
    return ESP_OK;
}

/* ---- cache_scatter ---- */

typedef struct scatter_job {
    const float *x;
    int64_t stride, kv_heads, head_dim;
    const esp_cache_place *places;
    bool values;
} scatter_job;

static void scatter_tokens(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const scatter_job *job = user;
    for (int64_t t = begin; t < end; t++) {
        const esp_cache_place *place = &job->places[t];
        float *cache = job->values ? place->values : place->keys;
        for (int64_t head = 0; head < job->kv_heads; head++) {
            const float *from = job->x + head * job->head_dim * job->stride + t;
            float *row = cache + (head * place->capacity + place->past) * job->head_dim;
            for (int64_t d = 0; d < job->head_dim; d++) {
                row[d] = from[d * job->stride];
            }
        }
    }
}

static esp_status cache_scatter(esp_device *device, const float *x, int64_t stride,
                                int64_t kv_heads, int64_t head_dim, int64_t tokens,
                                const esp_cache_place *places, bool values)
{
    scatter_job job = {x, stride, kv_heads, head_dim, places, values};
    esp_parallel_for(device->context, tokens, 1 + GRAIN / (kv_heads * head_dim), scatter_tokens,
                     &job);
    return ESP_OK;
}

/* ---- attention ---- */

typedef struct attention_job {
    const cpu_level *level;
    const esp_attention *a;
    int64_t block, blocks; /* tokens of a piece; pieces of a head */
    int64_t scratch;       /* floats per thread */
} attention_job;

static attention_job attention_job_of(const esp_device *device, const esp_attention *a)
{
    attention_job job = {.level = cpu_level_of(device), .a = a};
    job.block = a->tokens < CPU_FEW_TOKENS ? 1 : 2 * job.level->lanes;
    job.blocks = esp_ceil_div(a->tokens, job.block);
    job.scratch = (a->head_dim + job.level->lanes + a->past + a->tokens) * 2 * job.level->lanes;
    job.scratch = esp_ceil_div(job.scratch, 16) * 16;
    return job;
}

static size_t attention_workspace_bytes(const esp_device *device, const esp_attention *attention)
{
    attention_job job = attention_job_of(device, attention);
    return (size_t)job.scratch * sizeof(float) * (size_t)device->context->threads;
}

/* The last tokens of a head see most: they go first, so that the end is even. */
static void attend_pieces(void *user, int64_t begin, int64_t end, int thread)
{
    const attention_job *job = user;
    float *scratch = (float *)job->a->workspace + thread * job->scratch;
    for (int64_t i = begin; i < end; i++) {
        int64_t block = job->blocks - 1 - i / job->a->heads;
        int64_t token = block * job->block;
        job->level->attend(job->a, i % job->a->heads, token,
                           ESP_MIN(job->block, job->a->tokens - token), scratch);
    }
}

static esp_status attention(esp_device *device, const esp_attention *attention)
{
    attention_job job = attention_job_of(device, attention);
    int64_t work = (attention->past + attention->tokens) * attention->head_dim * job.block;
    esp_parallel_for(device->context, attention->heads * job.blocks, 1 + GRAIN / work,
                     attend_pieces, &job);
    return ESP_OK;
}

/* ---- elementwise ---- */

typedef struct pair_job {
    const cpu_level *level;
    const float *a, *b;
    float *y;
} pair_job;

static void swiglu_range(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const pair_job *job = user;
    job->level->swiglu(job->a + begin, job->b + begin, end - begin, job->y + begin);
}

static esp_status swiglu(esp_device *device, void *stream, const void *gate, const void *up,
                         int64_t count, void *y)
{
    (void)stream;
    pair_job job = {cpu_level_of(device), gate, up, y};
    esp_parallel_for(device->context, count, GRAIN, swiglu_range, &job);
    return ESP_OK;
}

/* ---- grids of tokens ---- */

typedef struct gather_job {
    const float *x;
    int64_t tokens;
    const int32_t *index;
    int64_t count;
    bool adds;
    float *y;
} gather_job;

static void gather_features(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const gather_job *job = user;
    for (int64_t f = begin; f < end; f++) {
        const float *x = job->x + f * job->tokens;
        float *y = job->y + f * job->count;
        for (int64_t i = 0; i < job->count; i++) {
            float value = job->index[i] < 0 ? 0.0f : x[job->index[i]];
            y[i] = job->adds ? y[i] + value : value;
        }
    }
}

static esp_status gather_tokens(esp_device *device, void *stream, const void *x, int64_t features,
                                int64_t tokens, const int32_t *index, int64_t count, bool adds,
                                void *y)
{
    (void)stream;
    gather_job job = {x, tokens, index, count, adds, y};
    esp_parallel_for(device->context, features, 1 + GRAIN / count, gather_features, &job);
    return ESP_OK;
}

typedef struct relate_job {
    const cpu_level *level;
    const esp_relative *relative;
    int64_t size; /* keys of a head */
} relate_job;

static void relate_rows(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const relate_job *job = user;
    for (int64_t i = begin; i < end; i++) {
        job->level->relate(job->relative, i / job->size, i % job->size);
    }
}

/* Grids lie side by side: this table's step is 1. */
static esp_status relative_bias(esp_device *device, const esp_relative *relative)
{
    relate_job job = {cpu_level_of(device), relative,
                      relative->by_row ? relative->height : relative->width};
    int64_t grain = 1 + GRAIN / (relative->head_dim * relative->columns);
    esp_parallel_for(device->context, relative->heads * job.size, grain, relate_rows, &job);
    return ESP_OK;
}

static void unfold_rows(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const esp_unfold *u = user;
    int64_t half = u->side / 2, rows = u->columns / u->width;
    for (int64_t i = begin; i < end; i++) {
        const float *x = (const float *)u->x + i / (u->side * u->side) * u->columns;
        int64_t down = i / u->side % u->side - half, right = i % u->side - half;
        int64_t left = ESP_MIN(ESP_MAX(0, -right), u->width); /* columns [left, stop) are inside */
        int64_t stop = ESP_MAX(left, ESP_MIN(u->width, u->width - right));
        for (int64_t row = 0; row < rows; row++) {
            float *y = (float *)u->y + i * u->columns + row * u->width;
            int64_t from = row % u->height + down;
            bool inside = from >= 0 && from < u->height;
            memset(y, 0, (size_t)u->width * sizeof *y);
            if (inside) {
                memcpy(y + left, x + (row + down) * u->width + left + right,
                       (size_t)(stop - left) * sizeof *y);
            }
        }
    }
}

static esp_status unfold(esp_device *device, void *stream, const esp_unfold *unfold)
{
    (void)stream;
    esp_unfold job = *unfold;
    esp_parallel_for(device->context, job.features * job.side * job.side, 1 + GRAIN / job.columns,
                     unfold_rows, &job);
    return ESP_OK;
}

const esp_ops esp_cpu_ops = {
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
