/* The process that runs cuSPARSELt, seen from the bench: started when it is first needed, asked by
 * lines, and started anew, without its search, when it dies in a search. There is one for each
 * layout, so that what one's search breaks leaves the other alone. The GPU is never used by two
 * processes at once: who asks waits for the answer. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gpu.h"

#define ANSWER_MS 120000 /* of a search, which takes seconds */
#define LINE 512
#define NAME "cusparselt"

struct gpu_child {
    char device[16];
    pid_t process;         /* 0: none */
    int requests, answers; /* pipes */
    char held[LINE];       /* of an answer that has not ended */
    size_t have;
    char why_not[160]; /* not "": it will not run */
};

/* A rival that lives in the child. */
typedef struct child_rival {
    gpu_child *child;
    int number;
    char lost[160];
} child_rival;

gpu_child *gpu_child_new(const char *device)
{
    gpu_child *made = calloc(1, sizeof *made);
    if (made != NULL) {
        snprintf(made->device, sizeof made->device, "%s", device);
    }
    return made;
}

/* ---- the process ---- */

static void run_child(const char *device, int requests, int answers)
{
    char program[] = "espalier", option[] = GPU_CHILD_OPTION, name[16];
    char *const arguments[] = {program, option, name, NULL};
    snprintf(name, sizeof name, "%s", device);
    if (dup2(requests, STDIN_FILENO) >= 0 && dup2(answers, STDOUT_FILENO) >= 0) {
        execv("/proc/self/exe", arguments);
    }
    _exit(127);
}

static bool start(gpu_child *child)
{
    int to[2], from[2];
    if (pipe2(to, O_CLOEXEC) != 0) {
        return false;
    }
    if (pipe2(from, O_CLOEXEC) != 0) {
        close(to[0]);
        close(to[1]);
        return false;
    }
    fflush(NULL);
    child->process = fork();
    if (child->process == 0) {
        run_child(child->device, to[0], from[1]);
    }
    close(to[0]);
    close(from[1]);
    child->requests = to[1];
    child->answers = from[0];
    child->have = 0;
    if (child->process < 0) {
        close(to[1]);
        close(from[0]);
        child->process = 0;
        return false;
    }
    return true;
}

/* Waits for it; says how it ended. */
static void finish(gpu_child *child, bool kill_it, char ended[160])
{
    int status = 0;
    if (child->process == 0) {
        return;
    }
    close(child->requests);
    close(child->answers);
    if (kill_it) {
        kill(child->process, SIGKILL);
    }
    while (waitpid(child->process, &status, 0) < 0 && errno == EINTR) {
    }
    child->process = 0;
    if (WIFSIGNALED(status)) {
        snprintf(ended, 160, "cuSPARSELt's process was ended by signal %d", WTERMSIG(status));
    } else {
        snprintf(ended, 160, "cuSPARSELt's process ended with status %d", WEXITSTATUS(status));
    }
}

void gpu_child_free(gpu_child *child)
{
    char ended[160];
    if (child != NULL) {
        finish(child, false, ended);
        free(child);
    }
}

/* ---- lines ---- */

static bool take_line(gpu_child *child, char line[LINE])
{
    char *end = memchr(child->held, '\n', child->have);
    if (end == NULL) {
        return false;
    }
    size_t length = (size_t)(end - child->held);
    memcpy(line, child->held, length);
    line[length] = '\0';
    child->have -= length + 1;
    memmove(child->held, end + 1, child->have);
    return true;
}

/* False: it died, or does not answer. */
static bool read_answer(gpu_child *child, char line[LINE])
{
    while (!take_line(child, line)) {
        struct pollfd wait = {.fd = child->answers, .events = POLLIN};
        int ready = poll(&wait, 1, ANSWER_MS);
        if (ready < 0 && errno == EINTR && !interrupted()) {
            continue;
        }
        if (ready <= 0 || child->have == sizeof child->held) {
            return false;
        }
        ssize_t got =
            read(child->answers, child->held + child->have, sizeof child->held - child->have);
        if (got <= 0) {
            return false;
        }
        child->have += (size_t)got;
    }
    return true;
}

/* False when it died: then `answer` says how. */
static bool ask(gpu_child *child, const char *request, char answer[LINE])
{
    size_t length = strlen(request), sent = 0;
    while (sent < length) {
        ssize_t done = write(child->requests, request + sent, length - sent);
        if (done < 0 && errno != EINTR) {
            break;
        }
        sent += done > 0 ? (size_t)done : 0;
    }
    if (sent == length && read_answer(child, answer)) {
        return true;
    }
    finish(child, true, answer);
    return false;
}

static bool wake(gpu_child *child)
{
    char answer[LINE] = "cuSPARSELt's process does not start";
    if (child->process != 0) {
        return true;
    }
    if (child->why_not[0] != '\0') {
        return false;
    }
    if (start(child)) {
        if (read_answer(child, answer) && strcmp(answer, "ready") == 0) {
            return true;
        }
        bool said = strncmp(answer, "no ", 3) == 0;
        char ended[160] = "";
        finish(child, true, ended);
        snprintf(child->why_not, sizeof child->why_not, "%.150s", said ? answer + 3 : ended);
        return false;
    }
    snprintf(child->why_not, sizeof child->why_not, "%.150s", answer);
    return false;
}

/* ---- rivals ---- */

static esp_status time_rival(void *self, double *us, esp_error *error)
{
    child_rival *rival = self;
    gpu_child *child = rival->child;
    char request[64], answer[LINE];
    *us = (double)NAN;
    if (rival->lost[0] != '\0') {
        return ESP_OK;
    }
    if (interrupted()) {
        return cli_fail(error, ESP_CANCELLED, "cancelled", "the measurement was interrupted");
    }
    snprintf(request, sizeof request, "time %d\n", rival->number);
    if (child->process == 0) {
        snprintf(rival->lost, sizeof rival->lost, "not run: its process is gone");
    } else if (!ask(child, request, answer)) {
        snprintf(rival->lost, sizeof rival->lost, "not run: %.140s", answer);
    } else if (sscanf(answer, "us %lf", us) != 1) {
        *us = (double)NAN;
        snprintf(rival->lost, sizeof rival->lost, "not run: %.140s", answer);
    }
    return ESP_OK;
}

static const char *lost(const void *self)
{
    const child_rival *rival = self;
    return rival->lost[0] != '\0' ? rival->lost : NULL;
}

static void free_rival(void *self)
{
    child_rival *rival = self;
    char answer[LINE];
    if (rival->child->process != 0) {
        (void)ask(rival->child, "drop\n", answer); /* all of them: they end together */
    }
    free(rival);
}

/* An answer of "ok NUMBER VERSION", or the reason why there is none. */
static bool make(gpu_child *child, const gpu_shape *shape, bool by_token, bool with_search,
                 char answer[LINE])
{
    char request[LINE], text[ESP_PROBLEM_TEXT_MAX];
    if (!wake(child)) {
        snprintf(answer, LINE, "%s", child->why_not);
        return false;
    }
    esp_matmul_problem_print(&shape->dense, text);
    snprintf(request, sizeof request, "make %d %d %zu %d %s\n", by_token, with_search,
             shape->rotate_bytes, shape->runs, text);
    return ask(child, request, answer) && strncmp(answer, "ok ", 3) == 0;
}

esp_status gpu_child_rival(gpu_child *child, const gpu_shape *shape, bool by_token,
                           gpu_rivals *rivals, esp_error *error)
{
    char answer[LINE], name[64];
    const char *layout = by_token ? "tokens" : "features";
    bool searched = make(child, shape, by_token, true, answer);
    bool died = !searched && child->process == 0 && child->why_not[0] == '\0';
    bool made = searched || (died && make(child, shape, by_token, false, answer));
    if (!made) {
        bool said = strncmp(answer, "no ", 3) == 0;
        snprintf(name, sizeof name, NAME "_%s", layout);
        gpu_note_missing(rivals, name, "not run: %s", said ? answer + 3 : answer);
        return ESP_OK;
    }
    child_rival *rival = calloc(1, sizeof *rival);
    if (rival == NULL) {
        return cli_fail_memory(error, "a rival");
    }
    *rival = (child_rival){.child = child, .number = atoi(answer + 3)};
    gpu_rival *entry = &rivals->list[rivals->count++];
    *entry = (gpu_rival){.self = rival, .time = time_rival, .lost = lost, .free = free_rival};
    snprintf(entry->name, sizeof entry->name, NAME "%s_%s", searched ? "" : "_unsearched", layout);
    return ESP_OK;
}
