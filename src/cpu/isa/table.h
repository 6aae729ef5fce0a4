/* The table of the level that includes this: CPU_LEVEL_TABLE, CPU_LEVEL_NAME. */
#include "cpu/isa/attention.h"
#include "cpu/isa/bsr.h"
#include "cpu/isa/csr.h"
#include "cpu/isa/elementwise.h"
#include "cpu/isa/few.h"
#include "cpu/isa/grid.h"
#include "cpu/isa/many.h"
#include "cpu/isa/nm_few.h"
#include "cpu/isa/panel.h"
#include "cpu/level.h"

const cpu_level CPU_LEVEL_TABLE = {
    .name = CPU_LEVEL_NAME,
    .lanes = LANES,
    .dense_vectors = DENSE_VECTORS,
    .sparse_vectors = SPARSE_VECTORS,
    .many = {many_dense, many_nm, many_panel, many_csr, many_bsr},
    .few = {few_dense, few_nm, few_panel, few_csr, few_bsr},
    .activate = activate,
    .swiglu = swiglu_values,
    .rms_norm = rms_norm,
    .layer_norm = layer_norm,
    .attend = attend,
    .relate = relate,
};
