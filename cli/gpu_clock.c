/* The clock of the multiprocessors by NVML, which comes with the driver. */
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <string.h>

#include "gpu.h"
#include "gpu_symbol.h"

#define CLOCK_SM 1 /* NVML_CLOCK_SM */

typedef struct nvml {
    int (*clock)(void *device, int type, unsigned *mhz);
    void *device;
    bool asked;
} nvml;

/* NVML counts all GPUs of the machine, CUDA those that it may see: the bus address is common. */
static void ask(nvml *made, int index)
{
    int (*begin)(void), (*get)(const char *, void **);
    char bus[32];
    void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    made->asked = true;
    if (library == NULL || !gpu_symbol(library, "nvmlInit_v2", &begin) ||
        !gpu_symbol(library, "nvmlDeviceGetHandleByPciBusId_v2", &get) ||
        !gpu_symbol(library, "nvmlDeviceGetClockInfo", &made->clock) || begin() != 0 ||
        cudaDeviceGetPCIBusId(bus, sizeof bus, index) != cudaSuccess ||
        get(bus, &made->device) != 0) {
        made->clock = NULL;
    }
}

int gpu_clock_mhz(const esp_device *device)
{
    static nvml driver; /* open as long as the program runs */
    unsigned mhz = 0;
    if (!driver.asked) {
        ask(&driver, gpu_index(device));
    }
    return driver.clock != NULL && driver.clock(driver.device, CLOCK_SM, &mhz) == 0 ? (int)mhz : 0;
}
