"""What server and client say to each other, as Flower records.

Every training message follows Flower's convention of one ArrayRecord and one MetricRecord with
`num-examples` per reply, so that Flower's own mods can be put around it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from medfedpure.core.errors import FederationError
from medfedpure.core.personalization import LocalResult, PersonalizationStrategy, Scalar, Tensors
from medfedpure.federation.arrays import read_array, shown
from medfedpure.federation.records import is_name

HELLO, TRAIN, EVALUATE, WORK = "query.hello", "train", "evaluate", "query.work"
ARRAYS, METRICS, ORDER, STRATEGY, STATE, IDENTITY = "arrays", "metrics", "order", "strategy", "state", "identity"
NUM_EXAMPLES, EVALUATED = "num-examples", "evaluated."
PART = "part"
CLIENT, VALIDATION, EXAMPLES = "client", "validation", "examples"
MOST_EXAMPLES = 10_000_000
"""The largest number of images that one client may count for."""
_MOST_FIGURES, _LONGEST_NAME = 1000, 100
ERROR_CODE = 2  # Flower's number for "the client app raised an exception"
_FLOWER_ERRORS = {
    1: "the app cannot be loaded at the site",
    2: "the app raised an error",
    3: "the message was lost",
    4: "the reply was lost",
    5: "its node is away",
    7: "the site refuses the app",
    8: "the app crashed",
}

Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
Record = TypeVar("Record", ArrayRecord, MetricRecord, ConfigRecord)
_NUMPY_KNOWS = (torch.float16, torch.float32, torch.float64)
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,63}", re.ASCII)
_LONGEST_REASON = 1000


@dataclass(frozen=True)
class Order:
    """What the server asks of a client in one round.

    Attributes:
        round, rounds: where the run stands.
        seed: of the run.
        confirmed: the last round in which the server heard of this client; 0 at first.
        evaluate: whether to evaluate the model that the enclosed tensors make.
        training: the training configuration as JSON.
        run: 16 hexadecimal digits under which the client keeps its private tensors; they stay the same
            when a run is resumed, which Flower counts as another run.
    """

    round: int
    rounds: int
    seed: int
    confirmed: int
    evaluate: bool
    training: str
    run: str


@dataclass(frozen=True)
class Reply:
    """What a client answers: its update (no tensor in answer to `evaluate`) and figures."""

    round: int
    shared: Tensors
    num_examples: int
    metrics: dict[str, float]
    evaluated: dict[str, float]


def pack_part(part: str) -> RecordDict:
    """The content of a message that says no more than which part of a run it is about; empty where a run has one."""
    return RecordDict({PART: ConfigRecord({"name": part})} if part else {})


def part_of(message: Message) -> str:
    """Which part of a run a message of the server is about; "" where it does not say."""
    record = message.content.get(PART) if message.has_content() else None
    return str(record.get("name", "")) if isinstance(record, ConfigRecord) else ""


def pack_order(order: Order, shared: Tensors, config: Mapping[str, Scalar], part: str = "") -> RecordDict:
    """The content of a message to a client."""
    return RecordDict(
        {
            **pack_part(part),
            ARRAYS: pack_tensors(shared),
            ORDER: ConfigRecord(asdict(order)),
            STRATEGY: ConfigRecord(dict(config)),
        }
    )


def unpack_order(content: RecordDict, layout: Layout) -> tuple[Order, Tensors, dict[str, Scalar]]:
    """What `pack_order` packed; raises FederationError when the tensors are not those of the layout."""
    shared = unpack_tensors(content[ARRAYS], layout, "the server")
    return Order(**content[ORDER]), shared, dict(content[STRATEGY])


def pack_reply(result: LocalResult | None, evaluated: Mapping[str, float], state_round: int) -> RecordDict:
    """The content of a client's reply; the state's round says what its disk holds."""
    metrics: dict[str, Any] = {NUM_EXAMPLES: 0 if result is None else int(result.num_examples)}
    if result is not None:
        metrics |= {key: float(value) for key, value in result.metrics.items()}
    metrics |= {EVALUATED + key: float(value) for key, value in evaluated.items()}
    return RecordDict(
        {
            ARRAYS: pack_tensors({} if result is None else result.shared),
            METRICS: MetricRecord(metrics),
            STATE: ConfigRecord({"round": state_round}),
        }
    )


def unpack_reply(answer: Message | Exception, layout: Layout, who: str, examples: int) -> Reply:
    """What `pack_reply` packed, after checking all of it; an empty layout for a reply to `evaluate`.

    Args:
        answer: what came.
        layout: the tensors that are wanted.
        who: sent it, for the message.
        examples: the largest count that is believed.

    Raises:
        FederationError: an error, other records, names, types or tensors than wanted, values that are not finite,
            or a count out of range.
    """
    content = _content(answer)
    figures = dict(_record(content, METRICS, MetricRecord, who))
    state = _record(content, STATE, ConfigRecord, who)
    wanted = range(1, examples + 1) if layout else range(examples + 1)
    num_examples = _integer(figures.pop(NUM_EXAMPLES, None), wanted, "examples", who)
    round = _integer(state.get("round"), range(2**31), "as the round of its state", who)
    checked = _figures(figures, who)
    shared = unpack_tensors(_record(content, ARRAYS, ArrayRecord, who), layout, who)
    broken = [key for key, value in shared.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise FederationError(f"{who} sent values that are not finite in {', '.join(broken[:5])}")
    evaluated = {key.removeprefix(EVALUATED): value for key, value in checked.items() if key.startswith(EVALUATED)}
    metrics = {key: value for key, value in checked.items() if not key.startswith(EVALUATED)}
    return Reply(round, shared, num_examples, metrics, evaluated)


@dataclass(frozen=True)
class Hello:
    """Who a node says it is.

    Attributes:
        client: the site's name.
        validation: whether it can evaluate a model.
        examples: how many images it trains on.
        identity: what must be equal everywhere.
    """

    client: str
    validation: bool
    examples: int
    identity: dict[str, str]


def pack_hello(hello: Hello) -> RecordDict:
    """The content of the answer to `query.hello`."""
    about = {CLIENT: hello.client, VALIDATION: hello.validation, EXAMPLES: hello.examples}
    return RecordDict({IDENTITY: ConfigRecord({**hello.identity, **about})})


def unpack_hello(answer: Message | Exception) -> Hello:
    """What `pack_hello` packed.

    Raises:
        FederationError: an error, or fields that lack or are of another type or range.
    """
    fields = dict(_record(_content(answer), IDENTITY, ConfigRecord, "a node"))
    client, validation = fields.pop(CLIENT, None), fields.pop(VALIDATION, None)
    if not isinstance(client, str) or not is_name(client):
        raise FederationError(f"a node calls itself {shown(repr(client))}, which is no client's name")
    if not isinstance(validation, bool):
        raise FederationError(f"node of {client} says {VALIDATION} = {shown(repr(validation))}; a boolean is wanted")
    examples = _integer(fields.pop(EXAMPLES, None), range(1, MOST_EXAMPLES + 1), "examples", f"client {client}")
    wrong = [key for key, value in fields.items() if not isinstance(value, str)]
    if wrong:
        raise FederationError(f"node of {client} sent no text as {_listed(wrong)}")
    return Hello(client, validation, examples, fields)


def claimed_name(answer: Message | Exception) -> str:
    """The client's name in a hello that may be malformed otherwise, or in an error; "" where there is none."""
    if isinstance(answer, Exception):
        return ""
    if answer.has_error():
        return failure_text(answer)[0]
    record = answer.content.get(IDENTITY) if answer.has_content() else None
    name = record.get(CLIENT) if isinstance(record, ConfigRecord) else None
    return name if isinstance(name, str) and is_name(name) else ""


def why(answer: Message | Exception, error: Exception) -> str:
    """Why an answer cannot be used, without a word of its sender's that was not checked."""
    if isinstance(answer, Message) and answer.has_error():
        return failure_text(answer)[1]
    text = f": {error}" if isinstance(error, FederationError) else ""
    return f"{type(error).__name__} (unusable reply{text})"


def _content(answer: Message | Exception) -> RecordDict:
    if isinstance(answer, Exception):
        raise answer
    if not answer.has_content():
        raise FederationError("a message without content")
    content: RecordDict = answer.content
    return content


def _record(content: RecordDict, name: str, kind: type[Record], who: str) -> Record:
    found = content.get(name)
    if not isinstance(found, kind):
        what = f"no {name}" if found is None else f"a {type(found).__name__} as {name}"
        raise FederationError(f"{who} sent {what}; a {kind.__name__} is wanted")
    return found


def _integer(value: object, allowed: range, what: str, who: str) -> int:
    if type(value) is not int or value not in allowed:
        raise FederationError(
            f"{who} claims {shown(value)} {what}; a whole number of {allowed[0]} to {allowed[-1]} is wanted"
        )
    return value


def _figures(figures: Mapping[str, object], who: str) -> dict[str, float]:
    """Figures as numbers; not a number is one, too, for a metric that has no value."""
    if len(figures) > _MOST_FIGURES:
        raise FederationError(f"{who} sent {len(figures)} figures; at most {_MOST_FIGURES} are wanted")
    strange = [name for name in figures if len(name) > _LONGEST_NAME or not name.isprintable()]
    if strange:
        raise FederationError(f"{who} sent figures with names that cannot be printed: {_listed(strange)}")
    checked = {name: float(value) for name, value in figures.items() if isinstance(value, int | float)}
    if checked.keys() != figures.keys():
        raise FederationError(f"{who} sent no single number as {_listed(figures.keys() - checked.keys())}")
    return checked


def _listed(names: Iterable[str]) -> str:
    return ", ".join(shown(name) or "''" for name in sorted(names)[:5])


def pack_tensors(tensors: Tensors) -> ArrayRecord:
    """Tensors as arrays; types that numpy lacks travel as float32, which holds them exactly."""
    plain = {key: value if value.dtype in _NUMPY_KNOWS else value.float() for key, value in tensors.items()}
    return ArrayRecord({key: value.detach().cpu().contiguous() for key, value in plain.items()})


def unpack_tensors(record: ArrayRecord, layout: Layout, who: str) -> Tensors:
    """Arrays as tensors of the layout's types, in its order.

    Raises:
        FederationError: other names or shapes than the layout's, or what is no floating array.
    """
    if record.keys() != layout.keys():
        raise FederationError(
            f"{who} sent other tensors than the shared ones: {_listed(record.keys() ^ layout.keys())}"
        )
    return {
        key: read_array(record[key], shape, f"{who} sent a tensor {key}").to(dtype)
        for key, (shape, dtype) in layout.items()
    }


def layout_of(shared: Tensors) -> Layout:
    """Names, shapes and types of the tensors that travel.

    Raises:
        FederationError: a tensor that is not floating, which would not survive an average.
    """
    integers = [key for key, value in shared.items() if not value.is_floating_point()]
    if integers:
        raise FederationError(
            f"only floating tensors may be shared; the strategy also shares {', '.join(integers[:5])}: "
            "keep them private"
        )
    return {key: (tuple(value.shape), value.dtype) for key, value in shared.items()}


def check_names(shared: Tensors, layout: Layout, method: str) -> None:
    """Raise FederationError unless what a strategy's method returned are exactly the tensors that may travel."""
    if shared.keys() != layout.keys():
        different = ", ".join(sorted(shared.keys() ^ layout.keys())[:5])
        raise FederationError(f"{method} must return the shared tensors and no other; these differ: {different}")
    layout_of(shared)


def identity_of(strategy: PersonalizationStrategy, layout: Layout) -> dict[str, str]:
    """What must be equal at the server and at every site for a run to mean anything."""
    config = json.dumps(strategy.config.model_dump(mode="json"), sort_keys=True)
    lines = [f"{key} {shape} {dtype}" for key, (shape, dtype) in sorted(layout.items())]
    return {
        "strategy": strategy.name,
        "strategy configuration": hashlib.sha256(config.encode()).hexdigest()[:16],
        "layout of the shared tensors": hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16],
    }


def failure(error: Exception, stage: str, client_id: str) -> Error:
    """An error as it may travel: its type and where it happened, never its text."""
    reason = {"client": client_id, "error": type(error).__name__, "stage": stage}
    return Error(ERROR_CODE, json.dumps(reason))


def failure_text(message: Message) -> tuple[str, str]:
    """The client (or "") and "type (stage)" of an error message; text that is not ours is dropped."""
    found = _reason(message.error.reason or "")
    words = [found.get(key) for key in ("client", "error", "stage")]
    client, error, stage = (word if isinstance(word, str) else "" for word in words)
    name = client if is_name(client) else ""
    if _WORD.fullmatch(error) and _WORD.fullmatch(stage):
        return name, f"{error} ({stage})"
    return name, f"{_FLOWER_ERRORS.get(message.error.code, 'unknown')} (Flower's error {message.error.code})"


def _reason(text: str) -> Mapping[str, object]:
    try:
        found = json.loads(text) if len(text) <= _LONGEST_REASON else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def payload(message: Message | Exception) -> int:
    """Bytes of a message's records; 0 where it could not be read."""
    if isinstance(message, Exception):
        return 0
    if message.has_error():
        return len(message.error.reason or "")
    return sum(record.count_bytes() for record in message.content.values())
