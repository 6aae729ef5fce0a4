/* Matrices between the host's memory and the device's. What is not pinned is copied by the driver
 * at what one core moves; so large copies go through two pinned pieces, which all threads fill or
 * empty while the device reads or writes the other one. */
#include "cuda/far.h"

#define PIECE ((size_t)16 << 20)
#define STAGED_FROM ((size_t)4 << 20) /* less goes as it is */
#define GRAIN ((size_t)256 << 10)     /* of a thread */

esp_status far_stage_open(cuda_far *far, esp_error *error)
{
    for (int i = 0; i < 2; i++) {
        ESP_TRY(far_check(far, gpu_event_create(&far->passed[i]), "making an event", error));
        if (gpu_pinned_alloc(PIECE, &far->stage[i]) != 0) {
            far->stage[i] = NULL; /* then all goes as it is */
        }
    }
    return ESP_OK;
}

void far_stage_close(cuda_far *far)
{
    for (int i = 0; i < 2; i++) {
        if (far->passed[i] != NULL) {
            (void)gpu_event_wait(far->passed[i]);
            gpu_event_free(far->passed[i]);
        }
        if (far->stage[i] != NULL) {
            gpu_pinned_free(far->stage[i]);
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

static void copy_on_host(const cuda_far *far, void *to, const void *from, size_t bytes)
{
    host_copy copy = {to, from, bytes};
    int64_t grains = (int64_t)((bytes + GRAIN - 1) / GRAIN);
    esp_parallel_for(far->device->context, grains, 1, copy_grains, &copy);
}

static bool goes_by_pieces(const cuda_far *far, size_t bytes)
{
    return bytes >= STAGED_FROM && far->stage[0] != NULL && far->stage[1] != NULL;
}

/* Piece `i` of the two is on its way; `passed` tells when it has arrived. */
static int start(const cuda_far *far, int i, void *to, const void *from, size_t bytes)
{
    int failed = gpu_move(to, from, bytes, far->stream);
    return failed == 0 ? gpu_event_record(far->passed[i], far->stream) : failed;
}

esp_status far_send(const cuda_far *far, void *to, const void *from, size_t bytes, esp_error *error)
{
    int failed = 0;
    if (!goes_by_pieces(far, bytes)) {
        return far_check(far, gpu_send(to, from, bytes, far->stream), "copying to it", error);
    }
    for (size_t at = 0, i = 0; at < bytes && failed == 0; at += PIECE, i ^= 1) {
        size_t now = ESP_MIN(PIECE, bytes - at);
        failed = gpu_event_wait(far->passed[i]);
        if (failed == 0) {
            copy_on_host(far, far->stage[i], (const char *)from + at, now);
            failed = start(far, (int)i, (char *)to + at, far->stage[i], now);
        }
    }
    return far_check(far, failed, "copying to it", error);
}

esp_status far_bring(const cuda_far *far, void *to, const void *from, size_t bytes,
                     esp_error *error)
{
    if (!goes_by_pieces(far, bytes)) {
        return far_check(far, gpu_copy_to_host(to, from, bytes, far->stream), "copying from it",
                         error);
    }
    int failed = start(far, 0, far->stage[0], from, PIECE < bytes ? PIECE : bytes);
    for (size_t at = 0, i = 0; at < bytes && failed == 0; at += PIECE, i ^= 1) {
        size_t now = ESP_MIN(PIECE, bytes - at), next = at + now;
        if (next < bytes) {
            failed = start(far, (int)(i ^ 1), far->stage[i ^ 1], (const char *)from + next,
                           ESP_MIN(PIECE, bytes - next));
        }
        failed = failed == 0 ? gpu_event_wait(far->passed[i]) : failed;
        if (failed == 0) {
            copy_on_host(far, (char *)to + at, far->stage[i], now);
        }
    }
    return far_check(far, failed, "copying from it", error);
}
