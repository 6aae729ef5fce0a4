/* The kernels for any processor: vectors of four floats, as the compiler lowers them. */
#define CPU_LEVEL_TABLE esp_cpu_portable
#define CPU_LEVEL_NAME "portable"
#include "cpu/isa/table.h"
