/* Products of bf16 on AVX-512 with BF16. */
#ifdef ESP_CPU_X86
#include "cpu/bf16/dot.h"
#include "cpu/bf16/pack_x.h"

const bf16_level esp_cpu_bf16_avx512 = {
    .name = "avx512bf16",
    .compute = ESP_COMPUTE_BF16,
    .parts = 1,
    .rows = BF16_ROWS,
    .pack = pack_x,
    .product = dot_product,
    .scratch_bytes = dot_scratch_bytes,
    .form = dot_form,
};
#else
typedef int cpu_no_avx512bf16; /* a C file must declare something */
#endif
