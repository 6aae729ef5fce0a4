/* Windows of images on the GPU: a problem of groups, each a window, whose tokens are laid where
 * they lie in images. Those outside of an image have the key and value of all such, and no y. */
#ifndef ESP_TESTS_ATTENTION_WINDOWS_H
#define ESP_TESTS_ATTENTION_WINDOWS_H

#include "attention_device.h"

#include "cuda/gpu_windows.h"

typedef struct image_grid {
    int64_t images, rows, columns, window;
    int64_t pitch, stride; /* of images, in memory */
    bool tables, outside;  /* relative positions; missing tokens are not zeros */
} image_grid;

static int64_t windows_across(const image_grid *g)
{
    return (g->columns + g->window - 1) / g->window;
}

static int64_t windows_of_image(const image_grid *g)
{
    return (g->rows + g->window - 1) / g->window * windows_across(g);
}

/* The column of token t of window n, -1 outside. */
static int64_t place_of(const image_grid *g, int64_t n, int64_t t)
{
    int64_t image = n / windows_of_image(g), in_image = n % windows_of_image(g);
    int64_t row = in_image / windows_across(g) * g->window + t / g->window;
    int64_t column = in_image % windows_across(g) * g->window + t % g->window;
    bool inside = row < g->rows && column < g->columns;
    return inside ? image * g->pitch + row * g->columns + column : -1;
}

/* Missing tokens of windows get the key and value of `outside`; [2][heads * head_dim]. */
static void fill_outside(const problem *p, const image_grid *g, operands *o, const float *outside)
{
    int64_t rows = p->heads * p->head_dim;
    for (int64_t n = 0; n < p->groups; n++) {
        for (int64_t t = 0; t < p->tokens; t++) {
            for (int64_t f = 0; f < rows && place_of(g, n, t) < 0; f++) {
                int64_t at = f * o->stride + o->starts[n] + t;
                o->k[at] = narrow(p->type, g->outside ? (double)outside[f] : 0);
                o->v[at] = narrow(p->type, g->outside ? (double)outside[rows + f] : 0);
            }
        }
    }
}

/* From windows to images; the rest is NaN. */
static uint16_t *to_images(const problem *p, const image_grid *g, const operands *o,
                           const uint16_t *from)
{
    int64_t rows = p->heads * p->head_dim;
    uint16_t *to = poisoned(rows * g->stride);
    for (int64_t n = 0; n < p->groups; n++) {
        for (int64_t t = 0; t < p->tokens; t++) {
            int64_t place = place_of(g, n, t);
            for (int64_t f = 0; f < rows && place >= 0; f++) {
                to[f * g->stride + place] = from[f * o->stride + o->starts[n] + t];
            }
        }
    }
    return to;
}

/* y of images, taken apart into windows; what no window has must be as it was. */
static uint16_t *to_windows(test_run *run, const problem *p, const image_grid *g, operands *o,
                            uint16_t *from)
{
    int64_t rows = p->heads * p->head_dim;
    uint16_t *to = poisoned(rows * o->y_stride + 2 * Y_GUARD);
    for (int64_t n = 0; n < p->groups; n++) {
        for (int64_t t = 0; t < up(p->tokens, 8); t++) {
            int64_t place = t < p->tokens ? place_of(g, n, t) : -1;
            for (int64_t f = 0; f < rows; f++) {
                int64_t at = f * o->y_stride + o->starts[n] + t;
                if (place < 0) {
                    o->y[at] = NAN;
                    continue;
                }
                to[Y_GUARD + at] = from[Y_GUARD + f * g->stride + place];
                from[Y_GUARD + f * g->stride + place] = 0xffff;
            }
        }
    }
    for (int64_t i = 0; i < rows * g->stride + 2 * Y_GUARD; i++) {
        if (from[i] != 0xffff) {
            test_fail(run, __FILE__, __LINE__, "element %lld was written", (long long)i);
            break;
        }
    }
    return to;
}

static uint16_t *run_windows(test_run *run, const problem *p, const image_grid *g,
                             const operands *o, const float *outside, esp_device *device)
{
    int64_t rows = p->heads * p->head_dim, count = rows * g->stride + 2 * Y_GUARD;
    size_t bytes = (size_t)(rows * g->stride) * 2, vector = (size_t)rows * sizeof(float);
    size_t table = (size_t)((2 * g->window - 1) * p->head_dim) * sizeof(float);
    uint16_t *y = poisoned(count), *parts[3] = {to_images(p, g, o, o->q), to_images(p, g, o, o->k),
                                                to_images(p, g, o, o->v)};
    on_device all = {.device = device};
    char *block = give(run, &all, y, (size_t)count * 2);
    gpu_attention_windows call = {
        .type = type_of(p->type),
        .q = give(run, &all, parts[0], bytes),
        .k = give(run, &all, parts[1], bytes),
        .v = give(run, &all, parts[2], bytes),
        .y = block + Y_GUARD * 2,
        .stride = g->stride,
        .y_stride = g->stride,
        .heads = p->heads,
        .head_dim = p->head_dim,
        .images = g->images,
        .pitch = g->pitch,
        .rows = g->rows,
        .columns = g->columns,
        .window = g->window,
        .outside_k = g->outside ? give(run, &all, outside, vector) : NULL,
        .outside_v = g->outside ? give(run, &all, outside + rows, vector) : NULL,
        .scale = o->scale,
        .row_table = g->tables ? give(run, &all, o->row_table, table) : NULL,
        .column_table = g->tables ? give(run, &all, o->column_table, table) : NULL,
    };
    CHECK(gpu_can_attend_windows(&call));
    CHECK_INT(gpu_attend_windows(&call, NULL), 0);
    CHECK_INT(gpu_wait(), 0);
    CHECK_OK(esp_device_download(device, y, block, (size_t)count * 2, error));
    for (int i = 0; i < all.count; i++) {
        esp_device_release(device, all.memory[i]);
    }
    for (int i = 0; i < 3; i++) {
        free(parts[i]);
    }
    return y;
}

static void check_windows(test_run *run, esp_device *device, problem p, image_grid g)
{
    p.kind = GROUPS;
    p.kv_heads = p.heads;
    p.groups = g.images * windows_of_image(&g);
    p.tokens = g.window * g.window;
    p.grid_height = p.grid_width = g.tables ? g.window : 0;
    g.pitch = up(g.rows * g.columns, 8) + 8 * (int64_t)(p.seed % 2);
    g.stride = g.images * g.pitch + 8 * (int64_t)(p.seed % 3);
    test_sub(
        run, "windows %s heads %lld x %lld images %lld of %lldx%lld window %lld%s%s%s seed %llu",
        esp_dtype_name(p.type), (long long)p.heads, (long long)p.head_dim, (long long)g.images,
        (long long)g.rows, (long long)g.columns, (long long)g.window, g.tables ? " tables" : "",
        g.outside ? " outside" : "", p.integers ? " integers" : "", (unsigned long long)p.seed);
    operands o = operands_make(&p);
    esp_random random;
    esp_random_seed(&random, p.seed + 1);
    int64_t rows = p.heads * p.head_dim;
    float *outside = malloc((size_t)(2 * rows) * sizeof *outside);
    for (int64_t f = 0; f < 2 * rows; f++) {
        outside[f] = (float)draw(&p, &random, 1);
    }
    fill_outside(&p, &g, &o, outside);
    expect_all(&p, &o);
    uint16_t *first = run_windows(run, &p, &g, &o, outside, device);
    uint16_t *again = run_windows(run, &p, &g, &o, outside, device);
    CHECK(memcmp(first, again, (size_t)(rows * g.stride + 2 * Y_GUARD) * 2) == 0);
    uint16_t *y = to_windows(run, &p, &g, &o, first);
    compare(run, &p, &o, y);
    free(outside);
    free(first);
    free(again);
    free(y);
    operands_free(&o);
}

#endif
