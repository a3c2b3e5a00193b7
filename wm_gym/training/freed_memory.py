"""What an update has freed stays with the process, for the next update."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Parameters of ``mallopt``, by glibc's ``malloc.h``."""
_MIB = 1 << 20


def keep_freed_memory() -> None:
    """Let glibc's allocator keep large blocks that are freed, instead of handing them back to the system.

    Feature maps have megabytes, and the system clears every page that it hands out, which takes an eighth of an update
    of ``tiny``. Where the allocator is another one, or the user has set it up (variables ``MALLOC_*`` or
    ``GLIBC_TUNABLES``), nothing changes.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    with suppress(OSError, AttributeError):  # AttributeError: another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 32 * _MIB)  # the most that it allows
        mallopt(_TRIM_THRESHOLD, 2047 * _MIB)
        mallopt(_TOP_PAD, 64 * _MIB)
