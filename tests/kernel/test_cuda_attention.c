/* Attention on the GPU against plain C in f64: small integers bit for bit, real numbers within a
 * derived bound; lengths around every tile's edge, head sizes that are compiled and others, groups
 * of their own lengths and places, grids, windows, caches. What no query may see holds NaN; y lies
 * between guards, and each call is made twice for the same bits. Without a GPU every case is
 * skipped. TEST_ROUNDS sets how many random problems are drawn. */
#ifdef ESP_HAVE_CUDA
#include "attention_windows.h"

static const esp_dtype types[] = {ESP_F16, ESP_BF16};
static const int head_dims[] = {64, 32, 80, 128, 96};
static const int lengths[] = {1,  7,  8,   9,   15,  16,  17,  31,  63,  64,  65,
                              80, 81, 127, 128, 129, 144, 145, 197, 208, 257, 513};

typedef void (*each)(test_run *run, esp_device *device);

static void with_gpu(test_run *run, each body)
{
    esp_context *context = test_context(run, 1);
    esp_device *device = open_gpu(run, context);
    if (device != NULL) {
        body(run, device);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

static void groups_on(test_run *run, esp_device *device)
{
    for (int i = 0; i < ESP_COUNT(lengths); i++) {
        for (int j = 0; j < ESP_COUNT(head_dims); j++) {
            problem p = {.kind = GROUPS,
                         .type = types[(i + j) % 2],
                         .groups = 1 + j % 2,
                         .heads = 1 + i % 2,
                         .kv_heads = 1 + i % 2,
                         .head_dim = head_dims[j],
                         .tokens = lengths[i],
                         .integers = (i + j) % 3 == 0,
                         .seed = test_seed(run) + (uint64_t)(100 * i + j)};
            check(run, device, &p);
        }
    }
}

/* So many groups that a block takes all queries of a head. */
static void many_groups_on(test_run *run, esp_device *device)
{
    static const int tokens[] = {129, 144, 192, 193, 197, 200, 255, 256};
    for (int i = 0; i < ESP_COUNT(tokens); i++) {
        problem p = {.kind = GROUPS,
                     .type = types[i % 2],
                     .groups = 65,
                     .heads = 4,
                     .kv_heads = 4,
                     .head_dim = i == 3 ? 56 : 64,
                     .tokens = tokens[i],
                     .own_lengths = i % 4 == 2,
                     .integers = i % 3 == 0,
                     .seed = test_seed(run) + (uint64_t)i};
        check(run, device, &p);
    }
}

/* So many blocks of 128 queries that the GPU is full. */
static void many_blocks_on(test_run *run, esp_device *device)
{
    for (int i = 0; i < ESP_COUNT(lengths); i++) {
        int64_t blocks = (lengths[i] + 127) / 128;
        problem p = {.kind = GROUPS,
                     .type = types[i % 2],
                     .groups = (127 + 4 * blocks) / (4 * blocks),
                     .heads = 4,
                     .kv_heads = 4,
                     .head_dim = i % 4 == 1 ? 40 : 64,
                     .tokens = lengths[i],
                     .own_lengths = i % 3 == 2,
                     .integers = i % 4 == 3,
                     .seed = test_seed(run) + (uint64_t)i};
        check(run, device, &p);
        p.read = 1 + i % 3 * 64; /* 1, 65, 129 */
        check(run, device, &p);
    }
}

static void other_head_dims_on(test_run *run, esp_device *device)
{
    static const int dims[] = {1,   5,   8,   24,  33,  40,  48,  72, 88,
                               100, 112, 120, 136, 160, 192, 250, 256};
    for (int i = 0; i < ESP_COUNT(dims); i++) {
        problem p = {.kind = GROUPS,
                     .type = types[i % 2],
                     .groups = 2,
                     .heads = 2,
                     .kv_heads = 2,
                     .head_dim = dims[i],
                     .tokens = 70 + i,
                     .integers = i % 3 == 0,
                     .seed = test_seed(run) + (uint64_t)i};
        check(run, device, &p);
        p.integers = false;
        p.grid_width = 10;
        p.grid_height = 7;
        p.tokens = 70;
        check(run, device, &p);
        p = (problem){.kind = PREFILL,
                      .type = types[i % 2],
                      .groups = 1,
                      .heads = 2,
                      .kv_heads = 1,
                      .head_dim = up(dims[i], 8),
                      .tokens = 66 + i,
                      .past = 5,
                      .capacity = 99,
                      .integers = i % 3 == 0,
                      .seed = test_seed(run) + (uint64_t)i};
        check(run, device, &p);
        p.kind = DECODE;
        p.tokens = 1;
        p.groups = 3;
        p.past = 98;
        check(run, device, &p);
    }
}

static void own_lengths_on(test_run *run, esp_device *device)
{
    static const int most[] = {1, 9, 64, 65, 130, 300};
    for (int i = 0; i < ESP_COUNT(most); i++) {
        for (int j = 0; j < ESP_COUNT(head_dims); j++) {
            problem p = {.kind = GROUPS,
                         .type = types[(i + j) % 2],
                         .groups = 7,
                         .heads = 2,
                         .kv_heads = 2,
                         .head_dim = head_dims[j],
                         .tokens = most[i],
                         .own_lengths = true,
                         .integers = (i + j) % 3 == 0,
                         .seed = test_seed(run) + (uint64_t)(100 * i + j)};
            check(run, device, &p);
        }
    }
}

static void grids_on(test_run *run, esp_device *device)
{
    static const int grids[][2] = {{14, 14}, {1, 1},  {1, 7},  {7, 1},   {5, 3},  {8, 8}, {3, 64},
                                   {64, 3},  {9, 13}, {6, 32}, {20, 16}, {5, 63}, {9, 64}};
    for (int i = 0; i < ESP_COUNT(grids); i++) {
        for (int j = 0; j < ESP_COUNT(head_dims); j++) {
            problem p = {.kind = GROUPS,
                         .type = types[(i + j) % 2],
                         .groups = 1 + i % 3,
                         .heads = 1 + j % 2,
                         .kv_heads = 1 + j % 2,
                         .head_dim = head_dims[j],
                         .tokens = grids[i][0] * grids[i][1],
                         .grid_height = grids[i][0],
                         .grid_width = grids[i][1],
                         .read = (i + 1) % 2 * 5 * j,
                         .seed = test_seed(run) + (uint64_t)(100 * i + j)};
            check(run, device, &p);
        }
    }
}

static bool has_windows(void)
{
    gpu_facts facts;
    return gpu_get_facts(0, &facts) == 0 && facts.major == 9;
}

static void windows_on(test_run *run, esp_device *device)
{
    static const int sides[] = {14, 2, 4, 6, 8, 10, 12}, dims[] = {80, 64, 16, 72, 5};
    static const int grids[][2] = {{16, 16}, {28, 24}, {10, 10}, {3, 40},
                                   {20, 16}, {14, 56}, {64, 64}};
    if (!has_windows()) {
        test_skip(run, "no GPU of compute capability 9.0");
        return;
    }
    for (int i = 0; i < ESP_COUNT(sides); i++) {
        for (int j = 0; j < ESP_COUNT(grids); j++) {
            int n = i * ESP_COUNT(grids) + j;
            problem p = {.type = types[n % 2],
                         .heads = 1 + n % 3,
                         .head_dim = dims[(i + j) % ESP_COUNT(dims)],
                         .integers = n % 5 == 4,
                         .seed = test_seed(run) + (uint64_t)n};
            image_grid g = {.images = 1 + j % 3,
                            .rows = grids[j][0],
                            .columns = grids[j][1],
                            .window = sides[(i + j) % ESP_COUNT(sides)],
                            .tables = n % 4 != 3 && !p.integers,
                            .outside = n % 7 != 6};
            check_windows(run, device, p, g);
        }
    }
}

static void prefill_on(test_run *run, esp_device *device)
{
    static const int pasts[] = {0, 1, 63, 64, 100};
    for (int i = 0; i < ESP_COUNT(lengths); i++) {
        for (int j = 0; j < ESP_COUNT(head_dims); j++) {
            int past = pasts[(i + j) % ESP_COUNT(pasts)];
            problem p = {.kind = PREFILL,
                         .type = types[(i + j) % 2],
                         .groups = 1,
                         .heads = 2 + 2 * (i % 2),
                         .kv_heads = 1 + j % 2,
                         .head_dim = head_dims[j],
                         .tokens = lengths[i],
                         .past = past,
                         .capacity = past + lengths[i] + (i + j) % 4 * 5,
                         .past_on_device = j % 2 == 1,
                         .integers = (i + j) % 3 == 0,
                         .seed = test_seed(run) + (uint64_t)(100 * i + j)};
            check(run, device, &p);
        }
    }
    static const int past_many[] = {0, 1, 63, 64, 130, 200};
    for (int i = 0; i < ESP_COUNT(past_many); i++) {
        problem p = {.kind = PREFILL,
                     .type = types[i % 2],
                     .groups = 1,
                     .heads = 2,
                     .kv_heads = 1 + i % 2,
                     .head_dim = i == 4 ? 104 : 128,
                     .tokens = 1024 + 37 * i,
                     .past = past_many[i],
                     .capacity = 1024 + 37 * i + past_many[i] + i % 3 * 11,
                     .past_on_device = i % 2 == 0,
                     .integers = i == 3,
                     .seed = test_seed(run) + (uint64_t)i};
        check(run, device, &p);
    }
    for (int j = 0; j < ESP_COUNT(head_dims); j++) { /* many tokens */
        problem p = {.kind = PREFILL,
                     .type = types[j % 2],
                     .groups = 1,
                     .heads = 2,
                     .kv_heads = 1,
                     .head_dim = head_dims[j],
                     .tokens = 1024 + 9 * j,
                     .past = 70 * j,
                     .capacity = 1024 + 79 * j + j % 2,
                     .integers = j == 0,
                     .seed = test_seed(run) + (uint64_t)j};
        check(run, device, &p);
    }
}

static void decode_on(test_run *run, esp_device *device)
{
    static const int pasts[] = {0, 1, 7, 15, 16, 63, 64, 127, 200, 511, 1030, 3000};
    static const int sequences[] = {1, 2, 3, 16, 64, 5};
    static const int heads[][2] = {{4, 4}, {8, 1}, {6, 2}, {20, 1}, {1, 1}, {32, 32}};
    for (int i = 0; i < ESP_COUNT(pasts); i++) {
        for (int j = 0; j < ESP_COUNT(head_dims); j++) {
            int n = sequences[(i + j) % ESP_COUNT(sequences)],
                which = (i + 2 * j) % ESP_COUNT(heads);
            if (n * heads[which][0] * pasts[i] > 200000) {
                n = 1;
            }
            problem p = {.kind = DECODE,
                         .type = types[(i + j) % 2],
                         .groups = n,
                         .tokens = 1,
                         .heads = heads[which][0],
                         .kv_heads = heads[which][1],
                         .head_dim = head_dims[j],
                         .past = pasts[i],
                         .capacity = pasts[i] + 1 + (i + j) % 3 * 100,
                         .integers = (i + j) % 3 == 0,
                         .seed = test_seed(run) + (uint64_t)(100 * i + j)};
            check(run, device, &p);
        }
    }
}

static void random_problems_on(test_run *run, esp_device *device)
{
    const char *wanted = getenv("TEST_ROUNDS");
    int rounds = wanted != NULL ? atoi(wanted) : 60;
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int round = 0; round < rounds; round++) {
        int64_t group = random_range(&random, 1, 4), kv = random_range(&random, 1, 3);
        problem p = {.kind = (kind)esp_random_below(&random, 3),
                     .type = types[esp_random_below(&random, 2)],
                     .head_dim = esp_random_below(&random, 3) == 0
                                     ? random_range(&random, 1, GPU_MOST_HEAD_DIM)
                                     : head_dims[esp_random_below(&random, ESP_COUNT(head_dims))],
                     .tokens = random_log(&random, 1, 400),
                     .integers = esp_random_below(&random, 3) == 0,
                     .seed = esp_random_u64(&random)};
        p.heads = p.kv_heads = kv;
        p.groups = random_range(&random, 1, 5);
        if (p.kind == GROUPS) {
            p.own_lengths = esp_random_below(&random, 2) == 0;
            if (!p.own_lengths && esp_random_below(&random, 2) == 0) {
                p.grid_width = random_log(&random, 1, 30);
                p.grid_height = random_log(&random, 1, 20);
                p.tokens = p.grid_width * p.grid_height;
                p.integers = false;
            }
        } else {
            p.heads = group * kv;
            p.head_dim = up(p.head_dim, 8);
            p.past = random_log(&random, 1, 600) - 1;
            p.tokens = p.kind == DECODE ? 1 : p.tokens;
            p.groups = p.kind == DECODE ? random_log(&random, 1, 40) : 1;
            p.capacity = p.past + p.tokens + random_range(&random, 0, 70);
            p.past_on_device = esp_random_below(&random, 2) == 0;
        }
        check(run, device, &p);
    }
}

/* One shape of each class, few enough for the tools that watch every access to memory. */
static void sanitizer_on(test_run *run, esp_device *device)
{
    for (int i = 0; i < ESP_COUNT(head_dims) + 1; i++) {
        int64_t dim = i < ESP_COUNT(head_dims) ? head_dims[i] : 200;
        problem p = {.kind = GROUPS,
                     .type = types[i % 2],
                     .groups = 3,
                     .heads = 2,
                     .kv_heads = 2,
                     .head_dim = dim,
                     .tokens = 197,
                     .seed = test_seed(run) + (uint64_t)i};
        check(run, device, &p);
        p.own_lengths = true;
        check(run, device, &p);
        p.own_lengths = false;
        if (i == 0) {
            p.groups = 128;
            check(run, device, &p);
            p.groups = 3;
        }
        p.grid_height = 9;
        p.grid_width = 14;
        p.tokens = 126;
        check(run, device, &p);
        image_grid g = {
            .images = 2, .rows = 20, .columns = 16, .window = 14, .tables = true, .outside = true};
        if (dim <= GPU_WINDOWS_MOST_HEAD_DIM && has_windows()) {
            check_windows(run, device, p, g);
        }
        p.grid_height = 3;
        p.grid_width = 64;
        p.tokens = 192;
        check(run, device, &p);
        p = (problem){.kind = PREFILL,
                      .type = types[i % 2],
                      .groups = 1,
                      .heads = 2,
                      .kv_heads = 1,
                      .head_dim = dim,
                      .tokens = 150,
                      .past = 33,
                      .capacity = 190,
                      .seed = test_seed(run) + (uint64_t)i};
        check(run, device, &p);
        p.kind = DECODE;
        p.tokens = 1;
        p.groups = 3;
        p.past = 180;
        check(run, device, &p);
    }
}

static void refused_on(test_run *run, esp_device *device)
{
    char *memory = esp_device_alloc(device, 1 << 16);
    gpu_attention_groups good = {.type = GPU_F16,
                                 .q = memory,
                                 .k = memory + 4096,
                                 .v = memory + 8192,
                                 .y = memory + 12288,
                                 .stride = 16,
                                 .y_stride = 16,
                                 .heads = 2,
                                 .head_dim = 32,
                                 .groups = 2,
                                 .tokens = 7,
                                 .pitch = 8,
                                 .scale = 1};
    gpu_attention_groups bad[] = {good, good, good, good, good, good, good, good, good};
    bad[0].type = GPU_F32;
    bad[1].q = memory + 2;
    bad[2].stride = 15;
    bad[3].pitch = 12;
    bad[4].head_dim = 257;
    bad[5].scale = -1;
    bad[6].pitch = 0;
    bad[7].grid_width = 7;
    bad[7].row_table = (const float *)memory;
    bad[8].heads = 0;
    for (int i = 0; i < ESP_COUNT(bad); i++) {
        test_sub(run, "groups %d", i);
        CHECK(gpu_attend_groups(&bad[i], NULL) != 0);
    }
    gpu_attention_windows whole = {.type = GPU_F16,
                                   .q = memory,
                                   .k = memory + 4096,
                                   .v = memory + 8192,
                                   .y = memory + 12288,
                                   .stride = 64,
                                   .y_stride = 64,
                                   .heads = 1,
                                   .head_dim = 32,
                                   .images = 1,
                                   .pitch = 64,
                                   .rows = 8,
                                   .columns = 8,
                                   .window = 4,
                                   .scale = 1};
    gpu_attention_windows wrong[] = {whole, whole, whole, whole, whole, whole, whole, whole};
    wrong[0].window = 5;
    wrong[1].window = GPU_WIDEST_WINDOW + 2;
    wrong[2].columns = 7;
    wrong[3].head_dim = GPU_WINDOWS_MOST_HEAD_DIM + 1;
    wrong[4].row_table = (const float *)memory;
    wrong[5].pitch = 56;
    wrong[6].stride = 56;
    wrong[7].images = -1;
    for (int i = 0; i < ESP_COUNT(wrong); i++) {
        test_sub(run, "windows %d", i);
        CHECK(gpu_attend_windows(&wrong[i], NULL) != 0);
    }
    test_sub(run, "nothing to do");
    good.tokens = 0;
    CHECK_INT(gpu_attend_groups(&good, NULL), 0);
    CHECK_INT(gpu_wait(), 0);
    esp_device_release(device, memory);
}

#define ON_GPU(name)                                                                               \
    static void name(test_run *run)                                                                \
    {                                                                                              \
        with_gpu(run, name##_on);                                                                  \
    }
ON_GPU(groups)
ON_GPU(many_groups)
ON_GPU(many_blocks)
ON_GPU(other_head_dims)
ON_GPU(own_lengths)
ON_GPU(grids)
ON_GPU(windows)
ON_GPU(prefill)
ON_GPU(decode)
ON_GPU(random_problems)
ON_GPU(sanitizer)
ON_GPU(refused)

static const test_case cases[] = {
    {"groups", groups},           {"many_groups", many_groups},
    {"many_blocks", many_blocks}, {"other_head_dims", other_head_dims},
    {"own_lengths", own_lengths}, {"grids", grids},
    {"windows", windows},         {"prefill", prefill},
    {"decode", decode},           {"random", random_problems},
    {"sanitizer", sanitizer},     {"refused", refused},
};

#else
#include "without_cuda.h"
#endif

TEST_MAIN(cases)
