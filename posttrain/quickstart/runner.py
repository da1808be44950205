"""The runner of the quickstart's first stage."""

from functools import partial
from pathlib import Path

from posttrain.config import TinyModelStage
from posttrain.training.stage_job import StageJob
from posttrain.training.supervised.runners import WorkersRunner


class TinyModelRunner(WorkersRunner[TinyModelStage]):
    """Makes a tiny model and teaches its vision tower to see, in Ray Train workers."""

    worker = "posttrain.quickstart.pretrain:pretrain_worker"

    def run(self) -> Path:
        """Run the workers to the stage's end; return the final checkpoint."""
        work, stage = self.work, self.stage
        job = partial(StageJob[TinyModelStage], config=work.config, stage=stage, run=work.run)
        return self.run_until(job, [], stage.max_steps)
