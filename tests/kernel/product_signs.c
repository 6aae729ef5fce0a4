/* All rows and tokens of a product too large to compute whole beside a kernel. With a random sign
 * for each row, the signed sum of some rows of Y is one row of weights times X: the signed sum of
 * those rows of W. That is as many times less work as there are rows in the sum, and a row that is
 * wrong stays in it, whatever its sign.
 *
 * What Y may be off by: a sum of n products in f32 is within (n + 2) * 2^-24 * sum |w||x|, and
 * sum |w||x| is at most the length of the row of W times that of the token (Cauchy and Schwarz);
 * scale, bias and residual add a rounding each, and then the result is rounded. Signs know nothing
 * of these errors, so the signed sum of errors of up to b each is larger than 7 * sqrt(sum b^2)
 * with a probability of 2 e^-24.5 (Hoeffding) - and never than sum b, which is less for few rows.
 * Sums here are in double, 2^29 times finer. */
#include "product.h"

/* ---- operands ---- */

/* [in][tokens], exact. */
static float *plain_x(const product *p)
{
    const esp_matmul_problem *problem = &p->problem;
    bool by_feature = problem->x_layout == ESP_FEATURE_MAJOR;
    float *x = malloc((size_t)(problem->in_features * problem->tokens) * sizeof *x);
    for (int64_t f = 0; f < problem->in_features; f++) {
        for (int64_t t = 0; t < problem->tokens; t++) {
            x[f * problem->tokens + t] =
                esp_weight_at(problem->act_type, p->x, element_at(by_feature, p->x_stride, f, t));
        }
    }
    return x;
}

static double *token_lengths(const product *p, const float *x)
{
    int64_t tokens = p->problem.tokens;
    double *lengths = malloc((size_t)tokens * sizeof *lengths);
    for (int64_t t = 0; t < tokens; t++) {
        double square = 0;
        for (int64_t f = 0; f < p->problem.in_features; f++) {
            square += (double)x[f * tokens + t] * (double)x[f * tokens + t];
        }
        lengths[t] = sqrt(square);
    }
    return lengths;
}

static double scale_of(const product *p, int64_t o)
{
    return (p->problem.epilogue & ESP_EP_SCALE) != 0 ? (double)p->scale[o] : 1;
}

/* What is added to the scaled sum. */
static double bias_of(const product *p, int64_t o)
{
    return (p->problem.epilogue & ESP_EP_BIAS) != 0 ? (double)p->bias[o] : 0;
}

static double residual_of(const product *p, int64_t o, int64_t t)
{
    bool adds = (p->problem.epilogue & ESP_EP_RESIDUAL) != 0;
    return adds ? (double)p->residual[o * p->problem.tokens + t] : 0;
}

/* ---- the signed rows of weights ---- */

/* Adds row o to `sum`, and notes what of its size a result may be off by. */
static void add_row(signed_sums *made, const product *p, const esp_tensor *dense, int64_t o,
                    double *sum)
{
    int64_t in = p->problem.in_features;
    double scale = scale_of(p, o), square = 0, roundings = 2 + 3; /* scale, bias, residual */
    for (int64_t f = 0; f < in; f++) {
        double w = (double)esp_weight_at(dense->dtype, dense->data, o * in + f);
        sum[f] += made->signs[o] * scale * w;
        square += w * w;
        roundings += w != 0;
    }
    made->sizes[o] = fabs(scale) * sqrt(square);
    made->errors[o] = roundings * 0x1p-24;
}

static void expect_rows(signed_sums *made, const product *p, const esp_tensor *dense,
                        const float *x, int64_t block)
{
    int64_t in = p->problem.in_features, tokens = p->problem.tokens;
    int64_t first = block * made->rows, end = ESP_MIN(p->out_rows, first + made->rows);
    double *sum = calloc((size_t)in, sizeof *sum), *to = made->expected + block * tokens;
    for (int64_t o = first; o < end; o++) {
        add_row(made, p, dense, o, sum);
        for (int64_t t = 0; t < tokens; t++) {
            to[t] += made->signs[o] * (bias_of(p, o) + residual_of(p, o, t));
        }
    }
    for (int64_t f = 0; f < in; f++) {
        for (int64_t t = 0; t < tokens; t++) {
            to[t] += sum[f] * (double)x[f * tokens + t];
        }
    }
    free(sum);
}

signed_sums signed_sums_make(test_run *run, const product *p, double work)
{
    const esp_matmul_problem *problem = &p->problem;
    int64_t out = problem->out_features, in = problem->in_features, tokens = problem->tokens;
    double rows = ceil((double)out * (double)in * (double)tokens / work);
    signed_sums made = {.rows = ESP_MIN(out, (int64_t)rows)};
    const unsigned linear = ESP_EP_SCALE | ESP_EP_BIAS | ESP_EP_RESIDUAL;
    CHECK((problem->epilogue & ~linear) == 0);
    made.blocks = esp_ceil_div(out, made.rows);
    made.signs = malloc((size_t)out * sizeof *made.signs);
    made.sizes = malloc((size_t)out * sizeof *made.sizes);
    made.errors = malloc((size_t)out * sizeof *made.errors);
    made.expected = calloc((size_t)(made.blocks * tokens), sizeof *made.expected);
    esp_random random;
    esp_random_seed(&random, test_seed(run) ^ 0x51675);
    for (int64_t o = 0; o < out; o++) {
        made.signs[o] = esp_random_below(&random, 2) == 0 ? 1 : -1;
    }
    esp_tensor dense = {0};
    CHECK_OK(esp_tensor_create(p->context, problem->weight_type, 2, (const int64_t[]){out, in},
                               &dense, error));
    CHECK_OK(esp_sparse_decode(p->sparse, &dense, error));
    float *x = plain_x(p);
    made.lengths = token_lengths(p, x);
    for (int64_t block = 0; block < made.blocks; block++) {
        expect_rows(&made, p, &dense, x, block);
    }
    free(x);
    esp_tensor_free(p->context, &dense);
    return made;
}

void signed_sums_free(signed_sums *made)
{
    free(made->signs);
    free(made->sizes);
    free(made->errors);
    free(made->lengths);
    free(made->expected);
}

/* ---- comparing ---- */

/* Signed sums of results, and of what they may be off by, for each token. */
typedef struct block_sums {
    double *have, *bounds, *squares;
} block_sums;

static void add_results(const signed_sums *made, const product *p, const float *actual, int64_t o,
                        block_sums *to)
{
    int64_t tokens = p->problem.tokens;
    esp_dtype type = p->problem.out_type;
    double relative = 1.01 * half_step(type, 1), smallest = fmax(half_step(type, 0), 0x1p-150);
    for (int64_t t = 0; t < tokens; t++) {
        double have = (double)actual[o * tokens + t];
        double added = fabs(bias_of(p, o)) + fabs(residual_of(p, o, t));
        double bound = made->errors[o] * (made->sizes[o] * made->lengths[t] + added) +
                       fmax(relative * fabs(have), smallest);
        to->have[t] += made->signs[o] * have;
        to->bounds[t] += bound;
        to->squares[t] += bound * bound;
    }
}

signed_misfit signed_sums_compare(const signed_sums *made, const product *p, const float *actual)
{
    int64_t tokens = p->problem.tokens;
    size_t bytes = (size_t)tokens * sizeof(double);
    signed_misfit found = {0};
    block_sums sums = {malloc(bytes), malloc(bytes), malloc(bytes)};
    for (int64_t block = 0; block < made->blocks; block++) {
        int64_t first = block * made->rows, end = ESP_MIN(p->out_rows, first + made->rows);
        memset(sums.have, 0, bytes);
        memset(sums.bounds, 0, bytes);
        memset(sums.squares, 0, bytes);
        for (int64_t o = first; o < end; o++) {
            add_results(made, p, actual, o, &sums);
        }
        for (int64_t t = 0; t < tokens; t++) {
            double bound = fmin(sums.bounds[t], 7 * sqrt(sums.squares[t]));
            double excess = fabs(sums.have[t] - made->expected[block * tokens + t]) / bound;
            if (!(excess <= found.excess) && !isnan(found.excess)) { /* NaN too, and it stays */
                found = (signed_misfit){excess, first, end - 1, t};
            }
        }
    }
    free(sums.have);
    free(sums.bounds);
    free(sums.squares);
    return found;
}

void check_signed_sums(test_run *run, const signed_sums *made, const product *p,
                       const float *actual)
{
    signed_misfit found = signed_sums_compare(made, p, actual);
    if (!(found.excess <= 1)) {
        test_fail(run, __FILE__, __LINE__,
                  "rows %lld to %lld token %lld: their signed sum is off by %.3g of its bound",
                  (long long)found.first, (long long)found.last, (long long)found.token,
                  found.excess);
    }
}
