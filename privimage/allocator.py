"""Has the C library keep freed memory for the process, which asks for as much at every step."""

import ctypes
import os
import platform

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Stops glibc from handing large blocks back to the system at each free; True if it did.

    Otherwise every step of training gets its memory anew, page by page. All threads then share one
    heap, since those of their own are cut back whatever is set. Concerns the whole process: for a
    program of ours, not for a library. An environment that sets glibc's malloc stays in force.
    """
    is_set = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if is_set or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    options = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _NEVER}
    return all(mallopt(option, value) for option, value in options.items())
