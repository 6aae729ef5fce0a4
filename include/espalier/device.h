/* device.h - where products run: "ref" (plain scalar C, the meaning), "cpu" (threaded, vectorised).
 */
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
 * cpu, cuda:0... Writes at most `capacity` entries and returns how many there are. */
ESP_API int esp_device_list(esp_context *context, esp_device_info *infos, int capacity);

/* name as in esp_device_info, or NULL for "cpu". ESP_BAD_ARGUMENT "device.unknown" names the known
 * ones; ESP_UNSUPPORTED "device.unusable" says why. The context must outlive the device. */
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

#ifdef __cplusplus
}
#endif
#endif
