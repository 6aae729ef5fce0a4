/* The GPU back end: opening a GPU, its memory. A device is the primary context
 * of its GPU, so pointers and streams of the caller's own CUDA code may be passed in. */
#include <stdio.h>

#include "cuda/gpu_calibrate.h"
#include "cuda/room.h"

esp_status cuda_check(int error, const esp_device *device, const char *what, esp_error *into)
{
    if (error == 0) {
        return ESP_OK;
    }
    bool memory = gpu_error_is_memory(error);
    return esp_fail(into, memory ? ESP_OUT_OF_MEMORY : ESP_FAILED,
                    memory ? "cuda.out_of_memory" : "cuda.failed", "device '%s': %s failed: %s",
                    device->name, what, gpu_error_text(error));
}

esp_status cuda_take(esp_device *device, size_t bytes, const char *what, void **memory,
                     esp_error *error)
{
    int failed = gpu_alloc(bytes, memory);
    return failed != 0 && gpu_error_is_memory(failed)
               ? esp_device_fail_memory(device, bytes, what, error)
               : cuda_check(failed, device, "taking memory", error);
}

static esp_status open_device(esp_device *device, esp_error *error)
{
    cuda_state *state = esp_alloc_zero(device->context, sizeof *state);
    if (state == NULL) {
        return esp_fail_memory(error, sizeof *state, "a GPU");
    }
    state->index = cuda_index(device->name);
    int before, failed = gpu_get_facts(state->index, &state->facts);
    if (failed == 0) {
        failed = gpu_enter(state->index, &before);
    }
    if (failed == 0) {
        failed = gpu_wait(); /* makes the context now, not in the first product */
        if (state->facts.major >= 9) {
            gpu_most_clusters(state->most_clusters);
        }
        gpu_leave(before);
    }
    if (failed != 0) {
        esp_release(device->context, state);
        return cuda_check(failed, device, "opening it", error);
    }
    pthread_mutex_init(&state->lock, NULL);
    device->state = state;
    return ESP_OK;
}

static void close_device(esp_device *device)
{
    cuda_state *state = device->state;
    if (state->cublaslt != NULL) {
        cuda_cublaslt_close(state->cublaslt);
        esp_release(device->context, state->cublaslt);
    }
    pthread_mutex_destroy(&state->lock);
    esp_release(device->context, state);
}

/* f16 and bf16 products are exact in f32 and summed there, so there is no narrower choice to make.
 */
static esp_compute auto_compute(const esp_device *device, esp_dtype weight_type)
{
    (void)device, (void)weight_type;
    return ESP_COMPUTE_F32;
}

static void *allocate(esp_device *device, size_t bytes)
{
    const cuda_state *state = device->state;
    void *memory = NULL;
    int before;
    if (gpu_enter(state->index, &before) != 0) {
        return NULL;
    }
    int failed = gpu_alloc(bytes, &memory);
    gpu_leave(before);
    return failed == 0 ? memory : NULL;
}

static void release(esp_device *device, void *memory)
{
    const cuda_state *state = device->state;
    int before;
    if (memory != NULL && gpu_enter(state->index, &before) == 0) {
        gpu_free(memory);
        gpu_leave(before);
    }
}

static esp_status upload(esp_device *device, void *to, const void *from, size_t bytes,
                         esp_error *error)
{
    const cuda_state *state = device->state;
    int before, failed = gpu_enter(state->index, &before);
    if (failed == 0) {
        failed = gpu_upload(to, from, bytes);
        gpu_leave(before);
    }
    return cuda_check(failed, device, "copying to it", error);
}

static esp_status download(esp_device *device, void *to, const void *from, size_t bytes,
                           esp_error *error)
{
    const cuda_state *state = device->state;
    int before, failed = gpu_enter(state->index, &before);
    if (failed == 0) {
        failed = gpu_download(to, from, bytes);
        gpu_leave(before);
    }
    return cuda_check(failed, device, "copying from it", error);
}

static esp_status copy(esp_device *device, void *to, const void *from, size_t bytes,
                       esp_error *error)
{
    const cuda_state *state = device->state;
    int before, failed = gpu_enter(state->index, &before);
    if (failed == 0) {
        failed = gpu_copy(to, from, bytes);
        gpu_leave(before);
    }
    return cuda_check(failed, device, "copying within it", error);
}

static esp_status wait(esp_device *device, esp_error *error)
{
    const cuda_state *state = device->state;
    int before, failed = gpu_enter(state->index, &before);
    if (failed == 0) {
        failed = gpu_wait();
        gpu_leave(before);
    }
    return cuda_check(failed, device, "work that was given to it", error);
}

static esp_status fill(esp_device *device, void *memory, int byte, size_t bytes, esp_error *error)
{
    const cuda_state *state = device->state;
    int before, failed = gpu_enter(state->index, &before);
    if (failed == 0) {
        failed = gpu_fill(memory, byte, bytes);
        gpu_leave(before);
    }
    return cuda_check(failed, device, "filling its memory", error);
}

static void identify(const esp_device *device, char *text, size_t capacity)
{
    int runtime, driver;
    char library[64];
    gpu_versions(&runtime, &driver);
    cuda_cublaslt_describe(device, library, sizeof library);
    snprintf(text, capacity, "CUDA %d.%d, driver for CUDA %d.%d, %s", runtime / 1000,
             runtime / 10 % 100, driver / 1000, driver / 10 % 100, library);
}

/* Activations are never f32 here: see cuda_ops_of. */
static const esp_ops no_operations = {0};

static const void *dense_rows(const esp_packed *packed)
{
    const cuda_weight *weight = packed->state;
    return weight->values;
}

const esp_backend esp_cuda_backend = {
    .name = "cuda",
    .enumerate = cuda_enumerate,
    .unusable_code = cuda_unusable_code,
    .open = open_device,
    .close = close_device,
    .kernels = esp_cuda_kernels,
    .ops = &no_operations,
    .activation_type = cuda_activation_type,
    .ops_of = cuda_ops_of,
    .dense_rows = dense_rows,
    .stream_open = cuda_stream_open,
    .stream_close = cuda_stream_close,
    .staging_alloc = cuda_staging_alloc,
    .staging_release = cuda_staging_release,
    .send = cuda_send,
    .receive = cuda_receive,
    .settle = cuda_settle,
    .keep_begin = cuda_keep_begin,
    .keep_end = cuda_keep_end,
    .keep_replay = cuda_keep_replay,
    .keep_free = cuda_keep_free,
    .memory_free = cuda_memory_free,
    .auto_compute = auto_compute,
    .pack = cuda_pack,
    .packed_free = cuda_packed_free,
    .packed_create = cuda_packed_create,
    .compress = cuda_compress,
    .prune = cuda_prune,
    .alloc = allocate,
    .release = release,
    .upload = upload,
    .download = download,
    .wait = wait,
    .copy = copy,
    .fill = fill,
    .identify = identify,
    .record = cuda_record,
    .replay = cuda_replay,
    .recording_free = cuda_recording_free,
    .spread = cuda_spread,
    .differ = cuda_differ,
    .shipped_times = cuda_shipped_times,
    .algebra_open = cuda_algebra_open,
};
