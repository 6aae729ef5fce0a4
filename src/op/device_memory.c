/* What is said when a device has no room. */
#include "op/op.h"

esp_status esp_device_fail_memory(const esp_device *device, size_t bytes, const char *what,
                                  esp_error *error)
{
    if (device->backend->memory_free == NULL) {
        return esp_fail_memory(error, bytes, what);
    }
    return esp_fail(error, ESP_OUT_OF_MEMORY, "device.out_of_memory",
                    "device '%s': %s needs %.1f MiB, but %.1f MiB of its memory are free",
                    device->name, what, (double)bytes * 0x1p-20,
                    (double)device->backend->memory_free(device) * 0x1p-20);
}
