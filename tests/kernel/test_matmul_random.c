/* Every kernel against the reference on random real numbers and log-uniform sizes, with an error
 * bound that is derived, not tuned (product_bound.c). */
#include "product.h"

static void random_pattern(esp_random *random, char *text, size_t capacity)
{
    switch (esp_random_below(random, 8)) {
    case 0:
        snprintf(text, capacity, "dense");
        break;
    case 1:
        snprintf(text, capacity, "2:4");
        break;
    case 2: {
        int64_t group = random_log(random, 2, 300), keep = random_range(random, 1, group - 1);
        bool is_2_4 = group == 4 && keep == 2;
        snprintf(text, capacity, "%lld:%lld", (long long)(is_2_4 ? 1 : keep), (long long)group);
        break;
    }
    case 3:
        snprintf(text, capacity, "panel:%lld@%.2f", (long long)random_log(random, 1, 300),
                 0.5 + 0.49 * esp_random_uniform(random));
        break;
    case 4: {
        static const char *const words[] = {"unstructured", "rows", "cols"};
        snprintf(text, capacity, "%s@%.2f", words[esp_random_below(random, 3)],
                 0.01 + 0.98 * esp_random_uniform(random));
        break;
    }
    case 5:
        snprintf(text, capacity, "block:%lldx%lld@%.2f", (long long)random_log(random, 1, 100),
                 (long long)random_log(random, 1, 100), 0.01 + 0.98 * esp_random_uniform(random));
        break;
    default:
        snprintf(text, capacity, "%lld:2:%lld", (long long)random_log(random, 1, 300),
                 (long long)random_log(random, 5, 40));
    }
}

static void random_problem(esp_random *random, char *text, size_t capacity)
{
    static const char *const types[] = {"f32", "f16", "bf16"};
    static const char *const activations[] = {"",           "+relu", "+gelu",
                                              "+gelu_tanh", "+silu", "+swiglu"};
    char pattern[64], epilogue[96] = "/ep:scale";
    random_pattern(random, pattern, sizeof pattern);
    int64_t out, in, tokens;
    do {
        out = random_log(random, 1, 700);
        in = random_log(random, 1, 1500);
        tokens = random_log(random, 1, 700);
    } while (out * in * tokens > 1500000);
    const char *activation = activations[esp_random_below(random, ESP_COUNT(activations))];
    if (strcmp(activation, "+swiglu") == 0) {
        out += out % 2;
    }
    snprintf(epilogue + strlen(epilogue), sizeof epilogue - strlen(epilogue), "%s%s%s",
             esp_random_below(random, 2) == 0 ? "" : "+bias", activation,
             esp_random_below(random, 2) == 0 ? "" : "+residual");
    snprintf(text, capacity, "matmul/%s/%s/%lldx%lldx%lld%s%s/a:%s/o:%s%s%s", pattern,
             types[esp_random_below(random, 3)], (long long)out, (long long)in, (long long)tokens,
             esp_random_below(random, 3) == 0 ? "/x:tok" : "",
             esp_random_below(random, 3) == 0 ? "/y:tok" : "",
             types[esp_random_below(random, 4) % 3], types[esp_random_below(random, 4) % 3],
             esp_random_below(random, 3) == 0 ? "/c:bf16" : "",
             esp_random_below(random, 3) == 0 ? "" : epilogue);
}

/* Rounding of weights to bf16, which integers do not show and chance may leave out. */
static const char *const rounded[] = {
    "matmul/dense/f32/40x70x20/c:bf16",
    "matmul/dense/f16/40x70x2/c:bf16",
    "matmul/2:4/f32/40x70x20/c:bf16",
    "matmul/16:2:8/f16/40x70x2/c:bf16",
    "matmul/3:8/f32/40x70x20/c:bf16",
    "matmul/3:8/f16/40x70x2/c:bf16",
    "matmul/unstructured@0.7/f32/40x70x40/c:bf16",
    "matmul/unstructured@0.7/f16/40x70x1/c:bf16",
    "matmul/block:4x6@0.6/f32/40x70x40/c:bf16",
    "matmul/block:4x6@0.6/f16/40x70x1/c:bf16",
    "matmul/block:2x150@0.3/f32/9x400x9/c:bf16",
    "matmul/rows@0.5/f32/40x70x20/c:bf16",
    "matmul/cols@0.5/f32/40x70x20/c:bf16",
    "matmul/cols@0.5/f16/40x70x1/c:bf16",
};

/* Each of the named kernels of the processor against the reference. */
static void hold_to_reference(test_run *run, product *p, const char *what, bool in_place,
                              const char *const names[], int count)
{
    float *expected = result_of(p), *actual = result_of(p);
    double *sums = magnitudes(run, p);
    CHECK(count > 0);
    run_kernel(run, p, "ref", NULL, expected);
    p->in_place = in_place;
    for (int i = 0; i < count; i++) {
        test_sub(run, "%s %s", what, names[i]);
        run_kernel(run, p, "cpu", names[i], actual);
        compare_bounded(run, p, sums, expected, actual);
    }
    free(expected);
    free(actual);
    free(sums);
}

static void random_problems(test_run *run)
{
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int round = 0; round < 150; round++) {
        char text[256];
        random_problem(&random, text, sizeof text);
        if (round < ESP_COUNT(rounded)) {
            snprintf(text, sizeof text, "%s", rounded[round]);
        }
        esp_matmul_problem problem = problem_of(run, text);
        esp_context *context = test_context(run, 1 + round % 3);
        uint64_t seed = esp_random_u64(&random);
        product p =
            product_make(run, context, &problem, seed, REALS, round % 2 == 0, round % 3 != 0);
        const char *names[64];
        int count = usable_kernels(context, &problem, names);
        char what[300];
        snprintf(what, sizeof what, "round %d %s", round, text);
        hold_to_reference(run, &p, what, round % 4 == 0, names, count);
        product_free(&p);
        test_context_free(run, context);
    }
}

/* Sums that cancel, numbers of every size, subnormal ones and the largest that the output holds; of
 * kernels that compute in f32, since the processor's instructions for bf16, by which the split ones
 * compute, take subnormal numbers for zero. */
static void adversarial_numbers(test_run *run)
{
    static const char *const texts[] = {"matmul/dense/f32/60x300x17",
                                        "matmul/dense/f16/40x200x30/o:f32/ep:scale+bias",
                                        "matmul/dense/bf16/60x90x1/ep:residual",
                                        "matmul/2:4/f16/60x300x40",
                                        "matmul/2:4/f32/60x200x5/o:f16/ep:bias+relu",
                                        "matmul/16:2:8/bf16/70x300x33/o:f32",
                                        "matmul/16:2:8/f16/70x900x3/ep:scale+residual",
                                        "matmul/64:2:5/f32/130x300x20/ep:bias+gelu",
                                        "matmul/3:8/bf16/60x300x9",
                                        "matmul/block:4x16@0.6/f16/60x300x40",
                                        "matmul/unstructured@0.7/f32/60x300x20/o:bf16",
                                        "matmul/cols@0.5/f16/60x300x20/ep:scale"};
    for (int i = 0; i < ESP_COUNT(texts); i++) {
        esp_matmul_problem problem = problem_of(run, texts[i]);
        esp_context *context = test_context(run, 2);
        product p = product_make(run, context, &problem, test_seed(run) + (uint64_t)i, ADVERSARIAL,
                                 i % 2 == 0, i % 3 != 0);
        const char *names[64];
        int kept = 0, count = usable_kernels(context, &problem, names);
        for (int k = 0; k < count; k++) {
            if (strstr(names[k], "_split") == NULL) {
                names[kept++] = names[k];
            }
        }
        hold_to_reference(run, &p, texts[i], false, names, kept);
        product_free(&p);
        test_context_free(run, context);
    }
}

/* Ours must give the same bits for any number of threads; of libraries we do not ask it. */
static void thread_counts(test_run *run)
{
    static const char *const texts[] = {
        "matmul/dense/bf16/200x300x1/a:f32",
        "matmul/dense/f32/200x300x150",
        "matmul/2:4/bf16/500x300x1/a:f32",
        "matmul/64:2:8/f16/500x300x600/a:f32",
        "matmul/16:2:8/bf16/500x300x3/a:f32",
        "matmul/3:8/f32/200x300x40",
        "matmul/64:2:8/f32/500x300x70/ep:swiglu",
        "matmul/panel:9@0.7/f32/500x300x17/y:tok",
        "matmul/dense/bf16/200x300x150/c:bf16",
        "matmul/2:4/f16/200x300x40/c:bf16/ep:swiglu",
        "matmul/64:2:8/bf16/500x300x600/c:bf16",
        "matmul/unstructured@0.9/f32/900x700x70",
        "matmul/unstructured@0.9/bf16/900x700x1/a:f32",
        "matmul/block:8x24@0.7/f32/500x300x530",
        "matmul/block:5x3@0.7/bf16/500x300x2/a:f32",
        "matmul/block:300x9@0.5/f32/700x90x20",
        "matmul/rows@0.8/f32/500x300x70/ep:swiglu",
        "matmul/cols@0.8/f16/500x300x3/a:f32",
        "matmul/3:8/bf16/200x300x1/a:f32",
    };
    static const int threads[] = {1, 2, 3, 5};
    for (int i = 0; i < ESP_COUNT(texts); i++) {
        esp_matmul_problem problem = problem_of(run, texts[i]);
        const char *names[64];
        esp_context *context = test_context(run, 1);
        int count = usable_kernels(context, &problem, names);
        test_context_free(run, context);
        for (int k = 0; k < count; k++) {
            float *first = NULL;
            if (strstr(names[k], "openblas") != NULL || strstr(names[k], "onednn") != NULL) {
                continue;
            }
            test_sub(run, "%s %s", texts[i], names[k]);
            for (int j = 0; j < ESP_COUNT(threads); j++) {
                context = test_context(run, threads[j]);
                product p = product_make(run, context, &problem, test_seed(run), REALS, true, true);
                float *result = result_of(&p);
                run_kernel(run, &p, "cpu", names[k], result);
                if (first == NULL) {
                    first = result;
                } else {
                    size_t bytes = (size_t)(p.out_rows * problem.tokens) * sizeof *result;
                    CHECK(memcmp(first, result, bytes) == 0);
                    free(result);
                }
                product_free(&p);
                test_context_free(run, context);
            }
            free(first);
        }
    }
}

static const test_case cases[] = {{"random_problems", random_problems},
                                  {"adversarial_numbers", adversarial_numbers},
                                  {"thread_counts", thread_counts}};
TEST_MAIN(cases)
