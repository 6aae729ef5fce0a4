/* Moving the channels of a space: on the axes that it lies on, and in the scores of weights. */
#include "prune/permute_inside.h"

/* ---- what it means for an axis ---- */

/* Whether part k is the first of the space's parts on its axis: q, k and v may be rows of one
 * weight. */
static bool is_first_part(const esp_space *space, int k)
{
    for (int j = 0; j < k; j++) {
        if (space->parts[j].axis == space->parts[k].axis) {
            return false;
        }
    }
    return true;
}

/* order: [count of the axis], new place -> old. */
static void spread(const esp_space *space, int axis, int64_t count, const uint32_t *source_of,
                   uint32_t *order)
{
    for (int64_t i = 0; i < count; i++) {
        order[i] = (uint32_t)i;
    }
    for (int k = 0; k < space->part_count; k++) {
        const esp_space_part *part = &space->parts[k];
        for (int64_t u = 0; part->axis == axis && u < space->channels; u++) {
            for (int64_t copy = 0; copy < part->copies; copy++) {
                order[esp_space_place(part, u, copy)] =
                    (uint32_t)esp_space_place(part, source_of[u], copy);
            }
        }
    }
}

static esp_status reorder_axis(esp_permutation *permutation, const esp_space *space, int index,
                               const uint32_t *source_of, esp_error *error)
{
    esp_context *context = permutation->context;
    esp_axis *axis = &permutation->axes[index];
    size_t count = (size_t)axis->count;
    uint32_t *order = esp_alloc_array(context, 2 * count, sizeof *order);
    if (order == NULL) {
        return esp_fail_memory(error, 2 * count * sizeof *order, "moving channels");
    }
    uint32_t *old = order + count;
    memcpy(old, axis->order, count * sizeof *old);
    spread(space, index, axis->count, source_of, order);
    for (int64_t i = 0; i < axis->count; i++) {
        axis->order[i] = old[order[i]];
    }
    esp_release(context, order);
    return ESP_OK;
}

esp_status esp_space_reorder(esp_permutation *permutation, const esp_space *space,
                             const uint32_t *source_of, esp_error *error)
{
    for (int k = 0; k < space->part_count; k++) {
        if (is_first_part(space, k)) {
            ESP_TRY(reorder_axis(permutation, space, space->parts[k].axis, source_of, error));
        }
    }
    return ESP_OK;
}

/* ---- scores ---- */

typedef struct move_job {
    esp_permute_weight *weight;
    const uint32_t *order;
    float *rows; /* [threads][in] */
} move_job;

static void move_columns(void *user, int64_t begin, int64_t end, int thread)
{
    const move_job *job = user;
    int64_t in = job->weight->in;
    float *old = job->rows + thread * in;
    for (int64_t row = begin; row < end; row++) {
        float *scores = job->weight->scores + row * in;
        memcpy(old, scores, (size_t)in * sizeof *old);
        for (int64_t i = 0; i < in; i++) {
            scores[i] = old[job->order[i]];
        }
    }
}

/* In place, cycle by cycle. done: [out], false; used up. */
static void move_rows(const move_job *job, bool *done)
{
    size_t bytes = (size_t)job->weight->in * sizeof(float);
    float *scores = job->weight->scores, *held = job->rows;
    int64_t in = job->weight->in;
    for (int64_t first = 0; first < job->weight->out; first++) {
        if (done[first] || job->order[first] == first) {
            continue;
        }
        memcpy(held, scores + first * in, bytes);
        int64_t row = first;
        for (; job->order[row] != first; row = job->order[row]) {
            memcpy(scores + row * in, scores + (int64_t)job->order[row] * in, bytes);
            done[row] = true;
        }
        memcpy(scores + row * in, held, bytes);
        done[row] = true;
    }
}

static esp_status move_weight(esp_context *context, esp_permute_weight *weight, bool columns,
                              const uint32_t *order, esp_error *error)
{
    size_t row_floats = (size_t)context->threads * (size_t)weight->in;
    move_job job = {weight, order, esp_alloc_array(context, row_floats, sizeof *job.rows)};
    bool *done = esp_alloc_array(context, (size_t)weight->out, sizeof *done);
    esp_status status = ESP_OK;
    if (job.rows == NULL || done == NULL) {
        status = esp_fail_memory(error, row_floats * sizeof *job.rows, "moving channels");
    } else if (columns) {
        esp_parallel_for(context, weight->out, 1 + 65536 / ESP_MAX(1, weight->in), move_columns,
                         &job);
    } else {
        move_rows(&job, done);
    }
    esp_release(context, job.rows);
    esp_release(context, done);
    return status;
}

esp_status esp_weights_reorder(esp_context *context, esp_permute_weight *weights, int64_t count,
                               const esp_space *space, const esp_permutation *permutation,
                               const uint32_t *source_of, esp_error *error)
{
    esp_status status = ESP_OK;
    for (int k = 0; k < space->part_count && status == ESP_OK; k++) {
        int axis = space->parts[k].axis;
        int64_t length = is_first_part(space, k) ? permutation->axes[axis].count : 0;
        uint32_t *order = esp_alloc_array(context, (size_t)length, sizeof *order);
        if (order == NULL) {
            return esp_fail_memory(error, (size_t)length * sizeof *order, "moving channels");
        }
        spread(space, length > 0 ? axis : -1, length, source_of, order);
        for (int64_t i = 0; i < count && length > 0 && status == ESP_OK; i++) {
            if (weights[i].rows == axis) {
                status = move_weight(context, &weights[i], false, order, error);
            }
            if (weights[i].columns == axis && status == ESP_OK) {
                status = move_weight(context, &weights[i], true, order, error);
            }
        }
        esp_release(context, order);
    }
    return status;
}
