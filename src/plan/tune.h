/* Private to src/plan: one measurement. The job, its operands (tune_operands.c), the comparison
 * with the reference (tune_verify.c), the rounds (tune_measure.c), the whole (tune.c). */
#ifndef ESP_PLAN_TUNE_H
#define ESP_PLAN_TUNE_H

#include "plan/plan.h"

typedef enum tune_numbers { TUNE_INTEGERS, TUNE_REALS } tune_numbers;

/* A candidate. */
typedef struct tune_runner {
    esp_plan_candidate candidate;
    const char *refused; /* static text; NULL while it is in the race */
    double error;
    esp_plan plan;
    void *workspace;
    double *round_us; /* [rounds] */
    int rounds;       /* taken */
    int repeats;      /* runs per round */
    double median_us, least_us;
} tune_runner;

/* One form of the weight, several times. */
typedef struct tune_copies {
    esp_packed **copies;
    int count, next;
} tune_copies;

/* Only `vectors` tokens differ: token t holds vector tune_vector(t). So the reference computes few
 * tokens, and still every output of all of them is compared. */
typedef struct tune_job {
    esp_device *device, *ref;
    esp_context *context;
    esp_tune_options options;
    esp_matmul_problem problem; /* compute resolved */
    int64_t vectors;
    esp_mask *mask;                     /* NULL: pattern dense */
    esp_tensor dense;                   /* the weight with its zeros */
    esp_sparse *sparse;                 /* the same, compressed */
    char *x, *y, *residual;             /* [all tokens], in the problem's layouts and types */
    char *few_x, *few_y, *few_residual; /* [vectors], likewise */
    float *scale, *bias;
    double *bounds; /* [rows of y][vectors] */
    size_t y_bytes;
    tune_runner *runners;
    int count;
    tune_copies sparse_copies, dense_copies;
    double steps_done, steps; /* progress */
} tune_job;

int64_t tune_vector(const tune_job *job, int64_t token);
int64_t tune_rows(const esp_matmul_problem *problem); /* of Y */
/* ESP_CANCELLED when the caller's progress function says so. */
ESP_MUST_CHECK esp_status tune_step(tune_job *job, const char *what, esp_error *error);

/* Memory for all operands, and the mask. */
ESP_MUST_CHECK esp_status tune_operands_make(tune_job *job, esp_error *error);
/* Fills them, and compresses the weight anew. */
ESP_MUST_CHECK esp_status tune_operands_fill(tune_job *job, tune_numbers numbers, esp_error *error);
void tune_operands_free(tune_job *job);

/* Refuses runners whose results differ from the reference on what the operands hold. */
ESP_MUST_CHECK esp_status tune_verify(tune_job *job, tune_numbers numbers, esp_error *error);
/* Fills median_us and least_us of those that are left. */
ESP_MUST_CHECK esp_status tune_measure(tune_job *job, esp_error *error);

#endif
