/* Private to src/plan: the candidates of one product, seen one by one. */
#ifndef ESP_PLAN_SEARCH_H
#define ESP_PLAN_SEARCH_H

#include "plan/plan.h"

/* A kernel of the device and what it would do. */
typedef struct plan_view {
    const esp_kernel *kernel;
    const esp_matmul_problem *problem; /* as the kernel would see it */
    const char *why_not;
    unsigned form;
    bool runs_dense;
    double predicted_us, tuned_us; /* 0: none */
} plan_view;

/* What is known before the first candidate is seen. Between begin and end the tuning table is
 * locked if it has something to say. */
typedef struct plan_search {
    esp_device *device;
    const esp_plan_options *options;
    unsigned forms;
    esp_matmul_problem problem, dense; /* compute resolved */
    const esp_tuning_group *group;     /* measured times that apply; NULL: none */
    bool is_shipped;                   /* none, but the back end has some of its own: */
    esp_shipped_times shipped;
} plan_search;

ESP_MUST_CHECK esp_status plan_search_begin(plan_search *search, esp_device *device,
                                            const esp_matmul_problem *problem,
                                            const esp_plan_options *options, esp_error *error);
void plan_search_end(plan_search *search);
plan_view plan_search_look(const plan_search *search, const esp_kernel *kernel);

/* The fastest candidates; a NULL kernel: none. */
typedef struct plan_best {
    plan_view sparse, dense; /* dense: runs_dense */
    bool tuned;              /* by measured times */
    bool named;              /* the glob names a kernel of the device */
} plan_best;
plan_best plan_search_best(const plan_search *search);
/* The faster of the two; at equal time sparse. */
/* At which the times that applied were measured; 0: none did. */
int64_t plan_search_tokens(const plan_search *search);
const plan_view *plan_best_of_both(const plan_best *best);
double plan_best_us(const plan_best *best, const plan_view *view);

#endif
