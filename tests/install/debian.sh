#!/bin/sh
# Makes the Debian packages of a build and looks at what they hold and need. Works in the current folder.
# Usage: debian.sh BUILD_DIR VERSION
set -u
build=$1 version=$2
passed=0 failed=0
check() { # NAME COMMAND...
    name=$1
    shift
    if "$@" >out 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL install: $name"
        tail -n 10 out | sed 's/^/    /'
    fi
}
lacks() { ! grep -Eq "$1" "$2"; }
field() { dpkg-deb -f "$1" "$2" >"$2" && grep -Eq "$3" "$2"; }

check "cpack makes packages" cpack --config "$build/CPackConfig.cmake" -B "$PWD/packages"
arch=$(dpkg --print-architecture)
for package in libespalier0 libespalier-dev espalier; do
    deb=packages/${package}_${version}_$arch.deb
    check "$package: dpkg-deb lists it" dpkg-deb -c "$deb"
    # Files but not folders, without their times and owners, libraries in whatever folder they are.
    awk '$1 !~ /^d/ {print $6}' out | sed 's,^\./,/,; s,^/usr/lib/[^/]*-linux-[^/]*/,/usr/lib/,' | sort >"$package.list"
    awk '$2 != "root/root" || ($1 ~ /^-/ && $1 !~ /^-rw-r--r--$|^-rwxr-xr-x$/)' out >odd
    check "$package: owners and permissions" test ! -s odd
    check "$package: nothing outside /usr" lacks '^/[^u]|^/usr/local' "$package.list"
    dpkg-deb --ctrl-tarfile "$deb" | tar -xO ./control >control
    check "$package: the description is in Debian's form" test "$(sed '1,/^Description: [a-z]/d; /^[A-Z]/,$d' control |
        grep -cv '^ [^ ]')" = 0
    check "$package: has its terms" grep -qx "/usr/share/doc/$package/copyright" "$package.list"
    for name in Maintainer Section Description Architecture; do
        check "$package: has a $name" field "$deb" $name .
    done
done
cat libespalier0.list libespalier-dev.list espalier.list | sort >all
check "no file is in two packages" test -z "$(uniq -d all)"
check "libespalier0: the library" grep -qx "/usr/lib/libespalier.so.$version" libespalier0.list
check "libespalier0: the soname" grep -qx "/usr/lib/libespalier.so.${version%%.*}" libespalier0.list
check "libespalier0: nothing for development" lacks '\.so$|\.a$|\.h$|/bin/' libespalier0.list
for file in lib/libespalier.so lib/libespalier.a lib/pkgconfig/espalier.pc include/espalier/base.h \
    lib/cmake/espalier/espalier-config.cmake; do
    check "libespalier-dev: $file" grep -qx "/usr/$file" libespalier-dev.list
done
for file in bin/espalier share/man/man1/espalier.1 share/man/man5/espalier-format.5 \
    share/bash-completion/completions/espalier; do
    check "espalier: $file" grep -qxE "/usr/$file(.gz)?" espalier.list
done
for package in libespalier0 espalier; do
    deb=packages/${package}_${version}_$arch.deb
    for need in libc6 libjansson4 libpcre2-8-0 libutf8proc; do
        check "$package: depends on $need" field "$deb" Depends "(^|, )$need"
    done
done
check "libespalier-dev: depends on the library of this version" field \
    "packages/libespalier-dev_${version}_$arch.deb" Depends "libespalier0 \(= $version\)"
check "libespalier0: runs ldconfig" sh -c \
    "dpkg-deb --ctrl-tarfile packages/libespalier0_${version}_$arch.deb | tar -xO ./postinst | grep -qw ldconfig"
check "libespalier0: tells other packages its soname" sh -c \
    "dpkg-deb --ctrl-tarfile packages/libespalier0_${version}_$arch.deb | tar -xO ./shlibs | grep -q '^libespalier 0 libespalier0'"
echo "debian: $passed passed, $failed failed"
