#!/bin/sh
# Prints the first Python on the PATH that can make an environment and compile an extension:
# 3.10 to 3.13, with venv and ensurepip, with Python.h. Says what is missing where there is none.
set -eu

probe='
import ensurepip, os, sys, sysconfig, venv
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not ((3, 10) <= sys.version_info[:2] <= (3, 13) and os.path.exists(header)))
'
for name in python3 python3.13 python3.12 python3.11 python3.10; do
    if command -v "$name" >/dev/null 2>&1 && "$name" -c "$probe" >/dev/null 2>&1; then
        command -v "$name"
        exit 0
    fi
done

cat >&2 <<'MESSAGE'
No usable Python was found. Wanted: Python 3.10 to 3.13 with venv and the headers for extensions.
  Debian, Ubuntu:  apt-get install python3-venv python3-dev
  or name one:     make HOST_PYTHON=/path/to/python3
MESSAGE
exit 1
