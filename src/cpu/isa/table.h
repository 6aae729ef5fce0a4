/* The table of the level that includes this: CPU_LEVEL_TABLE, CPU_LEVEL_NAME. */
#include "cpu/isa/attention.h"
#include "cpu/isa/elementwise.h"
#include "cpu/isa/few.h"
#include "cpu/isa/many.h"
#include "cpu/isa/panel.h"
#include "cpu/level.h"

const cpu_level CPU_LEVEL_TABLE = {
    .name = CPU_LEVEL_NAME,
    .lanes = LANES,
    .dense_vectors = DENSE_VECTORS,
    .sparse_vectors = SPARSE_VECTORS,
    .many = {many_dense, many_nm, many_panel},
    .few = {few_dense, few_nm, few_panel},
    .activate = activate,
    .swiglu = swiglu_values,
    .rms_norm = rms_norm,
    .attend = attend,
};
