/* Private to src/plan: one measurement. The job, its operands (tune_operands.c), the comparison
 * with the reference (tune_verify.c), the rounds (tune_measure.c), the whole (tune.c). */
#ifndef ESP_PLAN_TUNE_H
#define ESP_PLAN_TUNE_H

#include "plan/plan.h"

typedef enum tune_numbers { TUNE_INTEGERS, TUNE_REALS } tune_numbers;

struct tune_job;

/* A candidate at one token count. */
typedef struct tune_runner {
    struct tune_job *job;
    esp_plan_candidate candidate;
    const char *refused; /* static text; NULL while it is in the race */
    double error;
    esp_plan plan;
    esp_recording *recording; /* of `runs`; NULL: each run is a call, timed by the host */
    double *round_us;         /* [rounds] */
    int rounds;               /* taken */
    int runs, repeats;        /* runs of a recording, recordings (or runs) per round */
    double median_us, least_us;
} tune_runner;

/* The problem at one token count, and who can run it. */
typedef struct tune_point {
    esp_matmul_problem problem;
    tune_runner *runners;
    int count;
} tune_point;

/* One form of the weight, several times; the first copy is the job's weight. */
typedef struct tune_copies {
    esp_packed **copies;
    int count, used, next; /* used: at the point that is measured */
} tune_copies;

/* What a product works on. Only `vectors` tokens differ: token t holds vector map[t]. So the
 * reference computes few tokens, and still every output of all of them is compared. */
typedef struct tune_memory {
    char *few_x, *few_y, *few_residual; /* [vectors], in the problem's layouts and types */
    float *scale, *bias;
    double *bounds; /* [rows of y][vectors] */
    int32_t *map;   /* [tokens] */
} tune_memory;

typedef struct tune_job {
    esp_device *device, *ref;
    esp_context *context;
    esp_tune_options options;
    esp_matmul_problem problem; /* compute resolved; at the most tokens of all points */
    tune_point *points;
    int point_count;
    int64_t vectors;
    esp_mask *mask;           /* NULL: pattern dense */
    esp_tensor dense;         /* the weight with its zeros */
    esp_sparse *sparse;       /* the same, compressed */
    esp_packed *weight;       /* the same, on the device, in all forms */
    tune_memory host, mirror; /* mirror: the same on the device */
    char *x, *y, *residual;   /* [all tokens], on the device */
    void *workspace;          /* there, too: of one product at a time */
    size_t workspace_bytes;
    tune_copies sparse_copies, dense_copies, spread_copies;
    double steps_done, steps; /* progress */
} tune_job;

int64_t tune_rows(const esp_matmul_problem *problem); /* of Y */
/* ESP_CANCELLED when the caller's progress function says so. */
ESP_MUST_CHECK esp_status tune_step(tune_job *job, const char *what, esp_error *error);

/* Memory for all operands, and the mask. */
ESP_MUST_CHECK esp_status tune_operands_make(tune_job *job, esp_error *error);
/* Fills them, and compresses and packs the weight anew. */
ESP_MUST_CHECK esp_status tune_operands_fill(tune_job *job, tune_numbers numbers, esp_error *error);
/* X and the residual for a problem: a point's, or what of it is shown. */
ESP_MUST_CHECK esp_status tune_operands_spread(tune_job *job, const esp_matmul_problem *problem,
                                               esp_error *error);
/* Room for so many bytes at job->workspace, at least; what was recorded with it must be gone. */
ESP_MUST_CHECK esp_status tune_workspace(tune_job *job, size_t bytes, esp_error *error);
void tune_operands_free(tune_job *job);

/* What the reference says of the operands, and how far from it results may be. */
ESP_MUST_CHECK esp_status tune_expect(tune_job *job, tune_numbers numbers, esp_error *error);
/* Refuses runners whose results differ from it. */
ESP_MUST_CHECK esp_status tune_verify(tune_job *job, tune_point *point, tune_numbers numbers,
                                      esp_error *error);
/* Fills median_us and least_us of those that are left. */
ESP_MUST_CHECK esp_status tune_measure(tune_job *job, tune_point *point, esp_error *error);
void tune_copies_free(tune_job *job);

#endif
