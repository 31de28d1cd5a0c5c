"""Silence about what a file says: pydicom and nibabel quote values of a header in warnings, logs and errors.

A value may be a patient's name. What has to be said of a file is said by the readers, in words of their own.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

from medfedpure.core.errors import DataError, MissingExtraError

T = TypeVar("T")

_MODULES = r"(pydicom|nibabel|pylibjpeg|openjpeg|rle|jpeg_ls|medfedpure\.data\.readers)(\.|$)"
_LOGGERS = ("pydicom", "nibabel", "nibabel.global", "pylibjpeg", "openjpeg")


class _Silence:
    """Warnings and logs of those packages are dropped from the first reader that enters to the last that leaves.

    Filters and levels belong to the whole process, and files are read by several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._changes = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside > 1:
                return
            self._changes.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=_MODULES)
            for name in _LOGGERS:
                logger = logging.getLogger(name)
                self._changes.callback(logger.setLevel, logger.level)
                logger.setLevel(logging.CRITICAL + 1)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._changes.close()


unheard = _Silence()
"""`with unheard:` around every call into those packages; it may be nested."""


def asked(call: Callable[[], T], reason: str) -> T:
    """What one of those packages answers; their errors quote values too, so that of them only the kind is told.

    Raises:
        DataError: the call failed; the reason, and the kind of error.
    """
    try:
        with unheard:
            return call()
    except (DataError, MissingExtraError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # damaged files raise almost anything; what panics in Rust is no Exception
        kind = type(error).__name__
    raise DataError(f"{reason} ({kind})")
