"""The application: a saved defence that answers over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from medfedpure import __version__
from medfedpure.core.errors import ConfigError, MissingExtraError
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.service.audit import AuditLog
from medfedpure.service.batching import Batcher
from medfedpure.service.decoding import Reader
from medfedpure.service.drift import Drift
from medfedpure.service.limits import Limits, Places, Refusal
from medfedpure.verdicts.decoding import Shown
from medfedpure.verdicts.predict import heads_for

try:
    from fastapi import APIRouter, Depends, FastAPI, Query, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
    from fastapi.security import HTTPBearer
    from starlette.exceptions import HTTPException

    from medfedpure.service.guard import Guard, allows, refused
    from medfedpure.service.metrics import Metrics
    from medfedpure.service.page import page
    from medfedpure.service.schema import ABOUT, BATCH, METRICS, ONE, OPEN, READY, show_null
    from medfedpure.service.state import Pictures, Service
    from medfedpure.service.uploads import uploads_of
except ImportError as _error:
    if isinstance(_error, MissingExtraError):
        raise
    raise MissingExtraError("the service needs FastAPI and more: pip install 'medfedpure[serve]'") from _error

router = APIRouter()
_TOKEN = Depends(HTTPBearer(auto_error=False))  # for the description alone: the guard decides
_Scan = Annotated[bool, Query(description="Also give the image as the defence was given it, as a PNG in base64.")]
_Map = Annotated[bool, Query(description="Also give where it looks suspicious, where the detector has such a map.")]
_Cleaned = Annotated[bool, Query(description="Also give what the classifier read, where the image was purified.")]


def create_app(
    defence: DefendedClassifier,
    *,
    token: str | None,
    limits: Limits = Limits(),  # noqa: B008
    made_by: str = "",
    shown: Shown = Shown(),  # noqa: B008
    audit: AuditLog | None = None,
    drift_window: int = 100,
    seed: int | None = None,
) -> FastAPI:
    """An ASGI application that judges images, after it was asked for a first answer.

    Args:
        defence: which nobody else uses meanwhile; it knows what images it is for.
        token: that requests bring as bearer; None lets only this machine ask, under a name of loopback.
        limits: of requests.
        made_by: which defence it is, as rows say it; behind it stands `shown`.
        shown: the window of DICOM files, as `predict_files` has it.
        audit: a log that was entered; every verdict is in it before it is answered.
        drift_window: scores in one look of the drift monitor.
        seed: of the noise of every image, for tests alone; None draws fresh noise, which nobody can foresee.

    Raises:
        ConfigError: the defence does not say what images it is for, or they are none that files are read as.
    """
    if defence.image_facts is None:
        raise ConfigError("this defence does not say what images it is for: calibrate it on a data set")
    drift = Drift(defence.calibration, drift_window)
    places = Places(limits.queue)
    service = Service(
        limits=limits,
        reader=Reader(defence.image_facts, limits.max_pixels, shown),
        batcher=Batcher(defence, limits, drift, seed),
        drift=drift,
        metrics=Metrics(lambda: places.taken, drift),
        places=places,
        heads=heads_for(defence),
        made_by=" ".join([made_by, *shown.told()]).strip(),
        token=token,
        audit=audit,
    )
    # A redirect would lead to http, also behind a proxy that speaks TLS, and the scan along with it: there are none.
    app = FastAPI(
        title="medfedpure",
        version=__version__,
        description=ABOUT,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_living,
    )
    app.state.service = service
    app.include_router(router)
    show_null(app.openapi())
    app.add_exception_handler(Refusal, _refusal)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _bad_query)
    app.add_middleware(Guard, service=service)
    return app


@asynccontextmanager
async def _living(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    service.batcher.start()
    try:
        yield
    finally:
        await asyncio.to_thread(service.batcher.stop)
        service.threads.shutdown()


async def _refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return refused(error)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = {404: "there is no such path", 405: "this path takes no such method"}.get(error.status_code, error.detail)
    return refused(Refusal(error.status_code, f"{told}: see /openapi.json", error.headers))


async def _bad_query(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    wrong = sorted({str(one["loc"][-1]) for one in error.errors()})
    return refused(Refusal(422, f"{', '.join(wrong)} in the query: true or false is wanted"))


@router.get("/", include_in_schema=False)
async def front() -> Response:
    """The page on which a scan is dropped."""
    text, policy = page()
    return HTMLResponse(text, headers={"Content-Security-Policy": policy})


@router.get("/health", summary="Is the process alive?", responses=OPEN)
async def health() -> dict[str, bool]:
    """True, as long as anything is answered."""
    return {"alive": True}


@router.get("/ready", summary="Can verdicts be given?", responses=READY)
async def ready(request: Request) -> Response:
    """Whether verdicts are given; to whom the token is known, also what the drift monitor saw."""
    service: Service = request.app.state.service
    if service.fault is not None:
        await service.beside(service.resume)
    fault = "the service is ending" if service.ending else service.fault
    if fault is None and not service.batcher.alive:
        fault = "the thread that computes has ended"
    told: dict[str, Any] = {"ready": fault is None}
    if allows(service.token, request.headers):
        told |= {"why": fault, "defence": service.made_by, "drift": service.drift.state()}
    return JSONResponse(told, 200 if fault is None else 503)


@router.get(
    "/metrics",
    summary="Counts and times for Prometheus",
    dependencies=[_TOKEN],
    response_class=PlainTextResponse,
    responses=METRICS,
)
async def metrics(request: Request) -> Response:
    """Text as Prometheus reads it."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.post("/v1/verdict", summary="A verdict on one image", dependencies=[_TOKEN], **ONE)
async def verdict(request: Request, scan: _Scan = False, map: _Map = False, cleaned: _Cleaned = False) -> Response:
    """What the image is, whether it looks attacked, and what was done about it."""
    asked, ((_, found),) = await _judged(request, Pictures(scan, map, cleaned), several=False)
    if isinstance(found, Refusal):
        raise found
    return JSONResponse({"request": asked, "classes": _classes(request), **found})


@router.post("/v1/verdicts", summary="Verdicts on several images", dependencies=[_TOKEN], **BATCH)
async def verdicts(request: Request, scan: _Scan = False, map: _Map = False, cleaned: _Cleaned = False) -> Response:
    """A row for each file of the form, in order; a file without a verdict is a row with an error and its status."""
    service: Service = request.app.state.service
    asked, found = await _judged(request, Pictures(scan, map, cleaned), several=True)
    rows = [
        service.row(upload, {}, str(one)) | {"status": one.status}
        if isinstance(one, Refusal)
        else {**one, "status": 200}
        for upload, one in found
    ]
    return JSONResponse({"request": asked, "classes": _classes(request), "rows": rows})


def _classes(request: Request) -> list[str]:
    """Names of the classes in the order of the probabilities; empty where they are not known."""
    service: Service = request.app.state.service
    facts = service.batcher.chain.image_facts
    return [] if facts is None else list(facts.class_names)


async def _judged(
    request: Request, pictures: Pictures, several: bool
) -> tuple[str, list[tuple[Any, dict[str, Any] | Refusal]]]:
    """The request's name, and every upload with its row, or why it has none; they are in the log then."""
    service: Service = request.app.state.service
    asked = request.state.request
    with service.queueing() as take:
        uploads = await uploads_of(request, service.limits, several)
        take(len(uploads) - 1)
        work = asyncio.gather(*(service.judge(one, pictures) for one in uploads), return_exceptions=True)
        found = await _unless_gone(request, work)
        await service.beside(service.record, asked, uploads, found)
    return asked, list(zip(uploads, found, strict=True))


async def _unless_gone(request: Request, work: asyncio.Future[Any]) -> Any:
    """What the work ends with; it is given up where the connection is cut off meanwhile.

    Raises:
        Refusal: 499, as nobody waits any more.
    """
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise Refusal(499, "the connection was cut off")
        return work.result()
    finally:
        gone.cancel()
        if work.cancel():
            await asyncio.wait({work})
            if not work.cancelled():
                work.exception()  # it was asked for, or asyncio logs that nobody did
