"""Runs a command as the container does: an ordinary user, a read-only root, no capabilities.

Without a container engine: in a mount namespace, whose `/opt` is the repository, `/mnt` the data
directory and `/tmp` a file system in memory. Needs root, which it gives up.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
USER = 10001
REPOSITORY, DATA = "/opt", "/mnt"
_SETUP = """
set -eu
root=$1 data=$2 python=$3
shift 3
mount --make-rprivate /
case $python in /root/*)  # closed to others
    mount --bind "$python" /srv
    mount -t tmpfs -o mode=755 tmpfs /root
    mkdir -p "$python"
    mount --bind /srv "$python"
esac
mount --bind "$data" /mnt
mount --bind "$root" /opt
mount -o remount,ro,bind /opt
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -o remount,ro,bind /
cd /opt
exec setpriv --reuid 10001 --regid 10001 --clear-groups --bounding-set -all --inh-caps -all \
    --no-new-privs "$@"
"""


def confined(data, *command):
    """Returns the command line that runs `command` with `data` as its data directory."""
    os.chown(data, USER, USER)
    base = Path(sys.base_prefix).resolve()
    return ["unshare", "--mount", "sh", "-c", _SETUP, "confined", ROOT, data, base, *command]


def environment(**variables):
    """Returns the environment of the image: its PATH, HOME and data directory."""
    prefix = Path(sys.prefix).resolve()
    inside = Path(REPOSITORY) / prefix.relative_to(ROOT) if prefix.is_relative_to(ROOT) else prefix
    return {
        "PATH": f"{inside}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": f"{DATA}/cache",
        "DAARION_DATA_DIR": DATA,
        **variables,
    }
