/* The door of src/op: what an operation is. Types only, no kernels.
 *
 * Two kinds of operation exist. Products (matmul) have many kernels, described by constant records
 * in explicit arrays that planner, checker, bench and `espalier kernels` all read. Everything else
 * a model needs has one implementation per back end, in a table (esp_ops): the cpu table starts as
 * a copy of ref's and overrides; a GPU has a table for each type of activations.
 *
 * All pointers are memory of the device, unless a comment says otherwise. */
#ifndef ESP_SRC_OP_H
#define ESP_SRC_OP_H

#include <espalier/compress.h>
#include <espalier/device.h>
#include <espalier/matmul.h>

#include "base/base.h"
#include "op/host_weight.h"
#include "tensor/tensor.h"

typedef struct esp_backend esp_backend;

/* Types, sizes, layouts and epilogue of a problem are in range and every operand fits an address
 * space; codes "problem.*" and "pattern.*". */
ESP_MUST_CHECK esp_status esp_matmul_problem_check(const esp_matmul_problem *problem,
                                                   esp_error *error);

struct esp_device {
    esp_context *context;
    const esp_backend *backend;
    char name[16];
    void *state;                            /* the back end's own, made by its open */
    char identity[ESP_DEVICE_IDENTITY_MAX]; /* empty until asked for; the tuning table's lock */
};

/* ESP_OUT_OF_MEMORY that names what was asked for and, where the back end knows it, what is free.
 */
esp_status esp_device_fail_memory(const esp_device *device, size_t bytes, const char *what,
                                  esp_error *error);

/* ---- products ---- */

/* A weight as kernels of one back end read it. ref and cpu keep the canonical parts (aligned
 * copies); `sparse` then holds them. */
struct esp_packed {
    esp_device *device;
    esp_pattern pattern;
    esp_dtype dtype;
    int64_t out_features, in_features;
    esp_sparse *sparse;
    void *state;        /* a kernel family's private form, if any */
    size_t bytes;       /* of this form; the dense one counts its own */
    esp_packed *dense;  /* the same weight with its zeros, pattern dense; NULL: not held */
    esp_packed *spread; /* the same weight spread, a 2:4 of esp_spread_places; NULL: not held */
    bool hollow;        /* only these two are held: sparse and state are NULL */
};

/* An operation on X that a kernel can do as it reads X, rounded as the operation rounds; kernels
 * that cannot are given what it made instead. */
typedef enum esp_prologue_kind {
    ESP_PROLOGUE_NONE = 0,
    ESP_PROLOGUE_RMS_NORM, /* x / sqrt(mean over features of x^2 + eps) * weight */
    ESP_PROLOGUE_SWIGLU    /* silu(x) * up */
} esp_prologue_kind;

typedef struct esp_prologue {
    esp_prologue_kind kind;
    const float *weight; /* [in_features] */
    float eps;
    const void *up; /* laid out as x */
} esp_prologue;

/* Sums over the features of each token, in parts: at values[(p * tokens + t) * 2] the sum of part
 * p's features of token t, and behind it that of their squares. The parts together have all
 * features. */
typedef struct esp_moments {
    float *values;
    int parts;
} esp_moments;

/* A norm that the weights hold already: its weight multiplies W's columns, its bias went through W
 * into the product's. What is left of it is Y = epilogue((W X - row_sums mean^T) / deviation), mean
 * and deviation, sqrt(variance + eps), of each token of X; without row_sums the mean counts as 0:
 * an RMS norm. */
typedef struct esp_normed {
    esp_moments of_x;
    const float *row_sums; /* [out]: of the weights as they are stored, zeros too; or NULL */
    float eps;
} esp_normed;

/* What a model knows of the work around a product. */
typedef struct esp_around {
    const esp_prologue *prologue; /* NULL: none; else one that the kernel takes */
    const esp_packed *next; /* NULL; or the weight that is read next, which may be fetched ahead */
    bool gates; /* Y = silu(the first half of the rows) * the second, of a kernel that joins */
    const esp_normed *normed;   /* NULL: X is read as it is; else of a kernel that norms */
    const esp_moments *moments; /* NULL; or where those of Y, as rounded, go: of a kernel that
                                   leaves so many parts */
} esp_around;

typedef struct esp_kernel esp_kernel;

typedef struct esp_matmul_call {
    const esp_kernel *kernel;
    esp_device *device;
    const esp_matmul_problem *problem; /* compute is never AUTO here */
    const esp_matmul_args *args;       /* strides filled in */
    esp_around around;                 /* zeros: nothing is known */
} esp_matmul_call;

/* One constant record per kernel. */
struct esp_kernel {
    const char *name;   /* matmul_<format>_<weight>_<activation>__<device>_<level>[_<variant>] */
    const char *device; /* "ref", "cpu", "cuda" */
    const char *format; /* "dense", "nm", "panel", "csr", "bsr", "rows", "cols" */
    const char *level; /* "scalar", "portable", "avx2", "avx512", "openblas", "onednn", "sm90"... */
    const char *idea;  /* one line for `espalier kernels` */
    /* NULL if it can run the problem on this device, else a reason (static text). */
    const char *(*why_not)(const esp_kernel *kernel, const esp_device *device,
                           const esp_matmul_problem *problem);
    /* Scratch bytes for one run; NULL: none. */
    size_t (*workspace_bytes)(const esp_kernel *kernel, const esp_device *device,
                              const esp_matmul_problem *problem);
    /* Predicted microseconds, for choosing; smaller is better. */
    double (*score_us)(const esp_kernel *kernel, const esp_device *device,
                       const esp_matmul_problem *problem);
    /* What it takes longer inside a model than where it runs again and again, and makes its
     * neighbours take longer: microseconds of each launch, on top of predicted and measured ones.
     */
    double among_us;
    esp_status (*launch)(const esp_matmul_call *call, esp_error *error);
    const void *variant; /* the kernel family's own parameters */
    bool bare;           /* bias and activation cost it a pass over f32 sums */
    bool dense_work;     /* multiplies all of a sparse weight's entries, zeros too */
    bool spread;         /* reads the form ESP_FORM_SPREAD */
    /* Whether it does an operation on X itself; NULL: none. */
    bool (*takes)(const esp_kernel *kernel, const esp_matmul_problem *problem,
                  esp_prologue_kind kind);
    /* Whether it finishes esp_around.normed, X and Y being tight and their memory aligned to 16
     * bytes; NULL: no. */
    bool (*norms)(const esp_kernel *kernel, const esp_matmul_problem *problem,
                  const esp_packed *weight);
    /* The parts in which it leaves esp_around.moments; 0: it does not. NULL: 0. Likewise. */
    int (*moment_parts)(const esp_kernel *kernel, const esp_matmul_problem *problem,
                        const esp_packed *weight);
    /* Whether it joins halves, esp_around.gates; NULL: no. */
    bool (*gates)(const esp_kernel *kernel, const esp_matmul_problem *problem,
                  const esp_packed *weight);
};

/* ---- everything else ---- */

/* Activations of an operation have the type of its table and are feature-major
 * [features][columns], tight. There is one column, or a multiple of the table's `step`, and models
 * take a multiple of its `line` from more than `few` columns on; columns beyond the tokens that
 * there are (and between groups of tokens) are computed like the others, from whatever they hold,
 * and read by nothing that counts. Numbers that belong to weights (norms, positions, tables,
 * angles) are f32. Where `stream` is not NULL the work is given to it and may not be done when the
 * call returns. */

/* Sum of rows of several tables, all [...][hidden]. */
#define ESP_MOST_TABLES 3
typedef struct esp_embedding {
    const esp_tensor *tables[ESP_MOST_TABLES];
    const int32_t *rows[ESP_MOST_TABLES]; /* [columns] each, device memory; in range */
    int count;
    int64_t columns;
    void *x; /* [hidden][columns] */
} esp_embedding;

/* The cache of one layer and sequence, of which rows 0..past-1 are filled. */
typedef struct esp_cache_place {
    void *keys, *values; /* [kv_heads][capacity][head_dim] */
    int32_t past, capacity;
} esp_cache_place;

/* Rotates q and k, halves (i, i + head_dim / 2) of each head, q in place; k, which may be changed,
 * and v go into caches: of one sequence, rows past..past+tokens-1, or, where places is not NULL,
 * token t into row `past` of places[t]. */
typedef struct esp_rope_append {
    void *q, *k, *v;              /* [heads or kv_heads * head_dim][columns] */
    const float *cosines, *sines; /* [head_dim / 2][columns] */
    int64_t heads, kv_heads, head_dim, tokens, columns;
    esp_cache_place one;           /* of the one sequence */
    const esp_cache_place *places; /* [tokens], device memory */
} esp_rope_append;

/* Causal attention of tokens that go on a sequence: token t sees rows 0..past+t of its cache, which
 * are filled. Softmax in f32 or better. */
typedef struct esp_past_attention {
    const void *q; /* [heads * head_dim][columns], unscaled */
    void *y;       /* laid out as q; not q */
    esp_cache_place one;
    int64_t heads, kv_heads, head_dim, tokens, columns;
    float scale;     /* multiplies q . k */
    void *workspace; /* 64-byte aligned */
} esp_past_attention;

/* The same for one token each of several sequences: token t sees rows 0..past of places[t]. */
typedef struct esp_step_attention {
    const void *q;
    void *y;
    const esp_cache_place *places; /* [sequences], device memory */
    int64_t heads, kv_heads, head_dim, sequences, columns;
    int64_t longest; /* no place's past + 1 is more */
    /* Where the table's step_appends: what rope_append does comes along, and its angles; q is not
     * rotated yet and stays so; no operation given to the stream since its last copy or wait fills
     * rows before `past`, which may be read early. k NULL: it was done before. */
    const void *k, *v;
    const float *cosines, *sines;
    float scale;
    void *const *workspaces; /* [sequences], host memory: each sequence's own, of attend_past at its
                                capacity */
} esp_step_attention;

/* Attention within groups of tokens, each token seeing its whole group; kv_heads is heads. */
typedef struct esp_group_attention {
    const void *q, *k, *v; /* [heads * head_dim][columns] */
    void *y;               /* laid out as q; not q */
    int64_t heads, head_dim, columns;
    int64_t groups, tokens;         /* tokens of the longest group */
    int64_t pitch;                  /* columns from one group to the next */
    bool varied;                    /* not so: */
    const int32_t *starts, *counts; /* [groups], device memory: first column and tokens of each */
    int64_t read; /* y is read of a group's first so many tokens, the rest may be left; 0: of all */
    float scale;
    /* NULL, or relative positions: each group is a grid of tokens / grid_width rows, and key s of
     * query t adds to the scaled score q[t] . row_table[row(t) - row(s) + rows - 1] and q[t] .
     * column_table[column(t) - column(s) + grid_width - 1]. Not with `varied`. */
    const float *row_table;    /* [2 * rows - 1][head_dim] */
    const float *column_table; /* [2 * grid_width - 1][head_dim] */
    int64_t grid_width;
    void *workspace;
} esp_group_attention;

/* The same within square windows of images, column image * pitch + row * width + column the token
 * of a grid [height][width]: windows begin at multiples of `window`. Tokens that they lack beyond
 * the image are keys all the same, with the key and value that a product makes of zeros. Of y the
 * images' columns are written. */
typedef struct esp_window_attention {
    const void *q, *k, *v; /* [heads * head_dim][columns] */
    void *y;               /* laid out as q; not q, k or v */
    int64_t heads, head_dim, columns;
    int64_t images, pitch, height, width, window;
    const float *key_bias, *value_bias; /* [heads * head_dim]: of those products; NULL: none */
    float scale;
    const float *row_table, *column_table; /* [2 * window - 1][head_dim], as above, or NULL */
} esp_window_attention;

/* Neighbourhoods of the tokens of grids, for a convolution with zeros around. */
typedef struct esp_unfold {
    const void *x;                                         /* [features][columns] */
    void *y;                                               /* [features * side * side][columns] */
    int64_t features, columns, height, width, pitch, side; /* side is odd */
} esp_unfold;

/* Tokens of images from what a projection made of their patches. Column image * pitch + t of x gets
 * positions[:, t], plus column image * patches + t - specials of `from` where t >= specials;
 * columns of a pitch behind the tokens are left to chance. x may be from where nothing moves. */
typedef struct esp_image_tokens {
    const void *from;       /* [features][from_columns] */
    void *x;                /* [features][columns] */
    const float *positions; /* [features][pitch] */
    int64_t features, images, patches, specials, pitch, from_columns, columns;
} esp_image_tokens;

/* Pixels [images][channels][height][width], f32, to y [channels * patch * patch][columns], what a
 * convolution with stride `patch` multiplies: patch p of an image is column image * patches + p.
 * Pixels beyond the last whole patch are left out. */
typedef struct esp_patches {
    const float *pixels;
    void *y;
    int64_t images, channels, height, width, patch, columns;
} esp_patches;

typedef enum esp_pool_kind { ESP_POOL_MEAN = 0, ESP_POOL_FIRST, ESP_POOL_MOST } esp_pool_kind;

/* One vector of each group of tokens. */
typedef struct esp_pool {
    const void *x; /* [features][columns] */
    int64_t features, columns, groups;
    const int32_t *starts, *counts; /* [groups], device memory */
    esp_pool_kind kind;
    bool normalizes; /* to length 1 */
    float *y;        /* [groups][features], device memory */
} esp_pool;

/* Positions relative to the key's, of grids of tokens that begin `pitch` columns apart. Memory of
 * the host. */
typedef struct esp_relative {
    const float *q;     /* [heads * head_dim][columns] */
    const float *table; /* [2 * size - 1][head_dim]; size: height with by_row, else width */
    float *y;           /* [heads][size][columns] */
    int64_t heads, head_dim, columns, height, width, pitch;
    bool by_row;
} esp_relative;

/* One token or several of one sequence, or all of a text: what the host's back ends make the
 * attention operations of. Memory of the host. */
typedef struct esp_attention {
    const float *q; /* [heads * head_dim][stride], unscaled */
    const float *keys,
        *values; /* cache: [kv_heads][capacity][head_dim], rows 0..past+tokens-1 filled */
    float *y;    /* [heads * head_dim][stride]; not q */
    int64_t heads, kv_heads, head_dim, tokens, past, capacity;
    int64_t stride; /* of q and y, between features: >= tokens; 0: tokens */
    bool both_ways; /* every token sees all of 0..past+tokens-1, not only what came before */
    float scale;    /* multiplies q . k */
    /* NULL, or what a grid of tokens adds to the scaled scores: key s gets
     * row_bias[head][s / grid_width][t] + column_bias[head][s % grid_width][t]; both are
     * [heads][rows or columns of the grid][stride]. The keys are one grid. */
    const float *row_bias, *column_bias;
    int64_t grid_width;
    void *workspace; /* attention_workspace_bytes, 64-byte aligned */
} esp_attention;

typedef struct esp_ops {
    esp_dtype type;      /* of activations and caches */
    int step;            /* see above */
    int line;            /* columns of which a row is whole lines of memory: products whose rows
                            begin in the middle of one take up to twice as long; 0: `step` */
    int few;             /* so many columns have products that do not mind */
    int64_t widest_grid; /* rows and columns of attend_groups's at most; 0: no bound */

    /* x[:, t] = the sum of table[rows[t], :]; tables: F32/F16/BF16 row-major, of the activations'
     * type where that is not f32. */
    esp_status (*embed)(esp_device *device, void *stream, const esp_embedding *embedding);
    /* y = x / sqrt(mean over features of x^2 + eps) * weight, per token; y may be x. */
    esp_status (*rms_norm)(esp_device *device, void *stream, const void *x, const float *weight,
                           float eps, int64_t features, int64_t tokens, void *y);
    /* y = (x - mean) / sqrt(variance + eps) * weight + bias, mean and variance over the features of
     * a token; y may be x. */
    esp_status (*layer_norm)(esp_device *device, void *stream, const void *x, const float *weight,
                             const float *bias, float eps, int64_t features, int64_t tokens,
                             void *y);
    /* What layer_norm and rms_norm need of x, as one part of esp_moments; NULL: no kernel of the
     * device norms. */
    esp_status (*moments)(esp_device *device, void *stream, const void *x, int64_t features,
                          int64_t tokens, float *values);
    bool rms_apart; /* products that end an RMS norm lose more than rms_norm takes */
    /* cosines, sines: [head_dim / 2][tokens], of the f32 products of position and frequency. */
    esp_status (*rope_angles)(esp_device *device, void *stream, const float *frequencies,
                              const int32_t *positions, int64_t head_dim, int64_t tokens,
                              float *cosines, float *sines);
    esp_status (*rope_append)(esp_device *device, void *stream, const esp_rope_append *append);
    /* Workspaces depend on sizes alone, not on pointers. */
    size_t (*past_workspace_bytes)(const esp_device *device, const esp_past_attention *attention);
    esp_status (*attend_past)(esp_device *device, void *stream,
                              const esp_past_attention *attention);
    esp_status (*attend_step)(esp_device *device, void *stream,
                              const esp_step_attention *attention);
    size_t (*group_workspace_bytes)(const esp_device *device, const esp_group_attention *attention);
    esp_status (*attend_groups)(esp_device *device, void *stream,
                                const esp_group_attention *attention);
    /* Where the table can do the sizes of it (pointers are not looked at); both NULL: none. Else
     * windows are gathered and groups. */
    bool (*can_attend_windows)(const esp_device *device, const esp_window_attention *attention);
    esp_status (*attend_windows)(esp_device *device, void *stream,
                                 const esp_window_attention *attention);
    /* y = silu(gate) * up, elementwise; y may be gate. */
    esp_status (*swiglu)(esp_device *device, void *stream, const void *gate, const void *up,
                         int64_t count, void *y);
    /* y[f][t] = activation(y[f][t] + bias[f]); bias NULL: none; activation: an esp_epilogue bit, or
     * 0. For products of kernels that have no epilogue of their own (esp_kernel.bare). NULL: there
     * are none such. */
    esp_status (*finish)(esp_device *device, void *stream, const float *bias, unsigned activation,
                         int64_t features, int64_t columns, void *y);
    /* y[f][i] = x[f][index[i]], 0 where index[i] < 0; with `adds` it is added to y. y is not x. */
    esp_status (*gather_tokens)(esp_device *device, void *stream, const void *x, int64_t features,
                                int64_t tokens, const int32_t *index, int64_t count, bool adds,
                                void *y);
    /* y[(f * side + i) * side + j][t] = x[f] of the token i - side / 2 rows below and j - side / 2
     * columns right of t, 0 outside of its grid. */
    esp_status (*unfold)(esp_device *device, void *stream, const esp_unfold *unfold);
    esp_status (*place_tokens)(esp_device *device, void *stream, const esp_image_tokens *tokens);
    esp_status (*patches)(esp_device *device, void *stream, const esp_patches *patches);
    esp_status (*pool)(esp_device *device, void *stream, const esp_pool *pool);
    /* y = x in f32. */
    esp_status (*widen)(esp_device *device, void *stream, const void *x, int64_t count, float *y);
    /* best[i]: the place of the largest of rows[i][size]; of equals the first, NaN and -infinity
     * never, -1 where there is no other. */
    esp_status (*argmax)(esp_device *device, void *stream, const float *rows, int64_t count,
                         int64_t size, int32_t *best);

    /* What the host's tables are made of; NULL elsewhere. */

    /* Rotates in place. cosines, sines: [head_dim / 2][tokens]. */
    esp_status (*rope)(esp_device *device, float *x, const float *cosines, const float *sines,
                       int64_t heads, int64_t head_dim, int64_t tokens);
    /* cache[h][past + t][d] = x[h * head_dim + d][t], x [...][stride]. */
    esp_status (*cache_append)(esp_device *device, const float *x, int64_t stride, int64_t kv_heads,
                               int64_t head_dim, int64_t tokens, int64_t past, int64_t capacity,
                               float *cache);
    /* The same for tokens of different sequences: token t goes to places[t]; to its values rather
     * than its keys if `values`. */
    esp_status (*cache_scatter)(esp_device *device, const float *x, int64_t stride,
                                int64_t kv_heads, int64_t head_dim, int64_t tokens,
                                const esp_cache_place *places, bool values);
    /* y[head][k][t] = q[head, :, t] . table[p(t) - k + size - 1, :], p(t) the row or column of
     * token t in its grid. */
    esp_status (*relative_bias)(esp_device *device, const esp_relative *relative);
    /* Causal unless both_ways: token t sees cache rows 0..past+t. Softmax in f32. */
    size_t (*attention_workspace_bytes)(const esp_device *device, const esp_attention *attention);
    esp_status (*attention)(esp_device *device, const esp_attention *attention);

    bool step_appends; /* attend_step takes k and v along */
} esp_ops;

/* Operations of the host's tables made of the finer ones of the device's table; host_ops.c. */
esp_status esp_host_rope_angles(esp_device *device, void *stream, const float *frequencies,
                                const int32_t *positions, int64_t head_dim, int64_t tokens,
                                float *cosines, float *sines);
esp_status esp_host_rope_append(esp_device *device, void *stream, const esp_rope_append *append);
size_t esp_host_past_workspace(const esp_device *device, const esp_past_attention *attention);
esp_status esp_host_attend_past(esp_device *device, void *stream,
                                const esp_past_attention *attention);
esp_status esp_host_attend_step(esp_device *device, void *stream,
                                const esp_step_attention *attention);
size_t esp_host_group_workspace(const esp_device *device, const esp_group_attention *attention);
esp_status esp_host_attend_groups(esp_device *device, void *stream,
                                  const esp_group_attention *attention);
esp_status esp_host_place_tokens(esp_device *device, void *stream, const esp_image_tokens *tokens);
esp_status esp_host_patches(esp_device *device, void *stream, const esp_patches *patches);
esp_status esp_host_pool(esp_device *device, void *stream, const esp_pool *pool);
esp_status esp_host_widen(esp_device *device, void *stream, const void *x, int64_t count, float *y);
esp_status esp_host_argmax(esp_device *device, void *stream, const float *rows, int64_t count,
                           int64_t size, int32_t *best);

/* ---- measurements ---- */

/* Columns of activations of which few differ: token t of `all` is vector map[t] of `few`, both in
 * `layout`; elements are `width` bytes. */
typedef struct esp_spread {
    esp_layout layout;
    int64_t features, tokens, vectors;
    size_t width;
    const int32_t *map; /* [tokens] */
    const void *few;
    void *all;
} esp_spread;

/* The same the other way: how far Y is from what its vectors should be. */
typedef struct esp_difference {
    esp_layout layout;
    int64_t rows, tokens, vectors;
    esp_dtype dtype;
    const int32_t *map;   /* [tokens] */
    const void *few;      /* expected, of each vector */
    const double *bounds; /* [rows][vectors] allowed; NULL: none */
    const void *all;
} esp_difference;

/* On host memory. The worst |difference| over its bound: above 1, or NaN, is wrong. */
void esp_spread_host(const esp_spread *spread);
double esp_differ_host(const esp_difference *difference);

/* Times that ship with a back end for devices of one kind: of the fastest sparse kernel, and of
 * the dense one beside it. */
typedef struct esp_shipped_times {
    int64_t tokens; /* they were measured at */
    const esp_kernel *sparse, *dense;
    double sparse_us, dense_us;
} esp_shipped_times;

/* ---- back ends ---- */

struct esp_backend {
    const char *name; /* "ref", "cpu", "cuda" */
    /* The devices of this back end that the machine shows, usable or not: writes at most `capacity`
     * entries and returns how many there are. */
    int (*enumerate)(esp_context *context, esp_device_info *infos, int capacity);
    /* What opening an entry that is not usable fails with, a code; NULL: "device.unusable". An
     * entry of the back end's bare name stands for all its devices: there is none. */
    const char *(*unusable_code)(const esp_device_info *info);
    /* Fills device->state, and undoes it; both NULL where there is none. */
    esp_status (*open)(esp_device *device, esp_error *error);
    void (*close)(esp_device *device);
    /* What else times depend on, in words without '|' or line ends: instruction set, versions of
     * libraries and drivers. Name, memory and threads are added by the caller. NULL: nothing. */
    void (*identify)(const esp_device *device, char *text, size_t capacity);
    const esp_kernel *const *kernels; /* NULL-terminated, in order of preference at equal score */
    const esp_ops *ops;               /* for f32 activations; no operation in it: none */
    /* Where activations have another type than f32: which one a model of such weights runs in
     * (compute: as asked), and the operations on it. NULL: f32. */
    esp_dtype (*activation_type)(const esp_device *device, esp_compute compute,
                                 esp_dtype weight_type);
    const esp_ops *(*ops_of)(const esp_device *device, esp_dtype type);
    /* AUTO -> what this device computes fastest with for such weights. */
    esp_compute (*auto_compute)(const esp_device *device, esp_dtype weight_type);
    /* The canonical weight to what kernels read; takes over nothing. */
    esp_status (*pack)(esp_device *device, const esp_sparse *sparse, esp_packed **packed,
                       esp_error *error);
    void (*packed_free)(esp_packed *packed);
    /* The values of a dense weight, row by row. NULL: those of its canonical part. */
    const void *(*dense_rows)(const esp_packed *packed);
    /* esp_packed_create, esp_packed_compress and esp_device_prune after the checks of src/plan; all
     * NULL where device memory is the host's. options are not NULL and search is never AUTO. */
#define ESP_EXACT_WIDEST 10 /* M of the exact search, as src/prune has it */
    esp_status (*packed_create)(esp_device *device, const esp_pattern *pattern, esp_dtype dtype,
                                int64_t out_features, int64_t in_features, esp_packed **packed,
                                esp_error *error);
    esp_status (*compress)(esp_packed *packed, const esp_device_dense *dense,
                           const esp_device_mask *mask, void *stream, esp_error *error);
    esp_status (*prune)(esp_device *device, const esp_device_dense *dense,
                        const esp_pattern *pattern, const esp_mask_options *options,
                        const esp_device_mask *mask, void *stream, esp_error *error);
    void *(*alloc)(esp_device *device, size_t bytes); /* 64-byte aligned device memory */
    void (*release)(esp_device *device, void *memory);
    /* Copies between host and device memory, and waiting for all work given to the device; NULL
     * where device memory is the host's and work is done when its call returns. */
    esp_status (*upload)(esp_device *device, void *to, const void *from, size_t bytes,
                         esp_error *error);
    esp_status (*download)(esp_device *device, void *to, const void *from, size_t bytes,
                           esp_error *error);
    esp_status (*wait)(esp_device *device, esp_error *error);
    /* Within device memory, like the two above; NULL: memcpy. */
    esp_status (*copy)(esp_device *device, void *to, const void *from, size_t bytes,
                       esp_error *error);
    /* Every byte of device memory; NULL: memset. */
    esp_status (*fill)(esp_device *device, void *memory, int byte, size_t bytes, esp_error *error);
    /* Work in order: a stream of the device. All NULL where device memory is the host's and work is
     * done when its call returns. `staging` is host memory that copies are fast from and to. send
     * returns at once: what it copies must stay until the stream has been waited for. receive and
     * settle wait for the stream. */
    esp_status (*stream_open)(esp_device *device, void **stream, esp_error *error);
    void (*stream_close)(esp_device *device, void *stream);
    void *(*staging_alloc)(esp_device *device, size_t bytes);
    void (*staging_release)(esp_device *device, void *memory);
    esp_status (*send)(esp_device *device, void *stream, void *to, const void *from, size_t bytes,
                       esp_error *error);
    esp_status (*receive)(esp_device *device, void *stream, void *to, const void *from,
                          size_t bytes, esp_error *error);
    esp_status (*settle)(esp_device *device, void *stream, esp_error *error);
    /* What is given to the stream between the two is kept, not run, as a graph; replay gives it to
     * the stream again. NULL: work cannot be kept. keep_end with graph NULL drops it. */
    esp_status (*keep_begin)(esp_device *device, void *stream, esp_error *error);
    esp_status (*keep_end)(esp_device *device, void *stream, void **graph, esp_error *error);
    esp_status (*keep_replay)(esp_device *device, void *stream, void *graph, esp_error *error);
    void (*keep_free)(esp_device *device, void *graph);
    /* Bytes of memory that are free, for messages; NULL: not known. */
    size_t (*memory_free)(const esp_device *device);
    /* Recorded work, see esp_record; all NULL where work is done when its call returns and the
     * host's clock times it. */
    esp_status (*record)(esp_device *device, esp_work_fn work, void *user, void **state,
                         esp_error *error);
    esp_status (*replay)(esp_device *device, void *state, int repeats, double *us,
                         esp_error *error);
    void (*recording_free)(esp_device *device, void *state);
    /* Operands of a measurement and its results, in device memory; NULL: by the host. */
    esp_status (*spread)(esp_device *device, const esp_spread *spread, esp_error *error);
    esp_status (*differ)(esp_device *device, const esp_difference *difference, double *worst,
                         esp_error *error);
    /* What was measured on such a device near the problem; false: nothing. NULL: never. */
    bool (*shipped_times)(const esp_device *device, const esp_matmul_problem *problem,
                          esp_shipped_times *times);
    /* The algebra of calibration on the device; NULL: the host does it. */
    esp_status (*algebra_open)(esp_device *device, esp_device_algebra **algebra, esp_error *error);
};

#endif
