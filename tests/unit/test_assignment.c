/* Assignments against every assignment there is. */
#include <math.h>
#include <stdlib.h>

#include "prune/assignment.h"
#include "test.h"

#define MOST 7

typedef struct trial {
    int64_t sources, sinks, capacity[MOST];
    double benefit[MOST * MOST];
} trial;

/* The best of all assignments of the sources from `source` on. */
static double try_all(const trial *of, int64_t source, int64_t *room)
{
    double best = -INFINITY;
    if (source == of->sources) {
        return 0;
    }
    for (int64_t sink = 0; sink < of->sinks; sink++) {
        if (room[sink] > 0) {
            room[sink]--;
            double rest = try_all(of, source + 1, room);
            room[sink]++;
            best = fmax(best, of->benefit[source * of->sinks + sink] + rest);
        }
    }
    return best;
}

/* Whole numbers, often equal, so that sums are exact and there are ties. */
static void draw(esp_random *random, trial *made, bool square)
{
    *made = (trial){.sinks = 1 + (int64_t)esp_random_below(random, MOST)};
    int64_t places = 0;
    for (int64_t sink = 0; sink < made->sinks; sink++) {
        made->capacity[sink] = square ? 1 : 1 + (int64_t)esp_random_below(random, 3);
        places += made->capacity[sink];
    }
    int64_t most = ESP_MIN(places, MOST);
    made->sources = square ? made->sinks : 1 + (int64_t)esp_random_below(random, (uint64_t)most);
    uint64_t range = esp_random_below(random, 2) == 0 ? 5 : 1000;
    for (int64_t i = 0; i < made->sources * made->sinks; i++) {
        made->benefit[i] = (double)esp_random_below(random, range) - (double)(range / 2);
    }
}

static void check_trial(test_run *run, esp_context *context, const trial *of, bool square)
{
    uint32_t sink_of[MOST];
    int64_t room[MOST];
    double sum = 0;
    memcpy(room, of->capacity, sizeof room);
    REQUIRE_OK(esp_assign(context, of->sources, of->sinks, square ? NULL : of->capacity,
                          of->benefit, sink_of, error));
    for (int64_t i = 0; i < of->sources; i++) {
        REQUIRE(sink_of[i] < of->sinks);
        sum += of->benefit[i * of->sinks + sink_of[i]];
        CHECK(--room[sink_of[i]] >= 0);
    }
    memcpy(room, of->capacity, sizeof room);
    CHECK(sum == try_all(of, 0, room));
}

static void best_of_all_assignments(test_run *run)
{
    esp_random random;
    esp_context *context = test_context(run, 1);
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < 2000; i++) {
        trial made;
        bool square = i % 2 == 0;
        draw(&random, &made, square);
        check_trial(run, context, &made, square);
    }
    test_context_free(run, context);
}

/* Duals prove it where there are too many to try: 300 channels on 12 panels of 25, and no exchange
 * of two channels gains. */
static void large_assignments_cannot_be_improved(test_run *run)
{
    enum { SOURCES = 300, SINKS = 12 };
    esp_random random;
    esp_context *context = test_context(run, 1);
    double *benefit = calloc((size_t)SOURCES * SINKS, sizeof *benefit);
    int64_t capacity[SINKS], used[SINKS] = {0};
    uint32_t sink_of[SOURCES];
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < SOURCES * SINKS; i++) {
        benefit[i] = esp_random_uniform(&random);
    }
    for (int i = 0; i < SINKS; i++) {
        capacity[i] = SOURCES / SINKS;
    }
    CHECK_OK(esp_assign(context, SOURCES, SINKS, capacity, benefit, sink_of, error));
    for (int a = 0; a < SOURCES; a++) {
        used[sink_of[a]]++;
        for (int b = 0; b < a; b++) {
            double now =
                benefit[a * SINKS + (int)sink_of[a]] + benefit[b * SINKS + (int)sink_of[b]];
            double then =
                benefit[a * SINKS + (int)sink_of[b]] + benefit[b * SINKS + (int)sink_of[a]];
            CHECK(then <= now + 1e-12);
        }
    }
    for (int i = 0; i < SINKS; i++) {
        CHECK_INT(used[i], capacity[i]);
    }
    free(benefit);
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"best of all assignments", best_of_all_assignments},
    {"large assignments cannot be improved", large_assignments_cannot_be_improved},
};

TEST_MAIN(cases)
