// How a tensor is described to Hopper's copy engine.
#ifndef ESP_CUDA_SM90_TENSOR_CUH
#define ESP_CUDA_SM90_TENSOR_CUH

#include <cuda.h>
#include <cuda_runtime.h>

namespace tensor {

using encode_function = CUresult (*)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                     const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                     const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                     CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

inline encode_function find_encode()
{
    void *function = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaError_t failed = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                          12000, cudaEnableDefault, &found);
    return failed == cudaSuccess ? (encode_function)function : nullptr;
}

// A tensor of up to three dimensions, sizes and box in elements, strides in bytes.
struct description {
    CUtensorMapDataType type;
    int rank;
    void *data;
    cuuint64_t sizes[3], strides[2];
    cuuint32_t box[3];
    CUtensorMapSwizzle swizzle;
};

inline int describe(const description &d, CUtensorMap *map)
{
    static const encode_function encode = find_encode();
    if (encode == nullptr) {
        return cudaErrorNotSupported;
    }
    const cuuint32_t steps[3] = {1, 1, 1};
    CUresult failed = encode(map, d.type, (cuuint32_t)d.rank, d.data, d.sizes, d.strides, d.box,
                             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, d.swizzle,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return failed == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

} // namespace tensor

#endif
