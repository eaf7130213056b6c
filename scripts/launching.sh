# What every launcher shares: the Python, the GPUs that CUDA will show, and the command that starts the processes.
#
# Sourced, never run. Nothing here changes the working folder: a relative path means the caller's, and the checkout is
# found by this file's own place. docs/gpus_and_clusters.md explains the variables: PYTHON, GPUS, CUDA_VISIBLE_DEVICES,
# NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT, HOSTFILE, LAUNCHER.
# shellcheck shell=bash
# shellcheck disable=SC2034  # what is set here is read by the scripts that source this
checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

fail() {
    echo "error: $*" >&2
    exit 2
}

choose_python() {  # sets python (a path), and chosen: where it comes from
    local venv="${VIRTUAL_ENV:-}" conda="${CONDA_PREFIX:-}" own="$checkout/.venv/bin/python"
    [[ -x "$venv/bin/python" ]] || venv=""
    [[ -x "$conda/bin/python" ]] || conda=""
    # conda opens its base in every shell: nobody chose it over an environment made for this checkout.
    if [[ "${CONDA_DEFAULT_ENV:-}" == base && -x "$own" ]]; then conda=""; fi
    # Both active: the one activated last comes first in PATH.
    if [[ -n "$venv" && -n "$conda" && ":${PATH//:/::}:" == *":$conda/bin:"*":$venv/bin:"* ]]; then venv=""; fi
    if [[ -n "${PYTHON:-}" ]]; then
        python="$(type -P "$PYTHON")" || fail "PYTHON=$PYTHON: no such program"
        chosen="PYTHON="
    elif [[ -n "$venv" ]]; then
        python="$venv/bin/python" chosen="the active virtual environment"
    elif [[ -n "$conda" ]]; then
        python="$conda/bin/python" chosen="the active conda environment"
    elif [[ -x "$own" ]]; then
        python="$own" chosen="the checkout's .venv"
    else
        python="$(type -P python || type -P python3)" || fail "no Python here: activate an environment or set PYTHON="
        chosen="found in PATH, no environment is active"
    fi
}

prepare_environment() {  # variables of every process, where the caller has not set them
    # This checkout's code runs, whatever the working folder holds: that comes last instead of first.
    export PYTHONPATH="$checkout${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
    export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
    # glibc gives every large tensor back to the system and asks for it again: a third of a step on CPU.
    export MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_:-0}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-4294967296}"
}

list_gpus() {  # sets uuids (of the GPUs), slices (MIG devices), sliced (GPUs cut into such), model, complaint
    local line output status=0 gpu='^GPU [0-9]+: (.*)' uuid='\(UUID: ([^)]+)\)' mig='^[[:space:]]+MIG '
    uuids=() slices=() sliced=() model="" complaint=""
    type -P nvidia-smi >/dev/null || return 0
    output="$(timeout 60 nvidia-smi -L 2>&1)" || status=$?
    while IFS= read -r line; do
        if [[ "$line" =~ $gpu ]]; then
            model="${BASH_REMATCH[1]% (UUID*}"
            if [[ "$line" =~ $uuid ]]; then uuids+=("${BASH_REMATCH[1]}"); else uuids+=("GPU-"); fi
        elif [[ "$line" =~ $mig ]] && [[ "$line" =~ $uuid ]]; then
            slices+=("${BASH_REMATCH[1]}")
            sliced[${#uuids[@]} - 1]=1
        fi
    done <<<"$output"
    if (( ${#uuids[@]} == 0 )); then complaint="nvidia-smi: ${output%%$'\n'*}"; fi
    if (( status == 124 )); then complaint="nvidia-smi gave no answer within a minute"; fi
}

ordinal_of() {  # UUID: prints the number of the one GPU whose UUID begins so; fails for none and for several
    local number found=""
    for ((number = 0; number < ${#uuids[@]}; number++)); do
        [[ "${uuids[number]}" == "$1"* ]] || continue
        [[ -z "$found" ]] || return 1
        found=$number
    done
    [[ -n "$found" ]] && echo "$found"
}

is_slice() {  # whether a MIG device is here: MIG-UUID as nvidia-smi prints it, or MIG-GPU-UUID/instance/instance
    local number old='^MIG-(GPU-[^/]+)/[0-9]+/[0-9]+$'
    for ((number = 0; number < ${#slices[@]}; number++)); do [[ "${slices[number]}" != "$1"* ]] || return 0; done
    [[ "$1" =~ $old ]] && ordinal_of "${BASH_REMATCH[1]}" >/dev/null
}

# Sets visible: the devices that CUDA will show, each as CUDA_VISIBLE_DEVICES names it.
# The rules are CUDA's and torch's. A list has one kind of entry: numbers, or UUIDs, which may be cut short. The first
# entry that names nothing hides itself and all behind it; an entry that is repeated hides all; a process sees one MIG
# device and nothing beside it.
find_visible() {
    local number ordinal kind=number seen=" " digits='^[[:space:]]*\+?([0-9]{1,9})'
    local -a entries=()
    visible=()
    if [[ -z "${CUDA_VISIBLE_DEVICES+set}" ]]; then
        for ((number = 0; number < ${#uuids[@]}; number++)); do entries+=("$number"); done
    else
        IFS=, read -ra entries <<<"$CUDA_VISIBLE_DEVICES"
        case "$CUDA_VISIBLE_DEVICES" in GPU-*) kind=GPU- ;; MIG-*) kind=MIG- ;; esac
    fi
    for ((number = 0; number < ${#entries[@]}; number++)); do  # as far as they are of one kind
        if [[ "$kind" == number ]]; then
            [[ "${entries[number]}" =~ $digits ]] || break
            entries[number]=$((10#${BASH_REMATCH[1]}))
        else
            [[ "${entries[number]}" == "$kind"* ]] || break
        fi
        [[ "$seen" != *" ${entries[number]} "* ]] || return 0
        seen+="${entries[number]} "
    done
    local known=$number
    seen=" "
    for ((number = 0; number < known; number++)); do
        ordinal="${entries[number]}"
        if [[ "$kind" == MIG- ]]; then
            if is_slice "$ordinal"; then visible=("$ordinal"); fi
            return 0
        elif [[ "$kind" == GPU- ]]; then
            ordinal="$(ordinal_of "$ordinal")" || return 0
        fi
        (( ordinal < ${#uuids[@]} )) || return 0
        if [[ "$seen" == *" $ordinal "* ]]; then visible=() && return 0; fi
        seen+="$ordinal "
        if [[ -n "${sliced[ordinal]:-}" ]]; then visible=("${entries[number]}") && return 0; fi
        visible+=("${entries[number]}")
    done
}

cpu_is_asked() {  # by GPUS=0, or by hiding every GPU as one does on purpose
    [[ "${GPUS:-}" =~ ^0+$ || "${CUDA_VISIBLE_DEVICES-all}" =~ ^[[:space:]]*(-1.*)?$ ]]
}

choose_devices() {  # sets processes (on this host) and devices (in words); hides GPUs that get no process
    [[ "${GPUS:-0}" =~ ^[0-9]{1,6}$ ]] || fail "GPUS=$GPUS: must be a whole number, the processes of this host"
    list_gpus
    find_visible
    local all=${#uuids[@]} shown=${#visible[@]} wanted=$((10#${GPUS:-${#visible[@]}})) setting=""
    if cpu_is_asked; then
        devices="the CPU (CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-})"
        if [[ -n "${GPUS:-}" ]] && (( wanted == 0 )); then
            devices="the CPU (GPUS=0)"
            export CUDA_VISIBLE_DEVICES=""
        fi
    elif (( all == 0 )); then
        devices="the CPU (${complaint:-no GPU here})"
    else
        if [[ -n "${CUDA_VISIBLE_DEVICES+set}" ]]; then setting=" (CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES)"; fi
        (( wanted <= shown )) || fail "GPUS=$GPUS, but CUDA shows $shown of this host's $all GPUs$setting"
        if (( wanted < shown )); then
            CUDA_VISIBLE_DEVICES="$(IFS=, && echo "${visible[*]:0:wanted}")"
            export CUDA_VISIBLE_DEVICES
            setting=" (CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES)"
        fi
        devices="$wanted of $all GPUs, $model$setting"
    fi
    processes=$((wanted > 1 ? wanted : 1))
}

count_ranks() {  # prints how many processes there will be on all hosts
    if [[ -n "${HOSTFILE:-}" ]]; then
        [[ -f "$HOSTFILE" ]] || fail "HOSTFILE=$HOSTFILE: there is no such file"
        sed -n 's/^[^#]*slots=\([0-9][0-9]*\).*/\1/p' "$HOSTFILE" | awk '{ sum += $1 } END { print sum + 0 }'
    elif [[ "${LAUNCHER:-}" == srun ]]; then
        echo "${SLURM_NTASKS:-1}"
    else
        echo $((processes * ${NNODES:-1}))
    fi
}

choose_launcher() {  # MODULE: sets command (what starts its processes), how (in words) and ranks
    local port="${MASTER_PORT:-29500}" meet
    if [[ -z "${MASTER_PORT:-}" && -n "${SLURM_JOB_ID:-}" ]]; then port=$((20000 + SLURM_JOB_ID % 20000)); fi
    ranks="$(count_ranks)"
    if [[ -n "${HOSTFILE:-}" ]]; then
        meet=(--master_port "$port")  # deepspeed asks the first host for its address
        if [[ -n "${MASTER_ADDR:-}" ]]; then meet+=(--master_addr "$MASTER_ADDR"); fi
        command=("$python" -m deepspeed.launcher.runner --hostfile "$HOSTFILE" "${meet[@]}" --no_local_rank --module)
        command+=("$1")
        how="by the deepspeed launcher on the hosts of $HOSTFILE"
    elif [[ "${LAUNCHER:-}" == srun ]]; then
        [[ -n "${MASTER_ADDR:-}" ]] || fail "LAUNCHER=srun needs MASTER_ADDR, the first host (scripts/slurm)"
        export MASTER_ADDR MASTER_PORT="$port"
        # srun takes --cpus-per-task from its own options alone, not from the job's.
        command=(srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"}
            bash "$checkout/scripts/slurm/task.sh" "$python" -m "$1")
        how="by srun"
    elif [[ -n "${LAUNCHER:-}" ]]; then
        fail "LAUNCHER=$LAUNCHER: the one launcher that has to be named is srun"
    elif (( ${NNODES:-1} > 1 )); then
        meet=(--nnodes "$NNODES" --node_rank "${NODE_RANK:-0}")
        meet+=(--master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "$port")
        command=("$python" -m torch.distributed.run "${meet[@]}" --nproc_per_node "$processes" -m "$1")
        how="by torchrun on $NNODES hosts, this one number ${NODE_RANK:-0}"
    elif (( processes > 1 )); then
        meet=(--standalone --local_addr 127.0.0.1)  # a port that is free: two jobs on one host do not meet
        if [[ -n "${MASTER_PORT:-}" ]]; then meet=(--master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "$port"); fi
        command=("$python" -m torch.distributed.run "${meet[@]}" --nproc_per_node "$processes" -m "$1")
        how="by torchrun"
    else
        command=("$python" -m "$1")
        how=""
    fi
}

say_start() {  # one line before anything heavy is imported; the processes then need not repeat it
    local torch words="processes"
    torch="$("$python" -c 'import importlib.metadata as found; print(found.version("torch"))' 2>/dev/null)" ||
        fail "$python ($chosen) has no torch: activate the environment that has it, set PYTHON=, or run make setup"
    [[ "$torch" =~ ^[0-9][^[:space:]]*$ ]] || torch="of unknown version"
    if (( ranks == 1 )); then words="process"; fi
    echo "start: $python ($chosen), torch $torch, $devices, $ranks $words${how:+ $how}" >&2
    export LLAVA_PRUMERGE_STARTED=1
}

check_devices() {  # GPUs that torch does not see end the start here, in one line, and not in every process
    if (( ranks > 1 && ${#uuids[@]} > 0 )) && ! cpu_is_asked; then "$python" -m llava_prumerge.model.devices; fi
}
