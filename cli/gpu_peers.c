/* The rivals on a GPU, all together, and what they share. */
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "gpu.h"

#define SAMPLES 64

typedef struct copy_probe {
    void *from, *to; /* NULL: not made yet */
    cudaStream_t stream;
    cudaEvent_t begin, end;
} copy_probe;

struct gpu_peers {
    esp_device *device;
    gpu_blas *blas; /* NULL: not there */
    char no_blas[160];
    gpu_child *children[2]; /* by layout */
    copy_probe copy;
};

int gpu_index(const esp_device *device)
{
    const char *name = esp_device_name(device), *digits = strchr(name, ':');
    return digits != NULL ? atoi(digits + 1) : 0;
}

void gpu_note_missing(gpu_rivals *rivals, const char *name, const char *format, ...)
{
    va_list arguments;
    if (rivals->missing_count == GPU_MOST_MISSING) {
        return;
    }
    gpu_missing *missing = &rivals->missing[rivals->missing_count++];
    snprintf(missing->name, sizeof missing->name, "%s", name);
    va_start(arguments, format);
    vsnprintf(missing->reason, sizeof missing->reason, format, arguments);
    va_end(arguments);
}

void gpu_rivals_free(gpu_rivals *rivals)
{
    for (int i = 0; i < rivals->count; i++) {
        rivals->list[i].free(rivals->list[i].self);
    }
    *rivals = (gpu_rivals){0};
}

/* ---- the copy ---- */

static esp_status copy_failed(esp_error *error)
{
    return cli_fail(error, ESP_FAILED, "bench.gpu_copy", "the GPU's memory was not copied: %s",
                    cudaGetErrorString(cudaGetLastError()));
}

static esp_status make_copy(copy_probe *probe, esp_device *device, esp_error *error)
{
    probe->from = esp_device_alloc(device, GPU_COPY_BYTES / 2);
    probe->to = esp_device_alloc(device, GPU_COPY_BYTES / 2);
    if (probe->from == NULL || probe->to == NULL) {
        return cli_fail_memory(error, "a copy of the GPU's memory");
    }
    bool made = cudaStreamCreateWithFlags(&probe->stream, cudaStreamNonBlocking) == cudaSuccess &&
                cudaEventCreate(&probe->begin) == cudaSuccess &&
                cudaEventCreate(&probe->end) == cudaSuccess;
    return made ? ESP_OK : copy_failed(error);
}

static void free_copy(copy_probe *probe, esp_device *device)
{
    esp_device_release(device, probe->from);
    esp_device_release(device, probe->to);
    if (probe->begin != NULL) {
        (void)cudaEventDestroy(probe->begin);
    }
    if (probe->end != NULL) {
        (void)cudaEventDestroy(probe->end);
    }
    if (probe->stream != NULL) {
        (void)cudaStreamDestroy(probe->stream);
    }
}

/* Not recorded: in a graph such a copy runs a fifth slower. */
esp_status gpu_peers_copy_us(gpu_peers *peers, double *us, esp_error *error)
{
    copy_probe *probe = &peers->copy;
    float ms = 0;
    if (probe->from == NULL) {
        TRY(make_copy(probe, peers->device, error));
    }
    bool done = cudaEventRecord(probe->begin, probe->stream) == cudaSuccess &&
                cudaMemcpyAsync(probe->to, probe->from, GPU_COPY_BYTES / 2,
                                cudaMemcpyDeviceToDevice, probe->stream) == cudaSuccess &&
                cudaEventRecord(probe->end, probe->stream) == cudaSuccess &&
                cudaEventSynchronize(probe->end) == cudaSuccess &&
                cudaEventElapsedTime(&ms, probe->begin, probe->end) == cudaSuccess;
    *us = 1e3 * (double)ms;
    return done ? ESP_OK : copy_failed(error);
}

/* ---- all ---- */

esp_status gpu_peers_open(esp_device *device, gpu_peers **peers, esp_error *error)
{
    gpu_peers *made = calloc(1, sizeof *made);
    esp_error why = {0};
    if (made == NULL) {
        return cli_fail_memory(error, "rivals");
    }
    made->device = device;
    for (int i = 0; i < 2; i++) {
        made->children[i] = gpu_child_new(esp_device_name(device));
        if (made->children[i] == NULL) {
            gpu_peers_close(made);
            return cli_fail_memory(error, "rivals");
        }
    }
    if (cudaSetDevice(gpu_index(device)) != cudaSuccess ||
        gpu_blas_open(device, &made->blas, &why) != ESP_OK) {
        snprintf(made->no_blas, sizeof made->no_blas, "not run: %.120s", why.message);
    }
    *peers = made;
    return ESP_OK;
}

void gpu_peers_close(gpu_peers *peers)
{
    if (peers == NULL) {
        return;
    }
    free_copy(&peers->copy, peers->device);
    gpu_child_free(peers->children[0]);
    gpu_child_free(peers->children[1]);
    gpu_blas_close(peers->blas);
    free(peers);
}

esp_status gpu_peers_rivals(gpu_peers *peers, const gpu_shape *shape, gpu_rivals *rivals,
                            esp_error *error)
{
    if (peers->blas == NULL) {
        gpu_note_missing(rivals, "cublas", "%s", peers->no_blas);
    } else {
        TRY(gpu_blas_rivals(peers->blas, shape, rivals, error));
    }
    for (int i = 0; i < 2; i++) {
        TRY(gpu_child_rival(peers->children[i], shape, i == 1, rivals, error));
    }
    return ESP_OK;
}

/* ---- checking ---- */

static double element(const void *data, esp_dtype dtype, int64_t at)
{
    float value;
    esp_widen(dtype, (const char *)data + (size_t)at * (esp_dtype_bits(dtype) / 8), 1, &value);
    return (double)value;
}

double gpu_sample_error(const esp_matmul_problem *problem, bool by_token, const void *w,
                        const void *x, const void *y, esp_dtype type)
{
    int64_t out = problem->out_features, in = problem->in_features, tokens = problem->tokens;
    uint64_t seed = 77;
    double worst = 0, largest = 0;
    for (int i = 0; i < SAMPLES; i++) {
        int64_t o = (int64_t)(bench_random(&seed) % (uint64_t)out);
        int64_t t = (int64_t)(bench_random(&seed) % (uint64_t)tokens);
        double sum = 0;
        for (int64_t f = 0; f < in; f++) {
            sum += element(w, problem->weight_type, o * in + f) *
                   element(x, problem->act_type, by_token ? t * in + f : f * tokens + t);
        }
        double got = element(y, type, by_token ? t * out + o : o * tokens + t);
        largest = fmax(largest, fabs(sum));
        worst = isfinite(got) ? fmax(worst, fabs(got - sum)) : (double)INFINITY;
    }
    return largest > 0 ? worst / largest : worst;
}
