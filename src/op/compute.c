#include "op/op.h"

const char *esp_compute_name(esp_compute compute)
{
    static const char *const names[] = {"auto", "f32", "bf16"};
    size_t index = (size_t)compute;
    return index < 3 ? names[index] : "unknown";
}
