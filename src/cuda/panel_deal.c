/* Deals tiles to multiprocessors so that all are done at about the same time. Whole tiles go round
 * in turn. What remains for the last round is cut along its tokens where that makes enough parts
 * for everyone: a part costs more than its share, since it reads as many weights, but no sum has to
 * be put together from two multiprocessors. Tokens behind the last whole tile are narrow parts too;
 * they come last, and first to those whose round was not full. */
#include "cuda/panel_deal.h"

#include "base/base.h"

/* How far the multiprocessors are: those before `split` until `high`, the others until `low`. */
typedef struct levels {
    int split;
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
    double low = all / each * t->clocks[0] + parts / each * t->clocks[shift];
    return (levels){last, low, last > 0 ? low + t->clocks[shift] : low, last};
}

/* One part for each row tile, behind the whole tiles: to those that are not as far as the others
 * while that lasts, then to all in turn. */
static void deal_narrow(const panel_tiling *t, int shift, int offset, gpu_deal *deal, levels *far)
{
    double clocks = t->clocks[shift];
    int each = t->multiprocessors, early = each - far->split;
    gpu_run run = {.first = deal->rows * deal->tokens,
                   .tiles = deal->rows,
                   .shift = shift,
                   .offset = offset,
                   .at = far->split,
                   .span = early};
    int rounds = (int)ESP_MIN((far->high - far->low) / clocks, (double)deal->rows);
    run.count = ESP_MIN(rounds * early, deal->rows);
    add_run(deal, run);
    far->low += (run.count + early - 1) / early * clocks;
    run.from = run.count;
    run.at = far->next;
    run.span = each;
    run.count = deal->rows - run.from;
    add_run(deal, run);
    int all_round = run.count / each, more = run.count % each;
    if (more > 0) {
        far->high = ESP_MAX(far->high, more > early ? far->high + clocks : far->low + clocks);
    }
    if (run.count > 0) {
        far->high += all_round * clocks;
        far->low = far->high;
        far->next = (far->next + more) % each;
        far->split = 0;
    }
}

/* `narrow`: units of the narrowest part behind the whole tiles, fewer than make a tile. */
static double deal_so(const panel_tiling *t, int64_t whole, int narrow, int shift, gpu_deal *deal)
{
    deal->tokens = (int)whole;
    deal->runs = 0;
    levels far = deal_whole(t, shift, deal);
    int offset = 0;
    for (int s = 1; s <= t->most_shift; s++) {
        if ((narrow >> (t->most_shift - s) & 1) != 0) {
            deal_narrow(t, s, offset, deal, &far);
            offset += t->tile_tokens >> s;
        }
    }
    return far.high;
}

double panel_deal(const panel_tiling *t, gpu_deal *deal)
{
    int64_t rows = t->panels * t->of_panel, groups = esp_ceil_div(rows, t->most_group);
    gpu_deal made = {.of_panel = (int)t->of_panel,
                     .rows = (int)rows,
                     .group = (int)esp_ceil_div(rows, groups),
                     .multiprocessors = t->multiprocessors};
    int unit = t->tile_tokens >> t->most_shift;
    int64_t whole = t->tokens / t->tile_tokens;
    int narrow = (int)esp_ceil_div(t->tokens - whole * t->tile_tokens, unit);
    double best = -1;
    for (int rounded = narrow == 1 << t->most_shift; rounded <= (narrow > 0); rounded++) {
        for (int shift = 0; shift <= t->most_shift; shift++) {
            double clocks = deal_so(t, whole + rounded, rounded ? 0 : narrow, shift, &made);
            if (best < 0 || clocks < best) {
                best = clocks;
                *deal = made;
            }
        }
    }
    return best;
}
