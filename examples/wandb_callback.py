"""Send a training to Weights & Biases: `stnet.train(..., callbacks=[WandB(project="stnet")])`."""

import dataclasses

import wandb

import stnet


class WandB(stnet.Callback):
    """A run of Weights & Biases; `mode="offline"` keeps it on this disk."""

    def __init__(self, **settings):
        self.settings = settings

    def start(self, run):
        self.run = wandb.init(config=dataclasses.asdict(run.config), dir=run.folder, **self.settings)

    def step(self, row):
        self.run.log({f"step/{name}": value for name, value in row.items()})

    def epoch(self, row):
        self.run.log({f"epoch/{name}": value for name, value in row.items() if value is not None})

    def end(self, error):
        self.run.finish(exit_code=0 if error is None else 1)
