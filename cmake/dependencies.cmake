# Debian 12: libjansson-dev libpcre2-dev libutf8proc-dev; libjpeg62-turbo-dev
# libpng-dev for the program; libopenblas-dev and libdnnl-dev are optional
# (dense products on the CPU).
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson>=2.13)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
# Image files, which only the program reads.
pkg_check_modules(JPEG REQUIRED IMPORTED_TARGET libjpeg)
pkg_check_modules(PNG REQUIRED IMPORTED_TARGET libpng>=1.6)
