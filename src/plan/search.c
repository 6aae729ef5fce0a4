/* The candidates of one product. A sparse pattern has its own kernels and, when the weight has or
 * may have a dense form, every dense kernel besides, which then sees the dense problem.
 *
 * Measured times win over predicted ones, but the two are never compared with each other: if any
 * candidate that can run has been measured, only measured ones are considered. All times of a
 * search come from one measurement (one group of the table), so they were taken side by side.
 * Both are of a product repeated; what it takes longer among others' code comes on top. */
#include "plan/search.h"

static bool is_sparse(const esp_matmul_problem *problem)
{
    return problem->pattern.kind != ESP_PATTERN_DENSE;
}

void esp_tuning_family(const esp_matmul_problem *resolved, char text[ESP_PROBLEM_TEXT_MAX])
{
    esp_matmul_problem one = *resolved;
    one.tokens = 1;
    esp_matmul_problem_print(&one, text);
}

/* Locks the table and leaves it locked when it has times for the problem. */
static const esp_tuning_group *find_times(esp_device *device, const esp_matmul_problem *problem)
{
    esp_tuning_table *table = &device->context->tuning;
    pthread_mutex_lock(&table->lock);
    bool empty = table->count == 0;
    pthread_mutex_unlock(&table->lock);
    if (empty) { /* nor need libraries be opened for the identity */
        return NULL;
    }
    char family[ESP_PROBLEM_TEXT_MAX];
    const char *identity = esp_device_identity(device);
    esp_tuning_family(problem, family);
    pthread_mutex_lock(&table->lock);
    const esp_tuning_group *group = esp_tuning_table_near(table, identity, family, problem->tokens);
    if (group == NULL) {
        pthread_mutex_unlock(&table->lock);
    }
    return group;
}

/* Times of one sparse and one dense kernel: of no use where the weight has a sparse form, but not
 * that of the sparse one, since a slower sparse kernel may still be faster than dense. */
static bool find_shipped(plan_search *search)
{
    const esp_backend *backend = search->device->backend;
    esp_shipped_times *shipped = &search->shipped;
    if (backend->shipped_times == NULL ||
        !backend->shipped_times(search->device, &search->problem, shipped)) {
        return false;
    }
    unsigned held = search->forms & (unsigned)(ESP_FORM_SPARSE | ESP_FORM_SPREAD);
    return held == 0 || (held & (shipped->sparse->spread ? ESP_FORM_SPREAD : ESP_FORM_SPARSE)) != 0;
}

esp_status plan_search_begin(plan_search *search, esp_device *device,
                             const esp_matmul_problem *problem, const esp_plan_options *options,
                             esp_error *error)
{
    plan_search made = {.device = device, .options = options, .forms = options->forms};
    if ((options->forms & ~PLAN_ALL_FORMS) != 0) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "plan.bad_forms",
                        "plan: forms %#x have bits other than ESP_FORM_SPARSE, ESP_FORM_DENSE and "
                        "ESP_FORM_SPREAD",
                        options->forms);
    }
    ESP_TRY(esp_plan_resolve(device, problem, &made.problem, error));
    made.forms = made.forms != 0 ? made.forms : ESP_FORM_SPARSE;
    made.dense = made.problem;
    made.dense.pattern = (esp_pattern){.kind = ESP_PATTERN_DENSE};
    made.group = options->ignore_tuning ? NULL : find_times(device, &made.problem);
    made.is_shipped = !options->ignore_tuning && made.group == NULL && find_shipped(&made);
    *search = made;
    return ESP_OK;
}

void plan_search_end(plan_search *search)
{
    if (search->group != NULL) {
        pthread_mutex_unlock(&search->device->context->tuning.lock);
    }
}

int64_t plan_search_tokens(const plan_search *search)
{
    return search->group != NULL ? search->group->tokens
           : search->is_shipped  ? search->shipped.tokens
                                 : 0;
}

/* 0: not measured. */
static double measured_us(const plan_search *search, const esp_kernel *kernel)
{
    const esp_shipped_times *shipped = &search->shipped;
    if (search->group != NULL) {
        return 1e-3 * (double)esp_tuning_group_find(search->group, kernel->name);
    }
    return !search->is_shipped         ? 0
           : kernel == shipped->sparse ? shipped->sparse_us
           : kernel == shipped->dense  ? shipped->dense_us
                                       : 0;
}

plan_view plan_search_look(const plan_search *search, const esp_kernel *kernel)
{
    bool sparse = is_sparse(&search->problem);
    bool other_form = sparse && strcmp(kernel->format, "dense") == 0;
    plan_view view = {.kernel = kernel,
                      .problem = other_form ? &search->dense : &search->problem,
                      .form = other_form || !sparse ? ESP_FORM_DENSE
                              : kernel->spread      ? ESP_FORM_SPREAD
                                                    : ESP_FORM_SPARSE,
                      .runs_dense = sparse && (other_form || kernel->dense_work)};
    const char *glob = search->options->kernel_glob;
    if (glob != NULL && !esp_glob_match(glob, kernel->name)) {
        view.why_not = "its name is not the one asked for";
    } else if (other_form && (search->forms & ESP_FORM_DENSE) == 0) {
        view.why_not = "it reads dense weights only, and the weight has no dense form";
    } else if (sparse && kernel->spread && (search->forms & ESP_FORM_SPREAD) == 0) {
        view.why_not = "it reads the spread form of V:2:5, which the weight does not have";
    } else if (sparse && (search->forms & view.form) == 0) {
        view.why_not = search->forms == ESP_FORM_DENSE
                           ? "the weight is held in its dense form only"
                           : "the weight is not held in its sparse form";
    } else {
        view.why_not = kernel->why_not(kernel, search->device, view.problem);
    }
    if (view.why_not == NULL) {
        double measured = measured_us(search, kernel);
        view.predicted_us =
            kernel->score_us(kernel, search->device, view.problem) + kernel->among_us;
        view.tuned_us = measured > 0 ? measured + kernel->among_us : 0;
    }
    return view;
}

static void keep_faster(plan_view *best, const plan_view *view, bool tuned)
{
    double us = tuned ? view->tuned_us : view->predicted_us;
    double best_us = tuned ? best->tuned_us : best->predicted_us;
    if (best->kernel == NULL || us < best_us) {
        *best = *view;
    }
}

plan_best plan_search_best(const plan_search *search)
{
    plan_best best[2] = {{.tuned = false}, {.tuned = true}};
    const esp_kernel *const *kernels = search->device->backend->kernels;
    const char *glob = search->options->kernel_glob;
    bool named = false;
    for (int i = 0; kernels[i] != NULL; i++) {
        if (glob != NULL && !esp_glob_match(glob, kernels[i]->name)) {
            continue;
        }
        named = true;
        plan_view view = plan_search_look(search, kernels[i]);
        for (int tuned = 0; view.why_not == NULL && tuned <= (view.tuned_us > 0); tuned++) {
            plan_view *among = view.runs_dense ? &best[tuned].dense : &best[tuned].sparse;
            keep_faster(among, &view, tuned != 0);
        }
    }
    plan_best *use = &best[best[1].sparse.kernel != NULL || best[1].dense.kernel != NULL];
    use->named = named;
    return *use;
}

double plan_best_us(const plan_best *best, const plan_view *view)
{
    return view->kernel == NULL ? 0 : best->tuned ? view->tuned_us : view->predicted_us;
}

const plan_view *plan_best_of_both(const plan_best *best)
{
    if (best->dense.kernel == NULL || best->sparse.kernel == NULL) {
        return best->sparse.kernel != NULL ? &best->sparse : &best->dense;
    }
    bool sparse_wins = plan_best_us(best, &best->sparse) <= plan_best_us(best, &best->dense);
    return sparse_wins ? &best->sparse : &best->dense;
}
