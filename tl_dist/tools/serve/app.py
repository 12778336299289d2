"""Routes of the server: TensorFlow Serving's REST API, files from a form, health, metrics and the page."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import generate_latest
from starlette.datastructures import Headers, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tl_dist.files import limits
from tl_dist.tools.serve.requests import Answers, Bad, Full, Metrics
from tl_dist.tools.serve.served import Served

PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
BODY_S = 15.0  # how long the server waits for a body, beyond the time that it takes at BODY_BYTES_PER_S
BODY_BYTES_PER_S = 32 << 10


def application(answers: Answers, *, hosts: Sequence[str]) -> FastAPI:
    """Return the application, which accepts requests for these host names alone; "*": for any.

    Otherwise a web page elsewhere could point its own name to our address, and read the answers (DNS rebinding).
    """
    served = answers.served
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.add_middleware(Guard, metrics=answers.metrics)
    for kind in (Bad, ClientDisconnect, Full, AnyHTTPException, Exception):
        app.add_exception_handler(kind, _refused)

    async def check(request: Request) -> None:
        if request.path_params["name"] != served.name:
            raise HTTPException(404, "no model has this name; GET /healthz tells it")
        if request.path_params.get("version", str(served.version)) != str(served.version):
            raise HTTPException(404, f"the model has no other version than {served.version}")

    model = APIRouter(prefix="/v1/models/{name}", dependencies=[Depends(check)])

    @model.get("")
    @model.get("/versions/{version}")
    async def status() -> Any:
        fine = {"error_code": "OK", "error_message": ""}
        state = {"version": str(served.version), "state": "AVAILABLE", "status": fine}
        return {"model_version_status": [state]}

    @model.get("/metadata")
    @model.get("/versions/{version}/metadata")
    async def metadata() -> Any:
        return _metadata(served)

    @model.post(":predict")
    @model.post("/versions/{version}:predict")
    async def predict(request: Request) -> Any:
        return JSONResponse(await run_in_threadpool(answers.to_json, await request.body()))

    @app.post("/predict")
    async def predict_files(request: Request) -> Any:
        return JSONResponse(await run_in_threadpool(answers.to_files, await _files(request)))

    @app.get("/healthz")
    async def health() -> Any:
        return {"status": "ok", "model": served.name, "version": str(served.version)}

    @app.get("/metrics")
    async def metrics() -> Any:
        return PlainTextResponse(
            generate_latest(answers.metrics.registry), media_type="text/plain; version=0.0.4"
        )

    @app.get("/")
    async def page() -> Any:
        return HTMLResponse(PAGE)

    app.include_router(model)
    return app


async def _files(request: Request) -> list[tuple[str, bytes]]:
    """Return name and bytes of each file in a form; none of a URL-encoded form, whose fields have no size limit."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return []
    # Names are UTF-8, as browsers and curl send them: a charset from the client could give names that JSON cannot hold.
    headers = [
        (name, re.sub(rb"(?i)charset", b"-", value) if name == b"content-type" else value)
        for name, value in request.scope["headers"]
    ]
    sent = Request({**request.scope, "headers": headers}, request.receive)
    async with sent.form(max_files=limits.SERVED_IMAGES, max_fields=16) as form:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        return [(file.filename or "", await file.read()) for file in files]


class Guard:
    """Middleware around every request: limits its size, time and origin, counts it, and adds headers to the answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._requests = self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it with 403, 408, 413 or 503."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, taken, held, code, is_whole = time.monotonic(), 0, 0, 500, False

        async def taking() -> Message:
            nonlocal taken, held, is_whole
            wait_s = began + BODY_S + taken / BODY_BYTES_PER_S - time.monotonic()
            try:
                async with asyncio.timeout(None if is_whole else wait_s):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the rest of the request did not come") from None
            if is_whole or message["type"] != "http.request":
                return message
            taken += len(message.get("body", b""))
            if taken > limits.SERVED_BODY:
                raise HTTPException(413, _TOO_LARGE)
            more = max(0, taken - limits.SERVED_SMALL) - held
            if self._held + more > limits.SERVED_IN_FLIGHT:
                raise Full
            held, self._held = held + more, self._held + more
            if not message.get("more_body", False) and scope["method"] == "POST":
                if self._requests >= limits.SERVED_REQUESTS:
                    raise Full
                is_whole, self._requests = True, self._requests + 1
            return message

        async def sending(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        try:
            refusal = _refusal(scope)
            await (self._app if refusal is None else refusal)(scope, taking, sending)
        finally:
            self._held, self._requests = self._held - held, self._requests - is_whole
            if scope["method"] == "POST":
                self._metrics.requests.labels(code).inc()
                self._metrics.seconds.observe(time.monotonic() - began)
        return None


def _refusal(scope: Scope) -> JSONResponse | None:
    """Return the answer to a request that its headers alone rule out, or None."""
    headers = Headers(scope=scope)
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > limits.SERVED_BODY:
        return JSONResponse({"error": _TOO_LARGE}, 413)
    if scope["method"] != "GET" and not _of_own_page(headers):
        return JSONResponse({"error": "a page of another site may not use this server"}, 403)
    return None


def _of_own_page(headers: Headers) -> bool:
    """Return whether a request comes from no web page or from ours, as far as its browser says."""
    host = headers.get("host", "").lower()
    own = {f"http://{host.removesuffix(':80')}", f"https://{host.removesuffix(':443')}"}
    sites = {site.strip().lower() for site in headers.getlist("sec-fetch-site")}
    return (
        sites <= {"same-origin", "none"} and {origin.lower() for origin in headers.getlist("origin")} <= own
    )


async def _refused(request: Request, error: Exception) -> JSONResponse:
    """Answer a request that has raised an error."""
    if isinstance(error, AnyHTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    if isinstance(error, Full):
        return JSONResponse(
            {"error": "too much is waiting here; try again in a moment"}, 503, {"Retry-After": "1"}
        )
    if isinstance(error, Bad | ClientDisconnect):
        return JSONResponse({"error": str(error)}, 400)
    return JSONResponse({"error": "internal error; see the terminal"}, 500)


def _metadata(served: Served) -> dict[str, Any]:
    """Describe the model as TensorFlow Serving describes its SavedModel."""

    def tensor(name: str, kind: str, *sizes: int) -> dict[str, Any]:
        dims = [{"size": str(size), "name": ""} for size in (-1, *sizes)]
        return {name: {"dtype": kind, "tensor_shape": {"dim": dims, "unknown_rank": False}, "name": name}}

    size = served.image_size
    outputs = tensor("probabilities", "DT_FLOAT", len(served.class_names)) | tensor("class", "DT_STRING")
    inputs = {
        "serving_default": tensor("images", "DT_UINT8", size, size, 3),
        "encoded": tensor("encoded", "DT_STRING"),
    }
    signatures = {
        name: {"inputs": tensors, "outputs": outputs, "method_name": "tensorflow/serving/predict"}
        for name, tensors in inputs.items()
    }
    return {
        "model_spec": {"name": served.name, "signature_name": "", "version": str(served.version)},
        "metadata": {"signature_def": {"signature_def": signatures}, "class_names": list(served.class_names)},
    }


_TOO_LARGE = f"the request is larger than {limits.SERVED_BODY:,} bytes"
# The digests allow the inline elements of the page, and no other.
_SCRIPT, _STYLE = (
    base64.b64encode(
        hashlib.sha256(PAGE.split(f"<{tag}>")[1].split(f"</{tag}>")[0].encode()).digest()
    ).decode()
    for tag in ("script", "style")
)
_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src 'sha256-{_SCRIPT}'; style-src 'sha256-{_STYLE}'; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
