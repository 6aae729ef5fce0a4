/* Dense products of cuBLAS and cuBLASLt on the same numbers. cuBLASLt's first choice is often not
 * its best: the algorithms that it lists are timed and the fastest is the rival. */
#include <cublasLt.h>
#include <cublas_v2.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench.h"

#define LISTED 24
#define SCRATCH ((size_t)64 << 20)

typedef struct rival {
    const operands *all;
    bool by_token;
    void *scratch;
    cublasHandle_t blas; /* cuBLAS */
    cublasLtHandle_t lt; /* cuBLASLt */
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;
} rival;

static cudaDataType type_of(esp_dtype dtype)
{
    return dtype == ESP_F16 ? CUDA_R_16F : CUDA_R_16BF;
}

/* Feature-major: C [tokens][out] by columns = X W; token-major: C [out][tokens] by columns = W X.
 */
static void run_cublas(void *self, int i, cudaStream_t stream)
{
    const rival *r = self;
    const esp_matmul_problem *p = &r->all->problem;
    const float one = 1, zero = 0;
    int out = (int)p->out_features, in = (int)p->in_features, tokens = (int)p->tokens;
    cudaDataType type = type_of(p->weight_type);
    const void *x = r->all->x[i % X_COPIES], *w = r->all->w[i % r->all->copies_w];
    void *y = r->all->y[i % X_COPIES];
    NEED(cublasSetStream(r->blas, stream));
    if (r->by_token) {
        NEED(cublasGemmEx(r->blas, CUBLAS_OP_T, CUBLAS_OP_N, out, tokens, in, &one, w, type, in, x,
                          type, in, &zero, y, type, out, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    } else {
        NEED(cublasGemmEx(r->blas, CUBLAS_OP_N, CUBLAS_OP_N, tokens, out, in, &one, x, type, tokens,
                          w, type, in, &zero, y, type, tokens, CUBLAS_COMPUTE_32F,
                          CUBLAS_GEMM_DEFAULT));
    }
}

static void run_lt(void *self, int i, cudaStream_t stream)
{
    const rival *r = self;
    const float one = 1, zero = 0;
    const void *x = r->all->x[i % X_COPIES], *w = r->all->w[i % r->all->copies_w];
    void *y = r->all->y[i % X_COPIES];
    NEED(cublasLtMatmul(r->lt, r->product, &one, r->by_token ? w : x, r->a, r->by_token ? x : w,
                        r->b, &zero, y, r->c, y, r->c, &r->algorithm, r->scratch, SCRATCH, stream));
}

static void describe(rival *r)
{
    const esp_matmul_problem *p = &r->all->problem;
    uint64_t out = (uint64_t)p->out_features, in = (uint64_t)p->in_features;
    uint64_t tokens = (uint64_t)p->tokens;
    cudaDataType type = type_of(p->weight_type);
    cublasOperation_t turned = CUBLAS_OP_T;
    NEED(cublasLtMatmulDescCreate(&r->product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    if (r->by_token) {
        NEED(cublasLtMatmulDescSetAttribute(r->product, CUBLASLT_MATMUL_DESC_TRANSA, &turned,
                                            sizeof turned));
        NEED(cublasLtMatrixLayoutCreate(&r->a, type, in, out, (int64_t)in));
        NEED(cublasLtMatrixLayoutCreate(&r->b, type, in, tokens, (int64_t)in));
        NEED(cublasLtMatrixLayoutCreate(&r->c, type, out, tokens, (int64_t)out));
    } else {
        NEED(cublasLtMatrixLayoutCreate(&r->a, type, tokens, in, (int64_t)tokens));
        NEED(cublasLtMatrixLayoutCreate(&r->b, type, in, out, (int64_t)in));
        NEED(cublasLtMatrixLayoutCreate(&r->c, type, tokens, out, (int64_t)tokens));
    }
}

/* The fastest of the list, by time; false when none runs. */
static bool choose(contestant *who, cudaStream_t stream)
{
    rival *r = who->self;
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t found[LISTED];
    size_t scratch = SCRATCH;
    int count = 0;
    NEED(cublasLtMatmulPreferenceCreate(&preference));
    NEED(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                              &scratch, sizeof scratch));
    if (cublasLtMatmulAlgoGetHeuristic(r->lt, r->product, r->a, r->b, r->c, r->c, preference,
                                       LISTED, found, &count) != 0) {
        count = 0;
    }
    cublasLtMatmulPreferenceDestroy(preference);
    double best_us = 0;
    int best = -1;
    for (int i = 0; i < count; i++) {
        r->algorithm = found[i].algo;
        double us = time_batch(who, 6, stream);
        if (best < 0 || us < best_us) {
            best = i;
            best_us = us;
        }
    }
    if (best >= 0) {
        r->algorithm = found[best].algo;
    }
    snprintf(who->name, sizeof who->name, "cublaslt_%s", r->by_token ? "tokens" : "features");
    return best >= 0;
}

int rivals_make(const operands *all, cudaStream_t stream, contestant rivals[MOST_RIVALS])
{
    int count = 0;
    for (int by_token = 0; by_token < 2; by_token++) {
        for (int lt = 0; lt < 2; lt++) {
            rival *r = calloc(1, sizeof *r);
            contestant *who = &rivals[count];
            r->all = all;
            r->by_token = by_token;
            *who = (contestant){.run = lt ? run_lt : run_cublas, .self = r};
            snprintf(who->name, sizeof who->name, "cublas_%s", by_token ? "tokens" : "features");
            NEED(cudaMalloc(&r->scratch, SCRATCH));
            if (!lt) {
                NEED(cublasCreate(&r->blas));
                NEED(cublasSetWorkspace(r->blas, r->scratch, SCRATCH));
                count++;
                continue;
            }
            NEED(cublasLtCreate(&r->lt));
            describe(r);
            count += choose(who, stream);
        }
    }
    return count;
}

void rivals_free(contestant *rivals, int count)
{
    for (int i = 0; i < count; i++) {
        rival *r = rivals[i].self;
        NEED(cudaFree(r->scratch));
        if (r->blas != NULL) {
            cublasDestroy(r->blas);
        } else {
            cublasLtMatmulDescDestroy(r->product);
            cublasLtMatrixLayoutDestroy(r->a);
            cublasLtMatrixLayoutDestroy(r->b);
            cublasLtMatrixLayoutDestroy(r->c);
            cublasLtDestroy(r->lt);
        }
        free(r);
    }
}
