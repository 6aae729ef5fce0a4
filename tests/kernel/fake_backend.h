/* A back end of kernels that a test makes up: each runs the reference's kernel of its format, takes
 * the time in its record for its score, and may spoil the result. A device of "ref" is given it. */
#ifndef ESP_TESTS_FAKE_BACKEND_H
#define ESP_TESTS_FAKE_BACKEND_H

#include "product.h"

typedef enum fault {
    FAULT_NONE = 0,
    FAULT_BY_ONE,    /* one output is wrong by 1 */
    FAULT_SLIGHTLY,  /* every output by a 500th where it is not an integer */
    FAULT_NAN,       /* one output is NaN */
    FAULT_UNWRITTEN, /* the last output stays as it was */
    FAULT_LAUNCH     /* launch fails */
} fault;

typedef struct fake {
    const char *name, *format;
    double us;
    fault fault;
    const char *why_not; /* NULL: as the reference's kernel */
    bool dense_work;
    size_t more_workspace;
} fake;

#define MOST_FAKES 8

typedef struct fake_backend {
    esp_backend backend;
    esp_kernel kernels[MOST_FAKES];
    const esp_kernel *list[MOST_FAKES + 1];
    fake fakes[MOST_FAKES];
} fake_backend;

static inline const esp_kernel *fake_real(const esp_kernel *kernel)
{
    const esp_kernel *const *kernels = esp_backends[0]->kernels; /* ref's */
    while (strcmp((*kernels)->format, kernel->format) != 0) {
        kernels++;
    }
    return *kernels;
}

static inline const char *fake_why_not(const esp_kernel *kernel, const esp_device *device,
                                       const esp_matmul_problem *problem)
{
    const fake *self = kernel->variant;
    const esp_kernel *real = fake_real(kernel);
    return self->why_not != NULL ? self->why_not : real->why_not(real, device, problem);
}

static inline size_t fake_workspace(const esp_kernel *kernel, const esp_device *device,
                                    const esp_matmul_problem *problem)
{
    const esp_kernel *real = fake_real(kernel);
    size_t bytes = real->workspace_bytes != NULL ? real->workspace_bytes(real, device, problem) : 0;
    return bytes + ((const fake *)kernel->variant)->more_workspace;
}

static inline double fake_score(const esp_kernel *kernel, const esp_device *device,
                                const esp_matmul_problem *problem)
{
    (void)device, (void)problem;
    return ((const fake *)kernel->variant)->us;
}

static inline void fake_spoil(const esp_matmul_call *call, fault how, float last)
{
    float *y = call->args->y;
    int64_t count = call->problem->out_features * call->problem->tokens;
    if (how == FAULT_BY_ONE) {
        y[count / 2] += 1;
    } else if (how == FAULT_NAN) {
        y[count / 2] = NAN;
    } else if (how == FAULT_UNWRITTEN) {
        y[count - 1] = last;
    }
    for (int64_t i = 0; how == FAULT_SLIGHTLY && i < count; i++) {
        y[i] = y[i] == rintf(y[i]) ? y[i] : y[i] * 1.002f;
    }
}

static inline esp_status fake_launch(const esp_matmul_call *call, esp_error *error)
{
    const fake *self = call->kernel->variant;
    esp_matmul_call real = *call;
    float *y = call->args->y;
    float last = y[call->problem->out_features * call->problem->tokens - 1];
    real.kernel = fake_real(call->kernel);
    if (self->fault == FAULT_LAUNCH) {
        return esp_fail(error, ESP_UNSUPPORTED, "fake.launch", "it does not run");
    }
    ESP_TRY(real.kernel->launch(&real, error));
    if (self->more_workspace > 0) { /* used, so that the sanitizer sees whether it is there */
        size_t all = fake_workspace(call->kernel, call->device, call->problem);
        memset((char *)call->args->workspace + all - self->more_workspace, 0xee,
               self->more_workspace);
    }
    fake_spoil(call, self->fault, last);
    return ESP_OK;
}

/* fakes: f32 in and out, tight Y without swiglu. device: one of "ref". */
static inline void fake_install(fake_backend *made, esp_device *device, const fake *fakes,
                                int count)
{
    *made = (fake_backend){.backend = *device->backend};
    for (int i = 0; i < count; i++) {
        made->fakes[i] = fakes[i];
        made->kernels[i] = (esp_kernel){.name = fakes[i].name,
                                        .device = "ref",
                                        .format = fakes[i].format,
                                        .level = "fake",
                                        .idea = "for tests",
                                        .why_not = fake_why_not,
                                        .workspace_bytes = fake_workspace,
                                        .score_us = fake_score,
                                        .launch = fake_launch,
                                        .variant = &made->fakes[i],
                                        .dense_work = fakes[i].dense_work};
        made->list[i] = &made->kernels[i];
    }
    made->backend.kernels = made->list;
    device->backend = &made->backend;
}

#endif
