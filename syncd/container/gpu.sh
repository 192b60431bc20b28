#!/usr/bin/env bash
# A part of start_vast.sh: is there a GPU that torch can compute on?
# Uses from there: python, demo, cpu, EXIT_GPU, say, warn, die.
# shellcheck disable=SC2154,SC2034

gpu_trouble='' gpu_remedy='' gpus=''

# Sets gpus (CSV lines), or gpu_trouble and gpu_remedy.
look_for_gpus() {
    local code=0 limit=${GPU_CHECK_TIMEOUT:-20}
    if ! command -v nvidia-smi >/dev/null; then
        gpu_trouble='no NVIDIA GPU here: there is no nvidia-smi'
        gpu_remedy='in a container: was it started with --gpus all?'
        return
    fi
    gpus=$(timeout -k 2 "$limit" nvidia-smi --format=csv,noheader \
        --query-gpu=index,name,driver_version,memory.total,compute_cap 2>/dev/null) || code=$?
    if ((code == 124 || code == 137)); then
        gpu_trouble="nvidia-smi did not answer in $limit s: the driver of this machine hangs"
        gpu_remedy='destroy the instance and rent another one'
    elif ((code)) || [[ -z $gpus ]]; then
        gpu_trouble="nvidia-smi failed (exit $code): the driver does not work, or is older than 510"
        gpu_remedy='destroy the instance and rent another one, or run nvidia-smi to see its words'
    fi
    if [[ -n $gpu_trouble ]]; then gpus=''; fi
}

# The driver against the CUDA release torch was built for: 13.x needs 580, 12.x needs 525.
driver_rule() {
    local cuda=$1 driver need
    driver=$(head -n 1 <<<"$gpus" | awk -F', *' '{ print $3 }')
    case ${cuda%%.*} in
    11) need=450 ;;
    12) need=525 ;;
    13) need=580 ;;
    *) return 0 ;;
    esac
    if [[ $driver =~ ^[0-9]+ ]] && ((BASH_REMATCH[0] < need)); then
        gpu_trouble="driver $driver is too old for CUDA $cuda, which needs $need or newer"
        gpu_remedy='rent a machine with a newer driver, or use an image built for an older CUDA (BASE_IMAGE)'
    fi
}

# What torch says: its build, whether the build holds code for each GPU, one real kernel on each.
readonly PROVE_GPUS='
import sys, torch
if torch.version.cuda is None:
    sys.exit(f"torch {torch.__version__} is built without CUDA")
if not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no usable GPU")
def numbers(words):
    digits = "".join(c for c in words.partition("_")[2] if c.isdigit())
    return int(digits[:-1] or 0), int(digits[-1:] or 0)
for index in range(torch.cuda.device_count()):
    name, (major, minor) = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
    codes = torch.cuda.get_arch_list()
    fits = any(numbers(c)[0] == major and numbers(c)[1] <= minor for c in codes if c[:3] == "sm_")
    fits |= any(numbers(c) <= (major, minor) for c in codes if c[:8] == "compute_")
    if codes and not fits:
        sys.exit(f"torch {torch.__version__} has no code for {name} (compute capability {major}.{minor})")
    try:
        x = torch.ones(64, 64, device=f"cuda:{index}")
        total = float((x @ x).sum().cpu())
    except Exception as error:
        sys.exit(f"GPU {index}, {name}: {str(error).splitlines()[0]}")
    if total != 64.0**3:
        sys.exit(f"GPU {index}, {name} computes wrongly: {total} instead of {64.0**3}")
    print(f"start: gpu        {index}: {name}, compute {major}.{minor}: a kernel ran")
'

# The CUDA release of the torch that is here, without the seconds that importing it takes.
readonly READ_CUDA='
import importlib.util, pathlib, runpy
folder = pathlib.Path(importlib.util.find_spec("torch").origin).parent
print(runpy.run_path(str(folder / "version.py"))["cuda"] or "")
'

prove_gpus() {
    local cuda words code=0
    cuda=$(timeout 60 "$python" -c "$READ_CUDA" 2>/dev/null) || true
    if [[ -n $cuda ]]; then driver_rule "$cuda"; fi
    [[ -z $gpu_trouble ]] || return 0
    words=$(timeout -k 5 180 "$python" -c "$PROVE_GPUS" 2>&1) || code=$?
    if ((code == 124 || code == 137)); then
        gpu_trouble='a small computation on the GPU did not end in 180 s'
        gpu_remedy='destroy the instance and rent another one'
    elif ((code)); then
        gpu_trouble=$(tail -n 1 <<<"$words")
        gpu_remedy='an image whose CUDA covers this GPU and driver helps (BASE_IMAGE), or another machine'
    else
        printf '%s\n' "$words"
    fi
}

without_gpu() {
    export CUDA_VISIBLE_DEVICES=''
    cpu=1
}

# A GPU that cannot be used stops a real training, and sends the demo to the CPU.
judge_gpus() {
    [[ -n $gpu_trouble ]] || return 0
    if [[ -n $demo ]]; then
        warn "$gpu_trouble; the demo runs on the CPU"
        without_gpu
    else
        die "$EXIT_GPU" "$gpu_trouble" "$gpu_remedy" "to train without a GPU: bash start_vast.sh --cpu ..."
    fi
}
