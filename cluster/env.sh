# shellcheck shell=bash
# The environment of every job: which Python runs, and what NCCL, threads and file systems are told. Sourced, not run.
#
#   HIERVL_VENV=DIR         a virtual environment (default: .venv where the job was submitted)
#   HIERVL_CONTAINER=IMAGE  a container in its place: a file *.sif is entered by `apptainer exec`, anything else is given
#                           to `srun --container-image` (pyxis and enroot: a *.sqsh file, or a name such as nvcr.io#…)
#   HIERVL_MOUNTS=A,B       folders that the container sees besides the working directory, as /data,/scratch
#
# Nothing here is of one site. What a site needs (modules, a proxy, an interface) belongs into its own copy, or into the
# environment in which sbatch is called: SLURM passes that on.

# shellcheck disable=SC2034  # some variables are for those who source this
# --- Python ---------------------------------------------------------------------------------------------------------
SRUN_CONTAINER=()  # options of srun
ENTER=()           # what a command on a node is prefixed with

if [[ -n ${HIERVL_CONTAINER:-} ]]; then
    case $HIERVL_CONTAINER in
        *.sif)
            ENTER=(apptainer exec --pwd "$PWD" --bind "$PWD${HIERVL_MOUNTS:+,$HIERVL_MOUNTS}")
            if [[ ${SLURM_GPUS_ON_NODE:-0} -gt 0 ]]; then ENTER+=(--nv); fi
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
        echo "$HIERVL_VENV: no virtual environment; make one with 'make env', or set HIERVL_VENV or HIERVL_CONTAINER" >&2
        exit 2
    fi
    # shellcheck disable=SC1091
    source "$HIERVL_VENV/bin/activate"
fi

# --- Processes ------------------------------------------------------------------------------------------------------
export PYTHONUNBUFFERED=1                       # a log shows what was said when it was said
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}    # loaders are processes: threads on top of them only get in their way

# --- NCCL: between GPUs. The defaults are right where there is one fast network. ----------------------------------------
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}           # INFO shows rings and interfaces: the first look when nodes are slow
# A collective that fails ends its process, so that torchrun and SLURM can end the rest. It is torch's default; some
# sites turn it off, and a job with a dead rank then hangs until its time limit.
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}
# The interface of NCCL's first handshake: by default it takes any that is up, and may take a management network or a
# container bridge that other nodes cannot reach ("Connection refused" or a hang in the first step).
# export NCCL_SOCKET_IFNAME=ib0
# export GLOO_SOCKET_IFNAME=ib0                 # the same for the small tensors that ranks agree by
# The InfiniBand adapters to use, where some of a node's are for storage or are Ethernet ports.
# export NCCL_IB_HCA=mlx5_0,mlx5_1
# InfiniBand through switches that drop: waits longer before it gives up (default 20; each 1 doubles the time).
# export NCCL_IB_TIMEOUT=22
# Where collectives of ranks out of step are suspected: keeps the last ones of each rank, and writes them on a timeout.
# export TORCH_NCCL_TRACE_BUFFER_SIZE=2000 TORCH_NCCL_DUMP_ON_TIMEOUT=1

# --- File systems -----------------------------------------------------------------------------------------------------
# Shards on a parallel file system are read in place, each by few ranks at a time and in pieces of a clip: many small
# reads of large files. On Lustre, spread each file over several targets before writing (later it is too late):
#   lfs setstripe --stripe-count 4 --stripe-size 16M ROOT
# and keep runs/ away from it if its metadata server is slow: checkpoints are a few large files, logs many small writes.
# Shards behind http(s) or s3 go through a cache that all ranks of a node share. A tmpfs is fastest; its bytes count as
# the job's memory (--mem), so leave room for them:
#   sbatch cluster/pretrain.sbatch data.root=s3://… data.source.cache=/dev/shm/hiervl data.source.cache_gib=100
# The first start of many nodes at once loads Python's thousands of files from the shared file system, minutes on a busy
# one: a container image is one file. TMPDIR on a node's own disk keeps compiled kernels off the network as well:
# export TORCHINDUCTOR_CACHE_DIR=${TMPDIR:-/tmp}/inductor TRITON_CACHE_DIR=${TMPDIR:-/tmp}/triton
