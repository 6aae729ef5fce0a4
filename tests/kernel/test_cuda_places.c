/* What a model needs on the GPU besides products and attention, against the reference: positions,
 * caches, patches and neighbourhoods. As test_cuda_ops.c. */
#ifdef ESP_HAVE_CUDA
#include "gpu_bed.h"

/* ---- positions and caches ---- */

typedef struct turning {
    const float *frequencies;
    gpu_positions positions;
    matrix *cosines, *sines;
    bool is_sine; /* what this run is looked at for; both are written */
} turning;

static int go_angles(const void *user)
{
    const turning *t = user;
    return gpu_rope_angles(t->frequencies, &t->positions, 2 * t->cosines->rows, t->cosines->columns,
                           matrix_there(t->cosines), matrix_there(t->sines), t->cosines->stride,
                           NULL);
}

/* Exact to the last place but one. */
static void compare_angles(bed *b, const matrix *m, const float *frequencies,
                           const int64_t *positions, bool sine)
{
    for (int64_t i = 0; i < m->rows * m->columns; i++) {
        float angle = frequencies[i / m->columns] * (float)positions[i % m->columns];
        double wanted = sine ? sin((double)angle) : cos((double)angle);
        double away = fabs((double)matrix_get(m, i / m->columns, i % m->columns) - wanted);
        if (!(away <= fabs(wanted) * 0x1p-22)) {
            test_fail(b->run, __FILE__, __LINE__, "pair %lld token %lld of angle %g: off by %g",
                      (long long)(i / m->columns), (long long)(i % m->columns), (double)angle,
                      away);
            return;
        }
    }
}

/* way: 0 running from base, 1 running from base and a number of the device, 2 from places. */
static void angles_of(bed *b, int64_t half, int64_t tokens, int way)
{
    laying how = laying_draw(&b->random, tokens);
    matrix cosines = matrix_make(b->run, b->device, ESP_F32, half, tokens, how);
    matrix sines = matrix_make(b->run, b->device, ESP_F32, half, tokens, how);
    matrix frequencies = bed_table(b, ESP_F32, 1, half, 1);
    float *numbers = matrix_values(&frequencies);
    int64_t *positions = malloc((size_t)tokens * sizeof *positions);
    gpu_place *places = calloc((size_t)tokens, sizeof *places);
    for (int64_t t = 0; t < tokens; t++) {
        places[t].past = (int32_t)between(b, 0, 100000);
        positions[t] = way == 0 ? 1000 + t : way == 1 ? 1000 + places[0].past + t : places[t].past;
    }
    void *there = device_copy(b->run, b->device, places, (size_t)tokens * sizeof *places);
    const int32_t *past = (const int32_t *)((char *)there + offsetof(gpu_place, past));
    turning t = {.frequencies = matrix_there(&frequencies), .cosines = &cosines, .sines = &sines};
    t.positions =
        way == 2 ? (gpu_positions){.at = past, .step = sizeof(gpu_place) / 4}
                 : (gpu_positions){.base = 1000, .at = way == 1 ? past : NULL, .running = true};
    test_sub(b->run, "angles of %lldx%lld way %d", (long long)half, (long long)tokens, way);
    matrix_upload(b->run, b->device, &sines);
    matrix_run(b->run, b->device, &cosines, go_angles, &t);
    compare_angles(b, &cosines, numbers, positions, false);
    matrix_run(b->run, b->device, &sines, go_angles, &t);
    compare_angles(b, &sines, numbers, positions, true);
    esp_device_release(b->device, there);
    matrix_free(b->device, &cosines);
    matrix_free(b->device, &sines);
    matrix_free(b->device, &frequencies);
    free(numbers);
    free(positions);
    free(places);
}

static int go_append(const void *append)
{
    return gpu_rope_append_run(append, NULL);
}

/* Where sequences are: one whose tokens follow one another, or one for each token, of different
 * capacities and in one block of memory, that all have `layers` layers. */
typedef struct caches {
    matrix memory;                        /* one row: all caches */
    int64_t *begins, *pasts, *capacities; /* of each token's sequence */
    int64_t layer;
    bool sequences;
} caches;

static caches caches_make(bed *b, bool sequences, int64_t kv_heads, int64_t head_dim,
                          int64_t tokens)
{
    caches c = {.sequences = sequences, .layer = sequences ? between(b, 0, 2) : 0};
    int64_t total = 0, layers = c.layer + 1;
    c.begins = malloc((size_t)tokens * sizeof *c.begins);
    c.pasts = malloc((size_t)tokens * sizeof *c.pasts);
    c.capacities = malloc((size_t)tokens * sizeof *c.capacities);
    for (int64_t t = 0; t < tokens; t++) {
        if (!sequences && t > 0) {
            c.begins[t] = 0, c.pasts[t] = c.pasts[0] + t, c.capacities[t] = c.capacities[0];
            continue;
        }
        c.pasts[t] = between(b, 0, 20);
        /* The last row that is wanted may lie behind the cache, and is then left out. */
        c.capacities[t] = c.pasts[t] + (sequences ? 1 : tokens) + between(b, -1, 5);
        c.begins[t] = total;
        total += 2 * layers * kv_heads * ESP_MAX(c.capacities[t], 0) * head_dim;
    }
    c.memory = matrix_make(b->run, b->device, b->type, 1, ESP_MAX(total, 1), (laying){0, 0});
    return c;
}

static void caches_free(bed *b, caches *c)
{
    matrix_free(b->device, &c->memory);
    free(c->begins);
    free(c->pasts);
    free(c->capacities);
}

/* Element 0 of a sequence's keys or values in its layer, among all caches. */
static int64_t cache_begin(const caches *c, int64_t token, bool values, int64_t kv_heads,
                           int64_t head_dim)
{
    int64_t step = kv_heads * c->capacities[token] * head_dim;
    return c->begins[token] + (2 * c->layer + (values ? 1 : 0)) * step;
}

/* What is expected in the caches: everything else stays poison. */
static void remember(const caches *c, const float *x, int64_t kv_heads, int64_t head_dim,
                     int64_t tokens, bool values, const matrix *to)
{
    for (int64_t i = 0; i < kv_heads * head_dim * tokens; i++) {
        int64_t t = i % tokens, head = i / tokens / head_dim, d = i / tokens % head_dim;
        int64_t begin = cache_begin(c, t, values, kv_heads, head_dim);
        int64_t row = head * c->capacities[t] + c->pasts[t];
        if (c->pasts[t] < c->capacities[t]) {
            matrix_put(to, 0, begin + row * head_dim + d, x[i]);
        }
    }
}

static void append_of(bed *b, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t tokens,
                      bool sequences, bool turns)
{
    test_run *run = b->run;
    int64_t rows = (heads + 2 * kv_heads) * head_dim, half = head_dim / 2;
    matrix qkv = bed_drawn(b, b->type, rows, tokens, 3);
    laying how = laying_draw(&b->random, tokens);
    matrix cosines = matrix_make(b->run, b->device, ESP_F32, half, tokens, how);
    matrix sines = matrix_make(b->run, b->device, ESP_F32, half, tokens, how);
    matrix_draw(&cosines, &b->random, 1);
    matrix_draw(&sines, &b->random, 1);
    matrix_upload(b->run, b->device, &cosines);
    matrix_upload(b->run, b->device, &sines);
    caches c = caches_make(b, sequences, kv_heads, head_dim, tokens);
    test_sub(b->run, "append %lld+%lld heads of %lld, %lld tokens%s%s stride %lld",
             (long long)heads, (long long)kv_heads, (long long)head_dim, (long long)tokens,
             sequences ? " of as many sequences" : "", turns ? "" : " not turned",
             (long long)qkv.stride);
    float *all = matrix_values(&qkv), *turn[2] = {matrix_values(&cosines), matrix_values(&sines)};
    float *k = all + heads * head_dim * tokens, *v = k + kv_heads * head_dim * tokens;
    if (turns) {
        esp_ref_ops.rope(NULL, all, turn[0], turn[1], heads + kv_heads, head_dim, tokens);
    }
    gpu_place *places = calloc((size_t)tokens, sizeof *places);
    for (int64_t t = 0; t < tokens; t++) {
        char *begin = (char *)matrix_there(&c.memory) + (size_t)c.begins[t] * 2;
        int64_t step = kv_heads * c.capacities[t] * head_dim;
        places[t] =
            (gpu_place){begin, begin + 2 * step, (int32_t)c.pasts[t], (int32_t)c.capacities[t]};
    }
    char *there = device_copy(b->run, b->device, places, (size_t)tokens * sizeof *places);
    char *q = matrix_there(&qkv);
    size_t row_bytes = (size_t)qkv.stride * 2;
    bool counted = !sequences && between(b, 0, 1) == 0; /* `past` from the device's memory */
    gpu_rope_append append = {.type = gpu_type_of(b->type),
                              .q = q,
                              .k = q + (size_t)(heads * head_dim) * row_bytes,
                              .v = q + (size_t)((heads + kv_heads) * head_dim) * row_bytes,
                              .stride = qkv.stride,
                              .heads = heads,
                              .kv_heads = kv_heads,
                              .head_dim = head_dim,
                              .tokens = tokens,
                              .cosines = turns ? matrix_there(&cosines) : NULL,
                              .sines = turns ? matrix_there(&sines) : NULL,
                              .angle_stride = cosines.stride,
                              .keys = places[0].keys,
                              .values = places[0].values,
                              .capacity = c.capacities[0],
                              .past = counted ? 0 : c.pasts[0],
                              .past_at =
                                  counted ? (int32_t *)(there + offsetof(gpu_place, past)) : NULL,
                              .places = sequences ? (gpu_place *)there : NULL,
                              .layer = c.layer};
    matrix expected = matrix_make(b->run, b->device, b->type, 1, c.memory.columns, (laying){0, 0});
    remember(&c, k, kv_heads, head_dim, tokens, false, &expected);
    remember(&c, v, kv_heads, head_dim, tokens, true, &expected);
    gpu_rope_append bare = append; /* q is turned once only: the caches are looked at without it */
    bare.q = NULL;
    matrix_run(b->run, b->device, &c.memory, go_append, &bare);
    CHECK(memcmp(c.memory.host, expected.host, expected.bytes) == 0);
    matrix_run(b->run, b->device, &qkv, go_append, &append);
    float *untouched = matrix_values(&qkv);
    matrix only_q = qkv;
    only_q.rows = heads * head_dim;
    matrix_compare(b->run, &only_q, all, NULL);
    esp_device_release(b->device, there);
    matrix_free(b->device, &qkv);
    matrix_free(b->device, &cosines);
    matrix_free(b->device, &sines);
    matrix_free(b->device, &expected);
    caches_free(b, &c);
    free(untouched);
    free(all);
    free(turn[0]);
    free(turn[1]);
    free(places);
}

typedef struct advancing {
    void *places;
    int64_t count;
} advancing;

static void advance_of(bed *b, int64_t count)
{
    test_run *run = b->run;
    gpu_place *places = calloc((size_t)count, sizeof *places),
              *after = calloc((size_t)count, sizeof *after);
    for (int64_t i = 0; i < count; i++) {
        places[i] = (gpu_place){places, after, (int32_t)i, (int32_t)(1000 + i)};
    }
    void *there = device_copy(b->run, b->device, places, (size_t)count * sizeof *places);
    test_sub(b->run, "advance %lld", (long long)count);
    CHECK(gpu_advance(there, count, 3, NULL) == 0);
    CHECK(esp_device_download(b->device, after, there, (size_t)count * sizeof *after, NULL) ==
          ESP_OK);
    for (int64_t i = 0; i < count; i++) {
        places[i].past += 3;
    }
    CHECK(memcmp(places, after, (size_t)count * sizeof *after) == 0);
    esp_device_release(b->device, there);
    free(places);
    free(after);
}

static void rope_ops(bed *b)
{
    static const int shapes[][4] = {
        {1, 1, 2, 1},   {4, 2, 64, 1},   {4, 4, 128, 3},  {3, 1, 80, 8},   {2, 2, 96, 16},
        {8, 2, 32, 65}, {2, 1, 256, 70}, {1, 1, 10, 130}, {4, 1, 128, 64}, {2, 2, 128, 200}};
    for (int i = 0; i < ESP_COUNT(shapes); i++) {
        const int *s = shapes[i];
        for (int k = 0; k < 4; k++) {
            append_of(b, s[0], s[1], s[2], s[3], k % 2 == 1, k < 2);
        }
        for (int way = 0; way < 3; way++) {
            angles_of(b, s[2] / 2, s[3], way);
        }
        advance_of(b, s[3]);
    }
}

/* ---- images ---- */

static int go_patches(const void *patches)
{
    return gpu_cut_patches(patches, NULL);
}

static void patches_of(bed *b, bool wide, int64_t images, const int64_t size[3], int64_t gap)
{
    int64_t height = size[0], width = size[1], patch = size[2], channels = between(b, 1, 3);
    int64_t down = height / patch, across = width / patch, pitch = down * across + gap;
    esp_dtype type = wide ? ESP_F32 : b->type;
    matrix pixels = bed_table(b, type, images * channels * height, width, 2);
    matrix y = bed_matrix(b, b->type, channels * patch * patch, images * pitch);
    float *expected = calloc((size_t)(y.rows * y.columns + 1), sizeof *expected);
    test_sub(b->run, "patches of %lld of %lld images of %lldx%lldx%lld%s", (long long)patch,
             (long long)images, (long long)channels, (long long)height, (long long)width,
             wide ? " f32" : "");
    for (int64_t i = 0; i < y.rows * y.columns; i++) {
        int64_t row = i / y.columns, image = i % y.columns / pitch, place = i % y.columns % pitch;
        int64_t channel = row / (patch * patch), line = row / patch % patch, right = row % patch;
        if (place < down * across) {
            expected[i] = matrix_get(
                &pixels, (image * channels + channel) * height + place / across * patch + line,
                place % across * patch + right);
        }
    }
    gpu_patches cut = {.pixel_type = gpu_type_of(type),
                       .pixels = matrix_there(&pixels),
                       .images = images,
                       .channels = channels,
                       .height = height,
                       .width = width,
                       .patch = patch,
                       .type = gpu_type_of(b->type),
                       .y = matrix_there(&y),
                       .y_stride = y.stride,
                       .pitch = pitch};
    matrix_run(b->run, b->device, &y, go_patches, &cut);
    matrix_compare(b->run, &y, expected, NULL);
    matrix_free(b->device, &pixels);
    matrix_free(b->device, &y);
    free(expected);
}

static int go_unfold(const void *unfold)
{
    return gpu_unfold_grids(unfold, NULL);
}

/* Grid by grid as the reference does it; what lies between grids is left alone. */
static void unfold_of(bed *b, int64_t features, int64_t grids, const int64_t size[3], int64_t gap)
{
    int64_t height = size[0], width = size[1], side = size[2], tokens = height * width;
    int64_t pitch = tokens + gap, columns = (grids - 1) * pitch + tokens;
    matrix x = bed_drawn(b, b->type, features, columns, 3);
    matrix y = bed_drawn(b, b->type, features * side * side, columns, 1);
    float *expected = matrix_values(&y), *grid = malloc((size_t)(features * tokens) * sizeof *grid);
    float *unfolded = malloc((size_t)(y.rows * tokens) * sizeof *unfolded);
    test_sub(b->run, "unfold %lld of %lld grids %lldx%lld pitch %lld", (long long)side,
             (long long)grids, (long long)height, (long long)width, (long long)pitch);
    for (int64_t g = 0; g < grids; g++) {
        esp_unfold one = {.x = grid,
                          .y = unfolded,
                          .features = features,
                          .columns = tokens,
                          .height = height,
                          .width = width,
                          .pitch = tokens,
                          .side = side};
        for (int64_t i = 0; i < features * tokens; i++) {
            grid[i] = matrix_get(&x, i / tokens, g * pitch + i % tokens);
        }
        esp_ref_ops.unfold(NULL, NULL, &one);
        for (int64_t i = 0; i < y.rows * tokens; i++) {
            expected[i / tokens * columns + g * pitch + i % tokens] = unfolded[i];
        }
    }
    gpu_unfold unfold = {.type = gpu_type_of(b->type),
                         .x = matrix_there(&x),
                         .x_stride = x.stride,
                         .y = matrix_there(&y),
                         .y_stride = y.stride,
                         .features = features,
                         .grids = grids,
                         .height = height,
                         .width = width,
                         .pitch = pitch,
                         .side = side};
    matrix_run(b->run, b->device, &y, go_unfold, &unfold);
    matrix_compare(b->run, &y, expected, NULL);
    matrix_free(b->device, &x);
    matrix_free(b->device, &y);
    free(expected);
    free(grid);
    free(unfolded);
}

static void image_ops(bed *b)
{
    static const int64_t sizes[][3] = {{32, 32, 16},  {224, 224, 16}, {50, 37, 7},
                                       {100, 130, 1}, {64, 640, 32},  {60, 60, 20}};
    static const int64_t grids[][3] = {{1, 1, 3}, {4, 5, 3}, {14, 14, 3}, {7, 33, 5}, {30, 40, 1}};
    for (int i = 0; i < ESP_COUNT(sizes); i++) {
        patches_of(b, i % 2 == 0, 1 + i % 3, sizes[i], i % 4);
        patches_of(b, i % 2 == 1, 2, sizes[i], 0);
    }
    for (int i = 0; i < ESP_COUNT(grids); i++) {
        unfold_of(b, 3 + i, 1 + i % 3, grids[i], i % 4);
        unfold_of(b, 8, 2, grids[i], 0);
    }
}

/* ---- cases ---- */

/* One of each kind, few enough for the tools that watch every access to memory. */
static void some_of_each(bed *b)
{
    static const int64_t image[3] = {40, 33, 8}, grid[3] = {5, 7, 3};
    angles_of(b, 32, 9, 2);
    append_of(b, 2, 1, 64, 70, false, true);
    append_of(b, 2, 2, 96, 3, true, true);
    advance_of(b, 3);
    patches_of(b, true, 2, image, 3);
    unfold_of(b, 5, 2, grid, 3);
}

static void random_of_each(bed *b)
{
    for (int i = 0; i < rounds_of(3, 10); i++) {
        int64_t side = 2 * between(b, 0, 3) + 1;
        int64_t image[3] = {between(b, 1, 80), between(b, 1, 80), between(b, 1, 33)};
        int64_t grid[3] = {between(b, 1, 20), between(b, 1, 20), side};
        image[2] = ESP_MIN(image[2], ESP_MIN(image[0], image[1]));
        append_of(b, between(b, 1, 5), between(b, 1, 3), 2 * between(b, 1, 128), between(b, 1, 150),
                  i % 2 == 0, i % 5 != 0);
        patches_of(b, i % 2 == 0, between(b, 1, 3), image, between(b, 0, 5));
        unfold_of(b, between(b, 1, 9), between(b, 1, 3), grid, between(b, 0, 5));
    }
}

ON_GPU(rope_on_gpu, rope_ops)
ON_GPU(images_on_gpu, image_ops)
ON_GPU(some_for_sanitizers, some_of_each)
ON_GPU(random_problems, random_of_each)

static const test_case cases[] = {{"rope", rope_on_gpu},
                                  {"images", images_on_gpu},
                                  {"some_for_sanitizers", some_for_sanitizers},
                                  {"random_problems", random_problems}};
#else
#include "without_cuda.h"
#endif
TEST_MAIN(cases)
