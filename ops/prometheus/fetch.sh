#!/usr/bin/env bash
# Puts Debian's Prometheus (with promtool) into a folder, without root and without installing it: the tests of the
# alerts and dashboards use it, and are skipped where it is missing.
set -euo pipefail
folder=${1:?usage: fetch.sh FOLDER}
[[ -x $folder/usr/bin/promtool ]] && exit 0
draft=$(mktemp -d)
trap 'rm -rf "$draft"' EXIT
(cd "$draft" && timeout 120 apt-get download prometheus >/dev/null 2>&1 && dpkg-deb -x prometheus_*.deb .) || {
  echo "Debian's package prometheus cannot be fetched here: the tests that need promtool are skipped" >&2
  exit 1
}
mkdir -p "$folder"
cp -r "$draft/usr" "$folder/"
