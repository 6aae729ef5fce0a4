# One set of flags for everything: C17, hidden symbols, many warnings.
set(CMAKE_C_STANDARD 17)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
# Exact f32 semantics: a product and a sum are fused only where a kernel says so.
set(CMAKE_C_FLAGS_RELEASE "-O3 -DNDEBUG -g1")
add_compile_definitions(_GNU_SOURCE)
add_compile_options(-ffp-contract=off -fno-math-errno -fno-common)

add_library(espalier_warnings INTERFACE)
target_compile_options(espalier_warnings INTERFACE
  $<$<COMPILE_LANGUAGE:C>:-Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes
  -Wmissing-prototypes -Wvla -Wundef -Wcast-qual -Wpointer-arith -Wwrite-strings -Wno-format-truncation>
  $<$<AND:$<COMPILE_LANGUAGE:C>,$<BOOL:${ESPALIER_WERROR}>>:-Werror>)

if(ESPALIER_SANITIZE)
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=all
                      -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
endif()
