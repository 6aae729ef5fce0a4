/* Dense products through cuBLASLt, found at run time. The library's choice of algorithm is asked
 * for once per shape, strides and alignment, and kept by the device: later calls only look it up.
 * What cuBLASLt cannot do while it writes Y (our epilogues, f16 in and bf16 out) follows as a
 * kernel over f32 sums. */
#include <cublasLt.h>
#include <dlfcn.h>
#include <stdio.h>

#include "cuda/room.h"

#define SCRATCH ((size_t)32 << 20) /* what its fastest algorithms may ask for on Hopper */
#define KEPT_CHOICES 256
/* Parts of a sum that several blocks share must meet in f32, not in Y's 16 bits. */
#define F32_REDUCTIONS                                                                             \
    ((uint32_t)CUBLASLT_REDUCTION_SCHEME_NONE | (uint32_t)CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
#define LIBRARY "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR)

/* Everything that a choice depends on. No padding: compared by bytes. */
typedef struct choice_key {
    int64_t m, n, k, lda, ldb, ldc;
    uint32_t types; /* of A and B, C */
    uint32_t turned_a, turned_b;
    uint32_t alignment_a, alignment_b, alignment_c;
} choice_key;

typedef struct choice {
    choice_key key;
    cublasLtMatmulAlgo_t algorithm;
} choice;

struct cuda_cublaslt {
    void *library;
    cublasLtHandle_t handle;
    int kept, oldest;
    choice choices[KEPT_CHOICES];
    cublasStatus_t (*create)(cublasLtHandle_t *);
    cublasStatus_t (*destroy)(cublasLtHandle_t);
    cublasStatus_t (*layout_init)(cublasLtMatrixLayout_t, size_t, cudaDataType, uint64_t, uint64_t,
                                  int64_t);
    cublasStatus_t (*product_init)(cublasLtMatmulDesc_t, size_t, cublasComputeType_t,
                                   cudaDataType_t);
    cublasStatus_t (*product_set)(cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t,
                                  const void *, size_t);
    cublasStatus_t (*preference_init)(cublasLtMatmulPreference_t, size_t);
    cublasStatus_t (*preference_set)(cublasLtMatmulPreference_t,
                                     cublasLtMatmulPreferenceAttributes_t, const void *, size_t);
    cublasStatus_t (*choose)(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                             cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                             cublasLtMatmulPreference_t, int, cublasLtMatmulHeuristicResult_t[],
                             int *);
    cublasStatus_t (*run)(cublasLtHandle_t, cublasLtMatmulDesc_t, const void *, const void *,
                          cublasLtMatrixLayout_t, const void *, cublasLtMatrixLayout_t,
                          const void *, const void *, cublasLtMatrixLayout_t, void *,
                          cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t *, void *, size_t,
                          cudaStream_t);
};

/* ---- finding it ---- */

/* ISO C has no conversion from data to function pointers; POSIX promises that this one works. */
static bool find(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);
    memcpy(function, &symbol, sizeof symbol);
    return symbol != NULL;
}

static bool find_all(cuda_cublaslt *lt)
{
    void *library = lt->library;
    return find(library, "cublasLtCreate", &lt->create) &&
           find(library, "cublasLtDestroy", &lt->destroy) &&
           find(library, "cublasLtMatrixLayoutInit_internal", &lt->layout_init) &&
           find(library, "cublasLtMatmulDescInit_internal", &lt->product_init) &&
           find(library, "cublasLtMatmulDescSetAttribute", &lt->product_set) &&
           find(library, "cublasLtMatmulPreferenceInit_internal", &lt->preference_init) &&
           find(library, "cublasLtMatmulPreferenceSetAttribute", &lt->preference_set) &&
           find(library, "cublasLtMatmulAlgoGetHeuristic", &lt->choose) &&
           find(library, "cublasLtMatmul", &lt->run);
}

static bool open_library(cuda_cublaslt *lt)
{
    static const char *const names[] = {LIBRARY, "/usr/local/cuda/lib64/" LIBRARY};
    for (int i = 0; i < ESP_COUNT(names) && lt->library == NULL; i++) {
        lt->library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    }
    if (lt->library == NULL) {
        return false;
    }
    if (find_all(lt) && lt->create(&lt->handle) == CUBLAS_STATUS_SUCCESS) {
        return true;
    }
    dlclose(lt->library);
    return false;
}

cuda_cublaslt *cuda_cublaslt_of(const esp_device *device)
{
    cuda_state *state = device->state;
    pthread_mutex_lock(&state->lock);
    int before;
    if (!state->cublaslt_asked && gpu_enter(state->index, &before) == 0) {
        state->cublaslt_asked = true;
        cuda_cublaslt *lt = esp_alloc_zero(device->context, sizeof *lt);
        if (lt != NULL && !open_library(lt)) {
            esp_release(device->context, lt);
            lt = NULL;
        }
        state->cublaslt = lt;
        gpu_leave(before);
    }
    pthread_mutex_unlock(&state->lock);
    return state->cublaslt;
}

void cuda_cublaslt_close(cuda_cublaslt *lt)
{
    lt->destroy(lt->handle);
    dlclose(lt->library);
}

void cuda_cublaslt_describe(const esp_device *device, char *text, size_t capacity)
{
    const cuda_cublaslt *lt = cuda_cublaslt_of(device);
    size_t (*version)(void);
    if (lt == NULL) {
        snprintf(text, capacity, "no cuBLASLt");
    } else if (find(lt->library, "cublasLtGetVersion", &version)) {
        size_t number = version(); /* major * 10000 + minor * 100 + patch */
        snprintf(text, capacity, "cuBLASLt %zu.%zu.%zu", number / 10000, number / 100 % 100,
                 number % 100);
    } else {
        snprintf(text, capacity, "cuBLASLt");
    }
}

/* ---- the product in its terms ---- */

/* cuBLASLt stores by columns. C [m][n] = A B; where Y lies feature-major C is its transpose,
 * [tokens][out], A is X and B is W; where it lies token-major C is [out][tokens], A is W and B is
 * X. */
typedef struct dense_product {
    choice_key key;
    const void *a, *b, *c; /* c: what is added, NULL for nothing */
    void *to;
    cudaDataType in_type, out_type;
} dense_product;

static cudaDataType type_of(esp_dtype dtype)
{
    return dtype == ESP_F16 ? CUDA_R_16F : dtype == ESP_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

/* The largest power of two, up to 256, that divides the address. */
static uint32_t alignment_of(const void *pointer)
{
    uintptr_t address = (uintptr_t)pointer | 256;
    return (uint32_t)(address & (~address + 1));
}

/* It writes Y itself, but for epilogues and for a type that it does not write. */
bool cuda_dense_is_direct(const esp_matmul_problem *problem)
{
    return (problem->epilogue & ~(unsigned)ESP_EP_RESIDUAL) == 0 &&
           (problem->out_type == problem->act_type || problem->out_type == ESP_F32);
}

double cuda_dense_finish_us(const esp_device *device, const esp_matmul_problem *problem)
{
    double outputs = (double)problem->out_features * (double)problem->tokens;
    double width = (double)esp_dtype_bytes(problem->out_type);
    return cuda_dense_is_direct(problem) ? 0 : 3 + cuda_memory_us(device, (8 + width) * outputs);
}

static dense_product describe(const esp_matmul_call *call, void *sums)
{
    const esp_matmul_problem *problem = call->problem;
    const esp_matmul_args *args = call->args;
    const cuda_weight *weight = args->weight->state;
    bool x_by_feature = problem->x_layout == ESP_FEATURE_MAJOR;
    bool y_by_feature = problem->y_layout == ESP_FEATURE_MAJOR;
    bool direct = cuda_dense_is_direct(problem);
    int64_t out = problem->out_features, in = problem->in_features, tokens = problem->tokens;
    int64_t to_stride = direct ? args->y_stride : y_by_feature ? tokens : out;
    dense_product made = {.in_type = type_of(problem->act_type),
                          .out_type = direct ? type_of(problem->out_type) : CUDA_R_32F,
                          .to = direct ? args->y : sums};
    if (direct && (problem->epilogue & ESP_EP_RESIDUAL) != 0) {
        made.c = args->residual;
    }
    made.a = y_by_feature ? args->x : weight->values;
    made.b = y_by_feature ? weight->values : args->x;
    made.key = (choice_key){.m = y_by_feature ? tokens : out,
                            .n = y_by_feature ? out : tokens,
                            .k = in,
                            .lda = y_by_feature ? args->x_stride : in,
                            .ldb = y_by_feature ? in : args->x_stride,
                            .ldc = to_stride,
                            .types = (uint32_t)made.in_type << 8 | (uint32_t)made.out_type,
                            .turned_a = y_by_feature ? !x_by_feature : 1,
                            .turned_b = y_by_feature ? 0 : x_by_feature,
                            .alignment_a = alignment_of(made.a),
                            .alignment_b = alignment_of(made.b),
                            .alignment_c = alignment_of(made.to)};
    if (made.c != NULL) {
        made.key.alignment_c = ESP_MIN(made.key.alignment_c, alignment_of(made.c));
    }
    return made;
}

/* Descriptors of one call; on the stack, nothing is allocated. */
typedef struct descriptors {
    cublasLtMatmulDescOpaque_t product;
    cublasLtMatrixLayoutOpaque_t a, b, c;
} descriptors;

static bool make_descriptors(const cuda_cublaslt *lt, const dense_product *product,
                             descriptors *made)
{
    const choice_key *key = &product->key;
    cublasOperation_t op_a = key->turned_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t op_b = key->turned_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    uint64_t m = (uint64_t)key->m, n = (uint64_t)key->n, k = (uint64_t)key->k;
    return lt->product_init(&made->product, sizeof made->product, CUBLAS_COMPUTE_32F, CUDA_R_32F) ==
               CUBLAS_STATUS_SUCCESS &&
           lt->product_set(&made->product, CUBLASLT_MATMUL_DESC_TRANSA, &op_a, sizeof op_a) ==
               CUBLAS_STATUS_SUCCESS &&
           lt->product_set(&made->product, CUBLASLT_MATMUL_DESC_TRANSB, &op_b, sizeof op_b) ==
               CUBLAS_STATUS_SUCCESS &&
           lt->layout_init(&made->a, sizeof made->a, product->in_type, key->turned_a ? k : m,
                           key->turned_a ? m : k, key->lda) == CUBLAS_STATUS_SUCCESS &&
           lt->layout_init(&made->b, sizeof made->b, product->in_type, key->turned_b ? n : k,
                           key->turned_b ? k : n, key->ldb) == CUBLAS_STATUS_SUCCESS &&
           lt->layout_init(&made->c, sizeof made->c, product->out_type, m, n, key->ldc) ==
               CUBLAS_STATUS_SUCCESS;
}

/* ---- choosing an algorithm ---- */

static bool ask(const cuda_cublaslt *lt, const choice_key *key, descriptors *made,
                cublasLtMatmulAlgo_t *algorithm)
{
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasLtMatmulHeuristicResult_t found;
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        uint32_t value;
    } wanted[] = {{CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, F32_REDUCTIONS},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key->alignment_a},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key->alignment_b},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key->alignment_c},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key->alignment_c}};
    size_t scratch = SCRATCH;
    if (lt->preference_init(&preference, sizeof preference) != CUBLAS_STATUS_SUCCESS ||
        lt->preference_set(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &scratch,
                           sizeof scratch) != CUBLAS_STATUS_SUCCESS) {
        return false;
    }
    for (int i = 0; i < ESP_COUNT(wanted); i++) {
        if (lt->preference_set(&preference, wanted[i].name, &wanted[i].value,
                               sizeof wanted[i].value) != CUBLAS_STATUS_SUCCESS) {
            return false;
        }
    }
    int count = 0;
    bool asked = lt->choose(lt->handle, &made->product, &made->a, &made->b, &made->c, &made->c,
                            &preference, 1, &found, &count) == CUBLAS_STATUS_SUCCESS;
    *algorithm = found.algo;
    return asked && count > 0 && found.state == CUBLAS_STATUS_SUCCESS;
}

static bool choose(cuda_state *state, const choice_key *key, descriptors *made,
                   cublasLtMatmulAlgo_t *algorithm)
{
    cuda_cublaslt *lt = state->cublaslt;
    bool found = false;
    pthread_mutex_lock(&state->lock);
    for (int i = 0; i < lt->kept && !found; i++) {
        if (memcmp(&lt->choices[i].key, key, sizeof *key) == 0) {
            *algorithm = lt->choices[i].algorithm;
            found = true;
        }
    }
    if (!found && ask(lt, key, made, algorithm)) {
        found = true;
        int at = lt->kept < KEPT_CHOICES ? lt->kept++ : lt->oldest++ % KEPT_CHOICES;
        lt->choices[at] = (choice){*key, *algorithm};
    }
    pthread_mutex_unlock(&state->lock);
    return found;
}

/* ---- the kernel ---- */

static esp_status run_library(const esp_matmul_call *call, const dense_product *product,
                              void *scratch, esp_error *error)
{
    cuda_state *state = call->device->state;
    const cuda_cublaslt *lt = state->cublaslt;
    const float one = 1, added = product->c != NULL ? 1.0f : 0.0f;
    const void *c = product->c != NULL ? product->c : product->to;
    descriptors made;
    cublasLtMatmulAlgo_t algorithm;
    if (!make_descriptors(lt, product, &made) || !choose(state, &product->key, &made, &algorithm)) {
        return esp_fail(error, ESP_UNSUPPORTED, "cublaslt.no_algorithm",
                        "device '%s': cuBLASLt has no algorithm for this product",
                        call->device->name);
    }
    cublasStatus_t status =
        lt->run(lt->handle, &made.product, &one, product->a, &made.a, product->b, &made.b, &added,
                c, &made.c, product->to, &made.c, &algorithm, scratch, SCRATCH, call->args->stream);
    if (status != CUBLAS_STATUS_SUCCESS) {
        return esp_fail(error, ESP_FAILED, "cublaslt.failed",
                        "device '%s': cuBLASLt's product failed with status %d", call->device->name,
                        (int)status);
    }
    return ESP_OK;
}

static esp_status launch(const esp_matmul_call *call, esp_error *error)
{
    const cuda_state *state = call->device->state;
    const esp_matmul_problem *problem = call->problem;
    ESP_TRY(cuda_check_operands(call, error));
    char *scratch = (char *)cuda_round_up((size_t)(uintptr_t)call->args->workspace);
    void *sums = scratch + SCRATCH;
    int before;
    ESP_TRY(cuda_check(gpu_enter(state->index, &before), call->device, "entering it", error));
    dense_product product = describe(call, sums);
    esp_status status = run_library(call, &product, scratch, error);
    if (status == ESP_OK && !cuda_dense_is_direct(problem)) {
        gpu_epilogue epilogue = cuda_epilogue(call, 0, problem->tokens);
        int failed = gpu_finish(sums, problem->y_layout == ESP_TOKEN_MAJOR, problem->out_features,
                                &epilogue, call->args->stream);
        status = cuda_check(failed, call->device, "the epilogue", error);
    }
    gpu_leave(before);
    return status;
}

static const char *why_not(const esp_kernel *kernel, const esp_device *device,
                           const esp_matmul_problem *problem)
{
    const esp_dtype *type = kernel->variant;
    if (problem->pattern.kind != ESP_PATTERN_DENSE) {
        return "it reads dense weights only";
    }
    const char *why = cuda_why_not(problem, *type);
    if (why != NULL) {
        return why;
    }
    return cuda_cublaslt_of(device) != NULL ? NULL
                                            : "cuBLASLt (" LIBRARY
                                              ") was not found on this machine";
}

static size_t workspace_bytes(const esp_kernel *kernel, const esp_device *device,
                              const esp_matmul_problem *problem)
{
    (void)kernel, (void)device;
    size_t sums = (size_t)problem->out_features * (size_t)problem->tokens * sizeof(float);
    return 256 + SCRATCH + (cuda_dense_is_direct(problem) ? 0 : sums);
}

/* Fitted to 48 times of an H100, 128 to 51200 tokens of 384 to 4096 features: 7 % off, root mean
 * square. A tile goes through all input features, and what it reads and writes is hidden in part.
 */
static double score_us(const esp_kernel *kernel, const esp_device *device,
                       const esp_matmul_problem *problem)
{
    (void)kernel;
    double out = (double)problem->out_features, in = (double)problem->in_features;
    double tokens = (double)problem->tokens, width = (double)esp_dtype_bytes(problem->act_type);
    double outputs = out * tokens, per_us = problem->act_type == ESP_F32 ? 40e6 : 936e6;
    double adds = (problem->epilogue & ESP_EP_RESIDUAL) != 0 ? outputs : 0;
    double memory_us = cuda_memory_us(device, width * (out * in + in * tokens + outputs + adds));
    double tiles_us = ESP_MAX(1.3e-3 * in, 2 * outputs * in / per_us);
    double launch_us = problem->tokens > GPU_FEW_TOKENS ? 2.7 : 4.5; /* weights come from memory */
    return launch_us + ESP_MAX(tiles_us + 0.6 * memory_us, memory_us) +
           cuda_dense_finish_us(device, problem);
}

#define RECORD(short_name, type)                                                                   \
    {                                                                                              \
        .name = "matmul_dense_" short_name "_" short_name "__cuda_cublaslt", .device = "cuda",     \
        .format = "dense", .level = "cublaslt", .idea = "cuBLASLt's first choice, f32 sums",       \
        .why_not = why_not, .workspace_bytes = workspace_bytes, .score_us = score_us,              \
        .launch = launch, .bare = true, .variant = &(const esp_dtype)                              \
        {                                                                                          \
            type                                                                                   \
        }                                                                                          \
    }

const esp_kernel cuda_dense_kernels[] = {RECORD("f16", ESP_F16), RECORD("bf16", ESP_BF16),
                                         RECORD("f32", ESP_F32)};
