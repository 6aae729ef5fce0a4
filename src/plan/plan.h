/* The door of src/plan: catalogue, devices, choice of kernel. */
#ifndef ESP_SRC_PLAN_H
#define ESP_SRC_PLAN_H

#include "op/op.h"

/* An immutable decision. */
struct esp_plan {
    esp_device *device;
    esp_matmul_problem problem; /* compute resolved */
    const esp_kernel *kernel;
    size_t workspace_bytes;
};

/* Back ends compiled in, NULL-terminated: ref, cpu(, cuda). */
extern const esp_backend *const esp_backends[];

/* Checks the problem and replaces compute AUTO by what the device prefers. */
ESP_MUST_CHECK esp_status esp_plan_resolve(const esp_device *device,
                                           const esp_matmul_problem *problem,
                                           esp_matmul_problem *resolved, esp_error *error);

/* esp_plan_create without the allocation: fills *plan. */
ESP_MUST_CHECK esp_status esp_plan_fill(esp_device *device, const esp_matmul_problem *problem,
                                        const char *kernel_glob, esp_plan *plan, esp_error *error);

#endif
