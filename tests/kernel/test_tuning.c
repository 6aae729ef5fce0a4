/* The tuning table: its text, damaged in every way; and measuring, which lets no kernel in that
 * differs from the reference. */
#include <limits.h>
#include <pthread.h>

#include "failing_allocator.h"
#include "fake_backend.h"

#define PANEL "matmul_panel_f32_f32__ref_fake"
#define DENSE "matmul_dense_f32_f32__ref_fake"

/* ---- text ---- */

typedef struct kept_text {
    char data[8192];
    size_t length;
} kept_text;

static void keep(void *user, const char *text, size_t length)
{
    kept_text *kept = user;
    if (kept->length + length < sizeof kept->data) {
        memcpy(kept->data + kept->length, text, length);
        kept->length += length;
    }
}

static void fill_table(test_run *run, esp_device *device, double factor)
{
    static const char *const texts[] = {"matmul/64:2:8/bf16/64x64x16/a:f32/c:f32",
                                        "matmul/64:2:8/bf16/64x64x1/a:f32/c:f32",
                                        "matmul/2:4/f32/64x96x3/y:tok/c:bf16/ep:bias+residual"};
    for (int i = 0; i < ESP_COUNT(texts); i++) {
        esp_matmul_problem problem = problem_of(run, texts[i]);
        const esp_plan_candidate times[] = {{.kernel = PANEL, .tuned_us = factor * (10 + i)},
                                            {.kernel = "not_measured"},
                                            {.kernel = DENSE, .tuned_us = factor * 0.0001}};
        CHECK_OK(esp_tuning_put(device, &problem, times, 3, error));
    }
}

static void text_of(test_run *run, esp_context *context, kept_text *kept)
{
    kept->length = 0;
    CHECK_OK(esp_tuning_write(context, keep, kept, error));
}

/* Replaces the end line by the right one. */
static void seal(kept_text *text)
{
    int problems = 0;
    size_t at = 0;
    for (size_t line = 0; line < text->length;) {
        at = line;
        problems += strncmp(text->data + line, "problem ", 8) == 0;
        line =
            (size_t)((char *)memchr(text->data + line, '\n', text->length - line) - text->data) + 1;
    }
    uint32_t crc = esp_crc32c(0, text->data, at);
    text->length = at + (size_t)sprintf(text->data + at, "end %d %08x\n", problems, crc);
}

static void text_round_trips(test_run *run)
{
    esp_context *context = test_context(run, 1), *other = NULL;
    esp_device *device = NULL;
    static kept_text first, second;
    REQUIRE_OK(esp_context_create(NULL, &other, error));
    REQUIRE_OK(esp_device_open(context, "ref", &device, error));
    text_of(run, context, &first);
    CHECK_TEXT(strncmp(first.data, "espalier-tuning 1\nend 0 ", 24) == 0 ? "yes" : "no", "yes");
    CHECK_OK(esp_tuning_read(other, first.data, first.length, error));
    CHECK_INT(esp_tuning_count(other), 0);
    fill_table(run, device, 1);
    CHECK_INT(esp_tuning_count(context), 3);
    text_of(run, context, &first);
    CHECK_OK(esp_tuning_read(other, first.data, first.length, error));
    CHECK_INT(esp_tuning_count(other), 3);
    text_of(run, other, &second);
    CHECK_INT(first.length, second.length);
    CHECK(memcmp(first.data, second.data, first.length) == 0);
    first.data[first.length] = '\0';
    CHECK(strstr(first.data, "time 10000 " PANEL "\n") != NULL);
    CHECK(strstr(first.data, "time 1 " DENSE "\n") != NULL); /* never 0 */
    CHECK(strstr(first.data, "not_measured") == NULL);
    esp_tuning_clear(other);
    CHECK_INT(esp_tuning_count(other), 0);
    esp_device_close(device);
    esp_context_free(other);
    test_context_free(run, context);
}

/* Every byte changed in several ways, every length: refused, and the table stays as it was. */
static void text_damage(test_run *run)
{
    esp_context *context = test_context(run, 1), *other = NULL;
    esp_device *device = NULL;
    static kept_text whole, broken;
    REQUIRE_OK(esp_context_create(NULL, &other, error));
    REQUIRE_OK(esp_device_open(context, "ref", &device, error));
    fill_table(run, device, 1);
    text_of(run, context, &whole);
    for (size_t i = 0; i < whole.length; i++) {
        static const char changes[] = {1, 2, 4, 8, 16, 32, 64, (char)128, (char)255};
        for (size_t k = 0; k < sizeof changes; k++) {
            memcpy(&broken, &whole, sizeof whole);
            broken.data[i] = (char)(broken.data[i] ^ changes[k]);
            esp_error error = {0};
            esp_status status = esp_tuning_read(other, broken.data, broken.length, &error);
            if (status != ESP_BAD_FILE || strncmp(error.code, "tuning.", 7) != 0) {
                test_fail(run, __FILE__, __LINE__, "byte %zu ^ %d: status %d, code %s", i,
                          changes[k], status, error.code);
            }
        }
        char *cut = malloc(i + 1); /* for the sanitizer: not a byte more */
        memcpy(cut, whole.data, i);
        CHECK(esp_tuning_read(other, cut, i, NULL) == ESP_BAD_FILE);
        free(cut);
    }
    CHECK_INT(esp_tuning_count(other), 0);
    memcpy(&broken, &whole, sizeof whole);
    broken.data[broken.length++] = '\n';
    CHECK_FAILS(esp_tuning_read(other, broken.data, broken.length, error), ESP_BAD_FILE,
                "tuning.damaged");
    CHECK_OK(esp_tuning_read(other, whole.data, whole.length, error));
    esp_device_close(device);
    esp_context_free(other);
    test_context_free(run, context);
}

/* With a right checksum. */
static void text_refusals(test_run *run)
{
#define DEVICE "device cpu | x\n"
#define PROBLEM "problem 5 matmul/2:4/f32/8x8x1/c:f32\n"
    static const struct {
        const char *body, *code;
    } rows[] = {
        {"espalier-tuning 2\n", "tuning.newer_version"},
        {"espalier-tuning 0\n", "tuning.not_tuning_file"},
        {"espalier-tuning 01\n", "tuning.not_tuning_file"},
        {"espalier-tuning 99999999999999999999\n", "tuning.not_tuning_file"},
        {"{\"a\": 1}\n", "tuning.not_tuning_file"},
        {"espalier-tuning 1\n" PROBLEM, "tuning.bad_line"},
        {"espalier-tuning 1\n" DEVICE "time 5 a\n", "tuning.bad_line"},
        {"espalier-tuning 1\ndevice \n", "tuning.bad_line"},
        {"espalier-tuning 1\ndevice a\tb\n", "tuning.bad_line"},
        {"espalier-tuning 1\n" DEVICE "speed 1\n", "tuning.bad_line"},
        {"espalier-tuning 1\n" DEVICE "\n", "tuning.bad_line"},
        {"espalier-tuning 1\n" DEVICE "problem 5\n", "tuning.bad_line"},
        {"espalier-tuning 1\n" DEVICE "problem 05 matmul/2:4/f32/8x8x1/c:f32\n", "tuning.bad_line"},
        {"espalier-tuning 1\n" DEVICE "problem -5 matmul/2:4/f32/8x8x1/c:f32\n", "tuning.bad_line"},
        {"espalier-tuning 1\n" DEVICE "problem 5 matmul/2:4/f32/8x8x1\n", "tuning.bad_line"},
        {"espalier-tuning 1\n" DEVICE "problem 5 matmul/2:4/f32/8x8x1/c:f32/x:feat\n",
         "tuning.bad_line"},
        {"espalier-tuning 1\n" DEVICE "problem 5 matmul/9:4/f32/8x8x1/c:f32\n", "tuning.bad_line"},
        {"espalier-tuning 1\n" DEVICE PROBLEM "time 0 a\n", "tuning.bad_line"},
        {"espalier-tuning 1\n" DEVICE PROBLEM "time 1.5 a\n", "tuning.bad_line"},
        {"espalier-tuning 1\n" DEVICE PROBLEM "time 99999999999999999999 a\n", "tuning.bad_line"},
        {"espalier-tuning 1\n" DEVICE PROBLEM "time 5 \n", "tuning.bad_line"},
        {"espalier-tuning 1\n" DEVICE PROBLEM "time 5 a b\n", "tuning.bad_line"},
        {"espalier-tuning 1\n" DEVICE PROBLEM "time 5 ../a\n", "tuning.bad_line"},
        {"espalier-tuning 1\n" DEVICE PROBLEM "time 5 a\ntime 6 a\n", "tuning.bad_line"},
        {"espalier-tuning 1\n" DEVICE PROBLEM "time 5 a\ntime 6 b\n", NULL},
    };
    esp_context *context = test_context(run, 1);
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        static kept_text text;
        text.length = (size_t)snprintf(text.data, sizeof text.data, "%send\n", rows[i].body);
        seal(&text);
        test_sub(run, "%s", rows[i].body);
        if (rows[i].code == NULL) {
            CHECK_OK(esp_tuning_read(context, text.data, text.length, error));
        } else {
            CHECK_FAILS(esp_tuning_read(context, text.data, text.length, error), ESP_BAD_FILE,
                        rows[i].code);
            CHECK_INT(esp_tuning_count(context), 0);
        }
    }
    test_sub(run, "too large");
    char *large = calloc(1, ESP_TUNING_MAX_BYTES + 1);
    CHECK_FAILS(esp_tuning_read(context, large, ESP_TUNING_MAX_BYTES + 1, error), ESP_BAD_FILE,
                "tuning.too_large");
    free(large);
    test_context_free(run, context);
}

/* Of two measurements of the same the later one stays, whole, in whichever order they come. */
static void later_wins(test_run *run)
{
    static const char *const bodies[] = {DEVICE PROBLEM "time 5 a\ntime 6 b\n",
                                         DEVICE "problem 6 matmul/2:4/f32/8x8x1/c:f32\ntime 7 b\n"};
    for (int order = 0; order < 2; order++) {
        esp_context *context = test_context(run, 1);
        static kept_text text;
        for (int i = 0; i < 2; i++) {
            text.length = (size_t)snprintf(text.data, sizeof text.data,
                                           "espalier-tuning 1\n%send\n", bodies[(i + order) % 2]);
            seal(&text);
            CHECK_OK(esp_tuning_read(context, text.data, text.length, error));
        }
        CHECK_INT(esp_tuning_count(context), 1);
        text_of(run, context, &text);
        text.data[text.length] = '\0';
        CHECK(strstr(text.data, "time 7 b\n") != NULL && strstr(text.data, " a\n") == NULL);
        test_context_free(run, context);
    }
}

static void reading_runs_out_of_memory(test_run *run)
{
    static kept_text text;
    text.length = (size_t)snprintf(text.data, sizeof text.data,
                                   "espalier-tuning 1\n" DEVICE PROBLEM "time 5 a\ntime 6 b\n"
                                   "problem 6 matmul/2:4/f32/8x8x2/c:f32\ntime 7 b\nend\n");
    seal(&text);
    failing heap = {.left = LONG_MAX};
    esp_context_options options = {.threads = 1,
                                   .allocator = {failing_allocate, failing_release, &heap}};
    esp_context *context = NULL;
    REQUIRE_OK(esp_context_create(&options, &context, error));
    esp_status status = ESP_OUT_OF_MEMORY;
    int failures = 0;
    for (; status == ESP_OUT_OF_MEMORY && failures < 100; failures++) {
        long before = heap.live;
        heap.left = failures;
        status = esp_tuning_read(context, text.data, text.length, NULL);
        heap.left = LONG_MAX;
        CHECK(status == ESP_OK || heap.live == before);
        CHECK_INT(esp_tuning_count(context), status == ESP_OK ? 2 : 0);
    }
    CHECK_INT(status, ESP_OK);
    CHECK(failures > 5);
    esp_context_free(context);
    CHECK_INT(heap.live, 0);
}

/* ---- measuring ---- */

typedef struct seen_results {
    int entered, refused, dense;
    char refusals[MOST_FAKES][96];
} seen_results;

static void see(void *user, const esp_matmul_problem *problem, const esp_tune_result *result)
{
    seen_results *seen = user;
    (void)problem;
    if (result->refused == NULL) {
        seen->entered += result->median_us > 0 && result->least_us <= result->median_us &&
                         result->error <= 1 && result->rounds > 0;
        seen->dense += result->runs_dense;
    } else if (seen->refused < MOST_FAKES) {
        snprintf(seen->refusals[seen->refused++], 96, "%s: %s", result->kernel, result->refused);
    }
}

static void tunes(test_run *run)
{
    static const char *const texts[] = {"matmul/64:2:8/bf16/96x64x5/a:f32/ep:bias+residual",
                                        "matmul/2:4/f32/32x40x70/x:tok/y:tok/ep:scale+silu",
                                        "matmul/dense/f32/32x40x33",
                                        "matmul/3:8/f16/24x32x2",
                                        "matmul/16:2:8/bf16/32x64x40/ep:swiglu/o:f16",
                                        "matmul/unstructured@0.7/f32/40x30x9/c:bf16",
                                        "matmul/block:8x8@0.5/bf16/40x32x3/a:f32"};
    esp_context *context = test_context(run, 2);
    esp_device *device = NULL;
    REQUIRE_OK(esp_device_open(context, "cpu", &device, error));
    for (int i = 0; i < ESP_COUNT(texts); i++) {
        seen_results seen = {0};
        const esp_tune_options options = {
            .rounds = 1, .rotate_bytes = -1, .on_result = see, .user = &seen};
        esp_matmul_problem problem = problem_of(run, texts[i]);
        test_sub(run, "%s", texts[i]);
        CHECK_OK(esp_tune(device, &problem, &options, error));
        CHECK(seen.entered > 1);
        CHECK_INT(seen.refused, 0);
        CHECK((seen.dense > 0) == (problem.pattern.kind != ESP_PATTERN_DENSE));
        CHECK_INT(esp_tuning_count(context), i + 1);
        esp_plan_options both = {.forms = ESP_FORM_SPARSE | ESP_FORM_DENSE};
        esp_plan *plan = NULL;
        REQUIRE_OK(esp_plan_create_with(device, &problem, &both, &plan, error));
        CHECK_INT(esp_plan_get_reason(plan).tuned_tokens, problem.tokens);
        esp_plan_free(plan);
    }
    test_sub(run, "what cannot be measured");
    esp_matmul_problem problem = problem_of(run, texts[0]);
    const esp_tune_options wrong = {.rounds = -1};
    CHECK_FAILS(esp_tune(device, &problem, &wrong, error), ESP_BAD_ARGUMENT, "tune.bad_rounds");
    CHECK_FAILS(esp_tune_tokens(device, &problem, &problem.tokens, 0, NULL, error),
                ESP_BAD_ARGUMENT, "tune.no_tokens");
    problem = problem_of(run, "matmul/2:4/f32/1x4000000x1");
    CHECK_FAILS(esp_tune(device, &problem, NULL, error), ESP_UNSUPPORTED, "tune.too_wide");
    problem.tokens = 0;
    CHECK_FAILS(esp_tune(device, &problem, NULL, error), ESP_BAD_ARGUMENT, "problem.bad_sizes");
    esp_device_close(device);
    test_context_free(run, context);
}

/* One weight and one reference for all: fewer tokens than vectors, and more, in any order. */
static void tunes_many_token_counts(test_run *run)
{
    static const char *const texts[] = {"matmul/64:2:8/bf16/96x64x5/a:f32/ep:swiglu+residual",
                                        "matmul/2:4/f32/32x40x70/x:tok/y:tok/ep:scale+silu"};
    static const int64_t tokens[] = {33, 1, 300, 7};
    esp_context *context = test_context(run, 2);
    esp_device *device = NULL;
    REQUIRE_OK(esp_device_open(context, "cpu", &device, error));
    for (int i = 0; i < ESP_COUNT(texts); i++) {
        seen_results seen = {0};
        const esp_tune_options options = {
            .rounds = 1, .rotate_bytes = -1, .on_result = see, .user = &seen};
        esp_matmul_problem problem = problem_of(run, texts[i]);
        test_sub(run, "%s", texts[i]);
        CHECK_OK(esp_tune_tokens(device, &problem, tokens, 4, &options, error));
        CHECK_INT(seen.refused, 0);
        CHECK(seen.entered >= 8);
        CHECK_INT(esp_tuning_count(context), 4 * (i + 1));
        for (int k = 0; k < 4; k++) {
            esp_plan *plan = NULL;
            problem.tokens = tokens[k];
            REQUIRE_OK(esp_plan_create(device, &problem, NULL, &plan, error));
            CHECK_INT(esp_plan_get_reason(plan).tuned_tokens, tokens[k]);
            esp_plan_free(plan);
        }
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* ---- weights in turn ---- */

#define MOST_SEEN 300

static const esp_packed *weights_seen[MOST_SEEN];
static int weights_seen_count;

static esp_status launch_and_see(const esp_matmul_call *call, esp_error *error)
{
    int i = 0;
    while (i < weights_seen_count && weights_seen[i] != call->args->weight) {
        i++;
    }
    if (i == weights_seen_count && i < MOST_SEEN) {
        weights_seen[weights_seen_count++] = call->args->weight;
    }
    return fake_launch(call, error);
}

/* A model reads its weights once per pass, so up to 256 tokens none is found warm. */
static void weights_take_turns(test_run *run)
{
    static const struct {
        int64_t tokens, rotate_bytes;
        bool many;
    } rows[] = {{1, 0, true},    {17, 0, true},   {256, 0, true},
                {257, 0, false}, {17, -1, false}, {257, 10 << 20, true}};
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        esp_context *context = test_context(run, 1);
        esp_device *device = NULL;
        REQUIRE_OK(esp_device_open(context, "ref", &device, error));
        const esp_backend *real = device->backend;
        const fake fakes[] = {{PANEL, "panel", 5, 0, NULL, false, 0},
                              {DENSE, "dense", 9, 0, NULL, false, 0}};
        fake_backend made;
        fake_install(&made, device, fakes, 2);
        made.kernels[0].launch = launch_and_see;
        weights_seen_count = 0;
        esp_matmul_problem problem = problem_of(run, "matmul/16:2:8/f32/16x24x1");
        problem.tokens = rows[i].tokens;
        const esp_tune_options options = {.rounds = 9, .rotate_bytes = rows[i].rotate_bytes};
        test_sub(run, "%lld tokens, rotate %lld", (long long)rows[i].tokens,
                 (long long)rows[i].rotate_bytes);
        CHECK_OK(esp_tune(device, &problem, &options, error));
        /* two: of integers and of real numbers */
        CHECK(rows[i].many ? weights_seen_count > 10 : weights_seen_count <= 2);
        device->backend = real;
        esp_device_close(device);
        test_context_free(run, context);
    }
}

/* No wrong kernel enters, however it is wrong; the right ones beside it do. */
static void wrong_kernels_stay_out(test_run *run)
{
    static const struct {
        fault fault;
        const char *reason;
    } rows[] = {{FAULT_BY_ONE, "on integers"},
                {FAULT_SLIGHTLY, "more than rounding"},
                {FAULT_NAN, "on integers"},
                {FAULT_UNWRITTEN, "on integers"},
                {FAULT_LAUNCH, "failed to run"}};
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        esp_context *context = test_context(run, 1);
        esp_device *device = NULL;
        REQUIRE_OK(esp_device_open(context, "ref", &device, error));
        const esp_backend *real = device->backend;
        const fake fakes[] = {{PANEL, "panel", 5, rows[i].fault, NULL, false, 0},
                              {DENSE, "dense", 9, 0, NULL, false, 0}};
        fake_backend made;
        fake_install(&made, device, fakes, 2);
        esp_matmul_problem problem = problem_of(run, "matmul/16:2:8/f32/32x40x50");
        seen_results seen = {0};
        const esp_tune_options options = {.rounds = 1, .on_result = see, .user = &seen};
        const esp_plan_options both = {.forms = ESP_FORM_SPARSE | ESP_FORM_DENSE};
        esp_plan *plan = NULL;
        test_sub(run, "%s", rows[i].reason);
        CHECK_OK(esp_tune(device, &problem, &options, error));
        CHECK_INT(seen.entered, 1);
        CHECK_INT(seen.refused, 1);
        CHECK(strncmp(seen.refusals[0], PANEL ": ", sizeof PANEL + 1) == 0);
        CHECK(strstr(seen.refusals[0], rows[i].reason) != NULL);
        REQUIRE_OK(esp_plan_create_with(device, &problem, &both, &plan, error));
        CHECK_TEXT(esp_plan_kernel(plan), DENSE);
        esp_plan_free(plan);

        test_sub(run, "%s, and no other kernel", rows[i].reason);
        made.list[1] = NULL;
        esp_tuning_clear(context);
        CHECK_FAILS(esp_tune(device, &problem, &options, error), ESP_CHECK_FAILED,
                    "tune.no_candidate");
        CHECK_INT(esp_tuning_count(context), 0);
        device->backend = real;
        esp_device_close(device);
        test_context_free(run, context);
    }
}

static bool stop_at(void *user, const char *what, double done, double total, const char *unit)
{
    (void)what, (void)unit;
    return done <= total && --*(int *)user > 0;
}

static void tuning_is_cancelled(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_device *device = NULL;
    esp_matmul_problem problem = problem_of(run, "matmul/16:2:8/f32/32x40x5");
    REQUIRE_OK(esp_device_open(context, "ref", &device, error));
    esp_status status = ESP_CANCELLED;
    int steps = 0;
    while (status == ESP_CANCELLED && steps < 100) {
        int left = ++steps;
        const esp_tune_options options = {.rounds = 1, .progress = stop_at, .user = &left};
        status = esp_tune(device, &problem, &options, NULL);
        CHECK_INT(esp_tuning_count(context), status == ESP_OK);
    }
    CHECK_INT(status, ESP_OK);
    CHECK(steps > 5);
    esp_device_close(device);
    test_context_free(run, context);
}

static void tuning_runs_out_of_memory(test_run *run)
{
    failing heap = {.left = LONG_MAX};
    esp_context_options options = {.threads = 1,
                                   .allocator = {failing_allocate, failing_release, &heap}};
    esp_context *context = NULL;
    esp_device *device = NULL;
    esp_matmul_problem problem = problem_of(run, "matmul/16:2:8/f32/32x40x5");
    REQUIRE_OK(esp_context_create(&options, &context, error));
    REQUIRE_OK(esp_device_open(context, "ref", &device, error));
    esp_status status = ESP_OUT_OF_MEMORY;
    int failures = 0;
    for (; status == ESP_OUT_OF_MEMORY && failures < 500; failures++) {
        const esp_tune_options tune = {.rounds = 1, .rotate_bytes = -1};
        long before = heap.live;
        heap.left = failures;
        status = esp_tune(device, &problem, &tune, NULL);
        heap.left = LONG_MAX;
        CHECK(status == ESP_OK || heap.live == before);
        CHECK_INT(esp_tuning_count(context), status == ESP_OK);
    }
    CHECK_INT(status, ESP_OK);
    CHECK(failures > 30);
    esp_device_close(device);
    esp_context_free(context);
    CHECK_INT(heap.live, 0);
}

/* ---- threads ---- */

typedef struct shared {
    test_run *run;
    esp_device *device;
    esp_matmul_problem problem;
    int wrong;
} shared;

static void *plan_often(void *user)
{
    shared *all = user;
    const esp_plan_options both = {.forms = ESP_FORM_SPARSE | ESP_FORM_DENSE};
    for (int i = 0; i < 3000; i++) {
        esp_plan plan;
        bool right = esp_plan_fill(all->device, &all->problem, &both, &plan, NULL) == ESP_OK &&
                     plan.kernel != NULL;
        all->wrong += !right;
    }
    return NULL;
}

static void *read_often(void *user)
{
    shared *all = user;
    static kept_text text;
    text_of(all->run, all->device->context, &text);
    for (int i = 0; i < 300; i++) {
        all->wrong += esp_tuning_read(all->device->context, text.data, text.length, NULL) != ESP_OK;
        esp_tuning_clear(all->device->context);
    }
    return NULL;
}

static void table_is_shared_by_threads(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_device *device = NULL;
    REQUIRE_OK(esp_device_open(context, "ref", &device, error));
    fill_table(run, device, 1);
    pthread_t threads[3];
    shared all[3];
    for (int i = 0; i < 3; i++) {
        all[i] = (shared){run, device, problem_of(run, "matmul/64:2:8/bf16/64x64x16/a:f32"), 0};
    }
    for (int i = 0; i < 3; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, i == 2 ? read_often : plan_often, &all[i]) == 0);
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        CHECK_INT(all[i].wrong, 0);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"text_round_trips", text_round_trips},
    {"text_damage", text_damage},
    {"text_refusals", text_refusals},
    {"later_wins", later_wins},
    {"reading_runs_out_of_memory", reading_runs_out_of_memory},
    {"tunes", tunes},
    {"tunes_many_token_counts", tunes_many_token_counts},
    {"weights_take_turns", weights_take_turns},
    {"wrong_kernels_stay_out", wrong_kernels_stay_out},
    {"tuning_is_cancelled", tuning_is_cancelled},
    {"tuning_runs_out_of_memory", tuning_runs_out_of_memory},
    {"table_is_shared_by_threads", table_is_shared_by_threads},
};
TEST_MAIN(cases)
