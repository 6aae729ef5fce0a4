/* gpu_compress [OUTxIN]: pruning and compressing on the first GPU next to copying the dense
 * weight there, and what a call costs the host: creating a plan, giving a product to a stream.
 * Medians; microseconds of the wall for what waits, of the device for what does not. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cuda_runtime_api.h>
#include <espalier/espalier.h>

#define ROUNDS 11

#define NEED(call)                                                                                 \
    do {                                                                                           \
        if ((call) != 0) {                                                                         \
            stop(#call, __LINE__);                                                                 \
        }                                                                                          \
    } while (0)

typedef struct settings {
    esp_context *context;
    esp_device *device;
    cudaStream_t stream;
    int64_t out, in;
    void *copy; /* room for a dense weight */
    esp_device_dense dense;
} settings;

static void stop(const char *what, int line)
{
    fprintf(stderr, "gpu_compress: line %d: %s failed: %s\n", line, what,
            cudaGetErrorString(cudaGetLastError()));
    exit(1);
}

static void need(esp_status status, const esp_error *error)
{
    if (status != ESP_OK) {
        fprintf(stderr, "gpu_compress: %s\n", error->message);
        exit(1);
    }
}

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e6 * (double)t.tv_sec + 1e-3 * (double)t.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef void (*work)(const settings *set, void *user);

/* Of work that is waited for, on the wall. */
static double wall_us(const settings *set, work body, void *user)
{
    double us[ROUNDS];
    body(set, user);
    for (int i = 0; i < ROUNDS; i++) {
        NEED(cudaStreamSynchronize(set->stream));
        double begin = now_us();
        body(set, user);
        NEED(cudaStreamSynchronize(set->stream));
        us[i] = now_us() - begin;
    }
    qsort(us, ROUNDS, sizeof *us, by_size);
    return us[ROUNDS / 2];
}

static void copy_dense(const settings *set, void *user)
{
    (void)user;
    size_t bytes = (size_t)(set->out * set->in) * 2;
    NEED(cudaMemcpyAsync(set->copy, set->dense.data, bytes, cudaMemcpyDeviceToDevice, set->stream));
}

typedef struct weight {
    esp_pattern pattern;
    esp_device_mask mask;
    esp_packed *packed;
} weight;

static void prune(const settings *set, void *user)
{
    const weight *w = user;
    esp_error error = {0};
    need(esp_device_prune(set->device, &set->dense, &w->pattern, NULL, &w->mask, set->stream,
                          &error),
         &error);
}

static void compress(const settings *set, void *user)
{
    const weight *w = user;
    esp_error error = {0};
    need(esp_packed_compress(w->packed, &set->dense, &w->mask, set->stream, &error), &error);
}

static void time_pattern(const settings *set, const char *text, double copy_us)
{
    weight w = {.packed = NULL};
    esp_error error = {0};
    need(esp_pattern_parse(text, &w.pattern, &error), &error);
    int64_t v = esp_pattern_panel_rows(&w.pattern, set->out);
    int64_t kept = esp_pattern_kept(&w.pattern, set->in);
    NEED(cudaMalloc((void **)&w.mask.bits, (size_t)(set->out * ((set->in + 63) / 64)) * 8));
    if (v != 0) {
        NEED(cudaMalloc((void **)&w.mask.columns, (size_t)((set->out + v - 1) / v * kept) * 4));
    }
    need(esp_packed_create(set->device, &w.pattern, set->dense.dtype, set->out, set->in, &w.packed,
                           &error),
         &error);
    double prune_us = wall_us(set, prune, &w), compress_us = wall_us(set, compress, &w);
    printf("%-8s prune %8.1f us (%.2f copies)   compress %8.1f us (%.2f copies)\n", text, prune_us,
           prune_us / copy_us, compress_us, compress_us / copy_us);
    esp_packed_free(w.packed);
    NEED(cudaFree(w.mask.bits));
    NEED(cudaFree(w.mask.columns));
}

/* ---- host time ---- */

static void time_host(const settings *set, const char *text)
{
    enum { CALLS = 10000, BATCH = 200, PLANS = 2000 };
    esp_matmul_problem problem;
    esp_error error = {0};
    esp_packed *packed = NULL;
    esp_plan *plan = NULL;
    need(esp_matmul_problem_parse(text, &problem, &error), &error);
    double begin = now_us();
    need(esp_plan_create(set->device, &problem, NULL, &plan, &error), &error);
    double first_us = now_us() - begin;
    begin = now_us();
    for (int i = 0; i < PLANS; i++) {
        esp_plan_free(plan);
        need(esp_plan_create(set->device, &problem, NULL, &plan, &error), &error);
    }
    double plan_us = (now_us() - begin) / PLANS;
    need(esp_packed_create(set->device, &problem.pattern, problem.weight_type, problem.out_features,
                           problem.in_features, &packed, &error),
         &error);
    char *x, *y, *workspace;
    NEED(cudaMalloc((void **)&x, (size_t)(problem.in_features * problem.tokens) * 4));
    NEED(cudaMalloc((void **)&y, (size_t)(problem.out_features * problem.tokens) * 4));
    NEED(cudaMalloc((void **)&workspace, esp_plan_workspace_bytes(plan) + 64));
    NEED(cudaMemset(x, 0, (size_t)(problem.in_features * problem.tokens) * 4));
    esp_matmul_args args = {
        .weight = packed, .x = x, .y = y, .workspace = workspace, .stream = set->stream};
    double spent = 0;
    for (int i = 0; i < CALLS / BATCH; i++) { /* the stream's queue must not fill up */
        NEED(cudaStreamSynchronize(set->stream));
        begin = now_us();
        for (int k = 0; k < BATCH; k++) {
            need(esp_matmul_run(plan, &args, &error), &error);
        }
        spent += now_us() - begin;
    }
    printf("%-36s plan: first %.1f us, then %.2f us; a call %.2f us of the host\n", text, first_us,
           plan_us, spent / CALLS);
    NEED(cudaStreamSynchronize(set->stream));
    esp_plan_free(plan);
    esp_packed_free(packed);
    NEED(cudaFree(x));
    NEED(cudaFree(y));
    NEED(cudaFree(workspace));
}

static void fill(const settings *set, void *to)
{
    size_t count = (size_t)(set->out * set->in);
    uint16_t *host = malloc(count * 2);
    uint64_t state = 88172645463325252u;
    for (size_t i = 0; i < count; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        host[i] = (uint16_t)((state >> 20 & 0x83ff) | (12 + (state >> 50) % 4) << 10);
    }
    NEED(cudaMemcpy(to, host, count * 2, cudaMemcpyHostToDevice));
    free(host);
}

int main(int argc, char **argv)
{
    static const char *const patterns[] = {"2:4",     "64:2:5",  "64:2:8",
                                           "128:2:8", "64:2:16", "64:2:32"};
    static const char *const problems[] = {
        "matmul/2:4/f16/768x3072x8", "matmul/64:2:8/f16/768x3072x1",
        "matmul/64:2:8/f16/768x3072x8/x:tok", "matmul/64:2:8/f16/512x512x64"};
    settings set = {.out = 4096, .in = 11008};
    esp_error error = {0};
    long long out, in;
    if (argc > 1 && sscanf(argv[1], "%lldx%lld", &out, &in) == 2 && out > 0 && in > 0) {
        set.out = out;
        set.in = in;
    }
    if (esp_context_create(NULL, &set.context, &error) != ESP_OK ||
        esp_device_open(set.context, "cuda:0", &set.device, &error) != ESP_OK) {
        printf("skipped: %s\n", error.message);
        return 77;
    }
    NEED(cudaSetDevice(0));
    NEED(cudaStreamCreate(&set.stream));
    void *dense;
    NEED(cudaMalloc(&dense, (size_t)(set.out * set.in) * 2));
    NEED(cudaMalloc(&set.copy, (size_t)(set.out * set.in) * 2));
    fill(&set, dense);
    set.dense = (esp_device_dense){
        .dtype = ESP_F16, .out_features = set.out, .in_features = set.in, .data = dense};
    double copy_us = wall_us(&set, copy_dense, NULL);
    printf("%lldx%lld f16: copy %.1f us\n", (long long)set.out, (long long)set.in, copy_us);
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        time_pattern(&set, patterns[i], copy_us);
    }
    for (size_t i = 0; i < sizeof problems / sizeof *problems; i++) {
        time_host(&set, problems[i]);
    }
    NEED(cudaFree(dense));
    NEED(cudaFree(set.copy));
    NEED(cudaStreamDestroy(set.stream));
    esp_device_close(set.device);
    esp_context_free(set.context);
    return 0;
}
