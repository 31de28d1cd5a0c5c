"""What comes in a request's body: its files, within limits of bytes and time, kept in memory alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from medfedpure.service.limits import Limits, Refusal

FORM = "multipart/form-data"


@dataclass(frozen=True)
class Upload:
    """One file that came.

    Attributes:
        name: that the sender gives it; None where he gives none.
        content: its bytes.
    """

    name: str | None
    content: bytes


async def uploads_of(request: Request, limits: Limits, several: bool) -> list[Upload]:
    """The files of a request.

    Args:
        request: whose body was not read yet.
        limits: of bytes, files and seconds.
        several: whether more than one is wanted; such a request is a form.

    Raises:
        Refusal: 400, 408, 413, 415, 422; 499 where nobody waits for the answer any more.
    """
    kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    raw = kind.startswith("image/") or kind in ("application/octet-stream", "application/dicom")
    if kind != FORM and (several or not raw):
        also = "" if several else ", or the bytes of one image as application/octet-stream"
        raise Refusal(415, f"a body of type {kind:.80} came; {FORM} with a file is wanted{also}")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.max_bytes:
        raise Refusal(413, _too_long(limits))
    try:
        async with asyncio.timeout(limits.upload_seconds):
            if kind == FORM:
                found = await _of_form(request, limits)
            else:
                found = [Upload(None, b"".join([chunk async for chunk in _chunks(request, limits)]))]
    except TimeoutError as error:
        late = f"the body did not come within {limits.upload_seconds:g} seconds: send it again, or a smaller one"
        raise Refusal(408, late) from error
    except ClientDisconnect as error:
        raise Refusal(499, "the connection was cut off") from error
    if not found or (len(found) > 1 and not several):
        wanted = "one file or more is wanted" if several else "one is wanted here, and /v1/verdicts takes several"
        raise Refusal(422, f"the form holds {len(found)} files; {wanted}")
    return found


async def _chunks(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > limits.max_bytes:
            raise Refusal(413, _too_long(limits))
        yield chunk


def _too_long(limits: Limits) -> str:
    return f"the body has more than {limits.max_bytes} bytes: send fewer or smaller images"


class _Form:
    """The files of a form, as its bytes come.

    Args:
        boundary: between its parts.
        most: files that are taken.

    Attributes:
        files: that came whole.
        ended: whether the last boundary came.
    """

    def __init__(self, boundary: bytes, most: int) -> None:
        self.most, self.files, self.ended = most, list[Upload](), False
        self._field, self._value, self._said, self._content = bytearray(), bytearray(), b"", bytearray()
        self.parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_part_data": self._part_data,
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
        )

    def _part_begin(self) -> None:
        self._said, self._content = b"", bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._said = bytes(self._value)
        self._field, self._value = bytearray(), bytearray()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def _part_end(self) -> None:
        options = parse_options_header(self._said)[1]
        if b"filename" not in options:
            return
        if len(self.files) == self.most:
            raise Refusal(413, f"more than {self.most} files came in one request: send fewer")
        name = options[b"filename"].decode(errors="backslashreplace")
        self.files.append(Upload(name or None, bytes(self._content)))

    def _end(self) -> None:
        self.ended = True


async def _of_form(request: Request, limits: Limits) -> list[Upload]:
    boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary")
    try:
        if not boundary:
            raise FormParserError("there is no boundary")
        form = _Form(boundary, limits.queue)
        async for chunk in _chunks(request, limits):
            form.parser.write(chunk)
    except FormParserError as error:
        told = f"the form is malformed: send it as {FORM}, with its boundary and names of less than 4000 bytes"
        raise Refusal(400, told) from error
    if not form.ended:
        raise Refusal(400, "the form ends before its last boundary: it was cut off")
    return form.files
