#!/usr/bin/env bash
# Sets everything up on a bare machine and passes the tests. Safe to run again: what is there stays.
set -Eeuo pipefail
trap 'printf "tests: FAILED in line %s\n" "$LINENO" >&2' ERR

usage() {
    cat <<'HELP'
usage: bash tests/run.sh [--all] [--no-setup] [PYTEST OPTIONS]

Makes .venv, installs the packages and the servers the tests need, then checks the code (ruff,
shellcheck, hadolint; mypy and import-linter in the background) and runs pytest.

  --all        also the tests that take long (marked slow); with it, it takes some 20 minutes on two cores
  --heavy      those alone that build the container image or install whole frameworks: see the
               recipes; needs root, gigabytes of disk and a good half hour
  --no-setup   go straight to the checks and the tests
  -h, --help   this text

All else goes to pytest: bash tests/run.sh -k keeper -x

  VENV_DIR     the virtual environment; default .venv
  PYTHON       the interpreter to make it with (3.10 or newer)
  PYTEST_WORKERS   how many tests run at once; default 3, 0 for a debugger
HELP
}

chosen='not slow and not heavy and not remote' setup=1 arguments=()
while (($#)); do
    case $1 in
    --all) chosen='not heavy and not remote' ;;
    --heavy)
        chosen='heavy' SYNCD_CONTAINER_INSTALL=${SYNCD_CONTAINER_INSTALL-1} PYTEST_WORKERS=0
        export SYNCD_CONTAINER_INSTALL
        ;;
    --no-setup) setup='' ;;
    -h | --help)
        usage
        exit 0
        ;;
    *) arguments+=("$1") ;;
    esac
    shift
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
export VENV_DIR=${VENV_DIR:-$PWD/.venv}
unset PYTHONDONTWRITEBYTECODE # thousands of processes start here: each would compile it all again
export PIP_NO_COMPILE=1        # half a minute for what is mostly never imported
bin=$VENV_DIR/bin

step() { printf '\n== %s\n' "$*"; }

place=$(mktemp -d "${TMPDIR:-/tmp}/syncd-XXXX") # short: sockets lie below it, of 107 characters
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

servers=''
if [[ -n $setup ]]; then
    bash tests/servers/install.sh >"$place/servers.log" 2>&1 & # they come meanwhile
    servers=$!
    step "packages"
    bash start_vast.sh --install s3,gcs,azure,trainer,test
fi
export PATH=$bin:$PATH

mapfile -t scripts < <(git ls-files -co --exclude-standard -- '*.sh' .ci/run 2>/dev/null)
((${#scripts[@]})) || mapfile -t scripts < <(find . -name '*.sh' -not -path './.venv*' -not -path './tests/.servers/*')

step "ruff"
ruff check .
ruff format --check .
step "shellcheck"
shellcheck "${scripts[@]}"
step "hadolint"
hadolint Dockerfile
step "mypy and imports: what they find stands after the tests, or in $place/checks"
{ mypy && lint-imports; } >"$place/checks" 2>&1 &
checks=$!
if [[ -n $servers ]]; then
    step "servers"
    came=0
    wait "$servers" || came=$?
    cat "$place/servers.log"
    ((came == 0)) || exit "$came"
fi

step "pytest"
# Half of the time is waiting: for a quiet file, for a server, for the end of a process. What
# holds seconds against a bound comes afterwards, with little beside it.
failed=0
tests() {
    local code=0
    python -m pytest --basetemp "$place/t" "$@" "${arguments[@]}" || code=$?
    ((code == 0 || code == 5)) || failed=$code # 5: none was chosen
}
workers=${PYTEST_WORKERS:-3}
# The rig of machines that are lost takes ten minutes in CI and a quarter of a processor, and mostly
# waits: it goes beside the others. In a session of its own, to which Linux gives a share of its own.
rig='' others=()
if [[ $chosen == 'not heavy and not remote' ]] && ((workers && !${#arguments[@]})); then
    others=(--ignore tests/faults/test_torture.py)
    setsid python -m pytest --basetemp "$place/r" tests/faults/test_torture.py >"$place/rig" 2>&1 &
    rig=$!
fi
tests "${others[@]}" -n "$workers" --dist worksteal -m "($chosen) and not timed and not alone"
if [[ -n $rig ]]; then
    step "pytest, machines that are lost"
    wait "$rig" || failed=$?
    cat "$place/rig"
fi
marked() { # WORKERS MARK EXPRESSION
    local files=() # to gather all tests anew takes a quarter of a minute
    ((${#arguments[@]})) || mapfile -t files < <(grep -rlE "mark\.$2" --include='test_*.py' tests)
    tests "${files[@]}" -n "$((workers < $1 ? workers : $1))" --dist worksteal -m "($chosen) and $3"
}
step "pytest, with bounds in seconds"
marked 3 timed "timed and not alone"
step "pytest, one at a time"
marked 1 alone alone
step "mypy and imports"
wait "$checks" || failed=$?
cat "$place/checks"
((failed)) || rm -rf "$place"
exit "$failed"
