/* Each contestant's threads, one a core.
 *
 * Libraries share work out beforehand, so two of their threads on one core double their time, and
 * next to other pools' threads that happens for whole rounds. So the threads that appear at a
 * contestant's first run are bound to cores in turn, behind the calling thread on the first: for
 * ours and for every library's alike. Only on Linux; elsewhere nothing is bound. */
#ifndef CLI_PINNING_H
#define CLI_PINNING_H

#include <stdbool.h>

/* Binds the calling thread and those that exist. False: nothing is bound (too few cores). */
bool pinning_begin(int threads);
/* Binds the threads that came since. */
void pinning_new_threads(void);
/* Gives all threads back every core. */
void pinning_end(void);

#endif
