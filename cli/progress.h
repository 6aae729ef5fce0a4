/* Progress display on stderr, only on a terminal; and the place where an interrupt is noticed. */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include <espalier/base.h>

typedef struct cli_progress {
    bool shown;  /* stderr is a terminal and nobody asked for quiet */
    bool colour; /* NO_COLOR is not set */
    bool drawn;  /* a line is on the screen */
    double started, drawn_at;
    double first_done;
    char what[64];
} cli_progress;

/* SIGINT and SIGTERM set a flag (a second one kills); SIGPIPE is ignored, so that a closed pipe is
 * a write error. */
void interrupts_install(void);
bool interrupted(void);

void progress_begin(cli_progress *progress, bool quiet);
/* An esp_progress_fn; user is a progress. False once interrupted. */
bool progress_step(void *user, const char *what, double done, double total, const char *unit);
/* Removes the line. */
void progress_end(cli_progress *progress);

/* Monotonic seconds. */
double seconds_now(void);

#endif
