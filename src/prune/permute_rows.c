/* What a row is worth in a panel: what the panel's present lists keep of it, a bound from below of
 * what new lists will. Sixteen rows go side by side, laid down transposed, so that every list is
 * read once for all of them and nothing is gathered. */
#include "prune/permute_inside.h"

#define LANES 16
#define QUADS_AT_ONCE 64 /* summed in f32 before doubles take over */

typedef struct row_job {
    const esp_use *use;
    const esp_context *context;
    int64_t unit;
    const uint32_t *units, *targets;
    int64_t count, target_count;
    float *lanes;   /* [threads][in + 1][LANES]: rows, and zeros for padding */
    double *values; /* [threads][panels][LANES]; a negative first one: not known yet */
    double *benefit;
} row_job;

/* The two largest of each four listed columns, summed; `zero` stands for padding. */
static inline __attribute__((always_inline)) void sum_quads_body(const float *lanes,
                                                                 const uint32_t *columns,
                                                                 int64_t kept, int64_t zero,
                                                                 double values[LANES])
{
    for (int l = 0; l < LANES; l++) {
        values[l] = 0;
    }
    for (int64_t begin = 0; begin < kept; begin += 4 * QUADS_AT_ONCE) {
        float sums[LANES] = {0};
        int64_t end = ESP_MIN(kept, begin + 4 * QUADS_AT_ONCE);
        for (int64_t i = begin; i < end; i += 4) {
            const float *row[4];
            for (int k = 0; k < 4; k++) {
                int64_t column = columns[i + k] != UINT32_MAX ? (int64_t)columns[i + k] : zero;
                row[k] = lanes + column * LANES;
            }
            for (int l = 0; l < LANES; l++) {
                float a = row[0][l], b = row[1][l], c = row[2][l], d = row[3][l];
                float high1 = a > b ? a : b, low1 = a > b ? b : a;
                float high2 = c > d ? c : d, low2 = c > d ? d : c;
                float low = low1 > low2 ? low1 : low2, least = high1 > high2 ? high2 : high1;
                sums[l] += (high1 > high2 ? high1 : high2) + (least > low ? least : low);
            }
        }
        for (int l = 0; l < LANES; l++) {
            values[l] += (double)sums[l];
        }
    }
}

static void sum_quads(const float *lanes, const uint32_t *columns, int64_t kept, int64_t zero,
                      double values[LANES])
{
    sum_quads_body(lanes, columns, kept, zero, values);
}

#if defined(__x86_64__) && defined(__GNUC__)
/* The same sums on wider registers. */
static __attribute__((target("avx2"))) void sum_quads_avx2(const float *lanes,
                                                           const uint32_t *columns, int64_t kept,
                                                           int64_t zero, double values[LANES])
{
    sum_quads_body(lanes, columns, kept, zero, values);
}

static __attribute__((target("avx512f,prefer-vector-width=512"))) void
sum_quads_avx512(const float *lanes, const uint32_t *columns, int64_t kept, int64_t zero,
                 double values[LANES])
{
    sum_quads_body(lanes, columns, kept, zero, values);
}
#endif

static void sum_quads_best(const esp_context *context, const float *lanes, const uint32_t *columns,
                           int64_t kept, int64_t zero, double values[LANES])
{
#if defined(__x86_64__) && defined(__GNUC__)
    if (context->cpu.level >= ESP_CPU_AVX512) {
        sum_quads_avx512(lanes, columns, kept, zero, values);
        return;
    }
    if (context->cpu.level >= ESP_CPU_AVX2) {
        sum_quads_avx2(lanes, columns, kept, zero, values);
        return;
    }
#endif
    (void)context;
    sum_quads(lanes, columns, kept, zero, values);
}

/* Rows of up to LANES units, `inner` into each; the lanes behind them stay as they are. */
static void lay_down(const row_job *job, int64_t first, int64_t inner, int64_t copy, float *lanes)
{
    const esp_permute_weight *weight = job->use->panels->weight;
    for (int64_t l = 0; l < ESP_MIN(LANES, job->count - first); l++) {
        int64_t row = esp_space_place(job->use->part, job->units[first + l] + inner, copy);
        const float *scores = weight->scores + row * weight->in;
        for (int64_t i = 0; i < weight->in; i++) {
            lanes[i * LANES + l] = scores[i];
        }
    }
}

static void add_lanes(const row_job *job, int64_t first, int64_t inner, int64_t copy,
                      const float *lanes, double *values)
{
    const esp_panels *panels = job->use->panels;
    int64_t used = ESP_MIN(LANES, job->count - first);
    for (int64_t panel = 0; panel < panels->panels; panel++) {
        values[panel * LANES] = -1;
    }
    for (int64_t j = 0; j < job->target_count; j++) {
        int64_t panel = esp_space_place(job->use->part, job->targets[j] + inner, copy) / panels->v;
        double *of_panel = values + panel * LANES;
        if (of_panel[0] < 0) {
            sum_quads_best(job->context, lanes, panels->columns + panel * panels->kept,
                           panels->kept, panels->weight->in, of_panel);
        }
        for (int64_t l = 0; l < used; l++) {
            job->benefit[(first + l) * job->target_count + j] += of_panel[l];
        }
    }
}

static void add_units(void *user, int64_t begin, int64_t end, int thread)
{
    const row_job *job = user;
    const esp_panels *panels = job->use->panels;
    float *lanes = job->lanes + thread * (panels->weight->in + 1) * LANES;
    double *values = job->values + thread * panels->panels * LANES;
    for (int64_t piece = begin; piece < end; piece++) {
        for (int64_t copy = 0; copy < job->use->part->copies; copy++) {
            for (int64_t inner = 0; inner < job->unit; inner++) {
                lay_down(job, piece * LANES, inner, copy, lanes);
                add_lanes(job, piece * LANES, inner, copy, lanes, values);
            }
        }
    }
}

esp_status esp_add_row_values(esp_context *context, const esp_use *use, int64_t unit,
                              const uint32_t *units, int64_t count, const uint32_t *targets,
                              int64_t target_count, double *benefit, esp_error *error)
{
    size_t threads = (size_t)context->threads, in = (size_t)use->panels->weight->in;
    size_t lanes = threads * (in + 1) * LANES;
    size_t values = threads * (size_t)use->panels->panels * LANES;
    row_job job = {.use = use,
                   .context = context,
                   .unit = unit,
                   .units = units,
                   .targets = targets,
                   .count = count,
                   .target_count = target_count,
                   .lanes = esp_alloc_array(context, lanes, sizeof *job.lanes),
                   .values = esp_alloc_array(context, values, sizeof *job.values),
                   .benefit = benefit};
    esp_status status = ESP_OK;
    if (job.lanes == NULL || job.values == NULL) {
        status = esp_fail_memory(error, lanes * sizeof *job.lanes, "scores");
    } else {
        esp_parallel_for(context, esp_ceil_div(count, LANES), 1, add_units, &job);
    }
    esp_release(context, job.lanes);
    esp_release(context, job.values);
    return status;
}
