#include "test.h"

#include <dirent.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct test_run {
    const char *program;
    const char *case_name;
    char sub_name[256];
    bool open, failed, skipped, verbose;
    int subs;
    int passed_count, failed_count, skipped_count;
    uint64_t seed;
    char folder[512];
    char replay[512]; /* how to repeat the running (sub-)case; "": by the seed */
};

static void close_case(test_run *run, bool head)
{
    if (!run->open) {
        return;
    }
    run->open = false;
    if (run->failed) {
        run->failed_count++;
        printf("FAIL %s: %s%s%s ", run->program, run->case_name,
               run->sub_name[0] != '\0' ? " / " : "", run->sub_name);
        if (run->replay[0] != '\0') {
            printf("(replay: %s)\n", run->replay);
        } else {
            printf("(replay: TEST_SEED=%llu)\n", (unsigned long long)run->seed);
        }
    } else if (run->skipped) {
        run->skipped_count++;
    } else if (!head || run->subs == 0) {
        run->passed_count++;
        if (run->verbose) {
            printf("ok   %s: %s%s%s\n", run->program, run->case_name,
                   run->sub_name[0] != '\0' ? " / " : "", run->sub_name);
        }
    }
}

static void open_case(test_run *run)
{
    run->open = true;
    run->failed = run->skipped = false;
    run->replay[0] = '\0';
}

void test_replay(test_run *run, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(run->replay, sizeof run->replay, format, arguments);
    va_end(arguments);
}

void test_sub(test_run *run, const char *format, ...)
{
    run->subs++;
    close_case(run, run->sub_name[0] == '\0');
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(run->sub_name, sizeof run->sub_name, format, arguments);
    va_end(arguments);
    open_case(run);
}

void test_skip(test_run *run, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    printf("not run %s: %s: ", run->program, run->case_name);
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
    run->skipped = true;
}

void test_fail(test_run *run, const char *file, int line, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    printf("%s:%d: ", file, line);
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
    run->failed = true;
}

bool test_failed(const test_run *run)
{
    return run->failed;
}

uint64_t test_seed(const test_run *run)
{
    return run->seed;
}

void test_note_largest(double *largest, double value)
{
    if (!(value <= *largest) && *largest == *largest) {
        *largest = value;
    }
}

void test_check_text(test_run *run, const char *file, int line, const char *what,
                     const char *actual, const char *expected)
{
    if (actual == NULL || strcmp(actual, expected) != 0) {
        test_fail(run, file, line, "%s is \"%s\", expected \"%s\"", what,
                  actual != NULL ? actual : "(null)", expected);
    }
}

void test_check_failure(test_run *run, const char *file, int line, const char *what,
                        esp_status status, const esp_error *error, esp_status expected_status,
                        const char *expected_code)
{
    if (status != expected_status ||
        (expected_code != NULL && strcmp(error->code, expected_code) != 0)) {
        test_fail(run, file, line, "%s: got %s \"%s\" (%s), expected %s \"%s\"", what,
                  esp_status_name(status), error->code, error->message,
                  esp_status_name(expected_status), expected_code != NULL ? expected_code : "*");
    } else if (error->message[0] == '\0') {
        test_fail(run, file, line, "%s: the error has no message", what);
    }
}

/* ---- a counting allocator ---- */

static atomic_llong live_blocks;

static void *counting_allocate(void *user, size_t bytes, size_t alignment)
{
    (void)user;
    void *memory = aligned_alloc(alignment, bytes);
    if (memory != NULL) {
        memset(memory, 0xa5, bytes); /* poison: nothing may rely on zeroed memory */
        atomic_fetch_add(&live_blocks, 1);
    }
    return memory;
}

static void counting_release(void *user, void *memory)
{
    (void)user;
    atomic_fetch_sub(&live_blocks, 1);
    free(memory);
}

esp_context *test_context(test_run *run, int threads)
{
    return test_context_at(run, threads, getenv("ESPALIER_CPU"));
}

esp_context *test_context_at(test_run *run, int threads, const char *level)
{
    esp_context_options options = {.threads = threads,
                                   .allocator = {counting_allocate, counting_release, NULL},
                                   .cpu_level = level};
    esp_context *context = NULL;
    esp_error error = {0};
    if (esp_context_create(&options, &context, &error) != ESP_OK) {
        test_fail(run, __FILE__, __LINE__, "no context: %s", error.message);
        exit(1);
    }
    return context;
}

void test_context_free(test_run *run, esp_context *context)
{
    esp_context_free(context);
    long long left = atomic_load(&live_blocks);
    if (left != 0) {
        test_fail(run, __FILE__, __LINE__, "%lld blocks of memory were not freed", left);
        atomic_store(&live_blocks, 0);
    }
}

/* ---- files ---- */

static int remove_entry(const char *path, const struct stat *facts, int kind, struct FTW *place)
{
    (void)facts, (void)kind, (void)place;
    return remove(path);
}

const char *test_source_dir(void)
{
    const char *given = getenv("TEST_SOURCE_DIR");
    return given != NULL ? given : ESP_SOURCE_DIR;
}

const char *test_folder(test_run *run)
{
    if (run->folder[0] == '\0') {
        const char *base = getenv("TMPDIR");
        snprintf(run->folder, sizeof run->folder, "%s/espalier-test-XXXXXX",
                 base != NULL ? base : "/tmp");
        if (mkdtemp(run->folder) == NULL) {
            perror("mkdtemp");
            exit(1);
        }
    }
    return run->folder;
}

const char *test_path(const char *folder, const char *name)
{
    static char ring[8][1024];
    static int next;
    char *text = ring[next++ % 8];
    snprintf(text, sizeof ring[0], "%s/%s", folder, name);
    return text;
}

int test_entries(const char *folder)
{
    int count = 0;
    DIR *list = opendir(folder);
    if (list == NULL) {
        return -1;
    }
    for (struct dirent *entry; (entry = readdir(list)) != NULL;) {
        count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    }
    closedir(list);
    return count;
}

void test_write_file(test_run *run, const char *path, const void *data, size_t bytes)
{
    FILE *file = fopen(path, "wb");
    bool written = file != NULL && fwrite(data, 1, bytes, file) == bytes;
    if (file == NULL || fclose(file) != 0 || !written) {
        test_fail(run, __FILE__, __LINE__, "%s: could not be written", path);
    }
}

static void list_cases(const test_case *cases, int count)
{
    for (int i = 0; i < count; i++) {
        puts(cases[i].name);
    }
}

int test_main(int argc, char **argv, const test_case *cases, int count)
{
    const char *slash = strrchr(argv[0], '/');
    const char *seed = getenv("TEST_SEED");
    test_run run = {.program = slash != NULL ? slash + 1 : argv[0],
                    .seed = seed != NULL ? strtoull(seed, NULL, 0) : 20261121u};
    const char *only = NULL;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-v") == 0) {
            run.verbose = true;
        } else if (strcmp(argv[i], "-l") == 0) {
            list_cases(cases, count);
            return 0;
        } else {
            only = argv[i];
        }
    }
    bool whole = false; /* a case of just that name is meant alone */
    for (int i = 0; only != NULL && i < count; i++) {
        whole = whole || strcmp(cases[i].name, only) == 0;
    }
    for (int i = 0; i < count; i++) {
        if (only != NULL &&
            !(whole ? strcmp(cases[i].name, only) == 0 : strstr(cases[i].name, only) != NULL)) {
            continue;
        }
        run.case_name = cases[i].name;
        run.sub_name[0] = '\0';
        run.subs = 0;
        open_case(&run);
        cases[i].body(&run);
        close_case(&run, run.sub_name[0] == '\0');
        fflush(stdout);
    }
    if (run.folder[0] != '\0') {
        nftw(run.folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    }
    printf("%s: %d passed, %d failed, %d skipped\n", run.program, run.passed_count,
           run.failed_count, run.skipped_count);
    return run.failed_count > 0 ? 1 : 0;
}
