/* Successive shortest paths, source by source (Jonker and Volgenant, "A shortest augmenting path
 * algorithm", Computing 38, 1987), over the sinks alone: a sink with many places is one node, and
 * moving from sink a to sink b costs what the best of a's sources loses by it. So 11008 channels on
 * 172 panels are a graph of 172 nodes, not of 11008.
 *
 * cost = -benefit. Prices keep every move's reduced cost step(a, b) + price[a] - price[b] at or
 * above zero, and are zero for sinks that have room; hence the first sink with room that Dijkstra's
 * search settles ends a shortest path. A sink of which nothing is known but that it has room needs
 * no list of moves: those are made when it fills up. */
#include "prune/assignment.h"

#include <math.h>

#define NOBODY UINT32_MAX /* neither a source nor a sink */

typedef struct transport {
    int64_t sources, sinks;
    const double *benefit; /* [sources][sinks] */
    const int64_t *capacity;
    int64_t *first, *used; /* [sinks]: a sink's places in members; how many are taken */
    uint32_t *members;     /* [sum of places]: sources */
    double *step;          /* [sinks][sinks]: of full sinks: the cheapest move from row to column */
    uint32_t *mover;       /* [sinks][sinks]: who makes it */
    double *price;         /* [sinks] */
    double *open;          /* [sinks]: distance as far as known; infinite once it is settled */
    double *distance;      /* [sinks]: of settled ones */
    int64_t *from;         /* [sinks]: the sink before it on the path; NOBODY: the new source */
    double *bar;           /* [sinks]: infinite for settled ones, else 0 */
    uint32_t *order;       /* [sinks]: settled ones in order */
} transport;

/* No sink needs more places than there are sources. */
static int64_t places_of(const transport *job, int64_t sink)
{
    return job->capacity != NULL ? ESP_MIN(job->capacity[sink], job->sources) : 1;
}

/* The moves out of a full sink, from scratch. */
static void list_moves(transport *job, int64_t sink)
{
    double *step = job->step + sink * job->sinks;
    uint32_t *mover = job->mover + sink * job->sinks;
    for (int64_t to = 0; to < job->sinks; to++) {
        step[to] = INFINITY;
    }
    for (int64_t i = 0; i < job->used[sink]; i++) {
        uint32_t source = job->members[job->first[sink] + i];
        const double *benefit = job->benefit + source * job->sinks;
        double here = benefit[sink];
        for (int64_t to = 0; to < job->sinks; to++) {
            double loss = here - benefit[to];
            mover[to] = loss < step[to] ? source : mover[to];
            step[to] = loss < step[to] ? loss : step[to];
        }
    }
}

/* The unsettled sink of least distance: eight lanes keep one each, so that the loop has no chain of
 * comparisons. */
static inline __attribute__((always_inline)) int64_t nearest(const transport *job)
{
    enum { LANES = 8 };
    double least[LANES];
    for (int l = 0; l < LANES; l++) {
        least[l] = INFINITY;
    }
    int64_t whole = job->sinks / LANES * LANES;
    for (int64_t sink = 0; sink < whole; sink += LANES) {
        for (int l = 0; l < LANES; l++) {
            double open = job->open[sink + l];
            least[l] = open < least[l] ? open : least[l];
        }
    }
    double best = INFINITY;
    for (int l = 0; l < LANES; l++) {
        best = least[l] < best ? least[l] : best;
    }
    for (int64_t sink = whole; sink < job->sinks; sink++) {
        best = job->open[sink] < best ? job->open[sink] : best;
    }
    int64_t found = 0;
    while (job->open[found] != best) {
        found++;
    }
    return found;
}

static inline __attribute__((always_inline)) void relax(transport *job, int64_t sink)
{
    const double *step = job->step + sink * job->sinks, *price = job->price, *bar = job->bar;
    double base = job->distance[sink] + price[sink];
    double *open = job->open;
    int64_t *from = job->from;
    for (int64_t to = 0; to < job->sinks; to++) {
        double length = base + step[to] - price[to] + bar[to];
        from[to] = length < open[to] ? sink : from[to];
        open[to] = length < open[to] ? length : open[to];
    }
}

/* The sink with room that is nearest to a new source; prices are brought up to it. */
static inline __attribute__((always_inline)) int64_t find_room_body(transport *job, int64_t source)
{
    const double *benefit = job->benefit + source * job->sinks;
    for (int64_t sink = 0; sink < job->sinks; sink++) {
        job->open[sink] = -benefit[sink] - job->price[sink];
        job->from[sink] = NOBODY;
        job->bar[sink] = 0;
    }
    int64_t settled = 0;
    for (;;) {
        int64_t sink = nearest(job);
        job->distance[sink] = job->open[sink];
        if (job->used[sink] < places_of(job, sink)) {
            for (int64_t i = 0; i < settled; i++) {
                job->price[job->order[i]] += job->distance[job->order[i]] - job->distance[sink];
            }
            return sink;
        }
        job->bar[sink] = INFINITY;
        job->open[sink] = INFINITY;
        job->order[settled++] = (uint32_t)sink;
        relax(job, sink);
    }
}

static int64_t find_room_plain(transport *job, int64_t source)
{
    return find_room_body(job, source);
}

#if defined(__x86_64__) && defined(__GNUC__)
/* The same on wider registers. */
static __attribute__((target("avx2"))) int64_t find_room_avx2(transport *job, int64_t source)
{
    return find_room_body(job, source);
}

static __attribute__((target("avx512f,avx512vl,avx512dq,prefer-vector-width=512"))) int64_t
find_room_avx512(transport *job, int64_t source)
{
    return find_room_body(job, source);
}
#endif

static int64_t find_room(const esp_context *context, transport *job, int64_t source)
{
#if defined(__x86_64__) && defined(__GNUC__)
    if (context->cpu.level >= ESP_CPU_AVX512) {
        return find_room_avx512(job, source);
    }
    if (context->cpu.level >= ESP_CPU_AVX2) {
        return find_room_avx2(job, source);
    }
#endif
    (void)context;
    return find_room_plain(job, source);
}

static void replace_member(transport *job, int64_t sink, uint32_t old, uint32_t new)
{
    uint32_t *members = job->members + job->first[sink];
    int64_t i = 0;
    while (members[i] != old) {
        i++;
    }
    members[i] = new;
}

/* Along the path, back to front: each sink gives its mover to the one behind it. */
static void move_along(transport *job, uint32_t source, int64_t end)
{
    int64_t sink = end;
    job->used[end]++;
    job->members[job->first[end] + job->used[end] - 1] = NOBODY;
    while (job->from[sink] != NOBODY) {
        int64_t before = job->from[sink];
        uint32_t moving = job->mover[before * job->sinks + sink];
        replace_member(job, sink, NOBODY, moving);
        replace_member(job, before, moving, NOBODY);
        sink = before;
    }
    replace_member(job, sink, NOBODY, source);
    for (sink = end; sink != NOBODY; sink = job->from[sink]) {
        if (job->used[sink] == places_of(job, sink)) {
            list_moves(job, sink);
        }
    }
}

static bool make_room(esp_context *context, transport *job)
{
    size_t sinks = (size_t)job->sinks, pairs = 0, places = 0;
    if (!esp_mul_size(sinks, sinks, &pairs)) {
        return false;
    }
    job->first = esp_alloc_array(context, sinks, sizeof *job->first);
    for (int64_t sink = 0; job->first != NULL && sink < job->sinks; sink++) {
        job->first[sink] = (int64_t)places;
        places += (size_t)places_of(job, sink);
    }
    job->used = esp_alloc_array(context, sinks, sizeof *job->used);
    job->members = esp_alloc_array(context, places, sizeof *job->members);
    job->step = esp_alloc_array(context, pairs, sizeof *job->step);
    job->mover = esp_alloc_array(context, pairs, sizeof *job->mover);
    job->price = esp_alloc_array(context, sinks, sizeof *job->price);
    job->open = esp_alloc_array(context, sinks, sizeof *job->open);
    job->distance = esp_alloc_array(context, sinks, sizeof *job->distance);
    job->from = esp_alloc_array(context, sinks, sizeof *job->from);
    job->bar = esp_alloc_array(context, sinks, sizeof *job->bar);
    job->order = esp_alloc_array(context, sinks, sizeof *job->order);
    return job->first != NULL && job->used != NULL && job->members != NULL && job->step != NULL &&
           job->mover != NULL && job->price != NULL && job->open != NULL && job->distance != NULL &&
           job->from != NULL && job->bar != NULL && job->order != NULL;
}

static void free_room(esp_context *context, transport *job)
{
    void *const all[] = {job->first, job->used,     job->members, job->step, job->mover, job->price,
                         job->open,  job->distance, job->from,    job->bar,  job->order};
    for (int i = 0; i < ESP_COUNT(all); i++) {
        esp_release(context, all[i]);
    }
}

esp_status esp_assign(esp_context *context, int64_t sources, int64_t sinks, const int64_t *capacity,
                      const double *benefit, uint32_t *sink_of, esp_error *error)
{
    transport job = {.sources = sources, .sinks = sinks, .benefit = benefit, .capacity = capacity};
    esp_status status = ESP_OK;
    if (make_room(context, &job)) {
        for (int64_t source = 0; source < sources; source++) {
            move_along(&job, (uint32_t)source, find_room(context, &job, source));
        }
        for (int64_t sink = 0; sink < sinks; sink++) {
            for (int64_t i = 0; i < job.used[sink]; i++) {
                sink_of[job.members[job.first[sink] + i]] = (uint32_t)sink;
            }
        }
    } else {
        status = esp_fail_memory(error, (size_t)sinks * (size_t)sinks * sizeof *job.step,
                                 "an assignment");
    }
    free_room(context, &job);
    return status;
}
