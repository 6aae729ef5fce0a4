/* Panels (2:4, V:2:M, free columns) times many tokens, by one multiply-add per stored value.
 *
 * A row chooses its own columns, so each multiply-add loads its X: the limit is loads (docs/
 * kernels.md), and what can be won is that they hit the nearest cache. So a piece is one tile of
 * tokens times up to CPU_PANEL_ROWS rows, and its depth is walked in two steps:
 *
 *   for each slab: so many kept columns that the tile's rows of X stay in L2    (SLAB_BYTES)
 *       for each panel of the piece
 *           for each block of 2 * CPU_SPARSE_DEPTH kept columns: 32 KiB of X, in L1
 *               for each few rows: decode positions and values, then a tile of sums in registers
 *
 * Sums of the piece wait in `sums` (L2) between blocks. Each sum is built in the order of its
 * entries, however the piece is cut. */
#ifndef ESP_CPU_ISA_PANEL_H
#define ESP_CPU_ISA_PANEL_H

#include "cpu/isa/many.h"

#define SLAB_BYTES (512 * 1024)
#define BLOCK_COLUMNS (2 * CPU_SPARSE_DEPTH)
#define DECODED_ROWS 32 /* at a time */

/* R rows of a block times a tile of V vectors. Entries come in pairs, so one load fetches the
 * offsets of two. values, offsets: [R][CPU_SPARSE_DEPTH], offsets in bytes into a tile of
 * one vector. */
#define PANEL_TILE(R, V)                                                                           \
    static void panel_tile_##R##x##V(const float *values, const uint32_t *offsets, int64_t depth,  \
                                     const char *x, float *sums, int64_t stride, bool first)       \
    {                                                                                              \
        vec sum[R][V];                                                                             \
        _Pragma("GCC unroll 8") for (int r = 0; r < R; r++)                                        \
        {                                                                                          \
            _Pragma("GCC unroll 8") for (int v = 0; v < V; v++)                                    \
            {                                                                                      \
                sum[r][v] = first ? (vec){0} : vec_load(sums + r * stride + v * LANES);            \
            }                                                                                      \
        }                                                                                          \
        for (int64_t j = 0; j < depth; j += 2) {                                                   \
            _Pragma("GCC unroll 8") for (int r = 0; r < R; r++)                                    \
            {                                                                                      \
                uint64_t two;                                                                      \
                memcpy(&two, offsets + r * CPU_SPARSE_DEPTH + j, sizeof two);                      \
                _Pragma("GCC unroll 2") for (int e = 0; e < 2; e++)                                \
                {                                                                                  \
                    vec w = vec_set(values[r * CPU_SPARSE_DEPTH + j + e]);                         \
                    const float *row = (const void *)(x + (uint32_t)(two >> 32 * e) * (size_t)V);  \
                    _Pragma("GCC unroll 8") for (int v = 0; v < V; v++)                            \
                    {                                                                              \
                        sum[r][v] = vec_fma(w, vec_load(row + v * LANES), sum[r][v]);              \
                    }                                                                              \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
        _Pragma("GCC unroll 8") for (int r = 0; r < R; r++)                                        \
        {                                                                                          \
            _Pragma("GCC unroll 8") for (int v = 0; v < V; v++)                                    \
            {                                                                                      \
                vec_store(sums + r * stride + v * LANES, sum[r][v]);                               \
            }                                                                                      \
        }                                                                                          \
    }

PANEL_TILE(1, 1)
PANEL_TILE(8, 1)
PANEL_TILE(1, 2)
PANEL_TILE(4, 2)
PANEL_TILE(1, 4)
PANEL_TILE(2, 4)
PANEL_TILE(1, 8)

/* Eight vectors of sums, and what is left row by row. */
static const struct {
    int rows;
    void (*full)(const float *, const uint32_t *, int64_t, const char *, float *, int64_t, bool);
    void (*single)(const float *, const uint32_t *, int64_t, const char *, float *, int64_t, bool);
} panel_tiles[] = {{8, panel_tile_8x1, panel_tile_1x1},
                   {4, panel_tile_4x2, panel_tile_1x2},
                   {2, panel_tile_2x4, panel_tile_1x4},
                   {1, panel_tile_1x8, panel_tile_1x8}};

/* One block of one panel: stored entries j .. j + depth - 1 of its rows, and where the X of each
 * kept column begins in a tile of one vector, in bytes. */
typedef struct panel_block {
    int64_t j, depth;
    uint32_t table[BLOCK_COLUMNS];
    uint32_t offsets[DECODED_ROWS * CPU_SPARSE_DEPTH];
    float values[DECODED_ROWS * CPU_SPARSE_DEPTH];
} panel_block;

static void begin_block(const esp_host_weight *weight, int64_t panel, int64_t j, panel_block *block)
{
    int64_t columns = ESP_MIN(BLOCK_COLUMNS, weight->kept - 2 * j);
    for (int64_t i = 0; i < BLOCK_COLUMNS; i++) {
        int64_t column = i < columns ? esp_host_column(weight, panel, 2 * j + i) : 0;
        block->table[i] = (uint32_t)column * VECTOR_BYTES;
    }
    block->j = j;
    block->depth = ESP_MIN(CPU_SPARSE_DEPTH, weight->row_values - j);
}

/* Positions of a row of the block to offsets, by the table of the block's kept columns. */
ALWAYS_INLINE void decode_offsets(const uint8_t *positions, const panel_block *block,
                                  uint32_t *offsets)
{
    uint8_t bytes[CPU_SPARSE_DEPTH / 4] = {0};
    if (block->depth < CPU_SPARSE_DEPTH) {
        memcpy(bytes, positions, (size_t)esp_ceil_div(block->depth, 4));
        positions = bytes;
    }
    for (int i = 0; i < CPU_SPARSE_DEPTH; i += LANES) {
        uvec offset = vec_pick_u32(block->table + 2 * i, vec_kept_index(positions + i / 4));
        memcpy(offsets + i, &offset, sizeof offset);
    }
}

/* A tile of a piece's tokens. */
typedef struct panel_tile_x {
    const char *x;
    float *sums; /* of the piece's first row */
    int vectors;
} panel_tile_x;

/* Rows first .. first + rows - 1 of the piece, far ahead of their use: a chain of loads and
 * permutations would hold up the sums. f32 values are copied too: read where they lie, rows apart,
 * each row's first sum waited for them (measured: 15 % of the time). The hardware does not foresee
 * strides of a row, so the next block is asked for here. */
static void decode_rows(const cpu_piece *piece, panel_block *block, int64_t first, int64_t rows)
{
    const esp_host_weight *weight = piece->weight;
    for (int64_t i = 0; i < rows; i++) {
        int64_t row = piece->row + first + i;
        const uint8_t *positions = weight->positions + row * weight->position_bytes + block->j / 4;
        int64_t at = row * weight->row_values + block->j;
        size_t width = esp_dtype_bytes(weight->dtype);
        const char *next = (const char *)weight->values + (size_t)(at + CPU_SPARSE_DEPTH) * width;
        for (size_t byte = 0; byte < CPU_SPARSE_DEPTH * width; byte += 64) {
            __builtin_prefetch(next + byte, 0, 2);
        }
        __builtin_prefetch(positions + CPU_SPARSE_DEPTH / 4, 0, 2);
        decode_offsets(positions, block, block->offsets + i * CPU_SPARSE_DEPTH);
        decode_values(piece, at, block->depth, block->values + i * CPU_SPARSE_DEPTH);
    }
}

static void run_block_rows(const cpu_piece *piece, const panel_tile_x *tile, panel_block *block,
                           int64_t first, int64_t rows)
{
    int kind = tile->vectors == 8 ? 3 : tile->vectors / 2;
    decode_rows(piece, block, first, rows);
    for (int64_t r = 0; r < rows;) {
        bool full = r + panel_tiles[kind].rows <= rows;
        (full ? panel_tiles[kind].full : panel_tiles[kind].single)(
            block->values + r * CPU_SPARSE_DEPTH, block->offsets + r * CPU_SPARSE_DEPTH,
            block->depth, tile->x, tile->sums + (first + r) * piece->sums_stride,
            piece->sums_stride, block->j == 0);
        r += full ? panel_tiles[kind].rows : 1;
    }
}

/* The rows of the piece that belong to one panel, entries begin .. end - 1. */
static void run_panel_slab(const cpu_piece *piece, const panel_tile_x *tile, int64_t panel,
                           int64_t begin, int64_t end)
{
    const esp_host_weight *weight = piece->weight;
    int64_t first = ESP_MAX(piece->row, panel * weight->panel_rows);
    int64_t last = ESP_MIN(piece->row + piece->rows, (panel + 1) * weight->panel_rows);
    for (int64_t j = begin; j < end; j += CPU_SPARSE_DEPTH) {
        panel_block block;
        begin_block(weight, panel, j, &block);
        for (int64_t row = first; row < last; row += DECODED_ROWS) {
            run_block_rows(piece, tile, &block, row - piece->row,
                           ESP_MIN(DECODED_ROWS, last - row));
        }
    }
}

/* Stored entries of a row whose kept columns, a share of all, span SLAB_BYTES of a tile of X. */
static int64_t slab_entries(const esp_host_weight *weight, int vectors)
{
    int64_t columns = SLAB_BYTES / (vectors * (int64_t)VECTOR_BYTES);
    int64_t entries = columns * weight->row_values / ESP_MAX(weight->in_features, 1);
    return ESP_MAX(entries / CPU_SPARSE_DEPTH, 1) * CPU_SPARSE_DEPTH;
}

static void run_panel_tile(const cpu_piece *piece, const panel_tile_x *tile)
{
    const esp_host_weight *weight = piece->weight;
    int64_t slab = slab_entries(weight, tile->vectors);
    int64_t first = piece->row / weight->panel_rows;
    int64_t last = (piece->row + piece->rows - 1) / weight->panel_rows;
    for (int64_t j = 0; j < weight->row_values; j += slab) {
        int64_t end = ESP_MIN(j + slab, weight->row_values);
        for (int64_t panel = first; panel <= last; panel++) {
            run_panel_slab(piece, tile, panel, j, end);
        }
    }
}

static void many_panel(const cpu_piece *piece)
{
    for (int64_t done = 0; done < piece->tokens;) {
        int vectors = tile_vectors(SPARSE_VECTORS, (piece->tokens - done) / LANES);
        panel_tile_x tile = {(const char *)(piece->x + (piece->token + done) * piece->x_rows),
                             piece->sums + done, vectors};
        run_panel_tile(piece, &tile);
        done += vectors * LANES;
    }
}

#endif
