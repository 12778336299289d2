"""The server and its routes: TensorFlow Serving's REST API, files from a form, health, metrics and the page."""

import asyncio
import base64
import gc
import hashlib
import logging
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from prometheus_client import generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tl_dist.files import limits
from tl_dist.refusal import ExitCode, printable, shortened, telling_line
from tl_dist.terminal.console import Console
from tl_dist.tools.serve.connections import Connection
from tl_dist.tools.serve.requests import Answers, Bad, Full, Metrics
from tl_dist.tools.serve.served import Served

PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
BODY_S = 15.0  # how long the server waits for a body, beyond the time that it takes at BODY_BYTES_PER_S
BODY_BYTES_PER_S = 32 << 10


def answer(model: Served, listening: socket.socket, hosts: list[str], cores: int) -> int:
    """Answer requests for these host names until a signal to stop."""
    console, answers = Console(), Answers(model, cores=cores)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            host, port = listening.getsockname()[:2]
            address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
            kind = ", calibrated" if model.calibrated else ""
            console.say(f"{model.name}, step {model.version:,}{kind}, on {address} (Ctrl-C stops it)", style="bold")

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await super().shutdown(sockets)
            requests = answers.metrics.registry.get_sample_value("tl_dist_request_seconds_count") or 0
            console.say(f"stopped after {requests:,.0f} request{'s' * (requests != 1)}")
            sys.stdout.flush()
            os._exit(ExitCode.DONE)  # a thread may be decoding an image, and cannot be interrupted

    logging.basicConfig(handlers=[_Lines()], force=True)
    config = uvicorn.Config(
        application(answers, hosts=hosts),
        http=Connection,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        backlog=512,
        timeout_graceful_shutdown=5,
    )
    server = Server(config)
    for number in (signal.SIGINT, signal.SIGTERM):
        # For a signal while the server starts, and because uvicorn raises the signal again after it has stopped.
        signal.signal(number, server.handle_exit)
    gc.freeze()  # these objects stay: collecting among them takes half a second without an answer
    server.run([listening])
    return ExitCode.INTERNAL  # not reached: shutdown ends the process


class _Lines(logging.Handler):
    """Prints one line for each event, whatever text a request has put into it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record, an exception as its type, its text and the last line of code."""
        text = " ".join(record.getMessage().split())
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, asyncio.CancelledError):
            return  # the shutdown ends requests, and uvicorn has logged how many
        if error is not None:
            frame = traceback.extract_tb(error.__traceback__)[-1:]
            place = "".join(f" ({Path(each.filename).name}:{each.lineno})" for each in frame)
            text = f"{text}: {type(error).__name__}: {telling_line(str(error))}{place}"
        Console(stderr=True).say(f"{record.levelname.lower()}: {shortened(printable(text), 1000)}")


def application(answers: Answers, *, hosts: Sequence[str]) -> Starlette:
    """Return the application, which accepts requests for these host names alone; "*": for any.

    Otherwise a web page elsewhere could point its own name to our address, and read the answers (DNS rebinding).
    """
    name, version = answers.served.name, str(answers.served.version)

    async def page(request: Request) -> Response:
        return HTMLResponse(PAGE)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "model": name, "version": version})

    async def metrics(request: Request) -> Response:
        text = generate_latest(answers.metrics.registry)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def predict_files(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(answers.to_files, await _files(request)))

    async def of_model(request: Request) -> Response:
        if request.path_params["name"] != name:
            raise HTTPException(404, "no model has this name; GET /healthz tells it")
        if request.path_params.get("version", version) != version:
            raise HTTPException(404, f"the model has no other version than {version}")
        if request.method == "POST":
            return JSONResponse(await run_in_threadpool(answers.to_json, await request.body()))
        if request.url.path.endswith("/metadata"):
            return JSONResponse(_metadata(answers.served))
        fine = {"error_code": "OK", "error_message": ""}
        return JSONResponse({"model_version_status": [{"version": version, "state": "AVAILABLE", "status": fine}]})

    routes = [Route("/", page), Route("/healthz", health), Route("/metrics", metrics)]
    routes.append(Route("/predict", predict_files, methods=["POST"]))
    for model in ("/v1/models/{name}", "/v1/models/{name}/versions/{version}"):
        routes.append(Route(f"{model}:predict", of_model, methods=["POST"]))
        routes += [Route(model, of_model), Route(f"{model}/metadata", of_model)]
    middleware = [
        Middleware(Guard, metrics=answers.metrics),
        Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
    ]
    errors = (Bad, ClientDisconnect, Full, HTTPException, Exception)
    return Starlette(routes=routes, middleware=middleware, exception_handlers=dict.fromkeys(errors, _refused))


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
    length, host = headers.get("content-length", "0"), headers.get("host", "").lower()
    if length.isdecimal() and int(length[:20]) > limits.SERVED_BODY:
        return JSONResponse({"error": _TOO_LARGE}, 413)
    own = {f"http://{host.removesuffix(':80')}", f"https://{host.removesuffix(':443')}"}
    origins = {origin.lower() for origin in headers.getlist("origin")}
    sites = {site.strip().lower() for site in headers.getlist("sec-fetch-site")}
    # No web page but ours may send images, as far as the browser says where a request comes from.
    if scope["method"] != "GET" and not (sites <= {"same-origin", "none"} and origins <= own):
        return JSONResponse({"error": "a page of another site may not use this server"}, 403)
    return None


async def _refused(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    if isinstance(error, Full):
        return JSONResponse({"error": "too much is waiting here; try again in a moment"}, 503, {"Retry-After": "1"})
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
    base64.b64encode(hashlib.sha256(PAGE.split(f"<{tag}>")[1].split(f"</{tag}>")[0].encode()).digest()).decode()
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
