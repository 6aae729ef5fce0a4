/* The rivals on a GPU, all together, and what they share. */
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "gpu.h"

#define SAMPLES 64
#define COPY_RUNS 2

struct gpu_peers {
    esp_device *device;
    gpu_blas *blas; /* NULL: not there */
    char no_blas[160];
    gpu_child *children[2]; /* by layout */
    void *from, *to;        /* of the copy */
    recorded copy;
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

static esp_status copy(void *user, void *stream, esp_error *error)
{
    gpu_peers *peers = user;
    for (int i = 0; i < COPY_RUNS; i++) {
        if (cudaMemcpyAsync(peers->to, peers->from, GPU_COPY_BYTES / 2, cudaMemcpyDeviceToDevice,
                            stream) != cudaSuccess) {
            return cli_fail(error, ESP_FAILED, "bench.gpu_copy", "the GPU's memory was not copied");
        }
    }
    return ESP_OK;
}

esp_status gpu_peers_copy_us(gpu_peers *peers, double *us, esp_error *error)
{
    if (peers->copy.recording == NULL) {
        peers->from = esp_device_alloc(peers->device, GPU_COPY_BYTES / 2);
        peers->to = esp_device_alloc(peers->device, GPU_COPY_BYTES / 2);
        if (peers->from == NULL || peers->to == NULL) {
            return cli_fail_memory(error, "a copy of the GPU's memory");
        }
        peers->copy.runs = COPY_RUNS;
        TRY(esp_record(peers->device, copy, peers, &peers->copy.recording, error));
    }
    return recorded_time(&peers->copy, us, error);
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
    recorded_free(&peers->copy);
    esp_device_release(peers->device, peers->from);
    esp_device_release(peers->device, peers->to);
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
