// Launches that may begin while the one before them in the stream still ends. Their kernels call
// mma::wait_for_launch_before() before they touch anything but the packed weight, which no launch writes.
#ifndef ESP_CUDA_BLOCKS_LAUNCH_CUH
#define ESP_CUDA_BLOCKS_LAUNCH_CUH

#include "cuda/launch.cuh"

namespace blocks {

template <class... PARAMETERS, class... ARGUMENTS>
int launch_beside(bool overlaps, void (*kernel)(PARAMETERS...), dim3 grid, int threads,
                  uint32_t shared, void *stream, ARGUMENTS &&...arguments)
{
    cudaLaunchConfig_t how = {};
    how.gridDim = grid;
    how.blockDim = dim3((unsigned)threads);
    how.dynamicSmemBytes = shared;
    how.stream = (cudaStream_t)stream;
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    how.attrs = &attribute;
    how.numAttrs = overlaps ? 1 : 0;
    return cudaLaunchKernelEx(&how, kernel, arguments...);
}

} // namespace blocks

#endif
