"""The library whose formats ours are compared with: its own quantizer and its own reading, on CPU."""

from __future__ import annotations

import functools
import logging
import warnings
from types import ModuleType


@functools.cache
def load_library() -> ModuleType:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports optional extras of its own as warnings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import warns of torch's deprecations
        import bitsandbytes.functional as library
    return library
