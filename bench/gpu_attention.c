/* gpu_attention [NAME]: attention on the first GPU at the shapes of whole models, of those whose
 * name contains NAME. Medians of a graph of many calls, replayed; Tflop/s of the products without
 * padding, GB/s of operands that must move. bench/gpu_attention.py times PyTorch at the same
 * shapes. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "cuda/gpu_windows.h"

#define ROUNDS 9

#define NEED(call)                                                                                 \
    do {                                                                                           \
        int failed_ = (int)(call);                                                                 \
        if (failed_ != 0) {                                                                        \
            fprintf(stderr, "gpu_attention: line %d: %s: %s\n", __LINE__, #call,                   \
                    cudaGetErrorString((cudaError_t)failed_));                                     \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* WINDOWS: groups, of images of grid_width columns and rows, in windows of 14; tokens count the
 * windows'. STEP: a decode whose own rows come along. */
typedef enum kind { GROUPS, WINDOWS, PREFILL, DECODE, STEP } kind;

typedef struct shape {
    const char *name;
    kind kind;
    int64_t groups, tokens, heads, kv_heads, head_dim; /* decode: tokens of each cache */
    int64_t grid_width;
    int calls; /* of the graph */
} shape;

static bool is_decode(const shape *s)
{
    return s->kind == DECODE || s->kind == STEP;
}

static const shape shapes[] = {
    {"deit-base-b1", GROUPS, 1, 197, 12, 12, 64, 0, 64},
    {"deit-base-b256", GROUPS, 256, 197, 12, 12, 64, 0, 4},
    {"vit-large-b64", GROUPS, 64, 197, 16, 16, 64, 0, 8},
    {"bert-large-32x512", GROUPS, 32, 512, 16, 16, 64, 0, 8},
    {"bert-large-32x128", GROUPS, 32, 128, 16, 16, 64, 0, 8},
    {"sam-h-global", GROUPS, 1, 4096, 16, 16, 80, 64, 4},
    {"sam-h-global-unbiased", GROUPS, 1, 4096, 16, 16, 80, 0, 4},
    {"sam-h-windows", GROUPS, 25, 196, 16, 16, 80, 14, 16},
    {"sam-h-windows-unbiased", GROUPS, 25, 196, 16, 16, 80, 0, 16},
    {"sam-h-windows-in-place", WINDOWS, 25, 196, 16, 16, 80, 64, 16},
    {"llama-2-7b-prefill2048", PREFILL, 1, 2048, 32, 32, 128, 0, 4},
    {"llama-2-7b-prefill512", PREFILL, 1, 512, 32, 32, 128, 0, 16},
    {"llama-2-7b-decode1-128", DECODE, 1, 128, 32, 32, 128, 0, 64},
    {"llama-2-7b-decode1-512", DECODE, 1, 512, 32, 32, 128, 0, 32},
    {"llama-2-7b-decode1-4096", DECODE, 1, 4096, 32, 32, 128, 0, 8},
    {"llama-2-7b-decode16-128", DECODE, 16, 128, 32, 32, 128, 0, 16},
    {"llama-2-7b-decode16-512", DECODE, 16, 512, 32, 32, 128, 0, 8},
    {"llama-3-8b-decode1-512", DECODE, 1, 512, 32, 8, 128, 0, 64},
    {"llama-3-8b-decode16-512", DECODE, 16, 512, 32, 8, 128, 0, 16},
    {"llama-2-7b-step1-136", STEP, 1, 136, 32, 32, 128, 0, 64},
    {"llama-2-7b-step16-136", STEP, 16, 136, 32, 32, 128, 0, 16},
    {"llama-3-8b-step16-512", STEP, 16, 512, 32, 8, 128, 0, 16},
};

typedef struct operands {
    void *q, *k, *v, *y;
    float *tables;
    gpu_place *places;
    int64_t stride;
    size_t cache; /* elements of one layer's keys */
} operands;

/* f16 between -2 and 2, the same again every 2^20. */
static void *numbers(size_t count)
{
    enum { PERIOD = 1 << 20 };
    static uint16_t host[PERIOD];
    char *made;
    uint64_t state = 88172645463325252u;
    for (size_t i = 0; i < PERIOD; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        host[i] = (uint16_t)((state >> 20 & 0x83ff) | (12 + (state >> 50) % 4) << 10);
    }
    NEED(cudaMalloc((void **)&made, count * 2));
    for (size_t i = 0; i < count; i += PERIOD) {
        size_t part = count - i < PERIOD ? count - i : PERIOD;
        NEED(cudaMemcpy(made + i * 2, host, part * 2, cudaMemcpyHostToDevice));
    }
    return made;
}

static operands operands_make(const shape *s)
{
    operands o = {NULL};
    int64_t columns = s->kind == GROUPS    ? s->groups * ((s->tokens + 7) / 8 * 8)
                      : s->kind == WINDOWS ? s->grid_width * s->grid_width
                      : is_decode(s)       ? s->groups
                                           : s->tokens;
    o.stride = (columns + 7) / 8 * 8;
    size_t q = (size_t)(s->heads * s->head_dim * o.stride);
    o.cache = (size_t)(s->kv_heads * s->tokens * s->head_dim);
    size_t sequences = is_decode(s) ? (size_t)s->groups : 1;
    size_t kv = s->kind == GROUPS || s->kind == WINDOWS ? q
                : is_decode(s)                          ? 2 * o.cache * sequences * (size_t)s->calls
                                                        : o.cache;
    o.q = numbers(q);
    o.k = numbers(kv);
    o.v = is_decode(s) ? (char *)o.k + o.cache * 2 : numbers(kv); /* layer by layer */
    o.y = numbers(q);
    NEED(cudaMalloc((void **)&o.tables, 2 * 128 * 128 * sizeof(float)));
    NEED(cudaMemset(o.tables, 0, 2 * 128 * 128 * sizeof(float)));
    gpu_place *places = calloc(sequences, sizeof *places);
    for (size_t n = 0; n < sequences; n++) {
        size_t at = n * o.cache * 4 * (is_decode(s) ? (size_t)s->calls : 1);
        places[n] = (gpu_place){(char *)o.k + at, (char *)o.v + at, (int32_t)s->tokens - 1,
                                (int32_t)s->tokens};
    }
    NEED(cudaMalloc((void **)&o.places, sequences * sizeof *places));
    NEED(cudaMemcpy(o.places, places, sequences * sizeof *places, cudaMemcpyHostToDevice));
    free(places);
    return o;
}

static void operands_free(const shape *s, operands *o)
{
    void *all[] = {o->q, o->k, is_decode(s) ? NULL : o->v, o->y, o->tables, o->places};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        NEED(cudaFree(all[i]));
    }
}

static float scale_of(const shape *s)
{
    return 1 / sqrtf((float)s->head_dim);
}

static void call_groups(const shape *s, const operands *o, cudaStream_t stream)
{
    gpu_attention_groups a = {.type = GPU_F16,
                              .q = o->q,
                              .k = o->k,
                              .v = o->v,
                              .y = o->y,
                              .stride = o->stride,
                              .y_stride = o->stride,
                              .heads = s->heads,
                              .head_dim = s->head_dim,
                              .groups = s->groups,
                              .tokens = s->tokens,
                              .pitch = (s->tokens + 7) / 8 * 8,
                              .scale = scale_of(s),
                              .row_table = s->grid_width > 0 ? o->tables : NULL,
                              .column_table = s->grid_width > 0 ? o->tables : NULL,
                              .grid_width = s->grid_width};
    NEED(gpu_attend_groups(&a, stream));
}

static void call_windows(const shape *s, const operands *o, cudaStream_t stream)
{
    gpu_attention_windows a = {.type = GPU_F16,
                               .q = o->q,
                               .k = o->k,
                               .v = o->v,
                               .y = o->y,
                               .stride = o->stride,
                               .y_stride = o->stride,
                               .heads = s->heads,
                               .head_dim = s->head_dim,
                               .images = 1,
                               .pitch = o->stride,
                               .rows = s->grid_width,
                               .columns = s->grid_width,
                               .window = 14,
                               .outside_k = o->tables,
                               .outside_v = o->tables,
                               .scale = scale_of(s),
                               .row_table = o->tables,
                               .column_table = o->tables};
    NEED(gpu_attend_windows(&a, stream));
}

static void call_prefill(const shape *s, const operands *o, cudaStream_t stream)
{
    gpu_attention_prefill a = {.type = GPU_F16,
                               .q = o->q,
                               .stride = o->stride,
                               .keys = o->k,
                               .values = o->v,
                               .capacity = s->tokens,
                               .y = o->y,
                               .y_stride = o->stride,
                               .heads = s->heads,
                               .kv_heads = s->kv_heads,
                               .head_dim = s->head_dim,
                               .tokens = s->tokens,
                               .scale = scale_of(s)};
    NEED(gpu_attend_prefill(&a, stream));
}

static void call_decode(const shape *s, const operands *o, int layer, int multiprocessors,
                        cudaStream_t stream)
{
    gpu_attention_decode a = {.type = GPU_F16,
                              .q = o->q,
                              .stride = o->stride,
                              .y = o->y,
                              .y_stride = o->stride,
                              .places = o->places,
                              .layer = layer,
                              .sequences = s->groups,
                              .longest = s->tokens,
                              .heads = s->heads,
                              .kv_heads = s->kv_heads,
                              .head_dim = s->head_dim,
                              .scale = scale_of(s),
                              .multiprocessors = multiprocessors,
                              .overlaps = true};
    if (s->kind == STEP) {
        a.k = a.v = o->q;
        a.cosines = a.sines = o->tables, a.angle_stride = o->stride;
    }
    NEED(gpu_attend_decode(&a, stream));
}

static void call(const shape *s, const operands *o, int which, int multiprocessors,
                 cudaStream_t stream)
{
    if (s->kind == GROUPS) {
        call_groups(s, o, stream);
    } else if (s->kind == WINDOWS) {
        call_windows(s, o, stream);
    } else if (s->kind == PREFILL) {
        call_prefill(s, o, stream);
    } else {
        call_decode(s, o, which, multiprocessors, stream);
    }
}

static int by_size(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double time_us(const shape *s, const operands *o, int multiprocessors)
{
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    cudaEvent_t begin, end;
    float ms[ROUNDS];
    NEED(cudaStreamCreate(&stream));
    NEED(cudaEventCreate(&begin));
    NEED(cudaEventCreate(&end));
    NEED(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < s->calls; i++) {
        call(s, o, i, multiprocessors, stream);
    }
    NEED(cudaStreamEndCapture(stream, &graph));
    NEED(cudaGraphInstantiate(&ready, graph, 0));
    for (int i = -2; i < ROUNDS; i++) {
        NEED(cudaEventRecord(begin, stream));
        NEED(cudaGraphLaunch(ready, stream));
        NEED(cudaEventRecord(end, stream));
        NEED(cudaEventSynchronize(end));
        NEED(cudaEventElapsedTime(&ms[i < 0 ? 0 : i], begin, end));
    }
    qsort(ms, ROUNDS, sizeof *ms, by_size);
    NEED(cudaGraphExecDestroy(ready));
    NEED(cudaGraphDestroy(graph));
    NEED(cudaEventDestroy(begin));
    NEED(cudaEventDestroy(end));
    NEED(cudaStreamDestroy(stream));
    return 1e3 * (double)ms[ROUNDS / 2] / s->calls;
}

static void report(const shape *s, double us)
{
    double n = (double)s->tokens, queries = is_decode(s) ? 1 : n;
    double pairs = s->kind == PREFILL ? n * (n + 1) / 2 : queries * n;
    double flop = 4 * pairs * (double)(s->groups * s->heads * s->head_dim);
    double bytes = 4 * (double)(s->groups * s->head_dim) *
                   (queries * (double)s->heads + n * (double)s->kv_heads);
    printf("%-26s %9.2f us  %6.1f Tflop/s  %7.1f GB/s\n", s->name, us, flop / us * 1e-6,
           bytes / us * 1e-3);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) {
        printf("skipped: no GPU\n");
        return 77;
    }
    printf("%s\n", properties.name);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const shape *s = &shapes[i];
        if (argc > 1 && strstr(s->name, argv[1]) == NULL) {
            continue;
        }
        operands o = operands_make(s);
        report(s, time_us(s, &o, properties.multiProcessorCount));
        operands_free(s, &o);
    }
    return 0;
}
