#!/usr/bin/env bash
# Prepares a rented node (Ubuntu 24.04): a folder for spilled objects on local flash, and cosmoflow
# with the Python, the Ray and the libraries that all nodes share. The launcher files run it on
# every node, again whenever they changed; what is done already is left as it is.
#
#   setup_node.sh [NAME=VALUE ...]     what the environment of Ray and of drivers gets besides
set -euo pipefail

CODE="$HOME/cosmoflow"
VENV="$HOME/venv"
SPILL=/mnt/spill

# The disks that the clouds attach to the host itself. Network volumes, whose models are others, are
# never touched.
find_flash() {
  lsblk -dnpo NAME,MODEL | awk '
    /Amazon EC2 NVMe Instance Storage/ || /nvme_card[0-9]*[[:space:]]*$/ ||
    /Microsoft NVMe Direct Disk/ {print $1}'
}

# What is spilled is lost with the node and made again, so the disks are striped and not mirrored.
mount_flash() {
  local flash device
  mapfile -t flash < <(find_flash)
  if mountpoint -q /opt/dlami/nvme; then # AWS's images with GPU drivers have done it.
    sudo ln -sfn /opt/dlami/nvme "$SPILL"
    return
  fi
  sudo mkdir -p "$SPILL"
  if mountpoint -q "$SPILL" || [ "${#flash[@]}" -eq 0 ]; then
    return
  fi
  device=${flash[0]}
  if [ "${#flash[@]}" -gt 1 ]; then
    device=/dev/md/spill
    [ -e "$device" ] ||
      sudo mdadm --create "$device" --run --level=0 --raid-devices="${#flash[@]}" "${flash[@]}"
  fi
  sudo blkid "$device" >/dev/null || sudo mkfs.ext4 -q -E nodiscard "$device"
  sudo mount -o noatime "$device" "$SPILL"
}

install_python() {
  [ -x "$VENV/bin/pip" ] && return
  sudo apt-get -o DPkg::Lock::Timeout=300 -q update
  sudo apt-get -o DPkg::Lock::Timeout=300 -q -y install --no-install-recommends \
    python3.12-venv mdadm
  python3.12 -m venv "$VENV"
}

install_cosmoflow() {
  local build=cpu pip=("$VENV/bin/pip" --disable-pip-version-check --quiet install)
  # The CUDA build needs a driver of 580 or newer.
  if command -v nvidia-smi >/dev/null; then
    build=cu130
  fi
  "${pip[@]}" torch==2.13.0 --index-url "https://download.pytorch.org/whl/$build"
  "${pip[@]}" -r "$CODE/requirements.txt"
  # The dashboard, the metrics and the autoscaler, which a laptop needs not.
  "${pip[@]}" -c "$CODE/requirements.txt" 'ray[default]==2.60.0'
  "${pip[@]}" --no-deps "$CODE"
  if [ "$build" != cpu ]; then
    "$VENV/bin/python" -c 'import torch; torch.zeros(1, device="cuda")'
  fi
}

# Ray's launcher reads .bashrc before every command, and so does who logs in.
set_environment() {
  cat >"$HOME/.cosmoflow_env" <<ENV
export PATH="$VENV/bin:\$PATH"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.ray/auth_token" RAY_USAGE_STATS_ENABLED=0
ENV
  if [ "$#" -gt 0 ]; then
    printf 'export %q\n' "$@" >>"$HOME/.cosmoflow_env"
  fi
  local line=". $HOME/.cosmoflow_env"
  grep -qxF "$line" "$HOME/.bashrc" || echo "$line" >>"$HOME/.bashrc"
}

cloud-init status --wait >/dev/null || true # It holds apt's lock while the node boots.
chmod 600 "$HOME/.ray/auth_token"
install_python
mount_flash
sudo chown "$(id -u):$(id -g)" "$SPILL/."
install_cosmoflow
set_environment "$@"
