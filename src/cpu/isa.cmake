# The kernel sources in isa/ are compiled once per instruction-set level, each by one file that includes
# them. Only these files may hold instructions beyond the baseline; which copy runs is decided at run
# time. Fusing a product and a sum is wanted here.
set(cpu_dir ${CMAKE_CURRENT_SOURCE_DIR}/cpu)
set(portable_flags -ffp-contract=fast)
set(avx2_flags ${portable_flags} -mavx2 -mfma -mf16c)
set(avx512_flags ${avx2_flags} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512)
set_source_files_properties(${cpu_dir}/level_portable.c PROPERTIES
  COMPILE_OPTIONS "${portable_flags}")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  set_source_files_properties(${cpu_dir}/level_avx2.c PROPERTIES COMPILE_OPTIONS "${avx2_flags}")
  set_source_files_properties(${cpu_dir}/level_avx512.c PROPERTIES COMPILE_OPTIONS "${avx512_flags}")
  set(bf16_flags ${avx512_flags} -mavx512bf16 -mavx512vbmi -mavx512vbmi2)
  set_source_files_properties(${cpu_dir}/level_avx512bf16.c PROPERTIES COMPILE_OPTIONS "${bf16_flags}")
  set_source_files_properties(${cpu_dir}/level_amx.c PROPERTIES COMPILE_OPTIONS "${bf16_flags}")
  target_compile_definitions(espalier_objects PRIVATE ESP_CPU_X86=1)
endif()
