/* Problems of attention and what plain C in f64 makes of them: operands whose padding is NaN, the
 * exact result, and how far each number of it may be off. */
#ifndef ESP_TESTS_ATTENTION_PROBLEM_H
#define ESP_TESTS_ATTENTION_PROBLEM_H

#include "product_device.h"

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
    int64_t read;           /* groups: y is read of so many tokens; 0: of all */
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

#endif
