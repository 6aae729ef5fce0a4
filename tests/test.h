/* A test program is an explicit array of named cases. A case may open counted sub-cases, so that
 * "each refused file" or "each shape" is one line of the report. Output: one line per failure (and
 * per case with -v), then "N passed, N failed, N skipped". Arguments: -v; -l, which only
 * lists the cases; and a case's name, or a
 * part of the names of several, which alone run. Environment: TEST_SEED. */
#ifndef ESP_TESTS_TEST_H
#define ESP_TESTS_TEST_H

#include <espalier/base.h>

typedef struct test_run test_run;

typedef struct test_case {
    const char *name;
    void (*body)(test_run *run);
} test_case;

int test_main(int argc, char **argv, const test_case *cases, int count);
#define TEST_MAIN(cases)                                                                           \
    int main(int argc, char **argv)                                                                \
    {                                                                                              \
        return test_main(argc, argv, cases, (int)(sizeof(cases) / sizeof((cases)[0])));            \
    }

/* Ends the running sub-case (or the case's head) and begins another, counted on its own. */
void test_sub(test_run *run, const char *format, ...) ESP_PRINTF(2, 3);
void test_skip(test_run *run, const char *format, ...) ESP_PRINTF(2, 3);
void test_fail(test_run *run, const char *file, int line, const char *format, ...) ESP_PRINTF(4, 5);
/* What repeats the running (sub-)case, where that is more than the seed; printed when it fails. */
void test_replay(test_run *run, const char *format, ...) ESP_PRINTF(2, 3);
bool test_failed(const test_run *run); /* the running (sub-)case already failed */
uint64_t test_seed(const test_run *run);

/* *largest becomes value if that is larger, or NaN, which stays: a NaN must not pass for small. */
void test_note_largest(double *largest, double value);

/* A context that fails the case if memory is still held when it is freed; threads as given. */
esp_context *test_context(test_run *run, int threads);
esp_context *test_context_at(test_run *run, int threads, const char *level); /* NULL: the best */
void test_context_free(test_run *run, esp_context *context);

/* Where the project's own files are: the environment's TEST_SOURCE_DIR, else where it was built. */
const char *test_source_dir(void);

/* A fresh folder, removed with all below it when the program ends. */
const char *test_folder(test_run *run);
/* folder/name in a static ring of buffers. */
const char *test_path(const char *folder, const char *name);
/* Entries of a folder, not counting itself and its parent; -1: there is none. */
int test_entries(const char *folder);
void test_write_file(test_run *run, const char *path, const void *data, size_t bytes);

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            test_fail(run, __FILE__, __LINE__, "%s", #condition);                                  \
        }                                                                                          \
    } while (0)
/* As CHECK, but returns from the function. */
#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            test_fail(run, __FILE__, __LINE__, "%s", #condition);                                  \
            return;                                                                                \
        }                                                                                          \
    } while (0)
#define CHECK_INT(actual, expected)                                                                \
    do {                                                                                           \
        long long actual_ = (long long)(actual), expected_ = (long long)(expected);                \
        if (actual_ != expected_) {                                                                \
            test_fail(run, __FILE__, __LINE__, "%s is %lld, expected %lld", #actual, actual_,      \
                      expected_);                                                                  \
        }                                                                                          \
    } while (0)
#define CHECK_TEXT(actual, expected)                                                               \
    test_check_text(run, __FILE__, __LINE__, #actual, (actual), (expected))
/* The call must succeed / fail with this status and code (code NULL: any). */
#define CHECK_OK(call)                                                                             \
    do {                                                                                           \
        esp_error error_ = {0};                                                                    \
        esp_error *error = &error_;                                                                \
        esp_status status_ = (call);                                                               \
        if (status_ != ESP_OK) {                                                                   \
            test_fail(run, __FILE__, __LINE__, "%s: %s: %s", #call, esp_status_name(status_),      \
                      error_.message);                                                             \
        }                                                                                          \
    } while (0)
#define REQUIRE_OK(call)                                                                           \
    do {                                                                                           \
        esp_error error_ = {0};                                                                    \
        esp_error *error = &error_;                                                                \
        esp_status status_ = (call);                                                               \
        if (status_ != ESP_OK) {                                                                   \
            test_fail(run, __FILE__, __LINE__, "%s: %s: %s", #call, esp_status_name(status_),      \
                      error_.message);                                                             \
            return;                                                                                \
        }                                                                                          \
    } while (0)
#define CHECK_FAILS(call, expected_status, expected_code)                                          \
    do {                                                                                           \
        esp_error error_ = {0};                                                                    \
        esp_error *error = &error_;                                                                \
        esp_status status_ = (call);                                                               \
        test_check_failure(run, __FILE__, __LINE__, #call, status_, &error_, expected_status,      \
                           expected_code);                                                         \
        (void)error;                                                                               \
    } while (0)

void test_check_text(test_run *run, const char *file, int line, const char *what,
                     const char *actual, const char *expected);
void test_check_failure(test_run *run, const char *file, int line, const char *what,
                        esp_status status, const esp_error *error, esp_status expected_status,
                        const char *expected_code);

#endif
