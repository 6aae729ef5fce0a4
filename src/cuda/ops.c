/* What a model does besides products, on a GPU: the tables of operations over f16 and over bf16
 * activations, each entry a few lines over the kernels of gpu_ops.h and gpu_attention.h. Every call
 * launches on the stream that it is given and returns. */
#include "cuda/gpu_tiles.h"
#include "cuda/gpu_windows.h"
#include "cuda/room.h"

#define STEP 8 /* columns: 16 bytes, which is what the kernels and the copy engine read at once */

_Static_assert(sizeof(esp_cache_place) == sizeof(gpu_place) &&
                   offsetof(esp_cache_place, past) == offsetof(gpu_place, past) &&
                   offsetof(esp_cache_place, capacity) == offsetof(gpu_place, capacity),
               "places go to the device as they are");

typedef int (*ops_fn)(const cuda_state *state, gpu_type type, const void *what, void *stream);

/* With the device current. */
static esp_status launch(esp_device *device, gpu_type type, ops_fn run, const void *what,
                         void *stream)
{
    const cuda_state *state = device->state;
    int before, failed = gpu_enter(state->index, &before);
    if (failed == 0) {
        failed = run(state, type, what, stream);
        gpu_leave(before);
    }
    if (failed != 0) { /* a status has no room for it */
        esp_log(device->context, ESP_LOG_WARNING, "device '%s': %s", device->name,
                gpu_error_text(failed));
    }
    return failed == 0 ? ESP_OK : gpu_error_is_memory(failed) ? ESP_OUT_OF_MEMORY : ESP_FAILED;
}

/* ---- tokens ---- */

static int run_embed(const cuda_state *state, gpu_type type, const void *what, void *stream)
{
    (void)state;
    const esp_embedding *e = what;
    gpu_lookup lookups[ESP_MOST_TABLES];
    for (int i = 0; i < e->count; i++) {
        lookups[i] = (gpu_lookup){
            .table = e->tables[i]->data, .rows = e->rows[i], .count = e->tables[i]->shape[0]};
    }
    return gpu_embed(type, lookups, e->count, e->tables[0]->shape[1], e->columns, e->x, e->columns,
                     stream);
}

typedef struct gather_call {
    const void *x;
    int64_t features, tokens;
    const int32_t *index;
    int64_t count;
    bool adds;
    void *y;
} gather_call;

static int run_gather(const cuda_state *state, gpu_type type, const void *what, void *stream)
{
    (void)state;
    const gather_call *g = what;
    return gpu_gather_columns(type, g->x, g->tokens, g->features, g->index, g->count, g->adds, g->y,
                              g->count, stream);
}

typedef struct swiglu_call {
    const void *gate, *up;
    int64_t count;
    void *y;
} swiglu_call;

/* Any shape of so many elements; wide rows keep the launch's grid small. */
static int run_swiglu(const cuda_state *state, gpu_type type, const void *what, void *stream)
{
    (void)state;
    const swiglu_call *s = what;
    return gpu_swiglu(type, s->gate, s->count, s->up, s->count, 1, s->count, s->y, s->count,
                      stream);
}

typedef struct finish_call {
    const float *bias;
    unsigned activation;
    int64_t features, columns;
    void *y;
} finish_call;

static int run_finish(const cuda_state *state, gpu_type type, const void *what, void *stream)
{
    (void)state;
    const finish_call *f = what;
    return gpu_finish_in_place(type, f->activation, f->bias, f->y, f->columns, f->features,
                               f->columns, stream);
}

typedef struct widen_call {
    const void *x;
    int64_t count;
    float *y;
} widen_call;

static int run_widen(const cuda_state *state, gpu_type type, const void *what, void *stream)
{
    (void)state;
    const widen_call *w = what;
    return gpu_convert(type, w->x, w->count, GPU_F32, w->y, w->count, 1, w->count, false, stream);
}

/* ---- norms ---- */

static int run_rms_norm(const cuda_state *state, gpu_type type, const void *what, void *stream)
{
    (void)state, (void)type;
    return gpu_rms_norm(what, stream);
}

static int run_layer_norm(const cuda_state *state, gpu_type type, const void *what, void *stream)
{
    (void)state, (void)type;
    return gpu_layer_norm(what, stream);
}

static int run_moments(const cuda_state *state, gpu_type type, const void *what, void *stream)
{
    (void)state, (void)type;
    return gpu_take_moments(what, stream);
}

/* ---- positions and caches ---- */

typedef struct angles_call {
    const float *frequencies;
    const int32_t *positions;
    int64_t head_dim, tokens;
    float *cosines, *sines;
} angles_call;

static int run_angles(const cuda_state *state, gpu_type type, const void *what, void *stream)
{
    (void)state, (void)type;
    const angles_call *a = what;
    const gpu_positions positions = {.at = a->positions, .step = 1};
    return gpu_rope_angles(a->frequencies, &positions, a->head_dim, a->tokens, a->cosines, a->sines,
                           a->tokens, stream);
}

static int run_append(const cuda_state *state, gpu_type type, const void *what, void *stream)
{
    (void)state;
    const esp_rope_append *a = what;
    const gpu_rope_append append = {.type = type,
                                    .q = a->q,
                                    .k = a->k,
                                    .v = a->v,
                                    .stride = a->columns,
                                    .heads = a->heads,
                                    .kv_heads = a->kv_heads,
                                    .head_dim = a->head_dim,
                                    .tokens = a->tokens,
                                    .cosines = a->cosines,
                                    .sines = a->sines,
                                    .angle_stride = a->columns,
                                    .keys = a->one.keys,
                                    .values = a->one.values,
                                    .capacity = a->one.capacity,
                                    .past = a->one.past,
                                    .places = (const gpu_place *)a->places};
    return gpu_rope_append_run(&append, stream);
}

/* ---- attention ---- */

static int run_past(const cuda_state *state, gpu_type type, const void *what, void *stream)
{
    const esp_past_attention *a = what;
    const gpu_attention_prefill prefill = {.type = type,
                                           .q = a->q,
                                           .stride = a->columns,
                                           .keys = a->one.keys,
                                           .values = a->one.values,
                                           .capacity = a->one.capacity,
                                           .y = a->y,
                                           .y_stride = a->columns,
                                           .heads = a->heads,
                                           .kv_heads = a->kv_heads,
                                           .head_dim = a->head_dim,
                                           .tokens = a->tokens,
                                           .past = a->one.past,
                                           .scale = a->scale,
                                           .device = state->index};
    return gpu_attend_prefill(&prefill, stream);
}

static int run_step(const cuda_state *state, gpu_type type, const void *what, void *stream)
{
    const esp_step_attention *a = what;
    const gpu_attention_decode decode = {.type = type,
                                         .q = a->q,
                                         .stride = a->columns,
                                         .y = a->y,
                                         .y_stride = a->columns,
                                         .places = (const gpu_place *)a->places,
                                         .sequences = a->sequences,
                                         .longest = a->longest,
                                         .heads = a->heads,
                                         .kv_heads = a->kv_heads,
                                         .head_dim = a->head_dim,
                                         .k = a->k,
                                         .v = a->v,
                                         .cosines = a->cosines,
                                         .sines = a->sines,
                                         .angle_stride = a->columns,
                                         .scale = a->scale,
                                         .device = state->index,
                                         .multiprocessors = state->facts.multiprocessors,
                                         .overlaps = state->facts.major >= 9};
    return gpu_attend_decode(&decode, stream);
}

static int run_groups(const cuda_state *state, gpu_type type, const void *what, void *stream)
{
    const esp_group_attention *a = what;
    const gpu_attention_groups groups = {.type = type,
                                         .q = a->q,
                                         .k = a->k,
                                         .v = a->v,
                                         .y = a->y,
                                         .stride = a->columns,
                                         .y_stride = a->columns,
                                         .heads = a->heads,
                                         .head_dim = a->head_dim,
                                         .groups = a->groups,
                                         .tokens = a->tokens,
                                         .pitch = a->pitch,
                                         .starts = a->varied ? a->starts : NULL,
                                         .lengths = a->varied ? a->counts : NULL,
                                         .read = a->read,
                                         .scale = a->scale,
                                         .row_table = a->row_table,
                                         .column_table = a->column_table,
                                         .grid_width = a->grid_width,
                                         .device = state->index};
    return gpu_attend_groups(&groups, stream);
}

static gpu_attention_windows windows_of(const esp_device *device, gpu_type type,
                                        const esp_window_attention *a)
{
    const cuda_state *state = device->state;
    return (gpu_attention_windows){.type = type,
                                   .q = a->q,
                                   .k = a->k,
                                   .v = a->v,
                                   .y = a->y,
                                   .stride = a->columns,
                                   .y_stride = a->columns,
                                   .heads = a->heads,
                                   .head_dim = a->head_dim,
                                   .images = a->images,
                                   .pitch = a->pitch,
                                   .rows = a->height,
                                   .columns = a->width,
                                   .window = a->window,
                                   .outside_k = a->key_bias,
                                   .outside_v = a->value_bias,
                                   .scale = a->scale,
                                   .row_table = a->row_table,
                                   .column_table = a->column_table,
                                   .device = state->index};
}

static bool can_attend_windows(const esp_device *device, const esp_window_attention *attention)
{
    const gpu_attention_windows windows = windows_of(device, GPU_F16, attention);
    return gpu_can_attend_windows(&windows);
}

static int run_windows(const cuda_state *state, gpu_type type, const void *what, void *stream)
{
    (void)state, (void)type;
    return gpu_attend_windows(what, stream);
}

/* They need no room of their own. */
static size_t no_past_workspace(const esp_device *device, const esp_past_attention *attention)
{
    (void)device, (void)attention;
    return 0;
}

static size_t no_group_workspace(const esp_device *device, const esp_group_attention *attention)
{
    (void)device, (void)attention;
    return 0;
}

/* ---- images ---- */

static int run_place(const cuda_state *state, gpu_type type, const void *what, void *stream)
{
    (void)state;
    const esp_image_tokens *t = what;
    const gpu_image_tokens tokens = {.type = type,
                                     .from = t->from,
                                     .from_stride = t->from_columns,
                                     .from_pitch = t->patches,
                                     .features = t->features,
                                     .images = t->images,
                                     .patches = t->patches,
                                     .specials = t->specials,
                                     .pitch = t->pitch,
                                     .positions = t->positions,
                                     .positions_stride = t->pitch,
                                     .x = t->x,
                                     .x_stride = t->columns};
    return gpu_place_image_tokens(&tokens, stream);
}

static int run_patches(const cuda_state *state, gpu_type type, const void *what, void *stream)
{
    (void)state;
    const esp_patches *p = what;
    const gpu_patches patches = {.pixel_type = GPU_F32,
                                 .pixels = p->pixels,
                                 .images = p->images,
                                 .channels = p->channels,
                                 .height = p->height,
                                 .width = p->width,
                                 .patch = p->patch,
                                 .type = type,
                                 .y = p->y,
                                 .y_stride = p->columns,
                                 .pitch = (p->height / p->patch) * (p->width / p->patch)};
    return gpu_cut_patches(&patches, stream);
}

static int run_unfold(const cuda_state *state, gpu_type type, const void *what, void *stream)
{
    (void)state;
    const esp_unfold *u = what;
    const gpu_unfold unfold = {.type = type,
                               .x = u->x,
                               .x_stride = u->columns,
                               .y = u->y,
                               .y_stride = u->columns,
                               .features = u->features,
                               .grids = u->columns / u->pitch,
                               .height = u->height,
                               .width = u->width,
                               .pitch = u->pitch,
                               .side = u->side};
    return gpu_unfold_grids(&unfold, stream);
}

/* ---- vectors of texts ---- */

static int run_pool(const cuda_state *state, gpu_type type, const void *what, void *stream)
{
    (void)state;
    const esp_pool *p = what;
    const gpu_pool pool = {.type = type,
                           .x = p->x,
                           .x_stride = p->columns,
                           .features = p->features,
                           .texts = p->groups,
                           .first = p->starts,
                           .lengths = p->counts,
                           .pooling = p->kind == ESP_POOL_FIRST  ? GPU_POOL_FIRST
                                      : p->kind == ESP_POOL_MOST ? GPU_POOL_MAX
                                                                 : GPU_POOL_MEAN,
                           .normalize = p->normalizes,
                           .vectors = p->y};
    return gpu_pool_texts(&pool, stream);
}

/* ---- the tables ---- */

/* Entries take no type: each table has its own. */
#define ENTRIES(name, TYPE)                                                                        \
    static esp_status embed_##name(esp_device *device, void *stream,                               \
                                   const esp_embedding *embedding)                                 \
    {                                                                                              \
        return launch(device, TYPE, run_embed, embedding, stream);                                 \
    }                                                                                              \
    static esp_status rms_norm_##name(esp_device *device, void *stream, const void *x,             \
                                      const float *weight, float eps, int64_t features,            \
                                      int64_t tokens, void *y)                                     \
    {                                                                                              \
        const gpu_norm norm = {TYPE, x, tokens, weight, NULL, eps, features, tokens, y, tokens};   \
        return launch(device, TYPE, run_rms_norm, &norm, stream);                                  \
    }                                                                                              \
    static esp_status layer_norm_##name(esp_device *device, void *stream, const void *x,           \
                                        const float *weight, const float *bias, float eps,         \
                                        int64_t features, int64_t tokens, void *y)                 \
    {                                                                                              \
        const gpu_norm norm = {TYPE, x, tokens, weight, bias, eps, features, tokens, y, tokens};   \
        return launch(device, TYPE, run_layer_norm, &norm, stream);                                \
    }                                                                                              \
    static esp_status moments_##name(esp_device *device, void *stream, const void *x,              \
                                     int64_t features, int64_t tokens, float *values)              \
    {                                                                                              \
        const gpu_moments moments = {TYPE, x, tokens, features, tokens, features, values, tokens}; \
        return launch(device, TYPE, run_moments, &moments, stream);                                \
    }                                                                                              \
    static esp_status rope_append_##name(esp_device *device, void *stream,                         \
                                         const esp_rope_append *append)                            \
    {                                                                                              \
        return launch(device, TYPE, run_append, append, stream);                                   \
    }                                                                                              \
    static esp_status attend_past_##name(esp_device *device, void *stream,                         \
                                         const esp_past_attention *attention)                      \
    {                                                                                              \
        return launch(device, TYPE, run_past, attention, stream);                                  \
    }                                                                                              \
    static esp_status attend_step_##name(esp_device *device, void *stream,                         \
                                         const esp_step_attention *attention)                      \
    {                                                                                              \
        return launch(device, TYPE, run_step, attention, stream);                                  \
    }                                                                                              \
    static esp_status attend_groups_##name(esp_device *device, void *stream,                       \
                                           const esp_group_attention *attention)                   \
    {                                                                                              \
        return launch(device, TYPE, run_groups, attention, stream);                                \
    }                                                                                              \
    static esp_status attend_windows_##name(esp_device *device, void *stream,                      \
                                            const esp_window_attention *attention)                 \
    {                                                                                              \
        const gpu_attention_windows windows = windows_of(device, TYPE, attention);                 \
        return launch(device, TYPE, run_windows, &windows, stream);                                \
    }                                                                                              \
    static esp_status swiglu_##name(esp_device *device, void *stream, const void *gate,            \
                                    const void *up, int64_t count, void *y)                        \
    {                                                                                              \
        const swiglu_call call = {gate, up, count, y};                                             \
        return launch(device, TYPE, run_swiglu, &call, stream);                                    \
    }                                                                                              \
    static esp_status finish_##name(esp_device *device, void *stream, const float *bias,           \
                                    unsigned activation, int64_t features, int64_t columns,        \
                                    void *y)                                                       \
    {                                                                                              \
        const finish_call call = {bias, activation, features, columns, y};                         \
        return launch(device, TYPE, run_finish, &call, stream);                                    \
    }                                                                                              \
    static esp_status gather_##name(esp_device *device, void *stream, const void *x,               \
                                    int64_t features, int64_t tokens, const int32_t *index,        \
                                    int64_t count, bool adds, void *y)                             \
    {                                                                                              \
        const gather_call call = {x, features, tokens, index, count, adds, y};                     \
        return launch(device, TYPE, run_gather, &call, stream);                                    \
    }                                                                                              \
    static esp_status unfold_##name(esp_device *device, void *stream, const esp_unfold *unfold)    \
    {                                                                                              \
        return launch(device, TYPE, run_unfold, unfold, stream);                                   \
    }                                                                                              \
    static esp_status place_##name(esp_device *device, void *stream,                               \
                                   const esp_image_tokens *tokens)                                 \
    {                                                                                              \
        return launch(device, TYPE, run_place, tokens, stream);                                    \
    }                                                                                              \
    static esp_status patches_##name(esp_device *device, void *stream, const esp_patches *patches) \
    {                                                                                              \
        return launch(device, TYPE, run_patches, patches, stream);                                 \
    }                                                                                              \
    static esp_status pool_##name(esp_device *device, void *stream, const esp_pool *pool)          \
    {                                                                                              \
        return launch(device, TYPE, run_pool, pool, stream);                                       \
    }                                                                                              \
    static esp_status widen_##name(esp_device *device, void *stream, const void *x, int64_t count, \
                                   float *y)                                                       \
    {                                                                                              \
        const widen_call call = {x, count, y};                                                     \
        return launch(device, TYPE, run_widen, &call, stream);                                     \
    }

ENTRIES(f16, GPU_F16)
ENTRIES(bf16, GPU_BF16)

typedef struct argmax_call {
    const float *rows;
    int64_t count, size;
    int32_t *best;
} argmax_call;

static int run_argmax(const cuda_state *state, gpu_type type, const void *what, void *stream)
{
    (void)state;
    const argmax_call *call = what;
    return gpu_argmax(type, call->rows, call->size, call->count, call->size, call->best, stream);
}

static esp_status argmax(esp_device *device, void *stream, const float *rows, int64_t count,
                         int64_t size, int32_t *best)
{
    const argmax_call call = {rows, count, size, best};
    return launch(device, GPU_F32, run_argmax, &call, stream);
}

static esp_status rope_angles(esp_device *device, void *stream, const float *frequencies,
                              const int32_t *positions, int64_t head_dim, int64_t tokens,
                              float *cosines, float *sines)
{
    const angles_call call = {frequencies, positions, head_dim, tokens, cosines, sines};
    return launch(device, GPU_F32, run_angles, &call, stream);
}

#define TABLE(name, dtype)                                                                         \
    {                                                                                              \
        .type = (dtype), .step = STEP, .line = CUDA_LINE, .few = GPU_FEW_TOKENS,                   \
        .widest_grid = GPU_WIDEST_GRID, .embed = embed_##name, .rms_norm = rms_norm_##name,        \
        .layer_norm = layer_norm_##name, .moments = moments_##name, .rms_apart = true,             \
        .rope_angles = rope_angles, .rope_append = rope_append_##name,                             \
        .past_workspace_bytes = no_past_workspace, .attend_past = attend_past_##name,              \
        .attend_step = attend_step_##name, .step_appends = true,                                   \
        .group_workspace_bytes = no_group_workspace, .attend_groups = attend_groups_##name,        \
        .can_attend_windows = can_attend_windows, .attend_windows = attend_windows_##name,         \
        .swiglu = swiglu_##name, .finish = finish_##name, .gather_tokens = gather_##name,          \
        .unfold = unfold_##name, .place_tokens = place_##name, .patches = patches_##name,          \
        .pool = pool_##name, .widen = widen_##name, .argmax = argmax,                              \
    }

static const esp_ops tables[] = {TABLE(f16, ESP_F16), TABLE(bf16, ESP_BF16)};

const esp_ops *cuda_ops_of(const esp_device *device, esp_dtype type)
{
    (void)device;
    return &tables[type == ESP_BF16];
}

/* The weights' own type; f32 weights are rounded to f16, whose 11 bits are the more exact, unless
 * bf16 was asked for. */
esp_dtype cuda_activation_type(const esp_device *device, esp_compute compute, esp_dtype weight_type)
{
    (void)device;
    bool bf16 = compute == ESP_COMPUTE_BF16 || weight_type == ESP_BF16;
    return bf16 ? ESP_BF16 : ESP_F16;
}
