#!/bin/sh
# Every public header compiles alone, as C17 and as C++17. Usage: headers.sh SOURCE_DIR
set -eu
cd "$1"
passed=0 failed=0 skipped=0
try() { # label, compiler command...
    label=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
    else
        echo "FAIL headers: $label"
        failed=$((failed + 1))
    fi
}
for header in include/espalier/*.h; do
    try "$header as C17" "${CC:-cc}" -std=c17 -pedantic-errors -Wall -Wextra -Wstrict-prototypes \
        -Werror -Iinclude -fsyntax-only -x c -include "$header" /dev/null
    if command -v "${CXX:-c++}" >/dev/null 2>&1; then
        try "$header as C++17" "${CXX:-c++}" -std=c++17 -pedantic-errors -Wall -Wextra -Werror \
            -Iinclude -fsyntax-only -x c++ -include "$header" /dev/null
    else
        echo "not run headers: $header as C++17: no C++ compiler"
        skipped=$((skipped + 1))
    fi
done
echo "headers: $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
