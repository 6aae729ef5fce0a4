/* Private to src/ref. */
#ifndef ESP_REF_KERNELS_H
#define ESP_REF_KERNELS_H

#include "ref/ref.h"

extern const esp_kernel *const esp_ref_kernels[]; /* matmul.c; NULL-terminated */
extern const esp_ops esp_ref_ops;                 /* ops.c */

/* One activation bit of an epilogue (SWIGLU excepted) applied to value; 0 bits: value. */
float esp_ref_activate(unsigned epilogue, float value);

#endif
