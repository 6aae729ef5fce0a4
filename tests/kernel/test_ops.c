/* The other operations of the cpu, at every instruction-set level that this machine has, against
 * the reference: random inputs, sizes that divide nothing, any number of threads with the same
 * bits. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "op/op.h"
#include "test.h"

typedef struct bench {
    test_run *run;
    esp_random random;
    const char *level;
    int threads;
} bench;

static float *random_floats(bench *b, int64_t count)
{
    float *values = malloc((size_t)count * sizeof *values);
    for (int64_t i = 0; i < count; i++) {
        values[i] = (float)(4 * esp_random_uniform(&b->random) - 2);
    }
    return values;
}

static float *copy_floats(const float *from, int64_t count)
{
    float *values = malloc((size_t)count * sizeof *values);
    memcpy(values, from, (size_t)count * sizeof *values);
    return values;
}

/* |actual - expected| <= relative * |expected| + absolute, everywhere. */
static void compare(test_run *run, const char *what, const float *expected, const float *actual,
                    int64_t count, double relative, double absolute)
{
    for (int64_t i = 0; i < count; i++) {
        double want = (double)expected[i], have = (double)actual[i];
        if (!(fabs(have - want) <= relative * fabs(want) + absolute)) {
            test_fail(run, __FILE__, __LINE__, "%s [%lld]: %.9g, reference %.9g", what,
                      (long long)i, have, want);
            return;
        }
    }
}

static void check_rms_norm(bench *b, esp_device *ref, esp_device *cpu, int64_t features,
                           int64_t tokens)
{
    test_run *run = b->run;
    float *x = random_floats(b, features * tokens), *weight = random_floats(b, features);
    float *expected = copy_floats(x, features * tokens),
          *actual = copy_floats(x, features * tokens);
    test_sub(run, "%s rms_norm %lldx%lld", b->level, (long long)features, (long long)tokens);
    CHECK(ref->backend->ops->rms_norm(ref, NULL, x, weight, 1e-5f, features, tokens, expected) ==
          ESP_OK);
    CHECK(cpu->backend->ops->rms_norm(cpu, NULL, actual, weight, 1e-5f, features, tokens, actual) ==
          ESP_OK);
    /* a sum of `features` squares in any order, then a square root and two products */
    compare(run, "y", expected, actual, features * tokens, ((double)features + 8) * 0x1p-23, 0);
    free(x);
    free(weight);
    free(expected);
    free(actual);
}

static void check_layer_norm(bench *b, esp_device *ref, esp_device *cpu, int64_t features,
                             int64_t tokens)
{
    test_run *run = b->run;
    int64_t count = features * tokens;
    float *x = random_floats(b, count), *weight = random_floats(b, features);
    float *bias = random_floats(b, features), eps = 1e-3f;
    float *expected = copy_floats(x, count), *actual = copy_floats(x, count);
    test_sub(run, "%s layer_norm %lldx%lld", b->level, (long long)features, (long long)tokens);
    CHECK(ref->backend->ops->layer_norm(ref, NULL, x, weight, bias, eps, features, tokens,
                                        expected) == ESP_OK);
    CHECK(cpu->backend->ops->layer_norm(cpu, NULL, actual, weight, bias, eps, features, tokens,
                                        actual) == ESP_OK);
    /* The mean of values up to 2 is off by features * 2^-23, which the factor, at most 1 /
     * sqrt(eps), makes larger; the sum of squares in any order adds as much relatively. */
    double error = ((double)features + 8) * 0x1p-22 / sqrt((double)eps);
    compare(run, "y", expected, actual, count, ((double)features + 8) * 0x1p-22, 2 * error);
    free(x);
    free(weight);
    free(bias);
    free(expected);
    free(actual);
}

static void check_embed(bench *b, esp_device *ref, esp_device *cpu, int64_t hidden, int64_t tokens)
{
    test_run *run = b->run;
    static const esp_dtype types[] = {ESP_F32, ESP_F16, ESP_BF16};
    int64_t vocabulary = 57;
    int32_t *ids = malloc((size_t)tokens * sizeof *ids);
    float *values = random_floats(b, vocabulary * hidden);
    char *data = malloc((size_t)(vocabulary * hidden) * 4);
    float *expected = random_floats(b, hidden * tokens),
          *actual = random_floats(b, hidden * tokens);
    for (int64_t t = 0; t < tokens; t++) {
        ids[t] = (int32_t)esp_random_below(&b->random, (uint64_t)vocabulary);
    }
    for (int i = 0; i < ESP_COUNT(types); i++) {
        test_sub(run, "%s embed %s %lldx%lld", b->level, esp_dtype_name(types[i]),
                 (long long)hidden, (long long)tokens);
        esp_narrow(types[i], values, vocabulary * hidden, data);
        esp_tensor table = {types[i], 2, {vocabulary, hidden}, data};
        esp_embedding sum = {.tables = {&table, &table, &table},
                             .rows = {ids, ids, ids},
                             .count = 1 + i, /* of rows */
                             .columns = tokens,
                             .x = expected};
        CHECK(ref->backend->ops->embed(ref, NULL, &sum) == ESP_OK);
        sum.x = actual;
        CHECK(cpu->backend->ops->embed(cpu, NULL, &sum) == ESP_OK);
        CHECK(memcmp(expected, actual, (size_t)(hidden * tokens) * sizeof(float)) == 0);
    }
    free(ids);
    free(values);
    free(data);
    free(expected);
    free(actual);
}

static void check_rope(bench *b, esp_device *ref, esp_device *cpu, int64_t heads, int64_t head_dim,
                       int64_t tokens)
{
    test_run *run = b->run;
    int64_t count = heads * head_dim * tokens, angles = head_dim / 2 * tokens;
    float *expected = random_floats(b, count), *actual = copy_floats(expected, count);
    float *cosines = random_floats(b, angles), *sines = random_floats(b, angles);
    test_sub(run, "%s rope %lldx%lldx%lld", b->level, (long long)heads, (long long)head_dim,
             (long long)tokens);
    CHECK(ref->backend->ops->rope(ref, expected, cosines, sines, heads, head_dim, tokens) ==
          ESP_OK);
    CHECK(cpu->backend->ops->rope(cpu, actual, cosines, sines, heads, head_dim, tokens) == ESP_OK);
    compare(run, "x", expected, actual, count, 0x1p-22, 0x1p-20);
    free(expected);
    free(actual);
    free(cosines);
    free(sines);
}

static void run_attention(test_run *run, esp_device *device, esp_attention *a)
{
    size_t bytes = device->backend->ops->attention_workspace_bytes(device, a);
    char *workspace = aligned_alloc(64, (bytes + 127) / 64 * 64);
    memset(workspace, 0xff, bytes + 64);
    a->workspace = workspace;
    CHECK(device->backend->ops->attention(device, a) == ESP_OK);
    for (size_t i = 0; i < 64; i++) {
        CHECK((unsigned char)workspace[bytes + i] == 0xff);
    }
    free(workspace);
}

/* Keys and values come into the cache by cache_append; rows beyond are NaN and must not be seen. */
static void check_attention(bench *b, esp_device *ref, esp_device *cpu, int64_t kv_heads,
                            int64_t group, int64_t head_dim, int64_t past, int64_t tokens,
                            bool both_ways)
{
    test_run *run = b->run;
    int64_t heads = kv_heads * group, capacity = past + tokens + 3, dim = head_dim;
    int64_t stride = both_ways ? tokens + 5 : tokens; /* the rest belongs to other texts */
    int64_t cache = kv_heads * capacity * dim, count = heads * dim * stride;
    float *q = random_floats(b, count), *expected = random_floats(b, count);
    float *actual = copy_floats(expected, count), *keys[2], *values[2];
    float *old = random_floats(b, kv_heads * dim * (past + 1));
    float *k = random_floats(b, kv_heads * dim * tokens);
    float *v = random_floats(b, kv_heads * dim * tokens);
    esp_device *devices[2] = {ref, cpu};
    test_sub(run, "%s attention%s %lld heads of %lld, %lld to a key head, past %lld, %lld tokens",
             b->level, both_ways ? " both ways" : "", (long long)heads, (long long)dim,
             (long long)group, (long long)past, (long long)tokens);
    for (int i = 0; i < 2; i++) {
        const esp_ops *ops = devices[i]->backend->ops;
        keys[i] = malloc((size_t)cache * sizeof(float));
        values[i] = malloc((size_t)cache * sizeof(float));
        memset(keys[i], 0xff, (size_t)cache * sizeof(float));
        memset(values[i], 0xff, (size_t)cache * sizeof(float));
        if (past > 0) {
            CHECK(ops->cache_append(devices[i], old, past, kv_heads, dim, past, 0, capacity,
                                    keys[i]) == ESP_OK);
            CHECK(ops->cache_append(devices[i], old, past, kv_heads, dim, past, 0, capacity,
                                    values[i]) == ESP_OK);
        }
        CHECK(ops->cache_append(devices[i], k, tokens, kv_heads, dim, tokens, past, capacity,
                                keys[i]) == ESP_OK);
        CHECK(ops->cache_append(devices[i], v, tokens, kv_heads, dim, tokens, past, capacity,
                                values[i]) == ESP_OK);
        esp_attention a = {.q = q,
                           .keys = keys[i],
                           .values = values[i],
                           .y = i == 0 ? expected : actual,
                           .heads = heads,
                           .kv_heads = kv_heads,
                           .head_dim = dim,
                           .tokens = tokens,
                           .past = past,
                           .capacity = capacity,
                           .stride = both_ways ? stride : 0,
                           .both_ways = both_ways,
                           .scale = 1.0f / sqrtf((float)dim)};
        run_attention(run, devices[i], &a);
    }
    CHECK(memcmp(keys[0], keys[1], (size_t)cache * sizeof(float)) == 0);
    /* Scores are below 4 sqrt(dim) with error dim * 2^-23 of that; weights sum to 1, values <= 2.
     */
    double score_error = ((double)dim + 4) * 0x1p-23 * 4 * sqrt((double)dim);
    double bound = 2 * (2 * score_error + ((double)(past + tokens) + 16) * 0x1p-23);
    compare(run, "y", expected, actual, count, 0, bound);
    for (int64_t i = 0; i < count; i++) {
        CHECK(i % stride < tokens || memcmp(&expected[i], &actual[i], sizeof(float)) == 0);
    }
    free(q);
    free(expected);
    free(actual);
    free(old);
    free(k);
    free(v);
    for (int i = 0; i < 2; i++) {
        free(keys[i]);
        free(values[i]);
    }
}

/* Each token into the cache of its own sequence; nothing else is touched. */
static void check_scatter(bench *b, esp_device *ref, esp_device *cpu, int64_t kv_heads,
                          int64_t head_dim, int64_t tokens)
{
    test_run *run = b->run;
    enum { CAPACITY = 6 };
    int64_t cache = kv_heads * CAPACITY * head_dim;
    float *x = random_floats(b, kv_heads * head_dim * tokens);
    float *expected = random_floats(b, 2 * cache * tokens);
    float *actual = copy_floats(expected, 2 * cache * tokens);
    esp_cache_place *places[2];
    test_sub(run, "%s cache_scatter %lld heads of %lld, %lld tokens", b->level, (long long)kv_heads,
             (long long)head_dim, (long long)tokens);
    for (int side = 0; side < 2; side++) {
        float *base = side == 0 ? expected : actual;
        esp_device *device = side == 0 ? ref : cpu;
        places[side] = calloc((size_t)tokens, sizeof *places[side]);
        for (int64_t t = 0; t < tokens; t++) {
            places[side][t] = (esp_cache_place){base + 2 * t * cache, base + (2 * t + 1) * cache,
                                                (int32_t)(t % CAPACITY), CAPACITY};
        }
        for (int values = 0; values < 2; values++) {
            CHECK(device->backend->ops->cache_scatter(device, x, tokens, kv_heads, head_dim, tokens,
                                                      places[side], values == 1) == ESP_OK);
        }
    }
    CHECK(memcmp(expected, actual, (size_t)(2 * cache * tokens) * sizeof(float)) == 0);
    int64_t t = tokens - 1, h = kv_heads - 1, d = head_dim - 1, row = h * CAPACITY + t % CAPACITY;
    CHECK(expected[(2 * t + 1) * cache + row * head_dim + d] == x[(h * head_dim + d) * tokens + t]);
    free(x);
    free(expected);
    free(actual);
    free(places[0]);
    free(places[1]);
}

static void check_elementwise(bench *b, esp_device *ref, esp_device *cpu, int64_t count)
{
    test_run *run = b->run;
    float *gate = random_floats(b, count), *up = random_floats(b, count);
    static const float hard[] = {0.0f,    -0.0f,  87.0f,  -87.0f, 88.5f,  -88.5f, 100.0f,
                                 -100.0f, 1e-30f, -1e30f, 1e30f,  -20.0f, 20.0f};
    for (int64_t i = 0; i < count && i < ESP_COUNT(hard); i++) {
        gate[i] = hard[i];
    }
    float *expected = copy_floats(gate, count), *actual = copy_floats(gate, count);
    test_sub(run, "%s swiglu of %lld", b->level, (long long)count);
    CHECK(ref->backend->ops->swiglu(ref, NULL, gate, up, count, expected) == ESP_OK);
    CHECK(cpu->backend->ops->swiglu(cpu, NULL, actual, up, count, actual) == ESP_OK);
    compare(run, "swiglu", expected, actual, count, 8 * 0x1p-23, 1e-34);
    free(gate);
    free(up);
    free(expected);
    free(actual);
}

static void check_level(test_run *run, const char *level, int threads)
{
    bench b = {.run = run, .level = level, .threads = threads};
    esp_random_seed(&b.random, test_seed(run));
    setenv("ESPALIER_CPU", level, 1);
    esp_context *context = test_context(run, threads);
    unsetenv("ESPALIER_CPU");
    esp_device *ref = NULL, *cpu = NULL;
    REQUIRE_OK(esp_device_open(context, "ref", &ref, error));
    REQUIRE_OK(esp_device_open(context, "cpu", &cpu, error));
    static const int64_t sizes[][2] = {{1, 1}, {7, 1}, {384, 1}, {33, 2}, {65, 17}, {130, 200}};
    for (int i = 0; i < ESP_COUNT(sizes); i++) {
        check_rms_norm(&b, ref, cpu, sizes[i][0], sizes[i][1]);
        check_layer_norm(&b, ref, cpu, sizes[i][0], sizes[i][1]);
        check_embed(&b, ref, cpu, sizes[i][0], sizes[i][1]);
        check_elementwise(&b, ref, cpu, sizes[i][0] * sizes[i][1] * 3);
    }
    check_elementwise(&b, ref, cpu, 40000);
    check_scatter(&b, ref, cpu, 1, 5, 1);
    check_scatter(&b, ref, cpu, 3, 20, 37);
    check_scatter(&b, ref, cpu, 8, 64, 70);
    check_rope(&b, ref, cpu, 3, 10, 1);
    check_rope(&b, ref, cpu, 5, 64, 300);
    static const int64_t shapes[][5] = {{1, 1, 1, 0, 1},   {2, 3, 64, 0, 1},   {2, 3, 64, 37, 1},
                                        {1, 2, 20, 5, 2},  {2, 1, 33, 9, 3},   {2, 2, 64, 0, 4},
                                        {1, 3, 64, 0, 33}, {2, 2, 20, 11, 70}, {1, 1, 128, 3, 5},
                                        {1, 6, 64, 100, 1}};
    for (int i = 0; i < ESP_COUNT(shapes); i++) {
        for (int both_ways = 0; both_ways < 2; both_ways++) {
            check_attention(&b, ref, cpu, shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3],
                            shapes[i][4], both_ways == 1);
        }
    }
    esp_device_close(ref);
    esp_device_close(cpu);
    test_context_free(run, context);
}

static void portable(test_run *run)
{
    check_level(run, "portable", 1);
    check_level(run, "portable", 3);
}

static void avx2(test_run *run)
{
    check_level(run, "avx2", 2);
}

static void avx512(test_run *run)
{
    check_level(run, "avx512", 2);
    check_level(run, "avx512", 5);
}

static const test_case cases[] = {{"portable", portable}, {"avx2", avx2}, {"avx512", avx512}};
TEST_MAIN(cases)
