"""Where there is no GPU, acceptance and benchmarks of GPUs say what was not run, by an exit code of its own as well."""

import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import comparison, gpu_acceptance, gpu_idle, gpu_input, gpu_runs, gpu_step, trainer
from benchmarks.gpu_acceptance import Outcome, Step
from tests.doubles import PARALLEL
from tl_dist.config import file as config_file


@pytest.mark.parametrize("name", comparison.ON_GPUS)
def test_a_benchmark_of_gpus_says_that_it_was_not_run(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert comparison.main([name]) == comparison.NOT_RUN == 69
    assert re.search(rf"^{name} +not run: no GPU was found$", capsys.readouterr().out, re.MULTILINE)


def test_all_benchmarks_are_those_that_need_no_gpu() -> None:
    assert not {*comparison.ON_GPUS} & {*comparison.BENCHMARKS}


def test_without_a_gpu_no_step_is_run_and_each_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert gpu_acceptance.main([]) == 69
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 18 and all("| not run     | needs " in row for row in rows)


@pytest.mark.parametrize(
    ("outcomes", "code", "verdicts"),
    [
        ([Outcome(True, "0.99")], 0, ["holds"]),
        ([Outcome(True, "0.99"), Outcome(False, "0.5")], 1, ["holds", "falls short"]),
        ([Outcome(True, "0.99"), None], 69, ["holds", "not run"]),
        ([ValueError("it broke"), None], 1, ["falls short", "not run"]),
    ],
)
def test_the_table_has_every_verdict_and_the_code_is_that_of_the_worst(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcomes: list[Outcome | Exception | None],
    code: int,
    verdicts: list[str],
) -> None:
    def of(outcome: Outcome | Exception | None) -> Step:
        def run() -> Outcome:
            assert outcome is not None
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return Step(1, 1, "it works", "1.0", run if outcome else None)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(gpu_acceptance, "STEPS", tuple(map(of, outcomes)))
    assert gpu_acceptance.main([]) == code
    shown = capsys.readouterr().out.rpartition("\n\n")[2].splitlines()
    assert [row.split("|")[1].strip() for row in shown] == verdicts
    assert all("1.0" in row or "it broke" in row for row in shown)


@pytest.mark.parametrize(
    ("card", "on", "off", "short"),
    [
        ("NVIDIA H100 80GB HBM3", 2500.0, 1600.0, set()),
        ("NVIDIA H100 80GB HBM3", 2300.0, 1500.0, {"gpu_step[NVIDIA H100 80GB HBM3]"}),
        ("NVIDIA A100-SXM4-40GB", 2300.0, 1500.0, set()),
        ("NVIDIA L4", 500.0, 400.0, {"gpu_step[xla]"}),
    ],
)
def test_a_step_has_to_be_as_fast_as_its_card_allows(
    monkeypatch: pytest.MonkeyPatch, card: str, on: float, off: float, short: set[str]
) -> None:
    """Also where `fit` is slow."""
    figures = {"xla=true": on, "xla=false": off, "fit": 100.0}
    monkeypatch.setattr(gpu_step, "require_gpus", lambda: 1)
    monkeypatch.setattr(gpu_step, "in_turn", lambda sides, rounds: {side: figures[side] for side in sides})
    monkeypatch.setattr(gpu_step, "name_of_card", lambda: card)
    assert {each.name for each in gpu_step.comparisons() if not each.holds} == short


def rates(slow: str, reduction: float = 0.02) -> Callable[..., Any]:
    """Eight GPUs: the record of each run's last steps. `slow`: one that is asked for by it has too few images/s."""

    def found(*overrides: str) -> list[dict[str, Any]]:
        asked = {key: value for key, _, value in (override.partition("=") for override in overrides)}
        in_all = asked["workers"] != "1" and asked["global_batch"] == "256"
        images = 3000.0 if asked["workers"] == "1" else 14_000.0 if in_all else 23_000.0
        kinds = ("in all", asked["strategy"]) if in_all else (asked.get("strategy"), asked.get("model.batch_norm"))
        images *= 0.4 if slow in kinds else 1.0
        return [{"event": "train", "examples_per_s": images, "reduction_share": reduction}]

    return found


@pytest.mark.parametrize(
    ("slow", "reduction", "holds"),
    [
        ("", 0.02, True),
        ("", 0.06, False),
        *((slow, 0.02, False) for slow in ("horovod", "collective", "mirrored", "sync", "in all")),
    ],
)
def test_scaling_holds_when_every_bar_does(
    monkeypatch: pytest.MonkeyPatch, slow: str, reduction: float, holds: bool
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    monkeypatch.setattr(gpu_acceptance, "trained", rates(slow, reduction))
    monkeypatch.setattr(gpu_acceptance, "speed", lambda *given: rates(slow, reduction)(*given)[0]["examples_per_s"])
    assert gpu_acceptance.scaling().holds == holds


@pytest.mark.parametrize(
    ("attempts", "state", "left", "holds"),
    [(2, "same", "", True), (1, "same", "", False), (2, "other", "", False), (2, "same", "4711", False)],
)
def test_a_fault_that_was_never_met_does_not_hold(
    monkeypatch: pytest.MonkeyPatch, attempts: int, state: str, left: str, holds: bool
) -> None:
    """Nor one after which other bits are left, or a process."""
    met: list[tuple[str, str]] = []

    def command(*words: str, environment: Mapping[str, str]) -> Any:
        assert "report.every_steps=1" in words, "else the step of the fault is within a chunk, and never met"
        (runs,) = (word.partition("=")[2] for word in words if word.startswith("--runs="))
        (strategy,) = (word.partition("=")[2] for word in words if word.startswith("strategy="))
        fault = environment.get("TL_FAILPOINT", "").rpartition("=")[2]
        met.append((strategy, fault))
        run = Path(runs, "fault")
        (run / "checkpoints" / "0000000060").mkdir(parents=True)
        (run / "attempts").mkdir()
        (run / "checkpoints" / "0000000060" / "state.safetensors").write_text(state if fault else "same")
        for k in range(attempts if fault else 1):
            (run / "attempts" / f"{k:04d}.json").touch()
        return SimpleNamespace(returncode=0)

    pids = iter([{"1"}, {"1", left} - {""}])
    monkeypatch.setattr(gpu_acceptance, "command", command)
    monkeypatch.setattr(gpu_acceptance, "pids_on_gpus", lambda: next(pids))
    assert gpu_acceptance.faults().holds == holds
    assert met == [(strategy, fault) for strategy in gpu_acceptance.PROCESSES for fault in ("", "kill", "stop")]


@pytest.mark.parametrize("gpu", [None, "GPU:0"])
def test_benchmarks_train_as_a_worker_does_on_what_is_there(monkeypatch: pytest.MonkeyPatch, gpu: str | None) -> None:
    """Else gpu_idle would measure steps that no run on a GPU takes."""
    taken: list[Any] = []
    monkeypatch.setattr(trainer, "gpu_of_process", lambda: gpu)
    monkeypatch.setattr(trainer.chunk, "train_chunk", taken.append)
    trainer.Trainer(trainer.config(backbone="tiny"), PARALLEL, "float32")
    assert [(step.gpu, step.xla) for step in taken] == [(gpu is not None, gpu is not None)]


def test_the_page_has_the_steps_and_its_commands_are_configs_that_load() -> None:
    text = gpu_acceptance.PAGE.read_text()
    assert text.endswith(gpu_acceptance.BEGIN + gpu_acceptance.table())
    (block,) = re.findall(r"```\n(NCCL_DEBUG.*?)```", text, re.DOTALL)
    overrides = [word for word in shlex.split(block.replace("\\\n", " "))[1:] if "=" in word]
    assert {*gpu_runs.SYNTHETIC} - {*overrides} <= {
        "report.tensorboard=false",
        "evaluation.every_epochs=1000",
    }
    sides = [
        overrides,
        gpu_runs.SYNTHETIC,
        gpu_input.COMMON,
        *(gpu_step.overrides("float32", norm, xla) for norm in ("train", "inference") for xla in gpu_step.BARS),
    ]
    for side in sides:
        assert config_file.load(gpu_acceptance.ROOT / gpu_runs.CONFIG, side).steps == 400


@pytest.mark.parametrize(
    ("spans", "share"),
    [([], 0.0), ([(0, 10)], 1.0), ([(0, 10), (5, 10), (15, 20)], 0.75), ([(15, 20), (0, 5), (4, 6)], 0.55)],
)
def test_time_that_two_kernels_share_is_busy_once(spans: list[tuple[int, int]], share: float) -> None:
    assert gpu_idle.busy_share(spans) == pytest.approx(share)


def test_only_what_the_streams_of_the_first_gpu_did_is_counted() -> None:
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace()
    for plane_name, line_name in (
        ("/device:GPU:0", "Stream #13(Compute)"),
        ("/device:GPU:0", "TensorFlow Ops"),
        ("/device:GPU:1", "Stream #13(Compute)"),
        ("/host:CPU", "Stream of thoughts"),
    ):
        line = space.planes.add(name=plane_name).lines.add(name=line_name, timestamp_ns=2)
        line.events.add(offset_ps=100, duration_ps=50)
    assert list(gpu_idle.spans_of(space.SerializeToString())) == [(2100, 2150)]
