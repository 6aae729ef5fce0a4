#!/bin/sh
# Makes sure that the Debian packages for a goal are there: installs them when root, else names them
# and stops. Usage: setup.sh demo|test
set -eu
build="gcc libc6-dev make cmake ninja-build pkg-config libjansson-dev libpcre2-dev libutf8proc-dev
libjpeg62-turbo-dev libpng-dev"
# Dense products on the CPU, found at run time: rivals and dense candidates.
dense=
[ "$(dpkg --print-architecture 2>/dev/null)" = amd64 ] && dense="libopenblas0-pthread libdnnl2"
case ${1:-} in
demo) packages="$build $dense" ;;
test) packages="$build $dense g++ perl binutils dpkg-dev file groff-base" ;;
*)
    echo "usage: $0 demo|test" >&2
    exit 2
    ;;
esac

missing=
for package in $packages; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing="$missing $package"
done
[ -z "$missing" ] && exit 0
if ! command -v apt-get >/dev/null 2>&1; then
    echo "This set-up knows Debian 12. Install the equivalents of:$missing" >&2
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    echo "Packages are missing. As root: apt-get install --no-install-recommends$missing" >&2
    exit 1
fi
echo "Installing:$missing"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 || {
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends $missing >/dev/null
}
