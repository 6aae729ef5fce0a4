/* How tiles are dealt to multiprocessors: every row and token once, whatever the sizes and costs;
 * and that nobody waits where that can be helped. Needs no GPU, but the GPU back end. */
#include "product_device.h"

#ifdef ESP_HAVE_CUDA
#include "cuda/panel_deal.h"

static panel_tiling tiling_of(int64_t rows, int64_t tokens, int tile_tokens, int multiprocessors)
{
    return (panel_tiling){.panels = 1,
                          .of_panel = rows,
                          .tokens = tokens,
                          .tile_tokens = tile_tokens,
                          .most_shift = tile_tokens == 128 ? 1 : 2,
                          .most_group = 32,
                          .multiprocessors = multiprocessors,
                          .most_split = 1,
                          .least_share = 32,
                          .steps = 1,
                          .step_clocks = {100, 60, 40},
                          .share_clocks = {5, 4, 3}};
}

/* Item k of a run, as gpu.h says. */
static void place(const gpu_deal *deal, const gpu_run *run, int k, int tile_tokens, int *row,
                  int64_t *token)
{
    int i = run->from + k, index = run->first + i % run->tiles, column = deal->tokens;
    *row = index - deal->rows * deal->tokens;
    if (*row < 0) {
        int of_group = deal->group * deal->tokens, first = index / of_group * deal->group;
        int width = ESP_MIN(deal->group, deal->rows - first);
        *row = first + index % of_group % width;
        column = index % of_group / width;
    }
    *token = (int64_t)column * tile_tokens + run->offset +
             (int64_t)(i / run->tiles) * (tile_tokens >> run->shift);
}

/* Clocks of the busiest multiprocessor; checks that every 64 tokens of every row come once. */
static double walk(test_run *run, const panel_tiling *t, const gpu_deal *deal)
{
    int64_t rows = t->panels * t->of_panel, unit = t->tile_tokens >> t->most_shift;
    int64_t units = esp_ceil_div(t->tokens, unit), most = units + (t->tile_tokens / unit);
    int64_t whole = esp_ceil_div(t->tokens, t->tile_tokens) * t->tile_tokens;
    uint8_t *seen = calloc((size_t)(rows * most), 1);
    double *busy = calloc((size_t)t->multiprocessors, sizeof *busy), longest = 0;
    for (int r = 0; r < deal->runs; r++) {
        const gpu_run *mine = &deal->run[r];
        CHECK(mine->span > 0 && mine->span <= t->multiprocessors && mine->at >= 0 &&
              mine->at < t->multiprocessors && mine->shift <= t->most_shift);
        for (int k = 0; k < mine->count; k++) {
            int row;
            int64_t token;
            place(deal, mine, k, t->tile_tokens, &row, &token);
            CHECK(row >= 0 && row < rows && token % unit == 0 && token < whole);
            for (int64_t u = token / unit; u < token / unit + ((1 << t->most_shift) >> mine->shift);
                 u++) {
                CHECK(u < most && seen[row * most + u]++ == 0);
            }
            int who = (mine->at + k % mine->span) % deal->multiprocessors;
            CHECK(deal->split == 1 || busy[who] == 0);
            busy[who] += t->step_clocks[mine->shift] * (double)esp_ceil_div(t->steps, deal->split) +
                         (deal->split > 1 ? t->share_clocks[mine->shift] : 0);
            longest = ESP_MAX(longest, busy[who]);
        }
    }
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t u = 0; u < units; u++) {
            CHECK(seen[row * most + u] == 1);
        }
    }
    free(seen);
    free(busy);
    return longest;
}

static double deal_and_walk(test_run *run, const panel_tiling *t)
{
    gpu_deal deal;
    double predicted = panel_deal(t, &deal), walked = walk(run, t, &deal);
    CHECK(deal.runs <= ESP_COUNT(deal.run));
    CHECK(deal.multiprocessors * deal.split <= t->multiprocessors);
    CHECK(walked <= predicted * (1 + 1e-9));
    return walked;
}

static void everything_once(test_run *run)
{
    static const int widths[] = {128, 256, 512}, chips[] = {1, 7, 114, 132};
    uint64_t seed = test_seed(run);
    for (int i = 0; i < 400; i++) {
        int64_t rows = 1 + (int64_t)(esp_splitmix64(&seed) % (i % 2 == 0 ? 5 : 150));
        int64_t tokens = 1 + (int64_t)(esp_splitmix64(&seed) % (i % 3 == 0 ? 600 : 9000));
        panel_tiling t = tiling_of(rows, tokens, widths[i % 3], chips[i % 4]);
        t.panels = 1 + (int64_t)(esp_splitmix64(&seed) % 3);
        t.step_clocks[1] = 100 * (0.3 + 0.1 * (double)(esp_splitmix64(&seed) % 8));
        t.step_clocks[2] = t.step_clocks[1] * (0.3 + 0.1 * (double)(esp_splitmix64(&seed) % 8));
        t.steps = 1 + (int64_t)(esp_splitmix64(&seed) % 64);
        t.most_split = 1 << esp_splitmix64(&seed) % 4;
        test_sub(run, "%lld x %lld rows, %lld tokens by %d on %d", (long long)t.panels,
                 (long long)rows, (long long)tokens, t.tile_tokens, t.multiprocessors);
        deal_and_walk(run, &t);
    }
}

/* Rounds of 132, in hundredths of a whole tile. */
static void rounds_are_full(test_run *run)
{
    static const struct {
        int64_t rows, tokens;
        int tile_tokens;
        double most;
    } cases[] = {
        {24, 12608, 256, 900}, /* 49.25 columns: the 24 quarters fit into the ninth round */
        {32, 4096, 256, 400},  /* 512 tiles: nothing to be gained */
        {10, 4096, 256, 140},  /* 28 tiles too many: 112 quarters */
        {86, 2048, 256, 540},  /* likewise in the sixth round */
        {24, 200, 256, 60},    /* halves: 48 at once */
        {1, 1, 256, 40},
    };
    for (int i = 0; i < ESP_COUNT(cases); i++) {
        panel_tiling t = tiling_of(cases[i].rows, cases[i].tokens, cases[i].tile_tokens, 132);
        test_sub(run, "%lld rows, %lld tokens", (long long)cases[i].rows,
                 (long long)cases[i].tokens);
        CHECK(deal_and_walk(run, &t) <= cases[i].most);
    }
}

/* Few tiles with many steps are shared out; not so few steps that meeting costs more. */
static void steps_are_shared(test_run *run)
{
    panel_tiling t = tiling_of(6, 200, 256, 132);
    t.most_split = 8;
    t.steps = 48;
    gpu_deal deal;
    panel_deal(&t, &deal);
    CHECK(deal.split == 8 && deal.run[0].shift == 1);
    t.share_clocks[0] = t.share_clocks[1] = t.share_clocks[2] = 2000;
    panel_deal(&t, &deal);
    CHECK(deal.split == 1);
}

/* An H100 of 132 multiprocessors has places for 30 clusters of four and 15 of eight: one more waits
 * for a round of its own. */
static void clusters_find_places(test_run *run)
{
    const int most[GPU_CLUSTER_SIZES] = {132, 66, 30, 15};
    for (int rows = 1; rows <= 66; rows++) {
        panel_tiling t = tiling_of(rows, 128, 128, 132);
        gpu_deal deal;
        t.most_shift = 0;
        t.most_split = 8;
        t.steps = 256;
        test_sub(run, "%d tiles", rows);
        panel_deal(&t, &deal);
        CHECK_INT(deal.split, rows <= 16 ? 8 : rows <= 33 ? 4 : 2);
        memcpy(t.most_clusters, most, sizeof most);
        panel_deal(&t, &deal);
        CHECK_INT(deal.split, rows <= 15 ? 8 : rows <= 30 ? 4 : 2);
        deal_and_walk(run, &t);
    }
}

/* 1600 tokens end within the seventh tile: where that costs, nobody gets it whole. */
static void tokens_end_within_no_part(test_run *run)
{
    panel_tiling t = tiling_of(6, 1600, 256, 132);
    const double step[] = {100, 75, 60}, share[] = {500, 500, 500};
    gpu_deal deal;
    memcpy(t.step_clocks, step, sizeof step);
    memcpy(t.share_clocks, share, sizeof share);
    t.most_split = 2;
    t.steps = 40;
    panel_deal(&t, &deal);
    CHECK(deal.split == 2 && deal.run[0].shift == 0);
    t.edge = 2;
    panel_deal(&t, &deal);
    CHECK(deal.split == 1 && deal.tokens == 6);
    deal_and_walk(run, &t);
}
#else
static void tokens_end_within_no_part(test_run *run)
{
    test_skip(run, "built without CUDA");
}
static void clusters_find_places(test_run *run)
{
    test_skip(run, "built without CUDA");
}
static void steps_are_shared(test_run *run)
{
    test_skip(run, "built without CUDA");
}
static void everything_once(test_run *run)
{
    test_skip(run, "built without CUDA");
}
static void rounds_are_full(test_run *run)
{
    test_skip(run, "built without CUDA");
}
#endif

static const test_case cases[] = {{"everything_once", everything_once},
                                  {"rounds_are_full", rounds_are_full},
                                  {"steps_are_shared", steps_are_shared},
                                  {"clusters_find_places", clusters_find_places},
                                  {"tokens_end_within_no_part", tokens_end_within_no_part}};
TEST_MAIN(cases)
