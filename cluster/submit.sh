#!/usr/bin/env bash
# Submits a run with a copy of code and configuration, so that later edits do not affect a queued or requeued job.
#
#   cluster/submit.sh NAME [--config F] [--entry F] [--dry-run] [--sbatch-option=value …] [key=value …]
#   cluster/submit.sh NAME --resume [--dry-run] [--sbatch-option=value …] [key=value …]
#
#   cluster/submit.sh first --config configs/pretrain/hiervl_sa.yaml --nodes=8 --time=12:00:00 data.root=/data/shards
#
# Everything is in runs/NAME: code/ (tracked and untracked files, without ignored ones), submitted.yaml (the
# configuration as given), arguments (key=value, one per line), jobs (each submission), and the run's own files. Paths in
# key=value are relative to the root of the repository. --resume submits runs/NAME again; further key=value are appended
# to the earlier ones.

set -euo pipefail

fail() {
    echo "submit.sh: $*" >&2
    exit 2
}

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
name='' config='' entry=hiervl_train/pretrain.py
is_resume='' is_dry=''
options=() overrides=()
while [[ $# -gt 0 ]]; do
    case $1 in
        --config | --entry)
            [[ $# -ge 2 ]] || fail "$1: missing value"
            set -- "$1=$2" "${@:3}"
            continue
            ;;
        --config=*) config=$(realpath -- "${1#*=}") || exit 2 ;;
        --entry=*) entry=${1#*=} ;;
        --resume) is_resume=yes ;;
        --dry-run) is_dry=yes ;;
        -h | --help)
            sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        --*=* | --exclusive | --hold) options+=("$1") ;;
        -*) fail "$1: write options of sbatch as --option=value" ;;
        run.folder=*) fail "$1: the run's folder is always runs/NAME" ;;
        *=*)
            [[ $1 != *$'\n'* ]] || fail "${1%%=*}: the value must be a single line"
            overrides+=("$1")
            ;;
        *)
            [[ -z $name ]] || fail "$1: only one NAME is allowed; expected key=value after it"
            name=$1
            ;;
    esac
    shift
done
[[ $name =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || fail "NAME = '$name': must consist of letters, digits, '.', '_' and '-'; see --help"

cd "$repository"
run=$repository/runs/$name
is_new=''

# Copies all files that git does not ignore; without git, the project's folders.
snapshot() {
    local files=(configs shards preprocessing hiervl_train eval cluster pyproject.toml constraints.txt)
    mkdir -p "$1"
    if git rev-parse --is-inside-work-tree > /dev/null 2>&1; then
        git ls-files -z --cached --others --exclude-standard \
            | while IFS= read -r -d '' file; do if [[ -e $file || -L $file ]]; then printf '%s\0' "$file"; fi; done \
            | tar --create --null --no-recursion --files-from=- | tar --extract --directory "$1"
        # In the copy, git would report the repository's revision at the time the job starts.
        local changes=''
        if [[ -n $(git status --porcelain) ]]; then changes=+changes; fi
        echo "git:$(git rev-parse HEAD)$changes" > "$1/REVISION"
    else
        tar --create --exclude=__pycache__ "${files[@]}" | tar --extract --directory "$1"
    fi
}

if [[ -n $is_resume ]]; then
    [[ -d $run/code ]] || fail "runs/$name: no such run"
    [[ -z $config ]] || fail "--config: a resumed run keeps its configuration ($run/submitted.yaml); change keys by key=value"
    last=$(tail -n 1 "$run/jobs" 2> /dev/null | cut -d ' ' -f 1)
    if [[ -n $last && -n $(squeue --noheader --jobs="$last" 2> /dev/null) ]]; then
        fail "runs/$name: job $last still waits or runs"
    fi
    entry=$(cat "$run/entry")
    mapfile -t before < "$run/arguments"
    overrides=("${before[@]}" "${overrides[@]}")
else
    config=${config:-$repository/configs/pretrain/hiervl_sa.yaml}
    [[ -f $config ]] || fail "$config: no such configuration file"
    [[ -f $entry ]] || fail "$entry: no such entry"
    [[ ! -e $run ]] || fail "runs/$name exists: choose another name, or resume it with --resume"
fi

command=(
    sbatch --parsable "--job-name=$name" "--chdir=$repository" "--output=$run/slurm-%j.log" "${options[@]}"
    "$run/code/cluster/pretrain.sbatch" "--code=$run/code" "--config=$run/submitted.yaml" "--entry=$entry"
    "${overrides[@]}" "run.folder=$run"
)
if [[ -n $is_dry ]]; then
    printf '%q ' "${command[@]}"
    echo
    exit 0
fi

if [[ -z $is_resume ]]; then
    mkdir -p runs
    mkdir "$run"  # fails if a concurrent submission created it
    is_new=yes
    trap '[[ -z $is_new ]] || rm -rf "$run"' EXIT
    snapshot "$run/code"
    cp -- "$config" "$run/submitted.yaml"
    echo "$entry" > "$run/entry"
fi
job=$("${command[@]}")
job=${job%%;*}  # the cluster's name may follow
is_new=''
: > "$run/arguments"
if [[ ${#overrides[@]} -gt 0 ]]; then printf '%s\n' "${overrides[@]}" > "$run/arguments"; fi
printf '%s %(%F %T)T %s\n' "$job" -1 "${options[*]}" >> "$run/jobs"
cat << END
job $job submitted
run folder   $run
watch it     squeue --jobs=$job; tail -F $run/slurm-$job.log; $run/index.html
stop it      touch $run/stop (saves and requeues), scancel $job (does not requeue)
resume it    cluster/submit.sh $name --resume
END
