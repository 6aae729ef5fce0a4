/* Pruning with knowledge of a layer's inputs: scores, masks with an update of what is kept, exact
 * refitting of a fixed mask, and the error that they all are judged by.
 *
 * A layer y = W x is known by the target T, the weights [out][in] that it would have without a mask
 * (the dense ones, or those that make up for what earlier layers lost), and by its inputs' second
 * moments H = sum of x x^T. For any weights W the squared error of the outputs is
 *     |W X - T X|^2 = tr((W - T) H (W - T)^T),
 * so that X itself is not needed again. All layers that read the same x share one H. */
#ifndef ESP_PRUNE_CALIBRATED_H
#define ESP_PRUNE_CALIBRATED_H

#include <espalier/prune.h>

#include "tensor/tensor.h"

/* The inputs of one or several layers. */
typedef struct esp_layer_inputs {
    int64_t in;
    int64_t tokens;     /* that were summed */
    const double *gram; /* H, [in][in], symmetric */
    double norm_power;  /* of ||x_j|| in WANDA and RIA; 0: 1 and 1/2 */
} esp_layer_inputs;

/* |W X - T X|^2; weights and target [out][in]. */
ESP_MUST_CHECK esp_status esp_layer_error(const esp_algebra *algebra,
                                          const esp_layer_inputs *inputs, int64_t out,
                                          const double *weights, const double *target,
                                          double *squared, esp_error *error);
/* |T X|^2, what the former is a share of: the error of no weights at all. */
ESP_MUST_CHECK esp_status esp_layer_energy(const esp_algebra *algebra,
                                           const esp_layer_inputs *inputs, int64_t out,
                                           const double *target, double *squared, esp_error *error);

/* ---- scores: [out][in] f32, not negative; esp_prune_mask takes them as weights with |w| ---- */

typedef enum esp_layer_score {
    ESP_LAYER_ABS = 0, /* |w| */
    ESP_LAYER_SQUARE,  /* w^2 */
    ESP_LAYER_OBD,     /* h_jj w^2 / 2: LeCun et al., "Optimal Brain Damage" (1989) */
    ESP_LAYER_WANDA,   /* |w| ||x_j||^a: Sun et al. (arXiv 2306.11695) with a = 1 */
    ESP_LAYER_RIA,     /* (|w| / sum of its row + |w| / sum of its column) ||x_j||^a: Zhang et al.,
                        * "Plug-and-Play" (ICLR 2024), with a = 1/2 */
    ESP_LAYER_OBS      /* w^2 / [H^-1]_jj: Hassibi and Stork, "Optimal Brain Surgeon" (1993) */
} esp_layer_score;

/* weights: [out][in]. inputs may be NULL for ABS and SQUARE, inverse_diagonal ([in], of H^-1) for
 * all but OBS. Scores are scaled so that the largest is 1, which changes no choice and keeps them
 * in f32's range; a weight that is not finite scores as such. */
ESP_MUST_CHECK esp_status esp_score_layer(esp_context *context, esp_layer_score score,
                                          const esp_layer_inputs *inputs,
                                          const double *inverse_diagonal, int64_t out, int64_t in,
                                          const double *weights, float *scores, esp_error *error);

/* ---- exact refit of a fixed mask ---- */

typedef struct esp_refit_options {
    double tolerance;   /* of a row's residual, relative; 0: 1e-7 */
    int max_iterations; /* 0: 500 */
} esp_refit_options;

typedef struct esp_refit_report {
    int64_t iterations; /* of the slowest rows */
    double residual;    /* largest relative residual of a row at the end */
} esp_refit_report;

/* The live weights of each row that minimise |W X - T X|^2: w_S H_SS = (T H)_S, S the row's live
 * entries. goal: T H, [out][in]. weights: [out][in], start and result; dropped ones become 0. H
 * must be positive definite (damped). Rows are solved by conjugate gradients, all rows of a panel
 * at once, over the columns that any of them keeps. options, report: NULL is fine. */
ESP_MUST_CHECK esp_status esp_refit(const esp_algebra *algebra, const esp_layer_inputs *inputs,
                                    const esp_mask *mask, const double *goal, double *weights,
                                    const esp_refit_options *options, esp_refit_report *report,
                                    esp_error *error);

/* ---- masks and updates together ---- */

/* SparseGPT: Frantar and Alistarh (arXiv 2301.00774). Columns are taken from left to right; what
 * dropping a weight costs is made up for by the weights to its right. factor: [in][in], the upper
 * Cholesky factor U of H^-1 = U^T U. weights: [out][in], T at first, the kept weights at the end.
 *
 * n:m and V:2:M choose the mask of each group when it is reached, by w^2 / U_jj^2 of the weights as
 * updated by then; V:2:M in blocks of M * floor(128 / M) columns. For every other pattern *mask is
 * chosen before, by the caller. */
ESP_MUST_CHECK esp_status esp_sparse_gpt(const esp_algebra *algebra, const esp_pattern *pattern,
                                         const esp_mask_options *options, int64_t out, int64_t in,
                                         const double *factor, double *weights, esp_mask **mask,
                                         esp_error *error);
/* The same from H^-1, which is factored: by the algebra's device where it has one.
 * "calibrate.not_definite" */
ESP_MUST_CHECK esp_status esp_sparse_gpt_of(const esp_algebra *algebra, const esp_pattern *pattern,
                                            const esp_mask_options *options, int64_t out,
                                            int64_t in, const double *inverse, double *weights,
                                            esp_mask **mask, esp_error *error);
/* VENOM: of V:2:M and 2:4 each group's columns and pairs at once, by the exact second order of all
 * that goes, kept weights of the group following, too (group_obs.c). Arguments as of
 * esp_sparse_gpt_of. */
bool esp_group_obs_takes(const esp_pattern *pattern);
ESP_MUST_CHECK esp_status esp_group_obs(const esp_algebra *algebra, const esp_pattern *pattern,
                                        const esp_mask_options *options, int64_t out, int64_t in,
                                        const double *inverse, double *weights, esp_mask **mask,
                                        esp_error *error);
/* Whether it chooses the mask. */
bool esp_sparse_gpt_chooses(const esp_pattern *pattern);

/* Panels by second order: columns of a panel go one by one by what that costs all its rows, with
 * updates, then two of each four by SparseGPT's sweep (panel_obs.c). For V:2:M and free panels.
 * inverse: H^-1, [in][in]; weights: T at first, the kept ones at the end. */
bool esp_panel_obs_takes(const esp_pattern *pattern);
ESP_MUST_CHECK esp_status esp_panel_obs(const esp_algebra *algebra, const esp_pattern *pattern,
                                        int64_t out, int64_t in, const double *inverse,
                                        double *weights, esp_mask **mask, esp_error *error);
/* Its first half: the columns of each panel, [ceil(out / V)][esp_pattern_kept], ascending,
 * UINT32_MAX for padding at the end. weights: T at first, used up. */
ESP_MUST_CHECK esp_status esp_panel_obs_columns(const esp_algebra *algebra,
                                                const esp_pattern *pattern, int64_t out, int64_t in,
                                                const double *inverse, double *weights,
                                                uint32_t *columns, esp_error *error);

/* ---- structured: whole inputs, for all rows at once ---- */

/* Units of `width` neighbouring columns go by what that costs the outputs, all other weights
 * following (unit_obs.c). inverse: H^-1, [in][in]. weights: [out][in], T at first, the least
 * squares of what stays at the end; removed columns are 0. kept: [keep], ascending. 1 <= keep <=
 * units. */
ESP_MUST_CHECK esp_status esp_unit_obs(const esp_algebra *algebra, int64_t out, int64_t units,
                                       int64_t width, int64_t keep, const double *inverse,
                                       double *weights, uint32_t *kept, esp_error *error);

/* ---- gradual pruning: V:2:M in steps that keep ever less ---- */

#define ESP_GRADUAL_MAX_STEPS 3
typedef struct esp_gradual_step {
    int64_t pool, kept; /* of each group: columns of a panel, and of them weights of a row */
} esp_gradual_step;

/* What to go through before the pattern itself; returns how many steps there are, 0 where the
 * pattern is no V:2:M with M > 4. */
int esp_gradual_steps(const esp_pattern *pattern, esp_gradual_step steps[ESP_GRADUAL_MAX_STEPS]);
/* The mask of a step: in each group the `pool` columns whose scores in the panel have the largest
 * sums, and in each row the `kept` largest of them. scores: [out][in], not negative; 0 for what
 * steps before have dropped, which then goes first. Of equals the lowest index. */
ESP_MUST_CHECK esp_status esp_gradual_mask(esp_context *context, const esp_pattern *pattern,
                                           const esp_gradual_step *step, int64_t out, int64_t in,
                                           const float *scores, esp_mask **mask, esp_error *error);

/* Whether the algebra has a device that does panels. */
bool esp_device_panels_takes(const esp_algebra *algebra, int64_t out, int64_t in);

/* Panels, 2:4 among them, by a joint search of columns and of two of each four, both judged by the
 * least squares of all that is live (joint.c). Arguments as of esp_panel_obs. */
bool esp_joint_takes(const esp_pattern *pattern);
ESP_MUST_CHECK esp_status esp_joint_panels(const esp_algebra *algebra, const esp_pattern *pattern,
                                           int64_t out, int64_t in, const double *inverse,
                                           double *weights, esp_mask **mask, esp_error *error);

#endif
