/* Ranks dealt like cards: one of each band to every group. */
#include "prune/ranks.h"

void esp_deal_ranks(int64_t n, int64_t m, int64_t *rank_of)
{
    int64_t rank = 0;
    for (int64_t slot = 0; slot < m; slot++) {
        for (int64_t place = slot; place < n; place += m) {
            rank_of[place] = rank++;
        }
    }
}
