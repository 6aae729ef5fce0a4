/* The dense kernel of Hopper against the reference: small integers bit for bit, real numbers within
 * the derived bound; shapes that divide nothing that the kernel does not ask for, every part of a
 * tile, steps shared out by clusters, aligned and unaligned operands, residuals in place, NaN where
 * nothing may be read. test_cuda_epilogues.c has activations and many tiles on each multiprocessor.
 * Without such a GPU every case is skipped. */
#include "product_device.h"

#define KERNEL "cuda_sm90_" /* of the dense ones */

/* Strides are tight, a multiple of 16 bytes with gaps, or odd; bases aligned or not. */
static device_layout draw_layout(const product *p, uint64_t seed)
{
    uint64_t bits = esp_splitmix64(&(uint64_t){seed ^ 0xde5e});
    bool by_feature = p->problem.y_layout == ESP_FEATURE_MAJOR;
    int64_t x_row = p->problem.tokens, y_row = by_feature ? p->problem.tokens : p->out_rows;
    switch (bits % 4) {
    case 0:
        return (device_layout){(x_row + 7) / 8 * 8 + 8, (y_row + 7) / 8 * 8 + 16, 0, 0};
    case 1:
        return (device_layout){(x_row + 7) / 8 * 8, (y_row + 7) / 8 * 8, 0, 0};
    case 2:
        return (device_layout){x_row + 3, y_row + 5, (int64_t)(bits >> 8) % 3,
                               (int64_t)(bits >> 12) % 3};
    default:
        return (device_layout){x_row, y_row, 0, 0};
    }
}

static void compare(test_run *run, esp_device *device, esp_context *context, const char *text,
                    uint64_t seed, inputs kind, bool in_place)
{
    esp_matmul_problem problem = problem_of(run, text);
    const char *names[64];
    int count = usable_on(device, &problem, names), compared = 0;
    product p = product_make(run, context, &problem, seed, kind, false, false);
    float *expected = result_of(&p), *actual = result_of(&p);
    double *sums = kind == REALS ? magnitudes(run, &p) : NULL;
    run_kernel(run, &p, "ref", NULL, expected);
    p.in_place = in_place;
    for (int i = 0; i < count; i++) {
        if (strstr(names[i], KERNEL) == NULL) {
            continue;
        }
        device_layout layout = draw_layout(&p, seed + (uint64_t)i);
        test_sub(run, "%s seed %llu%s strides %lld %lld offsets %lld %lld %s", text,
                 (unsigned long long)seed, in_place ? " in place" : "", (long long)layout.x_stride,
                 (long long)layout.y_stride, (long long)layout.x_offset, (long long)layout.y_offset,
                 names[i]);
        run_on_gpu(run, &p, device, names[i], &layout, actual);
        if (kind == REALS) {
            compare_bounded(run, &p, sums, expected, actual);
        } else {
            compare_exact(run, &p, expected, actual);
        }
        compared++;
    }
    CHECK(compared > 0 || getenv("TEST_KERNEL") != NULL);
    free(sums);
    free(expected);
    free(actual);
    product_free(&p);
}

/* A GPU that has the kernel, or NULL after marking the case as skipped. */
static esp_device *open_hopper(test_run *run, esp_context *context)
{
    esp_device *device = open_gpu(run, context);
    esp_matmul_problem problem = problem_of(run, "matmul/dense/f16/64x64x64");
    const char *names[64];
    int count = device != NULL ? usable_on(device, &problem, names) : 0;
    for (int i = 0; i < count; i++) {
        if (strstr(names[i], KERNEL) != NULL) {
            return device;
        }
    }
    if (device != NULL) {
        test_skip(run, "the GPU has no dense kernel of compute capability 9.0");
        esp_device_close(device);
    }
    return NULL;
}

static const char *const types[] = {"f16", "bf16"};

typedef struct shape {
    int out, in, tokens;
} shape;

/* Each shape with one option after the other. */
static void compare_shapes(test_run *run, const shape *shapes, int count,
                           const char *const *options, int option_count, inputs kind)
{
    esp_context *context = test_context(run, 2);
    esp_device *device = open_hopper(run, context);
    for (int i = 0; device != NULL && i < count; i++) {
        for (int j = 0; j < option_count; j++) {
            char text[160];
            snprintf(text, sizeof text, "matmul/dense/%s/%dx%dx%d%s", types[(i + j) % 2],
                     shapes[i].out, shapes[i].in, shapes[i].tokens, options[j]);
            compare(run, device, context, text, test_seed(run) + (uint64_t)(100 * i + j), kind,
                    (i + j) % 2 == 1);
        }
    }
    esp_device_close(device);
    test_context_free(run, context);
}

static void shapes(test_run *run)
{
    static const shape sizes[] = {{16, 8, 1},     {16, 8, 8},      {32, 72, 3},     {48, 64, 17},
                                  {64, 128, 24},  {80, 136, 31},   {112, 200, 64},  {128, 64, 65},
                                  {144, 72, 100}, {176, 264, 129}, {208, 56, 255},  {256, 64, 256},
                                  {272, 8, 300},  {400, 40, 513},  {1104, 16, 600}, {16, 8200, 8},
                                  {528, 648, 40}, {96, 4096, 56}};
    static const char *const options[] = {"", "/o:f32"};
    compare_shapes(run, sizes, ESP_COUNT(sizes), options, ESP_COUNT(options), INTEGERS);
}

static void layouts_types_epilogues(test_run *run)
{
    static const shape sizes[] = {{144, 72, 3}, {144, 72, 37}, {144, 72, 296}, {272, 200, 72}};
    static const char *const options[] = {"/y:tok",
                                          "/y:tok/o:f32",
                                          "/o:f16",
                                          "/o:bf16",
                                          "/o:bf16/y:tok",
                                          "/ep:scale",
                                          "/ep:bias+relu",
                                          "/ep:residual",
                                          "/y:tok/ep:residual",
                                          "/o:f32/ep:residual",
                                          "/ep:scale+bias+residual",
                                          "/ep:scale+bias+relu+residual"};
    compare_shapes(run, sizes, ESP_COUNT(sizes), options, ESP_COUNT(options), INTEGERS);
}

static void smooth_epilogues(test_run *run)
{
    static const shape sizes[] = {{144, 72, 5}, {144, 136, 296}, {320, 200, 328}};
    static const char *const options[] = {
        "/ep:bias+gelu",    "/ep:bias+gelu_tanh", "/ep:silu",
        "/ep:swiglu",       "/ep:bias+swiglu",    "/ep:bias+gelu+residual",
        "/y:tok/ep:swiglu", "/o:f32/ep:gelu",     "/y:tok/ep:bias+gelu"};
    compare_shapes(run, sizes, ESP_COUNT(sizes), options, ESP_COUNT(options), REALS);
}

/* Every width of a part of a tile, behind whole ones and alone. */
static void parts_of_tiles(test_run *run)
{
    static const int tokens[] = {8,   40,  56,  72,  120, 130, 192, 200, 248, 264,  312, 321,
                                 376, 440, 500, 520, 584, 640, 711, 769, 896, 1000, 1032};
    static const char *const options[] = {"", "/ep:bias+residual"};
    for (int i = 0; i < ESP_COUNT(tokens); i++) {
        shape size = {336, 136, tokens[i]};
        compare_shapes(run, &size, 1, options, ESP_COUNT(options), INTEGERS);
    }
}

/* Few rows and many features: multiprocessors share out the steps of a tile. */
static void shared_steps(test_run *run)
{
    static const shape sizes[] = {
        {128, 520, 64}, {144, 1096, 200}, {64, 2104, 17}, {304, 1000, 128}, {256, 3072, 200},
        {80, 9000, 33}, {640, 4096, 256}, {16, 6000, 1},  {768, 768, 200},  {768, 3072, 200}};
    static const char *const options[] = {"", "/ep:scale+bias", "/ep:bias+residual", "/o:f32"};
    compare_shapes(run, sizes, ESP_COUNT(sizes), options, ESP_COUNT(options), INTEGERS);
}

/* What one image or text asks for: clusters of one to four and of eight blocks, tiles of 128 and of
 * 64 tokens, the last of few, one that is whole, and tokens that leave one by one. */
static void some_hundred_tokens(test_run *run)
{
    static const shape sizes[] = {{2304, 136, 197}, {768, 264, 200}, {1056, 200, 384},
                                  {208, 2056, 130}, {4096, 72, 320}, {16, 4096, 192},
                                  {144, 64, 577},   {1008, 136, 130}};
    static const char *const options[] = {"/ep:bias", "/ep:scale+bias+relu+residual",
                                          "/y:tok/ep:bias"};
    static const char *const smooth[] = {"/ep:bias+gelu", "/ep:bias+swiglu"};
    compare_shapes(run, sizes, ESP_COUNT(sizes), options, ESP_COUNT(options), INTEGERS);
    compare_shapes(run, sizes, 4, smooth, ESP_COUNT(smooth), REALS);
}

/* One shape of each kind, few enough for the tools that watch every access to memory. */
static void shapes_for_sanitizers(test_run *run)
{
    static const shape sizes[] = {{144, 136, 72}, {272, 200, 328}, {16, 520, 37}};
    static const char *const options[] = {"", "/ep:bias+residual", "/ep:bias+swiglu"};
    compare_shapes(run, sizes, ESP_COUNT(sizes), options, ESP_COUNT(options), REALS);
}

static const test_case cases[] = {{"shapes", shapes},
                                  {"layouts_types_epilogues", layouts_types_epilogues},
                                  {"smooth_epilogues", smooth_epilogues},
                                  {"parts_of_tiles", parts_of_tiles},
                                  {"shared_steps", shared_steps},
                                  {"some_hundred_tokens", some_hundred_tokens},
                                  {"shapes_for_sanitizers", shapes_for_sanitizers}};
TEST_MAIN(cases)
