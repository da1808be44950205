"""Names of metrics: one module, which those who log and those who show them agree with."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from posttrain.objectives.sapo import gate_quantiles
from posttrain.run import metric_names
from posttrain.viewer.panels import EVALUATED, PANELS

OLD_RUN = Path(__file__).parent / "old_run"
NAMES = {value for key, value in vars(metric_names).items() if key.isupper() and isinstance(value, str)}
BEGINNINGS = tuple(name for name in NAMES if name.endswith("/"))


def shown() -> Iterator[str]:
    for panel in PANELS:
        yield from (*panel.lines, *panel.stack, *panel.bands)


@pytest.mark.parametrize("name", sorted(set(shown()) - {f"{EVALUATED}*"}))
def test_every_name_of_a_panel_is_one_of_the_module(name: str) -> None:
    assert name.partition("*")[0] in NAMES


def test_every_name_that_a_run_logged_is_one_of_the_module() -> None:
    rows = map(json.loads, (OLD_RUN / "metrics.jsonl").read_text().splitlines())
    logged = {name for row in rows for name in row if name not in ("stage", "step", "time")}
    gates = {
        f"{gate}_{quantile}"
        for gate in (metric_names.GATE_POSITIVE, metric_names.GATE_NEGATIVE)
        for quantile in metric_names.QUANTILES
    }
    completed = {name for name in logged if name.startswith((metric_names.REWARD, metric_names.ACCURACY))}
    held_out = {metric_names.HELD_OUT + name for name in NAMES}
    assert logged - completed <= NAMES | gates | held_out


def test_the_gates_quantiles_are_named_as_the_objective_names_them() -> None:
    found = gate_quantiles([{"gate_pos": torch.ones(3), "gate_neg": torch.ones(3)}])
    assert list(found) == [
        f"{gate}_{quantile}"
        for gate in (metric_names.GATE_POSITIVE, metric_names.GATE_NEGATIVE)
        for quantile in metric_names.QUANTILES
    ]
