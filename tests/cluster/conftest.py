"""A real Slurm for the whole session."""

from collections.abc import Iterator

import pytest

from .slurm_cluster import SlurmCluster, slurm_cluster


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """Three idle nodes on this machine."""
    with slurm_cluster() as cluster:
        yield cluster
