/* Transposable 2:4: masks of 4 x 4 tiles with two entries in every row and column, of which there
 * are 90. Greedy: the sixteen entries by size, each taken while its row and column have room. It
 * can end with seven: then one row r and one column c have a single entry, their common one, and
 * every other row and column is full, so some (i, j) can be exchanged for (r, j) and (i, c). */
#include "prune/select.h"

typedef struct two_way_job {
    esp_prune_job prune;
    esp_two_way_method method;
    uint16_t masks[90]; /* bit 4 * row + column, in order */
} two_way_job;

/* Columns of a row, in order: 01 02 03 12 13 23. */
static const unsigned pairs[6] = {3, 5, 9, 6, 10, 12};

/* All masks with two in each column, ordered by row 0, then row 1, ... */
static int list_masks(uint16_t masks[90])
{
    int count = 0;
    for (int i = 0; i < 6 * 6 * 6 * 6; i++) {
        unsigned rows[4] = {pairs[i / 216], pairs[i / 36 % 6], pairs[i / 6 % 6], pairs[i % 6]};
        int full = 0;
        for (int c = 0; c < 4; c++) {
            unsigned in_column = 0;
            for (int r = 0; r < 4; r++) {
                in_column += rows[r] >> c & 1;
            }
            full += in_column == 2;
        }
        if (full == 4) {
            masks[count++] = (uint16_t)(rows[0] | rows[1] << 4 | rows[2] << 8 | rows[3] << 12);
        }
    }
    return count;
}

static unsigned choose_exact(const two_way_job *job, const double scores[16])
{
    double best = -1;
    unsigned chosen = 0;
    for (int m = 0; m < ESP_COUNT(job->masks); m++) {
        double sum = 0;
        for (unsigned bits = job->masks[m]; bits != 0; bits &= bits - 1) {
            sum += scores[__builtin_ctz(bits)];
        }
        if (sum > best) {
            best = sum;
            chosen = job->masks[m];
        }
    }
    return chosen;
}

/* The tile has seven entries; (r, c) is the entry of the row and column that lack one. */
static unsigned complete(unsigned taken, int r, int c, const double scores[16])
{
    double best = 0;
    unsigned completed = 0;
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 4; j++) {
            int at = 4 * i + j;
            if (i == r || j == c || (taken >> at & 1) == 0) {
                continue;
            }
            double gain = scores[4 * r + j] + scores[4 * i + c] - scores[at];
            if (completed == 0 || gain > best) {
                best = gain;
                completed = (taken & ~(1u << at)) | 1u << (4 * r + j) | 1u << (4 * i + c);
            }
        }
    }
    return completed;
}

static unsigned choose_greedy(const double scores[16])
{
    esp_ranked ranked[16];
    for (int i = 0; i < 16; i++) { /* insertion sort, equal ones in order */
        int at = i;
        uint64_t key;
        memcpy(&key, &scores[i], sizeof key); /* positive doubles order as integers */
        for (; at > 0 && ranked[at - 1].key < key; at--) {
            ranked[at] = ranked[at - 1];
        }
        ranked[at] = (esp_ranked){.key = key, .index = (uint32_t)i};
    }
    int in_row[4] = {0}, in_column[4] = {0}, count = 0;
    unsigned taken = 0;
    for (int i = 0; i < 16; i++) {
        uint32_t row = ranked[i].index / 4, column = ranked[i].index % 4;
        if (in_row[row] < 2 && in_column[column] < 2) {
            in_row[row]++;
            in_column[column]++;
            count++;
            taken |= 1u << ranked[i].index;
        }
    }
    if (count == 8) {
        return taken;
    }
    int r = 0, c = 0;
    while (in_row[r] == 2) {
        r++;
    }
    while (in_column[c] == 2) {
        c++;
    }
    return complete(taken, r, c, scores);
}

static void choose_tiles(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const two_way_job *job = user;
    const esp_prune_job *prune = &job->prune;
    for (int64_t line = begin; line < end; line++) {
        int64_t row = 4 * line, rows = ESP_MIN(4, prune->out - row);
        for (int64_t column = 0; column < prune->in; column += 4) {
            int64_t columns = ESP_MIN(4, prune->in - column);
            double scores[16] = {0};
            for (int64_t r = 0; r < rows; r++) {
                esp_score_segment(prune, row + r, column, columns, scores + 4 * r);
            }
            uint64_t bits = job->method == ESP_TWO_WAY_EXACT ? choose_exact(job, scores)
                                                             : choose_greedy(scores);
            uint64_t real = ((uint64_t)1 << columns) - 1;
            for (int64_t r = 0; r < rows; r++) {
                esp_mask_row_mut(prune->mask, row + r)[column / 64] |= (bits >> 4 * r & real)
                                                                       << column % 64;
            }
        }
    }
}

esp_status esp_two_way_mask(esp_context *context, const esp_tensor *dense,
                            esp_two_way_method method, esp_mask **mask, esp_error *error)
{
    ESP_TRY(esp_prune_check_tensor(dense, error));
    if (method != ESP_TWO_WAY_GREEDY && method != ESP_TWO_WAY_EXACT) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "prune.bad_search",
                        "method %d is none of esp_two_way_method", (int)method);
    }
    two_way_job job = {.prune = {.context = context,
                                 .dense = dense,
                                 .out = dense->shape[0],
                                 .in = dense->shape[1]},
                       .method = method};
    list_masks(job.masks);
    ESP_TRY(esp_mask_create(context, job.prune.out, job.prune.in, &job.prune.mask, error));
    esp_parallel_for(context, esp_ceil_div(job.prune.out, 4), 1 + 16384 / ESP_MAX(1, job.prune.in),
                     choose_tiles, &job);
    *mask = job.prune.mask;
    return ESP_OK;
}
