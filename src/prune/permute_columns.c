/* What a column is worth in a group.
 *
 * One place of every group is free. Of a panel's four listed columns three are held: those
 * beside the free place if it was listed, else the best three of the four. With a >= b the larger
 * two of the three in a row, a newcomer with score s makes that row keep a + max(b, s). So
 *
 *   value(group, newcomer) = sum over panels of max(without, sum over rows of a + b + max(0, s -
 * b))
 *
 * where `without` is the best that the panel keeps of the group with the place left empty. For the
 * column that is there now this is what is kept now, for any other it is attained: a bound from
 * below, so an assignment never loses. The inner sum is shaped like a matrix product, with max(0,
 * s - b) for the multiplication, and is blocked like one: a block of newcomers goes over all groups
 * of a panel while the panel's b lie in the second-level cache. */
#include "prune/gains.h"
#include "prune/permute_inside.h"

#include <float.h>
#include <math.h>

#define ROWS_OF_ALL 64          /* 2:4: rows that are summed in f32 before doubles take over */
#define WIDTH ESP_GAINS_WIDTH   /* groups side by side */
#define HEIGHT ESP_GAINS_HEIGHT /* newcomers on top of each other */
#define NEWCOMERS 32            /* of one piece of work; a multiple of HEIGHT */

typedef struct column_job {
    const esp_panels *panels;
    const esp_context *context;
    int64_t v, chunks;       /* rows of a chunk, which is a panel but for 2:4 */
    const int64_t *places;   /* [count]: columns of the weight */
    int64_t count, stride;   /* stride: count, rounded up to WIDTH */
    float *scores, *seconds; /* [out][stride]: s of newcomers, b of groups */
    double *three, *without; /* [chunks][stride] */
    double *benefit;         /* [count][count] */
} column_job;

/* ---- three held columns of each group, and what goes without the fourth ---- */

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

/* The larger two of three. */
static inline void best_of(const float *row, const uint32_t *three, float *first, float *second)
{
    float x = at(row, three[0]), y = at(row, three[1]), z = at(row, three[2]);
    float most = larger(x, y);
    *first = larger(most, z);
    *second = larger(smaller(x, y), smaller(most, z));
}

static double sum_of_three(const column_job *job, int64_t chunk, const uint32_t *three)
{
    const esp_permute_weight *weight = job->panels->weight;
    int64_t last = ESP_MIN(weight->out, (chunk + 1) * job->v);
    double sum = 0;
    for (int64_t row = chunk * job->v; row < last; row++) {
        float first, second;
        best_of(weight->scores + row * weight->in, three, &first, &second);
        sum += (double)first + (double)second;
    }
    return sum;
}

static double sum_with(const column_job *job, int64_t chunk, const uint32_t *three, uint32_t column)
{
    const esp_permute_weight *weight = job->panels->weight;
    int64_t last = ESP_MIN(weight->out, (chunk + 1) * job->v);
    double sum = 0;
    for (int64_t row = chunk * job->v; row < last; row++) {
        const float *scores = weight->scores + row * weight->in;
        float first, second;
        best_of(scores, three, &first, &second);
        sum += (double)first + (double)larger(second, at(scores, column));
    }
    return sum;
}

static void leave_out(const uint32_t *four, int which, uint32_t *three)
{
    for (int i = 0; i < 4; i++) {
        if (i != which) {
            *three++ = four[i];
        }
    }
}

/* The best of four columns with one left out. */
static void hold_best_three(const column_job *job, int64_t chunk, const uint32_t *four,
                            uint32_t *three)
{
    double best = -1;
    for (int i = 0; i < 4; i++) {
        uint32_t candidate[3];
        leave_out(four, i, candidate);
        double sum = sum_of_three(job, chunk, candidate);
        if (sum > best) {
            best = sum;
            memcpy(three, candidate, sizeof candidate);
        }
    }
}

/* The best that a column of the group beside the three makes, `place` left out. */
static double best_without(const column_job *job, int64_t chunk, const uint32_t *three,
                           int64_t place)
{
    const esp_panels *panels = job->panels;
    int64_t first = place / panels->m * panels->m;
    int64_t last = ESP_MIN(panels->weight->in, first + panels->m);
    double best = 0;
    for (int64_t column = first; column < last; column++) {
        uint32_t candidate = (uint32_t)column;
        if (column != place && candidate != three[0] && candidate != three[1] &&
            candidate != three[2]) {
            double sum = sum_with(job, chunk, three, candidate);
            best = sum > best ? sum : best;
        }
    }
    return best;
}

static void hold_three(const column_job *job, int64_t chunk, int64_t group)
{
    const esp_panels *panels = job->panels;
    const esp_permute_weight *weight = panels->weight;
    int64_t place = job->places[group], entry = chunk * job->stride + group;
    const uint32_t *four =
        panels->columns + (panels->all ? 0 : chunk * panels->kept) + place / panels->m * 4;
    uint32_t three[3];
    int listed = 0;
    while (listed < 4 && four[listed] != place) {
        listed++;
    }
    if (listed < 4) {
        leave_out(four, listed, three);
        job->without[entry] = panels->all ? 0 : best_without(job, chunk, three, place);
    } else {
        hold_best_three(job, chunk, four, three);
        uint32_t fourth = four[0];
        for (int i = 1; i < 4; i++) {
            bool held = fourth == three[0] || fourth == three[1] || fourth == three[2];
            fourth = held ? four[i] : fourth;
        }
        job->without[entry] = sum_with(job, chunk, three, fourth);
    }
    double sum = 0;
    int64_t last = ESP_MIN(weight->out, (chunk + 1) * job->v);
    for (int64_t row = chunk * job->v; row < last; row++) {
        float first, second;
        best_of(weight->scores + row * weight->in, three, &first, &second);
        sum += (double)first + (double)second;
        job->seconds[row * job->stride + group] = second;
    }
    job->three[entry] = sum;
}

static void prepare_chunks(void *user, int64_t begin, int64_t end, int thread)
{
    const column_job *job = user;
    const esp_permute_weight *weight = job->panels->weight;
    (void)thread;
    for (int64_t chunk = begin; chunk < end; chunk++) {
        int64_t last = ESP_MIN(weight->out, (chunk + 1) * job->v);
        for (int64_t row = chunk * job->v; row < last; row++) {
            for (int64_t i = 0; i < job->count; i++) {
                job->scores[row * job->stride + i] =
                    weight->scores[row * weight->in + job->places[i]];
            }
            for (int64_t i = job->count; i < job->stride; i++) {
                job->seconds[row * job->stride + i] = FLT_MAX; /* nobody gains there */
            }
        }
        for (int64_t group = 0; group < job->count; group++) {
            hold_three(job, chunk, group);
        }
    }
}

/* ---- gains ---- */

static void add_tile(const column_job *job, int64_t chunk, int64_t newcomer, int64_t group)
{
    float gains[HEIGHT][WIDTH];
    int64_t row = chunk * job->v, rows = ESP_MIN(job->v, job->panels->weight->out - row);
    esp_sum_gains(job->context, job->scores + row * job->stride + newcomer,
                  job->seconds + row * job->stride + group, rows, job->stride, gains);
    const double *three = job->three + chunk * job->stride + group;
    const double *without = job->without + chunk * job->stride + group;
    for (int64_t h = 0; h < ESP_MIN(HEIGHT, job->count - newcomer); h++) {
        double *benefit = job->benefit + (newcomer + h) * job->count + group;
        for (int64_t w = 0; w < ESP_MIN(WIDTH, job->count - group); w++) {
            double with = three[w] + (double)gains[h][w];
            benefit[w] += with > without[w] ? with : without[w];
        }
    }
}

static void add_newcomers(void *user, int64_t begin, int64_t end, int thread)
{
    const column_job *job = user;
    (void)thread;
    for (int64_t piece = begin; piece < end; piece++) {
        int64_t last = ESP_MIN(job->count, (piece + 1) * NEWCOMERS);
        for (int64_t chunk = 0; chunk < job->chunks; chunk++) {
            for (int64_t group = 0; group < job->count; group += WIDTH) {
                for (int64_t i = piece * NEWCOMERS; i < last; i += HEIGHT) {
                    add_tile(job, chunk, i, group);
                }
            }
        }
    }
}

/* ---- one weight, one copy ---- */

static bool make_room(esp_context *context, column_job *job)
{
    size_t stride = (size_t)job->stride, entries = (size_t)job->chunks * stride, cells = 0;
    if (!esp_mul_size((size_t)job->panels->weight->out, stride, &cells)) {
        return false;
    }
    job->scores = esp_alloc_array(context, cells, sizeof *job->scores);
    job->seconds = esp_alloc_array(context, cells, sizeof *job->seconds);
    job->three = esp_alloc_array(context, entries, sizeof *job->three);
    job->without = esp_alloc_array(context, entries, sizeof *job->without);
    return job->scores != NULL && job->seconds != NULL && job->three != NULL &&
           job->without != NULL;
}

static esp_status add_copy(esp_context *context, column_job *job, esp_error *error)
{
    esp_status status = ESP_OK;
    if (make_room(context, job)) {
        esp_parallel_for(context, job->chunks, 1, prepare_chunks, job);
        esp_parallel_for(context, esp_ceil_div(job->count, NEWCOMERS), 1, add_newcomers, job);
    } else {
        status = esp_fail_memory(
            error, 2 * (size_t)job->panels->weight->out * (size_t)job->stride * sizeof(float),
            "comparing channels");
    }
    esp_release(context, job->scores);
    esp_release(context, job->seconds);
    esp_release(context, job->three);
    esp_release(context, job->without);
    return status;
}

esp_status esp_add_column_values(esp_context *context, const esp_use *use, const uint32_t *channels,
                                 int64_t count, double *benefit, esp_error *error)
{
    const esp_panels *panels = use->panels;
    int64_t v = panels->all ? ROWS_OF_ALL : panels->v;
    int64_t *places = esp_alloc_array(context, (size_t)count, sizeof *places);
    if (places == NULL) {
        return esp_fail_memory(error, (size_t)count * sizeof *places, "places");
    }
    esp_status status = ESP_OK;
    for (int64_t copy = 0; copy < use->part->copies && status == ESP_OK; copy++) {
        for (int64_t i = 0; i < count; i++) {
            places[i] = esp_space_place(use->part, channels[i], copy);
        }
        column_job job = {.panels = panels,
                          .context = context,
                          .v = v,
                          .chunks = esp_ceil_div(panels->weight->out, v),
                          .places = places,
                          .count = count,
                          .stride = esp_ceil_div(count, WIDTH) * WIDTH,
                          .benefit = benefit};
        status = add_copy(context, &job, error);
    }
    esp_release(context, places);
    return status;
}
