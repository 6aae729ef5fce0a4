/* Products of bf16 on AMX. */
#ifdef ESP_CPU_X86
#include "cpu/bf16/amx.h"
#include "cpu/bf16/pack_x.h"
#include "cpu/bf16/split.h"

const bf16_level esp_cpu_bf16_amx = {
    .name = "amx",
    .compute = ESP_COMPUTE_BF16,
    .parts = 1,
    .rows = BF16_ROWS,
    .pack = pack_x,
    .product = amx_product,
    .scratch_bytes = amx_scratch_bytes,
    .form = amx_form,
    .wants_finite = true,
};

const bf16_level esp_cpu_bf16_split = {
    .name = "amx_split",
    .compute = ESP_COMPUTE_F32,
    .parts = BF16_SPLIT_PARTS,
    .rows = BF16_SPLIT_ROWS,
    .pack = split_pack_x,
    .product = split_product,
    .scratch_bytes = split_scratch_bytes,
    .form = amx_form,
    .wants_finite = true,
};
#else
typedef int cpu_no_amx; /* a C file must declare something */
#endif
