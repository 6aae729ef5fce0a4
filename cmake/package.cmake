# `cpack` makes three Debian packages of the installed tree: libespalier0, libespalier-dev, espalier.
# Configure with -DCMAKE_INSTALL_PREFIX=/usr to have libraries in Debian's multiarch folders.
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME espalier)
set(CPACK_PACKAGE_VENDOR "The espalier authors")
set(CPACK_PACKAGE_CONTACT "The espalier authors <maintainers@espalier.invalid>")
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_COMPONENTS_ALL library development program)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS ON)
set(CPACK_DEBIAN_PACKAGE_PRIORITY optional)

set(CPACK_DEBIAN_LIBRARY_PACKAGE_NAME libespalier${PROJECT_VERSION_MAJOR})
set(CPACK_DEBIAN_LIBRARY_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_LIBRARY_PACKAGE_SUGGESTS "libopenblas0-pthread, libdnnl2")
set(CPACK_DEBIAN_LIBRARY_DESCRIPTION "sparse transformers - shared library
Prunes the weights of transformer models to patterns that hardware runs
fast (2:4, V:N:M, n:m, free panels), compresses what is left and runs it.

This package holds the shared library.")

set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_NAME libespalier-dev)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SHLIBDEPS OFF)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_DEPENDS
  "libespalier${PROJECT_VERSION_MAJOR} (= ${PROJECT_VERSION}), libjansson-dev, libpcre2-dev, libutf8proc-dev")
set(CPACK_DEBIAN_DEVELOPMENT_DESCRIPTION "sparse transformers - development files
Prunes the weights of transformer models to patterns that hardware runs
fast (2:4, V:N:M, n:m, free panels), compresses what is left and runs it.

This package holds headers, the static library, and files for pkg-config
and CMake.")

set(CPACK_DEBIAN_PROGRAM_PACKAGE_NAME espalier)
set(CPACK_DEBIAN_PROGRAM_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PROGRAM_PACKAGE_SUGGESTS "libopenblas0-pthread, libdnnl2")
set(CPACK_DEBIAN_PROGRAM_DESCRIPTION "prune, compress and run transformer models
Prunes the weights of transformer models to patterns that hardware runs
fast (2:4, V:N:M, n:m, free panels), compresses what is left, runs it, and
shows what that cost and gained next to the dense model.

This package holds the program, its manual pages and bash completion.")
include(CPack)
