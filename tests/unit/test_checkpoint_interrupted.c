/* Folders are written whole or not at all: full disks, kills at any moment, leftovers of the dead,
 * and targets that appear meanwhile. */
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "writer_place.h"

/* ---- disks ---- */

static void no_space(test_run *run)
{
    esp_context *context = test_context(run, 1);
    place at = make_place(run, context);
    esp_checkpoint_writer *writer = make_writer(run, context, &at);
    esp_weight_info info = {.name = "w", .dtype = ESP_U8, .rank = 1, .shape = {(int64_t)1 << 59}};
    CHECK_OK(esp_checkpoint_writer_declare(writer, &info, error));
    CHECK_FAILS(esp_checkpoint_writer_begin(writer, error), ESP_IO, "checkpoint.no_space");
    free_and_check(run, &at, writer);
    test_context_free(run, context);
}

/* A file size limit stands for a disk that fills up while writing. */
static void disk_fills_up(test_run *run)
{
    struct rlimit old, limit;
    esp_context *context = test_context(run, 1);
    REQUIRE(getrlimit(RLIMIT_FSIZE, &old) == 0);
    signal(SIGXFSZ, SIG_IGN);
    for (rlim_t bytes = 1; bytes < 2600; bytes += 100) {
        test_sub(run, "at %d bytes", (int)bytes);
        place at = make_place(run, context);
        esp_error error = {0};
        limit = (struct rlimit){.rlim_cur = bytes, .rlim_max = old.rlim_max};
        setrlimit(RLIMIT_FSIZE, &limit);
        esp_status status =
            write_folder(run, context, at.source, at.target, false, false, 0, &error);
        setrlimit(RLIMIT_FSIZE, &old);
        if (status == ESP_OK) {
            CHECK(bytes > 1000);
            check_folder(run, context, at.target, true, 0);
        } else {
            CHECK_INT(status, ESP_IO);
            CHECK_TEXT(error.code, "file.write_failed");
            CHECK_INT(test_entries(at.parent), 1);
        }
    }
    signal(SIGXFSZ, SIG_DFL);
    test_context_free(run, context);
}

/* ---- killed ---- */

static void write_until_killed(test_run *run, const place *at)
{
    esp_context_options options = {.threads = 1};
    esp_context *context = NULL;
    CHECK_OK(esp_context_create(&options, &context, error));
    for (int variant = 1;; variant = 3 - variant) {
        CHECK_OK(write_folder(run, context, at->source, at->target, true, false, variant, error));
        if (test_failed(run)) {
            _exit(1);
        }
    }
}

/* Variant of a complete folder; the whole of it is checked. */
static int variant_of(test_run *run, esp_context *context, const char *path)
{
    esp_checkpoint *checkpoint = NULL;
    unsigned char first[24] = {0};
    esp_tensor ids = {.dtype = ESP_I64, .rank = 1, .shape = {3}, .data = first};
    CHECK_OK(esp_checkpoint_open(context, path, &checkpoint, error));
    if (checkpoint == NULL) {
        return -1;
    }
    CHECK_OK(
        esp_checkpoint_read_dense(checkpoint, esp_checkpoint_find(checkpoint, "ids"), &ids, error));
    esp_checkpoint_close(checkpoint);
    return first[0] - 0x11;
}

/* How long one folder takes here, at most 100 ms: kills shall fall before and after its end. */
static uint64_t write_microseconds(test_run *run, esp_context *context, const place *at)
{
    char path[1100];
    snprintf(path, sizeof path, "%s/timed", at->source);
    double started = esp_seconds();
    CHECK_OK(write_folder(run, context, at->source, path, false, false, 0, error));
    double taken = (esp_seconds() - started) * 1e6;
    return taken < 1000 ? 1000 : taken > 100000 ? 100000 : (uint64_t)taken;
}

static void killed_at_any_moment(test_run *run)
{
    esp_random random;
    int leftovers = 0, appeared = 0;
    esp_random_seed(&random, test_seed(run));
    esp_context *context = test_context(run, 1);
    place at = make_place(run, context);
    uint64_t window = 2 * write_microseconds(run, context, &at);
    for (int round = 0; round < 50 || (round < 400 && (appeared == 0 || leftovers == 0)); round++) {
        test_sub(run, "kill %d", round);
        fflush(stdout);
        if (round >= 50) { /* a busy machine: the first write was timed on an idle one */
            window += window / 20;
        }
        pid_t child = fork();
        if (child == 0) {
            write_until_killed(run, &at);
        }
        usleep((useconds_t)esp_random_below(&random, window));
        kill(child, SIGKILL);
        int how = 0;
        waitpid(child, &how, 0);
        CHECK(WIFSIGNALED(how)); /* it did not fail by itself */
        bool there = access(at.target, F_OK) == 0;
        appeared += there;
        leftovers += test_entries(at.parent) > 1 + there;
        if (there) {
            check_folder(run, context, at.target, true, variant_of(run, context, at.target));
        }
    }
    test_sub(run, "some kills left something, which the next writer removes");
    CHECK(appeared > 0);
    CHECK(leftovers > 0);
    CHECK_OK(write_folder(run, context, at.source, at.target, true, false, 0, error));
    check_folder(run, context, at.target, true, 0);
    CHECK_INT(test_entries(at.parent), 2);
    test_context_free(run, context);
}

/* What looks like a leftover and is none stays. */
static void others_stay(test_run *run)
{
    static const char *const names[] = {
        ".target.espalier-1-0123456789abcdef",       /* alive */
        ".target.espalier-99999999-0123456789abcde", /* no name of ours */
        ".target.espalier-99999999-0123456789abcdefg", ".target.espalier-x-0123456789abcdef",
        ".other.espalier-99999999-0123456789abcdef", /* another target's */
    };
    esp_context *context = test_context(run, 1);
    place at = make_place(run, context);
    for (int i = 0; i < ESP_COUNT(names); i++) {
        mkdir(test_path(at.parent, names[i]), 0700);
        char marker[100];
        snprintf(marker, sizeof marker, "%s/espalier.json", names[i]);
        write_text(run, test_path(at.parent, marker), "{}");
    }
    const char *unmarked = ".target.espalier-99999999-00000000000000aa";
    const char *locked = ".target.espalier-99999999-00000000000000bb";
    const char *dead = ".target.espalier-99999999-00000000000000cc";
    char path[200];
    mkdir(test_path(at.parent, unmarked), 0700);
    snprintf(path, sizeof path, "%s/file", unmarked);
    write_text(run, test_path(at.parent, path), "x");
    mkdir(test_path(at.parent, locked), 0700);
    snprintf(path, sizeof path, "%s/espalier.json", locked);
    write_text(run, test_path(at.parent, path), "{}");
    int lock = open(test_path(at.parent, path), O_RDONLY);
    CHECK_INT(flock(lock, LOCK_EX), 0);
    mkdir(test_path(at.parent, dead), 0700);
    snprintf(path, sizeof path, "%s/espalier.json", dead);
    write_text(run, test_path(at.parent, path), "{}");
    CHECK_OK(write_folder(run, context, at.source, at.target, false, false, 0, error));
    for (int i = 0; i < ESP_COUNT(names); i++) {
        test_sub(run, "%s stays", names[i]);
        CHECK(exists(at.parent, names[i]));
    }
    test_sub(run, "without a marker: stays");
    CHECK(exists(at.parent, unmarked));
    test_sub(run, "locked: stays");
    CHECK(exists(at.parent, locked));
    close(lock);
    test_sub(run, "dead: goes");
    CHECK(!exists(at.parent, dead));
    test_context_free(run, context);
}

/* A target that appears while another is being written is not replaced. */
static void target_appears(test_run *run)
{
    esp_context *context = test_context(run, 1);
    place at = make_place(run, context);
    esp_checkpoint_writer *writer = make_writer(run, context, &at);
    CHECK_OK(declare_folder_weight(run, writer, &folder_weights[0], false, error));
    CHECK_OK(esp_checkpoint_writer_begin(writer, error));
    CHECK_OK(write_folder_weight(run, context, writer, &folder_weights[0], false, 0, error));
    mkdir(at.target, 0700);
    write_text(run, test_path(at.target, "precious"), "x");
    CHECK_FAILS(esp_checkpoint_writer_finish(writer, error), ESP_FAILED, "checkpoint.exists");
    esp_checkpoint_writer_free(writer);
    CHECK_INT(test_entries(at.parent), 2);
    CHECK(exists(at.target, "precious"));
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"no space", no_space},
    {"disk fills up", disk_fills_up},
    {"killed at any moment", killed_at_any_moment},
    {"others stay", others_stay},
    {"target appears", target_appears},
};
TEST_MAIN(cases)
