"""Compute the sizes of a run: samples and steps of each stage."""

from posttrain.config.run import RunConfig


def batch_arithmetic(config: RunConfig) -> list[tuple[str, str]]:
    """Compute what the batch settings of each stage amount to.

    Returns:
        Rows of (stage and quantity, calculation), for a table of two columns.

    Example:
        [("rl: episodes a step", "16 prompts × 8 = 128"), …]
    """
    return [
        (f"{stage.name}: {quantity}", text)
        for stage in config.stages
        for quantity, text in stage.arithmetic()
    ]
