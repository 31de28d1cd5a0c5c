"""Files are decoded a little ahead of their use, in order, and long ones do not fill the memory."""

import threading
import time

import pytest
import torch

from medfedpure.core.errors import DataError
from medfedpure.verdicts.ahead import decoded
from medfedpure.verdicts.decoding import Frames


def frames(count):
    return Frames(torch.zeros(count, 1, 2, 2, dtype=torch.uint8))


def test_few_files_are_decoded_ahead(tmp_path):
    begun = []

    def decode(path):
        begun.append(path)
        return frames(1)

    files = [tmp_path / str(place) for place in range(100)]
    for place, (path, _) in enumerate(decoded(files, decode, 2, 6), 1):
        assert path == files[place - 1]
        assert len(begun) <= place + 6
    assert len(begun) == 100


@pytest.mark.parametrize("slowest", [0, 3])
def test_of_long_files_one_a_thread_waits_and_none_waits_for_ever(tmp_path, slowest):
    """Also where a later file fills the room before the one whose turn it is."""
    held, most, lock = 0, 0, threading.Lock()

    def decode(path):
        nonlocal held, most
        if path.name == str(slowest):
            time.sleep(0.1)
        with lock:
            held += 1
            most = max(most, held)
        return frames(50)

    files = [tmp_path / str(place) for place in range(12)]
    seen = []
    for path, found in decoded(files, decode, 2, 40):
        assert len(found) == 50
        seen.append(path)
        time.sleep(0.005)
        with lock:
            held -= 1
    assert seen == files
    assert most <= 4


def test_what_cannot_be_read_is_said_and_the_rest_comes(tmp_path):
    def decode(path):
        if path.name == "1":
            raise DataError("torn")
        return frames(2)

    found = [one for _, one in decoded([tmp_path / str(place) for place in range(4)], decode, 2, 2)]
    assert [len(one) if isinstance(one, Frames) else str(one) for one in found] == [2, "torn", 2, 2]


def test_given_up_it_ends_its_threads(tmp_path):
    before = threading.active_count()
    running = decoded([tmp_path / str(place) for place in range(50)], lambda _: frames(30), 2, 4)
    next(running)
    running.close()
    assert threading.active_count() == before
