/* The kernels for AVX-512 F, BW, VL, DQ. */
#ifdef ESP_CPU_X86
#define CPU_LEVEL_TABLE esp_cpu_avx512
#define CPU_LEVEL_NAME "avx512"
#include "cpu/isa/table.h"
#else
typedef int cpu_no_avx512; /* a C file must declare something */
#endif
