"""`tl-dist submit` settles strategy and workers by what the job gets, not by the host on which it is typed."""

import pytest

from tl_dist.config import Config
from tl_dist.launcher.slurm.submit import SubmitOptions, layout_of

RUN = {
    "name": "x", "global_batch": 64, "epochs": 1, "data": {"name": "synthetic"},
    "model": {"backbone": "tiny", "weights": "random"}, "optimizer": {"learning_rate": 0.1},
}  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "nodes", "tasks", "gpus", "mpi", "horovod", "expected"),
    [
        (("auto", None), 1, 1, None, "none", True, ["single"]),
        (("auto", 1), 1, 1, 8, "none", True, ["single"]),
        (("auto", None), 1, 1, 1, "none", True, ["single"]),
        (("auto", None), 1, 1, 8, "none", True, ["mirrored", 8]),
        (("auto", None), 1, 1, 8, "none", False, ["mirrored", 8]),
        (("auto", 4), 1, 1, None, "none", True, ["mirrored", 4]),
        (("auto", None), 1, 8, 8, "none", True, ["horovod", 8]),
        (("auto", None), 1, 8, 8, "none", False, ["collective", 8]),
        (("auto", None), 8, 8, 8, "none", False, ["collective", 64]),
        (("auto", None), 2, 1, None, "none", True, ["horovod", 2]),
        (("auto", None), 2, 1, None, "pmix", False, ["horovod", 2]),  # then it is missed by name
        (("collective", None), 2, 4, 4, "none", True, ["collective", 8]),
        (("horovod", 3), 2, 4, 4, "none", False, ["horovod", 8]),
        (("mirrored", 8), 2, 1, 8, "none", False, ["collective", 2]),
        (("mirrored", 8), 1, 1, 8, "none", True, []),
        (("single", None), 1, 1, 8, "none", True, []),
    ],
)
def test_the_layout_is_that_of_the_job(
    asked: tuple[str, int | None],
    nodes: int,
    tasks: int,
    gpus: int | None,
    mpi: str,
    horovod: bool,
    expected: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")  # of the login node
    cfg = Config.model_validate(RUN | {"strategy": asked[0], "workers": asked[1]})
    wanted = SubmitOptions.model_validate(
        {"nodes": nodes, "ntasks_per_node": tasks, "gpus_per_node": gpus, "cpus_per_task": 14, "mpi": mpi}
    )
    named = [f"{key}={value}" for key, value in zip(("strategy", "workers"), expected, strict=False)]
    assert layout_of(cfg, wanted, horovod) == named
