/* The comparison. Problems and the reference's results are made once per kernel and used at every
 * level. A case is known by kernel, level, inputs, problem, threads and its seed alone, so one line
 * replays it: strides, alignment, the order of rows and whether the residual is Y come from the
 * seed. */
#include <signal.h>
#include <unistd.h>

#include "base/base.h"
#include "check.h"

#define MOST_TRIES 4000 /* drawn problems until enough are accepted */
#define MOST_CASES 1024

typedef struct prepared {
    char text[ESP_PROBLEM_TEXT_MAX];
    uint64_t seed;
    inputs kind;
    product p;
    float *expected;
    double *sums; /* REALS only */
} prepared;

/* One level with pools of several sizes: the asked one first, others that must give its bits. */
typedef struct level_devices {
    const char *name;
    esp_context *contexts[3];
    esp_device *devices[3];
} level_devices;

typedef struct checker {
    test_run *run;
    esp_context *ref_context;
    esp_device *ref;
    level_devices levels[MAX_LEVELS];
    int level_count;
    prepared *cases;
    int case_count;
} checker;

/* ---- crashes ---- */

static char running[1024];

void check_note(const char *text)
{
    snprintf(running, sizeof running, "%s", text);
}

#ifndef __SANITIZE_ADDRESS__ /* which says more */
static void on_crash(int signal_number)
{
    static const char head[] = "FAIL kernel_check: crashed (replay: ";
    (void)signal_number;
    (void)!write(1, head, sizeof head - 1);
    (void)!write(1, running, strlen(running));
    (void)!write(1, ")\n", 2);
    _exit(5);
}
#endif

void check_catch_crashes(void)
{
#ifndef __SANITIZE_ADDRESS__
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    for (int i = 0; i < ESP_COUNT(signals); i++) {
        signal(signals[i], on_crash);
    }
#endif
}

/* ---- devices ---- */

int check_levels(const char *names[MAX_LEVELS])
{
    esp_cpu_features features = {0};
    int count = 0;
    if (esp_cpu_features_detect(getenv("ESPALIER_CPU"), &features, NULL) != ESP_OK) {
        return 0;
    }
    for (int level = (int)features.level; level >= 0 && count < MAX_LEVELS; level--) {
        const char *name = esp_cpu_level_name((esp_cpu_level)level);
        if (esp_glob_match(the_options.level, name)) {
            names[count++] = name;
        }
    }
    return count;
}

static void open_devices(checker *check)
{
    const char *names[MAX_LEVELS];
    int others[] = {the_options.threads, 1, 3};
    check->ref_context = test_context(check->run, 1);
    test_run *run = check->run;
    REQUIRE_OK(esp_device_open(check->ref_context, "ref", &check->ref, error));
    int count = check_levels(names);
    for (int i = 0; i < count; i++) {
        level_devices *level = &check->levels[check->level_count++];
        level->name = names[i];
        for (int j = 0; j < ESP_COUNT(others); j++) {
            level->contexts[j] = test_context_at(run, others[j], names[i]);
            REQUIRE_OK(esp_device_open(level->contexts[j], "cpu", &level->devices[j], error));
        }
    }
}

static void close_devices(checker *check)
{
    for (int i = 0; i < check->level_count; i++) {
        for (int j = 0; j < ESP_COUNT(check->levels[i].devices); j++) {
            esp_device_close(check->levels[i].devices[j]);
            esp_context_free(check->levels[i].contexts[j]);
        }
    }
    esp_device_close(check->ref);
    test_sub(check->run, "memory");
    test_context_free(check->run, check->ref_context);
}

/* ---- problems ---- */

bool check_is_selected(const esp_kernel_info *info)
{
    return strcmp(info->device, "cpu") == 0 && esp_glob_match(the_options.kernel, info->name);
}

bool check_is_library(const esp_kernel_info *info)
{
    return strcmp(info->level, "openblas") == 0 || strcmp(info->level, "onednn") == 0;
}

/* NULL when some level accepts it, else the best level's reason. */
static const char *refused(const checker *check, int kernel, const esp_matmul_problem *problem)
{
    const char *first = "there is no such level here";
    for (int i = 0; i < check->level_count; i++) {
        const char *why = esp_kernel_why_not(kernel, check->levels[i].devices[0], problem);
        if (why == NULL) {
            return NULL;
        }
        first = i == 0 ? why : first;
    }
    return first;
}

static void prepare(checker *check, const char *text, uint64_t seed, inputs kind)
{
    test_run *run = check->run;
    prepared *made = &check->cases[check->case_count++];
    esp_matmul_problem problem = problem_of(run, text);
    uint64_t bits = esp_splitmix64(&(uint64_t){seed});
    *made = (prepared){.seed = seed, .kind = kind};
    snprintf(made->text, sizeof made->text, "%s", text);
    made->p = product_make(run, check->ref_context, &problem, seed, kind, (bits & 1) != 0,
                           (bits & 2) != 0);
    made->p.offset = (bits & 4) != 0 ? 1 + (int)(bits >> 8 & 7) : 0;
    made->expected = result_of(&made->p);
    run_on_device(run, &made->p, check->ref, NULL, made->expected);
    made->sums = kind == REALS ? magnitudes(run, &made->p) : NULL;
    made->p.in_place = (bits & 8) != 0; /* not for the reference, which says what must come out */
}

static void free_cases(checker *check)
{
    for (int i = 0; i < check->case_count; i++) {
        product_free(&check->cases[i].p);
        free(check->cases[i].expected);
        free(check->cases[i].sums);
    }
    check->case_count = 0;
}

/* A kernel's problems depend on its name and the seed, not on its place in the catalogue. */
static uint64_t seed_of(const char *kernel)
{
    uint64_t seed = the_options.seed;
    for (const char *at = kernel; *at != '\0'; at++) {
        seed = (seed ^ (unsigned char)*at) * 0x100000001b3u;
    }
    return seed;
}

/* Returns how many were made; *why: the last refusal. */
static int draw_cases(checker *check, int kernel, inputs kind, const char **why)
{
    esp_kernel_info info = esp_kernel_get(kernel);
    esp_random random;
    esp_random_seed(&random, seed_of(info.name) + (uint64_t)kind);
    int made = 0;
    for (int i = 0; i < MOST_TRIES && made < the_options.cases; i++) {
        char text[ESP_PROBLEM_TEXT_MAX];
        draw_problem(&random, info.format, kind == INTEGERS, text);
        uint64_t seed = seed_of(info.name) + (uint64_t)i;
        esp_matmul_problem problem = problem_of(check->run, text);
        const char *refusal = refused(check, kernel, &problem);
        if (refusal == NULL) {
            check_note(text);
            prepare(check, text, seed, kind);
            made++;
        } else {
            *why = refusal;
        }
    }
    return made;
}

/* ---- comparison ---- */

static void compare(checker *check, const prepared *one, const level_devices *level,
                    const esp_kernel_info *info, bool all_threads)
{
    test_run *run = check->run;
    size_t bytes = (size_t)(one->p.out_rows * one->p.problem.tokens) * sizeof(float);
    float *first = malloc(bytes), *again = malloc(bytes);
    run_on_device(run, &one->p, level->devices[0], info->name, first);
    if (!test_failed(run) && one->kind == INTEGERS) {
        compare_exact(run, &one->p, one->expected, first);
    } else if (!test_failed(run)) {
        compare_bounded(run, &one->p, one->sums, one->expected, first);
    }
    for (int j = 1; all_threads && j < ESP_COUNT(level->devices) && !test_failed(run); j++) {
        run_on_device(run, &one->p, level->devices[j], info->name, again);
        if (memcmp(first, again, bytes) != 0) {
            test_fail(run, __FILE__, __LINE__, "%d threads give other bits than %d",
                      esp_context_threads(level->contexts[j]),
                      esp_context_threads(level->contexts[0]));
        }
    }
    free(first);
    free(again);
}

/* Stops at the first failure: one replay line is enough to begin with. */
static void check_level(checker *check, int kernel, const level_devices *level, inputs kind)
{
    esp_kernel_info info = esp_kernel_get(kernel);
    const char *word = kind == INTEGERS ? "exact" : "random";
    int done = 0;
    for (int i = 0; i < check->case_count; i++) {
        const prepared *one = &check->cases[i];
        if (one->kind != kind ||
            esp_kernel_why_not(kernel, level->devices[0], &one->p.problem) != NULL) {
            continue;
        }
        if (done++ == 0) {
            test_sub(check->run, "%s at %s, %s", info.name, level->name, word);
        }
        char line[512];
        snprintf(line, sizeof line,
                 "kernel_check --kernel %s --level %s --threads %d --inputs %s --problem %s --seed "
                 "%llu",
                 info.name, level->name, the_options.threads, word, one->text,
                 (unsigned long long)one->seed);
        check_note(line);
        test_replay(check->run, "%s", line);
        compare(check, one, level, &info, !check_is_library(&info) && done % 3 == 1);
        if (test_failed(check->run)) {
            return;
        }
    }
}

static bool wants(inputs kind)
{
    const char *asked = the_options.inputs;
    return asked == NULL || (strcmp(asked, "exact") == 0) == (kind == INTEGERS);
}

/* A machine may lack what a kernel needs; a kernel that could run but accepts nothing is a fault.
 */
static void report_unreached(checker *check, const char *kernel, const char *why)
{
    test_run *run = check->run;
    test_sub(run, "%s", kernel);
    if (strstr(why, "absent") != NULL || strstr(why, "not found") != NULL) {
        test_skip(run, "%s: %s", kernel, why);
    } else {
        test_replay(run, "kernel_check --kernel %s --seed %llu", kernel,
                    (unsigned long long)the_options.seed);
        test_fail(run, __FILE__, __LINE__, "%s: it accepts none of %d problems; the last: %s",
                  kernel, MOST_TRIES, why);
    }
}

static void check_kernel(checker *check, int kernel)
{
    esp_kernel_info info = esp_kernel_get(kernel);
    for (inputs kind = INTEGERS; kind <= REALS; kind++) {
        const char *why = "nothing was drawn";
        if (!wants(kind)) {
            continue;
        }
        if (the_options.problem != NULL) {
            esp_matmul_problem problem = problem_of(check->run, the_options.problem);
            why = refused(check, kernel, &problem);
            if (why == NULL) {
                prepare(check, the_options.problem, the_options.seed, kind);
            } else {
                printf("%s: %s\n", info.name, why);
            }
        } else if (draw_cases(check, kernel, kind, &why) == 0) {
            report_unreached(check, info.name, why);
        }
        for (int i = 0; i < check->level_count; i++) {
            check_level(check, kernel, &check->levels[i], kind);
        }
        free_cases(check);
    }
}

void check_catalogue(test_run *run)
{
    checker check = {.run = run, .cases = calloc(MOST_CASES, sizeof(prepared))};
    test_sub(run, "devices");
    open_devices(&check);
    bool opened = !test_failed(run);
    for (int i = 0; opened && i < esp_kernel_count(); i++) {
        esp_kernel_info info = esp_kernel_get(i);
        if (check_is_selected(&info)) {
            check_kernel(&check, i);
        }
    }
    close_devices(&check);
    free(check.cases);
}
