/* The choice of a kernel: of the candidates (search.c) the fastest. A choice can be forced by name;
 * when none is left, the error says of each candidate why. */
#include "plan/plan.h"

#include <stdio.h>

#include "plan/search.h"

static const esp_plan_options defaults = ESP_PLAN_OPTIONS_INIT;

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

/* ---- refusals ---- */

/* Each candidate and its reason, as far as the text has room. */
static void list_reasons(const plan_search *search, char *text, size_t capacity)
{
    const char *glob = search->options->kernel_glob;
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; search->device->backend->kernels[i] != NULL; i++) {
        const esp_kernel *kernel = search->device->backend->kernels[i];
        if (glob != NULL && !esp_glob_match(glob, kernel->name)) {
            continue;
        }
        plan_view view = plan_search_look(search, kernel);
        const char *why = view.why_not != NULL ? view.why_not : "it can run";
        size_t needed = strlen(kernel->name) + strlen(why) + 4;
        if (used + needed + 8 > capacity) {
            snprintf(text + used, capacity - used, "; ...");
            return;
        }
        used += (size_t)snprintf(text + used, capacity - used, "%s%s: %s", used > 0 ? "; " : "",
                                 kernel->name, why);
    }
}

static esp_status no_kernel(const plan_search *search, bool named, esp_error *error)
{
    char name[ESP_PROBLEM_TEXT_MAX], reasons[640];
    const char *glob = search->options->kernel_glob;
    esp_matmul_problem_print(&search->problem, name);
    if (!named) {
        return esp_fail(error, ESP_UNSUPPORTED, "plan.no_kernel",
                        "%s: no kernel of device '%s' is named '%.64s'; `espalier kernels` lists "
                        "them",
                        name, search->device->name, glob != NULL ? glob : "*");
    }
    list_reasons(search, reasons, sizeof reasons);
    return esp_fail(error, ESP_UNSUPPORTED, "plan.no_kernel",
                    "%s: no kernel of device '%s' can run it: %s", name, search->device->name,
                    reasons);
}

static esp_status sparse_required(const plan_search *search, const plan_best *best,
                                  esp_error *error)
{
    char name[ESP_PROBLEM_TEXT_MAX];
    esp_matmul_problem_print(&search->problem, name);
    if (best->sparse.kernel == NULL) {
        return esp_fail(error, ESP_UNSUPPORTED, "plan.no_sparse_kernel",
                        "%s: a sparse kernel is required, but only dense ones can run it, the "
                        "fastest is %s",
                        name, best->dense.kernel->name);
    }
    return esp_fail(error, ESP_UNSUPPORTED, "plan.dense_is_faster",
                    "%s: a sparse kernel is required, but dense is faster: %s takes %.1f us, the "
                    "fastest sparse one, %s, %.1f us (%s); allow dense, or force a kernel by name",
                    name, best->dense.kernel->name, plan_best_us(best, &best->dense),
                    best->sparse.kernel->name, plan_best_us(best, &best->sparse),
                    best->tuned ? "measured" : "predicted");
}

/* ---- the choice ---- */

static esp_plan make(const plan_search *search, const plan_best *best, const plan_view *chosen)
{
    const esp_kernel *kernel = chosen->kernel;
    esp_plan plan = {.device = search->device,
                     .problem = search->problem,
                     .run = *chosen->problem,
                     .kernel = kernel,
                     .form = chosen->form,
                     .runs_dense = chosen->runs_dense};
    if (kernel->workspace_bytes != NULL) {
        plan.workspace_bytes = kernel->workspace_bytes(kernel, search->device, chosen->problem);
    }
    const esp_kernel *sparse = best->sparse.kernel, *dense = best->dense.kernel;
    plan.reason = (esp_plan_reason){.us = plan_best_us(best, chosen),
                                    .tuned_tokens = best->tuned ? plan_search_tokens(search) : 0,
                                    .shipped = best->tuned && search->is_shipped,
                                    .sparse_kernel = sparse != NULL ? sparse->name : NULL,
                                    .dense_kernel = dense != NULL ? dense->name : NULL,
                                    .sparse_us = plan_best_us(best, &best->sparse),
                                    .dense_us = plan_best_us(best, &best->dense)};
    if (search->problem.pattern.kind == ESP_PATTERN_DENSE) { /* its kernels are the dense ones */
        plan.reason.dense_kernel = plan.reason.sparse_kernel;
        plan.reason.dense_us = plan.reason.sparse_us;
        plan.reason.sparse_kernel = NULL;
        plan.reason.sparse_us = 0;
    }
    return plan;
}

static esp_status choose(const plan_search *search, esp_plan *plan, esp_error *error)
{
    plan_best best = plan_search_best(search);
    const plan_view *chosen = plan_best_of_both(&best);
    if (chosen->kernel == NULL) {
        return no_kernel(search, best.named, error);
    }
    if (search->options->require_sparse && chosen->runs_dense) {
        return sparse_required(search, &best, error);
    }
    *plan = make(search, &best, chosen);
    return ESP_OK;
}

esp_status esp_plan_fill(esp_device *device, const esp_matmul_problem *problem,
                         const esp_plan_options *options, esp_plan *plan, esp_error *error)
{
    plan_search search;
    ESP_TRY(plan_search_begin(&search, device, problem, options, error));
    esp_status status = choose(&search, plan, error);
    plan_search_end(&search);
    return status;
}

esp_status esp_plan_explain(esp_device *device, const esp_matmul_problem *problem,
                            const esp_plan_options *options, esp_plan_candidate *candidates,
                            int capacity, int *count, esp_error *error)
{
    plan_search search;
    const esp_plan_options *use = options != NULL ? options : &defaults;
    ESP_TRY(plan_search_begin(&search, device, problem, use, error));
    plan_best best = plan_search_best(&search);
    const plan_view *chosen = plan_best_of_both(&best);
    bool forbidden = use->require_sparse && chosen->runs_dense;
    int seen = 0;
    for (; device->backend->kernels[seen] != NULL; seen++) {
        if (seen >= capacity) {
            continue;
        }
        plan_view view = plan_search_look(&search, device->backend->kernels[seen]);
        candidates[seen] = (esp_plan_candidate){
            .kernel = view.kernel->name,
            .why_not = view.why_not,
            .runs_dense = view.runs_dense,
            .chosen = view.kernel == chosen->kernel && !forbidden,
            .predicted_us = view.predicted_us,
            .tuned_us = view.tuned_us,
            .tuned_tokens = view.tuned_us > 0 ? plan_search_tokens(&search) : 0,
        };
    }
    plan_search_end(&search);
    *count = seen;
    return ESP_OK;
}

/* ---- plans ---- */

esp_status esp_plan_create_with(esp_device *device, const esp_matmul_problem *problem,
                                const esp_plan_options *options, esp_plan **plan, esp_error *error)
{
    esp_plan filled;
    ESP_TRY(esp_plan_fill(device, problem, options != NULL ? options : &defaults, &filled, error));
    esp_plan *made = esp_alloc(device->context, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "a plan");
    }
    *made = filled;
    *plan = made;
    return ESP_OK;
}

esp_status esp_plan_create(esp_device *device, const esp_matmul_problem *problem,
                           const char *kernel_glob, esp_plan **plan, esp_error *error)
{
    esp_plan_options options = {.kernel_glob = kernel_glob};
    return esp_plan_create_with(device, problem, &options, plan, error);
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

bool esp_plan_runs_dense(const esp_plan *plan)
{
    return plan->runs_dense;
}

unsigned esp_plan_form(const esp_plan *plan)
{
    return plan->form;
}

esp_compute esp_plan_compute(const esp_plan *plan)
{
    return plan->problem.compute;
}

size_t esp_plan_workspace_bytes(const esp_plan *plan)
{
    return plan->workspace_bytes;
}

esp_plan_reason esp_plan_get_reason(const esp_plan *plan)
{
    return plan->reason;
}
