# What `cmake --install` puts where: the libraries, their headers and package files, the program, its
# pages and completion. Three components, which become three Debian packages: library, development,
# program. Only the static library shows its users what it needs: the shared one has it linked in.
include(CMakePackageConfigHelpers)

set_target_properties(espalier_shared PROPERTIES EXPORT_NAME espalier)
set_target_properties(espalier_static PROPERTIES EXPORT_NAME static)
install(TARGETS espalier_shared EXPORT espalier_shared
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT library
  NAMELINK_COMPONENT development)
install(TARGETS espalier_static EXPORT espalier_static
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT development)
install(DIRECTORY ${CMAKE_SOURCE_DIR}/include/espalier DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  COMPONENT development FILES_MATCHING PATTERN "*.h")

# ---- CMake package: find_package(espalier [COMPONENTS static]) ----
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/espalier)
foreach(kind shared static)
  install(EXPORT espalier_${kind} NAMESPACE espalier:: FILE espalier-${kind}-targets.cmake
    DESTINATION ${package_dir} COMPONENT development)
endforeach()
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/espalier-config.cmake.in
  ${CMAKE_BINARY_DIR}/espalier-config.cmake INSTALL_DESTINATION ${package_dir})
# Before 1.0 a minor version may change the interface.
write_basic_package_version_file(${CMAKE_BINARY_DIR}/espalier-config-version.cmake
  VERSION ${PROJECT_VERSION} COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/espalier-config.cmake
  ${CMAKE_BINARY_DIR}/espalier-config-version.cmake
  DESTINATION ${package_dir} COMPONENT development)

# ---- pkg-config ----
set(pc_libs_private "-pthread -lm")
foreach(library ${CMAKE_DL_LIBS})
  string(APPEND pc_libs_private " -l${library}")
endforeach()
if(ESPALIER_CUDA_BUILT)
  string(APPEND pc_libs_private " -L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -lrt -lstdc++")
endif()
# Relative to the file itself where that is possible, so that an installed tree may be moved.
if(IS_ABSOLUTE ${CMAKE_INSTALL_LIBDIR} OR IS_ABSOLUTE ${CMAKE_INSTALL_INCLUDEDIR})
  set(pc_prefix ${CMAKE_INSTALL_PREFIX})
  set(pc_libdir ${CMAKE_INSTALL_FULL_LIBDIR})
  set(pc_includedir ${CMAKE_INSTALL_FULL_INCLUDEDIR})
else()
  file(RELATIVE_PATH up /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
  string(REGEX REPLACE "/$" "" up ${up})
  set(pc_prefix "\${pcfiledir}/${up}")
  set(pc_libdir "\${prefix}/${CMAKE_INSTALL_LIBDIR}")
  set(pc_includedir "\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}")
endif()
configure_file(${CMAKE_CURRENT_LIST_DIR}/espalier.pc.in ${CMAKE_BINARY_DIR}/espalier.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/espalier.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig
  COMPONENT development)

# ---- the program and its pages; cli/CMakeLists.txt makes them ----
install(TARGETS espalier_program RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT program)
if(ESPALIER_PAGES)
  install(FILES ${CMAKE_BINARY_DIR}/espalier.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1
    COMPONENT program)
  install(FILES ${CMAKE_BINARY_DIR}/espalier-format.5 DESTINATION ${CMAKE_INSTALL_MANDIR}/man5
    COMPONENT program)
  install(FILES ${CMAKE_BINARY_DIR}/espalier.bash RENAME espalier COMPONENT program
    DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions)
endif()

install(FILES ${CMAKE_SOURCE_DIR}/docs/api.md ${CMAKE_SOURCE_DIR}/docs/formats.md
  DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/libespalier-dev COMPONENT development)
install(DIRECTORY ${CMAKE_SOURCE_DIR}/examples COMPONENT development
  DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/libespalier-dev FILES_MATCHING PATTERN "*.c")
foreach(pair library:libespalier0 development:libespalier-dev program:espalier)
  string(REPLACE ":" ";" pair ${pair})
  list(GET pair 0 component)
  list(GET pair 1 package)
  install(FILES ${CMAKE_SOURCE_DIR}/LICENSE RENAME copyright COMPONENT ${component}
    DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/${package})
endforeach()
