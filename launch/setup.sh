# Sourced by launch/quickstart and launch/test: from a bare checkout to an environment in .venv, one line per phase.
# shellcheck shell=bash

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
CACHE=${XDG_CACHE_HOME:-~/.cache}/tl_dist
LOGS=$CACHE/logs
PYTHON_WANTED="3.11, 3.12 or 3.13"
PIP=("$VENV/bin/python" -m pip --disable-pip-version-check --no-input)
# For texts that are copied into a shell: this command, and how to start afresh.
COMMAND=$(printf %q "$0")
REMOVE_VENV="rm -r $(printf %q "$VENV")"

# refuse CODE TEXT: one line that says what is wrong and how to fix it, then exit.
refuse() {
  printf 'tl_dist: %s\n' "$2" >&2
  exit "$1"
}

# phase NAME COMMAND...: run it with its output in a log; print the name, then the seconds. If it fails, print the
# end of the log and return its exit code.
phase() {
  local name=$1 log code=0 started=$SECONDS
  shift
  log=$LOGS/$(tr -c 'a-zA-Z0-9\n' '_' <<<"$name").log
  printf '%-32s ' "$name"
  "$@" >"$log" 2>&1 </dev/null || code=$?
  if ((code == 0)); then
    printf '%4d s\n' $((SECONDS - started))
  else
    printf '%4d s  FAILED (exit %d)\n' $((SECONDS - started)) "$code"
    tail -n 200 "$log"
    printf '(all of it: %s)\n' "$log"
  fi
  return "$code"
}

# The log folder is needed before anything can be told about a failure.
prepare() {
  mkdir -p "$LOGS" 2>/dev/null && [[ -w $LOGS ]] ||
    refuse 73 "cannot write to $LOGS. Fix: set XDG_CACHE_HOME to a folder of yours"
  cd "$ROOT" || exit
}

suitable() {
  "$@" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

# The environment, made with the first suitable interpreter, or with the one that $PYTHON names.
ensure_venv() {
  local candidate
  if [[ -x $VENV/bin/python ]]; then
    suitable "$VENV/bin/python" ||
      refuse 64 "$VENV has $("$VENV/bin/python" --version 2>&1), and $PYTHON_WANTED is needed. Fix: $REMOVE_VENV, then run this again"
    "$VENV/bin/python" -c 'import pip' 2>/dev/null ||
      refuse 64 "$VENV has no pip. Fix: $REMOVE_VENV, then run this again"
    return
  fi
  [[ -w $ROOT ]] || refuse 73 "cannot write to $ROOT. Fix: work in a clone of your own"
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.11 python3.12 python3.13; do
    suitable "$candidate" || continue
    phase "making .venv with $candidate" "$candidate" -m venv "$VENV" && return
    rm -rf "$VENV"
    refuse 69 "$candidate cannot make a virtual environment. Fix: apt-get install python3-venv, then run this again"
  done
  refuse 69 "no Python $PYTHON_WANTED on PATH. Fix: install one, or name it: PYTHON=/path/to/python3.11 $COMMAND"
}

installed() {
  local matches=("$VENV"/lib/python3.*/site-packages/"$1"-*.dist-info)
  [[ -e ${matches[0]} ]]
}

# Which TensorFlow: the one that is there; else the CUDA build where a GPU answers, unless $1 is "cpu".
accelerator() {
  if installed tensorflow; then
    echo gpu
  elif installed tensorflow_cpu || [[ ${1:-} == cpu ]] || ! nvidia-smi -L >/dev/null 2>&1; then
    echo cpu
  else
    echo gpu
  fi
}

# Whether a program started here computes on a GPU and sees no second one.
one_gpu() {
  [[ $(accelerator) == gpu ]] || return
  case ${CUDA_VISIBLE_DEVICES-unset} in
    unset) [[ $(nvidia-smi -L 2>/dev/null | grep -c "^GPU") == 1 ]] ;;
    "" | -* | *,*) return 1 ;;
  esac
}

# ensure_package EXTRAS: install the checkout with these extras, unless this very state has been installed before.
ensure_package() {
  local extras=$1 stamp=$VENV/tl_dist-installed state
  state=$(
    cat "$ROOT/pyproject.toml"
    "$VENV/bin/python" --version
    echo "$ROOT"
  )
  state=$(sha256sum <<<"$state" | cut -c1-16)
  # One line per set of extras; any line for this state that has every wanted extra will do.
  if [[ -f $stamp ]] && "$VENV/bin/python" - "$stamp" "$state" "$extras" <<'PYTHON'; then
import sys
stamp, state, extras = sys.argv[1:]
have = [set(line.split()[1].split(",")) for line in open(stamp) if line.split()[0] == state]
sys.exit(not any(set(extras.split(",")) <= each for each in have))
PYTHON
    return 0
  fi
  phase "installing packages [$extras]" "${PIP[@]}" install --editable "${ROOT}[$extras]" || return
  [[ -f $stamp ]] && grep -q "^$state " "$stamp" || : >"$stamp" # a new state: what older ones say is void
  echo "$state $extras" >>"$stamp"
}

# Horovod prints its own lines; when it is there already, that is one line.
ensure_horovod() {
  "$VENV/bin/python" "$ROOT/launch/install_horovod" --python "$VENV/bin/python"
}
