/* Matrices between the host's memory and the device's. What is not pinned is copied by the driver
 * at what one core moves; so large copies go through two pinned pieces, which all threads fill or
 * empty while the device reads or writes the other one. */
#include "cuda/algebra.h"

#define PIECE ((size_t)16 << 20)
#define STAGED_FROM ((size_t)4 << 20) /* less goes as it is */
#define GRAIN ((size_t)256 << 10)     /* of a thread */

esp_status algebra_stage_open(cuda_algebra *algebra, esp_error *error)
{
    for (int i = 0; i < 2; i++) {
        ESP_TRY(algebra_check(algebra, gpu_event_create(&algebra->passed[i]), "making an event",
                              error));
        if (gpu_pinned_alloc(PIECE, &algebra->stage[i]) != 0) {
            algebra->stage[i] = NULL; /* then all goes as it is */
        }
    }
    return ESP_OK;
}

void algebra_stage_close(cuda_algebra *algebra)
{
    for (int i = 0; i < 2; i++) {
        if (algebra->passed[i] != NULL) {
            (void)gpu_event_wait(algebra->passed[i]);
            gpu_event_free(algebra->passed[i]);
        }
        if (algebra->stage[i] != NULL) {
            gpu_pinned_free(algebra->stage[i]);
        }
    }
}

typedef struct host_copy {
    char *to;
    const char *from;
    size_t bytes;
} host_copy;

static void copy_grains(void *user, int64_t begin, int64_t end, int thread)
{
    const host_copy *copy = user;
    size_t from = (size_t)begin * GRAIN, to = ESP_MIN((size_t)end * GRAIN, copy->bytes);
    (void)thread;
    memcpy(copy->to + from, copy->from + from, to - from);
}

static void copy_on_host(const cuda_algebra *algebra, void *to, const void *from, size_t bytes)
{
    host_copy copy = {to, from, bytes};
    int64_t grains = (int64_t)((bytes + GRAIN - 1) / GRAIN);
    esp_parallel_for(algebra->device->context, grains, 1, copy_grains, &copy);
}

static bool goes_by_pieces(const cuda_algebra *algebra, size_t bytes)
{
    return bytes >= STAGED_FROM && algebra->stage[0] != NULL && algebra->stage[1] != NULL;
}

/* Piece `i` of the two is on its way; `passed` tells when it has arrived. */
static int start(const cuda_algebra *algebra, int i, void *to, const void *from, size_t bytes)
{
    int failed = gpu_move(to, from, bytes, algebra->stream);
    return failed == 0 ? gpu_event_record(algebra->passed[i], algebra->stream) : failed;
}

esp_status algebra_send(const cuda_algebra *algebra, void *to, const void *from, size_t bytes,
                        esp_error *error)
{
    int failed = 0;
    if (!goes_by_pieces(algebra, bytes)) {
        return algebra_check(algebra, gpu_send(to, from, bytes, algebra->stream), "copying to it",
                             error);
    }
    for (size_t at = 0, i = 0; at < bytes && failed == 0; at += PIECE, i ^= 1) {
        size_t now = ESP_MIN(PIECE, bytes - at);
        failed = gpu_event_wait(algebra->passed[i]);
        if (failed == 0) {
            copy_on_host(algebra, algebra->stage[i], (const char *)from + at, now);
            failed = start(algebra, (int)i, (char *)to + at, algebra->stage[i], now);
        }
    }
    return algebra_check(algebra, failed, "copying to it", error);
}

esp_status algebra_bring(const cuda_algebra *algebra, void *to, const void *from, size_t bytes,
                         esp_error *error)
{
    if (!goes_by_pieces(algebra, bytes)) {
        return algebra_check(algebra, gpu_copy_to_host(to, from, bytes, algebra->stream),
                             "copying from it", error);
    }
    int failed = start(algebra, 0, algebra->stage[0], from, PIECE < bytes ? PIECE : bytes);
    for (size_t at = 0, i = 0; at < bytes && failed == 0; at += PIECE, i ^= 1) {
        size_t now = ESP_MIN(PIECE, bytes - at), next = at + now;
        if (next < bytes) {
            failed = start(algebra, (int)(i ^ 1), algebra->stage[i ^ 1], (const char *)from + next,
                           ESP_MIN(PIECE, bytes - next));
        }
        failed = failed == 0 ? gpu_event_wait(algebra->passed[i]) : failed;
        if (failed == 0) {
            copy_on_host(algebra, (char *)to + at, algebra->stage[i], now);
        }
    }
    return algebra_check(algebra, failed, "copying from it", error);
}
