/* The back end's streams, copies and kept work: what a model's lane asks for. */
#include "cuda/room.h"

typedef int (*entered_fn)(void *user);

/* Calls with the device current. */
static int enter(const esp_device *device, entered_fn call, void *user)
{
    const cuda_state *state = device->state;
    int before, failed = gpu_enter(state->index, &before);
    if (failed == 0) {
        failed = call(user);
        gpu_leave(before);
    }
    return failed;
}

typedef struct copy_call {
    void *to;
    const void *from;
    size_t bytes;
    void *stream;
} copy_call;

static int call_create(void *user)
{
    return gpu_stream_create(user);
}

static int call_free(void *user)
{
    gpu_stream_free(user);
    return 0;
}

static int call_wait(void *user)
{
    return gpu_stream_wait(user);
}

static int call_pin(void *user)
{
    copy_call *pin = user;
    return gpu_pinned_alloc(pin->bytes, &pin->to);
}

static int call_unpin(void *user)
{
    gpu_pinned_free(user);
    return 0;
}

static int call_send(void *user)
{
    const copy_call *copy = user;
    return gpu_send(copy->to, copy->from, copy->bytes, copy->stream);
}

static int call_receive(void *user)
{
    const copy_call *copy = user;
    return gpu_copy_to_host(copy->to, copy->from, copy->bytes, copy->stream);
}

static int call_begin(void *user)
{
    return gpu_keep_begin(user);
}

static int call_replay(void *user)
{
    const copy_call *replay = user;
    return gpu_keep_replay(replay->to, replay->stream);
}

static int call_drop(void *user)
{
    gpu_keep_free(user);
    return 0;
}

typedef struct end_call {
    void *stream;
    void **kept;
} end_call;

static int call_end(void *user)
{
    const end_call *end = user;
    return gpu_keep_end(end->stream, end->kept);
}

static int call_memory(void *user)
{
    *(size_t *)user = gpu_memory_free();
    return 0;
}

esp_status cuda_stream_open(esp_device *device, void **stream, esp_error *error)
{
    return cuda_check(enter(device, call_create, stream), device, "making a stream", error);
}

void cuda_stream_close(esp_device *device, void *stream)
{
    (void)enter(device, call_free, stream);
}

void *cuda_staging_alloc(esp_device *device, size_t bytes)
{
    copy_call pin = {.bytes = bytes};
    return enter(device, call_pin, &pin) == 0 ? pin.to : NULL;
}

void cuda_staging_release(esp_device *device, void *memory)
{
    (void)enter(device, call_unpin, memory);
}

esp_status cuda_send(esp_device *device, void *stream, void *to, const void *from, size_t bytes,
                     esp_error *error)
{
    copy_call copy = {to, from, bytes, stream};
    return cuda_check(enter(device, call_send, &copy), device, "copying to it", error);
}

esp_status cuda_receive(esp_device *device, void *stream, void *to, const void *from, size_t bytes,
                        esp_error *error)
{
    copy_call copy = {to, from, bytes, stream};
    return cuda_check(enter(device, call_receive, &copy), device, "work that was given to it",
                      error);
}

esp_status cuda_settle(esp_device *device, void *stream, esp_error *error)
{
    return cuda_check(enter(device, call_wait, stream), device, "work that was given to it", error);
}

esp_status cuda_keep_begin(esp_device *device, void *stream, esp_error *error)
{
    return cuda_check(enter(device, call_begin, stream), device, "beginning a graph", error);
}

esp_status cuda_keep_end(esp_device *device, void *stream, void **graph, esp_error *error)
{
    end_call end = {stream, graph};
    return cuda_check(enter(device, call_end, &end), device, "keeping work as a graph", error);
}

esp_status cuda_keep_replay(esp_device *device, void *stream, void *graph, esp_error *error)
{
    copy_call replay = {.to = graph, .stream = stream};
    return cuda_check(enter(device, call_replay, &replay), device, "a graph", error);
}

void cuda_keep_free(esp_device *device, void *graph)
{
    (void)enter(device, call_drop, graph);
}

size_t cuda_memory_free(const esp_device *device)
{
    size_t bytes = 0;
    (void)enter(device, call_memory, &bytes);
    return bytes;
}
