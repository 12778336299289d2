"""`tl-dist serve`: check the command line, take the port, then turn this process into the server."""

import errno
import ipaddress
import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from tl_dist.files.atomic import reason
from tl_dist.files.packages import require
from tl_dist.launcher.command import SAFE_PATH, is_secret
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.checkpoint_reader import refuse_unknown
from tl_dist.runs.directory import RunDir

PACKAGES = ("starlette", "uvicorn", "h11", "python_multipart", "prometheus_client")


def become_server(path: Path, *, host: str, port: int, at: str) -> NoReturn:
    """Replace this process by the server of a run or an export, which inherits a listening socket."""
    refuse_unusable(path, at)
    listening = listening_on(host, port)
    listening.set_inheritable(True)
    address = listening.getsockname()[0]
    hosts = "*" if reachable_by_others(host) else f"{address} [{address}] localhost"
    argv = [sys.executable, "-P", "-m", "tl_dist.tools.serve", str(path.absolute())]
    argv += [str(listening.fileno()), at, hosts]
    environment = {name: value for name, value in os.environ.items() if not is_secret(name, value)}
    # Without this TensorFlow warns of each image that cannot be decoded; the answer says so already.
    os.execve(argv[0], argv, {"TF_CPP_MIN_LOG_LEVEL": "2"} | environment | {SAFE_PATH: "1"})


def refuse_unusable(path: Path, at: str) -> None:
    """Refuse at once what the server would refuse only after some seconds."""
    require(PACKAGES, extra="serve")
    refuse_unknown(at)
    if not (path / "export.json").is_file():
        RunDir.open(path)
    elif at:
        raise Refusal(f"{path} is an export, of one checkpoint.", fix="leave out --at.", code=ExitCode.USAGE)


def listening_on(host: str, port: int) -> socket.socket:
    """Return a listening socket. Refuse (73) a port that is taken, and (64) what is no address of this machine."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # It listens from now on: if two servers only bound the port, neither would notice the other.
        return socket.create_server(address[:2], family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        if isinstance(error, socket.gaierror | UnicodeError) or error.errno == errno.EADDRNOTAVAIL:
            what = f"--host {host} is no address of this machine ({reason(error)})."
            fix, code = "name one, such as 127.0.0.1 or 0.0.0.0.", ExitCode.USAGE
        else:
            what = f"{host} port {port} cannot be served on ({os.strerror(error.errno or 0)})."
            fix, code = "name another port with --port; 0 takes a free one.", ExitCode.CANNOT_CREATE
        raise Refusal(what, fix=fix, code=code) from error


def reachable_by_others(host: str) -> bool:
    """Return whether other machines may reach a server at this address."""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"
