"""What this process may use of the machine, and has used: each system says it its own way."""

import os
import resource
import sys
from pathlib import Path

_NETWORKS = (
    *("nfs", "cifs", "smb", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "ocfs2"),
    *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone"),
)


def cores() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_memory() -> int:
    """Bytes of memory that this process has had at most so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def network_file_system(path: Path) -> str | None:
    """The kind of network file system that `path` is on, such as "nfs4"; None on a local disk.

    There a lock may hold on one machine only, and a synced write may still be in another's memory.
    Known from Linux' table of mounts; where there is none the answer is None.
    """
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    target, found, longest = str(path.resolve()), "", -1
    for mount in mounts:
        place, _, kind = mount.partition(" - ")
        # White space in a name is an octal escape there.
        folder = place.split()[4].encode().decode("unicode_escape").encode("latin-1").decode()
        is_above = target == folder or target.startswith(folder.rstrip("/") + "/")
        # Of two mounts on one folder the later one counts.
        if is_above and len(folder) >= longest:
            found, longest = kind.split()[0], len(folder)
    return found if found.startswith(_NETWORKS) else None
