#!/usr/bin/env bash
# Writes the lock files from the .in files: exact versions, no index lines, so that pip takes them from wherever it is set up to look.
# Usage: requirements/lock.sh  (needs `uv` on PATH; only whoever changes a dependency runs it)
set -euo pipefail
cd "$(dirname "$0")"
compile() { # <in> <lock> <options…>
  local source=$1 lock=$2; shift 2
  uv pip compile --quiet --python-version 3.11 --no-emit-index-url --no-annotate --no-header "$@" "$source" -o "$lock"
  # The CPU build carries a local version that other machines do not know: let pip take the build it finds.
  sed -i 's/^torch==\([0-9.]*\)+cpu$/torch==\1/' "$lock"
}
# A text-only CPU engine does not need these, and the general builds do not load beside a CPU torch.
leave_out=$(mktemp); trap 'rm -f "$leave_out"' EXIT
for name in torchvision torchaudio torchcodec triton; do echo "$name ; sys_platform == 'never'"; done > "$leave_out"
cpu=(--override "$leave_out")
if [ -n "${PIP_FIND_LINKS:-}" ]; then cpu+=(--find-links "$PIP_FIND_LINKS"); fi
compile cpu.in cpu.lock "${cpu[@]}"
compile dev.in dev.lock "${cpu[@]}"
compile gpu.in gpu.lock
