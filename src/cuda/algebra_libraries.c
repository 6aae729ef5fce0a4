/* cuBLAS and cuSOLVER, found at run time like cuBLASLt (dense.c). Without cuSOLVER the host
 * factors. */
#include <dlfcn.h>

#include "cuda/algebra.h"

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
#define BLAS "libcublas.so." TEXT(CUBLAS_VER_MAJOR)
#define SOLVER "libcusolver.so." TEXT(CUSOLVER_VER_MAJOR)

/* ISO C has no conversion from data to function pointers; POSIX promises that this one works. */
static bool find(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);
    memcpy(function, &symbol, sizeof symbol);
    return symbol != NULL;
}

static void *open_one(const char *name, const char *path)
{
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    return library != NULL ? library : dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

static bool find_blas(cuda_algebra *algebra)
{
    void *library = algebra->blas_library;
    return find(library, "cublasCreate_v2", &algebra->blas_create) &&
           find(library, "cublasDestroy_v2", &algebra->blas_destroy) &&
           find(library, "cublasSetStream_v2", &algebra->blas_set_stream) &&
           find(library, "cublasDgemm_v2", &algebra->gemm) &&
           find(library, "cublasDgemmStridedBatched", &algebra->gemm_batch) &&
           find(library, "cublasDsyrk_v2", &algebra->syrk) &&
           find(library, "cublasDdot_v2", &algebra->dot);
}

static bool find_solver(cuda_algebra *algebra)
{
    void *library = algebra->solver_library;
    return find(library, "cusolverDnCreate", &algebra->solver_create) &&
           find(library, "cusolverDnDestroy", &algebra->solver_destroy) &&
           find(library, "cusolverDnSetStream", &algebra->solver_set_stream) &&
           find(library, "cusolverDnDpotrf_bufferSize", &algebra->potrf_size) &&
           find(library, "cusolverDnDpotrf", &algebra->potrf) &&
           find(library, "cusolverDnDpotri_bufferSize", &algebra->potri_size) &&
           find(library, "cusolverDnDpotri", &algebra->potri);
}

static bool open_blas(cuda_algebra *algebra)
{
    algebra->blas_library = open_one(BLAS, "/usr/local/cuda/lib64/" BLAS);
    return algebra->blas_library != NULL && find_blas(algebra) &&
           algebra->blas_create(&algebra->blas) == CUBLAS_STATUS_SUCCESS &&
           algebra->blas_set_stream(algebra->blas, algebra->stream) == CUBLAS_STATUS_SUCCESS;
}

static bool open_solver(cuda_algebra *algebra)
{
    algebra->solver_library = open_one(SOLVER, "/usr/local/cuda/lib64/" SOLVER);
    return algebra->solver_library != NULL && find_solver(algebra) &&
           algebra->solver_create(&algebra->solver) == CUSOLVER_STATUS_SUCCESS &&
           algebra->solver_set_stream(algebra->solver, algebra->stream) == CUSOLVER_STATUS_SUCCESS;
}

bool cuda_algebra_find(cuda_algebra *algebra)
{
    if (!open_blas(algebra)) {
        return false;
    }
    bool solves = open_solver(algebra);
    if (!solves) {
        algebra->solver = NULL;
    }
    algebra->base.name = solves ? "cuBLAS and cuSOLVER" : "cuBLAS, and the host without " SOLVER;
    return true;
}

void cuda_algebra_lose(cuda_algebra *algebra)
{
    if (algebra->solver != NULL) {
        algebra->solver_destroy(algebra->solver);
    }
    if (algebra->blas != NULL) {
        algebra->blas_destroy(algebra->blas);
    }
    if (algebra->solver_library != NULL) {
        dlclose(algebra->solver_library);
    }
    if (algebra->blas_library != NULL) {
        dlclose(algebra->blas_library);
    }
}
