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

/* What a packed weight holds, as bits. A dense weight has one form, which is sparse and dense. */
typedef enum esp_form {
    ESP_FORM_SPARSE = 1, /* the form of its pattern */
    ESP_FORM_DENSE = 2,  /* every entry, zeros too: what dense kernels read */
    ESP_FORM_SPREAD = 4  /* V:2:5 as 2:4 over all columns, half as large again as the form of its
                            pattern: kernels of a GPU that take many tokens. Other patterns and
                            devices have none, and the bit asks for nothing there */
} esp_form;

typedef struct esp_pack_options {
    unsigned forms; /* esp_form bits; 0, or none that there is: ESP_FORM_SPARSE */
} esp_pack_options;

/* Puts a weight on the device in the form that its kernels read. The sparse object is copied and
 * may be freed afterwards. */
ESP_MUST_CHECK ESP_API esp_status esp_pack(esp_device *device, const esp_sparse *sparse,
                                           esp_packed **packed, esp_error *error);
/* The same in the forms asked for; options NULL means all defaults. "pack.bad_forms" for unknown
 * bits. Needs memory for the dense weight meanwhile where a dense form is made. */
ESP_MUST_CHECK ESP_API esp_status esp_pack_with(esp_device *device, const esp_sparse *sparse,
                                                const esp_pack_options *options,
                                                esp_packed **packed, esp_error *error);
ESP_API void esp_packed_free(esp_packed *packed);
/* Bytes that the weight holds resident on the device, all forms together. */
ESP_API size_t esp_packed_bytes(const esp_packed *packed);
/* esp_form bits; ESP_FORM_SPARSE and _DENSE for a weight of pattern dense. */
ESP_API unsigned esp_packed_forms(const esp_packed *packed);

typedef struct esp_plan_options {
    const char *kernel_glob; /* NULL, or a glob over kernel names that forces the choice */
    unsigned forms;          /* forms that the weight has or may have; 0: ESP_FORM_SPARSE */
    bool require_sparse;     /* an error where a sparse weight would run dense */
    bool ignore_tuning;      /* predicted times only */
} esp_plan_options;
#define ESP_PLAN_OPTIONS_INIT                                                                      \
    {                                                                                              \
        NULL, 0, false, false                                                                      \
    }

/* Chooses a kernel. kernel_glob NULL or a glob over kernel names that forces the choice
 * (ESP_UNSUPPORTED "plan.no_kernel" lists each candidate's reason). Plans are immutable and may be
 * shared by threads. */
ESP_MUST_CHECK ESP_API esp_status esp_plan_create(esp_device *device,
                                                  const esp_matmul_problem *problem,
                                                  const char *kernel_glob, esp_plan **plan,
                                                  esp_error *error);
/* The same with options (NULL: all defaults). Of the candidates that the forms allow the fastest
 * wins: by measured time where the context's tuning table has this problem (see tuning.h), else by
 * predicted time. With ESP_FORM_DENSE among the forms, dense kernels are candidates for a sparse
 * pattern: at equal time sparse wins. A dense product lets a non-finite activation reach every
 * output (0 * Inf is NaN), also from columns at which the sparse weight stores nothing.
 * ESP_UNSUPPORTED "plan.dense_is_faster", naming both times, when require_sparse forbids the
 * fastest; "plan.no_sparse_kernel" when only dense kernels can run. */
ESP_MUST_CHECK ESP_API esp_status esp_plan_create_with(esp_device *device,
                                                       const esp_matmul_problem *problem,
                                                       const esp_plan_options *options,
                                                       esp_plan **plan, esp_error *error);
ESP_API void esp_plan_free(esp_plan *plan);
ESP_API const char *esp_plan_kernel(const esp_plan *plan);
/* A sparse weight is multiplied as if it were dense: by a dense kernel on its dense form, or by a
 * kernel that expands the compressed form as it goes. */
ESP_API bool esp_plan_runs_dense(const esp_plan *plan);
/* The form of the weight that the kernel reads: one esp_form bit. */
ESP_API unsigned esp_plan_form(const esp_plan *plan);
/* What the problem's compute type became: never AUTO. */
ESP_API esp_compute esp_plan_compute(const esp_plan *plan);
/* Scratch that run needs; the caller's, 64-byte aligned; 0 is possible. */
ESP_API size_t esp_plan_workspace_bytes(const esp_plan *plan);

/* Why this kernel: the fastest sparse and the fastest dense candidate. */
typedef struct esp_plan_reason {
    double us;                                /* of the chosen kernel */
    int64_t tuned_tokens;                     /* measured at so many tokens; 0: predicted */
    const char *sparse_kernel, *dense_kernel; /* NULL: none can run */
    double sparse_us, dense_us;               /* both measured, or both predicted */
    bool
        shipped; /* measured, but on another device of the kind: times that came with the library */
} esp_plan_reason;
ESP_API esp_plan_reason esp_plan_get_reason(const esp_plan *plan);

/* One kernel of the device, as the choice saw it. */
typedef struct esp_plan_candidate {
    const char *kernel;
    const char *why_not; /* NULL: it can run; else the reason (static text) */
    bool runs_dense;     /* see esp_plan_runs_dense */
    bool chosen;
    double predicted_us;  /* 0 when it cannot run */
    double tuned_us;      /* measured; 0: not */
    int64_t tuned_tokens; /* at so many tokens */
} esp_plan_candidate;
/* Every kernel of the device in the catalogue's order: writes at most `capacity` entries and says
 * in *count how many there are. No candidate is chosen when none can run, or when require_sparse
 * forbids the fastest. Fails for an invalid problem only. */
ESP_MUST_CHECK ESP_API esp_status esp_plan_explain(esp_device *device,
                                                   const esp_matmul_problem *problem,
                                                   const esp_plan_options *options,
                                                   esp_plan_candidate *candidates, int capacity,
                                                   int *count, esp_error *error);

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
 * ESP_BAD_ARGUMENT when weight and plan do not belong together: "matmul.bad_weight", or
 * "matmul.missing_form" when the weight lacks the form that the plan reads. */
ESP_MUST_CHECK ESP_API esp_status esp_matmul_run(const esp_plan *plan, const esp_matmul_args *args,
                                                 esp_error *error);

#ifdef __cplusplus
}
#endif
#endif
