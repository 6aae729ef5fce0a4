/* Two of each group of a row by second order: weights go one by one, the cheapest first, all others
 * following, and then change places with dropped ones of their group while that gains. */
#ifndef ESP_PRUNE_ROW_SEARCH_H
#define ESP_PRUNE_ROW_SEARCH_H

#include "prune/tableau.h"

/* tableau: loaded; live: room, [groups]. */
void esp_search_row(esp_tableau *tableau, int *live);

#endif
