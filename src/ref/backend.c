#include <stdio.h>
#include <unistd.h>

#include "ref/kernels.h"

static int enumerate(esp_context *context, esp_device_info *infos, int capacity)
{
    (void)context;
    if (capacity >= 1) {
        long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
        infos[0] =
            (esp_device_info){.name = "ref",
                              .description = "reference: scalar C, one thread",
                              .threads = 1,
                              .memory_bytes = pages > 0 ? (uint64_t)pages * (uint64_t)page : 0,
                              .usable = true};
    }
    return 1;
}

static esp_compute auto_compute(const esp_device *device, esp_dtype weight_type)
{
    (void)device, (void)weight_type;
    return ESP_COMPUTE_F32;
}

const esp_backend esp_ref_backend = {
    .name = "ref",
    .enumerate = enumerate,
    .kernels = esp_ref_kernels,
    .ops = &esp_ref_ops,
    .auto_compute = auto_compute,
    .pack = esp_host_pack,
    .packed_free = esp_host_packed_free,
    .alloc = esp_host_alloc,
    .release = esp_host_release,
};
