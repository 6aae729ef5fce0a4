/* kill -9 while a model is pruned into a new folder or over an old one: before each call on files,
 * and at random instants. Afterwards the target is the old folder, the new one, or absent if it
 * never was; what is there verifies; and the next run removes what the dead one left. */
#include <sys/time.h>
#include <sys/wait.h>

#include "faults/file_layer.h"
#include "faults/small_model.h"

#define RANDOM_KILLS 300

typedef struct subject {
    test_run *run;
    esp_context *context;
    small_place at;
    char out[900];
    bool over_old;
    uint64_t old, new; /* sums of the folders; old 0: there is none */
} subject;

static struct {
    int kills, absent, old, new, leftovers;
} totals;

static void prune(subject *on, const char *pattern)
{
    test_run *run = on->run;
    esp_prune_options options = {.force = true};
    CHECK_OK(esp_pattern_parse(pattern, &options.pattern, error));
    CHECK_OK(
        esp_prune_checkpoint(on->context, on->at.source, on->at.target, &options, NULL, error));
}

/* Makes the target what it is before a save; removes leftovers by the library's own means. */
static void prepare(subject *on)
{
    test_run *run = on->run;
    prune(on, "2:4");
    CHECK_INT(test_entries(on->out), 1);
    if (!on->over_old) {
        remove_folder(on->at.target);
    }
}

static void learn(subject *on, bool over_old)
{
    on->over_old = over_old;
    prepare(on);
    on->old = folder_sum(on->at.target);
    prune(on, "8:2:8");
    on->new = folder_sum(on->at.target);
    prepare(on);
}

static void die(int signal_number)
{
    (void)signal_number;
    kill(getpid(), SIGKILL);
}

/* A child that saves, dying before its at-th call on files, or after so many microseconds. */
static pid_t start(subject *on, long at, uint64_t microseconds)
{
    struct itimerval timer = {.it_value = {.tv_usec = (suseconds_t)microseconds}};
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        signal(SIGALRM, die);
        setitimer(ITIMER_REAL, &timer, NULL); /* 0: none */
        files_layer.count = 0;
        files_layer.at = at;
        files_layer.error = STRIKE_DEAD;
        files_layer.armed = true;
        prune(on, "8:2:8");
        _exit(test_failed(on->run) ? 1 : 0);
    }
    return child;
}

/* True when the child was killed and not through already. */
static bool finish(subject *on, pid_t child)
{
    test_run *run = on->run;
    int how = 0;
    CHECK_INT(waitpid(child, &how, 0), child);
    CHECK(WIFSIGNALED(how) ? WTERMSIG(how) == SIGKILL : WEXITSTATUS(how) == 0);
    uint64_t sum = folder_sum(on->at.target);
    CHECK(sum == on->new || (WIFSIGNALED(how) && sum == on->old));
    if (sum != 0) {
        esp_verify_options options = {0};
        esp_verify_summary summary;
        CHECK_OK(esp_verify_checkpoint(on->context, on->at.target, &options, &summary, error));
    }
    if (WIFSIGNALED(how)) {
        totals.kills++;
        totals.absent += sum == 0;
        totals.old += sum != 0 && sum == on->old;
        totals.new += sum == on->new;
        totals.leftovers += test_entries(on->out) > (sum != 0);
    }
    return WIFSIGNALED(how);
}

static bool open_subject(subject *on, const char *name)
{
    test_run *run = on->run;
    on->context = test_context(run, 1);
    on->at = make_small_place(run, on->context, name);
    snprintf(on->out, sizeof on->out, "%.*s/out", 890, on->at.parent);
    return !test_failed(run);
}

static void before_each_call(test_run *run)
{
    subject on = {.run = run};
    REQUIRE(open_subject(&on, "calls"));
    for (int over_old = 0; over_old < 2; over_old++) {
        test_sub(run, "%s", over_old ? "over an old folder" : "into a new folder");
        learn(&on, over_old);
        bool killed = true;
        long at = 0;
        for (; killed && at < MAX_CALLS && !test_failed(run); at++) {
            killed = finish(&on, start(&on, at, 0));
            prepare(&on);
        }
        CHECK(at > 50 && at < MAX_CALLS);
    }
    test_context_free(run, on.context);
}

/* Instants fall before and after the end of a save, whatever a save takes on this machine. */
static uint64_t save_microseconds(subject *on)
{
    double best = 1;
    for (int i = 0; i < 5; i++) {
        double started = esp_seconds();
        prune(on, "8:2:8");
        double taken = esp_seconds() - started;
        best = taken < best ? taken : best;
        prepare(on);
    }
    return (uint64_t)(best * 1.2e6) + 200;
}

static void at_random_instants(test_run *run)
{
    subject on = {.run = run};
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    REQUIRE(open_subject(&on, "random"));
    for (int over_old = 0; over_old < 2; over_old++) {
        test_sub(run, "%s", over_old ? "over an old folder" : "into a new folder");
        learn(&on, over_old);
        uint64_t window = save_microseconds(&on);
        int killed = 0;
        for (int i = 0; killed < RANDOM_KILLS / 2 && i < 4 * RANDOM_KILLS; i++) {
            killed += finish(&on, start(&on, -1, 1 + esp_random_below(&random, window)));
            prepare(&on);
        }
        CHECK(killed >= RANDOM_KILLS / 2);
    }
    test_context_free(run, on.context);
}

static void sum_up(test_run *run)
{
    printf("faults: %d saves killed: %d times the target was absent as before, %d times the old "
           "folder, %d times the new one; %d left a temporary folder, which the next run removed\n",
           totals.kills, totals.absent, totals.old, totals.new, totals.leftovers);
    CHECK(totals.absent > 0 && totals.old > 0 && totals.new > 0 && totals.leftovers > 0);
}

static const test_case cases[] = {{"before each call", before_each_call},
                                  {"at random instants", at_random_instants},
                                  {"sum", sum_up}};
TEST_MAIN(cases)
