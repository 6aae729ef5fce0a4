/* A device whose memory the host cannot touch: the reference's operations over an arena that is
 * readable only while one of them, or a copy, is at work. A model that runs on it sends what it
 * writes and fetches what it reads. Activations take columns in multiples of 8, NaN lies where
 * nothing was written, and repeated work is kept as a list of calls and given again, as a GPU does
 * with a graph: what it needs must be in device memory or stay as it is. */
#ifndef TESTS_FAR_BACKEND_H
#define TESTS_FAR_BACKEND_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "far_norms.h"
#include "far_windows.h"
#include "plan/plan.h"

#define FAR_BYTES ((size_t)1 << 30) /* reserved, not used */
#define FAR_PAGE ((size_t)4096)
#define FAR_STEP 8
#define FAR_LINE 32
#define FAR_FEW 16
#define FAR_KERNELS 32

/* One call of an operation or of a product. */
typedef struct far_call {
    struct far_call *next;
    esp_status (*run)(esp_device *device, const void *what, esp_error *error);
    union {
        max_align_t align;
        char bytes[640];
    } what;
} far_call;

typedef struct far_state {
    char *memory;
    size_t used;
    size_t *sizes;     /* a page each: what was asked for, where it begins; 0: given back */
    size_t held, most; /* of what was asked for; most: so far */
    size_t packed;     /* bytes of weights, which lie elsewhere */
    int open;          /* calls that are at work */
    bool keeping;
    far_call *kept, **end;
    int replays, sends; /* for tests */
    far_norming norming;
    esp_dtype rounds;  /* activations have only what this type has; 0: they are f32 */
    long refused_from; /* the allocation that fails, and all behind it, counted down; 0: none */
    esp_backend backend;
    esp_ops ops;
    esp_kernel kernels[FAR_KERNELS];
    const esp_kernel *list[FAR_KERNELS + 1];
    const esp_backend *real;
} far_state;

static far_state *far_now; /* one at a time */

static inline void far_open(void)
{
    if (far_now->open++ == 0 && mprotect(far_now->memory, FAR_BYTES, PROT_READ | PROT_WRITE) != 0) {
        abort();
    }
}

static inline void far_close(void)
{
    if (--far_now->open == 0 && mprotect(far_now->memory, FAR_BYTES, PROT_NONE) != 0) {
        abort();
    }
}

/* How much was asked for where `memory` begins. */
static inline size_t *far_size_of(const void *memory)
{
    return &far_now->sizes[(size_t)((const char *)memory - far_now->memory) / FAR_PAGE];
}

/* Its pages are not used again before the device is closed. NaN in every type. */
static inline void *far_alloc(esp_device *device, size_t bytes)
{
    (void)device;
    size_t room = (bytes + FAR_PAGE - 1) / FAR_PAGE * FAR_PAGE;
    bool refused = far_now->refused_from == 1;
    far_now->refused_from -= far_now->refused_from > 1;
    if (refused || room > FAR_BYTES - far_now->used) {
        return NULL;
    }
    char *memory = far_now->memory + far_now->used;
    far_now->used += room;
    *far_size_of(memory) = bytes;
    far_now->held += bytes;
    far_now->most = ESP_MAX(far_now->most, far_now->held);
    far_open();
    memset(memory, 0xff, room);
    far_close();
    return memory;
}

static inline void far_release(esp_device *device, void *memory)
{
    (void)device;
    if (memory != NULL) {
        far_now->held -= *far_size_of(memory);
        *far_size_of(memory) = 0;
    }
}

/* Runs a call, or keeps it. */
static inline esp_status far_do(esp_device *device,
                                esp_status (*run)(esp_device *, const void *, esp_error *),
                                const void *what, size_t bytes, esp_error *error)
{
    if (far_now->keeping) {
        far_call *call = calloc(1, sizeof *call);
        if (call == NULL || bytes > sizeof call->what) {
            abort();
        }
        call->run = run;
        memcpy(call->what.bytes, what, bytes);
        *far_now->end = call;
        far_now->end = &call->next;
        return ESP_OK;
    }
    far_open();
    esp_status status = run(device, what, error);
    far_close();
    return status;
}

/* ---- operations ---- */

static inline void far_round(void *made, int64_t count)
{
    float *values = made;
    char narrow[256 * sizeof(float)];
    for (int64_t at = 0; at < count && far_now->rounds != ESP_DTYPE_INVALID; at += 256) {
        esp_narrow(far_now->rounds, values + at, ESP_MIN(count - at, 256), narrow);
        esp_widen(far_now->rounds, narrow, ESP_MIN(count - at, 256), values + at);
    }
}

#define FAR_STRUCT(name, type, made, count)                                                        \
    static inline esp_status far_run_##name(esp_device *device, const void *what,                  \
                                            esp_error *error)                                      \
    {                                                                                              \
        (void)error;                                                                               \
        const type *of = what;                                                                     \
        esp_status status = far_now->real->ops->name(device, NULL, what);                          \
        far_round(made, count);                                                                    \
        return status;                                                                             \
    }                                                                                              \
    static inline esp_status far_##name(esp_device *device, void *stream, const type *what)        \
    {                                                                                              \
        (void)stream;                                                                              \
        return far_do(device, far_run_##name, what, sizeof *what, NULL);                           \
    }

FAR_STRUCT(embed, esp_embedding, of->x, of->tables[0]->shape[1] * of->columns)
FAR_STRUCT(rope_append, esp_rope_append, of->q, of->heads * of->head_dim * of->columns)
FAR_STRUCT(attend_past, esp_past_attention, of->y, of->heads * of->head_dim * of->columns)
FAR_STRUCT(attend_step, esp_step_attention, of->y, of->heads * of->head_dim * of->columns)
FAR_STRUCT(attend_groups, esp_group_attention, of->y, of->heads * of->head_dim * of->columns)
FAR_STRUCT(unfold, esp_unfold, of->y, 0) /* moves numbers that are rounded */
FAR_STRUCT(place_tokens, esp_image_tokens, of->x, of->features * of->columns)
FAR_STRUCT(patches, esp_patches, of->y, of->channels * of->patch * of->patch * of->columns)
FAR_STRUCT(pool, esp_pool, of->y, 0) /* makes f32 */

/* Even windows only, so that both ways are gone. */
static inline bool far_can_attend_windows(const esp_device *device,
                                          const esp_window_attention *attention)
{
    (void)device;
    return attention->window % 2 == 0;
}

static inline esp_status far_run_attend_windows(esp_device *device, const void *what,
                                                esp_error *error)
{
    (void)error;
    return far_attend_as_groups(far_now->real->ops, device, what);
}

static inline esp_status far_attend_windows(esp_device *device, void *stream,
                                            const esp_window_attention *what)
{
    (void)stream;
    return far_do(device, far_run_attend_windows, what, sizeof *what, NULL);
}

/* Operands of the others. */
typedef struct far_operands {
    const void *a, *b, *c;
    const int32_t *list;
    void *y, *z;
    float eps;
    int64_t m, n, k;
    bool adds;
} far_operands;

#define FAR_RUN(name, rounded, call)                                                               \
    static inline esp_status far_run_##name(esp_device *device, const void *what,                  \
                                            esp_error *error)                                      \
    {                                                                                              \
        (void)error;                                                                               \
        const far_operands *o = what;                                                              \
        const esp_ops *ops = far_now->real->ops;                                                   \
        esp_status status = call;                                                                  \
        far_round(o->y, rounded);                                                                  \
        return status;                                                                             \
    }
FAR_RUN(rms_norm, o->m * o->n, ops->rms_norm(device, NULL, o->a, o->b, o->eps, o->m, o->n, o->y))
FAR_RUN(layer_norm, o->m * o->n,
        ops->layer_norm(device, NULL, o->a, o->b, o->c, o->eps, o->m, o->n, o->y))
FAR_RUN(moments, 0, ((void)device, (void)ops, far_find_moments(o->a, o->m, o->n, o->m, o->y)))
FAR_RUN(rope_angles, 0, ops->rope_angles(device, NULL, o->a, o->list, o->m, o->n, o->y, o->z))
FAR_RUN(swiglu, o->n, ops->swiglu(device, NULL, o->a, o->b, o->n, o->y))
FAR_RUN(gather_tokens, 0,
        ops->gather_tokens(device, NULL, o->a, o->m, o->n, o->list, o->k, o->adds, o->y))
FAR_RUN(widen, 0, ops->widen(device, NULL, o->a, o->n, o->y))
FAR_RUN(argmax, 0, ops->argmax(device, NULL, o->a, o->m, o->n, o->y))

static inline esp_status far_rms_norm(esp_device *device, void *stream, const void *x,
                                      const float *weight, float eps, int64_t features,
                                      int64_t tokens, void *y)
{
    (void)stream;
    far_now->norming.alone++;
    far_operands o = {.a = x, .b = weight, .eps = eps, .m = features, .n = tokens, .y = y};
    return far_do(device, far_run_rms_norm, &o, sizeof o, NULL);
}

static inline esp_status far_layer_norm(esp_device *device, void *stream, const void *x,
                                        const float *weight, const float *bias, float eps,
                                        int64_t features, int64_t tokens, void *y)
{
    (void)stream;
    far_now->norming.alone++;
    far_operands o = {
        .a = x, .b = weight, .c = bias, .eps = eps, .m = features, .n = tokens, .y = y};
    return far_do(device, far_run_layer_norm, &o, sizeof o, NULL);
}

static inline esp_status far_moments(esp_device *device, void *stream, const void *x,
                                     int64_t features, int64_t tokens, float *values)
{
    (void)stream;
    far_now->norming.found++;
    far_operands o = {.a = x, .m = features, .n = tokens, .y = values};
    return far_do(device, far_run_moments, &o, sizeof o, NULL);
}

static inline esp_status far_rope_angles(esp_device *device, void *stream, const float *frequencies,
                                         const int32_t *positions, int64_t head_dim, int64_t tokens,
                                         float *cosines, float *sines)
{
    (void)stream;
    far_operands o = {
        .a = frequencies, .list = positions, .m = head_dim, .n = tokens, .y = cosines, .z = sines};
    return far_do(device, far_run_rope_angles, &o, sizeof o, NULL);
}

static inline esp_status far_swiglu(esp_device *device, void *stream, const void *gate,
                                    const void *up, int64_t count, void *y)
{
    (void)stream;
    far_operands o = {.a = gate, .b = up, .n = count, .y = y};
    return far_do(device, far_run_swiglu, &o, sizeof o, NULL);
}

static inline esp_status far_gather_tokens(esp_device *device, void *stream, const void *x,
                                           int64_t features, int64_t tokens, const int32_t *index,
                                           int64_t count, bool adds, void *y)
{
    (void)stream;
    far_operands o = {
        .a = x, .m = features, .n = tokens, .list = index, .k = count, .adds = adds, .y = y};
    return far_do(device, far_run_gather_tokens, &o, sizeof o, NULL);
}

static inline esp_status far_widen(esp_device *device, void *stream, const void *x, int64_t count,
                                   float *y)
{
    (void)stream;
    far_operands o = {.a = x, .n = count, .y = y};
    return far_do(device, far_run_widen, &o, sizeof o, NULL);
}

static inline esp_status far_argmax(esp_device *device, void *stream, const float *rows,
                                    int64_t count, int64_t size, int32_t *best)
{
    (void)stream;
    far_operands o = {.a = rows, .m = count, .n = size, .y = best};
    return far_do(device, far_run_argmax, &o, sizeof o, NULL);
}

static inline const esp_ops *far_ops_of(const esp_device *device, esp_dtype type)
{
    (void)device, (void)type;
    return &far_now->ops;
}

/* ---- products ---- */

typedef struct far_product {
    esp_matmul_problem problem;
    esp_matmul_args args;
    const esp_kernel *kernel;
    esp_normed normed; /* of_x.parts 0: none */
    esp_moments moments;
} far_product;

static inline bool far_norms(const esp_kernel *kernel, const esp_matmul_problem *problem,
                             const esp_packed *weight)
{
    (void)kernel, (void)weight;
    far_norm_mode mode = far_now->norming.mode;
    return problem->tokens > 1 && problem->y_layout == ESP_FEATURE_MAJOR &&
           (mode == FAR_NORMS_ALL ||
            (mode == FAR_NORMS_SOME && (problem->out_features + problem->tokens / FAR_STEP) % 3));
}

static inline int far_moment_parts(const esp_kernel *kernel, const esp_matmul_problem *problem,
                                   const esp_packed *weight)
{
    (void)kernel, (void)weight;
    return far_now->norming.leaves ? (int)esp_ceil_div(problem->out_features, FAR_PART_ROWS) : 0;
}

static inline esp_status far_run_product(esp_device *device, const void *what, esp_error *error)
{
    const far_product *p = what;
    const esp_matmul_call call = {p->kernel, device, &p->problem, &p->args, {0}};
    esp_status status = p->normed.of_x.parts > 0
                            ? far_run_normed(&call, &p->normed, &far_now->norming, error)
                            : p->kernel->launch(&call, error);
    if (p->problem.y_layout == ESP_FEATURE_MAJOR) {
        bool pairs = (p->problem.epilogue & ESP_EP_SWIGLU) != 0;
        far_round(p->args.y, (p->problem.out_features >> pairs) * p->problem.tokens);
    }
    return status == ESP_OK && p->moments.parts > 0
               ? far_find_moments(p->args.y, p->problem.out_features, p->problem.tokens,
                                  FAR_PART_ROWS, p->moments.values)
               : status;
}

static inline esp_status far_launch(const esp_matmul_call *call, esp_error *error)
{
    far_product p = {*call->problem, *call->args,
                     far_now->real->kernels[call->kernel - far_now->kernels], .normed = {{0}}};
    if (call->around.normed != NULL) {
        far_now->norming.finished++;
        p.normed = *call->around.normed;
    }
    if (call->around.moments != NULL) {
        far_now->norming.left++;
        p.moments = *call->around.moments;
    }
    return far_do(call->device, far_run_product, &p, sizeof p, error);
}

static inline esp_status far_pack(esp_device *device, const esp_sparse *sparse, esp_packed **packed,
                                  esp_error *error)
{
    far_open();
    esp_status status = far_now->real->pack(device, sparse, packed, error);
    far_now->packed += status == ESP_OK ? (*packed)->bytes : 0;
    far_close();
    return status;
}

/* ---- copies ---- */

static inline esp_status far_copy(void *to, const void *from, size_t bytes)
{
    far_open();
    memcpy(to, from, bytes);
    far_close();
    return ESP_OK;
}

static inline esp_status far_upload(esp_device *device, void *to, const void *from, size_t bytes,
                                    esp_error *error)
{
    (void)device, (void)error;
    return far_copy(to, from, bytes);
}

static inline esp_status far_send(esp_device *device, void *stream, void *to, const void *from,
                                  size_t bytes, esp_error *error)
{
    (void)device, (void)stream, (void)error;
    far_now->sends++;
    return far_copy(to, from, bytes);
}

static inline esp_status far_settle(esp_device *device, void *stream, esp_error *error)
{
    (void)device, (void)stream, (void)error;
    return ESP_OK;
}

static inline esp_status far_wait(esp_device *device, esp_error *error)
{
    (void)device, (void)error;
    return ESP_OK;
}

static inline void *far_staging_alloc(esp_device *device, size_t bytes)
{
    (void)device;
    return malloc(bytes);
}

static inline void far_staging_release(esp_device *device, void *memory)
{
    (void)device;
    free(memory);
}

static inline size_t far_memory_free(const esp_device *device)
{
    (void)device;
    return FAR_BYTES - far_now->used;
}

/* ---- kept work ---- */

static inline esp_status far_keep_begin(esp_device *device, void *stream, esp_error *error)
{
    (void)device, (void)stream, (void)error;
    far_now->keeping = true;
    far_now->kept = NULL;
    far_now->end = &far_now->kept;
    return ESP_OK;
}

static inline void far_keep_free(esp_device *device, void *graph)
{
    (void)device;
    for (far_call *call = graph, *next; call != NULL; call = next) {
        next = call->next;
        free(call);
    }
}

static inline esp_status far_keep_end(esp_device *device, void *stream, void **graph,
                                      esp_error *error)
{
    (void)stream, (void)error;
    far_now->keeping = false;
    if (graph == NULL) {
        far_keep_free(device, far_now->kept);
    } else {
        *graph = far_now->kept;
    }
    return ESP_OK;
}

static inline esp_status far_keep_replay(esp_device *device, void *stream, void *graph,
                                         esp_error *error)
{
    (void)stream;
    far_now->replays++;
    for (const far_call *call = graph; call != NULL; call = call->next) {
        far_open();
        esp_status status = call->run(device, call->what.bytes, error);
        far_close();
        if (status != ESP_OK) {
            return status;
        }
    }
    return ESP_OK;
}

/* ---- installing ---- */

static inline void far_fill_ops(esp_ops *ops)
{
    ops->step = FAR_STEP;
    ops->line = FAR_LINE;
    ops->few = FAR_FEW;
    ops->embed = far_embed;
    ops->rms_norm = far_rms_norm;
    ops->layer_norm = far_layer_norm;
    ops->rope_angles = far_rope_angles;
    ops->rope_append = far_rope_append;
    ops->attend_past = far_attend_past;
    ops->attend_step = far_attend_step;
    ops->attend_groups = far_attend_groups;
    ops->can_attend_windows = far_can_attend_windows;
    ops->attend_windows = far_attend_windows;
    ops->swiglu = far_swiglu;
    ops->gather_tokens = far_gather_tokens;
    ops->unfold = far_unfold;
    ops->place_tokens = far_place_tokens;
    ops->patches = far_patches;
    ops->pool = far_pool;
    ops->widen = far_widen;
    ops->argmax = far_argmax;
}

/* device: one of "ref", before anything is on it. */
static inline void far_install(far_state *made, esp_device *device)
{
    const esp_backend *real = device->backend;
    *made = (far_state){.backend = *real, .ops = *real->ops, .real = real};
    made->memory =
        mmap(NULL, FAR_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    made->sizes = calloc(FAR_BYTES / FAR_PAGE, sizeof *made->sizes);
    if (made->memory == MAP_FAILED || made->sizes == NULL) {
        abort();
    }
    far_now = made;
    far_fill_ops(&made->ops);
    for (int i = 0; real->kernels[i] != NULL && i < FAR_KERNELS; i++) {
        made->kernels[i] = *real->kernels[i];
        made->kernels[i].launch = far_launch;
        made->list[i] = &made->kernels[i];
    }
    esp_backend *backend = &made->backend;
    backend->kernels = made->list;
    backend->ops_of = far_ops_of;
    backend->pack = far_pack;
    backend->alloc = far_alloc;
    backend->release = far_release;
    backend->upload = far_upload;
    backend->download = far_upload;
    backend->wait = far_wait;
    backend->staging_alloc = far_staging_alloc;
    backend->staging_release = far_staging_release;
    backend->send = far_send;
    backend->receive = far_send;
    backend->settle = far_settle;
    backend->keep_begin = far_keep_begin;
    backend->keep_end = far_keep_end;
    backend->keep_replay = far_keep_replay;
    backend->keep_free = far_keep_free;
    backend->memory_free = far_memory_free;
    device->backend = backend;
}

/* Before a model is loaded: its norms go into the weights, and these kernels finish them. */
static inline void far_hold_norms(far_state *made, far_norm_mode mode, bool leaves)
{
    made->norming.mode = mode;
    made->norming.leaves = leaves;
    made->ops.moments = far_moments;
    for (int i = 0; made->list[i] != NULL; i++) {
        made->kernels[i].norms = far_norms;
        made->kernels[i].moment_parts = far_moment_parts;
    }
}

static inline void far_remove(far_state *made, esp_device *device)
{
    device->backend = made->real;
    munmap(made->memory, FAR_BYTES);
    free(made->sizes);
    far_now = NULL;
}

#endif
