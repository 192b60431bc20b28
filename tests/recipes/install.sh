#!/usr/bin/env bash
# Installs the frameworks of docs/recipes into tests/.recipes/ (git-ignored), beside the torch of the
# interpreter in $PYTHON, which is never replaced: no CUDA package comes along.
#
#     bash tests/recipes/install.sh lightning jax     one line for each: installed, or why not
set -euo pipefail

PYTHON=${PYTHON:-python3}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.recipes
declare -A needs=(
    [lightning]="lightning"
    [transformers]="transformers accelerate"
    [accelerate]="accelerate"
    [deepspeed]="deepspeed"
    [sb3]="stable-baselines3"
    [orbax]="jax orbax-checkpoint"
)

if [ ! -x "$here/bin/python" ]; then
    "$PYTHON" -m venv "$here"
fi
site=$("$here/bin/python" -c 'import site; print(site.getsitepackages()[0])')
# torch and numpy are seen there, and counted as installed, without being copied
"$PYTHON" -c 'import sys; print(*(p for p in sys.path if p.endswith("-packages")), sep="\n")' >"$site/beside.pth"
"$PYTHON" - >"$here/constraints.txt" <<'PY'
from importlib.metadata import version
print(f"torch=={version('torch').partition('+')[0]}\nnumpy=={version('numpy')}")
PY

# DeepSpeed compiles a part of itself at its first start: done here, once, where it may take its time
export TORCH_EXTENSIONS_DIR=$here/torch_extensions DS_ACCELERATOR=cpu
first_start() {
    [ "$1" != deepspeed ] || {
        find "$TORCH_EXTENSIONS_DIR" -name lock -delete 2>/dev/null || true
        "$here/bin/python" -c \
            'from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder as B; B().load()'
    }
}

failed=0
for name in "$@"; do
    wanted=${needs[$name]:?unknown framework}
    stamp="$here/$name.txt"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        continue
    fi
    # shellcheck disable=SC2086  # a list of requirements
    if DS_BUILD_OPS=0 "$here/bin/python" -m pip install --quiet --disable-pip-version-check \
        --no-build-isolation -c "$here/constraints.txt" $wanted >"$here/$name.log" 2>&1 &&
        PATH=$here/bin:$PATH first_start "$name" >>"$here/$name.log" 2>&1; then
        echo "$wanted" >"$stamp"
        echo "$name: installed"
    else
        echo "$name: $(grep -m1 ERROR "$here/$name.log" || tail -n 1 "$here/$name.log")"
        failed=1
    fi
done
if find "$site" -maxdepth 1 \( -name 'nvidia_*' -o -name 'torch-*' -o -name triton \) | grep -q .; then
    echo "a CUDA package, or another torch, has come along: look at tests/.recipes" >&2
    exit 2
fi
exit "$failed"
