# The CUDA part: ON needs nvcc, AUTO takes it where it is, OFF leaves it out. The result is in
# ESPALIER_CUDA_BUILT.
set(ESPALIER_CUDA_BUILT OFF)
if(NOT ESPALIER_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    # Ampere and later as PTX, Hopper's own instructions as machine code. `native` would need a GPU.
    set(CMAKE_CUDA_ARCHITECTURES 80-virtual 90a-real)
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
    set(CMAKE_CUDA_STANDARD 17)
    set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
    set(ESPALIER_CUDA_BUILT ON)
  elseif(ESPALIER_CUDA STREQUAL "ON")
    message(FATAL_ERROR "ESPALIER_CUDA is ON, but nvcc was not found: install the CUDA toolkit, "
                        "put nvcc on PATH, or pass -DESPALIER_CUDA=OFF.")
  endif()
endif()
set(ESPALIER_CUDA_BUILT ${ESPALIER_CUDA_BUILT} CACHE INTERNAL "")
message(STATUS "CUDA back end: ${ESPALIER_CUDA_BUILT}")
