/* Operations on grids of tokens: the cpu's at every instruction-set level against the reference, on
 * sizes that divide nothing, outputs between guards; and what they mean on small cases by hand. */
#include <math.h>
#include <stdlib.h>

#include "op/op.h"
#include "test.h"

#define GUARD 37 /* floats before and behind an output */
#define POISON 12345.0f

typedef struct bench {
    test_run *run;
    esp_random random;
    esp_device *ref, *cpu;
} bench;

static float *random_floats(bench *b, int64_t count)
{
    float *values = malloc((size_t)count * sizeof *values);
    for (int64_t i = 0; i < count; i++) {
        values[i] = (float)(4 * esp_random_uniform(&b->random) - 2);
    }
    return values;
}

/* Room for `count` floats between guards; the pointer is to the first of them. */
static float *guarded(int64_t count)
{
    float *memory = malloc((size_t)(count + 2 * GUARD) * sizeof *memory);
    for (int64_t i = 0; i < count + 2 * GUARD; i++) {
        memory[i] = POISON;
    }
    return memory + GUARD;
}

static void free_guarded(bench *b, float *values, int64_t count)
{
    test_run *run = b->run;
    for (int64_t i = 0; i < GUARD; i++) {
        CHECK(values[-1 - i] == POISON && values[count + i] == POISON);
    }
    free(values - GUARD);
}

static void compare(bench *b, const float *expected, const float *actual, int64_t count,
                    double bound)
{
    test_run *run = b->run;
    for (int64_t i = 0; i < count; i++) {
        if (!(fabs((double)expected[i] - (double)actual[i]) <= bound)) {
            test_fail(run, __FILE__, __LINE__, "[%lld]: %.9g, reference %.9g", (long long)i,
                      (double)actual[i], (double)expected[i]);
            return;
        }
    }
}

static void check_gather(bench *b, int64_t features, int64_t tokens, int64_t count)
{
    test_run *run = b->run;
    float *x = random_floats(b, features * tokens);
    float *expected = guarded(features * count), *actual = guarded(features * count);
    int32_t *index = malloc((size_t)count * sizeof *index);
    test_sub(run, "gather %lld of %lld tokens, %lld features", (long long)count, (long long)tokens,
             (long long)features);
    for (int64_t i = 0; i < count; i++) {
        index[i] = (int32_t)(esp_random_uniform(&b->random) * (double)(tokens + 1)) - 1;
    }
    for (int adds = 1; adds >= 0; adds--) {
        memset(expected, 0, (size_t)(features * count) * sizeof *expected);
        memset(actual, 0, (size_t)(features * count) * sizeof *actual);
        for (int times = 0; times <= adds; times++) {
            CHECK(b->ref->backend->ops->gather_tokens(b->ref, NULL, x, features, tokens, index,
                                                      count, adds == 1, expected) == ESP_OK);
            CHECK(b->cpu->backend->ops->gather_tokens(b->cpu, NULL, x, features, tokens, index,
                                                      count, adds == 1, actual) == ESP_OK);
        }
        compare(b, expected, actual, features * count, 0);
        CHECK(expected[0] == (index[0] < 0 ? 0 : (float)(1 + adds) * x[index[0]]));
    }
    for (int64_t i = 0; i < count; i++) {
        CHECK(expected[i] == (index[i] < 0 ? 0 : x[index[i]]));
    }
    free(x);
    free(index);
    free_guarded(b, expected, features * count);
    free_guarded(b, actual, features * count);
}

static void check_relative(bench *b, int64_t heads, int64_t dim, int64_t height, int64_t width,
                           int64_t grids)
{
    test_run *run = b->run;
    int64_t tokens = grids * height * width;
    float *q = random_floats(b, heads * dim * tokens);
    for (int by_row = 0; by_row < 2; by_row++) {
        int64_t size = by_row ? height : width, count = heads * size * tokens;
        float *table = random_floats(b, (2 * size - 1) * dim);
        float *expected = guarded(count), *actual = guarded(count);
        test_sub(run, "relative %s, %lld heads of %lld, %lld grids of %lldx%lld",
                 by_row ? "rows" : "columns", (long long)heads, (long long)dim, (long long)grids,
                 (long long)height, (long long)width);
        esp_relative relative = {.q = q,
                                 .table = table,
                                 .y = expected,
                                 .heads = heads,
                                 .head_dim = dim,
                                 .columns = tokens,
                                 .height = height,
                                 .width = width,
                                 .pitch = height * width,
                                 .by_row = by_row == 1};
        CHECK(b->ref->backend->ops->relative_bias(b->ref, &relative) == ESP_OK);
        relative.y = actual;
        CHECK(b->cpu->backend->ops->relative_bias(b->cpu, &relative) == ESP_OK);
        /* dim products of values up to 2, summed in f32 */
        compare(b, expected, actual, count, (double)dim * 4 * ((double)dim + 2) * 0x1p-24);
        free(table);
        free_guarded(b, expected, count);
        free_guarded(b, actual, count);
    }
    free(q);
}

static void check_unfold(bench *b, int64_t features, int64_t height, int64_t width, int64_t grids,
                         int64_t side)
{
    test_run *run = b->run;
    int64_t tokens = grids * height * width, count = features * side * side * tokens;
    float *x = random_floats(b, features * tokens);
    float *expected = guarded(count), *actual = guarded(count);
    test_sub(run, "unfold %lldx%lld of %lld grids of %lldx%lld", (long long)side, (long long)side,
             (long long)grids, (long long)height, (long long)width);
    esp_unfold unfold = {.x = x,
                         .y = expected,
                         .features = features,
                         .columns = tokens,
                         .height = height,
                         .width = width,
                         .pitch = height * width,
                         .side = side};
    CHECK(b->ref->backend->ops->unfold(b->ref, NULL, &unfold) == ESP_OK);
    unfold.y = actual;
    CHECK(b->cpu->backend->ops->unfold(b->cpu, NULL, &unfold) == ESP_OK);
    compare(b, expected, actual, count, 0);
    int64_t middle = side * side / 2; /* a token itself */
    CHECK(memcmp(expected + middle * tokens, x, (size_t)tokens * sizeof *x) == 0);
    free(x);
    free_guarded(b, expected, count);
    free_guarded(b, actual, count);
}

/* Attention of the second of two grids, with what its rows and columns add. */
static void check_attention(bench *b, int64_t heads, int64_t dim, int64_t height, int64_t width)
{
    test_run *run = b->run;
    int64_t group = height * width, tokens = 2 * group, count = heads * dim * tokens;
    float *q = random_floats(b, count), *keys = random_floats(b, count);
    float *values = random_floats(b, count), *rows = random_floats(b, heads * height * tokens);
    float *columns = random_floats(b, heads * width * tokens);
    float *results[2] = {guarded(count), guarded(count)};
    esp_device *devices[2] = {b->ref, b->cpu};
    test_sub(run, "attention on a grid of %lldx%lld, %lld heads of %lld", (long long)height,
             (long long)width, (long long)heads, (long long)dim);
    for (int i = 0; i < 2; i++) {
        esp_attention a = {.q = q + group,
                           .keys = keys + group * dim,
                           .values = values + group * dim,
                           .y = results[i] + group,
                           .heads = heads,
                           .kv_heads = heads,
                           .head_dim = dim,
                           .tokens = group,
                           .capacity = tokens,
                           .stride = tokens,
                           .both_ways = true,
                           .scale = 1.0f / sqrtf((float)dim),
                           .row_bias = rows + group,
                           .column_bias = columns + group,
                           .grid_width = width};
        const esp_backend *backend = devices[i]->backend;
        size_t bytes = backend->ops->attention_workspace_bytes(devices[i], &a);
        a.workspace = backend->alloc(devices[i], bytes > 64 ? bytes : 64);
        CHECK(backend->ops->attention(devices[i], &a) == ESP_OK);
        backend->release(devices[i], a.workspace);
    }
    double score_error = ((double)dim + 4) * 0x1p-23 * (4 * sqrt((double)dim) + 4);
    compare(b, results[0], results[1], count,
            2 * (2 * score_error + ((double)group + 16) * 0x1p-23));
    for (int64_t i = 0; i < count; i++) {
        CHECK((i % tokens < group) == (results[1][i] == POISON));
    }
    free(q);
    free(keys);
    free(values);
    free(rows);
    free(columns);
    free_guarded(b, results[0], count);
    free_guarded(b, results[1], count);
}

static void check_level(test_run *run, const char *level, int threads)
{
    bench b = {.run = run};
    esp_random_seed(&b.random, test_seed(run));
    setenv("ESPALIER_CPU", level, 1);
    esp_context *context = test_context(run, threads);
    unsetenv("ESPALIER_CPU");
    REQUIRE_OK(esp_device_open(context, "ref", &b.ref, error));
    REQUIRE_OK(esp_device_open(context, "cpu", &b.cpu, error));
    static const int64_t grids[][2] = {{1, 1}, {1, 5}, {7, 1}, {3, 4}, {14, 14}, {9, 17}, {2, 70}};
    for (int i = 0; i < ESP_COUNT(grids); i++) {
        int64_t height = grids[i][0], width = grids[i][1];
        check_gather(&b, 1 + 5 * i, height * width, height * width + 3);
        check_relative(&b, 2, 5 + 15 * i, height, width, 3);
        check_unfold(&b, 3, height, width, 2, 3);
        check_unfold(&b, 2, height, width, 1, 5);
        check_attention(&b, 2, 16 + 20 * (i % 3), height, width);
    }
    esp_device_close(b.ref);
    esp_device_close(b.cpu);
    test_context_free(run, context);
}

static void portable(test_run *run)
{
    check_level(run, "portable", 3);
}

static void avx2(test_run *run)
{
    check_level(run, "avx2", 2);
}

static void avx512(test_run *run)
{
    check_level(run, "avx512", 5);
}

static const test_case cases[] = {{"portable", portable}, {"avx2", avx2}, {"avx512", avx512}};
TEST_MAIN(cases)
