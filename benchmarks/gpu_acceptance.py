"""What has to hold on GPUs, in order: run what this machine allows, and print the table.

    python -m benchmarks.gpu_acceptance [NUMBER ...]

docs/pages/gpu_acceptance.md explains the steps; `python -m benchmarks.gpu_acceptance --page` writes its table again. It
goes on after a failure. The exit code is 0 when every step that was asked for holds, 1 when one falls short, and 69
when none does but some were not run, for want of GPUs or since they are for the user to run.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.comparison import NOT_RUN
from benchmarks.gpu_runs import CONFIG, ROOT, SYNTHETIC, command, last_report, speed, trained
from tests.parallel.launch import run_workers
from tl_dist.launcher.command import visible_gpus
from tl_dist.refusal import ExitCode

PAGE = ROOT / "docs" / "pages" / "gpu_acceptance.md"
BEGIN = "<!-- the table below is written by python -m benchmarks.gpu_acceptance --page -->\n\n"
FAST = ("precision=mixed_bfloat16", "runtime.xla=true")
PROCESSES = ("horovod", "collective")


@dataclass(frozen=True)
class Outcome:
    """Whether a bar holds, and by what."""

    holds: bool
    measured: str


@dataclass(frozen=True)
class Step:
    """One step. `gpus` are needed on this host; without `run` the user has to do it."""

    number: int
    gpus: int
    what: str
    bar: str
    run: Callable[[], Outcome] | None = None


def doctor() -> Outcome:
    done = command("doctor")
    nccl = "[X] NCCL" in done.stdout
    return Outcome(done.returncode == 0 and nccl, f"exit code {done.returncode}, {'with' if nccl else 'no'} NCCL")


def cpu_tests() -> Outcome:
    return of_process("./launch/test", CUDA_VISIBLE_DEVICES="-1")


def gpu_tests() -> Outcome:
    return of_process(sys.executable, "-m", "pytest", "-q", "tests/gpu")


def benchmark(name: str) -> Callable[[], Outcome]:
    return lambda: of_process(sys.executable, "benchmarks/run", name)


def out_of_memory() -> Outcome:
    """One line and no restart; then the same batch in 16 parts."""
    common = (*SYNTHETIC, "strategy=single", "global_batch=4096", "steps=2", "precision=mixed_bfloat16")
    with tempfile.TemporaryDirectory() as runs:
        done = command("train", CONFIG, f"--runs={runs}", "name=large", *common)
    said = [line for line in (done.stdout + done.stderr).splitlines() if "accumulate" in line]
    refused = done.returncode == ExitCode.NO_REQUEUE and "restart 1" not in done.stdout
    trained(*common, "accumulate=16")
    return Outcome(refused and len(said) == 1, f"exit code {done.returncode}, {len(said)} line that names accumulate")


def scaling() -> Outcome:
    """Images a second of as many GPUs as there are over that of one, 256 rows on each."""
    number = visible_gpus(os.environ)
    many = (*SYNTHETIC, *FAST, f"workers={number}", f"global_batch={256 * number}")
    one = last_report(trained(*SYNTHETIC, *FAST, "workers=1", "global_batch=256"))["examples_per_s"]
    holds, texts = True, []
    for strategy in PROCESSES:
        report = last_report(trained(*many, f"strategy={strategy}"))
        strong = speed(*SYNTHETIC, *FAST, f"strategy={strategy}", f"workers={number}", "global_batch=256")
        ratio, share = report["examples_per_s"] / (number * one), report["reduction_share"]
        part = strong / report["examples_per_s"]
        holds &= ratio >= 0.92 and share <= 0.05 and part >= 0.5
        texts.append(f"{strategy} {ratio:.3f}, reduction {share:.1%}, 256 rows in all {part:.2f}")
    mirrored = speed(*many, "strategy=mirrored") / (number * one)
    sync, train = (speed(*many, "runtime.xla=auto", f"model.batch_norm={kind}") for kind in ("sync", "train"))
    holds &= mirrored >= 0.85 and sync >= 0.8 * train
    return Outcome(
        holds,
        f"{number} GPUs: {'; '.join(texts)}; mirrored {mirrored:.3f}; batch_norm sync {sync / train:.2f}",
    )


def parity() -> Outcome:
    """Losses of 20 steps in float32 on several GPUs against one, uneven shares among them."""
    counts = [n for n in (2, 3, 8) if n <= visible_gpus(os.environ)]
    launches = [("single", 1), *((strategy, n) for strategy in PROCESSES for n in counts)]
    found = {f"{strategy} {n}": figures_of(strategy, n) for strategy, n in launches}
    one = found["single 1"]["losses"]
    worst = max(abs(a / b - 1) for each in found.values() for a, b in zip(each["losses"], one, strict=True))
    equal = all(each["replicas_equal"] for each in found.values())
    return Outcome(worst <= 1e-4 and equal, f"{', '.join(found)}: at most {worst:.1e}, replicas equal: {equal}")


def figures_of(strategy: str, workers: int) -> dict[str, Any]:
    """What the scenario of tests/parallel finds, by workers that meet as those of a run."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "out.json")
        scenario = ("-m", "tests.parallel.parity_scenario", strategy, str(workers), "plain", str(output))
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        if workers == 1:
            subprocess.run([sys.executable, *scenario], check=True, timeout=600, env=environment)
        else:
            run_workers([sys.executable, *scenario], environment, workers)
        return dict(json.loads(output.read_text())["plain"])


def faults() -> Outcome:
    """A worker is killed or frozen in the middle; the run restarts, and ends with the bits of one left alone."""
    before, all_hold, texts = pids_on_gpus(), True, []
    for strategy in PROCESSES:
        ends = {fault: end_of(strategy, fault) for fault in ("", "kill", "stop")}
        state, clean_s, _ = ends.pop("")
        for fault, (found, took_s, attempts) in ends.items():
            all_hold &= found == state and attempts == 2
            texts.append(
                f"{strategy}, {fault}: {'same' if found == state else 'other'} bits, {attempts} attempts, "
                f"{took_s - clean_s:.0f} s lost"
            )
    left = pids_on_gpus() - before
    return Outcome(all_hold and not left, f"{'; '.join(texts)}; {len(left)} processes left on the GPUs")


def end_of(strategy: str, fault: str) -> tuple[bytes, float, int]:
    """The final state of a run whose rank 1 meets a fault after step 50, the seconds that it took, its attempts."""
    overrides = (
        *SYNTHETIC,
        f"strategy={strategy}",
        "name=fault",
        "steps=60",
        "checkpoint.every_steps=20",
        "report.every_steps=1",  # a chunk is a step
        "runtime.deterministic=true",
        "global_batch=256",
    )
    point = {"TL_FAILPOINT": f"train.chunk_done@1:50={fault}", "TL_ALLOW_FAILPOINTS": "1"} if fault else {}
    with tempfile.TemporaryDirectory() as runs:
        began = time.monotonic()
        done = command("train", CONFIG, f"--runs={runs}", *overrides, environment=point)
        took_s = time.monotonic() - began
        if done.returncode:
            raise RuntimeError(f"{strategy}, {fault or 'left alone'}: exit code {done.returncode}")
        (state,) = Path(runs, "fault", "checkpoints").glob("*60/*.safetensors")
        return state.read_bytes(), took_s, len(list(Path(runs, "fault", "attempts").glob("*.json")))


def pids_on_gpus() -> set[str]:
    """Processes that the driver knows on any GPU."""
    asked = ("nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader")
    return {*subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()}


def blocked() -> Outcome:
    """How long training stands still for a checkpoint."""
    records = trained(*SYNTHETIC, *FAST, "strategy=single", "global_batch=256", "checkpoint.every_steps=100")
    total = next(r["checkpoint_blocked_s"] for r in records if "checkpoint_blocked_s" in r)
    each = total / max(1, sum(r["event"] == "checkpoint" for r in records))
    return Outcome(each <= 0.3, f"{each:.2f} s")


def of_process(*argv: str, **variables: str) -> Outcome:
    """Whether it ends with 0, and its last line; what it prints is shown."""
    done = subprocess.run(argv, cwd=ROOT, env=os.environ | variables, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, flush=True)
    last = (done.stdout.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return Outcome(done.returncode == 0, last)


STEPS = (
    Step(1, 1, "`launch/install_horovod --gpu`, then `tl-dist doctor`", "exit code 0, NCCL is ticked", doctor),
    Step(2, 1, "all tests on the CPU, on the GPU build of TensorFlow", "all pass", cpu_tests),
    Step(3, 1, "tests/gpu: losses, bits, overflow, kill and resume, against the CPU", "all pass", gpu_tests),
    Step(4, 1, "`./benchmarks/run gpu_step`", "1.0 of `model.fit` with XLA, 1.5 of itself without; in bfloat16 an "
         "H100 2,400 images/s, an A100 2,000", benchmark("gpu_step")),
    Step(5, 1, "`./benchmarks/run gpu_input`", "0.95 of synthetic images, at most 3 % waiting", benchmark("gpu_input")),
    Step(6, 1, "`./benchmarks/run gpu_idle`", "busy 95 % of the time at 256 rows, 85 % at 32", benchmark("gpu_idle")),
    Step(7, 1, "a batch of 4,096 on one GPU", "one line that names accumulate, no restart; accumulate=16 runs",
         out_of_memory),
    Step(8, 2, "all GPUs of a host against one by horovod, collective and mirrored, 256 rows on each, and 256 in all; "
         "nccl-tests' `all_reduce_perf -b 8M -e 128M -g 8` shows the roof", "0.92 (mirrored 0.85), reduction 5 % of "
         "the time; 256 in all 0.5 of that; `batch_norm: sync` 0.8 of `train`", scaling),
    Step(9, 2, "20 steps on 2, 3 and 8 GPUs against one by horovod and collective, float32 without TF32",
         "losses to 1e-4, replicas equal", parity),
    Step(10, 2, "a worker is killed, then one frozen, in the middle of training, by horovod and collective",
         "a restart, and the same bits as without, in deterministic mode; no process is left on a GPU", faults),
    Step(11, 8, f"`tl-dist train {CONFIG} data.path=DIRECTORY steps=1 epochs=null`: the evaluation of 50,000 x 1,000",
         "15 s; memory of rank 0 grows by 1.5 GB, of others by 0.5"),
    Step(12, 1, "a checkpoint of ResNet-50 with momentum", "training stands still for 0.3 s", blocked),
    Step(13, 8, f"`tl-dist train {CONFIG} data.path=DIRECTORY`: 90 epochs", "76.3 +- 0.3 % top-1 in 2 h"),
    Step(14, 64, "the job shown above, with NCCL_DEBUG=INFO", "each log has its one GPU, 14 threads and NET/IB"),
    Step(15, 64, "the same job: from its start to step 1", "180 s"),
    Step(16, 64, "the same job: images/s over those of 8 GPUs (`runtime.wire=bfloat16` on slower networks)",
         "8 x 0.90 on 400 Gbit/s, 8 x 0.75 on 100; reduction 10 % of the time"),
    Step(17, 64, "a node is powered off; `scancel --signal=USR1`; the time limit", "back in 5 min; losses to 1e-3"),
    Step(18, 64, "`strace -c -f -p PID` of one rank for a minute, on a shared filesystem", "1 metadata call a second"),
)  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Run the steps with these numbers, or all; print the table and return the exit code."""
    if list(arguments) == ["--page"]:
        PAGE.write_text(PAGE.read_text().partition(BEGIN)[0] + BEGIN + table())
        return 0
    known = {str(step.number): step for step in STEPS}
    if unknown := [text for text in arguments if text not in known]:
        print(f"there is no step {unknown[0]}. Fix: give numbers from 1 to {len(STEPS)}.", file=sys.stderr)
        return ExitCode.USAGE
    rows, codes = [], set()
    for step in [known[text] for text in arguments] or STEPS:
        verdict, measured = outcome(step, visible_gpus(os.environ))
        codes.add({"holds": 0, "falls short": 1, "not run": NOT_RUN}[verdict])
        rows.append(f"{step.number:>2} | {verdict:<11} | {measured}")
        print(rows[-1], flush=True)
    if any(code != NOT_RUN for code in codes):
        print("\n".join(["", *rows]))  # once more, below what the steps themselves have printed
    return next(code for code in (1, NOT_RUN, 0) if code in codes)


def outcome(step: Step, gpus: int) -> tuple[str, str]:
    """The verdict on a step, and what was measured or why it was not."""
    if gpus < step.gpus:
        needs = f"{step.gpus} GPU{'s' if step.gpus > 1 else ''}"
        return "not run", f"needs {needs}, and this machine shows {gpus or 'none'}: {step.what}"
    if step.run is None:
        return "not run", f"for the user: {step.what}; bar: {step.bar}"
    try:
        found = step.run()
    except Exception as error:  # the table is to be whole
        return "falls short", f"{type(error).__name__}: {str(error).strip().splitlines()[-1:]}"
    return "holds" if found.holds else "falls short", f"{found.measured}; bar: {step.bar}"


def table() -> str:
    """The steps, for the page of the documentation."""
    lines = ["| step | GPUs | what | bar | run by |", "|--|--|--|--|--|"]
    for step in STEPS:
        how = "the script" if step.run else "the user"
        lines.append(f"| {step.number} | {step.gpus} | {step.what} | {step.bar} | {how} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
