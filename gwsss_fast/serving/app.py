"""The endpoints."""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from gwsss_fast.serving import answers
from gwsss_fast.serving.answers import Answer, Models
from gwsss_fast.serving.guard import Application, Guard
from gwsss_fast.serving.limits import Limits, Refused
from gwsss_fast.serving.metrics import MEDIA_TYPE, Metrics
from gwsss_fast.serving.page import Page
from gwsss_fast.serving.pictures import check_header
from gwsss_fast.serving.uploads import Gone, Intake, read_images
from gwsss_fast.serving.worker import Worker

if TYPE_CHECKING:
    from concurrent.futures import Future

    from fastapi import FastAPI, Request

CLIENT_CLOSED = 499
log = logging.getLogger(__name__)
Compute = Callable[[Sequence[bytes]], Answer]


def build_app(
    models: Models, worker: Worker, limits: Limits, page: Page, version: str, hosts: Collection[str] | None = None
) -> Application:
    """The ASGI application: POST /segment and /group, GET /, /health and /metrics.

    hosts: names by which the server may be called; None = any.
    """
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse

    app = FastAPI(title="gwsss_fast", version=version, docs_url=None, redoc_url=None, redirect_slashes=False)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # what clients do wrong is theirs to know
    metrics = Metrics()
    service = _Service(worker, limits, metrics)

    @app.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        """The page."""
        return HTMLResponse(page.html)

    @app.post("/segment", openapi_extra=_form("image", "one image"))
    async def segment(request: Request) -> Response:
        """Mask and classes of one image; with `Accept: image/png` the mask's file alone."""
        as_png = "image/png" in request.headers.get("accept", "")
        answer = await service.answer(request, range(1, 2), partial(answers.segmented, models, limits, as_png=as_png))
        return Response(answer.body, media_type=answer.media_type)

    @app.post("/group", openapi_extra=_form("images", "two to eight images"))
    async def group(request: Request) -> Response:
        """Initial, graph and ensembled maps of the images of a group, by predicted class."""
        if models.maps is None:
            raise Refused(404, "the server was started without --classifier")
        counts = range(limits.fewest_in_group, limits.most_in_group + 1)
        answer = await service.answer(request, counts, partial(answers.grouped, models, limits))
        return Response(answer.body, media_type=answer.media_type)

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether requests are computed, and by what."""
        content = {
            "status": "ok" if worker.working else "stopping",
            "version": version,
            "device": models.device,
            "classes": models.classes,
            "group": models.maps is not None,
            "waiting": worker.waiting,
        }
        return JSONResponse(content, 200 if worker.working else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> PlainTextResponse:
        """Counters in Prometheus's text format."""
        text = metrics.text(worker.waiting, worker.places, worker.working)
        return PlainTextResponse(text, media_type=MEDIA_TYPE)

    _answer_refusals(app)
    return Guard(app, metrics, ("/", "/segment", "/group", "/health", "/metrics"), hosts, page.content_policy)


def _answer_refusals(app: "FastAPI") -> None:
    """Every refusal as JSON with one sentence, and the connection closed: there may be more of the request to come."""
    from fastapi import Request, Response
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
        return JSONResponse({"error": error.message}, error.status, {**headers, "connection": "close"})

    @app.exception_handler(Gone)
    async def gone(request: Request, error: Gone) -> Response:
        return Response(status_code=CLIENT_CLOSED)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        headers = {**(error.headers or {}), "connection": "close"}
        return JSONResponse({"error": str(error.detail)}, error.status_code, headers)


class _Service:
    """From a request to its answer: read, look at the headers, wait for a turn, compute."""

    def __init__(self, worker: Worker, limits: Limits, metrics: Metrics) -> None:
        self.worker, self.limits, self.metrics = worker, limits, metrics
        self.intake = Intake(limits.bodies * limits.bytes)

    async def answer(self, request: "Request", counts: range, compute: Compute) -> Answer:
        """Raises Refused, or Gone when the client leaves before its answer."""
        with self.intake.share() as share:
            images = await read_images(request, counts, self.limits, share)
            count = len(images)
            for number, image in enumerate(images, 1):
                name = f"image {number}" if count > 1 else "the image"
                # In a thread of its own: a header can have millions of parts, and others shall be served meanwhile.
                await asyncio.to_thread(check_header, image, self.limits.megapixels, name)
            future = self.worker.submit(partial(compute, images))
            del images, image
            try:
                answer = await _unless_gone(request, future)
                self.metrics.images(count)
                return answer
            except (Refused, Gone):
                raise
            except Exception:
                log.exception("an image could not be computed")
                raise Refused(500, "the image could not be computed; the server's log says why") from None


async def _unless_gone(request: "Request", future: "Future[Answer]") -> Answer:
    """The result; a client that leaves takes its job out of the queue."""

    async def leaving() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    result = asyncio.wrap_future(future)
    gone = asyncio.ensure_future(leaving())
    both: set[asyncio.Future[Any]] = {result, gone}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if result.done():
            return result.result()
        raise Gone
    finally:
        gone.cancel()
        result.cancel()


def _form(field: str, text: str) -> dict[str, Any]:
    """The body of an endpoint for /openapi.json."""
    image = {"type": "string", "format": "binary"}
    value = image if field == "image" else {"type": "array", "items": image}
    schema = {"type": "object", "required": [field], "properties": {field: {**value, "description": text}}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
