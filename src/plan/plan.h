/* The door of src/plan: catalogue, devices, weights on devices, choice of kernel, measured times.
 */
#ifndef ESP_SRC_PLAN_H
#define ESP_SRC_PLAN_H

#include <espalier/tuning.h>

#include "op/op.h"

#define PLAN_ALL_FORMS ((unsigned)(ESP_FORM_SPARSE | ESP_FORM_DENSE | ESP_FORM_SPREAD))

/* An immutable decision. */
struct esp_plan {
    esp_device *device;
    esp_matmul_problem problem; /* compute resolved */
    esp_matmul_problem run;     /* as the kernel sees it: pattern dense when it reads that form */
    const esp_kernel *kernel;
    size_t workspace_bytes;
    unsigned form; /* one esp_form bit */
    bool runs_dense;
    esp_plan_reason reason;
};

/* Back ends, NULL-terminated: ref, cpu, cuda or what stands in its place. */
extern const esp_backend *const esp_backends[];
extern const esp_backend esp_no_cuda_backend;

/* Checks the problem and replaces compute AUTO by what the device prefers. */
ESP_MUST_CHECK esp_status esp_plan_resolve(const esp_device *device,
                                           const esp_matmul_problem *problem,
                                           esp_matmul_problem *resolved, esp_error *error);

/* esp_plan_create_with without the allocation: fills *plan. options are not NULL. */
ESP_MUST_CHECK esp_status esp_plan_fill(esp_device *device, const esp_matmul_problem *problem,
                                        const esp_plan_options *options, esp_plan *plan,
                                        esp_error *error);

/* esp_matmul_run in a model. A prologue needs a kernel that takes it, `gates` one that joins,
 * and so on. */
ESP_MUST_CHECK esp_status esp_plan_run(const esp_plan *plan, const esp_matmul_args *args,
                                       const esp_around *around, esp_error *error);
bool esp_plan_takes(const esp_plan *plan, esp_prologue_kind kind);
bool esp_plan_gates(const esp_plan *plan, const esp_packed *weight);
/* esp_around.normed may be given; moments, of so many parts (0: may not). */
bool esp_plan_norms(const esp_plan *plan, const esp_packed *weight);
int esp_plan_moment_parts(const esp_plan *plan, const esp_packed *weight);

/* Every byte of device memory. */
ESP_MUST_CHECK esp_status esp_device_fill(esp_device *device, void *memory, int byte, size_t bytes,
                                          esp_error *error);

/* ---- tuning table ---- */

/* The text that names a problem's family in the table: the problem at one token. */
void esp_tuning_family(const esp_matmul_problem *resolved, char text[ESP_PROBLEM_TEXT_MAX]);

/* One measurement into the context's table: candidates with tuned_us > 0. */
ESP_MUST_CHECK esp_status esp_tuning_put(esp_device *device, const esp_matmul_problem *resolved,
                                         const esp_plan_candidate *candidates, int count,
                                         esp_error *error);

#endif
