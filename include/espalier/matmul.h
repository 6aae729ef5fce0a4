/* matmul.h - one product: describe -> compress -> pack -> plan -> run.
 *
 * Y = epilogue(W X), W [out][in] sparse or dense, X feature-major [in][tokens] or token-major
 * [tokens][in], Y likewise. Accumulation is always f32. */
#ifndef ESPALIER_MATMUL_H
#define ESPALIER_MATMUL_H

#include <espalier/device.h>
#include <espalier/sparse.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum esp_layout {
    ESP_FEATURE_MAJOR = 0, /* [features][tokens] */
    ESP_TOKEN_MAJOR        /* [tokens][features] */
} esp_layout;

typedef enum esp_compute {
    ESP_COMPUTE_AUTO = 0, /* the fastest that the weights' dtype and the chip support */
    ESP_COMPUTE_F32,      /* weights widened exactly, everything in f32 */
    ESP_COMPUTE_BF16      /* both inputs of the product rounded to bf16, accumulated in f32 */
} esp_compute;
ESP_API const char *esp_compute_name(esp_compute compute);

/* Bits of the epilogue, applied in this order: scale, bias, one activation, residual. */
typedef enum esp_epilogue {
    ESP_EP_SCALE = 1 << 0, /* times scale[out] */
    ESP_EP_BIAS = 1 << 1,  /* plus bias[out] */
    ESP_EP_RELU = 1 << 2,
    ESP_EP_GELU = 1 << 3, /* erf */
    ESP_EP_GELU_TANH = 1 << 4,
    ESP_EP_SILU = 1 << 5,
    ESP_EP_SWIGLU = 1 << 6,  /* rows 2i and 2i+1 are gate and up: out/2 rows of silu(gate) * up */
    ESP_EP_RESIDUAL = 1 << 7 /* plus residual, laid out as Y */
} esp_epilogue;

/* What a product is; the text form names it in bench, checker, logs and tuning files:
 * matmul/PATTERN/WTYPE/OUTxINxTOKENS[/x:tok][/y:tok][/a:TYPE][/o:TYPE][/c:COMPUTE][/ep:bias+silu]
 */
typedef struct esp_matmul_problem {
    esp_pattern pattern;
    esp_dtype weight_type; /* F32, F16, BF16 */
    esp_dtype act_type;    /* of X */
    esp_dtype out_type;    /* of Y and residual */
    esp_compute compute;
    int64_t out_features, in_features, tokens;
    esp_layout x_layout, y_layout;
    unsigned epilogue; /* esp_epilogue bits */
} esp_matmul_problem;

#define ESP_PROBLEM_TEXT_MAX 192
ESP_MUST_CHECK ESP_API esp_status esp_matmul_problem_parse(const char *text,
                                                           esp_matmul_problem *problem,
                                                           esp_error *error);
ESP_API void esp_matmul_problem_print(const esp_matmul_problem *problem,
                                      char text[ESP_PROBLEM_TEXT_MAX]);

/* ---- the catalogue ---- */

typedef struct esp_kernel_info {
    const char *name;      /* e.g. "matmul_panel_bf16_f32__cpu_avx512" */
    const char *device;    /* "ref", "cpu", "cuda" */
    const char *operation; /* "matmul" */
    const char *format;    /* "dense", "nm", "panel" */
    const char *level;     /* instruction set or architecture that it needs */
    const char *idea;      /* one line */
} esp_kernel_info;
/* Kernels compiled into this library, a fixed order. */
ESP_API int esp_kernel_count(void);
ESP_API esp_kernel_info esp_kernel_get(int index);
/* NULL when kernel `index` can run the problem on the device, else the reason (static text). */
ESP_API const char *esp_kernel_why_not(int index, const esp_device *device,
                                       const esp_matmul_problem *problem);

/* ---- weights on a device, and plans ---- */

typedef struct esp_packed esp_packed;
typedef struct esp_plan esp_plan;

/* Puts a weight on the device in the form that its kernels read. The sparse object is copied and
 * may be freed afterwards. */
ESP_MUST_CHECK ESP_API esp_status esp_pack(esp_device *device, const esp_sparse *sparse,
                                           esp_packed **packed, esp_error *error);
ESP_API void esp_packed_free(esp_packed *packed);
/* Bytes that the weight holds resident on the device. */
ESP_API size_t esp_packed_bytes(const esp_packed *packed);

/* Chooses a kernel by score. kernel_glob NULL or a glob over kernel names that forces the choice
 * (ESP_UNSUPPORTED "plan.no_kernel" lists each candidate's reason). Plans are immutable and may be
 * shared by threads. */
ESP_MUST_CHECK ESP_API esp_status esp_plan_create(esp_device *device,
                                                  const esp_matmul_problem *problem,
                                                  const char *kernel_glob, esp_plan **plan,
                                                  esp_error *error);
ESP_API void esp_plan_free(esp_plan *plan);
ESP_API const char *esp_plan_kernel(const esp_plan *plan);
/* What the problem's compute type became: never AUTO. */
ESP_API esp_compute esp_plan_compute(const esp_plan *plan);
/* Scratch that run needs; the caller's, 64-byte aligned; 0 is possible. */
ESP_API size_t esp_plan_workspace_bytes(const esp_plan *plan);

/* Operands of one run; all on the plan's device. Strides are in elements between rows of the stored
 * layout (feature-major: between features); 0 means tight. */
typedef struct esp_matmul_args {
    const esp_packed *weight;
    const void *x;
    int64_t x_stride;
    void *y;
    int64_t y_stride;
    const float *scale;   /* [out] if ESP_EP_SCALE */
    const float *bias;    /* [out] if ESP_EP_BIAS */
    const void *residual; /* as Y, y_stride, if ESP_EP_RESIDUAL; may alias y */
    void *workspace;
    void *stream; /* GPU: the cudaStream_t that the work is given to, NULL the default one; else
                     unused */
} esp_matmul_args;

/* Allocates nothing. On a GPU it returns before the work is done, and may be captured in a graph.
 * ESP_BAD_ARGUMENT when weight and plan do not belong together. */
ESP_MUST_CHECK ESP_API esp_status esp_matmul_run(const esp_plan *plan, const esp_matmul_args *args,
                                                 esp_error *error);

#ifdef __cplusplus
}
#endif
#endif
