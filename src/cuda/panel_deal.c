/* Deals tiles to multiprocessors so that all are done at about the same time. Whole tiles go round
 * in turn. What remains for the last round is cut along its tokens where that makes enough parts
 * for everyone: a part costs more than its share, since it reads as many weights, but no sum has to
 * be put together from two multiprocessors. Tokens behind the last whole tile are narrow parts too;
 * they come last, and first to those whose round was not full. */
#include "cuda/panel_deal.h"

#include "base/base.h"

/* For a tile of tile_tokens >> shift. */
static double clocks(const panel_tiling *t, int shift, int split)
{
    double steps = (double)esp_ceil_div(t->steps, split) * t->step_clocks[shift];
    return steps + t->finish_clocks[shift] + (split > 1 ? t->share_clocks[shift] : 0);
}

/* What comes on top where tokens end within such a tile, whose last copies are cut. */
static double edge_clocks(const panel_tiling *t, int shift, int split)
{
    bool whole = t->tokens % (t->tile_tokens >> shift) == 0 || t->edge <= 1;
    return whole ? 0
                 : (t->edge - 1) * (double)esp_ceil_div(t->steps, split) * t->step_clocks[shift];
}

/* How far the multiprocessors are: those before `early` until `high`, the others until `low`. */
typedef struct levels {
    int early;
    double low, high;
    int next; /* whose turn it is */
} levels;

static void add_run(gpu_deal *deal, gpu_run run)
{
    if (run.count > 0) {
        deal->run[deal->runs++] = run;
    }
}

/* All whole tiles; those of the last, incomplete round in 2^shift parts. */
static levels deal_whole(const panel_tiling *t, int shift, gpu_deal *deal)
{
    int all = deal->rows * deal->tokens, each = t->multiprocessors;
    int left = shift == 0 ? 0 : all % each, parts = left << shift;
    add_run(deal, (gpu_run){.tiles = ESP_MAX(1, all), .count = all - left, .span = each});
    add_run(deal, (gpu_run){.first = all - left,
                            .tiles = ESP_MAX(1, left),
                            .count = parts,
                            .shift = shift,
                            .span = each});
    int last = shift == 0 ? all % each : parts % each;
    double low = all / each * clocks(t, 0, 1) + parts / each * clocks(t, shift, 1);
    return (levels){last, low, last > 0 ? low + clocks(t, shift, 1) : low, last};
}

/* One part for each row tile, behind the whole tiles: to those that are not as far as the others
 * while that lasts, then to all in turn. */
static void deal_narrow(const panel_tiling *t, int shift, int offset, gpu_deal *deal, levels *far)
{
    double part = clocks(t, shift, 1);
    int each = t->multiprocessors, free = each - far->early;
    gpu_run run = {.first = deal->rows * deal->tokens,
                   .tiles = deal->rows,
                   .shift = shift,
                   .offset = offset,
                   .at = far->early,
                   .span = free};
    int rounds = (int)ESP_MIN((far->high - far->low) / part, (double)deal->rows);
    run.count = ESP_MIN(rounds * free, deal->rows);
    add_run(deal, run);
    far->low += (run.count + free - 1) / free * part;
    run.from = run.count;
    run.at = far->next;
    run.span = each;
    run.count = deal->rows - run.from;
    add_run(deal, run);
    int all_round = run.count / each, more = run.count % each;
    if (more > 0) {
        far->high = ESP_MAX(far->high, more > free ? far->high + part : far->low + part);
    }
    if (run.count > 0) {
        far->high += all_round * part;
        far->low = far->high;
        far->next = (far->next + more) % each;
        far->early = 0;
    }
}

/* How narrow the tiles are in whose column tokens end, where whole tiles pass them: in parts where
 * all of them are in the last round. */
static int shift_of_edge(const panel_tiling *t, int shift, const gpu_deal *deal)
{
    int left = deal->rows * deal->tokens % t->multiprocessors;
    return deal->group >= deal->rows && left >= deal->rows ? shift : 0;
}

/* `narrow`: units of the narrowest part behind the whole tiles, fewer than make a tile. */
static double deal_so(const panel_tiling *t, int64_t whole, int narrow, int shift, gpu_deal *deal)
{
    deal->tokens = (int)whole;
    deal->runs = 0;
    levels far = deal_whole(t, shift, deal);
    bool rounded = whole * t->tile_tokens > t->tokens;
    int offset = 0, last = rounded ? shift_of_edge(t, shift, deal) : t->most_shift;
    for (int s = 1; s <= t->most_shift; s++) {
        if ((narrow >> (t->most_shift - s) & 1) != 0) {
            deal_narrow(t, s, offset, deal, &far);
            offset += t->tile_tokens >> s;
            last = s;
        }
    }
    return far.high + edge_clocks(t, last, 1);
}

/* Clusters that find no place at once would take a round of their own. */
static int64_t most_clusters(const panel_tiling *t, int split)
{
    int size = 0;
    while (1 << size < split) {
        size++;
    }
    int known = size < GPU_CLUSTER_SIZES ? t->most_clusters[size] : 0;
    return known > 0 ? known : t->multiprocessors / split;
}

/* Parts of one width, each of a cluster that shares out its steps; negative: not so. */
static double deal_split(const panel_tiling *t, int shift, int split, gpu_deal *deal)
{
    int64_t parts = deal->rows * esp_ceil_div(t->tokens, t->tile_tokens >> shift);
    if (parts > most_clusters(t, split) || t->steps < 2 * split ||
        t->tile_tokens >> shift < t->least_share * split / 2) {
        return -1;
    }
    deal->tokens = 0;
    deal->runs = 0;
    deal->split = split;
    deal->multiprocessors = (int)parts;
    add_run(
        deal,
        (gpu_run){.tiles = deal->rows, .count = (int)parts, .shift = shift, .span = (int)parts});
    return clocks(t, shift, split) + edge_clocks(t, shift, split);
}

static void keep_better(double clocks, const gpu_deal *made, double *best, gpu_deal *deal)
{
    if (clocks >= 0 && (*best < 0 || clocks < *best)) {
        *best = clocks;
        *deal = *made;
    }
}

double panel_deal(const panel_tiling *t, gpu_deal *deal)
{
    int64_t rows = t->panels * t->of_panel, groups = esp_ceil_div(rows, t->most_group);
    gpu_deal made = {.of_panel = (int)t->of_panel,
                     .rows = (int)rows,
                     .group = (int)esp_ceil_div(rows, groups),
                     .multiprocessors = t->multiprocessors,
                     .split = 1};
    int unit = t->tile_tokens >> t->most_shift;
    int64_t whole = t->tokens / t->tile_tokens;
    int narrow = (int)esp_ceil_div(t->tokens - whole * t->tile_tokens, unit);
    double best = -1;
    for (int shift = 0; shift <= t->most_shift; shift++) {
        for (int rounded = narrow == 1 << t->most_shift; rounded <= (narrow > 0); rounded++) {
            double so = deal_so(t, whole + rounded, rounded ? 0 : narrow, shift, &made);
            keep_better(so, &made, &best, deal);
        }
    }
    for (int split = 2; split <= t->most_split; split *= 2) {
        for (int shift = 0; shift <= t->most_shift; shift++) {
            keep_better(deal_split(t, shift, split, &made), &made, &best, deal);
        }
    }
    return best;
}
