#include <stdio.h>
#include <unistd.h>

#include "cpu/kernels.h"

static int enumerate(esp_context *context, esp_device_info *infos, int capacity)
{
    if (capacity < 1) {
        return 1;
    }
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    infos[0] = (esp_device_info){.name = "cpu",
                                 .threads = context->threads,
                                 .memory_bytes = pages > 0 ? (uint64_t)pages * (uint64_t)page : 0,
                                 .usable = true};
    snprintf(infos[0].description, sizeof infos[0].description, "%s, %s", context->cpu.name,
             esp_cpu_level_name(context->cpu.level));
    return 1;
}

/* The same for every format, so that dense and sparse compare in the same arithmetic. On tiles bf16
 * is three times as fast as f32 made of it; AVX512_BF16 alone is not faster than f32 on processors
 * that have one such unit (measured), so it has to be asked for. */
static esp_compute auto_compute(const esp_device *device, esp_dtype weight_type)
{
    bool tiles = device->context->cpu.level >= ESP_CPU_AMX;
    return tiles && weight_type == ESP_BF16 ? ESP_COMPUTE_BF16 : ESP_COMPUTE_F32;
}

const esp_backend esp_cpu_backend = {
    .name = "cpu",
    .enumerate = enumerate,
    .open = cpu_state_open,
    .close = cpu_state_close,
    .identify = cpu_identify,
    .kernels = esp_cpu_kernels,
    .ops = &esp_cpu_ops,
    .auto_compute = auto_compute,
    .pack = esp_host_pack,
    .packed_free = esp_host_packed_free,
    .alloc = esp_host_alloc,
    .release = esp_host_release,
};
