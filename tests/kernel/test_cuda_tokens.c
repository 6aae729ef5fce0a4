/* What a model does with its tokens on the GPU, against the reference: rows of tables, columns that
 * move, the largest logit. As test_cuda_ops.c. */
#ifdef ESP_HAVE_CUDA
#include "gpu_bed.h"

/* ---- tokens ---- */

typedef struct embedding {
    gpu_type type;
    gpu_lookup lookups[GPU_MOST_LOOKUPS];
    int count;
    matrix *x;
} embedding;

static int go_embed(const void *user)
{
    const embedding *e = user;
    return gpu_embed(e->type, e->lookups, e->count, e->x->rows, e->x->columns, matrix_there(e->x),
                     e->x->stride, NULL);
}

static void embed_of(bed *b, int tables, int64_t features, int64_t tokens)
{
    matrix table[GPU_MOST_LOOKUPS], x = bed_matrix(b, b->type, features, tokens);
    int32_t *ids = malloc((size_t)tokens * sizeof *ids);
    float *expected = calloc((size_t)(features * tokens + 1), sizeof *expected);
    embedding e = {.type = gpu_type_of(b->type), .count = tables, .x = &x};
    test_sub(b->run, "embed of %d tables %lldx%lld stride %lld", tables, (long long)features,
             (long long)tokens, (long long)x.stride);
    for (int i = 0; i < tables; i++) {
        int64_t rows = i == 0 ? 100 : between(b, 1, 9);
        bool none = i == 2; /* row 0 for all */
        table[i] = bed_table(b, b->type, rows, features, 1);
        for (int64_t t = 0; t < tokens; t++) {
            ids[t] = none ? 0 : (int32_t)between(b, -2, rows + 1); /* outside: zeros */
            for (int64_t f = 0; ids[t] >= 0 && ids[t] < rows && f < features; f++) {
                expected[f * tokens + t] += matrix_get(&table[i], ids[t], f);
            }
        }
        e.lookups[i].table = matrix_there(&table[i]);
        e.lookups[i].rows =
            none ? NULL : device_copy(b->run, b->device, ids, (size_t)tokens * sizeof *ids);
        e.lookups[i].count = rows;
    }
    matrix_run(b->run, b->device, &x, go_embed, &e);
    matrix_compare(b->run, &x, expected, NULL); /* f32 sums in the order of the tables */
    for (int i = 0; i < tables; i++) {
        union {
            const void *read;
            void *held;
        } rows = {e.lookups[i].rows};
        esp_device_release(b->device, rows.held);
        matrix_free(b->device, &table[i]);
    }
    matrix_free(b->device, &x);
    free(ids);
    free(expected);
}

typedef struct gathering {
    gpu_type type;
    matrix *x, *y;
    void *index;
    bool add;
} gathering;

static int go_gather(const void *user)
{
    const gathering *g = user;
    return gpu_gather_columns(g->type, matrix_there(g->x), g->x->stride, g->x->rows, g->index,
                              g->y->columns, g->add, matrix_there(g->y), g->y->stride, NULL);
}

static void gather_of(bed *b, int64_t features, int64_t tokens, int64_t count, bool add)
{
    matrix x = bed_drawn(b, b->type, features, tokens, 3);
    matrix y = bed_drawn(b, b->type, features, count, 3);
    int32_t *index = malloc((size_t)count * sizeof *index);
    float *in = matrix_values(&x), *expected = matrix_values(&y);
    float *picked = malloc((size_t)(features * count + 1) * sizeof *picked);
    test_sub(b->run, "gather %lld of %lldx%lld%s", (long long)count, (long long)features,
             (long long)tokens, add ? " added" : "");
    for (int64_t i = 0; i < count; i++) {
        index[i] = (int32_t)between(b, -1, tokens - 1);
    }
    esp_ref_ops.gather_tokens(NULL, NULL, in, features, tokens, index, count, false, picked);
    for (int64_t i = 0; i < features * count; i++) {
        expected[i] = add ? expected[i] + picked[i] : picked[i];
    }
    gathering g = {gpu_type_of(b->type), &x, &y,
                   device_copy(b->run, b->device, index, (size_t)count * sizeof *index), add};
    matrix_run(b->run, b->device, &y, go_gather, &g);
    matrix_compare(b->run, &y, expected, NULL);
    esp_device_release(b->device, g.index);
    matrix_free(b->device, &x);
    matrix_free(b->device, &y);
    free(index);
    free(in);
    free(expected);
    free(picked);
}

static int go_place(const void *tokens)
{
    return gpu_place_image_tokens(tokens, NULL);
}

/* gaps: columns behind the patches of `from`, and behind the tokens of x. */
static void place_of(bed *b, int64_t features, int64_t images, int64_t patches, int64_t specials,
                     const int64_t gaps[2])
{
    int64_t from_pitch = patches + gaps[0], pitch = specials + patches + gaps[1];
    matrix from = bed_drawn(b, b->type, features, images * from_pitch, 2);
    matrix x = bed_matrix(b, b->type, features, images * pitch);
    matrix positions = bed_drawn(b, ESP_F32, features, specials + patches, 1);
    float *expected = malloc((size_t)(features * x.columns + 1) * sizeof *expected);
    bool in_place = specials == 0 && from_pitch == pitch && images % 2 == 0;
    matrix *to = in_place ? &from : &x;
    test_sub(b->run, "tokens of %lld images: %lld patches, %lld others, pitches %lld, %lld%s",
             (long long)images, (long long)patches, (long long)specials, (long long)from_pitch,
             (long long)pitch, in_place ? " in place" : "");
    for (int64_t i = 0; i < features * x.columns; i++) {
        int64_t f = i / x.columns, image = i % x.columns / pitch, t = i % x.columns % pitch;
        bool patch = t >= specials && t < specials + patches;
        float v = patch ? matrix_get(&from, f, image * from_pitch + t - specials) : 0.0f;
        expected[i] = t < specials + patches ? v + matrix_get(&positions, f, t) : 0.0f;
    }
    gpu_image_tokens tokens = {.type = gpu_type_of(b->type),
                               .from = matrix_there(&from),
                               .from_stride = from.stride,
                               .from_pitch = from_pitch,
                               .features = features,
                               .images = images,
                               .patches = patches,
                               .specials = specials,
                               .pitch = pitch,
                               .positions = matrix_there(&positions),
                               .positions_stride = positions.stride,
                               .x = matrix_there(to),
                               .x_stride = to->stride};
    matrix_run(b->run, b->device, to, go_place, &tokens);
    matrix_compare(b->run, to, expected, NULL);
    matrix_free(b->device, &from);
    matrix_free(b->device, &x);
    matrix_free(b->device, &positions);
    free(expected);
}

typedef struct choosing {
    matrix *logits, *ids;
} choosing;

static int go_argmax(const void *user)
{
    const choosing *c = user;
    return gpu_argmax(gpu_type_of(c->logits->type), matrix_there(c->logits), c->logits->stride,
                      c->logits->rows, c->logits->columns, matrix_there(c->ids), NULL);
}

/* kind: 0 as drawn, 1 nothing but NaN and -infinity, 2 equals everywhere, 3 NaN among numbers, 4
 * infinity. */
static void argmax_of(bed *b, esp_dtype type, int64_t count, int64_t size, int kind)
{
    test_run *run = b->run;
    matrix logits = bed_drawn(b, type, count, size, 10);
    matrix ids = bed_matrix(b, ESP_F32, 1, count);
    test_sub(b->run, "argmax of %lldx%lld type %d kind %d", (long long)count, (long long)size,
             (int)type, kind);
    for (int64_t i = 0; i < count * size; i++) {
        float v = matrix_get(&logits, i / size, i % size);
        bool odd = between(b, 0, 9) == 0;
        v = kind == 1 ? (odd ? -INFINITY : NAN) : kind == 2 ? floorf(v / 20) : v;
        v = kind == 3 && !odd ? NAN : kind == 4 && odd ? INFINITY : v;
        matrix_put(&logits, i / size, i % size, v);
    }
    matrix_upload(b->run, b->device, &logits);
    choosing c = {&logits, &ids};
    matrix_run(b->run, b->device, &ids, go_argmax, &c);
    for (int64_t row = 0; row < count; row++) {
        int32_t id, best = -1;
        float most = -INFINITY;
        memcpy(&id, matrix_at(&ids, 0, row), sizeof id);
        for (int64_t i = 0; i < size; i++) {
            float v = matrix_get(&logits, row, i);
            if (v > most) {
                most = v, best = (int32_t)i;
            }
        }
        CHECK_INT(id, best);
    }
    matrix_free(b->device, &logits);
    matrix_free(b->device, &ids);
}

static void tokens_ops(bed *b)
{
    static const int64_t none[2] = {0, 0}, three[2] = {3, 0}, both[2] = {4, 3};
    static const int shapes[][2] = {{1, 1},    {64, 1},    {65, 2},   {100, 63},
                                    {384, 64}, {768, 130}, {70, 1000}};
    for (int i = 0; i < ESP_COUNT(shapes); i++) {
        for (int tables = 1; tables <= GPU_MOST_LOOKUPS; tables++) {
            embed_of(b, tables, shapes[i][0], shapes[i][1]);
        }
        gather_of(b, shapes[i][0], shapes[i][1], 2 * shapes[i][1] + 1, false);
        gather_of(b, shapes[i][0], shapes[i][1], shapes[i][1], true);
    }
    place_of(b, 70, 3, 9, 1, three);
    place_of(b, 128, 2, 196, 1, both);
    place_of(b, 33, 1, 49, 2, both);
    place_of(b, 40, 2, 64, 0, none);
    place_of(b, 40, 1, 64, 0, none);
    for (int kind = 0; kind < 5; kind++) {
        argmax_of(b, ESP_F32, 3, 32000, kind);
        argmax_of(b, b->type, 17, 4099, kind);
        argmax_of(b, ESP_F32, 2, 1 + 7 * kind, kind);
        argmax_of(b, b->type, 1, 151936, kind);
    }
}

/* ---- cases ---- */

/* One of each kind, few enough for the tools that watch every access to memory. */
static void some_of_each(bed *b)
{
    static const int64_t gaps[2] = {3, 5};
    embed_of(b, 3, 100, 70);
    gather_of(b, 40, 50, 77, true);
    place_of(b, 40, 3, 9, 1, gaps);
    argmax_of(b, ESP_F32, 2, 5000, 3);
    argmax_of(b, b->type, 2, 100, 0);
}

static void random_of_each(bed *b)
{
    for (int i = 0; i < rounds_of(8, 10); i++) {
        int64_t tokens = random_log(&b->random, 1, 300);
        int64_t gaps[2] = {between(b, 0, 9), between(b, 0, 9)};
        embed_of(b, 1 + i % 3, between(b, 1, 500), tokens);
        gather_of(b, between(b, 1, 500), tokens, between(b, 1, 300), i % 2 == 1);
        place_of(b, between(b, 1, 200), between(b, 1, 4), between(b, 1, 60), between(b, 0, 2),
                 gaps);
        argmax_of(b, i % 2 == 0 ? ESP_F32 : b->type, between(b, 1, 5),
                  random_log(&b->random, 1, 40000), i % 5);
    }
}

ON_GPU(tokens_on_gpu, tokens_ops)
ON_GPU(some_for_sanitizers, some_of_each)
ON_GPU(random_problems, random_of_each)

static const test_case cases[] = {{"tokens", tokens_on_gpu},
                                  {"some_for_sanitizers", some_for_sanitizers},
                                  {"random_problems", random_problems}};
#else
#include "without_cuda.h"
#endif
TEST_MAIN(cases)
