#include "progress.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "sizes.h"

#define REDRAW_SECONDS 0.1
#define BAR_WIDTH 24

static volatile sig_atomic_t signal_seen;

static void on_signal(int number)
{
    signal_seen = number;
}

void interrupts_install(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigaction(SIGPIPE, &ignore, NULL);
}

bool interrupted(void)
{
    return signal_seen != 0;
}

double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void progress_begin(cli_progress *progress, bool quiet)
{
    const char *no_colour = getenv("NO_COLOR");
    const char *terminal = getenv("TERM");
    *progress = (cli_progress){.shown = !quiet && isatty(STDERR_FILENO) &&
                                        (terminal == NULL || strcmp(terminal, "dumb")),
                               .colour = no_colour == NULL || no_colour[0] == '\0'};
}

static void draw(cli_progress *progress, double done, double total, const char *unit, double now)
{
    double part = total > 0 ? done / total : 1;
    int filled = (int)(part * BAR_WIDTH);
    char bar[BAR_WIDTH + 1], a[SIZE_TEXT_MAX], b[SIZE_TEXT_MAX], c[SIZE_TEXT_MAX];
    for (int i = 0; i < BAR_WIDTH; i++) {
        bar[i] = i < filled ? '=' : i == filled ? '>' : ' ';
    }
    bar[BAR_WIDTH] = '\0';
    double passed = now - progress->started;
    double rate = passed > 0 ? (done - progress->first_done) / passed : 0;
    char left[32] = "";
    if (rate > 0 && total > done && (total - done) / rate < 360000) {
        long seconds = (long)((total - done) / rate + 0.5);
        snprintf(left, sizeof left, ", %ld:%02ld left", seconds / 60, seconds % 60);
    }
    fprintf(stderr, "\r%s%s%s [%s] %3.0f%%  %s of %s %s, %s %s/s%s\x1b[K",
            progress->colour ? "\x1b[36m" : "", progress->what, progress->colour ? "\x1b[0m" : "",
            bar, 100 * part, size_count(done, a), size_count(total, b), unit, size_count(rate, c),
            unit, left);
    progress->drawn = true;
    progress->drawn_at = now;
}

bool progress_step(void *user, const char *what, double done, double total, const char *unit)
{
    cli_progress *progress = user;
    if (interrupted()) {
        return false;
    }
    if (!progress->shown) {
        return true;
    }
    double now = seconds_now();
    if (strcmp(progress->what, what) != 0) {
        snprintf(progress->what, sizeof progress->what, "%s", what);
        progress->started = now;
        progress->first_done = done;
        progress->drawn_at = now - REDRAW_SECONDS / 2; /* short work shows no bar at all */
    } else if (now - progress->drawn_at >= REDRAW_SECONDS) {
        draw(progress, done, total, unit, now);
    }
    return true;
}

void progress_end(cli_progress *progress)
{
    if (progress->drawn) {
        fputs("\r\x1b[K", stderr);
        fflush(stderr);
    }
    progress->drawn = false;
    progress->what[0] = '\0';
}
