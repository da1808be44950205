"""What a stage adapts, as the report says it."""

import shutil

from posttrain.run.record import ADAPTERS, AdaptersRecord
from posttrain.viewer import write_report


def test_a_stage_with_adapters_says_what_they_adapt(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "sft").mkdir(exist_ok=True)
    layers = {"language model": {"q_proj": 3, "up_proj": 2}, "<script>": {"x": 1}}
    AdaptersRecord(layers, 4321).write(run / "sft" / ADAPTERS)
    page = write_report(run).read_text("utf-8")
    assert (
        "adapters of 4,321 parameters on 5 layers of 2 kinds in the language model (3 q_proj, 2 up_proj)"
        in page
    )
    assert "in the &lt;script&gt; (1 each of x)" in page
