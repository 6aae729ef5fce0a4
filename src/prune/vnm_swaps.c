/* Four columns of a group by their summed scores (Zhao et al., "Beyond 2:4", arXiv 2410.16135), and
 * an improvement of it: while exchanging one kept column for a dropped one raises what the rows
 * retain after 2-of-4, the best such exchange is made.
 *
 * With three columns fixed, a row retains a + max(b, s) when s is the fourth's score and a >= b are
 * the larger two of the three. So one pass over the rows values all 4 * (width - 4) exchanges. A
 * set's value is the same double however it was reached, hence strict gains end. */
#include "prune/select.h"

static double larger(double a, double b)
{
    return a > b ? a : b;
}

/* Four largest sums, equal ones: lower column; ascending. */
static void take_four_largest(const double *sums, int width, uint32_t kept[4])
{
    int count = 0;
    for (int c = 0; c < width && count < 4; c++) {
        int above = 0;
        for (int other = 0; other < width && above < 4; other++) {
            above += sums[other] > sums[c] || (sums[other] == sums[c] && other < c);
        }
        if (above < 4) {
            kept[count++] = (uint32_t)c;
        }
    }
}

static void sum_columns(const esp_prune_job *job, int64_t row, int64_t rows, int64_t column,
                        int width, double *scores, double *sums)
{
    memset(sums, 0, (size_t)width * sizeof *sums);
    for (int64_t r = 0; r < rows; r++) {
        esp_score_segment(job, row + r, column, width, scores);
        for (int c = 0; c < width; c++) {
            sums[c] += scores[c];
        }
    }
}

/* values[k][c]: what is retained when kept[k] is exchanged for c; c = kept[k] values the set as is.
 */
static void value_exchanges(const esp_prune_job *job, int64_t row, int64_t rows, int64_t column,
                            int width, const uint32_t kept[4], double *scores, double *values)
{
    memset(values, 0, 4 * (size_t)width * sizeof *values);
    for (int64_t r = 0; r < rows; r++) {
        esp_score_segment(job, row + r, column, width, scores);
        for (int k = 0; k < 4; k++) {
            double x = scores[kept[(k + 1) % 4]], y = scores[kept[(k + 2) % 4]];
            double z = scores[kept[(k + 3) % 4]];
            double xy = larger(x, y), a = larger(xy, z);
            double b = larger(x < y ? x : y, xy < z ? xy : z);
            double *value = values + (ptrdiff_t)k * width;
            for (int c = 0; c < width; c++) {
                value[c] += a + larger(b, scores[c]);
            }
        }
    }
}

static bool is_kept(const uint32_t kept[4], uint32_t column)
{
    return kept[0] == column || kept[1] == column || kept[2] == column || kept[3] == column;
}

/* Makes the best exchange that gains; equal ones: lower kept column, then lower new one. */
static bool exchange_best(const double *values, int width, uint32_t kept[4])
{
    double best = values[kept[0]];
    int out = -1;
    uint32_t in = 0;
    for (int k = 0; k < 4; k++) {
        for (uint32_t c = 0; c < (uint32_t)width; c++) {
            double value = values[(ptrdiff_t)k * width + c];
            if (value > best && !is_kept(kept, c)) {
                best = value;
                out = k;
                in = c;
            }
        }
    }
    if (out < 0) {
        return false;
    }
    kept[out] = in;
    for (int i = 1; i < 4; i++) { /* ascending again */
        for (int j = i; j > 0 && kept[j - 1] > kept[j]; j--) {
            uint32_t held = kept[j];
            kept[j] = kept[j - 1];
            kept[j - 1] = held;
        }
    }
    return true;
}

void esp_greedy_columns(const esp_prune_job *job, int64_t row, int64_t rows, int64_t column,
                        int width, bool swaps, double *scratch, uint32_t kept[4])
{
    double *scores = scratch, *sums = scratch + width, *values = scratch + 2 * (ptrdiff_t)width;
    sum_columns(job, row, rows, column, width, scores, sums);
    take_four_largest(sums, width, kept);
    while (swaps) {
        value_exchanges(job, row, rows, column, width, kept, scores, values);
        swaps = exchange_best(values, width, kept);
    }
}
