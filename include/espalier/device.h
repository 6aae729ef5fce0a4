/* device.h - where products run: "ref" (plain scalar C, the meaning), "cpu" (threaded, vectorised),
 * "cuda:0" (a GPU, in builds with CUDA). */
#ifndef ESPALIER_DEVICE_H
#define ESPALIER_DEVICE_H

#include <espalier/base.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_device esp_device;

typedef struct esp_device_info {
    char name[16];         /* what --device takes: "ref", "cpu", "cuda:0" */
    char description[160]; /* processor or GPU name, instruction set level, compute capability */
    int threads;           /* of the context; 0 on a GPU */
    uint64_t memory_bytes; /* of the machine or the GPU */
    bool usable;           /* false: `why_not` says what is missing */
    char why_not[160];
} esp_device_info;

/* Every device that this build knows and this machine shows, usable or not, in a fixed order: ref,
 * cpu, cuda:0..., or "cuda" with why there is none. Writes at most `capacity`, returns how many. */
ESP_API int esp_device_list(esp_context *context, esp_device_info *infos, int capacity);

/* name as in esp_device_info, "cuda" for "cuda:0", NULL for "cpu". ESP_BAD_ARGUMENT: not known;
 * ESP_UNSUPPORTED "device.no_driver" or the like. The context must outlive the device. */
ESP_MUST_CHECK ESP_API esp_status esp_device_open(esp_context *context, const char *name,
                                                  esp_device **device, esp_error *error);
ESP_API void esp_device_close(esp_device *device);
ESP_API const char *esp_device_name(const esp_device *device);

#define ESP_DEVICE_IDENTITY_MAX 512
/* Everything about a device that measured times depend on, one line: its name, processor or GPU,
 * instruction set as limited, threads, memory, versions of libraries and of this one. Times
 * measured under one identity are used under the same only. Asking opens the libraries that are
 * found at run time. */
ESP_API const char *esp_device_identity(esp_device *device);

/* ---- memory of the device: what plans run on ---- */

/* 64-byte aligned; on a GPU the same as cudaMalloc's, which will do as well. NULL when there is no
 * room. */
ESP_API void *esp_device_alloc(esp_device *device, size_t bytes);
ESP_API void esp_device_release(esp_device *device, void *memory);
/* From host to device memory and back; both wait for all work given to the device before. */
ESP_MUST_CHECK ESP_API esp_status esp_device_upload(esp_device *device, void *to, const void *from,
                                                    size_t bytes, esp_error *error);
ESP_MUST_CHECK ESP_API esp_status esp_device_download(esp_device *device, void *to,
                                                      const void *from, size_t bytes,
                                                      esp_error *error);
/* Until all work given to the device is done; reports what went wrong in it. */
ESP_MUST_CHECK ESP_API esp_status esp_device_wait(esp_device *device, esp_error *error);

/* ---- time on the device ---- */

/* Work for a device, given to `stream` (a cudaStream_t on a GPU, NULL elsewhere). */
typedef esp_status (*esp_work_fn)(void *user, void *stream, esp_error *error);

/* Work that is timed by the device's own clock: on a GPU a captured graph, so that no call of the
 * host lies between its launches; elsewhere the calls themselves. */
typedef struct esp_recording esp_recording;

/* Runs the work once, untimed, and on a GPU a second time to capture it: it must neither wait nor
 * allocate then. What it uses must live as long as the recording. Errors of the work are passed
 * on; ESP_UNSUPPORTED "cuda.not_capturable". */
ESP_MUST_CHECK ESP_API esp_status esp_record(esp_device *device, esp_work_fn work, void *user,
                                             esp_recording **recording, esp_error *error);
/* Runs it `repeats` times, waits for the end, and tells the microseconds of all together. */
ESP_MUST_CHECK ESP_API esp_status esp_recording_time(esp_recording *recording, int repeats,
                                                     double *us, esp_error *error);
ESP_API void esp_recording_free(esp_recording *recording);

#ifdef __cplusplus
}
#endif
#endif
