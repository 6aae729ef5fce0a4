/* In the place of the GPU back end where it was not built: its name is known, so that whoever asks
 * for a GPU hears why there is none. */
#include "plan/plan.h"

static int enumerate(esp_context *context, esp_device_info *infos, int capacity)
{
    (void)context;
    if (capacity > 0) {
        infos[0] = (esp_device_info){.name = "cuda",
                                     .description = "GPU",
                                     .why_not = "this espalier was built without CUDA"};
    }
    return 1;
}

static const char *unusable_code(const esp_device_info *info)
{
    (void)info;
    return "device.no_cuda";
}

static const esp_kernel *const no_kernels[] = {NULL};

const esp_backend esp_no_cuda_backend = {
    .name = "cuda", .enumerate = enumerate, .unusable_code = unusable_code, .kernels = no_kernels};
