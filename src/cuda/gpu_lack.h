/* What a machine lacks where no GPU can be used. */
#ifndef ESP_CUDA_GPU_LACK_H
#define ESP_CUDA_GPU_LACK_H

#ifdef __cplusplus
extern "C" {
#endif

typedef enum gpu_lack {
    GPU_LACKS_DRIVER,       /* libcuda.so.1 cannot be opened */
    GPU_LACKS_NEWER_DRIVER, /* the one that is there cannot serve this build's runtime */
    GPU_LACKS_GPU,          /* the driver shows none to this process */
    GPU_LACKS_OTHER         /* gpu_error_text says it */
} gpu_lack;

/* error: what gpu_count returned, having found none. */
gpu_lack gpu_lacking(int error);

#ifdef __cplusplus
}
#endif
#endif
