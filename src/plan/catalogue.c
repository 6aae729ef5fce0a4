/* The catalogue: every kernel of every back end compiled in, numbered back end after back end. */
#include "cpu/cpu.h"
#include "plan/plan.h"
#include "ref/ref.h"
#ifdef ESP_HAVE_CUDA
#include "cuda/cuda.h"
#endif

const esp_backend *const esp_backends[] = {
    &esp_ref_backend,
    &esp_cpu_backend,
#ifdef ESP_HAVE_CUDA
    &esp_cuda_backend,
#else
    &esp_no_cuda_backend,
#endif
    NULL,
};

/* NULL when index is past the end; then *count has the number of kernels. */
static const esp_kernel *kernel_at(int index, const esp_backend **backend, int *count)
{
    int seen = 0;
    for (int b = 0; esp_backends[b] != NULL; b++) {
        for (int i = 0; esp_backends[b]->kernels[i] != NULL; i++, seen++) {
            if (seen == index) {
                *backend = esp_backends[b];
                return esp_backends[b]->kernels[i];
            }
        }
    }
    *count = seen;
    return NULL;
}

int esp_kernel_count(void)
{
    const esp_backend *backend;
    int count = 0;
    (void)kernel_at(-1, &backend, &count);
    return count;
}

esp_kernel_info esp_kernel_get(int index)
{
    const esp_backend *backend;
    int count;
    const esp_kernel *kernel = kernel_at(index, &backend, &count);
    if (kernel == NULL) {
        return (esp_kernel_info){"", "", "", "", "", ""};
    }
    return (esp_kernel_info){kernel->name,   kernel->device, "matmul",
                             kernel->format, kernel->level,  kernel->idea};
}

const char *esp_kernel_why_not(int index, const esp_device *device,
                               const esp_matmul_problem *problem)
{
    const esp_backend *backend;
    int count;
    const esp_kernel *kernel = kernel_at(index, &backend, &count);
    if (kernel == NULL) {
        return "there is no such kernel";
    }
    if (backend != device->backend) {
        return "it belongs to another device";
    }
    esp_matmul_problem resolved;
    if (esp_plan_resolve(device, problem, &resolved, NULL) != ESP_OK) {
        return "the problem is not valid";
    }
    return kernel->why_not(kernel, device, &resolved);
}
