/* Dense products of cuBLAS and cuBLASLt on the same numbers. cuBLASLt's first choice is often not
 * its best: the algorithms that it lists are timed and the fastest is the rival. */
#include <cublasLt.h>
#include <cublas_v2.h>
#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gpu.h"
#include "gpu_symbol.h"

#define LISTED 24
#define TRIAL_RUNS 3
#define SCRATCH ((size_t)64 << 20)
#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
#define VERSION TEXT(CUBLAS_VER_MAJOR)

struct gpu_blas {
    esp_device *device;
    void *blas_library, *lt_library;
    cublasHandle_t handle;
    cublasLtHandle_t lt;
    void *scratch;
    __typeof__(cublasCreate_v2) *create;
    __typeof__(cublasDestroy_v2) *destroy;
    __typeof__(cublasSetStream_v2) *set_stream;
    __typeof__(cublasSetWorkspace_v2) *set_workspace;
    __typeof__(cublasGemmEx) *gemm;
    __typeof__(cublasLtCreate) *lt_create;
    __typeof__(cublasLtDestroy) *lt_destroy;
    __typeof__(cublasLtMatmulDescCreate) *product_create;
    __typeof__(cublasLtMatmulDescDestroy) *product_destroy;
    __typeof__(cublasLtMatmulDescSetAttribute) *product_set;
    __typeof__(cublasLtMatrixLayoutCreate) *layout_create;
    __typeof__(cublasLtMatrixLayoutDestroy) *layout_destroy;
    __typeof__(cublasLtMatmulPreferenceCreate) *preference_create;
    __typeof__(cublasLtMatmulPreferenceDestroy) *preference_destroy;
    __typeof__(cublasLtMatmulPreferenceSetAttribute) *preference_set;
    __typeof__(cublasLtMatmulAlgoGetHeuristic) *choose;
    __typeof__(cublasLtMatmul) *run;
};

/* The dense weight on the device, several times: shared by the rivals of a group. */
typedef struct dense_weights {
    esp_device *device;
    void **copies;
    int count, users;
} dense_weights;

typedef struct blas_rival {
    gpu_blas *blas;
    gpu_shape shape;
    dense_weights *weights;
    bool by_token, listed;
    int next; /* of the copies */
    recorded runs;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;
} blas_rival;

/* ---- the libraries ---- */

static void *open_one(const char *name)
{
    char path[160];
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    snprintf(path, sizeof path, "/usr/local/cuda/lib64/%s", name);
    return library != NULL ? library : dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

static bool find_all(gpu_blas *blas)
{
    void *dense = blas->blas_library, *lt = blas->lt_library;
    return gpu_symbol(dense, "cublasCreate_v2", &blas->create) &&
           gpu_symbol(dense, "cublasDestroy_v2", &blas->destroy) &&
           gpu_symbol(dense, "cublasSetStream_v2", &blas->set_stream) &&
           gpu_symbol(dense, "cublasSetWorkspace_v2", &blas->set_workspace) &&
           gpu_symbol(dense, "cublasGemmEx", &blas->gemm) &&
           gpu_symbol(lt, "cublasLtCreate", &blas->lt_create) &&
           gpu_symbol(lt, "cublasLtDestroy", &blas->lt_destroy) &&
           gpu_symbol(lt, "cublasLtMatmulDescCreate", &blas->product_create) &&
           gpu_symbol(lt, "cublasLtMatmulDescDestroy", &blas->product_destroy) &&
           gpu_symbol(lt, "cublasLtMatmulDescSetAttribute", &blas->product_set) &&
           gpu_symbol(lt, "cublasLtMatrixLayoutCreate", &blas->layout_create) &&
           gpu_symbol(lt, "cublasLtMatrixLayoutDestroy", &blas->layout_destroy) &&
           gpu_symbol(lt, "cublasLtMatmulPreferenceCreate", &blas->preference_create) &&
           gpu_symbol(lt, "cublasLtMatmulPreferenceDestroy", &blas->preference_destroy) &&
           gpu_symbol(lt, "cublasLtMatmulPreferenceSetAttribute", &blas->preference_set) &&
           gpu_symbol(lt, "cublasLtMatmulAlgoGetHeuristic", &blas->choose) &&
           gpu_symbol(lt, "cublasLtMatmul", &blas->run);
}

esp_status gpu_blas_open(esp_device *device, gpu_blas **blas, esp_error *error)
{
    gpu_blas *made = calloc(1, sizeof *made);
    if (made == NULL) {
        return cli_fail_memory(error, "cuBLAS");
    }
    made->device = device;
    made->lt_library = open_one("libcublasLt.so." VERSION);
    made->blas_library = open_one("libcublas.so." VERSION);
    if (!find_all(made)) {
        gpu_blas_close(made);
        return cli_fail(error, ESP_UNSUPPORTED, "bench.no_cublas",
                        "cuBLAS (libcublas.so." VERSION ", libcublasLt.so." VERSION ") not found");
    }
    made->scratch = esp_device_alloc(device, SCRATCH);
    if (made->scratch == NULL || made->create(&made->handle) != CUBLAS_STATUS_SUCCESS ||
        made->set_workspace(made->handle, made->scratch, SCRATCH) != CUBLAS_STATUS_SUCCESS ||
        made->lt_create(&made->lt) != CUBLAS_STATUS_SUCCESS) {
        gpu_blas_close(made);
        return cli_fail(error, ESP_FAILED, "bench.no_cublas", "cuBLAS does not start on %s",
                        esp_device_name(device));
    }
    *blas = made;
    return ESP_OK;
}

void gpu_blas_close(gpu_blas *blas)
{
    if (blas == NULL) {
        return;
    }
    if (blas->lt != NULL) {
        blas->lt_destroy(blas->lt);
    }
    if (blas->handle != NULL) {
        blas->destroy(blas->handle);
    }
    if (blas->scratch != NULL) {
        esp_device_release(blas->device, blas->scratch);
    }
    free(blas); /* the libraries stay open: cuBLAS has threads and handlers of its own */
}

/* ---- weights ---- */

static void weights_release(dense_weights *weights)
{
    if (--weights->users > 0) {
        return;
    }
    for (int i = 0; i < weights->count; i++) {
        esp_device_release(weights->device, weights->copies[i]);
    }
    free(weights->copies);
    free(weights);
}

static size_t width_of(esp_dtype dtype)
{
    return esp_dtype_bits(dtype) / 8;
}

static esp_status upload_copies(const gpu_shape *shape, dense_weights *weights, int wanted,
                                esp_error *error)
{
    const esp_matmul_problem *p = &shape->dense;
    size_t bytes = (size_t)p->out_features * (size_t)p->in_features * width_of(p->weight_type);
    while (weights->count < wanted) {
        void *copy = esp_device_alloc(shape->device, bytes);
        if (copy == NULL) {
            return cli_fail_memory(error, "copies of the dense weight on the GPU");
        }
        weights->copies[weights->count++] = copy;
        TRY(esp_device_upload(shape->device, copy, shape->w, bytes, error));
    }
    return ESP_OK;
}

/* One user. */
static esp_status weights_make(const gpu_shape *shape, dense_weights **weights, esp_error *error)
{
    const esp_matmul_problem *p = &shape->dense;
    double bytes =
        (double)p->out_features * (double)p->in_features * (double)width_of(p->weight_type);
    int wanted = (int)((double)shape->rotate_bytes / bytes) + 1;
    dense_weights *made = calloc(1, sizeof *made);
    if (made == NULL || (made->copies = calloc((size_t)wanted, sizeof(void *))) == NULL) {
        free(made);
        return cli_fail_memory(error, "copies of the dense weight");
    }
    made->device = shape->device;
    made->users = 1;
    esp_status status = upload_copies(shape, made, wanted, error);
    if (status != ESP_OK) {
        weights_release(made);
        return status;
    }
    *weights = made;
    return ESP_OK;
}

/* ---- products ---- */

static cudaDataType type_of(esp_dtype dtype)
{
    return dtype == ESP_F16 ? CUDA_R_16F : dtype == ESP_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

/* A library writes the type of its inputs, or f32. */
static esp_dtype written_type(const esp_matmul_problem *problem)
{
    return problem->out_type == ESP_F32 ? ESP_F32 : problem->weight_type;
}

/* By columns. Feature-major: C [tokens][out] = X W; token-major: C [out][tokens] = W X. */
static cublasStatus_t run_cublas(blas_rival *r, const void *w, const void *x, void *y, void *stream)
{
    gpu_blas *blas = r->blas;
    const esp_matmul_problem *p = &r->shape.dense;
    const float one = 1, zero = 0;
    int out = (int)p->out_features, in = (int)p->in_features, tokens = (int)p->tokens;
    cudaDataType type = type_of(p->weight_type), to = type_of(written_type(p));
    cublasStatus_t status = blas->set_stream(blas->handle, stream);
    if (status == CUBLAS_STATUS_SUCCESS) { /* a new stream takes the workspace away */
        status = blas->set_workspace(blas->handle, blas->scratch, SCRATCH);
    }
    if (status != CUBLAS_STATUS_SUCCESS) {
        return status;
    }
    return r->by_token ? blas->gemm(blas->handle, CUBLAS_OP_T, CUBLAS_OP_N, out, tokens, in, &one,
                                    w, type, in, x, type, in, &zero, y, to, out, CUBLAS_COMPUTE_32F,
                                    CUBLAS_GEMM_DEFAULT)
                       : blas->gemm(blas->handle, CUBLAS_OP_N, CUBLAS_OP_N, tokens, out, in, &one,
                                    x, type, tokens, w, type, in, &zero, y, to, tokens,
                                    CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
}

static cublasStatus_t run_lt(blas_rival *r, const void *w, const void *x, void *y, void *stream)
{
    const float one = 1, zero = 0;
    return r->blas->run(r->blas->lt, r->product, &one, r->by_token ? w : x, r->a,
                        r->by_token ? x : w, r->b, &zero, y, r->c, y, r->c, &r->algorithm,
                        r->blas->scratch, SCRATCH, stream);
}

/* An esp_work_fn. */
static esp_status run_all(void *user, void *stream, esp_error *error)
{
    blas_rival *r = user;
    for (int i = 0; i < r->runs.runs; i++) {
        const void *w = r->weights->copies[r->next % r->weights->count];
        const void *x = r->shape.device_x[r->next % r->shape.copies];
        void *y = r->shape.device_y[r->next % r->shape.copies];
        r->next++;
        cublasStatus_t status =
            r->listed ? run_lt(r, w, x, y, stream) : run_cublas(r, w, x, y, stream);
        if (status != CUBLAS_STATUS_SUCCESS) {
            return cli_fail(error, ESP_FAILED, "bench.cublas_failed",
                            "%s's product failed with status %d", r->listed ? "cuBLASLt" : "cuBLAS",
                            (int)status);
        }
    }
    return ESP_OK;
}

static bool describe(blas_rival *r)
{
    gpu_blas *blas = r->blas;
    const esp_matmul_problem *p = &r->shape.dense;
    uint64_t out = (uint64_t)p->out_features, in = (uint64_t)p->in_features;
    uint64_t tokens = (uint64_t)p->tokens;
    cudaDataType type = type_of(p->weight_type), to = type_of(written_type(p));
    cublasOperation_t turned = r->by_token ? CUBLAS_OP_T : CUBLAS_OP_N;
    uint64_t rows = r->by_token ? out : tokens, columns = r->by_token ? tokens : out;
    return blas->product_create(&r->product, CUBLAS_COMPUTE_32F, CUDA_R_32F) == 0 &&
           blas->product_set(r->product, CUBLASLT_MATMUL_DESC_TRANSA, &turned, sizeof turned) ==
               0 &&
           blas->layout_create(&r->a, type, r->by_token ? in : rows, r->by_token ? rows : in,
                               (int64_t)(r->by_token ? in : rows)) == 0 &&
           blas->layout_create(&r->b, type, in, columns, (int64_t)in) == 0 &&
           blas->layout_create(&r->c, to, rows, columns, (int64_t)rows) == 0;
}

static int list(blas_rival *r, cublasLtMatmulHeuristicResult_t found[LISTED])
{
    gpu_blas *blas = r->blas;
    cublasLtMatmulPreference_t preference;
    size_t scratch = SCRATCH;
    int count = 0;
    if (blas->preference_create(&preference) != 0) {
        return 0;
    }
    if (blas->preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &scratch,
                             sizeof scratch) != 0 ||
        blas->choose(blas->lt, r->product, r->a, r->b, r->c, r->c, preference, LISTED, found,
                     &count) != 0) {
        count = 0;
    }
    blas->preference_destroy(preference);
    return count;
}

/* Microseconds of a product by the algorithm that is set; NaN: it does not run. */
static double try_one(blas_rival *r)
{
    double us = (double)NAN;
    r->runs = (recorded){.runs = TRIAL_RUNS, .repeats = 1};
    if (esp_record(r->shape.device, run_all, r, &r->runs.recording, NULL) != ESP_OK ||
        recorded_time(&r->runs, &us, NULL) != ESP_OK) {
        us = (double)NAN;
    }
    recorded_free(&r->runs);
    return us;
}

/* The fastest of the list; false when none runs. */
static bool choose(blas_rival *r)
{
    cublasLtMatmulHeuristicResult_t found[LISTED];
    int count = describe(r) ? list(r, found) : 0, best = -1;
    double best_us = 0;
    for (int i = 0; i < count; i++) {
        r->algorithm = found[i].algo;
        double us = try_one(r);
        if (us == us && (best < 0 || us < best_us)) {
            best = i;
            best_us = us;
        }
    }
    if (best >= 0) {
        r->algorithm = found[best].algo;
    }
    return best >= 0;
}

/* ---- rivals ---- */

static esp_status time_rival(void *self, double *us, esp_error *error)
{
    blas_rival *r = self;
    return recorded_time(&r->runs, us, error);
}

static const char *never_lost(const void *self)
{
    (void)self;
    return NULL;
}

static void free_rival(void *self)
{
    blas_rival *r = self;
    recorded_free(&r->runs);
    weights_release(r->weights);
    if (r->product != NULL) {
        r->blas->product_destroy(r->product);
    }
    cublasLtMatrixLayout_t layouts[] = {r->a, r->b, r->c};
    for (int i = 0; i < COUNT(layouts); i++) {
        if (layouts[i] != NULL) {
            r->blas->layout_destroy(layouts[i]);
        }
    }
    free(r);
}

static esp_status check(blas_rival *r, esp_error *error)
{
    const gpu_shape *shape = &r->shape;
    const esp_matmul_problem *p = &shape->dense;
    esp_dtype type = written_type(p);
    size_t bytes = (size_t)p->out_features * (size_t)p->tokens * width_of(type);
    char *y = malloc(bytes);
    if (y == NULL) {
        return cli_fail_memory(error, "a rival's result");
    }
    memset(y, 0xff, bytes); /* NaN: what is not written shows */
    r->runs.runs = 1;
    r->next = 0;
    esp_status status = esp_device_upload(shape->device, shape->device_y[0], y, bytes, error);
    status = status == ESP_OK ? run_all(r, NULL, error) : status;
    status = status == ESP_OK ? esp_device_wait(shape->device, error) : status;
    status = status == ESP_OK
                 ? esp_device_download(shape->device, y, shape->device_y[0], bytes, error)
                 : status;
    double off =
        status == ESP_OK ? gpu_sample_error(p, r->by_token, shape->w, shape->x, y, type) : 0;
    free(y);
    if (status == ESP_OK && !(off <= GPU_SAMPLE_LIMIT)) {
        return cli_fail(error, ESP_CHECK_FAILED, "bench.wrong_result",
                        "%s differs from the exact product by %.3g of the largest value",
                        r->listed ? "cuBLASLt" : "cuBLAS", off);
    }
    return status;
}

static esp_status record(blas_rival *r, esp_error *error)
{
    int copies = r->weights->count > r->shape.copies ? r->weights->count : r->shape.copies;
    TRY(check(r, error));
    r->runs = (recorded){.runs = copies > r->shape.runs ? copies : r->shape.runs};
    return esp_record(r->shape.device, run_all, r, &r->runs.recording, error);
}

static esp_status add(gpu_blas *blas, const gpu_shape *shape, dense_weights *weights, bool by_token,
                      bool listed, gpu_rivals *rivals, esp_error *error)
{
    blas_rival *r = calloc(1, sizeof *r);
    char name[64];
    if (r == NULL) {
        return cli_fail_memory(error, "a rival");
    }
    *r = (blas_rival){.blas = blas, .shape = *shape, .by_token = by_token, .listed = listed};
    r->weights = weights;
    weights->users++;
    snprintf(name, sizeof name, "%s_%s", listed ? "cublaslt" : "cublas",
             by_token ? "tokens" : "features");
    if (listed && !choose(r)) {
        gpu_note_missing(rivals, name, "not run: cuBLASLt lists no algorithm that runs");
        free_rival(r);
        return ESP_OK;
    }
    esp_error why = {0};
    if (record(r, &why) != ESP_OK) { /* who does not run is named; the others go on */
        gpu_note_missing(rivals, name, "not run: %.180s", why.message);
        free_rival(r);
        return ESP_OK;
    }
    gpu_rival *made = &rivals->list[rivals->count++];
    *made = (gpu_rival){
        .dense = true, .self = r, .time = time_rival, .lost = never_lost, .free = free_rival};
    memcpy(made->name, name, sizeof name);
    return ESP_OK;
}

esp_status gpu_blas_rivals(gpu_blas *blas, const gpu_shape *shape, gpu_rivals *rivals,
                           esp_error *error)
{
    const esp_matmul_problem *p = &shape->dense;
    dense_weights *weights = NULL;
    if (p->act_type != p->weight_type || p->out_features > INT32_MAX ||
        p->in_features > INT32_MAX || p->tokens > INT32_MAX) {
        gpu_note_missing(rivals, "cublas", "not run: it takes one type and 32-bit sizes");
        return ESP_OK;
    }
    TRY(weights_make(shape, &weights, error));
    esp_status status = ESP_OK;
    for (int i = 0; i < 4 && status == ESP_OK; i++) {
        status = add(blas, shape, weights, i >= 2, i % 2 == 1, rivals, error);
    }
    weights_release(weights);
    return status;
}
