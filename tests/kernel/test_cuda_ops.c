/* What a model needs on the GPU besides products and attention, against the reference: norms,
 * gates, conversions, vectors of texts; tokens: test_cuda_tokens.c, places: test_cuda_places.c.
 * Bit for bit where numbers only move or are rounded once after sums in one order, within derived
 * bounds elsewhere; sizes that divide nothing, rows tight, aligned and neither, poison in every
 * gap, each launch twice. Without a GPU every case is skipped. TEST_ROUNDS sets how many random
 * problems are drawn. */
#ifdef ESP_HAVE_CUDA
#include "gpu_bed.h"

/* ---- norms ---- */

static int go_layer_norm(const void *norm)
{
    return gpu_layer_norm(norm, NULL);
}

static int go_rms_norm(const void *norm)
{
    return gpu_rms_norm(norm, NULL);
}

/* Relative to what is added up: a thread's rows one after the other, then pairs, then a few
 * operations on the way to y. */
static double norm_depth(int64_t features)
{
    return ((double)features / 64 + 40) * 0x1p-24;
}

static double *norm_slack(const matrix *x, const float *weight, const float *bias, double eps,
                          const float *expected)
{
    double *slack = malloc((size_t)(x->rows * x->columns + 1) * sizeof *slack);
    double depth = norm_depth(x->rows);
    for (int64_t t = 0; t < x->columns; t++) {
        double sum = 0, squares = 0, most = 0;
        for (int64_t f = 0; f < x->rows; f++) {
            double v = (double)matrix_get(x, f, t);
            sum += v;
            most = fmax(most, fabs(v));
        }
        double mean = bias != NULL ? sum / (double)x->rows : 0;
        for (int64_t f = 0; f < x->rows; f++) {
            double apart = (double)matrix_get(x, f, t) - mean;
            squares += apart * apart;
        }
        double factor = 1 / sqrt(squares / (double)x->rows + eps);
        double shift = bias != NULL ? most * factor : 0; /* of the mean, in deviations */
        for (int64_t f = 0; f < x->rows; f++) {
            double added = bias != NULL ? fabs((double)bias[f]) : 0, w = fabs((double)weight[f]);
            double bare = fabs((double)expected[f * x->columns + t]) + added;
            slack[f * x->columns + t] = 2 * depth * (w * shift + bare * (1 + shift) + added);
        }
    }
    return slack;
}

static void compare_norm(bed *b, bool mean, matrix *x, bool in_place, float eps)
{
    matrix weight = bed_table(b, ESP_F32, 1, x->rows, 2),
           bias = bed_table(b, ESP_F32, 1, x->rows, 1);
    matrix y = bed_matrix(b, b->type, x->rows, x->columns), *to = in_place ? x : &y;
    float *in = matrix_values(x), *w = matrix_values(&weight), *plus = matrix_values(&bias);
    float *expected = malloc((size_t)(x->rows * x->columns + 1) * sizeof *expected);
    if (mean) {
        esp_ref_ops.layer_norm(NULL, NULL, in, w, plus, eps, x->rows, x->columns, expected);
    } else {
        esp_ref_ops.rms_norm(NULL, NULL, in, w, eps, x->rows, x->columns, expected);
    }
    double *slack = norm_slack(x, w, mean ? plus : NULL, (double)eps, expected);
    gpu_norm norm = {.type = gpu_type_of(b->type),
                     .x = matrix_there(x),
                     .x_stride = x->stride,
                     .weight = matrix_there(&weight),
                     .bias = mean ? matrix_there(&bias) : NULL,
                     .eps = eps,
                     .features = x->rows,
                     .tokens = x->columns,
                     .y = matrix_there(to),
                     .y_stride = to->stride};
    matrix_run(b->run, b->device, to, mean ? go_layer_norm : go_rms_norm, &norm);
    matrix_compare(b->run, to, expected, slack);
    matrix_free(b->device, &weight);
    matrix_free(b->device, &bias);
    matrix_free(b->device, &y);
    free(in);
    free(w);
    free(plus);
    free(expected);
    free(slack);
}

static void norm_of(bed *b, bool mean, int64_t features, int64_t tokens, float centre)
{
    matrix x = bed_matrix(b, b->type, features, tokens);
    bool in_place = esp_random_below(&b->random, 2) == 0;
    test_sub(b->run, "%s %s %lldx%lld stride %lld%s around %g", mean ? "layer" : "rms",
             b->type == ESP_F16 ? "f16" : "bf16", (long long)features, (long long)tokens,
             (long long)x.stride, in_place ? " in place" : "", (double)centre);
    matrix_draw(&x, &b->random, 2);
    for (int64_t i = 0; centre != 0 && i < features * tokens; i++) {
        int64_t f = i / tokens, t = i % tokens;
        matrix_put(&x, f, t, centre + matrix_get(&x, f, t));
    }
    matrix_upload(b->run, b->device, &x);
    compare_norm(b, mean, &x, in_place, mean ? 1e-5f : 1e-6f);
    matrix_free(b->device, &x);
}

static void norms(bed *b)
{
    /* Each way to cut a matrix into blocks, and tails of it. */
    static const int shapes[][2] = {
        {1, 1},      {7, 3},      {64, 8},      {255, 9},    {256, 100},  {257, 17},  {384, 33},
        {768, 1},    {768, 3333}, {1000, 64},   {1024, 200}, {1280, 500}, {1280, 4},  {4096, 1},
        {4096, 8},   {4096, 16},  {4095, 13},   {5120, 40},  {8192, 1},   {8192, 24}, {12345, 5},
        {40000, 3},  {256, 4096}, {1024, 3201}, {2048, 900}, {70001, 9},  {1, 17},    {513, 256},
        {1025, 100}, {1030, 33},  {768, 257}};
    for (int i = 0; i < ESP_COUNT(shapes); i++) {
        norm_of(b, true, shapes[i][0], shapes[i][1], 0);
        norm_of(b, false, shapes[i][0], shapes[i][1], 0);
    }
    norm_of(b, true, 768, 37, 500); /* a mean far from 0 */
    norm_of(b, true, 4096, 2, -100);
    norm_of(b, true, 1280, 300, 1000);
}

/* A column with NaN or infinity comes out as the reference says, its neighbours as if nothing was
 * there. */
static void norms_not_finite(bed *b)
{
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 12; i++) {
        bool mean = i % 2 == 0;
        int64_t features = i % 4 < 2 ? 700 : 4100, tokens = i < 6 ? 21 : 3;
        matrix x = bed_drawn(b, b->type, features, tokens, 1);
        test_sub(b->run, "%s %g in %lldx%lld", mean ? "layer" : "rms", (double)odd[i % 3],
                 (long long)features, (long long)tokens);
        matrix_put(&x, between(b, 0, features - 1), between(b, 0, tokens - 1), odd[i % 3]);
        matrix_upload(b->run, b->device, &x);
        compare_norm(b, mean, &x, false, 1e-5f);
        matrix_free(b->device, &x);
    }
}

/* ---- elementwise ---- */

typedef struct elementwise {
    gpu_type type;
    matrix *y, *a, *b;
} elementwise;

static int go_swiglu(const void *user)
{
    const elementwise *e = user;
    return gpu_swiglu(e->type, matrix_there(e->a), e->a->stride, matrix_there(e->b), e->b->stride,
                      e->b->rows, e->b->columns, matrix_there(e->y), e->y->stride, NULL);
}

static void swiglu_of(bed *b, int64_t rows, int64_t columns)
{
    matrix gate = bed_drawn(b, b->type, rows, columns, 12);
    matrix up = bed_drawn(b, b->type, rows, columns, 4), y = bed_matrix(b, b->type, rows, columns);
    bool in_place = esp_random_below(&b->random, 2) == 0;
    float *expected = matrix_values(&gate), *factors = matrix_values(&up);
    double *slack = malloc((size_t)(rows * columns + 1) * sizeof *slack);
    elementwise e = {gpu_type_of(b->type), in_place ? &gate : &y, &gate, &up};
    test_sub(b->run, "swiglu %lldx%lld%s", (long long)rows, (long long)columns,
             in_place ? " in place" : "");
    esp_ref_ops.swiglu(NULL, NULL, expected, factors, rows * columns, expected);
    for (int64_t i = 0; i < rows * columns; i++) {
        /* An exponential and two quotients; one whose divisor is past 2^126 is 0, not 88.7 2^-126.
         */
        slack[i] = fabs((double)expected[i]) * 8 * 0x1p-24 + fabs((double)factors[i]) * 0x1p-119;
    }
    matrix_run(b->run, b->device, e.y, go_swiglu, &e);
    matrix_compare(b->run, e.y, expected, slack);
    matrix_free(b->device, &gate);
    matrix_free(b->device, &up);
    matrix_free(b->device, &y);
    free(expected);
    free(factors);
    free(slack);
}

typedef struct conversion {
    matrix *from, *to;
    bool turn;
} conversion;

static int go_convert(const void *user)
{
    const conversion *c = user;
    return gpu_convert(gpu_type_of(c->from->type), matrix_there(c->from), c->from->stride,
                       gpu_type_of(c->to->type), matrix_there(c->to), c->to->stride, c->from->rows,
                       c->from->columns, c->turn, NULL);
}

static void convert_of(bed *b, esp_dtype from_type, esp_dtype to_type, bool turn, int64_t rows,
                       int64_t columns)
{
    matrix from = bed_drawn(b, from_type, rows, columns, 100);
    matrix to = bed_matrix(b, to_type, turn ? columns : rows, turn ? rows : columns);
    float *expected = malloc((size_t)(rows * columns + 1) * sizeof *expected);
    conversion c = {&from, &to, turn};
    test_sub(b->run, "convert %d to %d%s %lldx%lld", (int)from_type, (int)to_type,
             turn ? " turned" : "", (long long)rows, (long long)columns);
    for (int64_t i = 0; i < rows * columns; i++) {
        int64_t row = i / columns, column = i % columns;
        expected[turn ? column * rows + row : i] = matrix_get(&from, row, column);
    }
    matrix_run(b->run, b->device, &to, go_convert, &c);
    matrix_compare(b->run, &to, expected, NULL);
    matrix_free(b->device, &from);
    matrix_free(b->device, &to);
    free(expected);
}

static void elementwise_ops(bed *b)
{
    static const int shapes[][2] = {{1, 1}, {3, 7}, {5, 8}, {1, 4096}, {300, 33}, {257, 200}};
    static const esp_dtype all[] = {ESP_F32, ESP_F16, ESP_BF16};
    for (int i = 0; i < ESP_COUNT(shapes); i++) {
        swiglu_of(b, shapes[i][0], shapes[i][1]);
        for (int k = 0; k < 18; k++) {
            convert_of(b, all[k % 3], all[k / 3 % 3], k >= 9, shapes[i][0], shapes[i][1]);
        }
    }
}

/* ---- vectors of texts ---- */

static int go_pool(const void *pool)
{
    return gpu_pool_texts(pool, NULL);
}

static float pooled(gpu_pooling pooling, const matrix *x, int64_t row, int32_t first,
                    int32_t length)
{
    double sum = 0;
    float most = length > 0 ? matrix_get(x, row, first) : 0;
    for (int32_t t = first; t < first + length; t++) {
        float v = matrix_get(x, row, t);
        sum += (double)v;
        most = v > most ? v : most;
    }
    return length == 0                ? 0
           : pooling == GPU_POOL_MEAN ? (float)(sum / length)
           : pooling == GPU_POOL_MAX  ? most
                                      : matrix_get(x, row, first);
}

static void pool_of(bed *b, gpu_pooling pooling, bool normalize, int64_t features, int64_t texts,
                    int64_t longest)
{
    matrix x = bed_drawn(b, b->type, features, texts * longest, 2);
    matrix vectors = matrix_make(b->run, b->device, ESP_F32, texts, features, (laying){0, 0});
    int32_t *first = malloc((size_t)texts * sizeof *first),
            *lengths = malloc((size_t)texts * sizeof *lengths);
    float *expected = malloc((size_t)(texts * features + 1) * sizeof *expected);
    double *slack = malloc((size_t)(texts * features + 1) * sizeof *slack);
    test_sub(b->run, "pool %d%s %lld texts of up to %lld tokens, %lld features", (int)pooling,
             normalize ? " normalised" : "", (long long)texts, (long long)longest,
             (long long)features);
    for (int64_t i = 0; i < texts; i++) {
        double squares = 0, depth = ((double)longest / 32 + 10) * 0x1p-24;
        first[i] = (int32_t)(i * longest);
        lengths[i] = (int32_t)between(b, i == 1 ? 0 : 1, longest);
        for (int64_t f = 0; f < features; f++) {
            float v = pooled(pooling, &x, f, first[i], lengths[i]);
            expected[i * features + f] = v;
            slack[i * features + f] = pooling == GPU_POOL_MEAN ? 16 * depth : 0; /* |x| <= 16 */
            squares += (double)v * (double)v;
        }
        double length = fmax(sqrt(squares), 1e-12);
        for (int64_t f = 0; normalize && f < features; f++) {
            float *v = &expected[i * features + f];
            double more = ((double)features / 256 + 20) * 0x1p-24 +
                          16 * depth * sqrt((double)features) / length;
            *v = (float)((double)*v / length);
            slack[i * features + f] = slack[i * features + f] / length + fabs((double)*v) * more;
        }
    }
    void *starts = device_copy(b->run, b->device, first, (size_t)texts * sizeof *first);
    void *counts = device_copy(b->run, b->device, lengths, (size_t)texts * sizeof *lengths);
    gpu_pool pool = {.type = gpu_type_of(b->type),
                     .x = matrix_there(&x),
                     .x_stride = x.stride,
                     .features = features,
                     .texts = texts,
                     .first = starts,
                     .lengths = counts,
                     .pooling = pooling,
                     .normalize = normalize,
                     .vectors = matrix_there(&vectors)};
    matrix_run(b->run, b->device, &vectors, go_pool, &pool);
    matrix_compare(b->run, &vectors, expected, slack);
    esp_device_release(b->device, starts);
    esp_device_release(b->device, counts);
    matrix_free(b->device, &x);
    matrix_free(b->device, &vectors);
    free(first);
    free(lengths);
    free(expected);
    free(slack);
}

static void pool_ops(bed *b)
{
    for (int i = 0; i < 6; i++) {
        pool_of(b, (gpu_pooling)(i % 3), i >= 3, 384, 5, 40);
        pool_of(b, (gpu_pooling)(i % 3), i >= 3, 33, 3, 300);
        pool_of(b, (gpu_pooling)(i % 3), i >= 3, 1, 1, 1);
    }
}

/* ---- cases ---- */

/* One of each kind, few enough for the tools that watch every access to memory. */
static void some_of_each(bed *b)
{
    norm_of(b, true, 768, 77, 0);
    norm_of(b, false, 1030, 3, 0);
    norm_of(b, true, 4096, 1, 0);
    norm_of(b, false, 5000, 9, 0);
    swiglu_of(b, 40, 33);
    convert_of(b, ESP_F32, b->type, true, 40, 70);
    convert_of(b, b->type, ESP_F32, false, 40, 70);
    pool_of(b, GPU_POOL_MEAN, true, 100, 3, 40);
}

static void random_of_each(bed *b)
{
    for (int i = 0; i < rounds_of(8, 10); i++) {
        int64_t features = random_log(&b->random, 1, 9000), tokens = random_log(&b->random, 1, 300);
        norm_of(b, i % 2 == 0, features, tokens, 0);
        swiglu_of(b, between(b, 1, 100), tokens);
        convert_of(b, b->type, i % 2 == 0 ? ESP_F32 : b->type, i % 3 == 0, tokens,
                   between(b, 1, 300));
        pool_of(b, (gpu_pooling)(i % 3), i % 2 == 0, between(b, 1, 400), between(b, 1, 6), tokens);
    }
}

ON_GPU(norms_on_gpu, norms)
ON_GPU(norms_of_infinity, norms_not_finite)
ON_GPU(elementwise_on_gpu, elementwise_ops)
ON_GPU(pool_on_gpu, pool_ops)
ON_GPU(some_for_sanitizers, some_of_each)
ON_GPU(random_problems, random_of_each)

static const test_case cases[] = {{"norms", norms_on_gpu},
                                  {"norms_not_finite", norms_of_infinity},
                                  {"elementwise", elementwise_on_gpu},
                                  {"pool", pool_on_gpu},
                                  {"some_for_sanitizers", some_for_sanitizers},
                                  {"random_problems", random_problems}};
#else
#include "without_cuda.h"
#endif
TEST_MAIN(cases)
