"""Launch the workers of a run on this host, with a rendezvous where they need one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from tl_dist.config import Config
from tl_dist.launcher.attempt import Launch
from tl_dist.launcher.command import Command, are_processes, local_commands, num_processes, visible_gpus
from tl_dist.rendezvous.rank_layout import GLOO_TIMEOUT_VARIABLE
from tl_dist.rendezvous.server import Rendezvous


def local_launch(cfg: Config, run: Path, request: Path | None = None) -> Launch:
    """Return a launch, for `supervise`, of processes on this host with a new rendezvous on loopback for each attempt.

    `request` is the file with a task other than training.
    """
    processes = num_processes(cfg, visible_gpus(os.environ))

    @contextmanager
    def launch() -> Iterator[Sequence[Command]]:
        # Horovod of size 1 uses a rendezvous as well: one way for any number of workers.
        rendezvous = Rendezvous([("localhost", processes)], "127.0.0.1") if are_processes(cfg) else None
        with rendezvous or nullcontext():
            yield local_commands(
                cfg,
                run,
                os.environ,
                processes=processes,
                place=None if rendezvous is None else lambda rank: place(rendezvous, rank),
                request=request,
            )

    return launch


def place(rendezvous: Rendezvous, rank: int) -> dict[str, str]:
    """Return Horovod's variables for one worker; the user may have set the network interfaces and the timeout."""
    nccl = os.environ.get("NCCL_SOCKET_IFNAME")
    timeout = os.environ.get(GLOO_TIMEOUT_VARIABLE, "")
    environment = rendezvous.worker_environment(
        rank,
        interface=os.environ.get("HOROVOD_GLOO_IFACE"),
        timeout_s=int(timeout) if timeout.isdigit() else None,
    )
    return environment | ({"NCCL_SOCKET_IFNAME": nccl} if nccl else {})
