#!/usr/bin/env bash
# A part of start_vast.sh: a Python, its environment, and the packages in it.
# Uses from there: venv, here, TORCH_VERSION, EXIT_PYTHON, EXIT_PACKAGES, say, warn, die.
# shellcheck disable=SC2154,SC2034

usable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }
has() { "$1" -c "import importlib.util as u, sys; sys.exit(any(u.find_spec(n) is None for n in sys.argv[1:]))" "${@:2}" >/dev/null 2>&1; }

# Prints the interpreter to make the environment with: the one that has torch, else one with venv.
find_python() {
    local name found=()
    if [[ -n ${PYTHON-} ]]; then
        usable "$PYTHON" || return 1
        printf '%s' "$PYTHON"
        return
    fi
    for name in python3 python3.12 python3.11 python3.13 python3.10 python; do
        if command -v "$name" >/dev/null && usable "$name"; then found+=("$name"); fi
    done
    for name in "${found[@]}"; do
        if has "$name" torch; then printf '%s' "$name" && return; fi
    done
    for name in "${found[@]}"; do
        if has "$name" venv ensurepip; then printf '%s' "$name" && return; fi
    done
    if ((${#found[@]})); then printf '%s' "${found[0]}" && return; fi
    return 1
}

# An image may keep its torch in an environment, too. One that is made over it sees what the system
# has, not what that one has: Python follows an environment to its system alone.
readonly SEE_BASE='
import pathlib, sys, sysconfig
if sys.prefix != sys.base_prefix:
    paths = sorted({sysconfig.get_path(name) for name in ("purelib", "platlib")})
    lines = [f"import site; site.addsitedir({path!r})\n" for path in paths]
    pathlib.Path(sys.argv[1], "base-environment.pth").write_text("".join(lines), encoding="utf-8")
'
packages_of() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

make_environment() {
    local base
    python=$venv/bin/python
    if usable "$python" && "$python" -c 'import pip' >/dev/null 2>&1; then return; fi
    base=$(find_python) || die "$EXIT_PYTHON" "no Python 3.10 or newer found" \
        "Debian, Ubuntu: apt-get install -y python3 python3-venv; or set PYTHON=/path/to/python3"
    base=$(command -v "$base") # by its path: the new one may soon be the first of that name
    say "python     $("$base" -c 'import sys; print(sys.executable, sys.version.split()[0])'), environment $venv"
    mkdir -p "$(dirname "$venv")" 2>/dev/null || true
    made_over "$base" || die "$EXIT_PYTHON" "$base cannot make a virtual environment in $venv" \
        "Debian, Ubuntu: apt-get install -y python3-venv; or pip install virtualenv; then again"
    "$base" -c "$SEE_BASE" "$(packages_of "$python")"
}

made_over() {
    if has "$1" venv ensurepip && "$1" -m venv --clear --system-site-packages "$venv" 9>&-; then return; fi
    "$1" -m virtualenv --version >/dev/null 2>&1 ||
        "$1" -m pip install --quiet virtualenv 9>&- 2>/dev/null || return 1
    "$1" -m virtualenv --quiet --clear --system-site-packages "$venv" 9>&-
}

# A machine that vanished while pip wrote leaves a package without the list of its files, which pip
# then takes for whole, or fails over.
forget_half_installed() {
    local packages info
    packages=$(packages_of "$python")
    [[ $packages == "$venv"/* ]] || return 0
    for info in "$packages"/*.dist-info; do
        if [[ -d $info && ! -e $info/RECORD ]]; then rm -rf "$info"; fi
    done
}

pip_install() {
    local try
    for try in 1 2 3; do
        forget_half_installed
        if "$python" -m pip install --quiet --disable-pip-version-check --prefer-binary "$@" 9>&-; then return; fi
        if ((try < 3)); then
            warn "installing failed (try $try of 3); again in $((try * 5)) s"
            sleep $((try * ${PIP_RETRY_DELAY:-5})) 9>&-
        fi
    done
    die "$EXIT_PACKAGES" "packages could not be installed: pip's words are above" \
        "is there a network, and room on the disk? then run the same command again"
}

# install_packages EXTRA...: skipped when this very pyproject.toml's were installed before
install_packages() {
    local stamp=$venv/.installed hash extra missing=() torch
    hash=$(sha256sum pyproject.toml | cut -d ' ' -f 1)
    for extra in "$@"; do
        grep -qsx "$hash $extra $here" "$stamp" || missing+=("$extra")
    done
    if ((${#missing[@]} == 0)) && has "$python" syncd trainer torch; then return; fi
    if ! has "$python" torch; then
        say "packages   torch $TORCH_VERSION (the largest part; this takes a while)"
        pip_install "torch==$TORCH_VERSION"
    fi
    # No dependency may replace the torch that is here: it fits the image's CUDA.
    torch=$("$python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null || true)
    printf '%s\n' "${torch:+torch==$torch}" >"$venv/constraints.txt"
    case $torch in 2.[0-2].*) echo 'numpy<2' >>"$venv/constraints.txt" ;; esac # these know no other
    say "packages   ${*} (torch ${torch:-as it is} stays)"
    pip_install --constraint "$venv/constraints.txt" -e ".[$(IFS=, && printf '%s' "$*")]"
    for extra in "$@"; do printf '%s\n' "$hash $extra $here"; done >>"$stamp"
}
