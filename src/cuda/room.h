/* What the C files of this room share. */
#ifndef ESP_CUDA_ROOM_H
#define ESP_CUDA_ROOM_H

#include <pthread.h>

#include "cuda/cuda.h"
#include "cuda/gpu.h"
#include "cuda/gpu_blocks.h"
#include "cuda/gpu_clusters.h"

typedef struct cuda_cublaslt cuda_cublaslt;

/* esp_device.state. */
typedef struct cuda_state {
    int index;
    gpu_facts facts;
    int most_clusters[GPU_CLUSTER_SIZES];
    pthread_mutex_t lock;    /* guards the two below */
    bool cublaslt_asked;     /* looked for when a plan first asks */
    cuda_cublaslt *cublaslt; /* NULL: not there */
} cuda_state;

/* esp_packed.state. */
typedef struct cuda_weight {
    bool dense;
    void *memory; /* everything below lies in it */
    const void *values;
    gpu_panels panels; /* of a dense weight: its values, as one panel of all rows and columns */
    gpu_blocks blocks;
    gpu_misfits *misfits; /* what compressing on the device found last */
    bool reordered;       /* stored rows are not output rows */
    bool pairs_together;  /* output rows 2 i and 2 i + 1 are neighbours in one thread, for all i */
} cuda_weight;

/* "cuda.failed" or "cuda.out_of_memory", saying what was tried; error 0 is ESP_OK. */
esp_status cuda_check(int error, const esp_device *device, const char *what, esp_error *into);

/* Back end functions of devices.c. */
int cuda_enumerate(esp_context *context, esp_device_info *infos, int capacity);
const char *cuda_unusable_code(const esp_device_info *info);
/* A GPU of such facts; the code that says why it cannot be used, NULL where it can. */
const char *cuda_describe(int index, const gpu_facts *facts, esp_device_info *info);
int cuda_index(const char *name); /* of "cuda:N" */

ESP_MUST_CHECK esp_status cuda_pack(esp_device *device, const esp_sparse *sparse,
                                    esp_packed **packed, esp_error *error);
void cuda_packed_free(esp_packed *packed);
/* Blocks whose sides are multiples of 16; blocks_pack.c. */
bool cuda_reads_blocks(const esp_pattern *pattern);
ESP_MUST_CHECK esp_status cuda_pack_blocks(esp_device *device, const esp_sparse *sparse,
                                           esp_packed *packed, cuda_weight *weight,
                                           esp_error *error);
/* Device memory, the device being current; "device.out_of_memory" says what is free. */
ESP_MUST_CHECK esp_status cuda_take(esp_device *device, size_t bytes, const char *what,
                                    void **memory, esp_error *error);
/* The object alone, with the pattern, type and shape of `facts`; NULL: no memory. */
esp_packed *cuda_packed_make(esp_device *device, const esp_packed *facts);
/* Allocates the memory of panels and points weight->panels into it; weight->reordered is set. */
ESP_MUST_CHECK esp_status cuda_place_panels(esp_device *device, const gpu_panel_parts *shape,
                                            bool listed, esp_packed *packed, cuda_weight *weight,
                                            esp_error *error);
/* pairs_together of panels without a row order. */
bool cuda_panels_pair(const gpu_panel_parts *shape);

/* Weights made on the device; compress.c. */
ESP_MUST_CHECK esp_status cuda_packed_create(esp_device *device, const esp_pattern *pattern,
                                             esp_dtype dtype, int64_t out_features,
                                             int64_t in_features, esp_packed **packed,
                                             esp_error *error);
ESP_MUST_CHECK esp_status cuda_compress(esp_packed *packed, const esp_device_dense *dense,
                                        const esp_device_mask *mask, void *stream,
                                        esp_error *error);
ESP_MUST_CHECK esp_status cuda_prune(esp_device *device, const esp_device_dense *dense,
                                     const esp_pattern *pattern, const esp_mask_options *options,
                                     const esp_device_mask *mask, void *stream, esp_error *error);

/* Kernel records of the families; catalogue.c lists them. */
#define CUDA_PANEL_KERNELS 20
#define CUDA_SM80_PANEL_KERNELS 16
#define CUDA_BLOCK_KERNELS 10
#define CUDA_DENSE_KERNELS 3
#define CUDA_DENSE_FEW_KERNELS 4
#define CUDA_DENSE_TILE_KERNELS 4
#define CUDA_DENSE_SPLIT_KERNELS 4
extern const esp_kernel cuda_panel_kernels[CUDA_PANEL_KERNELS];
extern const esp_kernel cuda_sm80_panel_kernels[CUDA_SM80_PANEL_KERNELS];
extern const esp_kernel cuda_block_kernels[CUDA_BLOCK_KERNELS];
extern const esp_kernel cuda_dense_kernels[CUDA_DENSE_KERNELS];
extern const esp_kernel cuda_dense_few_kernels[CUDA_DENSE_FEW_KERNELS];
extern const esp_kernel cuda_dense_tile_kernels[CUDA_DENSE_TILE_KERNELS];
extern const esp_kernel cuda_dense_split_kernels[CUDA_DENSE_SPLIT_KERNELS];
extern const esp_kernel *const esp_cuda_kernels[];

#define CUDA_LINE 64 /* tokens of 128 bytes: where rows of activations want to begin */

/* The device's cuBLASLt, or NULL; dense.c. */
cuda_cublaslt *cuda_cublaslt_of(const esp_device *device);
void cuda_cublaslt_close(cuda_cublaslt *lt);

/* "cuBLASLt 13.1.0", "no cuBLASLt". */
void cuda_cublaslt_describe(const esp_device *device, char *text, size_t capacity);

/* It writes Y itself: no kernel follows for an epilogue or a type that it does not write. */
bool cuda_dense_is_direct(const esp_matmul_problem *problem);
/* What that kernel takes: sums out and in, in f32, and Y. */
double cuda_dense_finish_us(const esp_device *device, const esp_matmul_problem *problem);
/* Our own dense kernel that is predicted to be the fastest, NULL: none can run the problem; and
 * what it takes longer than cuBLASLt takes without the epilogue; dense_tiles.c. */
const esp_kernel *cuda_dense_tiles_for(const esp_device *device, const esp_matmul_problem *problem);
double cuda_dense_passing_us(const esp_kernel *own, const esp_matmul_problem *problem);
/* What instructions of smooth activations add to a product that does them in passing: measured on
 * an H100, alike for dense tiles and those of panels. */
double cuda_smooth_us(const esp_matmul_problem *problem);

/* ---- times that ship; default_times.c ---- */

#define CUDA_MOST_POINTS 16

typedef struct cuda_times_point {
    int tokens;        /* 0: the end */
    int sparse, dense; /* the fastest kernels, in names */
    float sparse_us, dense_us;
} cuda_times_point;

typedef struct cuda_times_family {
    const char *key; /* PATTERN/OUTxIN; NULL: the end */
    cuda_times_point points[CUDA_MOST_POINTS + 1];
} cuda_times_family;

/* What was measured on one kind of GPU. */
typedef struct cuda_times {
    const char *gpu;          /* as the runtime names it; NULL: the end of a list */
    const char *const *names; /* of kernels, without types: "panel/sm90_few" */
    const cuda_times_family *families;
} cuda_times;

extern const cuda_times cuda_shipped[];
/* Of a list of tables. */
bool cuda_times_find(const cuda_times *tables, const esp_device *device,
                     const esp_matmul_problem *problem, esp_shipped_times *times);
/* Of those that ship. */
bool cuda_shipped_times(const esp_device *device, const esp_matmul_problem *problem,
                        esp_shipped_times *times);

/* ---- calibration; algebra.c ---- */

ESP_MUST_CHECK esp_status cuda_algebra_open(esp_device *device, esp_device_algebra **algebra,
                                            esp_error *error);

/* ---- models; ops.c, stream.c ---- */

const esp_ops *cuda_ops_of(const esp_device *device, esp_dtype type);
esp_dtype cuda_activation_type(const esp_device *device, esp_compute compute,
                               esp_dtype weight_type);

ESP_MUST_CHECK esp_status cuda_stream_open(esp_device *device, void **stream, esp_error *error);
void cuda_stream_close(esp_device *device, void *stream);
void *cuda_staging_alloc(esp_device *device, size_t bytes);
void cuda_staging_release(esp_device *device, void *memory);
ESP_MUST_CHECK esp_status cuda_send(esp_device *device, void *stream, void *to, const void *from,
                                    size_t bytes, esp_error *error);
ESP_MUST_CHECK esp_status cuda_receive(esp_device *device, void *stream, void *to, const void *from,
                                       size_t bytes, esp_error *error);
ESP_MUST_CHECK esp_status cuda_settle(esp_device *device, void *stream, esp_error *error);
ESP_MUST_CHECK esp_status cuda_keep_begin(esp_device *device, void *stream, esp_error *error);
ESP_MUST_CHECK esp_status cuda_keep_end(esp_device *device, void *stream, void **graph,
                                        esp_error *error);
ESP_MUST_CHECK esp_status cuda_keep_replay(esp_device *device, void *stream, void *graph,
                                           esp_error *error);
void cuda_keep_free(esp_device *device, void *graph);
size_t cuda_memory_free(const esp_device *device);

/* ---- measurements; measure.c ---- */

ESP_MUST_CHECK esp_status cuda_record(esp_device *device, esp_work_fn work, void *user,
                                      void **state, esp_error *error);
ESP_MUST_CHECK esp_status cuda_replay(esp_device *device, void *state, int repeats, double *us,
                                      esp_error *error);
void cuda_recording_free(esp_device *device, void *state);
ESP_MUST_CHECK esp_status cuda_spread(esp_device *device, const esp_spread *spread,
                                      esp_error *error);
ESP_MUST_CHECK esp_status cuda_differ(esp_device *device, const esp_difference *difference,
                                      double *worst, esp_error *error);

/* ---- what every launch does; launch.c ---- */

/* Whether `bytes` from `memory` on are memory of the device. Asks the driver each time: memory may
 * be freed and its addresses be given out again at any moment. */
static inline bool cuda_holds(const cuda_state *state, const void *memory, size_t bytes)
{
    return gpu_holds(state->index, memory, bytes);
}

/* Operands are memory of this device; "matmul.not_on_device" names the first that is not. */
ESP_MUST_CHECK esp_status cuda_check_operands(const esp_matmul_call *call, esp_error *error);
/* The epilogue of a call, writing from token `first` on for `tokens`. */
gpu_epilogue cuda_epilogue(const esp_matmul_call *call, int64_t first, int64_t tokens);
gpu_type cuda_type(esp_dtype dtype);
/* The prologue of a call; *aligned becomes false where `up` takes no 16-byte accesses. */
gpu_prologue cuda_prologue(const esp_matmul_call *call, bool *aligned);
/* The values of the weight that is read next. */
gpu_ahead cuda_ahead(const esp_matmul_call *call);
/* esp_kernel.takes of the kernels for few tokens on Hopper. */
bool cuda_few_takes(const esp_matmul_problem *problem, esp_prologue_kind kind);
/* Reasons that all kernels share: types, compute, sizes. NULL: none. */
const char *cuda_why_not(const esp_matmul_problem *problem, esp_dtype type);
double cuda_memory_us(const esp_device *device, double bytes);

/* Rows of a packed block; panel_rows 0: no list of columns. */
static inline int64_t cuda_block_rows(int64_t panel_rows)
{
    return panel_rows > 0 && panel_rows <= GPU_SHORT_ROWS ? GPU_SHORT_ROWS : GPU_BLOCK_ROWS;
}

static inline size_t cuda_round_up(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

#endif
