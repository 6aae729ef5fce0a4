// Canonical panels to the form that the tensor cores read, on the device: one thread a 16-byte piece of the
// result, bound by memory. What the canonical parts hold is not trusted: a column or a row out of range
// becomes "none".
//
// One block of 64 rows and one step of 64 kept columns is 4608 bytes:
//   2 x 2048 bytes of values, one part for each 32 kept columns = 16 stored values of a row: "core matrices"
//       of 8 rows x 16 bytes, [8 groups of rows][2 halves of the 16 values][8 rows][8 values];
//   512 bytes of positions: a word for each of 128 threads of a warpgroup, [4 warps][8 rows][4 quarters of
//       the 64 columns], low half for one row, high half for the row 8 below.
// A block of 32 rows is half of each.
// Inside 16 rows the stored rows are dealt to the upper and the lower 8 in turn, so that rows 2 i and 2 i + 1
// lie in one thread's accumulators: swiglu's gate and up.
#include <espalier/base.h>

#include "cuda/gpu.h"
#include <cuda_runtime.h>

namespace {

constexpr int THREADS = 256;
constexpr uint32_t FIRST_TWO = 0x4444; // positions 0 and 1 in four groups: legal, for values of zero


__device__ uint32_t index_at(const void *list, bool wide, int64_t i)
{
    return wide ? ((const uint32_t *)list)[i] : ((const uint16_t *)list)[i];
}

// The stored row that is row `row` of block `block`, or -1.
__device__ int64_t stored_row(const gpu_panel_parts &parts, const gpu_panels &to, int64_t block,
                              int row)
{
    int64_t panel = block / to.blocks, inside = block % to.blocks * to.block_rows + row;
    int64_t stored = panel * parts.panel_rows + inside;
    return inside < parts.panel_rows && stored < parts.out ? stored : -1;
}

// Accumulator row of the tensor cores to row of the block.
__device__ int dealt_row(int accumulator_row)
{
    int inside = accumulator_row % 16;
    return accumulator_row - inside + (inside < 8 ? 2 * inside : 2 * (inside - 8) + 1);
}

__device__ uint4 values_piece(const gpu_panel_parts &parts, const gpu_panels &to, int64_t block,
                              int64_t step, int piece)
{
    int of_part = 2 * to.block_rows;
    int part = piece / of_part, group = piece % of_part / 16, half = piece % 16 / 8, row = piece % 8;
    int64_t stored = stored_row(parts, to, block, dealt_row(group * 8 + row));
    int64_t first = step * 32 + part * 16 + half * 8, row_values = parts.kept / 2;
    const uint16_t *values = (const uint16_t *)parts.values + stored * row_values;
    uint16_t eight[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        eight[i] = stored >= 0 && first + i < row_values ? values[first + i] : 0;
    }
    return make_uint4(eight[0] | (uint32_t)eight[1] << 16, eight[2] | (uint32_t)eight[3] << 16,
                      eight[4] | (uint32_t)eight[5] << 16, eight[6] | (uint32_t)eight[7] << 16);
}

// Positions of the four groups of a quarter of a step, one nibble each.
__device__ uint32_t positions_of(const gpu_panel_parts &parts, int64_t stored, int64_t step,
                                 int quarter)
{
    int64_t byte = step * 8 + quarter * 2, groups = parts.kept / 4;
    uint32_t found = 0;
    for (int i = 0; i < 4; i++) {
        int64_t group = 2 * byte + i;
        uint32_t nibble = FIRST_TWO & 15;
        if (stored >= 0 && group < groups) {
            const uint8_t *row = (const uint8_t *)parts.positions + stored * parts.position_bytes;
            nibble = row[group / 2] >> (group % 2 * 4) & 15u;
        }
        found |= nibble << (4 * i);
    }
    return found;
}

__device__ uint4 positions_piece(const gpu_panel_parts &parts, const gpu_panels &to, int64_t block,
                                 int64_t step, int piece)
{
    int warp = piece / 8, row = piece % 8; // a piece is the four words of one row
    int64_t upper = stored_row(parts, to, block, dealt_row(warp * 16 + row));
    int64_t lower = stored_row(parts, to, block, dealt_row(warp * 16 + row + 8));
    uint32_t words[4];
#pragma unroll
    for (int quarter = 0; quarter < 4; quarter++) {
        words[quarter] = positions_of(parts, upper, step, quarter) |
                         positions_of(parts, lower, step, quarter) << 16;
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

__global__ void pack_data(const gpu_panel_parts parts, const gpu_panels to)
{
    int pieces = to.block_rows * GPU_ROW_BYTES / 16, value_pieces = to.block_rows * 4;
    int64_t all = (int64_t)to.panels * to.blocks * to.steps * pieces;
    int64_t stride = (int64_t)gridDim.x * THREADS;
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < all; i += stride) {
        int piece = (int)(i % pieces);
        int64_t step = i / pieces % to.steps, block = i / pieces / to.steps;
        ((uint4 *)to.data)[i] = piece < value_pieces
                                    ? values_piece(parts, to, block, step, piece)
                                    : positions_piece(parts, to, block, step, piece - value_pieces);
    }
}

__global__ void pack_columns(const gpu_panel_parts parts, const gpu_panels to)
{
    int64_t width = (int64_t)to.steps * GPU_STEP_COLUMNS, all = to.panels * width;
    int64_t stride = (int64_t)gridDim.x * THREADS;
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < all; i += stride) {
        int64_t panel = i / width, j = i % width;
        uint32_t column = UINT32_MAX;
        if (j < parts.kept) {
            column = index_at(parts.columns, parts.columns_wide, panel * parts.kept + j);
            column = column < parts.in ? column : UINT32_MAX;
        }
        if (to.wide) {
            ((uint32_t *)to.columns)[i] = column;
        } else {
            ((uint16_t *)to.columns)[i] = (uint16_t)column;
        }
    }
}

__global__ void pack_rows(const gpu_panel_parts parts, const gpu_panels to)
{
    int64_t all = (int64_t)to.panels * to.blocks * to.block_rows;
    int64_t stride = (int64_t)gridDim.x * THREADS;
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < all; i += stride) {
        int64_t row = stored_row(parts, to, i / to.block_rows, (int)(i % to.block_rows));
        if (row >= 0 && parts.rows != nullptr) {
            row = index_at(parts.rows, parts.rows_wide, row);
        }
        ((int32_t *)to.rows)[i] = row < parts.out ? (int32_t)row : -1;
    }
}

unsigned blocks_for(int64_t items)
{
    int64_t blocks = (items + THREADS - 1) / THREADS;
    return (unsigned)(blocks < 1 << 20 ? blocks : 1 << 20);
}

} // namespace

extern "C" int gpu_pack_panels(const gpu_panel_parts *parts, const gpu_panels *to, void *stream)
{
    cudaStream_t in = (cudaStream_t)stream;
    int64_t rows = (int64_t)to->panels * to->blocks * to->block_rows;
    int64_t pieces = rows * to->steps * GPU_ROW_BYTES / 16;
    pack_data<<<blocks_for(pieces), THREADS, 0, in>>>(*parts, *to);
    if (to->columns != nullptr) {
        int64_t all = (int64_t)to->panels * to->steps * GPU_STEP_COLUMNS;
        pack_columns<<<blocks_for(all), THREADS, 0, in>>>(*parts, *to);
    }
    pack_rows<<<blocks_for(rows), THREADS, 0, in>>>(*parts, *to);
    return cudaGetLastError();
}
