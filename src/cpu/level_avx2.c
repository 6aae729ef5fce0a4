/* The kernels for AVX2, FMA and F16C. */
#ifdef ESP_CPU_X86
#define CPU_LEVEL_TABLE esp_cpu_avx2
#define CPU_LEVEL_NAME "avx2"
#include "cpu/isa/table.h"
#else
typedef int cpu_no_avx2; /* a C file must declare something */
#endif
