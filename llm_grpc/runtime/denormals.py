"""Numbers below the smallest normal float, taken for zero while a model computes.

A processor computes with such numbers many times slower, and a trained model makes them by the thousand: the
far side of every softmax. What they add to a logit is less than its rounding.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_ENV_BYTES = 64
"""More than ``fenv_t`` has anywhere."""

_MXCSR_AT = 28
"""Where ``fenv_t`` keeps the control register of SSE and AVX, in glibc and musl alike."""

_FLUSH = 0x8040
"""Its bits "flush to zero" and "denormals are zero"."""

_LIBM = ctypes.CDLL(None) if sys.platform == "linux" and platform.machine() == "x86_64" else None


@contextmanager
def flushed_denormals(flush: bool = True) -> Iterator[None]:
    """Let this thread take denormals for zero inside the block; no other code of it sees a difference.

    ONNX Runtime's option does it for the threads of its pool, and of the others for the one that loads the
    first model, for good. The one that runs it is another one: it computes its share here, and what the
    option did to the first is undone by a block that does not ``flush``. Without effect but on Linux on
    x86-64; other processors that we know compute with these numbers as fast as with any.
    """
    if _LIBM is None:
        yield
        return
    before = (ctypes.c_char * _ENV_BYTES)()
    _LIBM.fegetenv(before)
    if flush:
        inside = (ctypes.c_char * _ENV_BYTES).from_buffer_copy(before)
        register = ctypes.c_uint32.from_buffer(inside, _MXCSR_AT)
        register.value |= _FLUSH
        _LIBM.fesetenv(inside)
    try:
        yield
    finally:
        _LIBM.fesetenv(before)
