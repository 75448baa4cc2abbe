#!/bin/sh
# Prints a Python that can make an environment and compile an extension: 3.10 to 3.13, with venv,
# ensurepip and Python.h. With an argument such as 3.13 only that version will do. Says what is
# missing where there is none.
set -eu

probe='
import ensurepip, os, sys, sysconfig, venv
header = os.path.join(sysconfig.get_path("include"), "Python.h")
version = sys.version_info[:2]
wanted = [tuple(map(int, name.split("."))) for name in sys.argv[1:]] or [version]
sys.exit(not ((3, 10) <= version <= (3, 13) and version in wanted and os.path.exists(header)))
'
if [ $# -eq 0 ]; then
    set -- python3 python3.13 python3.12 python3.11 python3.10
    version=
else
    version=$1
    set -- "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python
fi
for name in "$@"; do
    if command -v "$name" >/dev/null && "$name" -c "$probe" $version >/dev/null 2>&1; then
        command -v "$name"
        exit 0
    fi
done

cat >&2 <<MESSAGE
No usable Python was found. Wanted: Python ${version:-3.10 to 3.13} with venv and the headers for extensions.
  Debian, Ubuntu:  apt-get install python3-venv python3-dev
  or name one:     make HOST_PYTHON=/path/to/python3
MESSAGE
exit 1
