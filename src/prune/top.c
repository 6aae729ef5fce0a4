/* Selection in expected linear time (Hoare's find), with the middle of three as pivot. Entries are
 * totally ordered by key and index, so the chosen set does not depend on how it was found. */
#include "prune/select.h"

static bool better(const esp_ranked *a, const esp_ranked *b)
{
    return a->key > b->key || (a->key == b->key && a->index < b->index);
}

static void exchange(esp_ranked *a, esp_ranked *b)
{
    esp_ranked held = *a;
    *a = *b;
    *b = held;
}

static esp_ranked middle_of_three(const esp_ranked *a, const esp_ranked *b, const esp_ranked *c)
{
    if (better(a, b)) {
        return better(b, c) ? *b : better(a, c) ? *c : *a;
    }
    return better(a, c) ? *a : better(b, c) ? *c : *b;
}

void esp_take_best(esp_ranked *entries, int64_t count, int64_t keep)
{
    int64_t low = 0, high = count - 1;
    while (low < high && keep > low && keep <= high) {
        esp_ranked pivot =
            middle_of_three(&entries[low], &entries[low + (high - low) / 2], &entries[high]);
        int64_t i = low, j = high;
        while (i <= j) {
            while (better(&entries[i], &pivot)) {
                i++;
            }
            while (better(&pivot, &entries[j])) {
                j--;
            }
            if (i <= j) {
                exchange(&entries[i++], &entries[j--]);
            }
        }
        /* low..j are better than or the pivot, i..high worse or the pivot; keep - 1 is the last
         * kept */
        if (keep - 1 <= j) {
            high = j;
        } else if (keep - 1 >= i) {
            low = i;
        } else {
            return;
        }
    }
}
