/* Products of bf16 on AMX. */
#ifdef ESP_CPU_X86
#include "cpu/bf16/amx.h"
#include "cpu/bf16/pack_x.h"

const bf16_level esp_cpu_bf16_amx = {
    .name = "amx",
    .pack = pack_x,
    .product = amx_product,
    .scratch_bytes = amx_scratch_bytes,
    .form = amx_form,
    .wants_finite = true,
};
#else
typedef int cpu_no_amx; /* a C file must declare something */
#endif
