"""The engine of another checkout of this project, for `bench.studies.processor`: run a clip for each line of input.

    PYTHONPATH=CHECKOUT python bench/studies/earlier.py weights.pth PRESET THREADS

Answers with JSON: the seconds of the second of two runs, and the file that its outputs are in.
"""

import json
import sys
import time
from pathlib import Path

import torch

try:
    from stnet.execution.engine import Engine, EngineOptions
except ImportError:  # commits before the engine had a folder of its own
    from stnet.inference.engine import Engine, EngineOptions
from stnet.model.config import ModelConfig
from stnet.model.detector import Detector


def main(weights: Path, preset: str, threads: int) -> None:
    """Run the engine on the clips of a file until the input ends."""
    torch.set_num_threads(threads)
    content = torch.load(weights, weights_only=True)
    model = Detector(ModelConfig.preset(preset))
    model.load_state_dict(content["model"])
    engine = Engine(model.eval(), EngineOptions(device="cpu"), content["targets"])
    clips = content["clips"]

    def detect():
        images = clips.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return engine.detect([level.unflatten(0, clips.shape[:2]) for level in engine.extract(images)])

    for _ in sys.stdin:
        detect()
        start = time.perf_counter()
        outputs = detect()
        seconds = time.perf_counter() - start
        torch.save(tuple(outputs), weights.with_name("before.pth"))
        print(json.dumps([seconds, str(weights.with_name("before.pth"))]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
