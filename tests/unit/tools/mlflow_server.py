"""An MLflow server on the loopback, as far as runs need one: it applies a request, and may lose the answer or hang."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class MlflowServer(ThreadingHTTPServer):
    """What it was told. Metrics are kept as by MLflow's databases: one that is the same in all is kept once."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.experiments: list[str] = []
        self.runs: list[dict[str, Any]] = []
        self.metrics: dict[tuple[Any, ...], None] = {}
        self.num_metrics_sent = 0
        self.parameters: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.lost: set[int] = set()
        """numbers of requests whose answer is lost"""
        self.hangs = False
        self.released = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *request: Any) -> None:
        """A peer that went away is what it is for."""

    def answer(self, what: str, asked: dict[str, Any]) -> dict[str, Any] | None:
        """None: there is no such thing."""
        match what:
            case "experiments/get-by-name":
                known = asked["experiment_name"] in self.experiments
                return {"experiment": {"experiment_id": "1", "name": "tl_dist"}} if known else None
            case "experiments/create":
                self.experiments.append(asked["name"])
                return {"experiment_id": "1"}
            case "runs/search":
                wanted = asked["filter"].split("'")[1]
                return {"runs": [run for run in self.runs if run["data"]["tags"][0]["value"] == wanted]}
            case "runs/create":
                tags = [tag for tag in asked["tags"] if tag["key"] == "tl_dist.id"]
                place = f"{self.server_address[1]}-{len(self.requests)}"  # the library remembers it for good
                info = {"run_id": place, "experiment_id": "1", "status": "RUNNING"}
                info["artifact_uri"] = f"mlflow-artifacts:/{place}"
                self.runs.append({"info": info, "data": {"tags": tags}})
                return {"run": self.runs[-1]}
            case "runs/get":
                params = [{"key": key, "value": value} for key, value in self.parameters.items()]
                run = self._run(asked["run_id"])
                return {"run": {**run, "data": {**run["data"], "params": params}}}
            case "runs/update":
                self._run(asked["run_id"])["info"]["status"] = asked["status"]
                return {"run_info": self._run(asked["run_id"])["info"]}
            case "runs/log-batch":
                metrics = asked.get("metrics", [])
                self.num_metrics_sent += len(metrics)
                for one in metrics:
                    self.metrics[one["key"], int(one["step"]), repr(float(one["value"])), one["timestamp"]] = None
                self.parameters |= {one["key"]: one["value"] for one in asked.get("params", [])}
                return {}
        raise AssertionError(what)

    def _run(self, number: str) -> dict[str, Any]:
        return next(run for run in self.runs if run["info"]["run_id"] == number)


class _Handler(BaseHTTPRequestHandler):
    server: MlflowServer

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        while self.headers.get("Transfer-Encoding") == "chunked" and (size := int(self.rfile.readline(), 16)):
            body += self.rfile.read(size + 2)[:-2]
        what, _, query = self.path.partition("?")
        what = what.partition("/mlflow/")[2] or what
        number = len(self.server.requests)
        self.server.requests.append(what)
        if self.server.hangs:
            self.server.released.wait(60)
            return
        if "/artifacts/" in what:
            if body:
                self.server.files[what.rpartition("/")[2]] = body
            found: dict[str, Any] | None = {}
        else:
            asked = dict(pair.split("=") for pair in query.split("&") if pair) or json.loads(body or b"{}")
            found = self.server.answer(what, asked)
        if number in self.server.lost:
            self.close_connection = True
            return
        code, content = (200, found) if found is not None else (404, {"error_code": "RESOURCE_DOES_NOT_EXIST"})
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_PATCH = _serve

    def log_message(self, *args: Any) -> None:
        """Nothing."""


@contextmanager
def mlflow_server() -> Iterator[MlflowServer]:
    """It serves in a thread until the end of the body."""
    server = MlflowServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
