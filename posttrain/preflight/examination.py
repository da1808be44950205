"""What can be known to fail before a run starts: missing files, plugins that do not load, wrong golds.

Nothing is started. `examine` loads neither torch nor OpenCV and answers at once; `examine_data` goes through
whole datasets, and answers at once where that has been done before. Each other
module of this package looks at one concern; what a stage needs is asked of the stage, so that none of them
knows the kinds of stages.
"""

from posttrain.config import Document, RunConfig
from posttrain.config.memory import Cards
from posttrain.joints import Plugins
from posttrain.preflight.adapters import examine_adapters
from posttrain.preflight.curations import examine_curations, examine_endpoints
from posttrain.preflight.datasets import Dataset, examine_dataset, examine_rows
from posttrain.preflight.devices import examine_devices
from posttrain.preflight.findings import Examination, Findings
from posttrain.preflight.judges import examine_judges
from posttrain.preflight.machine import examine_machine
from posttrain.preflight.models import examine_models
from posttrain.preflight.pixels import examine_pixels
from posttrain.preflight.tasks import examine_golds, load_rewards, load_tools
from posttrain.preflight.whole_datasets import examine_whole_datasets


def examine(config: RunConfig, document: Document, plugins: Plugins, cards: Cards | None = None) -> Findings:
    """Look for everything that can be known to fail.

    Args:
        config: The run.
        document: What it was built from; tells the file and line of each key.
        plugins: Load its rewards and tools.
        cards: The GPUs that it is to fit on; those of this machine where None.
    """
    look = Examination(config, document, plugins)
    datasets: dict[str, Dataset | None] = {}
    for use in config.datasets():
        if use.name not in datasets:
            datasets[use.name] = examine_dataset(look, use.name, use.key)
    for use in config.datasets():
        if (dataset := datasets[use.name]) is not None:
            examine_rows(look, dataset, use)
    examine_curations(look)
    examine_endpoints(look)
    examine_machine(look)
    examine_devices(look, cards)
    later: list[str] = []
    for task in config.tasks():
        load_tools(look, task)
        rewards = load_rewards(look, task)
        dataset = datasets[task.task.data]
        if dataset is None or not rewards:
            continue
        if dataset.is_generated:
            later.append(dataset.config.name)
        elif not look.findings.problems:
            examine_golds(look, dataset, task.key, rewards)
    examine_judges(look)
    if later:
        names = ", ".join(dict.fromkeys(later))
        look.note(f"gold answers are not tried here of what is generated when the run starts: {names}")
    examine_models(look)
    examine_adapters(look)
    examine_pixels(look)
    return look.findings


def examine_data(config: RunConfig, document: Document, plugins: Plugins) -> Findings:
    """Look at every row of the datasets that are here; only for runs in which `examine` found no problem.

    Args:
        config: The run.
        document: What it was built from.
        plugins: Load its tools.
    """
    look = Examination(config, document, plugins)
    examine_whole_datasets(look)
    return look.findings
