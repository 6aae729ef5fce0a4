/* Running plans: the checks between a caller and a kernel. */
#include "plan/plan.h"

static esp_status check_weight(const esp_plan *plan, const esp_packed *weight, esp_error *error)
{
    const esp_matmul_problem *problem = &plan->problem;
    if (weight == NULL || weight->device != plan->device) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "matmul.bad_weight",
                        "matmul: the weight was not packed for the plan's device '%s'",
                        plan->device->name);
    }
    if (weight->dtype != problem->weight_type || weight->out_features != problem->out_features ||
        weight->in_features != problem->in_features ||
        !esp_pattern_equal(&weight->pattern, &problem->pattern)) {
        char name[ESP_PROBLEM_TEXT_MAX], pattern[ESP_PATTERN_TEXT_MAX];
        esp_matmul_problem_print(problem, name);
        esp_pattern_print(&weight->pattern, pattern);
        return esp_fail(error, ESP_BAD_ARGUMENT, "matmul.bad_weight",
                        "matmul: the plan is for %s, the weight is %s/%s/%lldx%lld; plan for the "
                        "weight that is run",
                        name, pattern, esp_dtype_short_name(weight->dtype),
                        (long long)weight->out_features, (long long)weight->in_features);
    }
    if ((esp_packed_forms(weight) & plan->form) == 0) {
        bool dense = plan->form == ESP_FORM_DENSE, spread = plan->form == ESP_FORM_SPREAD;
        return esp_fail(error, ESP_BAD_ARGUMENT, "matmul.missing_form",
                        "matmul: %s reads the %s form, which the weight does not hold; pack it "
                        "with %s, or plan for the forms that it has",
                        plan->kernel->name,
                        dense    ? "dense"
                        : spread ? "spread"
                                 : "sparse",
                        dense    ? "ESP_FORM_DENSE"
                        : spread ? "ESP_FORM_SPREAD"
                                 : "ESP_FORM_SPARSE");
    }
    return ESP_OK;
}

static esp_status check_stride(const char *which, int64_t row, int64_t *stride, esp_error *error)
{
    if (*stride == 0) {
        *stride = row;
    }
    if (*stride < row) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "matmul.bad_stride",
                        "matmul: %s_stride is %lld elements, but a row has %lld; give 0 for tight "
                        "rows",
                        which, (long long)*stride, (long long)row);
    }
    return ESP_OK;
}

static esp_status check_pointers(const esp_plan *plan, const esp_matmul_args *args,
                                 esp_error *error)
{
    unsigned epilogue = plan->problem.epilogue;
    const struct {
        const char *name;
        const void *pointer;
        bool needed;
    } operands[] = {{"x", args->x, true},
                    {"y", args->y, true},
                    {"scale", args->scale, (epilogue & ESP_EP_SCALE) != 0},
                    {"bias", args->bias, (epilogue & ESP_EP_BIAS) != 0},
                    {"residual", args->residual, (epilogue & ESP_EP_RESIDUAL) != 0},
                    {"workspace", args->workspace, plan->workspace_bytes > 0}};
    for (int i = 0; i < ESP_COUNT(operands); i++) {
        if (operands[i].needed && operands[i].pointer == NULL) {
            return esp_fail(error, ESP_BAD_ARGUMENT, "matmul.missing_operand",
                            "matmul: %s is NULL, but the plan needs it", operands[i].name);
        }
    }
    if (plan->workspace_bytes > 0 && (uintptr_t)args->workspace % 64 != 0) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "matmul.bad_workspace",
                        "matmul: the workspace must be 64-byte aligned");
    }
    return ESP_OK;
}

bool esp_plan_takes(const esp_plan *plan, esp_prologue_kind kind)
{
    const esp_kernel *kernel = plan->kernel;
    return kernel->takes != NULL && kernel->takes(kernel, &plan->run, kind);
}

bool esp_plan_gates(const esp_plan *plan, const esp_packed *weight)
{
    const esp_kernel *kernel = plan->kernel;
    return kernel->gates != NULL && plan->form == ESP_FORM_SPARSE &&
           kernel->gates(kernel, &plan->run, weight);
}

/* In the form that the plan reads; NULL: not held. */
static const esp_packed *form_of(const esp_plan *plan, const esp_packed *weight)
{
    bool dense = plan->form == ESP_FORM_DENSE && weight->dense != NULL;
    return plan->form == ESP_FORM_SPREAD ? weight->spread : dense ? weight->dense : weight;
}

bool esp_plan_norms(const esp_plan *plan, const esp_packed *weight)
{
    const esp_kernel *kernel = plan->kernel;
    const esp_packed *form = form_of(plan, weight);
    return kernel->norms != NULL && form != NULL && kernel->norms(kernel, &plan->run, form);
}

int esp_plan_moment_parts(const esp_plan *plan, const esp_packed *weight)
{
    const esp_kernel *kernel = plan->kernel;
    const esp_packed *form = form_of(plan, weight);
    return kernel->moment_parts != NULL && form != NULL
               ? kernel->moment_parts(kernel, &plan->run, form)
               : 0;
}

esp_status esp_plan_run(const esp_plan *plan, const esp_matmul_args *args, const esp_around *around,
                        esp_error *error)
{
    const esp_matmul_problem *problem = &plan->problem;
    esp_matmul_args full = *args;
    int64_t out = problem->out_features >> ((problem->epilogue & ESP_EP_SWIGLU) != 0);
    bool x_by_feature = problem->x_layout == ESP_FEATURE_MAJOR;
    bool y_by_feature = problem->y_layout == ESP_FEATURE_MAJOR;
    ESP_TRY(check_weight(plan, args->weight, error));
    ESP_TRY(check_pointers(plan, args, error));
    ESP_TRY(check_stride("x", x_by_feature ? problem->tokens : problem->in_features, &full.x_stride,
                         error));
    ESP_TRY(check_stride("y", y_by_feature ? problem->tokens : out, &full.y_stride, error));
    full.weight = form_of(plan, full.weight);
    esp_matmul_call call = {plan->kernel, plan->device, &plan->run, &full, *around};
    return plan->kernel->launch(&call, error);
}

esp_status esp_matmul_run(const esp_plan *plan, const esp_matmul_args *args, esp_error *error)
{
    return esp_plan_run(plan, args, &(const esp_around){0}, error);
}
