#!/usr/bin/env bash
# The entrypoint: checks the machine, installs what is needed, restores, then runs trainer and
# syncd under supervisord. Safe to run again: at every start of a container, or by hand.
set -Eeuo pipefail

readonly EXIT_USAGE=2 EXIT_PYTHON=10 EXIT_PACKAGES=11 EXIT_GPU=12 EXIT_DATA=13 EXIT_CORRUPT=14 \
    EXIT_FOLDER=15 EXIT_UNEXPECTED=70
readonly TORCH_VERSION=2.13.0

usage() {
    cat <<'HELP'
usage: bash start_vast.sh [OPTIONS] [-- TRAINER OPTIONS]

Checks GPU, driver, disk and settings, installs what is needed, brings the newest complete
checkpoint back, then runs trainer and syncd until the training ends.

  --demo         a small training with its own data, everything under demo/; run it again and it
                 goes on; delete demo/checkpoints and it restores from demo/bucket
  --resume       go on from the newest checkpoint: the one on this disk, else the bucket's
  --data FILE    the market data to train on (or TRAINER_DATA); one that is not here is fetched
                 from the bucket, where `python -m syncd data put FILE` has put it
  --cpu          train without a GPU
  --check        only prove that everything is ready: a table, then end
  --detach       go on in the background and leave at once: for an on-start line; the output is
                 appended to .syncd/start.log. Started twice, the second says so and ends with 0
  --drop-in      print a program for the supervisord of Vast.ai's own image, with all other
                 options: > /etc/supervisor/conf.d/eigen2.conf
  --allow-new    with --resume: start a new training although nothing in the bucket is intact
  --install A,B  only make the environment with these extras (s3, gcs, azure, zstd, encrypt, trainer), then end
  -h, --help     this text
  -- ...         all that follows goes to the trainer: see python -m trainer --help

Settings come from the environment, then from process 1 of the container (a shell opened by SSH
does not have them), then from .env beside this script; .env.example explains each one.

  VENV_DIR        the virtual environment; default .venv beside this script
  PYTHON          the interpreter to make it with; default: the one that has torch, else any 3.10+

exit codes:
   0  the training finished; or it is running already (its status is printed)
   2  unknown option, or settings that cannot be used
  10  no usable Python 3.10 or newer
  11  packages could not be installed
  12  no usable GPU, or a driver too old for it
  13  the data file is missing or empty
  14  --resume, and nothing in the bucket is intact
  15  a folder cannot be written
  70  an unexpected failure; the line is named
 143  stopped from outside, after the last checkpoint was saved and flushed
      any other code is the trainer's own
HELP
}

# The table of --check: one row for each step that was taken.
rows=() step=''
row() { rows+=("$(printf '%-10s %-7s %s' "$step" "$1" "$2")"); }
table() {
    printf '\n%-10s %-7s %s\n' step state words
    printf '%s\n' "${rows[@]}"
}

# Words that cannot be written, on a full disk, decide nothing.
say() { printf '%s\n' "start: $*" || true; }
warn() { printf '%s\n' "start: WARNING: $*" >&2 || true; }
die() {
    local code=$1
    shift
    printf '%s\n' "start: ERROR: $1" >&2 || true
    if [[ -n ${check-} ]]; then
        row "FAILED" "$1"
        table
    fi
    shift
    local remedy
    for remedy in "$@"; do printf '%s\n' "       $remedy" >&2 || true; done
    exit "$code"
}
trap 'printf "start: ERROR: unexpected failure in line %s of %s\n" "$LINENO" "${BASH_SOURCE[0]}" >&2; exit '"$EXIT_UNEXPECTED" ERR
# As process 1 a shell without a trap never hears SIGTERM.
trap 'exit 143' TERM
trap 'exit 130' INT

# -- options

detach='' drop_in='' demo='' resume='' cpu='' check='' allow_new='' install='' data=''
trainer_args=()

absolute() { case $1 in /*) printf '%s' "$1" ;; *) printf '%s' "$PWD/$1" ;; esac; }

while (($#)); do
    case $1 in
    --detach) detach=1 ;;
    --drop-in) drop_in=1 ;;
    --demo) demo=1 ;;
    --resume) resume=1 ;;
    --cpu) cpu=1 ;;
    --check) check=1 ;;
    --allow-new) allow_new=1 ;;
    --data | --install)
        [[ -n ${2-} ]] || die "$EXIT_USAGE" "$1 needs a value" "bash start_vast.sh --help"
        if [[ $1 == --data ]]; then data=$(absolute "$2"); else install=$2; fi
        shift
        ;;
    --data=?*) data=$(absolute "${1#*=}") ;;
    --install=?*) install=${1#*=} ;;
    -h | --help)
        usage
        exit 0
        ;;
    --)
        shift
        trainer_args=("$@")
        break
        ;;
    *) die "$EXIT_USAGE" "unknown option: $1" "bash start_vast.sh --help" ;;
    esac
    shift
done
extras_known='s3|gcs|azure|zstd|encrypt|trainer|test'
[[ -z $install || $install =~ ^($extras_known)(,($extras_known))*$ ]] ||
    die "$EXIT_USAGE" "--install knows ${extras_known//|/, }; not: $install"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here"

# -- the lock: held until the container's supervisord ends

lock() {
    [[ -d .syncd ]] || mkdir -m 700 .syncd 2>/dev/null || true
    [[ -d .syncd && -w .syncd ]] ||
        die "$EXIT_FOLDER" "$here/.syncd cannot be written" \
            "run as the user who owns $here, or copy the project to a folder of your own"
    if ! command -v flock >/dev/null; then
        warn "flock is missing: starting twice at once is not prevented (apt-get install util-linux)"
        return
    fi
    { exec 9>>.syncd/start.lock; } 2>/dev/null ||
        die "$EXIT_FOLDER" "$here/.syncd/start.lock belongs to another user" "delete it, or run as that user"
    if ! flock -n 9; then
        say "already running in $here"
        local supervisorctl=${VENV_DIR:-$here/.venv}/bin/supervisorctl
        if [[ -S .syncd/supervisor.sock && -x $supervisorctl ]]; then
            "$supervisorctl" -c "$here/supervisord.conf" status 9>&- || true
        else
            say "it is still checking and installing"
        fi
        exit 0
    fi
}

# -- settings: own environment, then process 1's, then .env. None of their values is ever printed.

# What is taken from process 1 besides TRAINER_*, SYNCD_*, AWS_* and CLOUD_MIRROR_*, which are known by these words
# so that no new setting is forgotten here.
readonly KNOWN=" CLOUD_PROVIDER CLOUD_BUCKET CLOUD_PREFIX CLOUD_MIRROR CHECKPOINT_DIR LOG_DIR RESUME_FROM \
GOOGLE_APPLICATION_CREDENTIALS GOOGLE_CLOUD_PROJECT STORAGE_EMULATOR_HOST \
AZURE_STORAGE_CONNECTION_STRING CUDA_VISIBLE_DEVICES NVIDIA_VISIBLE_DEVICES VENV_DIR PYTHON \
ON_FINISH CONTAINER_ID CONTAINER_API_KEY VAST_URL VAST_CONTAINERLABEL GPU_COUNT PUBLIC_IPADDR "

# set_default NAME VALUE: what is set already, even to nothing, stays as it is
set_default() { [[ -n ${!1+set} ]] || export "$1=$2"; }

settings_of_process_1() {
    local pair name pairs=()
    [[ $$ -ne 1 ]] || return 0
    mapfile -d '' -t pairs < <(cat "${PROC_1_ENVIRON:-/proc/1/environ}" 2>/dev/null || true)
    for pair in "${pairs[@]}"; do
        name=${pair%%=*}
        if [[ $name =~ ^(TRAINER|SYNCD|AWS|CLOUD_MIRROR)_[A-Z0-9_]+$ || $KNOWN == *" $name "* ]]; then
            set_default "$name" "${pair#*=}"
        fi
    done
}

# Parsed, not sourced: a file of settings must not run commands. Knows what editors on other
# systems and other tools leave in it: CRLF, `export`, quotes, comments.
settings_of_file() {
    local line name value number=0
    [[ -f .env ]] || return 0
    [[ -r .env ]] ||
        die "$EXIT_USAGE" "$here/.env cannot be read by this user" "give it read permission, or remove the file"
    while IFS= read -r line || [[ -n $line ]]; do
        number=$((number + 1))
        line=${line%$'\r'}
        if ((number == 1)); then line=${line#$'\xef\xbb\xbf'}; fi
        [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
        if [[ ! $line =~ ^[[:space:]]*(export[[:space:]]+)?([A-Za-z_][A-Za-z0-9_]*)[[:space:]]*=[[:space:]]*(.*)$ ]]; then
            warn ".env line $number is not NAME=VALUE: it is not used"
            continue
        fi
        name=${BASH_REMATCH[2]} value=${BASH_REMATCH[3]}
        if [[ $value =~ ^\"((\\.|[^\"\\])*)\"[[:space:]]*(#.*)?$ ]]; then
            value=${BASH_REMATCH[1]}
            printf -v value '%b' "${value//\\\"/\"}"
        elif [[ $value =~ ^\'([^\']*)\'[[:space:]]*(#.*)?$ ]]; then
            value=${BASH_REMATCH[1]}
        elif [[ $value == [\"\']* ]]; then
            warn ".env line $number: the quote around $name is not closed: it is not used"
            continue
        else
            value=${value%%[[:space:]]#*}
            [[ $value == \#* ]] && value=''
            value=${value%"${value##*[![:space:]]}"}
        fi
        set_default "$name" "$value"
    done <.env
}

# What the demo needs stands before .env: a bucket of real work must not get the demo's files.
settings_of_demo() {
    set_default CLOUD_PROVIDER local
    if [[ $CLOUD_PROVIDER == local ]]; then set_default CLOUD_BUCKET "$here/demo/bucket"; fi
    set_default CHECKPOINT_DIR demo/checkpoints
    set_default LOG_DIR demo/logs
    set_default SYNCD_STATE_DIR demo/state
    mkdir -p demo/data "$CHECKPOINT_DIR" "$LOG_DIR" 2>/dev/null ||
        die "$EXIT_FOLDER" "the folders of the demo cannot be made in $here"
    if [[ $CLOUD_PROVIDER == local ]]; then mkdir -p "$CLOUD_BUCKET"; fi
    resume=1
}

# -- the machine

free_mb() { df -Pm "$1" 2>/dev/null | awk 'NR == 2 { print $4 }' || true; }

report_machine() {
    local disk shm folder=${CHECKPOINT_DIR:-checkpoints}
    [[ -n ${CONTAINER_ID-}${VAST_CONTAINERLABEL-} ]] &&
        say "instance   ${CONTAINER_ID:-${VAST_CONTAINERLABEL-}}"
    [[ -d $folder ]] || folder=$here
    disk=$(free_mb "$folder") shm=$(df -Pm /dev/shm 2>/dev/null | awk 'NR == 2 { print $2 }' || true)
    say "machine    $(uname -sm), $(getconf _NPROCESSORS_ONLN 2>/dev/null || echo '?') cores"
    say "disk       ${disk:-?} MB free for checkpoints"
    if [[ -n $disk ]] && ((disk < 5000)); then
        warn "less than 5 GB of disk are free: SYNCD_KEEP_LAST_LOCAL limits what stays here"
    fi
    if [[ -n $shm ]] && ((shm < 1000)); then
        warn "/dev/shm has ${shm} MB: loaders with many workers need 1 GB (docker run --shm-size=1g)"
    fi
}

# look_for_gpus, prove_gpus, judge_gpus: the last sends the demo to the CPU, or ends with EXIT_GPU
# shellcheck source=syncd/container/gpu.sh
source "$here/syncd/container/gpu.sh"

# make_environment and install_packages EXTRA...; they set python
# shellcheck source=syncd/container/packages.sh
source "$here/syncd/container/packages.sh"

# -- settings, data, checkpoints

check_settings() {
    local code=0
    if [[ ${CLOUD_PROVIDER:-local} == local && -z ${CLOUD_BUCKET-} ]]; then
        warn "CLOUD_BUCKET is not set: nothing is copied, and what this machine loses is lost"
    fi
    timeout -k 5 120 "$python" -m syncd check || code=$?
    if ((code == 2)); then
        die "$EXIT_USAGE" "the settings cannot be used: the faults are named above" \
            ".env.example explains every one of them"
    elif ((code)); then
        [[ -z $check ]] || die 1 "the bucket is not ready: the failed step and its remedy are above"
        warn "the bucket is not ready (the remedy is above): training starts, and syncd goes on trying"
    fi
}

check_data() {
    if [[ -n $demo && -z $data ]]; then
        data=$here/demo/data/demo.csv
        return
    fi
    : "${data:=${TRAINER_DATA-}}"
    [[ -n $data ]] || die "$EXIT_DATA" "no market data: name the file with --data FILE or TRAINER_DATA" \
        "to try it with made-up data: bash start_vast.sh --demo"
    if [[ ! -e $data && -n ${CLOUD_BUCKET-} ]]; then return; fi # fetched once packages are here
    [[ -f $data ]] || die "$EXIT_DATA" "the data file is not there: $data"
    [[ -s $data ]] || die "$EXIT_DATA" "the data file is empty: $data"
    [[ -r $data ]] || die "$EXIT_DATA" "the data file cannot be read by this user: $data"
}

fetch_data() {
    [[ -z $demo && ! -e $data ]] || return 0
    say "data       not here: fetching ${data##*/} from the bucket"
    "$python" -m syncd data get "${data##*/}" --to "$data" 9>&- ||
        die "$EXIT_DATA" "the data file is not there, and was not fetched: $data" \
            "put it into the bucket: python -m syncd data put FILE; or name another with --data"
    check_data
}

make_demo_data() {
    [[ -n $demo && ! -s $data && $data == "$here/demo/data/demo.csv" ]] || return 0
    "$python" -m trainer make-data "$data.part" >/dev/null 9>&-
    mv "$data.part" "$data"
    say "data       made $data"
}

restore() {
    local code=0
    "$python" -m syncd restore 9>&- || code=$?
    case $code in
    0) ;;
    2) die "$EXIT_USAGE" "the settings cannot be used: the faults are named above" ;;
    3)
        [[ -n $allow_new ]] || die "$EXIT_CORRUPT" "nothing in the bucket is intact: nothing was restored" \
            "python -m syncd verify names each fault; nothing was deleted or overwritten" \
            "to start a new training all the same: bash start_vast.sh --resume --allow-new"
        warn "nothing in the bucket is intact: a NEW training starts, as --allow-new says"
        resume=''
        ;;
    *)
        warn "------------------------------------------------------------------------------"
        warn "the bucket could not be read: it is NOT known whether there is a checkpoint."
        warn "A NEW training starts, in a run of its own; nothing committed is overwritten."
        warn "To go on from the bucket instead: stop this, mend the reason above, start again."
        warn "------------------------------------------------------------------------------"
        resume=''
        ;;
    esac
}

# -- other ways to be started

# The same options, for a start from another folder.
given() {
    local name
    for name in demo resume cpu check allow_new; do
        if [[ -n ${!name} ]]; then printf '%s\0' "--${name//_/-}"; fi
    done
    if [[ -n $data ]]; then printf '%s\0' --data "$data"; fi
    if ((${#trainer_args[@]})); then printf '%s\0' -- "${trainer_args[@]}"; fi
}

# The child takes the lock again: should two have come this far, the later one only says so.
go_on_in_background() {
    local words=()
    mapfile -d '' -t words < <(given)
    exec 9>&-
    nohup setsid bash "$here/start_vast.sh" "${words[@]}" >>.syncd/start.log 2>&1 </dev/null &
    say "started in the background, process $!; its output goes to $here/.syncd/start.log"
    exit 0
}

print_drop_in() {
    local word options=''
    while IFS= read -r -d '' word; do
        printf -v word '%q' "$word"
        options+=" ${word//%/%%}"
    done < <(given)
    cat <<CONF
[program:eigen2]
command=bash ${here//%/%%}/start_vast.sh$options
directory=${here//%/%%}
autorestart=false
startsecs=0
; what the training's own supervisord needs to save and to flush
stopwaitsecs=200
stopasgroup=false
killasgroup=true
redirect_stderr=true
stdout_logfile=${here//%/%%}/.syncd/start.log
stdout_logfile_maxbytes=0
CONF
}

# -- the way

if [[ -n $drop_in ]]; then
    print_drop_in
    exit 0
fi
if [[ -z $install ]]; then lock; fi
if [[ -n $detach ]]; then go_on_in_background; fi
if [[ -n $demo ]]; then settings_of_demo; fi
settings_of_process_1
settings_of_file
venv=${VENV_DIR:-$here/.venv}
python=''

if [[ -n $install ]]; then
    make_environment
    IFS=, read -r -a extras <<<"$install"
    install_packages "${extras[@]}"
    exit 0
fi

case ${CLOUD_PROVIDER:-local} in
s3 | gcs | azure) extras=(trainer "$CLOUD_PROVIDER") ;;
local) extras=(trainer) ;;
*) die "$EXIT_USAGE" "CLOUD_PROVIDER is none of s3, gcs, azure, local" ".env.example explains it" ;;
esac
case ${CLOUD_MIRROR-} in
s3:* | gcs:* | azure:*) extras+=("${CLOUD_MIRROR%%:*}") ;;
gs:*) extras+=(gcs) ;;
esac
if [[ ${SYNCD_COMPRESS:-off} != off ]]; then extras+=(zstd); fi
if [[ -n ${SYNCD_ENCRYPT_KEY-}${SYNCD_ENCRYPT_KEY_FILE-} ]]; then extras+=(encrypt); fi

report_machine
step=gpu
if [[ -n $cpu ]]; then
    row skipped "--cpu"
    say "gpu        not used (--cpu)"
    without_gpu
else
    look_for_gpus
    judge_gpus
    if [[ -n $gpus ]]; then
        while IFS= read -r line; do say "gpu        $line"; done <<<"$gpus"
    fi
fi
step=data
check_data
step=python
make_environment
row ok "$venv"
step=packages
install_packages "${extras[@]}"
row ok "${extras[*]}"
step=gpu
if [[ -z $cpu ]]; then
    prove_gpus
    judge_gpus
    [[ -n $cpu ]] || row ok "$(head -n 1 <<<"$gpus")"
fi
make_demo_data
step=bucket
check_settings
row ok "${CLOUD_PROVIDER:-local} ${CLOUD_BUCKET:-none: nothing is copied}"
step=data
fetch_data
row ok "$data"
if [[ -n $check ]]; then
    table
    say "ready: nothing stands in the way of the training"
    exit 0
fi
if [[ -n $resume ]]; then restore; fi

if [[ -n $demo ]]; then trainer_args=(--demo "${trainer_args[@]}"); fi
if [[ -n $data ]]; then trainer_args+=(--data "$data"); fi
if [[ -n $resume ]]; then trainer_args=(--resume "${trainer_args[@]}"); fi
exec "$python" -m syncd.container --config "$here/supervisord.conf" -- "${trainer_args[@]}"
