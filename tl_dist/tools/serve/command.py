"""`tl-dist serve`: check the command line, take the port, then turn this process into the server."""

import errno
import ipaddress
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from tl_dist.files.atomic import reason
from tl_dist.files.packages import require
from tl_dist.files.process import elsewhere
from tl_dist.launcher import die_with_parent
from tl_dist.launcher.command import SAFE_PATH, is_secret
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.checkpoint_reader import refuse_unknown
from tl_dist.runs.directory import RunDir
from tl_dist.terminal.console import Console

PACKAGES = ("starlette", "uvicorn", "h11", "python_multipart", "prometheus_client")


def become_server(path: Path, *, host: str, port: int, at: str) -> NoReturn:
    """Replace this process by the server of a run or an export, which inherits a listening socket."""
    argv, environment, listening = _server(path, host, port, at)
    listening.set_inheritable(True)
    os.execve(argv[0], argv, environment)


def serve(path: Path, *, host: str, port: int, at: str) -> None:
    """Run the server of a run or an export as a child, until it ends or this process is interrupted."""
    argv, environment, listening = _server(path, host, port, at)
    argv = [sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid()), *argv]
    with listening, subprocess.Popen(argv, env=environment, pass_fds=[listening.fileno()]) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.terminate()
            return
    if code:
        fix = "see the lines above."
        raise Refusal(f"the server of {path} ended with exit code {code}.", fix=fix, code=ExitCode.INTERNAL)


def _server(path: Path, host: str, port: int, at: str) -> tuple[list[str], dict[str, str], socket.socket]:
    """Return the command and the environment of a server, and the socket that it is to inherit."""
    if reachable_by_others(host):
        warning = f"anyone who can reach {host} can use this server: it asks for no password"
        Console().say(warning, style="yellow")
    refuse_unusable(path, at)
    listening = listening_on(host, port)
    address = listening.getsockname()[0]
    hosts = "*" if reachable_by_others(host) else f"{address} [{address}] localhost"
    argv = [sys.executable, "-P", "-m", "tl_dist.tools.serve", str(path.absolute())]
    argv += [str(listening.fileno()), at, hosts]
    environment = {name: value for name, value in os.environ.items() if not is_secret(name, value)}
    # Without this TensorFlow warns of each image that cannot be decoded; the answer says so already.
    defaults = {"TF_CPP_MIN_LOG_LEVEL": "2"}
    return argv, defaults | environment | elsewhere(environment) | {SAFE_PATH: "1"}, listening


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
    if not 0 <= port < 1 << 16:
        raise Refusal(f"there is no port {port}.", fix="use one up to 65535; 0 takes a free one.", code=ExitCode.USAGE)
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
