/* Products on AMX tiles. Dense rows, or panel rows spread to the panel's kept columns: half of the
 * products are with zeros, which is still the fastest way to multiply two of four here.
 *
 * A piece is 64 rows x a group of tokens whose X stays in the second-level cache. Its units are
 * 128 (kept) columns x 32 tokens: 4 steps of 32 columns for two halves of 16 tokens, each step four
 * row tiles against one tile of X, whose sums stay in registers.
 *
 *   for each block of 128 columns
 *       for each 32 tokens                     unit
 *           for each half, step                4 tile products, 64 clocks
 *               beside them: a part of the next unit's X (pairs of kept rows, interleaved) and
 *               of the next block's weights (spread rows), into the other of two buffers
 *
 * The vector units make operands while the tile unit multiplies. Limit: the tile unit, 16 clocks
 * for 16 x 16 x 32 products; then the stream of weights, read once per group of tokens. */
#ifndef ESP_CPU_BF16_AMX_H
#define ESP_CPU_BF16_AMX_H

#include "cpu/bf16/weights.h"

#define UNIT_PAIRS (BF16_DEPTH / 2)
#define X_STEP_BYTES (16 * 64 * 2) /* both halves of one step */

/* 512 bits of configuration: eight tiles of 16 rows x 64 bytes. */
typedef struct tile_shapes {
    uint8_t palette, start, zero[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tile_shapes;

ALWAYS void tiles_begin(void)
{
    static const tile_shapes shapes = {.palette = 1,
                                       .bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                                       .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    __asm__ volatile("ldtilecfg %0" ::"m"(shapes));
}

ALWAYS void tiles_end(void)
{
    __asm__ volatile("tilerelease");
}

/* Every one names memory: the buffers behind the tiles are written by plain stores. */
#define TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile ::: "memory")
#define TILE_LOAD(tile, from, stride)                                                              \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"((int64_t)(stride))        \
                     : "memory")
#define TILE_STORE(tile, to, stride)                                                               \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"((int64_t)(stride))      \
                     : "memory")
#define TILE_PRODUCT(sum, rows, x)                                                                 \
    __asm__ volatile("tdpbf16ps %%tmm" #x ", %%tmm" #rows ", %%tmm" #sum ::: "memory")

typedef struct amx_scratch {
    char weights[2][BF16_STEPS * STEP_BYTES]; /* this block's and the next one's */
    char x[2][BF16_STEPS * X_STEP_BYTES];     /* this unit's and the next one's */
    uint32_t offsets[];                       /* byte offsets in a tile of the kept columns */
} amx_scratch;

typedef struct amx_job {
    const bf16_piece *piece;
    amx_scratch *scratch;
    esp_host_format format;
    bool listed;                    /* columns by list: X is gathered */
    int64_t columns, blocks, units; /* units: tiles of 32 tokens */
    int row_tiles;
} amx_job;

/* Weights that are to be made: rows next..piece->rows-1 of a block. */
typedef struct amx_weights {
    int64_t block, next, end;
    char *to;
} amx_weights;

/* Pairs of kept rows of X that are to be made. */
typedef struct amx_gather {
    const char *x; /* tile of X */
    const uint32_t *offsets;
    int64_t next, end;
    char *to;
} amx_gather;

ALWAYS void make_rows(const amx_job *job, esp_host_format format, esp_dtype dtype,
                      amx_weights *weights, int64_t count)
{
    int64_t end = ESP_MIN(weights->end, weights->next + count);
    for (; weights->next < end; weights->next++) {
        char *to = weights->to + weights->next * 64;
        int64_t row = job->piece->row + weights->next;
        if (format == ESP_HOST_DENSE) {
            copy_row(job->piece->weight, dtype, row, weights->block, to);
        } else {
            spread_row(job->piece->weight, dtype, row, weights->block, to);
        }
        const char *values = job->piece->weight->values;
        int64_t width = dtype == ESP_F32 ? 4 : 2;
        int64_t stored = format == ESP_HOST_DENSE ? BF16_DEPTH : BF16_DEPTH / 2;
        const char *ahead =
            values + (row * job->piece->weight->row_values + (weights->block + 1) * stored) * width;
        for (int64_t b = 0; b < stored * width; b += 64) {
            _mm_prefetch(ahead + b, _MM_HINT_T1);
        }
    }
}

ALWAYS void gather_pairs(amx_gather *gather, int64_t count)
{
    int64_t end = ESP_MIN(gather->end, gather->next + count);
    for (int64_t p = gather->next; p < end; p++) {
        __m512i a = _mm512_load_si512(gather->x + gather->offsets[2 * p]);
        __m512i b = _mm512_load_si512(gather->x + gather->offsets[2 * p + 1]);
        char *to = gather->to + p / 16 * X_STEP_BYTES + p % 16 * 64;
        _mm512_store_si512(to, _mm512_unpacklo_epi16(a, b));
        _mm512_store_si512(to + 1024, _mm512_unpackhi_epi16(a, b));
    }
    gather->next = ESP_MAX(gather->next, end);
}

ALWAYS void load_sums(int tiles, const float *sums, int64_t stride, bool first)
{
    if (first) {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
        return;
    }
    TILE_LOAD(0, sums, 4 * stride);
    if (tiles > 1) {
        TILE_LOAD(1, sums + 16 * stride, 4 * stride);
    }
    if (tiles > 2) {
        TILE_LOAD(2, sums + 32 * stride, 4 * stride);
    }
    if (tiles > 3) {
        TILE_LOAD(3, sums + 48 * stride, 4 * stride);
    }
}

ALWAYS void store_sums(int tiles, float *sums, int64_t stride)
{
    TILE_STORE(0, sums, 4 * stride);
    if (tiles > 1) {
        TILE_STORE(1, sums + 16 * stride, 4 * stride);
    }
    if (tiles > 2) {
        TILE_STORE(2, sums + 32 * stride, 4 * stride);
    }
    if (tiles > 3) {
        TILE_STORE(3, sums + 48 * stride, 4 * stride);
    }
}

ALWAYS void step_products(int tiles, const char *weights, const char *x)
{
    TILE_LOAD(4, x, 64);
    TILE_LOAD(5, weights, 64);
    TILE_PRODUCT(0, 5, 4);
    if (tiles > 1) {
        TILE_LOAD(6, weights + 1024, 64);
        TILE_PRODUCT(1, 6, 4);
    }
    if (tiles > 2) {
        TILE_LOAD(7, weights + 2048, 64);
        TILE_PRODUCT(2, 7, 4);
    }
    if (tiles > 3) {
        TILE_LOAD(5, weights + 3072, 64);
        TILE_PRODUCT(3, 5, 4);
    }
}

/* 32 tokens x one block, the next operands being made on the way. */
ALWAYS void run_unit(const amx_job *job, esp_host_format format, esp_dtype dtype, int tiles,
                     int64_t block, int64_t unit, const char *x, amx_gather *gather,
                     amx_weights *weights)
{
    const bf16_piece *piece = job->piece;
    int64_t steps = ESP_MIN(BF16_STEPS, esp_ceil_div(job->columns - block * BF16_DEPTH, 32));
    int64_t halves = piece->tokens - unit * 32 > 16 ? 2 : 1;
    int64_t share = esp_ceil_div(BF16_ROWS, job->units * 2 * BF16_STEPS);
    const char *spread = job->scratch->weights[block & 1];
    for (int64_t half = 0; half < halves; half++) {
        float *sums = piece->sums + unit * 32 + half * 16;
        load_sums(tiles, sums, piece->sums_stride, block == 0);
        for (int64_t s = 0; s < steps; s++) {
            step_products(tiles, spread + s * STEP_BYTES, x + s * X_STEP_BYTES + half * 1024);
            gather_pairs(gather, UNIT_PAIRS / (2 * BF16_STEPS));
            make_rows(job, format, dtype, weights, share);
        }
        store_sums(tiles, sums, piece->sums_stride);
    }
    gather_pairs(gather, UNIT_PAIRS);
}

ALWAYS amx_gather gather_of(const amx_job *job, int64_t block, int64_t unit, int64_t turn)
{
    if (unit == job->units) {
        unit = 0;
        block++;
    }
    int64_t left = job->listed ? esp_ceil_div(job->columns - block * BF16_DEPTH, 32) * 16 : 0;
    return (amx_gather){
        .x = (const char *)(job->piece->x + unit * job->piece->x_rows * BF16_TILE_TOKENS),
        .offsets = job->scratch->offsets + block * BF16_DEPTH,
        .end = ESP_MAX(0, ESP_MIN(UNIT_PAIRS, left)),
        .to = job->scratch->x[turn & 1]};
}

ALWAYS amx_weights weights_of(const amx_job *job, int64_t block)
{
    return (amx_weights){.block = block,
                         .end = block < job->blocks ? job->piece->rows : 0,
                         .to = job->scratch->weights[block & 1]};
}

ALWAYS void run_blocks(const amx_job *job, esp_host_format format, esp_dtype dtype, int tiles)
{
    amx_gather gather = gather_of(job, 0, 0, 0);
    gather_pairs(&gather, UNIT_PAIRS);
    amx_weights weights = weights_of(job, 0);
    make_rows(job, format, dtype, &weights, BF16_ROWS);
    int64_t turn = 0;
    for (int64_t block = 0; block < job->blocks; block++) {
        weights = weights_of(job, block + 1);
        for (int64_t unit = 0; unit < job->units; unit++, turn++) {
            const char *x = job->scratch->x[turn & 1];
            if (!job->listed) {
                x = (const char *)(job->piece->x +
                                   (unit * job->piece->x_rows + block * BF16_DEPTH) *
                                       BF16_TILE_TOKENS);
            }
            gather = gather_of(job, block, unit + 1, turn + 1);
            run_unit(job, format, dtype, tiles, block, unit, x, &gather, &weights);
        }
        make_rows(job, format, dtype, &weights, BF16_ROWS);
    }
}

#define RUN_BLOCKS(name, format, dtype)                                                            \
    static void name(const amx_job *job)                                                           \
    {                                                                                              \
        if (job->row_tiles == 4) {                                                                 \
            run_blocks(job, format, dtype, 4);                                                     \
        } else {                                                                                   \
            run_blocks(job, format, dtype, job->row_tiles);                                        \
        }                                                                                          \
    }

RUN_BLOCKS(dense_f32, ESP_HOST_DENSE, ESP_F32)
RUN_BLOCKS(dense_f16, ESP_HOST_DENSE, ESP_F16)
RUN_BLOCKS(dense_bf16, ESP_HOST_DENSE, ESP_BF16)
RUN_BLOCKS(panel_f32, ESP_HOST_PANEL, ESP_F32)
RUN_BLOCKS(panel_f16, ESP_HOST_PANEL, ESP_F16)
RUN_BLOCKS(panel_bf16, ESP_HOST_PANEL, ESP_BF16)

/* Kept columns of a panel to byte offsets in a tile of X; behind them, the row of zeros. */
static void list_offsets(const esp_host_weight *weight, int64_t panel, uint32_t *offsets)
{
    int64_t kept = weight->kept, padded = esp_ceil_div(kept, BF16_DEPTH) * BF16_DEPTH;
    for (int64_t j = 0; j < kept; j++) {
        offsets[j] = (uint32_t)esp_host_column(weight, panel, j) * BF16_TILE_BYTES;
    }
    for (int64_t j = kept; j < padded; j++) {
        offsets[j] = (uint32_t)weight->in_features * BF16_TILE_BYTES;
    }
}

static size_t amx_scratch_bytes(esp_host_format format, int64_t kept)
{
    int64_t listed = format == ESP_HOST_PANEL ? esp_ceil_div(kept, BF16_DEPTH) * BF16_DEPTH : 0;
    return sizeof(amx_scratch) + (size_t)listed * sizeof(uint32_t);
}

static bf16_form amx_form(esp_host_format format, bool listed)
{
    return format == ESP_HOST_PANEL && listed ? BF16_AS_ROWS : BF16_AS_PAIRS;
}

static void amx_product(const bf16_piece *piece)
{
    static void (*const functions[2][3])(const amx_job *) = {{dense_f32, dense_f16, dense_bf16},
                                                             {panel_f32, panel_f16, panel_bf16}};
    const esp_host_weight *weight = piece->weight;
    bool panel = weight->format == ESP_HOST_PANEL;
    amx_job job = {.piece = piece,
                   .scratch = piece->scratch,
                   .listed = panel && weight->columns != NULL,
                   .columns = panel ? weight->kept : weight->in_features,
                   .units = esp_ceil_div(piece->tokens, BF16_TILE_TOKENS),
                   .row_tiles = (int)esp_ceil_div(piece->rows, 16)};
    job.blocks = esp_ceil_div(job.columns, BF16_DEPTH);
    if (job.listed) {
        list_offsets(weight, piece->row / weight->panel_rows, job.scratch->offsets);
    }
    if (piece->rows % 16 != 0) { /* rows that are never made are zero */
        memset(job.scratch->weights, 0, sizeof job.scratch->weights);
    }
    int type = weight->dtype == ESP_F32 ? 0 : weight->dtype == ESP_F16 ? 1 : 2;
    tiles_begin();
    functions[panel][type](&job);
    tiles_end();
}

#endif
