"""Parsers of what comes over a wire, and of what a federation and a service keep of it."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy
from of_files import Target, sealed

from medfedpure.core.errors import MedFedPureError


def _form(parts: Iterable[tuple[str, bytes]], boundary: str = "edge") -> bytes:
    """The type of a body in its first line, and the body."""
    body = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"
        for head, content in parts
    )
    return f"multipart/form-data; boundary={boundary}\n".encode() + body + f"--{boundary}--\r\n".encode()


def upload_seeds(_: Path) -> Iterable[bytes]:
    yield _form([('name="file"; filename="a.png"', b"content")])
    yield _form([('name="files"; filename="../../a"', b""), ("name=\"files\"; filename*=utf-8''%e2%82%ac", b"x" * 300)])
    yield _form([('name="note"', b"no file"), ('name="file"; filename=""', b"\r\n--edg")])
    yield b"application/octet-stream\ncontent"
    yield b"image/png; charset=x\n\x89PNG"


def uploads(_: Path) -> Target:
    from starlette.requests import Request

    from medfedpure.service.limits import Limits
    from medfedpure.service.uploads import uploads_of

    limits = Limits(max_bytes=2**15, upload_seconds=5.0, queue=4)

    def of(content: bytes) -> None:
        kind, _, body = content.partition(b"\n")
        pieces = [body[: len(body) // 3], body[len(body) // 3 :]]

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": pieces.pop(0) if pieces else b"", "more_body": bool(pieces)}

        scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", kind)]}
        found = asyncio.run(uploads_of(Request(scope, receive), limits, len(content) % 2 == 0))
        assert 1 <= len(found) <= limits.queue
        assert sum(len(one.content) for one in found) <= limits.max_bytes

    return of


def array_seeds(_: Path) -> Iterable[bytes]:
    for kind in ("<f4", ">f8", "<f2", "<i4"):
        for order in ("C", "F"):
            written = io.BytesIO()
            numpy.save(written, numpy.asarray(numpy.ones((2, 16)), dtype=kind, order=order))  # type: ignore[call-overload]
            yield written.getvalue()


def array(_: Path) -> Target:
    from flwr.app import Array

    import medfedpure.federation  # noqa: F401 - it sets Flower's switches first
    from medfedpure.federation.arrays import read_array

    def of(content: bytes) -> None:
        found = read_array(Array("float32", (2, 16), "numpy.ndarray", content), (2, 16), "client a sent a tensor w")
        assert found.shape == (2, 16)
        assert found.is_floating_point()

    return of


def message_seeds(_: Path) -> Iterable[bytes]:
    import torch
    from flwr.common.serde import recorddict_to_proto

    from medfedpure.core.personalization import LocalResult
    from medfedpure.federation import messages

    result = LocalResult({"w": torch.ones(2, 16), "b": torch.zeros(2)}, {}, 4, {"train_loss": 0.5})
    yield recorddict_to_proto(messages.pack_reply(result, {"loss": 1.0}, 3)).SerializeToString()
    yield recorddict_to_proto(messages.pack_reply(None, {"loss": 1.0}, 3)).SerializeToString()
    hello = messages.Hello("a", True, 6, {"strategy": "fedavg"})
    yield recorddict_to_proto(messages.pack_hello(hello)).SerializeToString()


def message(_: Path) -> Target:
    """A reply and a hello of a site; what Flower itself cannot read never reaches us."""
    import torch
    from flwr.app import Message
    from flwr.common.serde import recorddict_from_proto
    from flwr.proto.recorddict_pb2 import RecordDict as Proto

    from medfedpure.federation import messages

    layout = {"w": ((2, 16), torch.float32), "b": ((2,), torch.float32)}

    def of(content: bytes) -> None:
        try:
            proto = Proto()
            proto.ParseFromString(content)
            message = Message(recorddict_from_proto(proto), dst_node_id=1, message_type="train")
        except Exception:
            return
        for read in (
            lambda: messages.unpack_reply(message, layout, "client a", 6),
            lambda: messages.unpack_reply(message, {}, "client a", 6),
            lambda: messages.unpack_hello(message),
        ):
            said = _refusal(read)
            assert said.isprintable(), f"what a site sends reached a message as it is: {said!r}"
        messages.claimed_name(message)

    return of


def _refusal(read: Callable[[], object]) -> str:
    """The text of an error of ours; "" where there is none."""
    try:
        read()
    except MedFedPureError as error:
        return str(error)
    return ""


def _saved_run(folder: Path) -> Any:
    import torch

    from medfedpure.federation.checkpoint import RunCheckpoint, SavedRun

    rounds = [{"round": 1, "seconds": 0.5, "clients": {"a": {"loss": 0.5}}, "failed": {}, "client_bytes_up": {"a": 1}}]
    checkpoint = RunCheckpoint(folder, {"strategy": "fedavg", "clients": ["a"], "rounds": 2})
    checkpoint.write(SavedRun(7, False, {"w": torch.ones(2)}, {"a": 1}, rounds))
    return checkpoint


def checkpoint_seeds(folder: Path) -> Iterable[bytes]:
    _saved_run(folder / "run")
    yield from (path.read_bytes() for path in (folder / "run").glob("round-*/medfedpure.json"))


def checkpoint(folder: Path) -> Target:
    checkpoint = _saved_run(folder / "read")
    (document,) = (folder / "read").glob("round-*/medfedpure.json")

    def of(content: bytes) -> None:
        document.write_bytes(sealed(content))
        checkpoint.read()

    return of


def _private(folder: Path) -> Any:
    import torch

    from medfedpure.federation.state import PrivateStore

    store = PrivateStore(folder, 7, "a", "fedavg")
    store.write(1, {"w": torch.ones(2)}, confirmed=0)
    store.offer(1, (0.5, 0.25), {"w": torch.ones(2)})
    return store


def private_seeds(folder: Path) -> Iterable[bytes]:
    kept = _private(folder / "state").folder
    yield from (path.read_bytes() for path in (kept / "best.json", kept / "round-00001.json"))


def private_state(folder: Path) -> Target:
    store = _private(folder / "state")
    documents = store.folder / "best.json", store.folder / "round-00001.json"

    def of(content: bytes) -> None:
        for path in documents:
            path.write_bytes(content)
        with suppress(MedFedPureError):
            store.best(3)
        store.read(1)

    return of


def audit_seeds(folder: Path) -> Iterable[bytes]:
    from medfedpure.service.audit import AuditLog

    with AuditLog(folder / "log") as log:
        log.append([{"event": "verdict", "label": 1, "score": 0.5}, {"event": "refused", "status": 415}])
    yield (folder / "log").read_bytes()


def audit(folder: Path) -> Target:
    """A log that is checked and continued: what is whole and sound stays, byte for byte."""
    from medfedpure.service.audit import AuditLog, check

    path = folder / "log"

    def of(content: bytes) -> None:
        path.write_bytes(content)
        found = check(path)
        assert (found.fault is None) or found.rows < content.count(b"\n")
        with AuditLog(path):
            pass
        assert path.read_bytes().startswith(content[: content.rfind(b"\n") + 1])
        assert found.fault is not None or check(path).fault is None

    return of


def medmnist_seeds(_: Path) -> Iterable[bytes]:
    for shape in ((4, 8, 8), (4, 8, 8, 3)):
        for save in (numpy.savez, numpy.savez_compressed):
            written = io.BytesIO()
            images = numpy.arange(numpy.prod(shape), dtype=numpy.uint8).reshape(shape)
            save(written, train_images=images, train_labels=numpy.array([[0], [1], [1], [0]]))
            yield written.getvalue()
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        archive.writestr("train_images.npy", b"\x93NUMPY\x01\x00")
    yield stored.getvalue()


def medmnist(folder: Path) -> Target:
    import medfedpure

    path = folder / "some.npz"
    dataset = medfedpure.create("dataset", "medmnist", path=str(path), parts=("train",), positive="class 1")

    def of(content: bytes) -> None:
        path.write_bytes(content)
        dataset.read()

    return of
