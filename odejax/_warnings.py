"""Warnings that point at the caller's line."""

import os
import sys
import warnings
from pathlib import Path

_HERE = str(Path(__file__).parent) + os.sep


def warn(message: str, category: type[Warning] = UserWarning):
    """`warnings.warn`, at the first line outside of this library, however deep the call is.

    `skip_file_prefixes` of Python 3.12 does it, too.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
