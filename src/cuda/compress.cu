// Dense weights in device memory to the packed form (pack.cu draws it), bit for bit what the canonical
// encoding (src/format/panel_encode.c) and packing give: one pass at the speed of memory for 2:4, else two.
//
// First the columns: of V:2:M the live ones of each panel and group, filled with the lowest others; free ones
// from the caller's list, which is checked, or dealt in ascending order. Then the entries: a thread finds the
// 16 kept columns of a row, dead entries as zero, and makes a 16-byte piece of values and four nibbles of
// them. For 2:4 they are neighbours in memory; for V:2:M a block of threads first lays down 64 rows of the
// columns that one step can come from in shared memory; columns too far apart for that (free lists, large M)
// are gathered one by one.
//
// Nothing is trusted: what does not fit is reported by its first place.
#include <cuda_runtime.h>

#include "cuda/dense_bits.cuh"
#include "cuda/gpu.h"

namespace {

constexpr int THREADS = 256;
constexpr int QUADS = GPU_STEP_COLUMNS / 4;                // of a step
constexpr int STAGED_M = 40;                               // largest M whose columns are staged
constexpr int ROW_PAD = 8;                                 // elements: rows begin in other banks
constexpr uint32_t NO_COLUMN = UINT32_MAX;

__device__ __forceinline__ void report(uint64_t *place, int64_t at)
{
    atomicMin((unsigned long long *)place, (unsigned long long)at);
}

__device__ __forceinline__ void put_column(const gpu_panels &to, int64_t at, uint32_t column)
{
    if (to.wide) {
        ((uint32_t *)to.columns)[at] = column;
    } else {
        ((uint16_t *)to.columns)[at] = (uint16_t)column;
    }
}

__device__ __forceinline__ int64_t row_end(const gpu_panels &to, int64_t panel)
{
    return min(to.out, (panel + 1) * to.panel_rows);
}

// ---- columns of V:2:M ----

constexpr int MOST_M = 1024, SMALL_M = 32;

// Groups of M columns that a block of threads looks at: about 256 columns, and a multiple of eight.
__host__ __device__ __forceinline__ int groups_of_block(int m)
{
    return m < SMALL_M ? SMALL_M / m * 8 : 8;
}

__device__ __forceinline__ bool bit_at(const uint32_t *bits, int i)
{
    return (bits[i / 32] >> i % 32 & 1) != 0;
}

// The `number`-th group of the block, number `group` of the panel: its live columns, then the lowest others up
// to four, ascending.
__device__ void choose_group(const gpu_panels &to, int64_t panel, int64_t group, int number, int m,
                             const uint32_t *live, gpu_misfits *misfits)
{
    int64_t first = group * m, width = min((int64_t)m, to.in - first);
    int64_t at = panel * to.steps * GPU_STEP_COLUMNS + group * 4;
    int bit = number * m, count = 0, used = 0;
    for (int c = 0; c < width; c++) {
        count += bit_at(live, bit + c);
    }
    if (count > 4) {
        report(&misfits->panel, at);
    }
    int fill = (int)min((int64_t)4, width) - count;
    for (int c = 0; c < width && used < 4; c++) {
        bool is_live = bit_at(live, bit + c);
        if (is_live || fill > 0) {
            fill -= !is_live;
            put_column(to, at + used++, (uint32_t)(first + c));
        }
    }
    while (used < 4) {
        put_column(to, at + used++, NO_COLUMN);
    }
}

// A block of 32 x 8 threads: some groups of a panel, 32 x 8 columns of every eighth row at a time.
__global__ void __launch_bounds__(THREADS)
    choose_columns(const gpu_dense from, int m, const gpu_panels to, gpu_misfits *misfits)
{
    __shared__ uint32_t live[8 * MOST_M / 32];
    int groups = groups_of_block(m), columns = groups * m, thread = threadIdx.y * 32 + threadIdx.x;
    int64_t all = (int64_t)to.steps * QUADS, pieces = (all + groups - 1) / groups; // of a panel
    int64_t panel = blockIdx.x / pieces, first = blockIdx.x % pieces * groups;
    int64_t begin = panel * to.panel_rows, end = row_end(to, panel);
    for (int i = thread; i < (columns + 31) / 32; i += THREADS) {
        live[i] = 0;
    }
    __syncthreads();
    for (int piece = threadIdx.x; piece < columns / 8; piece += 32) {
        unsigned found = 0;
        int64_t column = first * m + piece * 8;
#pragma unroll 8
        for (int64_t row = begin + threadIdx.y; row < end; row += 8) {
            found |= live_of_eight(from, row, column);
        }
        atomicOr(&live[piece / 4], found << piece % 4 * 8);
    }
    __syncthreads();
    if (thread < groups && first + thread < all) {
        choose_group(to, panel, first + thread, thread, m, live, misfits);
    }
}

// ---- free columns ----

constexpr int WINDOW = 1 << 17; // columns whose bits are in shared memory at a time

// What `live` or `listed` says of the eight columns from `column` on.
__device__ __forceinline__ unsigned eight_bits(const uint32_t *bits, int64_t column)
{
    return bits[column / 32] >> column % 32 & 0xff;
}

__device__ void clear_window(uint32_t *bits)
{
    __syncthreads();
    for (int i = threadIdx.x; i < WINDOW / 32; i += THREADS) {
        bits[i] = 0;
    }
    __syncthreads();
}

// The caller's list of a panel: in range, ascending inside four with padding last, none twice, and no row
// lives elsewhere. One block of threads a panel.
__global__ void __launch_bounds__(THREADS)
    take_list(const gpu_dense from, const uint32_t *columns, int64_t kept, const gpu_panels to,
              gpu_misfits *misfits)
{
    __shared__ uint32_t listed[WINDOW / 32];
    int64_t panel = blockIdx.x, width = to.steps * (int64_t)GPU_STEP_COLUMNS;
    const uint32_t *list = columns + panel * kept;
    for (int64_t i = threadIdx.x; i < width; i += THREADS) {
        uint32_t column = i < kept ? list[i] : NO_COLUMN;
        bool out_of_range = column != NO_COLUMN && column >= to.in;
        bool wrong = i < kept && i % 4 != 0 && column <= list[i - 1] && list[i - 1] != NO_COLUMN;
        wrong = wrong || (i < kept && i % 4 != 0 && list[i - 1] == NO_COLUMN && column != NO_COLUMN);
        if (wrong || out_of_range) {
            report(&misfits->list, panel * kept + i);
        }
        put_column(to, panel * width + i, out_of_range ? NO_COLUMN : column);
    }
    for (int64_t window = 0; window < to.in; window += WINDOW) {
        clear_window(listed);
        for (int64_t i = threadIdx.x; i < kept; i += THREADS) {
            int64_t column = list[i] - window;
            if (list[i] < to.in && column >= 0 && column < WINDOW) {
                uint32_t bit = 1u << column % 32;
                if ((atomicOr(&listed[column / 32], bit) & bit) != 0) {
                    report(&misfits->list, panel * kept + i);
                }
            }
        }
        __syncthreads();
        int64_t pieces = (min((int64_t)WINDOW, to.in - window) + 7) / 8;
        int64_t begin = panel * to.panel_rows, rows = row_end(to, panel) - begin;
        for (int64_t i = threadIdx.x; i < rows * pieces; i += THREADS) {
            int64_t row = begin + i / pieces, column = i % pieces * 8;
            unsigned lost = live_of_eight(from, row, window + column) & ~eight_bits(listed, column);
            if (lost != 0) {
                report(&misfits->column, row * to.in + window + column + __ffs((int)lost) - 1);
            }
        }
    }
}

// Sum of `mine` over the threads before this one, and over all.
__device__ int sum_before(int mine, int *all)
{
    __shared__ int sums[THREADS];
    sums[threadIdx.x] = mine;
    __syncthreads();
    for (int step = 1; step < THREADS; step *= 2) {
        int more = (int)threadIdx.x >= step ? sums[threadIdx.x - step] : 0;
        __syncthreads();
        sums[threadIdx.x] += more;
        __syncthreads();
    }
    int before = sums[threadIdx.x] - mine;
    *all = sums[THREADS - 1];
    __syncthreads();
    return before;
}

// The live columns of a panel in ascending order. One block of threads a panel.
__global__ void __launch_bounds__(THREADS)
    deal_columns(const gpu_dense from, int64_t kept, const gpu_panels to, gpu_misfits *misfits)
{
    __shared__ uint32_t live[WINDOW / 32];
    int64_t panel = blockIdx.x, width = to.steps * (int64_t)GPU_STEP_COLUMNS, used = 0;
    int64_t begin = panel * to.panel_rows, rows = row_end(to, panel) - begin;
    for (int64_t window = 0; window < to.in; window += WINDOW) {
        clear_window(live);
        int64_t pieces = (min((int64_t)WINDOW, to.in - window) + 7) / 8;
        for (int64_t i = threadIdx.x; i < rows * pieces; i += THREADS) {
            int64_t column = i % pieces * 8;
            unsigned found = live_of_eight(from, begin + i / pieces, window + column);
            if ((found & ~eight_bits(live, column)) != 0) { // mostly known: spares the atomics
                atomicOr(&live[column / 32], found << column % 32);
            }
        }
        __syncthreads();
        const int share = WINDOW / 32 / THREADS; // words of a thread
        int count = 0, all = 0;
        for (int w = 0; w < share; w++) {
            count += __popc(live[threadIdx.x * share + w]);
        }
        int64_t at = used + sum_before(count, &all);
        for (int w = 0; w < share; w++) {
            for (uint32_t rest = live[threadIdx.x * share + w]; rest != 0; rest &= rest - 1, at++) {
                if (at < kept) {
                    int64_t column = window + (threadIdx.x * share + w) * 32 + __ffs((int)rest) - 1;
                    put_column(to, panel * width + at, (uint32_t)column);
                }
            }
        }
        used += all;
    }
    if (used > kept && threadIdx.x == 0) {
        report(&misfits->panel, panel * width);
    }
    for (int64_t i = used + threadIdx.x; i < width; i += THREADS) {
        put_column(to, panel * width + i, NO_COLUMN);
    }
}

// ---- values and positions ----

// Accumulator row of the tensor cores to row of the block: see pack.cu.
__device__ __forceinline__ int dealt_row(int accumulator_row)
{
    int inside = accumulator_row % 16;
    return accumulator_row - inside + (inside < 8 ? 2 * inside : 2 * (inside - 8) + 1);
}

// Positions by four live bits, lower | upper << 2, filled canonically; for three or four live the same as
// for none.
__device__ __forceinline__ unsigned nibble_of(unsigned live)
{
    constexpr uint64_t nibbles = 0x444e4dcc49884444ull;
    return (unsigned)(nibbles >> (4 * live)) & 15;
}

// How the entries of a row are found.
enum finding { NEIGHBOURS, STAGED, ONE_BY_ONE };

// Columns that a step's come from: 16 groups of M.
__host__ __device__ __forceinline__ int stage_width(int m)
{
    return QUADS * m;
}

__device__ void stage(const gpu_dense &from, int64_t stored, int64_t rows, int64_t first, int width,
                      uint16_t *staged)
{
    int pieces = width / 8;
    for (int i = threadIdx.x; i < GPU_BLOCK_ROWS * pieces; i += THREADS) {
        int row = i / pieces, piece = i % pieces;
        uint4 eight = make_uint4(0, 0, 0, 0);
        if (row < rows) {
            eight = live_entries_of_eight(from, stored + row, first + piece * 8);
        }
        *(uint4 *)(staged + row * (width + ROW_PAD) + piece * 8) = eight;
    }
}

// The entries of a row at 16 kept columns from number `at` of the panel's list on.
template <finding FINDING> struct sixteen {
    uint16_t of[16];

    __device__ __forceinline__ void neighbours(const gpu_dense &from, int64_t row, int64_t column)
    {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint4 eight = live_entries_of_eight(from, row, column + 8 * half);
            const uint32_t word[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                of[8 * half + 2 * i] = (uint16_t)word[i];
                of[8 * half + 2 * i + 1] = (uint16_t)(word[i] >> 16);
            }
        }
    }

    __device__ __forceinline__ void listed(const gpu_dense &from, const gpu_panels &to, int64_t row,
                                           int64_t at, const uint16_t *staged, int64_t first)
    {
        uint32_t columns[16];
        if (to.wide) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                *(uint4 *)&columns[4 * i] = ((const uint4 *)((const uint32_t *)to.columns + at))[i];
            }
        } else {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint4 eight = ((const uint4 *)((const uint16_t *)to.columns + at))[half];
                const uint32_t word[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    columns[8 * half + 2 * i] = word[i] & 0xffff;
                    columns[8 * half + 2 * i + 1] = word[i] >> 16;
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 16; i++) {
            of[i] = 0;
            if (columns[i] < to.in) { // a missing column is not
                of[i] = FINDING == STAGED ? staged[columns[i] - first]
                                          : live_entry(from, row, columns[i]);
            }
        }
    }
};

// One block of 64 rows and one step a block of threads; a thread has 16 kept columns of a row.
template <finding FINDING>
__global__ void __launch_bounds__(THREADS)
    fill_steps(const gpu_dense from, int m, const gpu_panels to, gpu_misfits *misfits)
{
    extern __shared__ uint4 memory[];
    __shared__ uint16_t positions[GPU_BLOCK_ROWS * 4];
    uint16_t *staged = (uint16_t *)memory;
    int64_t step = blockIdx.x % to.steps, block = blockIdx.x / to.steps;
    int64_t panel = block / to.blocks, inside = (block - panel * to.blocks) * GPU_BLOCK_ROWS;
    int64_t stored = panel * to.panel_rows + inside, rows = row_end(to, panel) - stored;
    int width = stage_width(m);
    if (FINDING == STAGED) {
        stage(from, stored, rows, step * width, width, staged);
        __syncthreads();
    }
    int group = threadIdx.x / 32, quarter = threadIdx.x / 8 % 4, low = threadIdx.x % 8;
    int row = dealt_row(group * 8 + low);
    int64_t kept = step * GPU_STEP_COLUMNS + quarter * 16;
    sixteen<FINDING> found = {};
    if (row < rows && FINDING == NEIGHBOURS) {
        found.neighbours(from, stored + row, kept);
    } else if (row < rows) {
        found.listed(from, to, stored + row, panel * to.steps * GPU_STEP_COLUMNS + kept,
                     staged + row * (width + ROW_PAD), step * width);
    }
    uint32_t words[4];
    unsigned nibbles = 0;
#pragma unroll
    for (int q = 0; q < 4; q++) {
        const uint16_t *four = found.of + 4 * q;
        unsigned live = 0;
        uint32_t value[2] = {0, 0};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            live |= (unsigned)(four[i] != 0) << i;
        }
        unsigned nibble = nibble_of(live);
#pragma unroll
        for (int i = 0; i < 4; i++) { // what is not live is zero, and so is its value
            value[0] = (nibble & 3) == i ? four[i] : value[0];
            value[1] = nibble >> 2 == i ? four[i] : value[1];
        }
        if (__popc(live) > 2) {
            report(&misfits->quad, (stored + row) * to.steps * QUADS + kept / 4 + q);
        }
        nibbles |= nibble << 4 * q;
        words[q] = value[0] | value[1] << 16;
    }
    char *piece = (char *)to.data + (block * to.steps + step) * GPU_STEP_BYTES;
    *(uint4 *)(piece + quarter / 2 * 2048 + group * 256 + quarter % 2 * 128 + low * 16) =
        make_uint4(words[0], words[1], words[2], words[3]);
    positions[((group / 2 * 8 + low) * 4 + quarter) * 2 + group % 2] = (uint16_t)nibbles;
    __syncthreads();
    if (threadIdx.x < sizeof positions / 16) {
        ((uint4 *)(piece + 4096))[threadIdx.x] = ((const uint4 *)positions)[threadIdx.x];
    }
}

__global__ void fill_rows(const gpu_panels to)
{
    int64_t all = (int64_t)to.panels * to.blocks * GPU_BLOCK_ROWS;
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < all;
         i += (int64_t)gridDim.x * THREADS) {
        int64_t block = i / GPU_BLOCK_ROWS, panel = block / to.blocks;
        int64_t inside = (block - panel * to.blocks) * GPU_BLOCK_ROWS + i % GPU_BLOCK_ROWS;
        int64_t row = panel * to.panel_rows + inside;
        ((int32_t *)to.rows)[i] = inside < to.panel_rows && row < to.out ? (int32_t)row : -1;
    }
}

// ---- launching ----

int find_columns(const gpu_dense &from, int64_t m, int64_t kept, const uint32_t *columns,
                 const gpu_panels &to, gpu_misfits *misfits, cudaStream_t stream)
{
    if (to.columns == nullptr || from.data == nullptr) {
        return cudaSuccess;
    }
    if (m != 0) {
        int groups = groups_of_block((int)m);
        int64_t pieces = ((int64_t)to.steps * QUADS + groups - 1) / groups;
        choose_columns<<<(unsigned)(pieces * to.panels), dim3(32, 8), 0, stream>>>(from, (int)m, to,
                                                                                   misfits);
    } else if (columns != nullptr) {
        take_list<<<to.panels, THREADS, 0, stream>>>(from, columns, kept, to, misfits);
    } else {
        deal_columns<<<to.panels, THREADS, 0, stream>>>(from, kept, to, misfits);
    }
    return cudaGetLastError();
}

} // namespace

extern "C" int gpu_compress(const gpu_dense *from, int64_t m, int64_t kept, const uint32_t *columns,
                            const gpu_panels *to, gpu_misfits *misfits, void *stream)
{
    cudaStream_t in = (cudaStream_t)stream;
    int failed = cudaMemsetAsync(misfits, 0xff, sizeof *misfits, in);
    if (failed == cudaSuccess && to->columns != nullptr && from->data == nullptr) {
        size_t bytes = (size_t)to->panels * to->steps * GPU_STEP_COLUMNS * (to->wide ? 4 : 2);
        failed = cudaMemsetAsync((void *)to->columns, 0xff, bytes, in);
    }
    if (failed == cudaSuccess) {
        failed = find_columns(*from, m, kept, columns, *to, misfits, in);
    }
    if (failed != cudaSuccess) {
        return failed;
    }
    unsigned blocks = (unsigned)((int64_t)to->panels * to->blocks * to->steps);
    if (to->columns == nullptr) {
        fill_steps<NEIGHBOURS><<<blocks, THREADS, 0, in>>>(*from, 4, *to, misfits);
        return cudaGetLastError();
    }
    if (m == 0 || m > STAGED_M) {
        fill_steps<ONE_BY_ONE><<<blocks, THREADS, 0, in>>>(*from, 0, *to, misfits);
        return cudaGetLastError();
    }
    size_t shared = (size_t)GPU_BLOCK_ROWS * (stage_width((int)m) + ROW_PAD) * 2;
    constexpr int MOST = GPU_BLOCK_ROWS * (QUADS * STAGED_M + ROW_PAD) * 2; // others may ask for it too
    failed = cudaFuncSetAttribute(fill_steps<STAGED>, cudaFuncAttributeMaxDynamicSharedMemorySize, MOST);
    if (failed == cudaSuccess) {
        fill_steps<STAGED><<<blocks, THREADS, shared, in>>>(*from, (int)m, *to, misfits);
        failed = cudaGetLastError();
    }
    return failed;
}

extern "C" int gpu_fill_rows(const gpu_panels *to, void *stream)
{
    int64_t all = (int64_t)to->panels * to->blocks * GPU_BLOCK_ROWS;
    unsigned blocks = (unsigned)min((all + THREADS - 1) / THREADS, (int64_t)1 << 20);
    fill_rows<<<blocks, THREADS, 0, (cudaStream_t)stream>>>(*to);
    return cudaGetLastError();
}
