/* gpu_bench [--rounds N] [--all-kernels] [--json FILE] [--commit TEXT] PROBLEM...
 *
 * Times products on the first GPU next to the best dense product of the same run: every round times
 * each contestant once, in turn, so that clocks and power weigh on all alike, and the ratio is the
 * median of the rounds' own ratios. One line a kernel, and one JSON line with --json. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench.h"

typedef struct settings {
    int rounds;
    bool all_kernels;
    const char *commit;
    FILE *json;
    esp_context *context;
    esp_device *device;
    struct cudaDeviceProp facts;
    double copy_gb_per_s;
    cudaStream_t stream;
} settings;

/* Our product by one kernel. */
typedef struct ours {
    const operands *all;
    esp_packed **packed; /* copies_w of them */
    esp_plan *plan;
    void *workspace;
} ours;

void stop(const char *what, int line)
{
    fprintf(stderr, "gpu_bench: line %d: %s failed: %s\n", line, what,
            cudaGetErrorString(cudaGetLastError()));
    exit(1);
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double median(const double *values, int count)
{
    double sorted[MOST_ROUNDS];
    memcpy(sorted, values, (size_t)count * sizeof *sorted);
    qsort(sorted, (size_t)count, sizeof *sorted, by_size);
    return count % 2 != 0 ? sorted[count / 2] : (sorted[count / 2 - 1] + sorted[count / 2]) / 2;
}

double time_batch(contestant *who, int launches, cudaStream_t stream)
{
    cudaEvent_t begin, end;
    float ms = 0;
    static int turn;
    NEED(cudaEventCreate(&begin));
    NEED(cudaEventCreate(&end));
    who->run(who->self, turn++, stream); /* settles clocks and caches, untimed */
    who->run(who->self, turn++, stream);
    NEED(cudaEventRecord(begin, stream));
    for (int i = 0; i < launches; i++) {
        who->run(who->self, turn++, stream);
    }
    NEED(cudaEventRecord(end, stream));
    NEED(cudaEventSynchronize(end));
    NEED(cudaEventElapsedTime(&ms, begin, end));
    NEED(cudaEventDestroy(begin));
    NEED(cudaEventDestroy(end));
    return 1e3 * (double)ms / launches;
}

int sm_clock_mhz(int device)
{
    static void *library;
    static int (*read_clock)(void *, int, unsigned *);
    static void *handle;
    if (library == NULL) {
        library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
        int (*begin)(void) = NULL, (*find)(unsigned, void **) = NULL;
        if (library != NULL) {
            *(void **)&begin = dlsym(library, "nvmlInit_v2");
            *(void **)&find = dlsym(library, "nvmlDeviceGetHandleByIndex_v2");
            *(void **)&read_clock = dlsym(library, "nvmlDeviceGetClockInfo");
        }
        if (begin == NULL || find == NULL || begin() != 0 || find((unsigned)device, &handle) != 0) {
            read_clock = NULL;
        }
    }
    unsigned mhz = 0;
    return read_clock != NULL && read_clock(handle, 1, &mhz) == 0 ? (int)mhz : 0;
}

static void run_ours(void *self, int i, cudaStream_t stream)
{
    const ours *me = self;
    esp_matmul_args args = {.weight = me->packed[i % me->all->copies_w],
                            .x = me->all->x[i % X_COPIES],
                            .y = me->all->y[i % X_COPIES],
                            .workspace = me->workspace,
                            .stream = stream};
    esp_error error = {0};
    if (esp_matmul_run(me->plan, &args, &error) != ESP_OK) {
        fprintf(stderr, "gpu_bench: %s\n", error.message);
        exit(1);
    }
}

static double copy_bandwidth(cudaStream_t stream)
{
    size_t bytes = (size_t)1 << 30;
    char *memory;
    cudaEvent_t begin, end;
    double best = 0;
    NEED(cudaMalloc((void **)&memory, 2 * bytes));
    NEED(cudaEventCreate(&begin));
    NEED(cudaEventCreate(&end));
    for (int i = 0; i < 6; i++) {
        float ms;
        NEED(cudaEventRecord(begin, stream));
        NEED(cudaMemcpyAsync(memory, memory + bytes, bytes, cudaMemcpyDeviceToDevice, stream));
        NEED(cudaEventRecord(end, stream));
        NEED(cudaEventSynchronize(end));
        NEED(cudaEventElapsedTime(&ms, begin, end));
        double rate = 2 * (double)bytes / ((double)ms * 1e6);
        best = rate > best ? rate : best;
    }
    NEED(cudaFree(memory));
    return best;
}

/* Microseconds that a call keeps the host, the stream being busy anyway. */
static double host_us(contestant *who, cudaStream_t stream)
{
    struct timespec begin, end;
    const int calls = 50;
    NEED(cudaStreamSynchronize(stream));
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (int i = 0; i < calls; i++) {
        who->run(who->self, i, stream);
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    NEED(cudaStreamSynchronize(stream));
    return (1e6 * (double)(end.tv_sec - begin.tv_sec) +
            1e-3 * (double)(end.tv_nsec - begin.tv_nsec)) /
           calls;
}

/* A call can be captured in a graph: nothing in it waits or allocates. */
static bool captures(contestant *who, cudaStream_t stream)
{
    cudaGraph_t graph = NULL;
    NEED(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    who->run(who->self, 0, stream);
    bool done = cudaStreamEndCapture(stream, &graph) == cudaSuccess && graph != NULL;
    if (graph != NULL) {
        cudaGraphDestroy(graph);
    }
    return done;
}

typedef struct summary {
    double median_us, min_us, ratio, least_ratio, most_ratio;
} summary;

static summary sum_up(const contestant *who, const contestant *rivals, int count, int rounds)
{
    summary made = {.median_us = median(who->us, rounds), .min_us = who->us[0]};
    double ratios[MOST_ROUNDS];
    for (int r = 0; r < rounds; r++) {
        double best = rivals[0].us[r];
        for (int i = 1; i < count; i++) {
            best = rivals[i].us[r] < best ? rivals[i].us[r] : best;
        }
        ratios[r] = best / who->us[r];
        made.min_us = who->us[r] < made.min_us ? who->us[r] : made.min_us;
        made.least_ratio = r == 0 || ratios[r] < made.least_ratio ? ratios[r] : made.least_ratio;
        made.most_ratio = ratios[r] > made.most_ratio ? ratios[r] : made.most_ratio;
    }
    made.ratio = median(ratios, rounds);
    return made;
}

static void report(const settings *set, const operands *all, const contestant *who,
                   const contestant *rivals, int count, size_t weight_bytes, double host,
                   bool graph, int mhz)
{
    const esp_matmul_problem *p = &all->problem;
    char text[ESP_PROBLEM_TEXT_MAX];
    summary s = sum_up(who, rivals, count, set->rounds);
    double out = (double)p->out_features, in = (double)p->in_features, tokens = (double)p->tokens;
    double dense_flops = 2 * out * in * tokens;
    double share = 1; /* of the dense product that is computed */
    if (p->pattern.kind == ESP_PATTERN_PANEL) {
        share = (double)esp_pattern_kept(&p->pattern, p->in_features) / (2 * in);
    } else if (p->pattern.kind == ESP_PATTERN_BLOCK) {
        share = 1 - p->pattern.sparsity;
    }
    double flops = dense_flops * share;
    double bytes = (double)weight_bytes + 2 * in * tokens + 2 * out * tokens;
    double gb_per_s = bytes / (s.median_us * 1e3);
    esp_matmul_problem_print(p, text);
    printf("%-38s %-46s %8.1f us  x%5.2f (%.2f-%.2f)", text, who->name, s.median_us, s.ratio,
           s.least_ratio, s.most_ratio);
    printf("  %6.0f Tflop/s dense-eq  %5.0f GB/s (%2.0f%% of copy)  host %.1f us%s  %d MHz |",
           dense_flops / (s.median_us * 1e6), gb_per_s, 100 * gb_per_s / set->copy_gb_per_s, host,
           graph ? "" : " NOT CAPTURABLE", mhz);
    for (int i = 0; i < count; i++) {
        printf(" %s %.1f", rivals[i].name, median(rivals[i].us, set->rounds));
    }
    printf("\n");
    fflush(stdout);
    if (set->json == NULL) {
        return;
    }
    fprintf(set->json,
            "{\"schema\": \"espalier-gpu-bench\", \"version\": 1, \"problem\": \"%s\", \"kernel\": "
            "\"%s\", \"median_us\": %.2f, \"min_us\": %.2f, \"rivals\": {",
            text, who->name, s.median_us, s.min_us);
    for (int i = 0; i < count; i++) {
        fprintf(set->json, "%s\"%s\": %.2f", i > 0 ? ", " : "", rivals[i].name,
                median(rivals[i].us, set->rounds));
    }
    fprintf(
        set->json,
        "}, \"ratio_to_dense\": %.3f, \"ratio_min\": %.3f, \"ratio_max\": %.3f, \"rounds\": %d, "
        "\"gb_per_s\": %.1f, \"copy_gb_per_s\": %.1f, \"tflops\": %.2f, "
        "\"dense_equivalent_tflops\": %.2f, \"host_us\": %.2f, \"sm_clock_mhz\": %d, \"device\": "
        "\"%s\", \"commit\": \"%s\"}\n",
        s.ratio, s.least_ratio, s.most_ratio, set->rounds, gb_per_s, set->copy_gb_per_s,
        flops / (s.median_us * 1e6), dense_flops / (s.median_us * 1e6), host, mhz, set->facts.name,
        set->commit);
    fflush(set->json);
}

/* Plans for the one kernel that the planner takes, or for each that can run the problem. */
static int make_ours(const settings *set, const operands *all, esp_packed **packed,
                     contestant made[32])
{
    int count = 0, kernels = set->all_kernels ? esp_kernel_count() : 1;
    for (int i = 0; i < kernels && count < 32; i++) {
        if (set->all_kernels && esp_kernel_why_not(i, set->device, &all->problem) != NULL) {
            continue;
        }
        ours *me = calloc(1, sizeof *me);
        esp_error error = {0};
        me->all = all;
        me->packed = packed;
        if (esp_plan_create(set->device, &all->problem,
                            set->all_kernels ? esp_kernel_get(i).name : NULL, &me->plan,
                            &error) != ESP_OK) {
            fprintf(stderr, "gpu_bench: %s\n", error.message);
            exit(1);
        }
        NEED(cudaMalloc(&me->workspace, esp_plan_workspace_bytes(me->plan) + 64));
        made[count] = (contestant){.run = run_ours, .self = me};
        snprintf(made[count].name, sizeof made[count].name, "%s", esp_plan_kernel(me->plan));
        count++;
    }
    return count;
}

static void time_rounds(const settings *set, contestant *own, int own_count, contestant *rivals,
                        int rival_count)
{
    double once = time_batch(&own[0], 2, set->stream);
    int launches = once < 20 ? 40 : once < 100 ? 20 : 8;
    for (int round = 0; round < set->rounds; round++) {
        for (int i = 0; i < rival_count; i++) {
            rivals[i].us[round] = time_batch(&rivals[i], launches, set->stream);
        }
        for (int i = 0; i < own_count; i++) {
            own[i].us[round] = time_batch(&own[i], launches, set->stream);
        }
    }
}

static void measure(const settings *set, const char *text)
{
    esp_error error = {0};
    esp_matmul_problem problem;
    if (esp_matmul_problem_parse(text, &problem, &error) != ESP_OK) {
        fprintf(stderr, "gpu_bench: %s\n", error.message);
        exit(2);
    }
    operands all;
    operands_make(&problem, (size_t)set->facts.l2CacheSize, &all);
    esp_sparse *sparse = random_sparse(set->context, &problem, 5);
    esp_packed *packed[64];
    for (int i = 0; i < all.copies_w; i++) {
        NEED(esp_pack(set->device, sparse, &packed[i], &error));
    }
    contestant own[32], rivals[MOST_RIVALS];
    int own_count = make_ours(set, &all, packed, own);
    int rival_count = rivals_make(&all, set->stream, rivals);
    time_rounds(set, own, own_count, rivals, rival_count);
    for (int i = 0; i < own_count; i++) {
        ours *me = own[i].self;
        int mhz = sm_clock_mhz(0);
        double host = host_us(&own[i], set->stream);
        report(set, &all, &own[i], rivals, rival_count, esp_packed_bytes(packed[0]), host,
               captures(&own[i], set->stream), mhz);
        esp_plan_free(me->plan);
        NEED(cudaFree(me->workspace));
        free(me);
    }
    rivals_free(rivals, rival_count);
    for (int i = 0; i < all.copies_w; i++) {
        esp_packed_free(packed[i]);
    }
    esp_sparse_free(sparse);
    operands_free(&all);
}

int main(int argc, char **argv)
{
    settings set = {.rounds = 9, .commit = "unknown"};
    esp_error error = {0};
    int first = 1;
    for (; first < argc && argv[first][0] == '-'; first++) {
        const char *value = first + 1 < argc ? argv[first + 1] : "";
        if (strcmp(argv[first], "--all-kernels") == 0) {
            set.all_kernels = true;
            continue;
        }
        if (strcmp(argv[first], "--rounds") == 0) {
            int wanted = atoi(value);
            set.rounds = wanted < 1 ? 1 : wanted > MOST_ROUNDS ? MOST_ROUNDS : wanted;
        } else if (strcmp(argv[first], "--commit") == 0) {
            set.commit = value;
        } else if (strcmp(argv[first], "--json") == 0) {
            set.json = fopen(value, "a");
        } else {
            fprintf(stderr, "usage: gpu_bench [--rounds N] [--all-kernels] [--json FILE] "
                            "[--commit TEXT] PROBLEM...\n");
            return 2;
        }
        first++;
    }
    if (esp_context_create(NULL, &set.context, &error) != ESP_OK ||
        esp_device_open(set.context, "cuda:0", &set.device, &error) != ESP_OK) {
        printf("skipped: %s\n", error.message);
        return 77;
    }
    NEED(cudaSetDevice(0));
    NEED(cudaGetDeviceProperties(&set.facts, 0));
    NEED(cudaStreamCreate(&set.stream));
    set.copy_gb_per_s = copy_bandwidth(set.stream);
    printf("%s, %d multiprocessors, copy %.0f GB/s, %d rounds\n", set.facts.name,
           set.facts.multiProcessorCount, set.copy_gb_per_s, set.rounds);
    for (int i = first; i < argc; i++) {
        measure(&set, argv[i]);
    }
    esp_device_close(set.device);
    esp_context_free(set.context);
    return 0;
}
