"""Send a training to MLflow: `stnet.train(..., callbacks=[MLflow()])`."""

import mlflow

import stnet


class MLflow(stnet.Callback):
    """A run of MLflow; `mlflow.set_tracking_uri("sqlite:///runs.db")` keeps it on this disk."""

    def start(self, run):
        mlflow.start_run(run_name=run.folder.name)
        mlflow.log_params({"epochs": run.config.epochs, "learning_rate": run.config.learning_rate})

    def step(self, row):
        mlflow.log_metrics({f"step/{name}": value for name, value in row.items()}, step=int(row["step"]))

    def epoch(self, row):
        values = {f"epoch/{name}": value for name, value in row.items() if value is not None}
        mlflow.log_metrics(values, step=int(row["step"]))

    def end(self, error):
        mlflow.end_run("FINISHED" if error is None else "FAILED")
