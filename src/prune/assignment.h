/* Sources to sinks with capacities, of largest summed benefit: the transportation problem in which
 * every source is one unit; with capacities of one, the linear assignment problem. */
#ifndef ESP_PRUNE_ASSIGNMENT_H
#define ESP_PRUNE_ASSIGNMENT_H

#include "prune/prune.h"

/* benefit: [sources][sinks], finite. capacity: [sinks], at least 1, in all at least `sources`;
 * NULL: one each. sink_of: [sources]. The same input gives the same output; which of equally good
 * ones is not said. */
ESP_MUST_CHECK esp_status esp_assign(esp_context *context, int64_t sources, int64_t sinks,
                                     const int64_t *capacity, const double *benefit,
                                     uint32_t *sink_of, esp_error *error);

#endif
