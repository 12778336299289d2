"""Turn a config into each worker's command line and environment. Pure, but for counting GPUs and reading consents.

A worker inherits the launcher's environment without variables that look like secrets (it needs none, and they might
end up in a log), and gets settings for threads and logging and, under Horovod, its place in the run.
Variables that the user has set stay as they are.
"""

import importlib.util
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tl_dist.config import Config, code, registry
from tl_dist.files import consent
from tl_dist.files.process import elsewhere
from tl_dist.refusal import ExitCode, Refusal

_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSW(?:OR)?D|PASSPHRASE|CREDENTIAL|(?:API|PRIVATE|ACCESS|ACCOUNT)_?KEY|JWT|COOKIE"
    r"|KEYRING(?!_BACKEND)|CONNECTION_?STRING"
    # As words: not PATH, COMPASS, BYPASS, PASSTHROUGH, GIT_AUTHOR_NAME or XAUTHORITY, which is a file's name.
    r"|(?<!BY)(?<!COM)PASS(?![A-Z])|AUTH(?:2|KEY)?(?![A-Z])|(?<![A-Z])(?:PAT|DSN)(?![A-Z])",
    re.IGNORECASE,
)
# A password in a URL, as of a proxy or a package index.
_SECRET_VALUE = re.compile(r"://[^/\s:@]*:[^/\s@]+@")

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)

PLACE = ("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE")
"""variables that, if left over in a shell, would make a single worker wait for others"""

SUPERVISED = "TL_DIST_SUPERVISED"
"""tells a worker that its output already goes to its log, and that the supervisor shows the progress"""

SAFE_PATH = "PYTHONSAFEPATH"
"""if set, Python does not import from the working directory, which may hold any file: with -m, -c and in pools"""

_GPUS = Path("/proc/driver/nvidia/gpus")


def is_secret(name: str, value: str) -> bool:
    """Return True if a variable looks like a password or a key: workers do not get it, and no report shows it."""
    return bool(_SECRET_NAME.search(name) or _SECRET_VALUE.search(value))


@dataclass(frozen=True)
class Command:
    """One worker process on this host: its rank, its command line and its whole environment."""

    rank: int
    argv: tuple[str, ...]
    environment: Mapping[str, str]


def visible_gpus(environment: Mapping[str, str], gpus: Path = _GPUS) -> int:
    """Count the NVIDIA GPUs that a process on this host may use, without TensorFlow and the driver."""
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        listed = environment.get(name)
        if listed is not None:
            # CUDA stops at the first entry that is no device: "-1" or an empty one hides all that follow.
            entries = [entry.strip() for entry in listed.split(",")]
            return next((k for k, entry in enumerate(entries) if entry in ("", "-1")), len(entries))
    return len(list(gpus.iterdir())) if gpus.is_dir() else 0


def has_horovod() -> bool:
    """Return True if Horovod is installed here; `tl-dist doctor` checks that it works."""
    return importlib.util.find_spec("horovod") is not None


def require_package(cfg: Config) -> None:
    """Refuse (64), before anything starts, a strategy whose package is not installed."""
    package = registry.strategy(cfg.strategy).package
    if package == "horovod" and not has_horovod():
        fix = "run tl-dist install-horovod, or use strategy=collective, which needs none."
        raise Refusal("Horovod is not installed in this Python environment.", fix=fix, code=ExitCode.USAGE)


def of_processes(cfg: Config, horovod: bool) -> str:
    """Return the strategy for workers that are processes: the config's, else the best that is installed."""
    return cfg.strategy if are_processes(cfg) else "horovod" if horovod else "collective"


def resolved(cfg: Config, *, gpus: int, horovod: bool) -> Config:
    """Replace `strategy: auto` by the strategy for this host; return any other config as it is."""
    if cfg.strategy != registry.AUTO:
        return cfg
    workers = num_workers(cfg, gpus)
    several = "mirrored" if workers <= gpus else of_processes(cfg, horovod)
    strategy = "single" if workers == 1 else several
    return cfg.model_copy(update={"strategy": strategy, "workers": workers})


def num_workers(cfg: Config, gpus: int) -> int:
    """Return `workers`, else one per GPU, else 1; workers are processes or replicas in one process."""
    if registry.strategy(cfg.strategy).workers == "one":
        return 1
    return cfg.workers or max(1, gpus)


def num_processes(cfg: Config, gpus: int) -> int:
    """Return the number of a run's worker processes on this host."""
    return num_workers(cfg, gpus) if are_processes(cfg) else 1


def are_processes(cfg: Config) -> bool:
    """Return True if the strategy's workers are processes."""
    return registry.strategy(cfg.strategy).workers == "processes"


def worker_argv(run: Path, request: Path | None = None) -> tuple[str, ...]:
    """Return the command line of a worker, for any launcher. `request`: file with a task other than training."""
    return (sys.executable, "-P", "-m", "tl_dist.trainer", str(run), *([str(request)] if request else []))


def worker_environment(cfg: Config, inherited: Mapping[str, str], *, processes: int, cores: int) -> dict[str, str]:
    """Return the environment of a worker, without its place among the others."""
    own = {k: v for k, v in inherited.items() if not is_secret(k, v) and k not in PLACE}
    threads = cfg.runtime.threads or max(1, cores // processes)
    # Horovod's inspector only warns: it cannot tell a rank 0 that works alone from one that hangs. Heartbeats can.
    stall = {
        "HOROVOD_STALL_CHECK_TIME_SECONDS": f"{max(1, cfg.safety.hang_s / 4):.0f}",
        "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "0",
    }
    # Threads of the GPU's own launch kernels, so that decoding cannot delay them; memory is allocated as needed.
    gpu = {
        "TF_GPU_THREAD_MODE": "gpu_private",
        "TF_GPU_THREAD_COUNT": "2",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    }
    defaults = {
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        "TF_CPP_MIN_LOG_LEVEL": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",  # SIGABRT from the supervisor leaves every thread's stack in the log
        **(stall if are_processes(cfg) else {}),
        **(gpu if visible_gpus(inherited) else {}),
    }
    trusted = consent.for_workers(code.files(cfg.model_dump(mode="json")))
    return defaults | own | elsewhere(own) | trusted | {SUPERVISED: "1", SAFE_PATH: "1"}


def local_commands(
    cfg: Config,
    run: Path,
    inherited: Mapping[str, str],
    *,
    processes: int,
    place: Callable[[int], Mapping[str, str]] | None = None,
    request: Path | None = None,
) -> Sequence[Command]:
    """Return the commands of a run's workers on this host; `place(rank)` gives the variables by which they meet."""
    argv, cores = worker_argv(run, request), len(os.sched_getaffinity(0))
    common = worker_environment(cfg, inherited, processes=processes, cores=cores)
    return [Command(k, argv, common | dict(place(k) if place else {})) for k in range(processes)]
