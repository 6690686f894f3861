"""How the C library of this process keeps freed memory.

A batch is tens of megabytes that are taken and given back at each step. glibc returns them to the
kernel at once and takes new pages for the next batch: a million page faults in a minute, a fifth of
a step on the CPU (benchmarks/framework_overhead.py). Worker processes inherit what is set here.
"""

import contextlib
import ctypes
from collections.abc import Mapping

# Of malloc.h, and what they are set to, in bytes. A process keeps up to `TRIM` that nothing uses.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
TRIM, MMAP = 128 << 20, 32 << 20


def keep_freed_memory(environment: Mapping[str, str]) -> bool:
    """Whether it was set: not where a person tuned malloc, and not with another C library."""
    if environment.get("GLIBC_TUNABLES") or any(name.startswith("MALLOC_") for name in environment):
        return False
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(M_MMAP_THRESHOLD, MMAP)) and bool(mallopt(M_TRIM_THRESHOLD, TRIM))
    return False
