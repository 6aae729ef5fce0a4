#!/bin/sh
# Tests what `cmake --install` and `cpack` make: programs in C and C++ are built against an installed
# tree in each way that users have (pkg-config and CMake, shared and static), and run; pages and
# completion are looked at. Usage: run.sh BUILD_DIR SOURCE_DIR. Nothing outside a temporary folder changes.
set -u
build=$(cd "$1" && pwd)
source=$(cd "$2" && pwd)
passed=0 failed=0 skipped=0
work=$(mktemp -d "${TMPDIR:-/tmp}/espalier-install-XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
here=$source/tests/install
unset DESTDIR LD_LIBRARY_PATH PKG_CONFIG_PATH CMAKE_PREFIX_PATH
LC_ALL=C.UTF-8
export LC_ALL

not_run() {
    skipped=$((skipped + 1))
    echo "not run install: $*"
}
# try NAME COMMAND...: the command succeeds. What it printed is in `log` for the next one.
try() {
    name=$1
    shift
    "$@" >printed 2>&1
    code=$?
    mv printed log
    if [ $code = 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL install: $name"
        tail -n 10 log | sed 's/^/    /'
        return 1
    fi
}
has() { command -v "$1" >/dev/null 2>&1; }
lacks() { ! grep -q "$1" "$2"; }
is_there() { [ -e "$1" ]; }

try "cmake --install into a DESTDIR" env DESTDIR="$work/stage" cmake --install "$build" --prefix /opt/espalier ||
    { echo "install: $passed passed, $failed failed, $skipped skipped"; exit 1; }
# Moved once more: nothing in the tree may know where it was.
mv stage/opt/espalier tree
tree=$work/tree
libdir=$(dirname "$(find "$tree" -name libespalier.a)")
version=$(sed -n 's/^CMAKE_PROJECT_VERSION:STATIC=//p' "$build/CMakeCache.txt")
sanitized=$(sed -n 's/^ESPALIER_SANITIZE:BOOL=//p' "$build/CMakeCache.txt")
flags=
[ "$sanitized" = ON ] && flags="-fsanitize=address,undefined"

# ---- the tree ----
for file in bin/espalier include/espalier/espalier.h share/man/man1/espalier.1 \
    share/man/man5/espalier-format.5 share/bash-completion/completions/espalier; do
    try "$file is installed" is_there "$tree/$file"
done
for header in "$source"/include/espalier/*.h; do
    try "$(basename "$header") is installed as it is" cmp "$header" \
        "$tree/include/espalier/$(basename "$header")"
done
try "the linker's name leads to the soname" test "$(readlink "$libdir/libespalier.so")" = "libespalier.so.${version%%.*}"
try "the soname leads to the library" test "$(readlink "$libdir/libespalier.so.${version%%.*}")" = "libespalier.so.$version"
# A clone may lie in a folder whose own name every installed path contains: look for what is in it.
grep -rlF -e "$build" -e "$source/src" -e "$source/include" -e "$source/cmake" -e "$source/cli" "$tree/include" "$libdir/cmake" "$libdir/pkgconfig" "$tree/share" >paths
try "no installed text names a folder of the build" test ! -s paths
try "the installed program runs" "$tree/bin/espalier" --version
try "the installed program is the version that was built" grep -q "^espalier $version " log

# ---- pkg-config ----
PKG_CONFIG_PATH=$libdir/pkgconfig
export PKG_CONFIG_PATH
# built NAME PROGRAM KIND: the program runs; it needs the shared library just when it should.
built() {
    try "$1 runs" env LD_LIBRARY_PATH="$libdir" "./$2" || return
    readelf -d "$2" >needed
    if [ "$3" = shared ]; then
        try "$1 needs the soname" grep -q "NEEDED.*\[libespalier.so.${version%%.*}\]" needed
        try "$1 needs nothing of the inside" lacks 'jansson\|pcre2\|utf8proc' needed
    else
        try "$1 needs no shared espalier" lacks libespalier needed
    fi
}
if has pkg-config; then
    try "pkg-config knows the version" test "$(pkg-config --modversion espalier)" = "$version"
    try "pkg-config: the shared library hides what it is made of" test \
        "$(pkg-config --libs espalier | tr -d ' ')" = "-L$(pkg-config --variable=libdir espalier)-lespalier"
    for language in C C++; do
        suffix=c compiler="${CC:-cc} -std=c17"
        [ $language = C++ ] && suffix=cpp compiler="${CXX:-c++} -std=c++17"
        if ! has "${compiler%% *}"; then
            not_run "programs in $language: there is no compiler"
            continue
        fi
        # shellcheck disable=SC2046,SC2086
        try "$language, pkg-config, shared: builds" $compiler $flags "$here/program.$suffix" -o "shared-$suffix" \
            $(pkg-config --cflags --libs espalier) -Wl,--as-needed &&
            built "$language, pkg-config, shared" "shared-$suffix" shared
        # shellcheck disable=SC2046,SC2086
        try "$language, pkg-config --static: builds" $compiler $flags "$here/program.$suffix" -o "static-$suffix" \
            $(pkg-config --static --cflags --libs espalier | sed 's/-lespalier/-l:libespalier.a/') &&
            built "$language, pkg-config --static" "static-$suffix" static
    done
    for example in compress_matmul generate; do
        # shellcheck disable=SC2046,SC2086
        try "example $example builds from the installed tree" "${CC:-cc}" -std=c17 $flags \
            "$(find "$tree/share/doc" -name $example.c)" -o $example $(pkg-config --cflags --libs espalier) -lm
    done
    [ -x compress_matmul ] && try "example compress_matmul agrees with plain loops" \
        env LD_LIBRARY_PATH="$libdir" ./compress_matmul
    if [ ! -f "$source/models/prose/model.safetensors" ]; then
        not_run "example generate: models/prose is not here"
    elif [ -x generate ] && try "example generate runs the shipped model" \
        env LD_LIBRARY_PATH="$libdir" ./generate "$source/models/prose" "The purpose of" 12; then
        try "example generate goes on from the prompt" grep -Eq '^The purpose of.{12,}' log
    fi
else
    not_run "pkg-config: it is not installed"
fi

# ---- find_package ----
# consume NAME LANGUAGE TARGET SUFFIX
consume() {
    try "$1: configures" cmake -S "$here/consumer" -B "cmake-$4-$3" -DCMAKE_PREFIX_PATH="$tree" \
        -DLANGUAGE="$2" -DLIBRARY="espalier::$3" -DPROGRAM="$here/program.$4" -DVERSION="$version" \
        -DCMAKE_C_FLAGS="$flags" -DCMAKE_CXX_FLAGS="$flags" || return
    try "$1: builds" cmake --build "cmake-$4-$3" || return
    cp "cmake-$4-$3/program" "cmake-program-$4-$3"
    kind=static
    [ "$3" = espalier ] && kind=shared
    built "$1" "cmake-program-$4-$3" $kind
}
for target in espalier static; do
    consume "C, find_package, espalier::$target" C $target c
    if has "${CXX:-c++}"; then
        consume "C++, find_package, espalier::$target" CXX $target cpp
    else
        not_run "C++, find_package, espalier::$target: there is no compiler"
    fi
done
refuses() { ! "$@"; }
try "find_package refuses another minor version" refuses cmake -S "$here/consumer" -B cmake-refused \
    -DCMAKE_PREFIX_PATH="$tree" -DLANGUAGE=C -DLIBRARY=espalier::espalier \
    -DPROGRAM="$here/program.c" -DVERSION=0.99
try "find_package says which version is there" grep -q "version: $version" log

# ---- pages ----
for page in man1/espalier.1 man5/espalier-format.5; do
    file=$tree/share/man/$page
    if has groff; then
        try "$page renders without a warning" sh -c "groff -man -Tutf8 -ww -Wbreak '$file' 2>warnings >page.txt && test ! -s warnings"
    elif has man; then
        try "$page renders without a warning" sh -c "man --warnings -P cat -l '$file' 2>warnings >page.txt </dev/null && test ! -s warnings"
    else
        not_run "$page: neither groff nor man is installed"
        try "$page has a title and a name" sh -c "grep -q '^\.TH ' '$file' && grep -q '^\.SH NAME$' '$file'"
    fi
done
# Every command and every option of its help is in the page.
sed 's/\\-/-/g; s/\\f[BRI]//g' "$tree/share/man/man1/espalier.1" >page.1
"$tree/bin/espalier" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p' >commands
while read -r command; do
    "$tree/bin/espalier" "$command" --help | grep -oE '^ +(-., )?--[a-z-]+' | sed 's/.*--/--/' >options
    sed -n "/^\.SS \"espalier $command\"/,/^\.SS\|^\.SH/p; /^\.SH OPTIONS/,/^\.SH EXIT/p" page.1 >part
    try "the page describes $command" grep -q "^\.SS \"espalier $command\"" page.1
    while read -r option; do
        try "the page describes $command $option" grep -qE -- "$option( |\$)" part
    done <options
done <commands

# ---- completion ----
if has bash; then
    completion=$tree/share/bash-completion/completions/espalier
    try "completion is valid bash" bash -n "$completion"
    # completes LINE WORDS: the last word of the line, broken as bash breaks it, gets these answers.
    completes() {
        try "completion of '$1'" bash "$here/complete.sh" "$completion" "$1"
        answers=$(sort log | tr '\n' ' ')
        try "completion of '$1' answers '$2', not '$answers'" test "$answers" = "$2${2:+ }"
    }
    completes "espalier pr" "prune"
    completes "espalier --v" "--version"
    completes "espalier prune --sea" "--search"
    completes "espalier prune m --search e" "exact"
    completes "espalier prune m --search=s" "swaps"
    completes "espalier prune m -p 64:2:" "5 8"
    completes "espalier prune m --pattern pan" "panel:64@0.75"
    completes "espalier eval m --compute b" "bf16"
    completes "espalier run m --prompt-f" "--prompt-file"
    completes "espalier eval m --text RE" ""
    completes "espalier verify --strict --js" "--json"
    while read -r command; do
        completes "espalier $command --thr" "--threads"
    done <commands
else
    not_run "completion: there is no bash"
fi

# ---- Debian packages ----
if [ "$sanitized" = ON ]; then
    not_run "Debian packages: a sanitized build is not packaged"
elif has cpack && has dpkg-deb && has dpkg-shlibdeps && has file; then
    sh "$here/debian.sh" "$build" "$version" >debian.log 2>&1
    grep -v '^debian: ' debian.log
    # shellcheck disable=SC2046
    set -- $(sed -n 's/^debian: \([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' debian.log)
    passed=$((passed + ${1:-0}))
    failed=$((failed + ${2:-1}))
else
    not_run "Debian packages: cpack, dpkg-deb, dpkg-shlibdeps or file is not installed"
fi
echo "install: $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
