"""Files decoded ahead of their use, by threads, and never more of them than a few batches hold."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from threading import Condition

from medfedpure.core.errors import DataError, MissingExtraError
from medfedpure.verdicts.decoding import Frames


def decoded(
    files: Iterable[Path], decode: Callable[[Path], Frames], workers: int | None, ahead: int
) -> Generator[tuple[Path, Frames | DataError | MissingExtraError], None, None]:
    """Every file and its images, or why there are none, in order.

    No file is begun while `ahead` images wait for their use, so that a folder of long volumes needs the memory of a
    volume for each thread.

    Args:
        files: in the order of their use.
        decode: from a file to its images.
        workers: threads; by default as many as there are processors, at most 8.
        ahead: images, and files, that may wait.
    """
    room = _Room(ahead)
    waiting: deque[tuple[Path, Future[Frames]]] = deque()
    left = enumerate(files)
    with ThreadPoolExecutor(max_workers=workers or min(8, os.cpu_count() or 1)) as pool:
        try:
            while True:
                for place, path in islice(left, ahead - len(waiting)):
                    waiting.append((path, pool.submit(room.fill, place, decode, path)))
                if not waiting:
                    return
                path, future = waiting.popleft()
                found: Frames | DataError | MissingExtraError
                try:
                    found = future.result()
                except (DataError, MissingExtraError) as error:
                    found = error
                yield path, found
                room.used(len(found) if isinstance(found, Frames) else 0)
        finally:
            for _, future in waiting:
                future.cancel()
            room.close()


class _Room:
    """Room for so many images; the file whose turn it is always finds some, or all would wait for one another."""

    def __init__(self, most: int) -> None:
        self._most, self._held, self._turn, self._closed = most, 0, 0, False
        self._changed = Condition()

    def fill(self, place: int, decode: Callable[[Path], Frames], path: Path) -> Frames:
        """The images of the file at that place of the order, once there is room."""
        with self._changed:
            self._changed.wait_for(lambda: self._held < self._most or self._turn == place or self._closed)
            if self._closed:
                raise DataError("nobody waits for it any more")
        found = decode(path)
        with self._changed:
            self._held += len(found)
        return found

    def used(self, count: int) -> None:
        """So many images of the file whose turn it was are done with."""
        with self._changed:
            self._held, self._turn = self._held - count, self._turn + 1
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody waits any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
