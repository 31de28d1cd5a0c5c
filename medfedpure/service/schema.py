"""What the description of the interface says (OpenAPI): bodies, answers, and an example of each."""

from __future__ import annotations

from typing import Any

ABOUT = (
    "A defended classifier of medical images. Every image is scored by a detector; what it flags is cleaned before it "
    "is classified. Research software: no medical device, and no verdict may be used for a diagnosis or a treatment."
)
_HEAD = {"request": "a1b2c3d4e5f60718", "classes": ["healthy", "lesion"]}
_ROW = {
    "file": "scan.png",
    "label": 1,
    "class": "lesion",
    "probability_0": 0.08,
    "probability_1": 0.92,
    "score": 0.31,
    "p_value": 0.04,
    "flagged": True,
    "why": "compose > score_norm",
    "strength": 0.6,
    "purified": True,
    "abstained": False,
    "agreement": 1.0,
    "nfe": 0,
    "error": None,
    "defence": "0f3a5c7e9b1d2468",
}
_BAD = {
    **dict.fromkeys(_ROW),
    "file": "torn.png",
    "error": "the file cannot be read: image file is truncated",
    "defence": _ROW["defence"],
}
_REASONS = {
    400: "The request or its form is malformed, or cut off.",
    401: "No valid token came.",
    403: "Asked from another machine or through a proxy where there is no token, or by a page of another origin.",
    408: "The body came too slowly.",
    413: "Too many bytes, images or pixels.",
    415: "The body, or the file, is of no kind that is read.",
    422: "The file is damaged, or the defence cannot answer for it.",
    429: "The queue is full; Retry-After says when to ask again.",
    500: "The service failed; the reason is in its log.",
    503: "The service is ending, or cannot write its log.",
}


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Answers of these statuses, of which each is a sentence."""
    text = {"error": {"type": "string"}}
    said = {
        "schema": {"type": "object", "properties": text, "required": ["error"]},
        "example": {"error": "what came, what was wanted, what to do next"},
    }
    return {status: {"description": _REASONS[status], "content": {"application/json": said}} for status in statuses}


def _route(body: dict[str, Any], example: dict[str, Any], *statuses: int) -> dict[str, Any]:
    """What a route is described by: its body, its answer, its refusals."""
    good = {
        "description": "Verdicts by column; what is not known is null, as the error of a verdict is.",
        "content": {"application/json": {"example": example}},
    }
    return {
        "responses": {200: good, **answers(*statuses)},
        "openapi_extra": {"requestBody": {"required": True, "content": body}},
    }


def _form(file: dict[str, Any], name: str) -> dict[str, Any]:
    properties = {name: file}
    return {"multipart/form-data": {"schema": {"type": "object", "properties": properties, "required": [name]}}}


_FILE = {"type": "string", "format": "binary"}
_BYTES = {kind: {"schema": _FILE} for kind in ("application/octet-stream", "application/dicom", "image/*")}
_REFUSALS = (400, 401, 403, 408, 413, 415, 422, 429, 500, 503)
_SAID: dict[str, Any] = {"ready": True, "why": None, "defence": _ROW["defence"], "drift": {"watched": True}}

OPEN = answers(400, 403, 500)
"""Of a path that wants no token."""
READY = OPEN | {
    200: {"description": "They can.", "content": {"application/json": {"example": _SAID}}},
    503: {
        "description": "They cannot: it is ending, or cannot write its log.",
        "content": {"application/json": {"example": _SAID | {"ready": False, "why": "the service is ending"}}},
    },
}
METRICS = answers(400, 401, 403, 500)
_ONE = {**_HEAD, **_ROW}
_BATCH = {**_HEAD, "rows": [{**_ROW, "status": 200}, {**_BAD, "status": 422}]}
ONE = _route({**_form(_FILE, "file"), **_BYTES}, _ONE, *_REFUSALS)
BATCH = _route(_form({"type": "array", "items": _FILE}, "files"), _BATCH, *_REFUSALS)


def show_null(described: dict[str, Any]) -> None:
    """Give the description of all routes those examples anew that hold null, which FastAPI leaves out."""
    for path, method, example in (
        ("/v1/verdict", "post", _ONE),
        ("/v1/verdicts", "post", _BATCH),
        ("/ready", "get", _SAID),
    ):
        described["paths"][path][method]["responses"]["200"]["content"]["application/json"]["example"] = example
