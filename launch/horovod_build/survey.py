"""What is on this machine and in the environment, and the recipe for a wheel that follows from it."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from horovod_build import edits, refusal

# Upstream's setup.py offers no way to pass CMake settings; a toolchain file named in the environment does.
# Without it the library would carry the paths of the environment and temporary folder that it was built in.
TOOLCHAIN = "set(CMAKE_SKIP_BUILD_RPATH ON)\n"


def digest_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Recipe:
    """Everything the compiled wheel depends on. Two recipes share a cached wheel only if they are equal."""

    horovod: str
    tensorflow: str  # version
    tensorflow_cuda: str  # CUDA version of TensorFlow's wheel, "none" for a CPU build
    python: str  # such as cpython-311
    platform: str  # such as linux-x86_64-glibc2.41
    mpi: str  # such as "Open MPI 5.0.7", or "none"
    cuda: str  # toolkit release, or "none"
    nccl: str  # version, or "none"
    edits: str  # digest of the edits and of the build settings

    @property
    def digest(self) -> str:
        return digest_of(asdict(self))

    @property
    def key(self) -> str:
        """Readable first, exact last: it is a folder name."""
        mpi = "nompi" if self.mpi == "none" else "mpi"
        gpu = "cpu" if self.nccl == "none" else f"cuda{self.cuda}-nccl"
        words = (self.horovod, f"tf{self.tensorflow}", self.python, self.platform, mpi, gpu, self.digest)
        return "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", word) for word in words)

    @property
    def label(self) -> str:
        """The local part of the wheel's version, so that an installed Horovod says which build it is."""
        return f"tldist.{self.digest}"

    @property
    def summary(self) -> str:
        tensorflow = "CPU build" if self.tensorflow_cuda == "none" else f"CUDA {self.tensorflow_cuda} build"
        gpu = "no GPU operations" if self.nccl == "none" else f"NCCL {self.nccl} with CUDA {self.cuda}"
        mpi = "no MPI (no mpicxx on PATH)" if self.mpi == "none" else self.mpi
        return f"TensorFlow {self.tensorflow} ({tensorflow}), {self.python}, Gloo, {mpi}, {gpu}"


@dataclass(frozen=True)
class Nccl:
    """Where NCCL lies: `include` has nccl.h, `library` is the shared object."""

    include: Path
    library: Path
    from_wheel: bool

    @property
    def version(self) -> str:
        text = (self.include / "nccl.h").read_text(errors="replace")
        parts = [re.search(rf"#define\s+NCCL_{part}\s+(\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")]
        return ".".join(part.group(1) for part in parts if part)


@dataclass(frozen=True)
class Survey:
    """What was found, in the words of the recipe and as paths."""

    python: Path
    tensorflow: Path  # the package's folder
    recipe: Recipe
    cuda_home: Path | None
    nccl: Nccl | None
    installed: str | None  # version of the Horovod in the environment
    warnings: tuple[str, ...] = ()


PROBE = """
import importlib.metadata as metadata, importlib.util, json, platform, sys, sysconfig
def version(*names):
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
spec = importlib.util.find_spec("tensorflow")
print(json.dumps({
    "tag": sys.implementation.cache_tag,
    "platform": "-".join([sysconfig.get_platform(), "".join(platform.libc_ver())]),
    "purelib": sysconfig.get_path("purelib"),
    "tensorflow": version("tensorflow", "tensorflow-cpu", "tf-nightly", "tf-nightly-cpu"),
    "tensorflow_dir": spec and list(spec.submodule_search_locations)[0],
    "horovod": version("horovod"),
    "pip": importlib.util.find_spec("pip") is not None,
}))
"""


def output_of(*command: object) -> str | None:
    """The command's stdout and stderr, or None where it is missing or fails."""
    try:
        done = subprocess.run(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None


def probe(python: Path) -> dict:
    answer = output_of(python, "-c", PROBE)
    if answer is None:
        raise refusal.Refusal(
            f"{python} is not a working Python. Fix: give --python the interpreter of an environment",
            refusal.USAGE,
        )
    return json.loads(answer.splitlines()[-1])


def find_mpi() -> str:
    if not shutil.which("mpicxx"):
        return "none"
    words = output_of("mpicxx", "--showme:version") or output_of("mpirun", "--version") or "unknown MPI"
    line = words.splitlines()[0]
    found = re.search(r"Open MPI [\d.]+\d", line)
    return found.group(0) if found else line[:60]


def find_cuda() -> tuple[str, Path | None]:
    """The toolkit's release and home. nvcc on PATH may be a wrapper, so it is asked where it lives."""
    home = os.environ.get("HOROVOD_CUDA_HOME") or os.environ.get("CUDA_HOME")
    nvcc = str(Path(home) / "bin" / "nvcc") if home else shutil.which("nvcc")
    release = re.search(r"release ([\d.]+)", output_of(nvcc, "--version") or "") if nvcc else None
    if not release:
        return "none", None
    if not home:
        top = re.search(r"TOP=(\S+)", output_of(nvcc, "--dryrun", "-x", "cu", "-c", "/dev/null") or "")
        home = top.group(1) if top else str(Path(str(nvcc)).resolve().parent.parent)
    return release.group(1), Path(home).resolve()


def find_nccl(purelib: Path, cuda_home: Path | None) -> Nccl | None:
    """The NCCL that TensorFlow's GPU wheel brings comes first: it is the one that training will load."""
    wheel = purelib / "nvidia" / "nccl"
    stated = os.environ.get("HOROVOD_NCCL_HOME")
    system = [Path("/usr"), Path("/usr/local"), *([cuda_home] if cuda_home else [])]
    for home in [Path(stated)] if stated else [wheel, *system]:
        if not (home / "include" / "nccl.h").exists():
            continue
        for folder in (home / "lib", home / "lib64", *sorted((home / "lib").glob("*-linux-gnu"))):
            for name in ("libnccl.so", "libnccl.so.2"):
                if (folder / name).exists():
                    return Nccl(home / "include", folder / name, from_wheel=home == wheel)
    return None


def tensorflow_cuda(tensorflow_dir: Path) -> str:
    """The CUDA version TensorFlow's wheel was built for, read from its build_info without importing it."""
    file = tensorflow_dir / "python" / "platform" / "build_info.py"
    text = file.read_text(errors="replace") if file.exists() else ""
    found = re.search(r"OrderedDict\((\[.*\])\)", text, re.DOTALL)
    info = dict(ast.literal_eval(found.group(1))) if found else {}
    return str(info.get("cuda_version", "unknown")) if info.get("is_cuda_build") else "none"


def major(version: str) -> int:
    found = re.match(r"\d+", version)
    return int(found.group(0)) if found else 0


def survey(python: Path, gpu: bool | None) -> Survey:
    """Look around. `gpu` is True (--gpu), False (--no-gpu) or None: decided by TensorFlow's wheel."""
    facts = probe(python)
    quoted = shlex.quote(str(python))
    if not facts["pip"]:
        raise refusal.Refusal(f"{python} has no pip. Fix: {quoted} -m ensurepip", refusal.USAGE)
    if not facts["tensorflow"] or not facts["tensorflow_dir"]:
        raise refusal.Refusal(
            f"no TensorFlow in {python}. Fix: {quoted} -m pip install 'tensorflow-cpu==2.21.*' "
            "(or, for GPUs, 'tensorflow[and-cuda]==2.21.*')",
            refusal.USAGE,
        )
    tensorflow = Path(facts["tensorflow_dir"])
    wheel_cuda = tensorflow_cuda(tensorflow)
    cuda, cuda_home, nccl, warnings = "none", None, None, []
    if gpu or (gpu is None and wheel_cuda != "none"):
        cuda, cuda_home = find_cuda()
        nccl = find_nccl(Path(facts["purelib"]), cuda_home)
        missing = {}
        if not cuda_home:
            missing["nvcc"] = "load or install the CUDA toolkit, or set CUDA_HOME"
        if not nccl:
            missing["NCCL"] = f"{quoted} -m pip install nvidia-nccl-cu12, or set HOROVOD_NCCL_HOME"
        lacking = f"{' and '.join(missing)}. Fix: {'; '.join(missing.values())}"
        if missing and gpu:
            raise refusal.Refusal(f"--gpu needs {lacking}", refusal.UNAVAILABLE)
        if missing:
            warnings.append(f"no NCCL in this build, gradients will travel over the host: missing {lacking}")
            cuda, cuda_home, nccl = "none", None, None
        elif major(cuda) > major(wheel_cuda) > 0:
            warnings.append(
                f"compiled with CUDA {cuda}, TensorFlow uses {wheel_cuda}: the GPU driver must support {cuda} "
                "(nvidia-smi names what it supports)"
            )
    recipe = Recipe(
        horovod=edits.VERSION,
        tensorflow=facts["tensorflow"],
        tensorflow_cuda=wheel_cuda,
        python=facts["tag"],
        platform=facts["platform"],
        mpi=find_mpi(),
        cuda=cuda,
        nccl=nccl.version if nccl else "none",
        edits=digest_of([(edit.path, edit.old, edit.new) for edit in edits.EDITS] + [TOOLCHAIN]),
    )
    return Survey(python, tensorflow, recipe, cuda_home, nccl, facts["horovod"], tuple(warnings))
