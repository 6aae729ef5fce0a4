/* Where patches lie: position embeddings for another grid than the trained one. */
#include <math.h>

#include "nn/nn.h"

/* Keys' cubic convolution with a = -0.75, not antialiased, for a place between samples 1 and 2. */
static void cubic(double t, double weights[4])
{
    const double a = -0.75;
    for (int i = 0; i < 4; i++) {
        double x = fabs(t + 1 - i);
        weights[i] = x <= 1 ? ((a + 2) * x - (a + 3)) * x * x + 1
                            : ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
    }
}

/* Centre of sample i of `to`, in samples of `from` (corners are not aligned); four neighbours, the
 * edge repeated. */
static void taps(int64_t i, int64_t from, int64_t to, int64_t places[4], double weights[4])
{
    double at = ((double)i + 0.5) * ((double)from / (double)to) - 0.5;
    int64_t low = (int64_t)floor(at);
    cubic(at - (double)low, weights);
    for (int k = 0; k < 4; k++) {
        places[k] = ESP_MIN(ESP_MAX(low - 1 + k, 0), from - 1);
    }
}

void esp_positions_resize(const float *from, int64_t side, int64_t features, int64_t rows,
                          int64_t columns, float *to, int64_t stride)
{
    for (int64_t row = 0; row < rows; row++) {
        int64_t down[4], right[4];
        double y_weights[4], x_weights[4];
        taps(row, side, rows, down, y_weights);
        for (int64_t column = 0; column < columns; column++) {
            taps(column, side, columns, right, x_weights);
            for (int64_t f = 0; f < features; f++) {
                double sum = 0;
                for (int i = 0; i < 4; i++) {
                    for (int k = 0; k < 4; k++) {
                        sum += y_weights[i] * x_weights[k] *
                               (double)from[(down[i] * side + right[k]) * features + f];
                    }
                }
                to[f * stride + row * columns + column] = (float)sum;
            }
        }
    }
}
