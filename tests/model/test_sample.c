/* Choosing tokens: greedy, temperature, top-p, seeds, and logits that are no numbers. */
#include <math.h>
#include <string.h>

#include "nn/nn.h"
#include "test.h"

#define COUNT 6
static const float logits[COUNT] = {1.0f, 3.0f, 2.0f, -1.0f, 3.0f, 0.0f};

static esp_sampler sampler_of(float temperature, float top_p, uint64_t seed)
{
    esp_sampler sampler = {.temperature = temperature, .top_p = top_p};
    esp_random_seed(&sampler.random, seed);
    return sampler;
}

static void greedy(test_run *run)
{
    int32_t scratch[COUNT];
    esp_sampler sampler = sampler_of(0, 0, 1);
    CHECK_INT(esp_sample(&sampler, logits, COUNT, scratch), 1); /* the first of equals */
    CHECK_INT(esp_sample(&sampler, logits, 1, scratch), 0);
    sampler = sampler_of(1e-30f, 0.5f, 1);
    for (int i = 0; i < 20; i++) {
        int64_t id = esp_sample(&sampler, logits, COUNT, scratch);
        CHECK(id == 1 || id == 4);
    }
}

/* Frequencies against softmax over the nucleus: within five standard deviations. */
static void frequencies(test_run *run)
{
    static const struct {
        float temperature, top_p;
    } rows[] = {{1, 0}, {1, 1}, {2, 0}, {0.5f, 0}, {1, 0.9f}, {1, 0.5f}, {1, 1e-6f}, {5, 0.999f}};
    const int draws = 40000;
    static const int order[COUNT] = {1, 4, 2, 0, 5, 3}; /* most likely first */
    for (int k = 0; k < ESP_COUNT(rows); k++) {
        double p[COUNT], total = 0, kept = 0;
        int counts[COUNT] = {0};
        int32_t scratch[COUNT];
        float top_p = rows[k].top_p;
        test_sub(run, "temperature %g, top-p %g", (double)rows[k].temperature, (double)top_p);
        for (int i = 0; i < COUNT; i++) {
            p[i] = exp((double)logits[i] / (double)rows[k].temperature);
            total += p[i];
        }
        for (int i = 0; i < COUNT; i++) {
            bool cut = top_p > 0 && top_p < 1 && i > 0 && kept >= (double)top_p * total;
            p[order[i]] = cut ? 0 : p[order[i]];
            kept += p[order[i]];
        }
        esp_sampler sampler = sampler_of(rows[k].temperature, top_p, test_seed(run));
        for (int i = 0; i < draws; i++) {
            int64_t id = esp_sample(&sampler, logits, COUNT, scratch);
            REQUIRE(id >= 0 && id < COUNT);
            counts[id]++;
        }
        for (int i = 0; i < COUNT; i++) {
            double share = p[i] / kept, expected = share * draws;
            double deviation = sqrt(draws * share * (1 - share));
            CHECK(fabs(counts[i] - expected) <= 5 * deviation + 1e-9);
        }
    }
}

static void seeds(test_run *run)
{
    int32_t scratch[COUNT];
    esp_sampler a = sampler_of(1, 0.95f, 42), b = sampler_of(1, 0.95f, 42),
                c = sampler_of(1, 0, 43);
    int differences = 0;
    for (int i = 0; i < 200; i++) {
        int64_t first = esp_sample(&a, logits, COUNT, scratch);
        CHECK_INT(first, esp_sample(&b, logits, COUNT, scratch));
        differences += first != esp_sample(&c, logits, COUNT, scratch);
    }
    CHECK(differences > 0);
}

static void no_numbers(test_run *run)
{
    const float nan = NAN, infinite = INFINITY;
    const float all_nan[3] = {nan, nan, nan}, none[3] = {-infinite, nan, -infinite};
    const float mixed[4] = {nan, 1.0f, nan, 0.5f}, sure[3] = {nan, infinite, 5.0f};
    int32_t scratch[4];
    for (int hot = 0; hot < 2; hot++) {
        esp_sampler sampler = sampler_of(hot ? 1.0f : 0.0f, 0.9f, 7);
        CHECK_INT(esp_sample(&sampler, all_nan, 3, scratch), -1);
        CHECK_INT(esp_sample(&sampler, none, 3, scratch), -1);
        CHECK_INT(esp_sample(&sampler, sure, 3, scratch), 1);
        for (int i = 0; i < 100; i++) {
            int64_t id = esp_sample(&sampler, mixed, 4, scratch);
            CHECK(id == 1 || (hot && id == 3));
        }
    }
}

/* A large vocabulary: the nucleus is what sorting would give. */
static void large_vocabulary(test_run *run)
{
    enum { LARGE = 5000 };
    static float many[LARGE];
    static int32_t scratch[LARGE];
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < LARGE; i++) {
        many[i] = (float)(8 * esp_random_uniform(&random));
    }
    double total = 0;
    for (int i = 0; i < LARGE; i++) {
        total += exp((double)many[i]);
    }
    esp_sampler sampler = sampler_of(1, 0.3f, test_seed(run));
    for (int draw = 0; draw < 200; draw++) {
        int64_t id = esp_sample(&sampler, many, LARGE, scratch);
        REQUIRE(id >= 0 && id < LARGE);
        double above = 0; /* mass of what is more likely: must be below top_p */
        for (int i = 0; i < LARGE; i++) {
            above += many[i] > many[id] ? exp((double)many[i]) : 0;
        }
        CHECK(above / total < 0.3);
    }
}

static const test_case cases[] = {
    {"greedy", greedy},         {"frequencies", frequencies},           {"seeds", seeds},
    {"no numbers", no_numbers}, {"large vocabulary", large_vocabulary},
};
TEST_MAIN(cases)
