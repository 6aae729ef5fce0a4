/* Which axis a channel gets. */
#ifndef ESP_PRUNE_RANKS_H
#define ESP_PRUNE_RANKS_H

#include "base/base.h"

/* Place i of n channels gets the axis of rank rank_of[i]: places that are equal modulo m share a
 * band of ranks, so that a group of m neighbours has one axis of each band, falling. */
void esp_deal_ranks(int64_t n, int64_t m, int64_t *rank_of);

#endif
