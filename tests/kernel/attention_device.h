/* A problem of attention on the GPU: operands go there, y comes back between guards and is
 * compared. */
#ifndef ESP_TESTS_ATTENTION_DEVICE_H
#define ESP_TESTS_ATTENTION_DEVICE_H

#include "attention_problem.h"

#define Y_GUARD 256 /* elements on either side of y */

typedef struct on_device {
    esp_device *device;
    void *memory[16];
    int count;
} on_device;

static void *give(test_run *run, on_device *all, const void *from, size_t bytes)
{
    void *to = esp_device_alloc(all->device, bytes > 0 ? bytes : 1);
    CHECK(to != NULL);
    all->memory[all->count++] = to;
    if (from != NULL && bytes > 0) {
        CHECK_OK(esp_device_upload(all->device, to, from, bytes, error));
    }
    return to;
}

static gpu_type type_of(esp_dtype type)
{
    return type == ESP_BF16 ? GPU_BF16 : GPU_F16;
}

static int call_groups(const problem *p, const operands *o, test_run *run, on_device *all, void *y)
{
    size_t bytes = (size_t)(p->heads * p->head_dim * o->stride) * 2;
    size_t list = (size_t)p->groups * sizeof(int32_t);
    size_t row = (size_t)((2 * p->grid_height - 1) * p->head_dim) * sizeof(float);
    size_t column = (size_t)((2 * p->grid_width - 1) * p->head_dim) * sizeof(float);
    bool grid = p->grid_width > 0;
    gpu_attention_groups call = {
        .type = type_of(p->type),
        .q = give(run, all, o->q, bytes),
        .k = give(run, all, o->k, bytes),
        .v = give(run, all, o->v, bytes),
        .y = y,
        .stride = o->stride,
        .y_stride = o->y_stride,
        .heads = p->heads,
        .head_dim = p->head_dim,
        .groups = p->groups,
        .tokens = p->tokens,
        .pitch = o->pitch,
        .starts = p->own_lengths ? give(run, all, o->starts, list) : NULL,
        .lengths = p->own_lengths ? give(run, all, o->lengths, list) : NULL,
        .read = p->read,
        .scale = o->scale,
        .row_table = grid ? give(run, all, o->row_table, row) : NULL,
        .column_table = grid ? give(run, all, o->column_table, column) : NULL,
        .grid_width = p->grid_width,
    };
    int failed = gpu_attend_groups(&call, NULL);
    return failed != 0 ? failed : gpu_wait();
}

static int call_prefill(const problem *p, const operands *o, test_run *run, on_device *all, void *y)
{
    int32_t past = (int32_t)p->past;
    size_t bytes = (size_t)o->cache_elements * 2;
    gpu_attention_prefill call = {
        .type = type_of(p->type),
        .q = give(run, all, o->q, (size_t)(p->heads * p->head_dim * o->stride) * 2),
        .stride = o->stride,
        .keys = give(run, all, o->k, bytes),
        .values = give(run, all, o->v, bytes),
        .capacity = p->capacity,
        .y = y,
        .y_stride = o->y_stride,
        .heads = p->heads,
        .kv_heads = p->kv_heads,
        .head_dim = p->head_dim,
        .tokens = p->tokens,
        .past = p->past_on_device ? 0 : p->past,
        .past_at = p->past_on_device ? give(run, all, &past, sizeof past) : NULL,
        .scale = o->scale,
    };
    int failed = gpu_attend_prefill(&call, NULL);
    return failed != 0 ? failed : gpu_wait();
}

static int call_decode(const problem *p, const operands *o, test_run *run, on_device *all, void *y)
{
    /* Layers 0 and 2 of three hold NaN. */
    size_t cache = (size_t)o->cache_elements * 2, of_sequence = 6 * cache;
    size_t bytes = (size_t)p->groups * of_sequence;
    uint16_t *host = poisoned((int64_t)bytes / 2);
    for (int64_t n = 0; n < p->groups; n++) {
        uint16_t *layer = host + ((size_t)n * of_sequence + 2 * cache) / 2;
        memcpy(layer, o->k + n * o->cache_elements, cache);
        memcpy(layer + o->cache_elements, o->v + n * o->cache_elements, cache);
    }
    char *caches = give(run, all, host, bytes);
    free(host);
    gpu_place *places = calloc((size_t)p->groups, sizeof *places);
    for (int64_t n = 0; n < p->groups; n++) {
        char *keys = caches + (size_t)n * of_sequence;
        places[n] = (gpu_place){keys, keys + cache, o->pasts[n], (int32_t)p->capacity};
    }
    gpu_facts facts;
    int failed = gpu_get_facts(0, &facts);
    CHECK_INT(failed, 0);
    gpu_attention_decode call = {
        .type = type_of(p->type),
        .q = give(run, all, o->q, (size_t)(p->heads * p->head_dim * o->stride) * 2),
        .stride = o->stride,
        .y = y,
        .y_stride = o->y_stride,
        .places = give(run, all, places, (size_t)p->groups * sizeof *places),
        .layer = 1,
        .sequences = p->groups,
        .longest = p->capacity,
        .heads = p->heads,
        .kv_heads = p->kv_heads,
        .head_dim = p->head_dim,
        .scale = o->scale,
        .multiprocessors = facts.multiprocessors,
        .overlaps = facts.major >= 9,
    };
    free(places);
    failed = gpu_attend_decode(&call, NULL);
    return failed != 0 ? failed : gpu_wait();
}

/* y of one call, with its guards; the block was all ones before. */
static uint16_t *run_once(test_run *run, const problem *p, const operands *o, esp_device *device)
{
    int64_t count = p->heads * p->head_dim * o->y_stride + 2 * Y_GUARD;
    uint16_t *y = poisoned(count);
    on_device all = {.device = device};
    char *block = give(run, &all, y, (size_t)count * 2);
    int failed = p->kind == GROUPS    ? call_groups(p, o, run, &all, block + Y_GUARD * 2)
                 : p->kind == PREFILL ? call_prefill(p, o, run, &all, block + Y_GUARD * 2)
                                      : call_decode(p, o, run, &all, block + Y_GUARD * 2);
    if (failed != 0) {
        test_fail(run, __FILE__, __LINE__, "%s", gpu_error_text(failed));
    }
    CHECK_OK(esp_device_download(device, y, block, (size_t)count * 2, error));
    for (int i = 0; i < all.count; i++) {
        esp_device_release(device, all.memory[i]);
    }
    return y;
}

/* A column that nobody reads. */
static bool may_be_left(const problem *p, const operands *o, int64_t column)
{
    for (int64_t g = 0; g < p->groups && p->read > 0; g++) {
        if (column >= o->starts[g] + p->read && column < up(o->starts[g] + o->lengths[g], 8)) {
            return true;
        }
    }
    return false;
}

static void compare(test_run *run, const problem *p, const operands *o, const uint16_t *block)
{
    int64_t rows = p->heads * p->head_dim;
    const uint16_t *y = block + Y_GUARD;
    for (int64_t i = 0; i < Y_GUARD; i++) {
        REQUIRE(block[i] == 0xffff && y[rows * o->y_stride + i] == 0xffff);
    }
    double worst = 0;
    for (int64_t i = 0; i < rows * o->y_stride; i++) {
        long long row = i / o->y_stride, column = i % o->y_stride;
        if (isnan(o->y[i])) {
            if (y[i] != 0xffff) {
                test_fail(run, __FILE__, __LINE__, "row %lld column %lld was written", row, column);
                return;
            }
            continue;
        }
        if (y[i] == 0xffff && may_be_left(p, o, column)) {
            continue;
        }
        double actual = widen(p->type, y[i]), off = fabs(actual - o->y[i]);
        if (!(off <= o->bounds[i])) {
            test_fail(run, __FILE__, __LINE__,
                      "row %lld column %lld: %.9g, reference %.9g, bound %.3g", row, column, actual,
                      o->y[i], o->bounds[i]);
            return;
        }
        worst = o->bounds[i] > 0 ? fmax(worst, off / o->bounds[i]) : worst;
    }
    if (getenv("TEST_WORST") != NULL) {
        printf("worst %.3f\n", worst);
    }
}

static const char *const kinds[] = {"groups", "prefill", "decode"};

static void check(test_run *run, esp_device *device, const problem *p)
{
    test_sub(run,
             "%s %s heads %lld/%lld x %lld groups %lld tokens %lld past %lld of %lld grid %lldx%lld"
             "%s%s read %lld seed %llu",
             kinds[p->kind], esp_dtype_name(p->type), (long long)p->heads, (long long)p->kv_heads,
             (long long)p->head_dim, (long long)p->groups, (long long)p->tokens, (long long)p->past,
             (long long)p->capacity, (long long)p->grid_height, (long long)p->grid_width,
             p->own_lengths ? " own lengths" : "", p->integers ? " integers" : "",
             (long long)p->read, (unsigned long long)p->seed);
    operands o = operands_make(p);
    expect_all(p, &o);
    uint16_t *first = run_once(run, p, &o, device), *again = run_once(run, p, &o, device);
    compare(run, p, &o, first);
    size_t bytes = (size_t)(p->heads * p->head_dim * o.y_stride + 2 * Y_GUARD) * 2;
    CHECK(memcmp(first, again, bytes) == 0);
    free(first);
    free(again);
    operands_free(&o);
}

#endif
