"""Replies that no honest site sends: each a function that spoils the content of one, by chance drawn from a seed."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict

Forge = Callable[[RecordDict, random.Random], RecordDict | Error | None]

# -- what b may send in answer to `train` --------------------------------------------------------------------------


def saved(value: Any) -> bytes:
    """An array as numpy writes it."""
    stream = io.BytesIO()
    np.save(stream, value, allow_pickle=True)
    return stream.getvalue()


def replaced(content: RecordDict, data: bytes, stype: str = "numpy.ndarray") -> None:
    """Put other bytes in the place of the first tensor."""
    key = next(iter(content["arrays"]))
    content["arrays"][key] = Array("float32", (2, 16), stype, data)


def header(text: str, data: bytes = b"") -> bytes:
    """A file whose header says what it likes."""
    line = text.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line + data


def claims(shape: str, descr: str = "'<f4'", data: bytes = b"") -> bytes:
    return header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}", data)


def other_type(content: RecordDict, chance: random.Random) -> None:
    types = ["<U3", "S4", "<c8", "<c16", "<i4", "<i8", "|b1", "<M8[s]", [("x", "<f4"), ("y", "<i4")], "V4"]
    replaced(content, saved(np.zeros((2, 16), dtype=chance.choice(types))))


def pickled(content: RecordDict, chance: random.Random) -> None:
    replaced(content, saved(np.array([[object] * 16] * 2, dtype=object)))


def cut_off(content: RecordDict, chance: random.Random) -> None:
    whole = saved(np.zeros((2, 16), dtype=np.float32))
    replaced(content, whole[: chance.choice([0, 1, 5, 8, 9, 60, len(whole) - 1, len(whole) - 64])])


def too_long(content: RecordDict, chance: random.Random) -> None:
    replaced(content, saved(np.zeros((2, 16), dtype=np.float32)) + bytes(chance.choice([1, 4, 4096])))


def claims_too_much(content: RecordDict, chance: random.Random) -> None:
    shapes = ["(1000000, 1000000)", "(1099511627776,)", "(2, 16, 1000000000)", "(-1, 16)", "(0, 16)", "(2, 16, 0)"]
    replaced(content, claims(chance.choice(shapes), data=bytes(128)))


def garbage(content: RecordDict, chance: random.Random) -> None:
    noise = chance.randbytes(chance.randint(1, 300))
    texts = ["(" * 9000, "{'shape': __import__('os')}", "[" * 200 + "]" * 200, "", "\x00", "{'descr': '<f4'}"]
    replaced(content, chance.choice([noise, b"PK\x03\x04" + noise, b"\x80\x04" + noise, header(chance.choice(texts))]))


def other_packing(content: RecordDict, chance: random.Random) -> None:
    replaced(content, saved(np.zeros((2, 16), dtype=np.float32)), chance.choice(["", "pickle", "torch", "x" * 1000]))


def other_shape(content: RecordDict, chance: random.Random) -> None:
    shape = chance.choice([(16, 2), (32,), (2, 17), (2, 16, 1), (1,), ()])
    replaced(content, saved(np.zeros(shape, dtype=np.float32)))


def not_finite(content: RecordDict, chance: random.Random) -> None:
    value = np.zeros((2, 16), dtype=chance.choice([np.float16, np.float32, np.float64]))
    value[chance.randrange(2), chance.randrange(16)] = chance.choice([np.nan, np.inf, -np.inf])
    replaced(content, saved(value))


def too_large_for_its_type(content: RecordDict, chance: random.Random) -> None:
    replaced(content, saved(np.full((2, 16), chance.choice([1e39, -1e300]), dtype=np.float64)))


def other_names(content: RecordDict, chance: random.Random) -> None:
    arrays = content["arrays"]
    key = chance.choice(sorted(arrays))
    name = chance.choice(["", "x", key + " ", key.upper(), "\x1b[2J", "../" + key, "y" * 5000])
    arrays[name] = arrays[key]
    if chance.random() < 0.7:
        del arrays[key]


def lacks_a_tensor(content: RecordDict, chance: random.Random) -> None:
    arrays = content["arrays"]
    for key in chance.choice([["1.bias"], ["1.weight"], ["1.bias", "1.weight"]]):
        del arrays[key]


def lacks_a_record(content: RecordDict, chance: random.Random) -> None:
    del content[chance.choice(["arrays", "metrics", "state"])]


def other_record(content: RecordDict, chance: random.Random) -> RecordDict:
    key = chance.choice(["arrays", "metrics", "state"])
    records = [ArrayRecord(), MetricRecord({"num-examples": 4}), ConfigRecord({"round": 1})]
    wrong = [record for record in records if type(record) is not type(content[key])]
    return RecordDict({**content, key: chance.choice(wrong)})


def nothing(content: RecordDict, chance: random.Random) -> RecordDict:
    return RecordDict() if chance.random() < 0.5 else RecordDict({"x": ConfigRecord({"y": 1})})


def bad_count(content: RecordDict, chance: random.Random) -> None:
    wrong = [4.0, float("nan"), float("inf"), -float("inf"), -1, 0, 7, 2**31, 2**62, 2**64 - 1, [4], [], [4.0, 4.0]]
    content["metrics"]["num-examples"] = chance.choice(wrong)


def no_count(content: RecordDict, chance: random.Random) -> None:
    del content["metrics"]["num-examples"]


def bad_figure(content: RecordDict, chance: random.Random) -> None:
    name = chance.choice(["train_loss", "evaluated.loss", "other"])
    content["metrics"][name] = chance.choice([[0.5], [], [1, 2, 3], [float("nan")] * 1000])


def bad_names_of_figures(content: RecordDict, chance: random.Random) -> None:
    for name in chance.choice([["\x1b]0;x\x07"], ["n" * 10_000], ["a\nb"], [f"f{n}" for n in range(5000)]]):
        content["metrics"][name] = 0.5


def bad_state(content: RecordDict, chance: random.Random) -> None:
    wrong = ["1", 1.0, True, b"1", [1], [], -1, 99, 2**63 - 1, float("nan")]
    content["state"]["round"] = chance.choice(wrong)


def no_state(content: RecordDict, chance: random.Random) -> None:
    del content["state"]["round"]


def error(content: RecordDict, chance: random.Random) -> Error:
    reasons = [
        None,
        "",
        "null",
        "[]",
        "[" * 100_000,
        "9" * 6000,
        "\x1b[2J",
        '{"client": 1}',
        json.dumps({"client": "a", "error": "X" * 10_000, "stage": "y"}),
        json.dumps({"client": "c", "error": "\x1b]0;x\x07", "stage": [1]}),
        json.dumps({"client": {"a": 1}, "error": None, "stage": None}),
    ]
    return Error(chance.choice([0, 1, 2, 5, 99, -7]), chance.choice(reasons))


def unreadable(content: RecordDict, chance: random.Random) -> None:
    raise chance.choice([ValueError, KeyError, TypeError, AttributeError, MemoryError, RecursionError])("\x1b[2J")


# -- what b may send in answer to `hello` --------------------------------------------------------------------------


def bad_name(content: RecordDict, chance: random.Random) -> None:
    wrong = ["", "z", "a", "../b", "B", "b ", "b\x00", "\x1b[2J", "x" * 5000, 1, 1.5, True, b"b", ["b"], []]
    content["identity"]["client"] = chance.choice(wrong)


def lacks_a_field(content: RecordDict, chance: random.Random) -> None:
    del content["identity"][chance.choice(sorted(content["identity"]))]


def lacks_the_hello(content: RecordDict, chance: random.Random) -> RecordDict:
    return RecordDict({} if chance.random() < 0.5 else {"identity": MetricRecord({"client": 1})})


def bad_field(content: RecordDict, chance: random.Random) -> None:
    wrong = {
        "strategy": ["fedper", 1, ["fedavg"], b"fedavg", "\x1b[2J" * 1000],
        "layout of the shared tensors": ["", 0, []],
        "validation": ["yes", 2, [], [True], 0.5],
        "examples": [-1, 0, 2**62, 1.0, "6", [6], True, float("inf")],
    }
    name = chance.choice(sorted(wrong))
    content["identity"][name] = chance.choice(wrong[name])


TRAIN: list[Forge] = [
    other_type, pickled, cut_off, too_long, claims_too_much, garbage, other_packing, other_shape, not_finite,
    too_large_for_its_type, other_names, lacks_a_tensor, lacks_a_record, other_record, nothing, bad_count, no_count,
    bad_figure, bad_names_of_figures, bad_state, no_state, error, unreadable,
]  # fmt: skip
HELLO: list[Forge] = [bad_name, lacks_a_field, lacks_the_hello, bad_field, error, unreadable]
