/* Attention on the GPU against plain C in f64: small integers bit for bit, real numbers within a
 * derived bound; lengths around every tile's edge, head sizes that are compiled and others, groups
 * of their own lengths and places, grids, caches. What no query may see holds NaN; y lies between
 * guards, and each call is made twice for the same bits. Without a GPU every case is skipped.
 * TEST_ROUNDS sets how many random problems are drawn. */
#include "product_device.h"

#ifndef ESP_HAVE_CUDA

static void without_cuda(test_run *run)
{
    test_skip(run, "built without CUDA");
}

static const test_case cases[] = {{"without_cuda", without_cuda}};

#else

#include "cuda/gpu_attention.h"

/* ---- problems ---- */

typedef enum kind { GROUPS, PREFILL, DECODE } kind;

typedef struct problem {
    kind kind;
    esp_dtype type;
    int64_t heads, kv_heads, head_dim;
    int64_t groups, tokens; /* decode: sequences are groups of one token */
    int64_t past, capacity; /* prefill; decode: the most of each */
    bool own_lengths;       /* groups: lengths and starts of their own */
    bool past_on_device;    /* prefill */
    int64_t grid_height, grid_width;
    bool integers; /* scores differ by much or not at all, so that results are exact */
    uint64_t seed;
} problem;

/* All of it on the host; what nobody may see is NaN. */
typedef struct operands {
    int64_t stride, y_stride, columns, pitch;
    int32_t *starts, *lengths; /* of queries; decode: column n and 1 */
    int32_t *pasts;            /* decode */
    uint16_t *q, *k, *v;       /* [heads * head_dim][stride], or caches one after the other */
    float *row_table, *column_table;
    float scale;
    double *y, *bounds; /* [heads * head_dim][y_stride]; NAN: not to be written */
    int64_t cache_elements;
} operands;

static int64_t up(int64_t count, int64_t to)
{
    return (count + to - 1) / to * to;
}

static uint16_t narrow(esp_dtype type, double value)
{
    float wide = (float)value;
    uint16_t bits;
    esp_narrow(type, &wide, 1, &bits);
    return bits;
}

static double widen(esp_dtype type, uint16_t bits)
{
    float wide;
    esp_widen(type, &bits, 1, &wide);
    return (double)wide;
}

static uint16_t *poisoned(int64_t count)
{
    uint16_t *made = malloc((size_t)count * 2 + 2);
    memset(made, 0xff, (size_t)count * 2);
    return made;
}

static double draw(const problem *p, esp_random *random, double width)
{
    return p->integers ? (double)random_range(random, -4, 4)
                       : width * (2 * esp_random_uniform(random) - 1);
}

/* Columns first .. first + count - 1 of all rows. */
static void draw_columns(const problem *p, esp_random *random, double width, uint16_t *to,
                         int64_t rows, int64_t stride, int64_t first, int64_t count)
{
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t t = first; t < first + count; t++) {
            to[r * stride + t] = narrow(p->type, draw(p, random, width));
        }
    }
}

static void draw_cache(const problem *p, esp_random *random, double width, uint16_t *to,
                       int64_t filled)
{
    for (int64_t h = 0; h < p->kv_heads; h++) {
        for (int64_t i = 0; i < filled * p->head_dim; i++) {
            to[h * p->capacity * p->head_dim + i] = narrow(p->type, draw(p, random, width));
        }
    }
}

static void place_groups(const problem *p, esp_random *random, operands *o)
{
    o->starts = calloc((size_t)p->groups, sizeof *o->starts);
    o->lengths = calloc((size_t)p->groups, sizeof *o->lengths);
    o->pasts = calloc((size_t)p->groups, sizeof *o->pasts);
    int64_t at = 0;
    o->pitch = up(p->tokens, 8) + 8 * (int64_t)esp_random_below(random, 2);
    for (int64_t g = 0; g < p->groups; g++) {
        o->starts[g] = (int32_t)at;
        o->lengths[g] = (int32_t)p->tokens;
        if (p->kind == DECODE) {
            o->pasts[g] = (int32_t)random_range(random, 0, p->past);
            at += 1;
        } else if (p->own_lengths) {
            o->lengths[g] = (int32_t)random_range(random, g % 3 == 2 ? 0 : 1, p->tokens);
            at += up(o->lengths[g], 8) + 8 * (int64_t)esp_random_below(random, 3);
        } else {
            at += o->pitch;
        }
    }
    o->columns = at;
    if (p->kind == DECODE) {
        o->pasts[0] = (int32_t)p->past;
        o->stride = at + (int64_t)esp_random_below(random, 3);
        o->y_stride = at + (int64_t)esp_random_below(random, 3);
    } else {
        o->stride = up(at, 8) + 8 * (int64_t)esp_random_below(random, 3);
        o->y_stride = up(at, 8) + 8 * (int64_t)esp_random_below(random, 3);
    }
}

static void draw_tables(const problem *p, esp_random *random, double width, operands *o)
{
    if (p->grid_width == 0) {
        return;
    }
    int64_t rows = (2 * p->grid_height - 1) * p->head_dim;
    int64_t columns = (2 * p->grid_width - 1) * p->head_dim;
    o->row_table = malloc((size_t)rows * sizeof(float));
    o->column_table = malloc((size_t)columns * sizeof(float));
    for (int64_t i = 0; i < rows; i++) {
        o->row_table[i] = (float)draw(p, random, width);
    }
    for (int64_t i = 0; i < columns; i++) {
        o->column_table[i] = (float)draw(p, random, width);
    }
}

/* With log2(e) exactly 2^8: powers of integers are then 1 or nothing, and nothing is rounded. */
static float exact_scale(void)
{
    const float log2_e = 1.4426950408889634f;
    float scale = 256 / log2_e;
    while (scale * log2_e > 256) {
        scale = nextafterf(scale, 0);
    }
    while (scale * log2_e < 256) {
        scale = nextafterf(scale, 256);
    }
    return scale;
}

static operands operands_make(const problem *p)
{
    operands o = {.scale = p->integers ? exact_scale() : (float)(1 / sqrt((double)p->head_dim))};
    esp_random random;
    esp_random_seed(&random, p->seed);
    place_groups(p, &random, &o);
    int64_t rows = p->heads * p->head_dim;
    o.q = poisoned(rows * o.stride);
    o.cache_elements = p->kv_heads * p->capacity * p->head_dim;
    int64_t sequences = p->kind == DECODE ? p->groups : 1;
    int64_t others = p->kind == GROUPS ? rows * o.stride : sequences * o.cache_elements;
    o.k = poisoned(others);
    o.v = poisoned(others);
    draw_tables(p, &random, 0.5, &o);
    for (int64_t g = 0; g < p->groups; g++) {
        draw_columns(p, &random, 3, o.q, rows, o.stride, o.starts[g], o.lengths[g]);
        if (p->kind == GROUPS) {
            draw_columns(p, &random, 3, o.k, rows, o.stride, o.starts[g], o.lengths[g]);
            draw_columns(p, &random, 1, o.v, rows, o.stride, o.starts[g], o.lengths[g]);
        } else {
            int64_t past = p->kind == DECODE ? o.pasts[g] : p->past;
            draw_cache(p, &random, 3, o.k + g * o.cache_elements, past + p->tokens);
            draw_cache(p, &random, 1, o.v + g * o.cache_elements, past + p->tokens);
        }
    }
    o.y = malloc((size_t)(rows * o.y_stride) * sizeof *o.y);
    o.bounds = calloc((size_t)(rows * o.y_stride), sizeof *o.bounds);
    for (int64_t i = 0; i < rows * o.y_stride; i++) {
        o.y[i] = NAN;
    }
    return o;
}

static void operands_free(operands *o)
{
    free(o->starts);
    free(o->lengths);
    free(o->pasts);
    free(o->q);
    free(o->k);
    free(o->v);
    free(o->row_table);
    free(o->column_table);
    free(o->y);
    free(o->bounds);
}

/* ---- reference ---- */

/* Feature d of key or value s of group g and head h. */
static double kv_at(const problem *p, const operands *o, const uint16_t *from, int64_t g, int64_t h,
                    int64_t s, int64_t d)
{
    if (p->kind == GROUPS) {
        return widen(p->type, from[(h * p->head_dim + d) * o->stride + o->starts[g] + s]);
    }
    int64_t kv = h / (p->heads / p->kv_heads);
    return widen(p->type, from[g * o->cache_elements + (kv * p->capacity + s) * p->head_dim + d]);
}

/* Of one group and head, widened once. */
typedef struct widened {
    double *k, *v; /* [keys][head_dim] */
    int64_t keys;
} widened;

/* q . row `at` of a table, rounded as the kernel rounds it, and the sum of its magnitudes. */
static double relate(const problem *p, const double *q, const float *table, int64_t at,
                     double *magnitude)
{
    double sum = 0;
    for (int64_t d = 0; d < p->head_dim; d++) {
        double term = q[d] * widen(p->type, narrow(p->type, (double)table[at * p->head_dim + d]));
        sum += term;
        *magnitude += fabs(term);
    }
    return sum;
}

/* Scaled scores of query t and how far each may be off: a sum of n products within (n + 2) 2^-23 of
 * its magnitudes, the scaling by 2^-22 of the score's, and of the largest one's, which is
 * subtracted. */
static void score(const problem *p, const operands *o, const double *q, int64_t t, const widened *w,
                  int64_t seen, double *scores, double *errors)
{
    double scale = (double)o->scale, largest = 0;
    for (int64_t s = 0; s < seen; s++) {
        double sum = 0, magnitude = 0, added = 0, wide = (double)(p->head_dim + 2) * 0x1p-23;
        for (int64_t d = 0; d < p->head_dim; d++) {
            double term = q[d] * w->k[s * p->head_dim + d];
            sum += term;
            magnitude += fabs(term);
        }
        if (p->grid_width > 0) {
            double of_bias = 0;
            int64_t row = t / p->grid_width - s / p->grid_width + p->grid_height - 1;
            int64_t column = t % p->grid_width - s % p->grid_width + p->grid_width - 1;
            added = relate(p, q, o->row_table, row, &of_bias) +
                    relate(p, q, o->column_table, column, &of_bias);
            magnitude += of_bias / scale;
        }
        scores[s] = sum * scale + added;
        errors[s] = wide * magnitude * scale + 0x1p-21 * fabs(scores[s]);
        largest = fmax(largest, fabs(scores[s]));
    }
    for (int64_t s = 0; s < seen; s++) {
        errors[s] += 0x1p-22 * largest + 0x1p-21;
    }
}

/* One query: numerators p within their error e and, as 16 bits, within u p + 2^-25; y = sum p v /
 * sum p, rounded to 16 bits. */
static void expect(const problem *p, operands *o, const widened *w, int64_t feature, int64_t column,
                   int64_t seen, const double *scores, const double *errors)
{
    double u = p->type == ESP_BF16 ? 0x1p-8 : 0x1p-11, most = -INFINITY, total = 0, wrong = 0;
    double *powers = malloc((size_t)seen * sizeof *powers);
    for (int64_t s = 0; s < seen; s++) {
        most = fmax(most, scores[s]);
    }
    for (int64_t s = 0; s < seen; s++) {
        powers[s] = exp(scores[s] - most);
        total += powers[s];
        wrong += powers[s] * (errors[s] + (double)(seen + 2) * 0x1p-23);
    }
    for (int64_t d = 0; d < p->head_dim; d++) {
        double sum = 0, off = 0, accumulated = (double)(seen + 2) * 0x1p-22;
        for (int64_t s = 0; s < seen; s++) {
            double v = w->v[s * p->head_dim + d];
            sum += powers[s] * v;
            off += (powers[s] * (errors[s] + u + accumulated) + 0x1p-25) * fabs(v);
        }
        int64_t at = (feature + d) * o->y_stride + column;
        o->y[at] = sum / total;
        double bound = (off + fabs(sum / total) * wrong) / total;
        o->bounds[at] = 1.01 * bound + u * (fabs(sum / total) + bound) + 0x1p-25;
        if (p->integers) { /* the other powers vanish beside those of 1 */
            o->y[at] = widen(p->type, narrow(p->type, (double)((float)sum * (1 / (float)total))));
            o->bounds[at] = 0;
        }
    }
    free(powers);
}

static void expect_head(const problem *p, operands *o, int64_t g, int64_t h)
{
    int64_t length = o->lengths[g], dim = p->head_dim;
    int64_t past = p->kind == DECODE ? o->pasts[g] : p->past;
    int64_t keys = p->kind == GROUPS ? length : past + length;
    widened w = {malloc((size_t)(keys * dim + 1) * sizeof *w.k),
                 malloc((size_t)(keys * dim + 1) * sizeof *w.v), keys};
    double *scores = malloc((size_t)(2 * keys + 1) * sizeof *scores), q[GPU_MOST_HEAD_DIM];
    for (int64_t s = 0; s < keys; s++) {
        for (int64_t d = 0; d < dim; d++) {
            w.k[s * dim + d] = kv_at(p, o, o->k, g, h, s, d);
            w.v[s * dim + d] = kv_at(p, o, o->v, g, h, s, d);
        }
    }
    for (int64_t t = 0; t < length; t++) {
        int64_t seen = p->kind == GROUPS ? keys : past + t + 1;
        for (int64_t d = 0; d < dim; d++) {
            q[d] = widen(p->type, o->q[(h * dim + d) * o->stride + o->starts[g] + t]);
        }
        score(p, o, q, t, &w, seen, scores, scores + keys);
        expect(p, o, &w, h * dim, o->starts[g] + t, seen, scores, scores + keys);
    }
    free(scores);
    free(w.k);
    free(w.v);
}

static void expect_all(const problem *p, operands *o)
{
    for (int64_t g = 0; g < p->groups; g++) {
        for (int64_t h = 0; h < p->heads; h++) {
            expect_head(p, o, g, h);
        }
        int64_t end = o->starts[g] + o->lengths[g];
        for (int64_t t = end; p->kind != DECODE && t < up(end, 8); t++) {
            for (int64_t f = 0; f < p->heads * p->head_dim; f++) {
                o->y[f * o->y_stride + t] = 0;
            }
        }
    }
}

/* ---- running ---- */

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
    /* Caches begin behind 16 bytes that belong to another layer. */
    size_t bytes = (size_t)(p->groups * o->cache_elements) * 2 + 16;
    char *keys = give(run, all, NULL, bytes), *values = give(run, all, NULL, bytes);
    CHECK_OK(esp_device_upload(all->device, keys + 16, o->k, bytes - 16, error));
    CHECK_OK(esp_device_upload(all->device, values + 16, o->v, bytes - 16, error));
    gpu_place *places = calloc((size_t)p->groups, sizeof *places);
    for (int64_t n = 0; n < p->groups; n++) {
        places[n] =
            (gpu_place){keys + n * o->cache_elements * 2, values + n * o->cache_elements * 2,
                        o->pasts[n], (int32_t)p->capacity};
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
        .offset = 8,
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
             "%s%s seed %llu",
             kinds[p->kind], esp_dtype_name(p->type), (long long)p->heads, (long long)p->kv_heads,
             (long long)p->head_dim, (long long)p->groups, (long long)p->tokens, (long long)p->past,
             (long long)p->capacity, (long long)p->grid_height, (long long)p->grid_width,
             p->own_lengths ? " own lengths" : "", p->integers ? " integers" : "",
             (unsigned long long)p->seed);
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

/* ---- cases ---- */

static const esp_dtype types[] = {ESP_F16, ESP_BF16};
static const int head_dims[] = {64, 32, 80, 128, 96};
static const int lengths[] = {1,  7,  8,   9,   15,  16,  17,  31,  63,
                              64, 65, 127, 128, 129, 197, 208, 257, 513};

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
    static const int grids[][2] = {{14, 14}, {1, 1},  {1, 7},  {7, 1},  {5, 3},   {8, 8},
                                   {3, 64},  {64, 3}, {9, 13}, {6, 32}, {20, 16}, {5, 63}};
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
                         .seed = test_seed(run) + (uint64_t)(100 * i + j)};
            check(run, device, &p);
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
        p.grid_height = 9;
        p.grid_width = 14;
        p.tokens = 126;
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
ON_GPU(other_head_dims)
ON_GPU(own_lengths)
ON_GPU(grids)
ON_GPU(prefill)
ON_GPU(decode)
ON_GPU(random_problems)
ON_GPU(sanitizer)
ON_GPU(refused)

static const test_case cases[] = {
    {"groups", groups},           {"other_head_dims", other_head_dims},
    {"own_lengths", own_lengths}, {"grids", grids},
    {"prefill", prefill},         {"decode", decode},
    {"random", random_problems},  {"sanitizer", sanitizer},
    {"refused", refused},
};

#endif

TEST_MAIN(cases)
