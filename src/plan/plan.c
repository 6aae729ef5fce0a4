/* The choice of a kernel: of those that can run the problem the one with the best score. A choice
 * can be forced by name; when none is left, the error says of each candidate why. */
#include "plan/plan.h"

#include <stdio.h>

esp_status esp_plan_resolve(const esp_device *device, const esp_matmul_problem *problem,
                            esp_matmul_problem *resolved, esp_error *error)
{
    ESP_TRY(esp_matmul_problem_check(problem, error));
    *resolved = *problem;
    if (problem->compute == ESP_COMPUTE_AUTO) {
        resolved->compute = device->backend->auto_compute(device, problem->weight_type);
    }
    return ESP_OK;
}

/* Each candidate and its reason, as far as the text has room. */
static void list_reasons(const esp_device *device, const esp_matmul_problem *problem,
                         const char *glob, char *text, size_t capacity)
{
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; device->backend->kernels[i] != NULL; i++) {
        const esp_kernel *kernel = device->backend->kernels[i];
        if (glob != NULL && !esp_glob_match(glob, kernel->name)) {
            continue;
        }
        const char *why = kernel->why_not(kernel, device, problem);
        size_t needed = strlen(kernel->name) + strlen(why) + 4;
        if (used + needed + 8 > capacity) {
            snprintf(text + used, capacity - used, "; ...");
            return;
        }
        used += (size_t)snprintf(text + used, capacity - used, "%s%s: %s", used > 0 ? "; " : "",
                                 kernel->name, why);
    }
}

static esp_status no_kernel(const esp_device *device, const esp_matmul_problem *problem,
                            const char *glob, bool named, esp_error *error)
{
    char name[ESP_PROBLEM_TEXT_MAX], reasons[640];
    esp_matmul_problem_print(problem, name);
    if (!named) {
        return esp_fail(error, ESP_UNSUPPORTED, "plan.no_kernel",
                        "%s: no kernel of device '%s' is named '%.64s'; `espalier kernels` lists "
                        "them",
                        name, device->name, glob != NULL ? glob : "*");
    }
    list_reasons(device, problem, glob, reasons, sizeof reasons);
    return esp_fail(error, ESP_UNSUPPORTED, "plan.no_kernel",
                    "%s: no kernel of device '%s' can run it: %s", name, device->name, reasons);
}

esp_status esp_plan_fill(esp_device *device, const esp_matmul_problem *problem,
                         const char *kernel_glob, esp_plan *plan, esp_error *error)
{
    esp_matmul_problem resolved;
    ESP_TRY(esp_plan_resolve(device, problem, &resolved, error));
    const esp_kernel *best = NULL;
    double best_us = 0;
    bool named = false;
    for (int i = 0; device->backend->kernels[i] != NULL; i++) {
        const esp_kernel *kernel = device->backend->kernels[i];
        if (kernel_glob != NULL && !esp_glob_match(kernel_glob, kernel->name)) {
            continue;
        }
        named = true;
        if (kernel->why_not(kernel, device, &resolved) != NULL) {
            continue;
        }
        double us = kernel->score_us(kernel, device, &resolved);
        if (best == NULL || us < best_us) {
            best = kernel;
            best_us = us;
        }
    }
    if (best == NULL) {
        return no_kernel(device, &resolved, kernel_glob, named, error);
    }
    size_t bytes =
        best->workspace_bytes != NULL ? best->workspace_bytes(best, device, &resolved) : 0;
    *plan = (esp_plan){device, resolved, best, bytes};
    return ESP_OK;
}

esp_status esp_plan_create(esp_device *device, const esp_matmul_problem *problem,
                           const char *kernel_glob, esp_plan **plan, esp_error *error)
{
    esp_plan filled;
    ESP_TRY(esp_plan_fill(device, problem, kernel_glob, &filled, error));
    esp_plan *made = esp_alloc(device->context, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "a plan");
    }
    *made = filled;
    *plan = made;
    return ESP_OK;
}

void esp_plan_free(esp_plan *plan)
{
    if (plan != NULL) {
        esp_release(plan->device->context, plan);
    }
}

const char *esp_plan_kernel(const esp_plan *plan)
{
    return plan->kernel->name;
}

esp_compute esp_plan_compute(const esp_plan *plan)
{
    return plan->problem.compute;
}

size_t esp_plan_workspace_bytes(const esp_plan *plan)
{
    return plan->workspace_bytes;
}
