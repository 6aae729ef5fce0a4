/* The columns of a free panel, jointly: which are kept, and which four share a quad.
 *
 * One place of every quad is freed; the columns that lay there and those that the panel drops are
 * then assigned anew, each to a quad or to being dropped, by what each quad keeps with it beside
 * the three that stay. That is exact for one place of every quad, so no step loses; places 0 to 3
 * make a sweep. Quads are taken so many at a time, with a share of the dropped columns: neighbours
 * in one sweep, far ones in the next. */
#include <float.h>

#include "prune/assignment.h"
#include "prune/gains.h"
#include "prune/select.h"

#define QUADS_AT_ONCE 128
#define MOST_SWEEPS 6
#define MOST_SCORE 1e30f

typedef struct panel_search {
    const esp_prune_job *prune;
    int64_t rows, in, quads, dropped;
    uint32_t *columns; /* [quads][4], UINT32_MAX for padding */
    uint32_t *outside; /* [dropped]: columns that no quad lists */
    float *panel;      /* [rows][in] */
    /* of one assignment: */
    int64_t *quad_list, *capacity; /* [QUADS_AT_ONCE + 1] */
    uint32_t *sources, *sink_of;   /* [most_sources] */
    int64_t *outside_list;         /* [dropped] */
    int64_t most_sources, stride;
    float *scores, *seconds; /* [rows][stride] */
    double *three;           /* [QUADS_AT_ONCE] */
    double *benefit;         /* [most_sources][QUADS_AT_ONCE + 1] */
} panel_search;

static inline float at(const float *row, uint32_t column)
{
    return column != UINT32_MAX ? row[column] : 0;
}

static inline float larger(float a, float b)
{
    return a > b ? a : b;
}

static inline float smaller(float a, float b)
{
    return a > b ? b : a;
}

/* What the three beside place `slot` of a quad keep, and their second in every row. */
static void hold_three(panel_search *search, int64_t quad, int slot, int64_t entry)
{
    const uint32_t *four = search->columns + quad * 4;
    double sum = 0;
    for (int64_t row = 0; row < search->rows; row++) {
        const float *scores = search->panel + row * search->in;
        float x = at(scores, four[(slot + 1) % 4]), y = at(scores, four[(slot + 2) % 4]);
        float z = at(scores, four[(slot + 3) % 4]), most = larger(x, y);
        float second = larger(smaller(x, y), smaller(most, z));
        sum += (double)larger(most, z) + (double)second;
        search->seconds[row * search->stride + entry] = second;
    }
    search->three[entry] = sum;
}

static void gather(panel_search *search, int64_t quads, int slot, int64_t outside)
{
    int64_t count = quads + outside;
    for (int64_t i = 0; i < quads; i++) {
        search->sources[i] = search->columns[search->quad_list[i] * 4 + slot];
        hold_three(search, search->quad_list[i], slot, i);
    }
    for (int64_t i = 0; i < outside; i++) {
        search->sources[quads + i] = search->outside[search->outside_list[i]];
    }
    for (int64_t row = 0; row < search->rows; row++) {
        float *scores = search->scores + row * search->stride;
        for (int64_t i = 0; i < count; i++) {
            scores[i] = at(search->panel + row * search->in, search->sources[i]);
        }
        for (int64_t i = quads; i < esp_ceil_div(quads, ESP_GAINS_WIDTH) * ESP_GAINS_WIDTH; i++) {
            search->seconds[row * search->stride + i] = FLT_MAX;
        }
    }
}

/* benefit[source][quad]; being dropped is worth nothing. */
static void value(panel_search *search, int64_t quads, int64_t outside)
{
    int64_t sinks = quads + (outside > 0), count = quads + outside;
    memset(search->benefit, 0, (size_t)(count * sinks) * sizeof *search->benefit);
    for (int64_t i = 0; i < count; i += ESP_GAINS_HEIGHT) {
        for (int64_t quad = 0; quad < quads; quad += ESP_GAINS_WIDTH) {
            float gains[ESP_GAINS_HEIGHT][ESP_GAINS_WIDTH];
            esp_sum_gains(search->prune->context, search->scores + i, search->seconds + quad,
                          search->rows, search->stride, gains);
            for (int64_t h = 0; h < ESP_MIN(ESP_GAINS_HEIGHT, count - i); h++) {
                double *benefit = search->benefit + (i + h) * sinks + quad;
                for (int64_t w = 0; w < ESP_MIN(ESP_GAINS_WIDTH, quads - quad); w++) {
                    benefit[w] = search->three[quad + w] + (double)gains[h][w];
                }
            }
        }
    }
}

/* Puts every source where it was assigned; whether anything moved. */
static bool settle(panel_search *search, int64_t quads, int slot, int64_t outside)
{
    bool moved = false;
    int64_t next = 0;
    for (int64_t i = 0; i < quads + outside; i++) {
        int64_t sink = search->sink_of[i];
        if (sink < quads) {
            search->columns[search->quad_list[sink] * 4 + slot] = search->sources[i];
            moved |= sink != i;
        } else {
            search->outside[search->outside_list[next++]] = search->sources[i];
        }
    }
    return moved;
}

/* Lets in only those dropped columns that some quad would rather have than its own; *better:
 * whether any column would add to another quad, without which all stay. Returns how many are left.
 */
static int64_t sift(panel_search *search, int64_t quads, int64_t outside, bool *better)
{
    int64_t sinks = quads + (outside > 0), left = 0;
    *better = false;
    for (int64_t i = 0; i < quads + outside; i++) {
        const double *benefit = search->benefit + i * sinks;
        bool wanted = false;
        for (int64_t quad = 0; quad < quads; quad++) {
            wanted |= benefit[quad] > search->benefit[quad * sinks + quad];
        }
        *better |= wanted;
        if (i < quads || !wanted) {
            continue;
        }
        int64_t to = quads + left;
        memmove(search->benefit + to * sinks, benefit, (size_t)sinks * sizeof *benefit);
        search->sources[to] = search->sources[i];
        search->outside_list[left++] = search->outside_list[i - quads];
    }
    for (int64_t i = 0; i < quads && left == 0; i++) { /* nothing can be dropped then */
        memmove(search->benefit + i * quads, search->benefit + i * sinks,
                (size_t)quads * sizeof *search->benefit);
    }
    return left;
}

static esp_status exchange(panel_search *search, int64_t quads, int slot, int64_t outside,
                           bool *moved, esp_error *error)
{
    bool better;
    gather(search, quads, slot, outside);
    value(search, quads, outside);
    outside = sift(search, quads, outside, &better);
    if (!better) {
        return ESP_OK;
    }
    for (int64_t i = 0; i < quads; i++) {
        search->capacity[i] = 1;
    }
    search->capacity[quads] = outside;
    ESP_TRY(esp_assign(search->prune->context, quads + outside, quads + (outside > 0),
                       search->capacity, search->benefit, search->sink_of, error));
    *moved |= settle(search, quads, slot, outside);
    return ESP_OK;
}

/* Members of part `index` of `parts`: neighbours, or every parts-th. */
static int64_t list_part(int64_t count, int64_t parts, int64_t index, bool far, int64_t *members)
{
    int64_t used = 0;
    int64_t begin = far ? index : count * index / parts;
    int64_t end = far ? count : count * (index + 1) / parts;
    for (int64_t i = begin; i < end; i += far ? parts : 1) {
        members[used++] = i;
    }
    return used;
}

static esp_status sweep(panel_search *search, bool far, bool *moved, esp_error *error)
{
    int64_t parts = esp_ceil_div(search->quads, QUADS_AT_ONCE);
    *moved = false;
    for (int64_t part = 0; part < parts; part++) {
        int64_t quads = list_part(search->quads, parts, part, far, search->quad_list);
        for (int slot = 0; slot < 4 && quads > 0; slot++) {
            int64_t outside = list_part(search->dropped, parts, part, far, search->outside_list);
            ESP_TRY(exchange(search, quads, slot, outside, moved, error));
        }
    }
    return ESP_OK;
}

/* Ascending within a quad, padding last. */
static void order_quads(panel_search *search)
{
    for (int64_t quad = 0; quad < search->quads; quad++) {
        uint32_t *four = search->columns + quad * 4;
        for (int i = 1; i < 4; i++) {
            for (int j = i; j > 0 && four[j - 1] > four[j]; j--) {
                uint32_t held = four[j];
                four[j] = four[j - 1];
                four[j - 1] = held;
            }
        }
    }
}

/* ---- room ---- */

static bool make_room(panel_search *search)
{
    esp_context *context = search->prune->context;
    int64_t parts = esp_ceil_div(search->quads, QUADS_AT_ONCE);
    search->most_sources = QUADS_AT_ONCE + esp_ceil_div(search->dropped, parts) + 1;
    search->stride = esp_ceil_div(search->most_sources, ESP_GAINS_WIDTH) * ESP_GAINS_WIDTH;
    size_t rows = (size_t)search->rows, sources = (size_t)search->most_sources;
    size_t cells = rows * (size_t)search->stride;
    search->outside = esp_alloc_array(context, (size_t)search->dropped, sizeof *search->outside);
    search->panel = esp_alloc_array(context, rows * (size_t)search->in, sizeof *search->panel);
    search->quad_list = esp_alloc_array(context, QUADS_AT_ONCE + 1, sizeof *search->quad_list);
    search->capacity = esp_alloc_array(context, QUADS_AT_ONCE + 1, sizeof *search->capacity);
    search->sources = esp_alloc_array(context, sources, sizeof *search->sources);
    search->sink_of = esp_alloc_array(context, sources, sizeof *search->sink_of);
    search->outside_list =
        esp_alloc_array(context, (size_t)search->dropped, sizeof *search->outside_list);
    search->scores = esp_alloc_array(context, cells, sizeof *search->scores);
    search->seconds = esp_alloc_array(context, cells, sizeof *search->seconds);
    search->three = esp_alloc_array(context, QUADS_AT_ONCE + 1, sizeof *search->three);
    search->benefit =
        esp_alloc_array(context, sources * (QUADS_AT_ONCE + 1), sizeof *search->benefit);
    return search->outside != NULL && search->panel != NULL && search->quad_list != NULL &&
           search->capacity != NULL && search->sources != NULL && search->sink_of != NULL &&
           search->outside_list != NULL && search->scores != NULL && search->seconds != NULL &&
           search->three != NULL && search->benefit != NULL;
}

static void free_room(const panel_search *search)
{
    void *const all[] = {search->outside, search->panel,   search->quad_list,    search->capacity,
                         search->sources, search->sink_of, search->outside_list, search->scores,
                         search->seconds, search->three,   search->benefit};
    for (int i = 0; i < ESP_COUNT(all); i++) {
        esp_release(search->prune->context, all[i]);
    }
}

/* scratch: [in] doubles. Columns that no quad lists, ascending. */
static void load_panel(panel_search *search, int64_t first, double *scratch)
{
    int64_t used = 0;
    for (int64_t row = 0; row < search->rows; row++) {
        esp_score_segment(search->prune, first + row, 0, search->in, scratch);
        float *to = search->panel + row * search->in;
        for (int64_t i = 0; i < search->in; i++) {
            to[i] = scratch[i] < (double)MOST_SCORE ? (float)scratch[i] : MOST_SCORE;
        }
    }
    memset(scratch, 0, (size_t)search->in * sizeof *scratch);
    for (int64_t i = 0; i < 4 * search->quads; i++) {
        if (search->columns[i] != UINT32_MAX) {
            scratch[search->columns[i]] = 1;
        }
    }
    for (int64_t i = 0; i < search->in; i++) {
        if (scratch[i] == 0) {
            search->outside[used++] = (uint32_t)i;
        }
    }
}

esp_status esp_improve_panel(const esp_prune_job *prune, int64_t row, int64_t rows, int64_t kept,
                             double *scratch, uint32_t *columns, esp_error *error)
{
    panel_search search = {.prune = prune,
                           .rows = rows,
                           .in = prune->in,
                           .quads = kept / 4,
                           .dropped = prune->in,
                           .columns = columns};
    for (int64_t i = 0; i < kept; i++) {
        search.dropped -= columns[i] != UINT32_MAX;
    }
    esp_status status = ESP_OK;
    if (make_room(&search)) {
        bool moved = true;
        load_panel(&search, row, scratch);
        for (int i = 0; i < MOST_SWEEPS && moved && status == ESP_OK; i++) {
            status = sweep(&search, i % 2 == 1, &moved, error);
        }
        order_quads(&search);
    } else {
        status = esp_fail_memory(error, (size_t)rows * (size_t)prune->in * sizeof(float),
                                 "searching a panel");
    }
    free_room(&search);
    return status;
}
