#!/usr/bin/env bash
# Runs one cosmoflow command on a Ray cluster that lives as long as the Slurm job:
#
#   sbatch --nodes=8 cluster/slurm.sh cosmoflow paint PARTICLES FIELDS --grid 1024
#
# `--address` is added to the command, and `--resume` when Slurm has requeued the job. The job asks
# to be requeued shortly before its time is up. cosmoflow must be on PATH (`module load`, an
# activated environment) where sbatch is called; paths must be on a file system that all nodes see.
#
#SBATCH --job-name=cosmoflow
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
set -euo pipefail
set -m # Each background process leads a group of its own, in which Ctrl-C's signal is not ignored.

: "${SLURM_JOB_ID:?run this with sbatch}"
if [ "$#" -eq 0 ]; then
  echo "usage: sbatch cluster/slurm.sh cosmoflow COMMAND ..." >&2
  exit 2
fi

# Seconds for all nodes to join, and for the command to stop after a signal.
JOIN_SECONDS=${COSMOFLOW_JOIN_SECONDS:-300}
STOP_SECONDS=${COSMOFLOW_STOP_SECONDS:-200}
MOST_RESTARTS=20

nodes=$SLURM_JOB_NUM_NODES
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | awk 'NR == 1')
head_ip=$(getent ahostsv4 "$head" | awk 'NR == 1 {print $1}')
port=$((20000 + SLURM_JOB_ID % 10000)) # Jobs that share a node get different ones.
folder=$SLURM_SUBMIT_DIR/.cosmoflow-$SLURM_JOB_ID
scratch=${COSMOFLOW_SCRATCH:-/tmp}/ray-$SLURM_JOB_ID
command_pid=
waiter=
requeue=

# The token is a file that this user alone can read, and is in no list of processes.
(
  umask 077
  mkdir -p "$folder"
  od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$folder/auth_token"
)
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/auth_token
# Nothing is worth waiting for when a node is told to end: the command has ended before.
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 RAY_USAGE_STATS_ENABLED=0

take_down() {
  trap '' INT TERM USR1
  local pid tries
  for pid in $command_pid $waiter; do # What the command left running, and what waited for it.
    kill -KILL -- "-$pid" 2>/dev/null || true
  done
  for pid in "${steps[@]}"; do
    kill -TERM -- "-$pid" 2>/dev/null || true
  done
  for pid in "${steps[@]}"; do
    for ((tries = 0; tries < 150; tries++)); do
      kill -0 -- "-$pid" 2>/dev/null || break
      sleep 0.2
    done
    kill -KILL -- "-$pid" 2>/dev/null || true
  done
  wait
  rm -rf "$folder"
  srun --overlap --ntasks-per-node=1 rm -rf "$scratch" || true
}

# What cosmoflow has finished is kept when it is interrupted, as by Ctrl-C.
# shellcheck disable=SC2329 # The traps call it.
interrupt() {
  requeue=$1
  [ -n "$command_pid" ] || exit 143
  kill -INT -- "-$command_pid" 2>/dev/null || true
  (sleep "$STOP_SECONDS" && kill -KILL -- "-$command_pid") 2>/dev/null &
  waiter=$!
  trap '' INT TERM USR1 # After that fork, which would inherit deafness.
}

steps=()
trap take_down EXIT
trap 'interrupt ""' INT TERM
trap 'interrupt yes' USR1

# Ray's directory, beside the driver; no work runs on it.
srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
  ray start --head --block --node-ip-address="$head_ip" --port="$port" \
  --num-cpus=0 --num-gpus=0 --labels=cosmoflow/pool=head \
  --dashboard-host=127.0.0.1 --dashboard-agent-listen-port=0 --metrics-export-port=8080 \
  --object-store-memory=1073741824 --temp-dir="$scratch/head" --disable-usage-stats &
steps+=($!)

deadline=$((SECONDS + JOIN_SECONDS))
until ray health-check --address "$head_ip:$port" >/dev/null 2>&1; do
  if ! kill -0 "${steps[0]}" 2>/dev/null || ((SECONDS > deadline)); then
    echo "slurm.sh: Ray's head did not start on $head; see above" >&2
    exit 1
  fi
  sleep 1
done

# Workers on all nodes, the head's included: it has cores too. A node that is lost takes no other
# with it.
pool=cpu
if [ "${SLURM_GPUS_ON_NODE:-0}" != 0 ]; then
  pool=gpu
fi
COSMOFLOW_SCRATCH="$scratch/spill" \
  srun --nodes="$nodes" --ntasks-per-node=1 --overlap --no-kill \
  --cpus-per-task="$SLURM_CPUS_ON_NODE" --cpu-bind=none \
  ray start --block --address="$head_ip:$port" \
  --num-cpus="$SLURM_CPUS_ON_NODE" --labels="cosmoflow/pool=$pool" \
  --dashboard-agent-listen-port=0 --metrics-export-port=8081 \
  --object-spilling-directory="$scratch/spill" --temp-dir="$scratch/worker" --disable-usage-stats &
steps+=($!)

python - "$head_ip:$port" "$((nodes + 1))" "$JOIN_SECONDS" <<'PYTHON' &
import sys, time
import ray

address, wanted, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
ray.init(address=address, log_to_driver=False, logging_level="ERROR")
give_up = time.monotonic() + seconds
while (up := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if time.monotonic() > give_up:
        sys.exit(f"slurm.sh: {up - 1} of {wanted - 1} nodes joined in {seconds:g} s")
    time.sleep(1)
PYTHON
waiter=$!
wait -n "$waiter" "${steps[@]}" || { echo "slurm.sh: the nodes did not come up" >&2; exit 1; }
if kill -0 "$waiter" 2>/dev/null; then
  echo "slurm.sh: a node's Ray ended before all had joined; see above" >&2
  exit 1
fi
waiter=

options=(--address "$head_ip:$port")
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
  options+=(--resume)
fi
"$@" "${options[@]}" &
command_pid=$!

status=0
wait "$command_pid" || status=$?
if [ -n "$waiter" ]; then # A signal ended that wait, not the command.
  status=0
  wait "$command_pid" || status=$?
fi
if [ -n "$requeue" ] && [ "$status" -ne 0 ] &&
  [ "${SLURM_RESTART_COUNT:-0}" -lt "$MOST_RESTARTS" ]; then
  take_down
  trap - EXIT
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
