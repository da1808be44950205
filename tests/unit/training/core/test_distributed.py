"""What two ranks do together: wait without a deadline, and exchange figures from wherever they lie."""

import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from posttrain.training.core import distributed
from posttrain.training.core.distributed import barrier, max_over_ranks, sum_over_ranks
from tests.unit.ranks import on_two_ranks

DEADLINE = 2.0


def slow_save(rank: int, store: Path) -> None:
    """Rank 0 writes for longer than the deadline of the ranks' group."""
    limit = timedelta(seconds=DEADLINE)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=limit)
    barrier()
    if rank == 0:
        time.sleep(2 * DEADLINE)
    barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_wait_for_a_save_that_takes_longer_than_a_collective_may(tmp_path: Path) -> None:
    on_two_ranks(slow_save, tmp_path / "store")


class Elsewhere(torch.Tensor):
    """A tensor that notes that it was fetched, as one on a GPU has to be."""

    fetched = 0

    def cpu(self, *_: object) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        Elsewhere.fetched += 1
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize("reduce", [sum_over_ranks, max_over_ranks])
def test_figures_travel_by_the_cpu_wherever_they_come_from(reduce, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank may have its figure on a GPU and another, without samples, on the CPU."""
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, **_: sent.append(tensor))
    before, figure = Elsewhere.fetched, torch.ones(3).as_subclass(Elsewhere)
    found = reduce(figure)
    assert Elsewhere.fetched == before + 1
    assert type(found) is torch.Tensor
    assert sent[0] is found
    assert torch.equal(figure.as_subclass(torch.Tensor), torch.ones(3))  # and is not changed
