# shellcheck shell=bash
# Shared by the batch scripts: arguments, one torchrun per node, waiting through signals, requeueing. Sourced, not run.

# shellcheck disable=SC2034  # some variables are used by the scripts that source this file

STOPPED=85        # exit code of a run that was stopped and saved: rerun the same command
REPEAT_SECONDS=5  # between requests to stop: one that arrives while the ranks start would be lost

trap 'echo "cluster: a command failed with $?, line $LINENO: $BASH_COMMAND" >&2' ERR

say() {
    printf '[%(%F %T)T] job %s: %s\n' -1 "${SLURM_JOB_ID:-?}" "$*"
}

usage_error() {
    say "$*" >&2
    exit 2
}

# Bash evaluates text that it computes with: of `x[$(command)]` it would run the command. What comes from a file or from the
# environment is computed with only after one of these two.

# number_in TEXT: print TEXT as a decimal number; 0 if it is anything but up to 15 digits.
number_in() {
    if [[ ${1:-} =~ ^[0-9]{1,15}$ ]]; then echo "$((10#$1))"; else echo 0; fi
}

# require_number NAME DEFAULT: set the variable NAME to its value as a decimal number, or to DEFAULT if it has none.
require_number() {
    local value=${!1:-$2}
    [[ $value =~ ^[0-9]{1,15}$ ]] || usage_error "$1 = $value: expected a whole number"
    printf -v "$1" %d "$((10#$value))"
}

# read_arguments [--config F] [--entry F] [key=value …] → CONFIG, ENTRY, OVERRIDES
read_arguments() {
    OVERRIDES=()
    while [[ $# -gt 0 ]]; do
        case $1 in
            --config | --entry)
                [[ $# -ge 2 ]] || usage_error "$1: missing value"
                set -- "$1=$2" "${@:3}"
                continue
                ;;
            --config=*) CONFIG=${1#*=} ;;
            --entry=*) ENTRY=${1#*=} ;;
            [!-]*=*) OVERRIDES+=("$1") ;;
            *) usage_error "$1: expected --config F, --entry F or key=value" ;;
        esac
        shift
    done
}

# use_code DIR: run the code in DIR. PYTHONPATH precedes an editable installation, which may point to another checkout.
use_code() {
    CODE=$(cd "$1" && pwd)
    export PYTHONPATH=$CODE${PYTHONPATH:+:$PYTHONPATH}
}

job_field() {
    scontrol --oneliner show job "$SLURM_JOB_ID" | tr ' ' '\n' | sed -n "s/^$1=//p" | head -n 1
}

# The address of the first node: its name if that can be resolved, otherwise the address that SLURM uses.
first_address() {
    local name
    name=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    if ! getent hosts "$name" > /dev/null; then
        name=$(scontrol --oneliner show node "$name" | tr ' ' '\n' | sed -n 's/^NodeAddr=//p')
    fi
    printf '%s\n' "$name"
}

# start_torchrun ENTRY ARGUMENT…: start one torchrun per node with one rank per GPU of the node; sets STEP to its PID.
start_torchrun() {
    require_number SLURM_GPUS_ON_NODE 0
    require_number RANKS_PER_NODE "$SLURM_GPUS_ON_NODE"
    local ranks=$RANKS_PER_NODE
    if ((ranks == 0)); then ranks=1; fi  # without GPUs: on the CPU, with gloo
    local address port
    address=${MASTER_ADDR:-$(first_address)}
    # Below the kernel's ephemeral ports, and different for every job of a node and every start of a job.
    require_number SLURM_JOB_ID 0
    require_number SLURM_RESTART_COUNT 0
    port=${MASTER_PORT:-$((20000 + (SLURM_JOB_ID + 97 * SLURM_RESTART_COUNT) % 12000))}
    local nodes=$SLURM_JOB_NUM_NODES
    local options=(--nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --export=ALL)
    # Since SLURM 22.05 srun does not inherit this option, and would bind all ranks of a node to one core.
    if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then options+=(--cpus-per-task="$SLURM_CPUS_PER_TASK"); fi
    say "$nodes nodes ($SLURM_JOB_NODELIST) × $ranks ranks, meeting at $address:$port; start $SLURM_RESTART_COUNT"
    # SLURM_NODEID is known only on the node. A failed rank ends its torchrun, which ends the whole step.
    # shellcheck disable=SC2016
    srun --kill-on-bad-exit=1 "${options[@]}" "${SRUN_CONTAINER[@]}" "${ENTER[@]}" \
        bash -c 'exec python -m torch.distributed.run --node-rank="$SLURM_NODEID" "$@"' torchrun \
        --nnodes="$nodes" --nproc-per-node="$ranks" --max-restarts=0 \
        --master-addr="$address" --master-port="$port" "$@" &
    STEP=$!
}

# wait_through_signals PID: return the exit code of a child. A trap interrupts `wait`, but not the child.
wait_through_signals() {
    local code=0 last
    while true; do
        wait "$1" && code=0 || code=$?
        if ((code <= 128)); then break; fi
        if kill -0 "$1" 2> /dev/null; then continue; fi
        wait "$1" && last=0 || last=$?  # ended during the trap: its own code, or 127 if already reported
        if ((last != 127)); then code=$last; fi
        break
    done
    return "$code"
}

# keep_asking FILE: create FILE repeatedly until `stop_asking`: a run that is starting removes an old one.
keep_asking() {
    if [[ -z ${ASKING:-} ]]; then
        (
            trap '' USR2
            while true; do
                touch "$1"
                sleep "$REPEAT_SECONDS"
            done
        ) &
        ASKING=$!
    fi
}

stop_asking() {
    if [[ -n ${ASKING:-} ]]; then
        kill "$ASKING" 2> /dev/null || true
        wait "$ASKING" 2> /dev/null || true
        ASKING=
    fi
}

# requeue: put this job back into the queue, with the same number and arguments, and exit. A job that is being cancelled
# is not requeued.
requeue() {
    local state
    state=$(job_field JobState)
    if [[ $state != RUNNING ]]; then
        say "the job is $state: it is not requeued"
    elif scontrol requeue "$SLURM_JOB_ID"; then
        say "requeued"
    else
        say "SLURM refuses to requeue; submit the same job again to resume"
    fi
    exit "$STOPPED"
}
