/* Norms that the weights hold (esp_around.normed), on a GPU: moments of tokens, and products that
 * finish the norm, of each kernel that does. Exact where everything is a small integer; elsewhere
 * within a bound that is derived from the roundings of f32 sums. Without a GPU every case is
 * skipped; TEST_KERNEL names a part of the kernels to which the run is limited. */
#ifdef ESP_HAVE_CUDA
#include "cuda/gpu_tiles.h"
#include "gpu_bed.h"

#define UNIT 0x1p-24 /* half of what f32 can tell apart at 1 */

/* ---- the operation ---- */

static int go_moments(const void *moments)
{
    return gpu_take_moments(moments, NULL);
}

/* y: [parts][tokens] of pairs, so a matrix of 2 * tokens columns. */
static void moments_of(bed *b, int64_t features, int64_t tokens, int64_t part_rows)
{
    matrix x = bed_drawn(b, b->type, features, tokens, 3);
    int64_t parts = esp_ceil_div(features, part_rows), stride = tokens + between(b, 0, 3);
    matrix y = matrix_make(b->run, b->device, ESP_F32, parts, 2 * tokens,
                           (laying){2 * (stride - tokens), 0});
    float *expected = malloc((size_t)(parts * tokens) * 2 * sizeof *expected);
    double *slack = malloc((size_t)(parts * tokens) * 2 * sizeof *slack);
    test_sub(b->run, "%s %lldx%lld parts of %lld", b->type == ESP_F16 ? "f16" : "bf16",
             (long long)features, (long long)tokens, (long long)part_rows);
    for (int64_t i = 0; i < parts * tokens; i++) {
        double sum = 0, squares = 0, size = 0;
        int64_t first = i / tokens * part_rows, end = ESP_MIN(features, first + part_rows);
        for (int64_t f = first; f < end; f++) {
            double v = (double)matrix_get(&x, f, i % tokens);
            sum += v, squares += v * v, size += fabs(v);
        }
        double depth = ((double)ESP_MIN(features, part_rows) / 32 + 10) * UNIT;
        expected[2 * i] = (float)sum, slack[2 * i] = depth * size;
        expected[2 * i + 1] = (float)squares, slack[2 * i + 1] = depth * squares;
    }
    gpu_moments moments = {.type = gpu_type_of(b->type),
                           .x = matrix_there(&x),
                           .x_stride = x.stride,
                           .features = features,
                           .tokens = tokens,
                           .part_rows = part_rows,
                           .values = matrix_there(&y),
                           .stride = stride};
    matrix_run(b->run, b->device, &y, go_moments, &moments);
    matrix_compare(b->run, &y, expected, slack);
    matrix_free(b->device, &x);
    matrix_free(b->device, &y);
    free(expected);
    free(slack);
}

static void moments_of_shapes(bed *b)
{
    static const int shapes[][3] = {{1, 1, 1},        {768, 200, 768},   {768, 3333, 768},
                                    {768, 12608, 64}, {1024, 197, 1024}, {4096, 2048, 4096},
                                    {4095, 13, 64},   {5120, 40, 5120},  {40000, 3, 40000},
                                    {257, 9, 100},    {384, 6400, 384},  {192, 6401, 64}};
    for (int i = 0; i < ESP_COUNT(shapes); i++) {
        moments_of(b, shapes[i][0], shapes[i][1], shapes[i][2]);
    }
    for (int i = 0; i < rounds_of(1, 20); i++) {
        int64_t features = random_log(&b->random, 1, 3000);
        moments_of(b, features, random_log(&b->random, 1, 900), between(b, 1, features));
    }
}

/* ---- products that norm ---- */

typedef struct normed_product {
    product p;
    esp_tensor dense;      /* the weight */
    float *moments, *sums; /* [parts][tokens][2]; [out] */
    esp_normed normed;     /* of device memory */
    int parts;
    void *moments_there, *sums_there;
} normed_product;

static double x_of(const product *p, int64_t f, int64_t t)
{
    return (double)esp_weight_at(
        p->problem.act_type, p->x,
        element_at(p->problem.x_layout == ESP_FEATURE_MAJOR, p->x_stride, f, t));
}

/* Integer products: moments are not those of X, which nobody looks at, but such that mean is an
 * integer and deviation a power of 2, with `in` a power of 2. */
static void choose_moments(normed_product *n, esp_random *random)
{
    int64_t tokens = n->p.problem.tokens, in = n->p.problem.in_features;
    for (int64_t t = 0; t < tokens; t++) {
        double mean = (double)random_range(random, -3, 3);
        double deviation = ldexp(1, (int)random_range(random, -1, 1));
        double left[2] = {mean * (double)in, (mean * mean + deviation * deviation) * (double)in};
        if (n->normed.row_sums == NULL) {
            left[1] = deviation * deviation * (double)in;
        }
        for (int i = 0; i < n->parts; i++) {
            double last[2] = {(double)random_range(random, -100, 100),
                              (double)random_range(random, 0, 20)};
            for (int k = 0; k < 2; k++) {
                double part = i == n->parts - 1 ? left[k] : last[k];
                n->moments[(i * tokens + t) * 2 + k] = (float)part;
                left[k] -= part;
            }
        }
    }
}

static void take_moments(normed_product *n)
{
    int64_t tokens = n->p.problem.tokens, in = n->p.problem.in_features;
    for (int i = 0; i < n->parts; i++) {
        for (int64_t t = 0; t < tokens; t++) {
            double sum = 0, squares = 0;
            for (int64_t f = in * i / n->parts; f < in * (i + 1) / n->parts; f++) {
                double v = x_of(&n->p, f, t);
                sum += v, squares += v * v;
            }
            n->moments[(i * tokens + t) * 2] = (float)sum;
            n->moments[(i * tokens + t) * 2 + 1] = (float)squares;
        }
    }
}

static void *there(test_run *run, esp_device *device, const void *from, size_t bytes)
{
    void *made = esp_device_alloc(device, bytes);
    CHECK(made != NULL);
    CHECK_OK(esp_device_upload(device, made, from, bytes, error));
    return made;
}

/* parts > 0; a mean that is off 0, so that it counts. */
static normed_product normed_make(test_run *run, esp_device *device, esp_context *context,
                                  const esp_matmul_problem *problem, int parts, bool rms,
                                  inputs kind, uint64_t seed)
{
    normed_product n = {.p = product_make(run, context, problem, seed, kind, false, false),
                        .parts = parts};
    int64_t out = problem->out_features, in = problem->in_features, tokens = problem->tokens;
    esp_random random;
    esp_random_seed(&random, seed + 1);
    CHECK_OK(esp_tensor_create(context, problem->weight_type, 2, (const int64_t[]){out, in},
                               &n.dense, error));
    CHECK_OK(esp_sparse_decode(n.p.sparse, &n.dense, error));
    n.sums = malloc((size_t)out * sizeof *n.sums);
    for (int64_t o = 0; o < out; o++) {
        double sum = 0;
        for (int64_t f = 0; f < in; f++) {
            sum += (double)esp_weight_at(n.dense.dtype, n.dense.data, o * in + f);
        }
        n.sums[o] = (float)sum;
    }
    for (int64_t t = 0; kind == REALS && t < tokens; t++) {
        float shift = (float)(2 * esp_random_uniform(&random) - 1);
        for (int64_t f = 0; f < in; f++) {
            int64_t at = element_at(problem->x_layout == ESP_FEATURE_MAJOR, n.p.x_stride, f, t);
            put(problem->act_type, n.p.x, at, shift + (float)x_of(&n.p, f, t));
        }
    }
    n.moments = malloc((size_t)(parts * tokens) * 2 * sizeof *n.moments);
    n.sums_there = there(run, device, n.sums, (size_t)out * sizeof *n.sums);
    n.normed.row_sums = rms ? NULL : n.sums_there;
    n.normed.eps = kind == INTEGERS ? 0 : 1e-6f;
    if (kind == INTEGERS) {
        choose_moments(&n, &random);
    } else {
        take_moments(&n);
    }
    n.moments_there = there(run, device, n.moments, (size_t)(parts * tokens) * 2 * sizeof(float));
    n.normed.of_x = (esp_moments){n.moments_there, parts};
    return n;
}

static void normed_free(esp_device *device, normed_product *n)
{
    esp_device_release(device, n->moments_there);
    esp_device_release(device, n->sums_there);
    esp_tensor_free(n->p.context, &n->dense);
    free(n->moments);
    free(n->sums);
    product_free(&n->p);
}

/* Mean and 1 / deviation of a token from its moments as they are in f32, and how far f32 may be
 * from them: the first absolutely, the second relatively. */
typedef struct token_norm {
    double mean, factor, mean_error, factor_error;
} token_norm;

static token_norm norm_of_token(const normed_product *n, int64_t t)
{
    double sum = 0, squares = 0, size = 0, in = (double)n->p.problem.in_features;
    for (int i = 0; i < n->parts; i++) {
        const float *part = &n->moments[(i * n->p.problem.tokens + t) * 2];
        sum += (double)part[0], squares += (double)part[1], size += fabs((double)part[0]);
    }
    double depth = (n->parts + 3) * UNIT;
    token_norm made = {.mean = sum / in, .mean_error = depth * size / in};
    if (n->normed.row_sums == NULL) {
        made.mean = made.mean_error = 0;
    }
    double variance = squares / in - made.mean * made.mean + (double)n->normed.eps;
    double variance_error = depth * squares / in + UNIT * (2 * variance + made.mean * made.mean) +
                            2 * fabs(made.mean) * made.mean_error;
    made.factor = 1 / sqrt(variance);
    made.factor_error = 0.6 * variance_error / variance + 6 * UNIT; /* rsqrt: 2 steps */
    return made;
}

/* Before the activation. */
static double linear_of(const normed_product *n, int64_t o, int64_t t, const token_norm *norm,
                        double *bound)
{
    const product *p = &n->p;
    int64_t in = p->problem.in_features;
    double sum = 0, size = 0, rows = n->normed.row_sums != NULL ? (double)n->sums[o] : 0;
    for (int64_t f = 0; f < in; f++) {
        double w = (double)esp_weight_at(n->dense.dtype, n->dense.data, o * in + f);
        double term = w != 0 ? w * x_of(p, f, t) : 0;
        sum += term, size += fabs(term);
    }
    double apart = sum - rows * norm->mean, result = apart * norm->factor;
    double error = ((double)in + 2) * UNIT * size + fabs(rows) * norm->mean_error +
                   UNIT * (fabs(apart) + fabs(rows * norm->mean));
    double bias = (p->problem.epilogue & ESP_EP_BIAS) != 0 ? (double)p->bias[o] : 0;
    *bound = error * norm->factor * (1 + norm->factor_error) +
             fabs(result) * (norm->factor_error + UNIT) + 2 * UNIT * (fabs(result) + fabs(bias));
    return result + bias;
}

/* As product_samples.c's. */
static double result_at(const normed_product *n, int64_t o, int64_t t, double *bound)
{
    const esp_matmul_problem *problem = &n->p.problem;
    unsigned bits = problem->epilogue;
    token_norm norm = norm_of_token(n, t);
    double result, slope = 1.13, curved = 0x1p-14;
    if ((bits & ESP_EP_SWIGLU) != 0) {
        double of_gate, of_up;
        double gate = linear_of(n, 2 * o, t, &norm, &of_gate);
        double up = linear_of(n, 2 * o + 1, t, &norm, &of_up);
        result = activated(bits, gate) * up;
        *bound = slope * of_gate * (fabs(up) + of_up) + fabs(gate) * of_up + curved * fabs(result) +
                 2 * UNIT * fabs(gate * up);
    } else {
        double v = linear_of(n, o, t, &norm, bound);
        result = activated(bits, v);
        if (result != v) {
            *bound = *bound * slope + curved * fabs(result) + 2 * UNIT * fabs(v);
        }
    }
    *bound += half_step(problem->out_type, fabs(result) + *bound);
    return result;
}

/* All of them, or so many random ones. Token `nan` (-1: none) must be NaN. */
static void check_normed(test_run *run, const normed_product *n, const float *actual, bool exact,
                         int64_t samples, int64_t nan)
{
    const esp_matmul_problem *problem = &n->p.problem;
    int64_t all = n->p.out_rows * problem->tokens;
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int64_t i = 0; i < ESP_MIN(all, samples); i++) {
        int64_t at =
            all <= samples ? i : random_range(&random, i % 4 == 0 ? all * 15 / 16 : 0, all - 1);
        int64_t o = at / problem->tokens, t = at % problem->tokens;
        double have = (double)actual[at], bound;
        if (t == nan) {
            CHECK(isnan(have));
            continue;
        }
        double want = result_at(n, o, t, &bound);
        if (exact) {
            want = (double)type_round(problem->out_type, (float)want), bound = 0;
        }
        if (!(fabs(have - want) <= bound)) {
            test_fail(run, __FILE__, __LINE__,
                      "row %lld token %lld: %.9g, expected %.9g, bound %.3g", (long long)o,
                      (long long)t, have, want, bound);
            return;
        }
    }
}

typedef struct normed_case {
    const char *text;
    int parts;
    bool rms;
    int x_gap, y_gap; /* elements */
} normed_case;

static bool norms(test_run *run, const product *p, esp_device *device, const char *kernel)
{
    esp_plan *plan = NULL;
    esp_packed *packed = NULL;
    esp_plan_options wish = {.kernel_glob = kernel, .forms = ESP_FORM_SPARSE | ESP_FORM_SPREAD};
    CHECK_OK(esp_plan_create_with(device, &p->problem, &wish, &plan, error));
    const esp_pack_options one = {.forms = plan != NULL ? esp_plan_form(plan) : 0};
    CHECK_OK(esp_pack_with(device, p->sparse, &one, &packed, error));
    bool it_does = plan != NULL && packed != NULL && esp_plan_norms(plan, packed);
    esp_plan_free(plan);
    esp_packed_free(packed);
    return it_does;
}

static void run_case(test_run *run, esp_device *device, esp_context *context, const normed_case *c,
                     inputs kind, bool nan)
{
    esp_matmul_problem problem = problem_of(run, c->text);
    const char *names[64];
    int count = usable_on(device, &problem, names), normed = 0;
    normed_product n =
        normed_make(run, device, context, &problem, c->parts, c->rms, kind, test_seed(run));
    for (int64_t f = 0; nan && f < problem.in_features; f++) {
        put(problem.act_type, n.p.x, element_at(true, n.p.x_stride, f, 77), NAN);
    }
    device_layout layout = {problem.tokens + c->x_gap, problem.tokens + c->y_gap, 0, 0};
    float *actual = result_of(&n.p);
    const esp_around around = {.normed = &n.normed};
    for (int k = 0; k < count; k++) {
        if (norms(run, &n.p, device, names[k])) {
            normed++;
            test_sub(run, "%s%s parts %d %s", c->text, c->rms ? " rms" : "", c->parts, names[k]);
            run_around_on_gpu(run, &n.p, device, names[k], &layout, &around, actual);
            check_normed(run, &n, actual, kind == INTEGERS, 20000, nan ? 77 : -1);
        }
    }
    CHECK(normed > 0 || getenv("TEST_KERNEL") != NULL);
    free(actual);
    normed_free(device, &n);
}

/* What leaves by strips is not normed, and says so. */
static void declined(test_run *run)
{
    static const struct {
        const char *text;
        bool reorder;
    } all[] = {{"matmul/128:2:8/f16/642x256x520/ep:bias", true},
               {"matmul/256:2:8/f16/642x256x520", true},
               {"matmul/65:2:8/f16/390x520x1128/ep:bias+swiglu", false},
               {"matmul/2:4/f16/322x64x328/ep:scale", false},
               {"matmul/2:4/f16/321x64x328", false},
               {"matmul/2:4/f16/322x64x327", false},
               {"matmul/dense/f16/320x64x328/ep:bias+residual", false},
               {"matmul/dense/f16/320x64x328/y:tok/ep:bias", false}};
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(all); i++) {
        esp_matmul_problem problem = problem_of(run, all[i].text);
        const char *names[64];
        int count = usable_on(device, &problem, names);
        product p =
            product_make(run, context, &problem, test_seed(run), INTEGERS, all[i].reorder, false);
        for (int k = 0; k < count; k++) {
            test_sub(run, "%s %s", all[i].text, names[k]);
            CHECK(!norms(run, &p, device, names[k]));
        }
        product_free(&p);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

static void run_cases(test_run *run, const normed_case *all, int count, inputs kind, bool nan)
{
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < count; i++) {
        run_case(run, device, context, &all[i], kind, nan);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

static void exact(test_run *run)
{
    static const normed_case all[] = {{"matmul/dense/f16/320x64x328/ep:bias", 1, false, 0, 0},
                                      {"matmul/dense/bf16/320x128x264", 3, false, 0, 0},
                                      {"matmul/dense/f16/1296x256x1672/ep:bias", 12, false, 0, 8},
                                      {"matmul/2:4/f16/322x64x328/ep:bias", 1, false, 0, 0},
                                      {"matmul/2:4/bf16/1300x256x1672", 4, false, 8, 0},
                                      {"matmul/64:2:8/f16/322x128x520/ep:bias", 5, false, 0, 0},
                                      {"matmul/128:2:8/bf16/642x256x2056/ep:bias", 1, true, 0, 0},
                                      {"matmul/256:2:8/f16/1024x512x1040/ep:bias", 12, false, 0, 0},
                                      {"matmul/256:2:16/f16/1024x256x2056", 1, false, 0, 0},
                                      {"matmul/64:2:5/f16/322x128x520/ep:bias", 2, false, 0, 0},
                                      /* steps shared out by clusters */
                                      {"matmul/dense/f16/256x2048x200/ep:bias", 32, false, 0, 0},
                                      {"matmul/2:4/bf16/256x2048x200/ep:bias", 9, false, 0, 0},
                                      {"matmul/128:2:8/f16/256x4096x136", 64, true, 0, 0}};
    run_cases(run, all, ESP_COUNT(all), INTEGERS, false);
}

static void bounded(test_run *run)
{
    static const normed_case all[] = {
        {"matmul/dense/f16/2304x768x2056/ep:bias+gelu", 1, false, 0, 0},
        {"matmul/dense/bf16/2304x328x2056/ep:swiglu", 6, true, 0, 0},
        {"matmul/dense/f16/784x1000x200/ep:bias+gelu", 12, false, 0, 0},
        {"matmul/2:4/f16/2302x520x2056/ep:bias+gelu", 12, false, 0, 0},
        {"matmul/2:4/bf16/2432x300x2184/ep:bias+swiglu", 1, false, 0, 0},
        {"matmul/2:4/f16/768x3072x200/ep:bias+gelu", 48, false, 0, 0},
        {"matmul/64:2:8/f16/2304x1100x2120/ep:bias+gelu", 12, false, 0, 0},
        {"matmul/64:2:8/bf16/2304x500x2120/ep:swiglu", 1, true, 0, 0},
        {"matmul/128:2:8/bf16/2304x768x2064/ep:bias", 12, false, 0, 0},
        {"matmul/256:2:8/f16/2560x768x2064/ep:bias+gelu", 12, false, 0, 0},
        {"matmul/256:2:5/bf16/2560x768x2064/ep:bias+swiglu", 3, false, 0, 0},
        {"matmul/192:2:8/f16/2304x700x2056/ep:bias+gelu", 2, false, 0, 0},
        {"matmul/64:2:5/f16/2304x767x2056/ep:bias+gelu", 12, false, 0, 0},
        {"matmul/64:2:5/bf16/768x768x200/ep:swiglu", 12, true, 0, 0}};
    run_cases(run, all, ESP_COUNT(all), REALS, false);
}

/* A token that is not finite, as columns beyond the tokens may be, stays alone. */
static void not_finite(test_run *run)
{
    static const normed_case all[] = {{"matmul/dense/f16/320x64x328/ep:bias+gelu", 1, false, 0, 0},
                                      {"matmul/2:4/bf16/320x64x328/ep:bias", 3, false, 0, 0},
                                      {"matmul/128:2:8/f16/320x512x328/ep:bias", 1, false, 0, 0},
                                      {"matmul/256:2:8/f16/512x512x328/ep:swiglu", 1, true, 0, 0}};
    run_cases(run, all, ESP_COUNT(all), REALS, true);
}

/* Few enough for the tools that watch every access to memory. */
static void some(test_run *run)
{
    static const normed_case all[] = {{"matmul/dense/f16/256x64x328/ep:bias+gelu", 3, false, 0, 0},
                                      {"matmul/2:4/f16/256x64x520/ep:bias", 3, false, 0, 0},
                                      {"matmul/128:2:8/bf16/256x512x136/ep:bias", 9, false, 0, 0},
                                      {"matmul/256:2:8/f16/512x512x264/ep:bias", 3, false, 0, 0}};
    run_cases(run, all, ESP_COUNT(all), REALS, false);
}

/* ---- moments that products leave ---- */

#define MOMENTS_GUARD 64 /* floats */

/* Poisoned; nothing beyond the parts is written, and two runs leave the same bits. */
static void take_left(test_run *run, const product *p, esp_device *device, const char *kernel,
                      const device_layout *layout, int parts, float *actual, float *left)
{
    size_t count = (size_t)(parts * p->problem.tokens) * 2, bytes = (count + MOMENTS_GUARD) * 4;
    float *poison = malloc(bytes), *after[2] = {malloc(bytes), malloc(bytes)};
    memset(poison, 0xff, bytes);
    for (int i = 0; i < 2; i++) {
        esp_moments moments = {there(run, device, poison, bytes), parts};
        const esp_around around = {.moments = &moments};
        run_around_on_gpu(run, p, device, kernel, layout, &around, actual);
        CHECK_OK(esp_device_download(device, after[i], moments.values, bytes, error));
        esp_device_release(device, moments.values);
    }
    CHECK(memcmp(after[0], after[1], bytes) == 0);
    CHECK(memcmp(after[0] + count, poison + count, bytes - count * 4) == 0);
    memcpy(left, after[0], count * 4);
    free(poison);
    free(after[0]);
    free(after[1]);
}

/* Against those of Y as it was written. Tensor cores may cut what is below 2^-23 of the largest
 * term. */
static void check_left(test_run *run, const product *p, const float *actual, const float *left,
                       int parts, inputs kind)
{
    int64_t tokens = p->problem.tokens, rows = p->out_rows / parts;
    for (int64_t i = 0; i < parts * tokens; i++) {
        double sum = 0, squares = 0, size = 0;
        for (int64_t o = i / tokens * rows; o < (i / tokens + 1) * rows; o++) {
            double y = (double)actual[o * tokens + i % tokens];
            sum += y, squares += y * y, size += fabs(y);
        }
        if (isnan(sum)) {
            CHECK(isnan(left[2 * i]) && isnan(left[2 * i + 1]));
            continue;
        }
        bool exact = kind == INTEGERS && squares < 0x1p22;
        double depth = exact ? 0 : (double)(rows + 2) * 0x1p-23;
        if (!(fabs((double)left[2 * i] - sum) <= depth * size) ||
            !(fabs((double)left[2 * i + 1] - squares) <= depth * squares)) {
            test_fail(run, __FILE__, __LINE__,
                      "part %lld token %lld: %.9g %.9g, expected %.9g %.9g",
                      (long long)(i / tokens), (long long)(i % tokens), (double)left[2 * i],
                      (double)left[2 * i + 1], sum, squares);
            return;
        }
    }
}

static int parts_of(test_run *run, const product *p, esp_device *device, const char *kernel)
{
    esp_plan *plan = NULL;
    esp_packed *packed = NULL;
    esp_plan_options wish = {.kernel_glob = kernel, .forms = ESP_FORM_SPARSE | ESP_FORM_SPREAD};
    CHECK_OK(esp_plan_create_with(device, &p->problem, &wish, &plan, error));
    const esp_pack_options one = {.forms = plan != NULL ? esp_plan_form(plan) : 0};
    CHECK_OK(esp_pack_with(device, p->sparse, &one, &packed, error));
    int parts = plan != NULL && packed != NULL ? esp_plan_moment_parts(plan, packed) : 0;
    esp_plan_free(plan);
    esp_packed_free(packed);
    return parts;
}

typedef struct left_case {
    const char *text;
    int gap;
    bool in_place, nan, none; /* none: no kernel leaves any */
} left_case;

static void run_left(test_run *run, esp_device *device, esp_context *context, const left_case *c,
                     inputs kind)
{
    esp_matmul_problem problem = problem_of(run, c->text);
    const char *names[64];
    int count = usable_on(device, &problem, names), leave = 0;
    product p = product_make(run, context, &problem, test_seed(run), kind, false, false);
    p.in_place = c->in_place;
    for (int64_t f = 0; c->nan && f < problem.in_features; f++) {
        put(problem.act_type, p.x, element_at(true, p.x_stride, f, 77), NAN);
    }
    device_layout layout = {problem.tokens + (8 - problem.tokens % 8) % 8, problem.tokens + c->gap,
                            0, 0};
    float *actual = result_of(&p);
    float *left = malloc((size_t)(problem.out_features * problem.tokens) * 2 * sizeof *left);
    for (int k = 0; k < count; k++) {
        int parts = parts_of(run, &p, device, names[k]);
        test_sub(run, "%s %s", c->text, names[k]);
        if (parts > 0) {
            leave++;
            CHECK_INT(problem.out_features % parts, 0);
            take_left(run, &p, device, names[k], &layout, parts, actual, left);
            check_left(run, &p, actual, left, parts, kind);
        }
    }
    CHECK((leave == 0) == c->none || getenv("TEST_KERNEL") != NULL);
    free(actual);
    free(left);
    product_free(&p);
}

static void run_all_left(test_run *run, const left_case *all, int count, inputs kind)
{
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < count; i++) {
        run_left(run, device, context, &all[i], kind);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

static void left_exact(test_run *run)
{
    static const left_case all[] = {
        {"matmul/dense/f16/768x64x1672/ep:bias+residual", 0, true, false, false},
        {"matmul/dense/bf16/2304x128x2056/ep:bias+residual", 8, false, false, false},
        {"matmul/dense/f16/256x2048x200/ep:bias+residual", 0, true, false, false},
        {"matmul/2:4/f16/768x64x1672/ep:bias+residual", 0, true, false, false},
        {"matmul/2:4/bf16/1344x200x1672/ep:residual", 0, false, false, false},
        {"matmul/2:4/f16/256x2048x136/ep:bias+residual", 0, true, false, false},
        {"matmul/64:2:8/f16/704x128x2056/ep:bias+residual", 0, true, false, false},
        {"matmul/128:2:8/bf16/768x256x2056/ep:scale+bias+residual", 8, true, false, false},
        {"matmul/128:2:8/f16/256x4096x200/ep:bias+residual", 0, true, false, false},
        {"matmul/256:2:8/f16/1024x512x1040/ep:bias+residual", 0, true, false, false},
        {"matmul/256:2:16/bf16/1024x256x2056/ep:residual", 0, false, false, false},
        {"matmul/64:2:5/f16/320x130x520/ep:bias+residual", 0, true, false, false},
        {"matmul/2:4/f16/800x64x328/ep:bias+residual", 0, true, false, true},
        {"matmul/2:4/f16/768x64x328/ep:bias", 0, false, false, true},
        {"matmul/128:2:8/f16/768x64x328/ep:bias+gelu+residual", 0, false, false, true},
        {"matmul/dense/f16/768x64x330/ep:bias+residual", 0, false, false, true}};
    run_all_left(run, all, ESP_COUNT(all), INTEGERS);
}

static void left_bounded(test_run *run)
{
    static const left_case all[] = {
        {"matmul/dense/f16/768x776x2184/ep:bias+residual", 0, true, true, false},
        {"matmul/2:4/bf16/768x3072x200/ep:bias+residual", 0, true, true, false},
        {"matmul/128:2:8/f16/2304x1100x2064/ep:bias+residual", 0, true, true, false},
        {"matmul/256:2:8/bf16/2304x1100x2064/ep:bias+residual", 0, true, true, false}};
    run_all_left(run, all, ESP_COUNT(all), REALS);
}

/* Few enough for the tools that watch every access to memory. */
static void left_some(test_run *run)
{
    static const left_case all[] = {
        {"matmul/dense/f16/256x64x328/ep:bias+residual", 0, true, false, false},
        {"matmul/2:4/f16/256x64x520/ep:bias+residual", 0, true, false, false},
        {"matmul/256:2:8/f16/512x512x264/ep:bias+residual", 0, true, false, false}};
    run_all_left(run, all, ESP_COUNT(all), REALS);
}

/* ---- wrong arguments ---- */

static void wrong_arguments(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_device *device = open_gpu(run, context);
    esp_matmul_problem problem = problem_of(run, "matmul/2:4/f16/128x256x512/ep:residual");
    esp_plan_options wish = {.kernel_glob = "*whole_128x128"};
    esp_plan *plan = NULL;
    esp_packed *packed = NULL;
    if (device == NULL) {
        test_context_free(run, context);
        return;
    }
    product p = product_make(run, context, &problem, test_seed(run), INTEGERS, false, false);
    CHECK_OK(esp_pack(device, p.sparse, &packed, error));
    if (esp_plan_create_with(device, &problem, &wish, &plan, NULL) == ESP_OK) {
        float host[8];
        char *memory = esp_device_alloc(device, 1 << 20);
        esp_matmul_args args = {.weight = packed, .x = memory, .y = memory + (1 << 19)};
        args.residual = args.y;
        esp_moments right = {(float *)(void *)(memory + (1 << 18)), 2}, wrong = {host, 2};
        esp_normed normed = {wrong, NULL, 0};
        esp_around around = {.moments = &right};
        CHECK_OK(esp_plan_run(plan, &args, &around, error));
        test_sub(run, "in host memory");
        around.moments = &wrong;
        CHECK_FAILS(esp_plan_run(plan, &args, &around, error), ESP_BAD_ARGUMENT,
                    "matmul.not_on_device");
        around = (esp_around){.normed = &normed};
        CHECK_FAILS(esp_plan_run(plan, &args, &around, error), ESP_BAD_ARGUMENT,
                    "matmul.not_on_device");
        normed = (esp_normed){right, host, 0};
        CHECK_FAILS(esp_plan_run(plan, &args, &around, error), ESP_BAD_ARGUMENT,
                    "matmul.not_on_device");
        test_sub(run, "half a pair, and Y half a word off");
        wrong.values = right.values + 1;
        around = (esp_around){.moments = &wrong};
        CHECK_FAILS(esp_plan_run(plan, &args, &around, error), ESP_BAD_ARGUMENT,
                    "matmul.misaligned");
        around.moments = &right;
        args.y = memory + (1 << 19) + 2;
        args.residual = args.y;
        CHECK_FAILS(esp_plan_run(plan, &args, &around, error), ESP_BAD_ARGUMENT,
                    "matmul.misaligned");
        CHECK_OK(esp_device_wait(device, error));
        esp_device_release(device, memory);
    }
    esp_plan_free(plan);
    esp_packed_free(packed);
    product_free(&p);
    esp_device_close(device);
    test_context_free(run, context);
}

ON_GPU(moments_on_gpu, moments_of_shapes)

static const test_case cases[] = {{"moments", moments_on_gpu},
                                  {"exact", exact},
                                  {"bounded", bounded},
                                  {"not_finite", not_finite},
                                  {"declined", declined},
                                  {"left_exact", left_exact},
                                  {"left_bounded", left_bounded},
                                  {"some_for_sanitizers", some},
                                  {"left_for_sanitizers", left_some},
                                  {"wrong_arguments", wrong_arguments}};
#else
#include "without_cuda.h"
#endif
TEST_MAIN(cases)
