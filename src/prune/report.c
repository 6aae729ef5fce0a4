/* What a mask keeps: counts, energy, and the size of the space it was chosen from. Energies are
 * summed per row in eight lanes, then row by row, so they do not depend on threads or vectors.
 * Weights that are not finite are left out of both energies. */
#include <float.h>
#include <math.h>

#include "prune/select.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

#define LANES 8

typedef struct row_energy {
    double kept, all;
} row_energy;

typedef struct energy_job {
    const esp_prune_job *prune;
    row_energy *rows; /* [out] */
} energy_job;

typedef struct lane_sums {
    double all[LANES], kept[LANES];
} lane_sums;

static void add_energies(lane_sums *sums, const float weights[64], uint64_t live)
{
    for (int i = 0; i < 64; i++) {
        double w = (double)weights[i], energy = fabs(w) <= (double)FLT_MAX ? w * w : 0;
        sums->all[i % LANES] += energy;
        sums->kept[i % LANES] += live >> i & 1 ? energy : 0;
    }
}

#if defined(__x86_64__) && defined(__GNUC__)
/* Bit for bit the same sums. */
static __attribute__((target("avx512f"))) void
add_energies_avx512(lane_sums *sums, const float weights[64], uint64_t live)
{
    __m512d all = _mm512_loadu_pd(sums->all), kept = _mm512_loadu_pd(sums->kept);
    for (int i = 0; i < 64; i += LANES) {
        __m512d w = _mm512_cvtps_pd(_mm256_loadu_ps(weights + i));
        __mmask8 finite =
            _mm512_cmp_pd_mask(_mm512_abs_pd(w), _mm512_set1_pd((double)FLT_MAX), _CMP_LE_OQ);
        __m512d energy = _mm512_maskz_mul_pd(finite, w, w);
        all = _mm512_add_pd(all, energy);
        kept = _mm512_mask_add_pd(kept, (__mmask8)(live >> i), kept, energy);
    }
    _mm512_storeu_pd(sums->all, all);
    _mm512_storeu_pd(sums->kept, kept);
}
#endif

static void add_energies_best(const esp_context *context, lane_sums *sums, const float weights[64],
                              uint64_t live)
{
#if defined(__x86_64__) && defined(__GNUC__)
    if (context->cpu.level >= ESP_CPU_AVX512) {
        add_energies_avx512(sums, weights, live);
        return;
    }
#endif
    (void)context;
    add_energies(sums, weights, live);
}

static row_energy energy_of_row(const esp_prune_job *prune, int64_t row)
{
    lane_sums sums = {0};
    float weights[64];
    size_t width = esp_dtype_bytes(prune->dense->dtype);
    const char *data = (const char *)prune->dense->data + (size_t)(row * prune->in) * width;
    const uint64_t *words = esp_mask_row(prune->mask, row);
    for (int64_t first = 0; first < prune->in; first += 64) {
        int64_t count = ESP_MIN(64, prune->in - first);
        if (count < 64) {
            memset(weights, 0, sizeof weights);
        }
        esp_widen(prune->dense->dtype, data + (size_t)first * width, count, weights);
        add_energies_best(prune->context, &sums, weights, words[first / 64]);
    }
    row_energy sum = {0};
    for (int l = 0; l < LANES; l++) {
        sum.all += sums.all[l];
        sum.kept += sums.kept[l];
    }
    return sum;
}

static void sum_rows(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const energy_job *job = user;
    for (int64_t row = begin; row < end; row++) {
        job->rows[row] = energy_of_row(job->prune, row);
    }
}

static esp_status retained_energy(const esp_prune_job *prune, double *share, esp_error *error)
{
    size_t rows = (size_t)prune->out;
    energy_job job = {prune, esp_alloc_array(prune->context, rows, sizeof *job.rows)};
    if (job.rows == NULL) {
        return esp_fail_memory(error, rows * sizeof *job.rows, "row energies");
    }
    esp_parallel_for(prune->context, prune->out, 1 + 65536 / ESP_MAX(1, prune->in), sum_rows, &job);
    double all = 0, kept = 0;
    for (size_t i = 0; i < rows; i++) {
        all += job.rows[i].all;
        kept += job.rows[i].kept;
    }
    esp_release(prune->context, job.rows);
    *share = all > 0 ? kept / all : 1;
    return ESP_OK;
}

/* ln of the choices of columns and of two per row, over panels and groups; a remainder group of r
 * columns offers C(r, min(4, r)) and C(min(4, r), 2) a row. */
static double log_choices(int64_t out, int64_t panels, int64_t width)
{
    double r = (double)ESP_MIN(width, 4);
    double columns = 0;
    for (int64_t i = 0; i < 4 && width > 4; i++) {
        columns += log((double)(width - i) / (double)(i + 1));
    }
    double pairs = r > 2 ? r * (r - 1) / 2 : 1;
    return (double)panels * columns + (double)out * log(pairs);
}

double esp_pattern_log_diversity(const esp_pattern *pattern, int64_t out, int64_t in)
{
    bool is_2_4 = esp_pattern_is_2_4(pattern);
    if (!is_2_4 && (pattern->kind != ESP_PATTERN_PANEL || pattern->m == 0)) {
        return (double)NAN;
    }
    int64_t v = is_2_4 ? 1 : esp_pattern_panel_rows(pattern, out), m = is_2_4 ? 4 : pattern->m;
    int64_t panels = esp_ceil_div(out, v), rest = in % m;
    double whole = (double)(in / m) * log_choices(out, panels, m);
    return whole + (rest > 0 ? log_choices(out, panels, rest) : 0);
}

static double log_diversity(const esp_prune_job *prune)
{
    return esp_pattern_is_2_4(prune->pattern)
               ? (double)NAN
               : esp_pattern_log_diversity(prune->pattern, prune->out, prune->in);
}

esp_status esp_mask_report_of(esp_context *context, const esp_tensor *dense,
                              const esp_pattern *pattern, esp_mask *mask, esp_mask_report *report,
                              esp_error *error)
{
    const esp_prune_job job = {.context = context,
                               .dense = dense,
                               .pattern = pattern,
                               .out = dense->shape[0],
                               .in = dense->shape[1],
                               .mask = mask};
    return esp_mask_judge(&job, report, error);
}

esp_status esp_mask_judge(const esp_prune_job *prune, esp_mask_report *report, esp_error *error)
{
    double share = 1;
    ESP_TRY(retained_energy(prune, &share, error));
    int64_t weights = prune->out * prune->in, kept = esp_mask_count(prune->mask);
    *report = (esp_mask_report){
        .weights = weights,
        .kept = kept,
        .sparsity = weights > 0 ? 1 - (double)kept / (double)weights : 0,
        .retained_energy = share,
        .log_mask_diversity = log_diversity(prune),
    };
    return ESP_OK;
}
