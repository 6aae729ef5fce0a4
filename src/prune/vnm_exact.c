/* The best four columns of a group, exactly: every quadruple's retained score, summed over the rows
 * of the panel (VENOM, arXiv 2310.02065, searches the same space).
 *
 * A row retains the two largest of a quadruple. Split as two pairs whose larger and smaller scores
 * are known, that is top = max(hi1, hi2) and second = max(min(hi1, hi2), max(lo1, lo2)): four
 * comparisons. Eight rows go side by side; lane l sums rows l, l + 8, ... and lanes are added in
 * order, so the sums do not depend on how wide the machine's vectors are. Pairs are in
 * lexicographic order: those that may follow (a, b) are a tail of the list. */
#include "prune/select.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

#define LANES 8
#define MAX_PAIRS 45       /* of 10 columns */
#define MAX_QUADRUPLES 210 /* of 10 columns */

typedef struct search_state {
    _Alignas(64) double score[ESP_EXACT_MAX_WIDTH][LANES];
    double hi[MAX_PAIRS][LANES], lo[MAX_PAIRS][LANES];
    double retained[MAX_QUADRUPLES][LANES];
} search_state;

static inline double larger(double a, double b)
{
    return a > b ? a : b;
}

static inline double smaller(double a, double b)
{
    return a < b ? a : b;
}

static inline __attribute__((always_inline)) void add_rows_body(search_state *state, int width)
{
    int pairs = 0;
    for (int a = 0; a < width; a++) {
        for (int b = a + 1; b < width; b++, pairs++) {
            for (int l = 0; l < LANES; l++) {
                state->hi[pairs][l] = larger(state->score[a][l], state->score[b][l]);
                state->lo[pairs][l] = smaller(state->score[a][l], state->score[b][l]);
            }
        }
    }
    int first = 0, quadruple = 0;
    for (int a = 0; a < width; a++) {
        for (int b = a + 1; b < width; b++, first++) {
            int left = width - 1 - b; /* columns after b */
            for (int next = pairs - left * (left - 1) / 2; next < pairs; next++, quadruple++) {
                double *sum = state->retained[quadruple];
                for (int l = 0; l < LANES; l++) {
                    double hi1 = state->hi[first][l], hi2 = state->hi[next][l];
                    double low = larger(state->lo[first][l], state->lo[next][l]);
                    sum[l] += larger(hi1, hi2) + larger(smaller(hi1, hi2), low);
                }
            }
        }
    }
}

static void add_rows(search_state *state, int width)
{
    if (width == 8) {
        add_rows_body(state, 8);
    } else {
        add_rows_body(state, width);
    }
}

#if defined(__x86_64__) && defined(__GNUC__)
/* The same operations on wider registers: bit for bit the same sums. */
static __attribute__((target("avx2"))) void add_rows_avx2(search_state *state, int width)
{
    if (width == 8) {
        add_rows_body(state, 8);
    } else {
        add_rows_body(state, width);
    }
}

/* gcc would rather gather along the pairs than keep eight lanes together: said by hand. A maximum
 * of (a, b) is `larger`, in all cases. */
static inline __attribute__((always_inline, target("avx512f"))) void
add_rows_body_avx512(search_state *state, int width)
{
    int pairs = 0, first = 0, quadruple = 0;
    for (int a = 0; a < width; a++) {
        __m512d left = _mm512_loadu_pd(state->score[a]);
        for (int b = a + 1; b < width; b++, pairs++) {
            __m512d right = _mm512_loadu_pd(state->score[b]);
            _mm512_storeu_pd(state->hi[pairs], _mm512_max_pd(left, right));
            _mm512_storeu_pd(state->lo[pairs], _mm512_min_pd(left, right));
        }
    }
    for (int a = 0; a < width; a++) {
        for (int b = a + 1; b < width; b++, first++) {
            int left = width - 1 - b;
            __m512d hi1 = _mm512_loadu_pd(state->hi[first]);
            __m512d lo1 = _mm512_loadu_pd(state->lo[first]);
            for (int next = pairs - left * (left - 1) / 2; next < pairs; next++, quadruple++) {
                __m512d hi2 = _mm512_loadu_pd(state->hi[next]);
                __m512d low = _mm512_max_pd(lo1, _mm512_loadu_pd(state->lo[next]));
                __m512d second = _mm512_max_pd(_mm512_min_pd(hi1, hi2), low);
                __m512d two = _mm512_add_pd(_mm512_max_pd(hi1, hi2), second);
                double *sum = state->retained[quadruple];
                _mm512_storeu_pd(sum, _mm512_add_pd(_mm512_loadu_pd(sum), two));
            }
        }
    }
}

static __attribute__((target("avx512f"))) void add_rows_avx512(search_state *state, int width)
{
    if (width == 8) {
        add_rows_body_avx512(state, 8);
    } else {
        add_rows_body_avx512(state, width);
    }
}
#endif

static void add_rows_best(const esp_context *context, search_state *state, int width)
{
#if defined(__x86_64__) && defined(__GNUC__)
    if (context->cpu.level >= ESP_CPU_AVX512) {
        add_rows_avx512(state, width);
        return;
    }
    if (context->cpu.level >= ESP_CPU_AVX2) {
        add_rows_avx2(state, width);
        return;
    }
#endif
    (void)context;
    add_rows(state, width);
}

/* Scores of up to eight rows, transposed; lanes without a row score 0. */
static void load_rows(const esp_prune_job *job, int64_t row, int64_t rows, int64_t column,
                      int width, search_state *state)
{
    double scores[ESP_EXACT_MAX_WIDTH];
    for (int l = 0; l < LANES; l++) {
        if (l < rows) {
            esp_score_segment(job, row + l, column, width, scores);
        }
        for (int c = 0; c < width; c++) {
            state->score[c][l] = l < rows ? scores[c] : 0;
        }
    }
}

static double sum_lanes(const double lanes[LANES])
{
    double sum = 0;
    for (int l = 0; l < LANES; l++) {
        sum += lanes[l];
    }
    return sum;
}

void esp_exact_columns(const esp_prune_job *job, int64_t row, int64_t rows, int64_t column,
                       int width, uint32_t kept[4])
{
    search_state state;
    memset(state.retained, 0, sizeof state.retained);
    for (int64_t at = 0; at < rows; at += LANES) {
        load_rows(job, row + at, rows - at, column, width, &state);
        add_rows_best(job->context, &state, width);
    }
    double best = -1;
    int quadruple = 0;
    for (int a = 0; a < width; a++) {
        for (int b = a + 1; b < width; b++) {
            for (int c = b + 1; c < width; c++) {
                for (int d = c + 1; d < width; d++, quadruple++) {
                    double retained = sum_lanes(state.retained[quadruple]);
                    if (retained > best) {
                        best = retained;
                        kept[0] = (uint32_t)a, kept[1] = (uint32_t)b;
                        kept[2] = (uint32_t)c, kept[3] = (uint32_t)d;
                    }
                }
            }
        }
    }
}
