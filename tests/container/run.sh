#!/usr/bin/env bash
# Builds the project's own Dockerfile on a stand-in base and runs it: no container engine and no
# registry is needed, but root, and apt-get for buildah, podman, runc and debootstrap.
# The first time takes some minutes and 3 GB below tests/.container (git-ignored); --forget removes it.
set -Eeuo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bin=${VENV_DIR:-$PWD/.venv}/bin
if [[ ${1-} == --forget ]]; then
    exec "$bin/python" -c 'from tests.container.engine import Engine; Engine().forget()'
fi
export SYNCD_CONTAINER_INSTALL=1 PATH=$bin:$PATH
exec python -m pytest -m "not remote" tests/e2e/test_container_image.py "$@"
