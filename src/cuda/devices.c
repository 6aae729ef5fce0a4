/* Which GPUs there are, and what keeps one of them, or all, from being used. */
#include <stdio.h>

#include "cuda/gpu_lack.h"
#include "cuda/room.h"

#define OLDEST_MAJOR 8 /* what the portable kernels are compiled for */

const char *cuda_describe(int index, const gpu_facts *facts, esp_device_info *info)
{
    *info = (esp_device_info){.memory_bytes = facts->memory_bytes};
    snprintf(info->name, sizeof info->name, "cuda:%d", index);
    snprintf(info->description, sizeof info->description,
             "%.64s, compute capability %d.%d, %d multiprocessors", facts->name, facts->major,
             facts->minor, facts->multiprocessors);
    info->usable = facts->major >= OLDEST_MAJOR;
    if (info->usable) {
        return NULL;
    }
    snprintf(info->why_not, sizeof info->why_not,
             "its compute capability is below %d.0, for which this build has no code",
             OLDEST_MAJOR);
    return "device.old_gpu";
}

static const char *describe_at(int index, esp_device_info *info)
{
    gpu_facts facts;
    int error = gpu_get_facts(index, &facts);
    if (error == 0) {
        return cuda_describe(index, &facts, info);
    }
    *info = (esp_device_info){0};
    snprintf(info->name, sizeof info->name, "cuda:%d", index);
    snprintf(info->why_not, sizeof info->why_not, "%s", gpu_error_text(error));
    return "device.unusable";
}

/* The entry that stands for every GPU, error being what counting them gave. */
static const char *describe_none(int error, esp_device_info *info)
{
    int runtime, driver;
    *info = (esp_device_info){.name = "cuda", .description = "GPU"};
    switch (gpu_lacking(error)) {
    case GPU_LACKS_DRIVER:
        snprintf(info->why_not, sizeof info->why_not,
                 "there is no NVIDIA driver: libcuda.so.1 cannot be opened");
        return "device.no_driver";
    case GPU_LACKS_NEWER_DRIVER:
        gpu_versions(&runtime, &driver);
        snprintf(info->why_not, sizeof info->why_not,
                 "the NVIDIA driver is too old: it is for CUDA %d.%d, this build for CUDA %d.%d",
                 driver / 1000, driver / 10 % 100, runtime / 1000, runtime / 10 % 100);
        return "device.old_driver";
    case GPU_LACKS_GPU:
        snprintf(info->why_not, sizeof info->why_not, "the NVIDIA driver shows no GPU");
        return "device.no_gpu";
    default:
        snprintf(info->why_not, sizeof info->why_not, "%s", gpu_error_text(error));
        return "device.unusable";
    }
}

int cuda_enumerate(esp_context *context, esp_device_info *infos, int capacity)
{
    (void)context;
    int count = 0, error = gpu_count(&count);
    if (count == 0 && capacity > 0) {
        (void)describe_none(error, &infos[0]);
    }
    for (int i = 0; i < count && i < capacity; i++) {
        (void)describe_at(i, &infos[i]);
    }
    return count > 0 ? count : 1;
}

int cuda_index(const char *name)
{
    int index = 0;
    for (const char *digit = name + strlen("cuda:"); *digit != '\0'; digit++) {
        index = 10 * index + (*digit - '0');
    }
    return index;
}

const char *cuda_unusable_code(const esp_device_info *info)
{
    esp_device_info again;
    int count = 0, error = gpu_count(&count);
    return count == 0 ? describe_none(error, &again) : describe_at(cuda_index(info->name), &again);
}
