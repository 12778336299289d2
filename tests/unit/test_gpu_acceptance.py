"""Where there is no GPU, acceptance and benchmarks of GPUs say what was not run, by an exit code of its own as well."""

from __future__ import annotations

import re
import shlex

import pytest

from benchmarks import comparison, gpu_acceptance, gpu_idle, gpu_input, gpu_runs, gpu_step
from benchmarks.gpu_acceptance import Outcome, Step
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
        *(
            gpu_step.overrides("float32", norm, xla)
            for norm in ("train", "inference")
            for xla in gpu_step.BARS
        ),
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
