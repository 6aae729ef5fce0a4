/* What the .cu files of this room offer to its C files: plain C functions, no CUDA types. Planning,
 * checks and error texts are C; a .cu file holds kernels and the few lines that launch them.
 *
 * Functions return 0 or an error number of the CUDA runtime (gpu_error_text says it). Those that
 * launch are asynchronous on `stream` (a cudaStream_t) and allocate nothing. The caller has made
 * the device current. */
#ifndef ESP_CUDA_GPU_H
#define ESP_CUDA_GPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- device ---- */

typedef struct gpu_facts {
    char name[128];
    int major, minor;
    int multiprocessors;
    size_t memory_bytes, l2_bytes, shared_bytes; /* shared: most that one block may have */
    double gb_per_s;                             /* memory bandwidth by its clocks; 0: unknown */
} gpu_facts;

const char *gpu_error_text(int error);
bool gpu_error_is_memory(int error);
int gpu_count(int *count);
int gpu_get_facts(int index, gpu_facts *facts);
/* Makes `index` current for this thread and tells which was before. */
int gpu_enter(int index, int *before);
void gpu_leave(int before);
int gpu_alloc(size_t bytes, void **memory);
void gpu_free(void *memory);
/* Whether all these bytes are memory of the device; `bytes` 0 asks as 1. */
bool gpu_holds(int index, const void *memory, size_t bytes);
/* Both wait until the bytes have arrived, after all work that was given to the device before. */
int gpu_upload(void *to, const void *from, size_t bytes);
int gpu_download(void *to, const void *from, size_t bytes);
int gpu_wait(void);
int gpu_fill(void *memory, int byte, size_t bytes);
/* As cudaRuntimeGetVersion and cudaDriverGetVersion; 0: unknown. */
void gpu_versions(int *runtime, int *driver);

/* ---- streams ---- */

/* One that waits for no other and for which no other waits. free waits for its work. */
int gpu_stream_create(void **stream);
void gpu_stream_free(void *stream);
int gpu_stream_wait(void *stream);
/* Host memory that the device reads and writes by itself. */
int gpu_pinned_alloc(size_t bytes, void **memory);
void gpu_pinned_free(void *memory);
/* Returns at once where `from` is pinned. */
int gpu_send(void *to, const void *from, size_t bytes, void *stream);
size_t gpu_memory_free(void); /* bytes; 0: unknown */
/* What is given to the stream between the two is kept, not run; kept NULL: dropped. */
int gpu_keep_begin(void *stream);
int gpu_keep_end(void *stream, void **kept);
int gpu_keep_replay(void *kept, void *stream);
void gpu_keep_free(void *kept);

/* ---- recorded work ---- */

typedef struct gpu_recording gpu_recording; /* a stream, what was captured in it, two events */

/* An empty one, and its stream. */
int gpu_recording_create(gpu_recording **made, void **stream);
/* What is given to the stream between the two is captured, not run. end: also when giving failed;
 * *captured tells whether there is something to replay. */
int gpu_recording_begin(gpu_recording *recording);
int gpu_recording_end(gpu_recording *recording, bool *captured);
/* Waits for the last one's end; microseconds of all. */
int gpu_recording_replay(gpu_recording *recording, int repeats, double *us);
void gpu_recording_free(gpu_recording *recording);

/* ---- measurements ---- */

/* to[row][t] = from[row][map[t]] or, by_token, to[t][row] = from[map[t]][row]; elements of 2 or 4
 * bytes; all in device memory. Waits. */
typedef struct gpu_spread {
    bool by_token;
    int64_t features, tokens, vectors;
    int width;
    const int32_t *map;
    const void *few;
    void *all;
} gpu_spread;
int gpu_spread_vectors(const gpu_spread *spread);

/* ---- numbers ---- */

typedef enum gpu_type { GPU_F32 = 0, GPU_F16, GPU_BF16 } gpu_type;

/* What is done to a finished sum and where it goes. Element (feature o, token t) of Y is at
 * y[o * feature_step + t * token_step]; the residual lies likewise. `bits` are esp_epilogue's; with
 * swiglu rows 2 i and 2 i + 1 of the product are feature i of Y. */
typedef struct gpu_epilogue {
    unsigned bits;
    gpu_type type;
    const float *scale, *bias;
    const void *residual;
    void *y;
    int64_t feature_step, token_step;
    int tokens;
    bool aligned; /* 16-byte accesses to y and residual along the step of 1 are in order */
} gpu_epilogue;

/* What is done to X before it is multiplied, by the kernels for few tokens that take it: nothing; x
 * / sqrt(mean over features of x^2 + eps) * weight, of one token; or silu(x) * up, where up lies as
 * x does. Rounded to X's type, as gpu_rms_norm and gpu_swiglu would. */
typedef enum gpu_prologue_kind { GPU_AS_IT_IS = 0, GPU_RMS_NORM, GPU_SWIGLU } gpu_prologue_kind;
typedef struct gpu_prologue {
    gpu_prologue_kind kind;
    const float *weight; /* [in] */
    float eps;
    const void *up;
} gpu_prologue;

/* Memory that a later launch will read and none writes meanwhile: a kernel that waits for others
 * may ask the L2 for as much of it as is useful. */
typedef struct gpu_ahead {
    const void *data; /* NULL: unknown */
    size_t bytes;
} gpu_ahead;

/* y = epilogue(raw); raw f32 [rows][tokens] or, by_token, [tokens][rows], tight. */
int gpu_finish(const float *raw, bool by_token, int64_t rows, const gpu_epilogue *epilogue,
               void *stream);

/* esp_difference in device memory; *worst may be NaN. Waits. */
typedef struct gpu_difference {
    bool by_token;
    int64_t rows, tokens, vectors;
    gpu_type type;
    const int32_t *map;
    const void *few;
    const double *bounds; /* NULL: must be equal */
    const void *all;
} gpu_difference;
int gpu_differ(const gpu_difference *difference, double *worst);

/* ---- X ---- */

/* to[row][column] = from[row][column], 16-bit elements; strides in elements. */
int gpu_copy_rows(const void *from, int64_t from_stride, void *to, int64_t to_stride, int64_t rows,
                  int64_t columns, void *stream);
/* to[column][row] = from[row][column]. */
int gpu_transpose(const void *from, int64_t from_stride, void *to, int64_t to_stride, int64_t rows,
                  int64_t columns, void *stream);

/* ---- panels in the form that the tensor cores read ---- */

#define GPU_BLOCK_ROWS 64
#define GPU_SHORT_ROWS 32 /* of a block, where a panel with a list of columns has no more rows */
#define GPU_STEP_COLUMNS 64
#define GPU_ROW_BYTES 72    /* of one row and step: 64 of values, 8 of positions */
#define GPU_STEP_BYTES 4608 /* of one block of 64 rows and step */

/* Every panel (2:4 is one panel) is cut into blocks of 64 rows, or 32, the last one padded, and its
 * kept columns into steps of 64, the last one padded. One block and step is laid out as shared
 * memory needs it (docs/kernels-gpu.md draws it). */
typedef struct gpu_panels {
    int64_t out, in;
    int64_t panel_rows;        /* stored rows of a panel; the last may have fewer */
    int block_rows;            /* GPU_BLOCK_ROWS or GPU_SHORT_ROWS */
    int panels, blocks, steps; /* blocks of a panel, steps of a block */
    const void *data;          /* [panels * blocks][steps][block_rows * GPU_ROW_BYTES] */
    const void *columns;       /* [panels][steps * 64], u16 or u32, all ones: none; NULL for 2:4 */
    bool wide;                 /* u32 */
    const int32_t *rows; /* [panels * blocks * block_rows]: output row of a stored row, -1: none */
    bool straight;       /* the rows of a block follow one another up to the matrix's end */
} gpu_panels;

/* Canonical parts in device memory. */
typedef struct gpu_panel_parts {
    int64_t out, in, kept, panel_rows, position_bytes;
    const void *values, *positions;
    const void *columns, *rows; /* NULL: none */
    bool columns_wide, rows_wide;
} gpu_panel_parts;

int gpu_pack_panels(const gpu_panel_parts *parts, const gpu_panels *to, void *stream);

/* ---- from dense weights in device memory ---- */

/* 16-bit weights, row-major. */
typedef struct gpu_dense {
    int64_t out, in, stride;
    const void *data; /* NULL: all zero */
    bool bf16;
    bool aligned; /* base and stride are multiples of 16 bytes */
    const uint8_t
        *mask;          /* [out][mask_bytes], bit c % 8 of byte c / 8 is column c; NULL: all live */
    int64_t mask_bytes; /* of a row */
} gpu_dense;

/* What compressing found that does not fit: the first place of each kind, UINT64_MAX: none. */
typedef struct gpu_misfits {
    uint64_t list;   /* panel * kept + i: the list of columns breaks its rules there */
    uint64_t panel;  /* panel * kept + i: the group (free columns: panel) has more live columns */
    uint64_t quad;   /* stored row * quads + quad: more than two of four live */
    uint64_t column; /* stored row * in + column: live, but not in the panel's list */
} gpu_misfits;

/* Fills what `to` points to but its row table. m: of V:2:M, 0 for free columns; columns: the
 * caller's list of free columns, [panels][kept], or NULL. misfits: device memory. */
int gpu_compress(const gpu_dense *from, int64_t m, int64_t kept, const uint32_t *columns,
                 const gpu_panels *to, gpu_misfits *misfits, void *stream);
/* Stored row i is output row i. */
int gpu_fill_rows(const gpu_panels *to, void *stream);

typedef enum gpu_search { GPU_GREEDY = 0, GPU_EXACT, GPU_SWAPS } gpu_search;

/* columns[panels][kept] of V:2:M, as src/prune chooses them. */
int gpu_choose_columns(const gpu_dense *from, int64_t panel_rows, int64_t m, bool square,
                       gpu_search search, uint32_t *columns, void *stream);
/* Two of each four columns (NULL: of the list 0, 1, 2...) of every row; mask: [out][mask_bytes]. */
int gpu_choose_entries(const gpu_dense *from, int64_t panel_rows, int64_t m,
                       const uint32_t *columns, uint8_t *mask, int64_t mask_bytes, void *stream);

int gpu_copy_to_host(void *to, const void *from, size_t bytes, void *stream); /* waits for it */

/* ---- products of panels ---- */

/* Tiles, whole or in parts of equal width, that are dealt to multiprocessors in turn. Item k of
 * `count` is part i / tiles of tile first + i % tiles, where i = from + k; it begins `offset`
 * tokens after what that says, has the tile's width >> shift, and goes to multiprocessor
 * (at + k % span) % multiprocessors. */
typedef struct gpu_run {
    int first, tiles, from, count;
    int shift, offset;
    int at, span;
} gpu_run;

/* Every row and token of a product once. Tiles are counted row by row within a group, column of
 * tokens by column, and group by group; those of the last, narrower column come after all. */
typedef struct gpu_deal {
    int of_panel;     /* row tiles of a panel */
    int rows, tokens; /* tiles; tokens: whole ones */
    int group; /* row tiles that go through all tokens before the next do, so that their weights
                  stay in the L2 */
    int multiprocessors; /* that get any; clusters of `split` of them, each with one part at most */
    int split;           /* multiprocessors that share out the steps of a part */
    bool overlaps;       /* the launch may begin while the one before it ends */
    int runs;
    gpu_run run[5];
} gpu_deal;

typedef struct gpu_product {
    gpu_panels weight;
    bool bf16;
    const void *x;
    int64_t x_stride;
    int tokens;
    bool x_by_token;
    bool x_aligned; /* base, stride and `up` are multiples of 16 bytes */
    gpu_epilogue epilogue;
    int device, multiprocessors;
    gpu_deal deal;         /* of the sm90 kernels of tiles */
    bool y_by_engine;      /* the copy engine can store Y: see sm90_panel_leave.cuh */
    gpu_prologue prologue; /* these two: of the kernels for few tokens */
    gpu_ahead ahead;
    bool gates; /* the same: Y = silu(the first half of the rows) * the second; halves are whole
                 * blocks, tokens a multiple of 8, Y by feature and of 16 bits */
} gpu_product;

/* Tiles of rows x tokens that are compiled, for X gathered by a column list and for 2:4. */
typedef enum gpu_tile {
    GPU_TILE_128X256 = 0,
    GPU_TILE_128X128,
    GPU_TILE_64X512,
    GPU_TILE_64X256,
    GPU_TILE_64X128,
    GPU_TILE_32X256,
    GPU_TILE_32X128,
    GPU_STAGGERED_256X128
} gpu_tile;

/* From compute capability 8.0 on. Tiles: 128x128, 64x256, 64x128 for blocks of 64 rows, 32x256 and
 * 32x128 for blocks of 32; 2:4 has 128x128 and 64x128. */
int gpu_sm80_panel_f16(const gpu_product *product, gpu_tile tile, void *stream);
int gpu_sm80_panel_bf16(const gpu_product *product, gpu_tile tile, void *stream);

#define GPU_FEW_TOKENS 16
int gpu_sm90_few(const gpu_product *product, void *stream);
int gpu_sm80_few(const gpu_product *product, void *stream);

/* ---- products of dense weights and few tokens ---- */

typedef struct gpu_dense_product {
    int64_t out, in;
    const void *weight; /* [out][in], tight */
    bool bf16;
    const void *x;
    int64_t x_stride;
    int tokens;
    bool x_by_token;
    bool x_aligned;
    gpu_epilogue epilogue;
    int device;
    gpu_prologue prologue;
    gpu_ahead ahead;
} gpu_dense_product;

/* The first needs `in` to be a multiple of 8, the second takes no prologue. */
int gpu_sm90_dense_few(const gpu_dense_product *product, void *stream);
int gpu_sm80_dense_few(const gpu_dense_product *product, void *stream);

#ifdef __cplusplus
}
#endif
#endif
