#!/bin/sh
# Installs what the build needs from the system: FFmpeg's development files (video decoding),
# clang (bindings), pkg-config, g++ and make (ZeroMQ, libsodium).
set -eu

libraries="libavformat libavcodec libavutil libswscale libswresample libavfilter libavdevice"
packages="libavformat-dev libavcodec-dev libavutil-dev libswscale-dev libswresample-dev
libavfilter-dev libavdevice-dev clang pkg-config g++ make"

complete() {
    command -v clang >/dev/null 2>&1 && command -v pkg-config >/dev/null 2>&1 &&
        command -v g++ >/dev/null 2>&1 && command -v make >/dev/null 2>&1 &&
        pkg-config --exists $libraries
}

if complete; then
    exit 0
fi

by_hand="install FFmpeg 5.1 or newer with its development files, clang, pkg-config and g++ \
(Fedora: dnf install ffmpeg-devel clang pkgconf gcc-c++; Arch: pacman -S ffmpeg clang pkgconf gcc; \
macOS: brew install ffmpeg pkg-config llvm)"

if ! command -v apt-get >/dev/null 2>&1; then
    echo "error: system packages are missing and there is no apt-get; $by_hand" >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    as_root=""
elif command -v sudo >/dev/null 2>&1; then
    as_root="sudo"
else
    echo "error: system packages are missing and this is neither root nor sudo; $by_hand" >&2
    exit 1
fi
echo "installing FFmpeg development files, clang, pkg-config and g++ with apt-get"
$as_root apt-get update -qq
# shellcheck disable=SC2086
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages
complete || { echo "error: packages are still missing; $by_hand" >&2; exit 1; }
