/* cuBLAS and cuSOLVER, found at run time like cuBLASLt (dense.c). Without cuSOLVER the host
 * factors. */
#include <dlfcn.h>

#include "cuda/far.h"

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

static bool find_blas(cuda_far *far)
{
    void *library = far->blas_library;
    return find(library, "cublasCreate_v2", &far->blas_create) &&
           find(library, "cublasDestroy_v2", &far->blas_destroy) &&
           find(library, "cublasSetStream_v2", &far->blas_set_stream) &&
           find(library, "cublasDgemm_v2", &far->gemm) &&
           find(library, "cublasDgemmStridedBatched", &far->gemm_batch) &&
           find(library, "cublasDsyrk_v2", &far->syrk) && find(library, "cublasDdot_v2", &far->dot);
}

static bool find_solver(cuda_far *far)
{
    void *library = far->solver_library;
    return find(library, "cusolverDnCreate", &far->solver_create) &&
           find(library, "cusolverDnDestroy", &far->solver_destroy) &&
           find(library, "cusolverDnSetStream", &far->solver_set_stream) &&
           find(library, "cusolverDnDpotrf_bufferSize", &far->potrf_size) &&
           find(library, "cusolverDnDpotrf", &far->potrf) &&
           find(library, "cusolverDnDpotri_bufferSize", &far->potri_size) &&
           find(library, "cusolverDnDpotri", &far->potri);
}

static bool open_blas(cuda_far *far)
{
    far->blas_library = open_one(BLAS, "/usr/local/cuda/lib64/" BLAS);
    return far->blas_library != NULL && find_blas(far) &&
           far->blas_create(&far->blas) == CUBLAS_STATUS_SUCCESS &&
           far->blas_set_stream(far->blas, far->stream) == CUBLAS_STATUS_SUCCESS;
}

static bool open_solver(cuda_far *far)
{
    far->solver_library = open_one(SOLVER, "/usr/local/cuda/lib64/" SOLVER);
    return far->solver_library != NULL && find_solver(far) &&
           far->solver_create(&far->solver) == CUSOLVER_STATUS_SUCCESS &&
           far->solver_set_stream(far->solver, far->stream) == CUSOLVER_STATUS_SUCCESS;
}

bool cuda_far_find(cuda_far *far)
{
    if (!open_blas(far)) {
        return false;
    }
    bool solves = open_solver(far);
    if (!solves) {
        far->solver = NULL;
    }
    far->far.name = solves ? "cuBLAS and cuSOLVER" : "cuBLAS, and the host without " SOLVER;
    return true;
}

void cuda_far_lose(cuda_far *far)
{
    if (far->solver != NULL) {
        far->solver_destroy(far->solver);
    }
    if (far->blas != NULL) {
        far->blas_destroy(far->blas);
    }
    if (far->solver_library != NULL) {
        dlclose(far->solver_library);
    }
    if (far->blas_library != NULL) {
        dlclose(far->blas_library);
    }
}
