#!/bin/sh
# Puts the sources of GoogleTest into .cache/googletest, unless the system has them, and prints the
# folder that holds src/gtest-all.cc. Argument: a Python with pip to download with.
#
# The package index is asked because every other part of the set-up comes from there too; the wheel
# of ros-gtest-vendor carries the sources unchanged and nothing of it is installed.
set -eu

python=$1
cache=.cache/googletest
wheel=ros-gtest-vendor==1.15.1

for folder in /usr/src/googletest/googletest /usr/src/gtest "$cache"/*.data/data/src/gtest_vendor; do
    if [ -f "$folder/src/gtest-all.cc" ]; then
        echo "$folder"
        exit 0
    fi
done

mkdir -p "$cache"
if "$python" -m pip download --disable-pip-version-check --quiet \
    --no-deps --only-binary :all: --python-version 3.11 --platform manylinux_2_28_x86_64 \
    --dest "$cache" "$wheel" >&2; then
    "$python" -m zipfile -e "$cache"/ros_gtest_vendor-*.whl "$cache"
    for folder in "$cache"/*.data/data/src/gtest_vendor; do
        if [ -f "$folder/src/gtest-all.cc" ]; then
            echo "$folder"
            exit 0
        fi
    done
fi

cat >&2 <<'MESSAGE'
GoogleTest is neither on this system nor could it be downloaded.
  Debian, Ubuntu:  apt-get install libgtest-dev
  or name it:      make test-cpp GTEST_SOURCE=/path/to/googletest   (the folder with src/gtest-all.cc)
MESSAGE
exit 1
