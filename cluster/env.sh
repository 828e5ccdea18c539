# shellcheck shell=bash
# The environment of every job: Python, and settings of NCCL, threads and file systems. Sourced, not run.
#
#   HIERVL_VENV=DIR         a virtual environment (default: .venv where the job was submitted)
#   HIERVL_CONTAINER=IMAGE  a container instead: a *.sif file runs by `apptainer exec`, anything else is passed to
#                           `srun --container-image` (pyxis and enroot: a *.sqsh file, or a name such as nvcr.io#…)
#   HIERVL_MOUNTS=A,B       folders that are mounted besides the working directory, e.g. /data,/scratch
#
# Nothing here is specific to a site. Its settings (modules, a proxy, an interface) belong in a copy of this file, or in
# the environment of sbatch, which SLURM passes on.

# shellcheck disable=SC2034  # some variables are used by the scripts that source this file
# --- Python ---------------------------------------------------------------------------------------------------------
SRUN_CONTAINER=()  # options of srun
ENTER=()           # prefix of a command on a node

if [[ -n ${HIERVL_CONTAINER:-} ]]; then
    case $HIERVL_CONTAINER in
        *.sif)
            ENTER=(apptainer exec --pwd "$PWD" --bind "$PWD${HIERVL_MOUNTS:+,$HIERVL_MOUNTS}")
            if [[ ${SLURM_GPUS_ON_NODE:-0} =~ [1-9] ]]; then ENTER+=(--nv); fi
            ENTER+=("$HIERVL_CONTAINER")
            ;;
        *)
            mounts=$PWD:$PWD
            for folder in ${HIERVL_MOUNTS//,/ }; do mounts+=,$folder:$folder; done
            SRUN_CONTAINER=(
                "--container-image=$HIERVL_CONTAINER" "--container-mounts=$mounts" "--container-workdir=$PWD"
            )
            ;;
    esac
else
    HIERVL_VENV=${HIERVL_VENV:-$PWD/.venv}
    if [[ ! -f $HIERVL_VENV/bin/activate ]]; then
        echo "$HIERVL_VENV: no virtual environment; create one with 'make env', or set HIERVL_VENV or HIERVL_CONTAINER" >&2
        exit 2
    fi
    # shellcheck disable=SC1091
    source "$HIERVL_VENV/bin/activate"
fi

# --- Processes ------------------------------------------------------------------------------------------------------
export PYTHONUNBUFFERED=1                       # logs are written immediately
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}    # loaders are processes, which more threads would slow down

# --- NCCL: between GPUs. The defaults suit a single fast network. ---------------------------------------------------
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}           # INFO shows rings and interfaces: check them first when nodes are slow
# A failed collective ends its process, so that torchrun and SLURM can end the rest. This is torch's default; without it, a
# job with a dead rank hangs until its time limit.
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}
# The interface of NCCL's first handshake: the default may be a management network or a container bridge that other
# nodes cannot reach ("Connection refused", or a hang in the first step).
# export NCCL_SOCKET_IFNAME=ib0
# export GLOO_SOCKET_IFNAME=ib0                 # the same for the small tensors by which ranks agree
# The InfiniBand adapters to use, if some of a node's are for storage or are Ethernet ports.
# export NCCL_IB_HCA=mlx5_0,mlx5_1
# For InfiniBand switches that drop packets: a longer timeout (default 20; each 1 doubles the time).
# export NCCL_IB_TIMEOUT=22
# To find ranks that are out of step: keep the last collectives of each rank, and write them on a timeout.
# export TORCH_NCCL_TRACE_BUFFER_SIZE=2000 TORCH_NCCL_DUMP_ON_TIMEOUT=1

# --- File systems ---------------------------------------------------------------------------------------------------
# Shards on a parallel file system are read in place, each by few ranks at a time and clip by clip: many small reads of
# large files. On Lustre, stripe the folder over several targets before writing:
#   lfs setstripe --stripe-count 4 --stripe-size 16M ROOT
# and keep runs/ elsewhere if its metadata server is slow: checkpoints are a few large files, logs many small writes.
# Shards on http(s) or s3 are cached in a folder that all ranks of a node share. A tmpfs is fastest; its bytes count as
# the job's memory (--mem), so leave room for them:
#   sbatch cluster/pretrain.sbatch data.root=s3://… data.source.cache=/dev/shm/hiervl data.source.cache_gib=100
# When many nodes start at once, they load thousands of Python files from the shared file system, which takes minutes;
# a container image is one file. Keep compiled kernels on the node's own disk, too:
# export TORCHINDUCTOR_CACHE_DIR=${TMPDIR:-/tmp}/inductor TRITON_CACHE_DIR=${TMPDIR:-/tmp}/triton
