/* How fast this machine's memory can be read by so many threads: the limit of products with few
 * tokens, measured beside them.
 *
 * A run reads the next piece of a buffer that no cache holds, by vector loads; the threads take
 * its chunks in turn. The distance of software prefetches and the number of streams of a thread
 * are those that were best when the probe was opened. */
#ifndef CLI_READ_PROBE_H
#define CLI_READ_PROBE_H

#include <espalier/base.h>

typedef struct read_probe read_probe;

/* bytes: of the buffer. ESP_OUT_OF_MEMORY. */
ESP_MUST_CHECK esp_status read_probe_open(int threads, size_t bytes, read_probe **probe,
                                          esp_error *error);
/* Tries the ways to read and keeps the best. */
void read_probe_tune(read_probe *probe);
/* A timed_runner's run: reads one piece. */
esp_status read_probe_run(void *probe, esp_error *error);
size_t read_probe_piece_bytes(const read_probe *probe);
/* "4 streams, prefetch 1024 bytes ahead" */
const char *read_probe_way(const read_probe *probe);
void read_probe_close(read_probe *probe);

#endif
