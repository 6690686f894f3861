"""Loggers: TensorBoard and CSV always; Weights & Biases or MLflow by the setting `tracker`.

Both work offline, into the run directory: compute nodes often reach no other network.
"""

import os
from importlib.util import find_spec

from pytorch_lightning.loggers import Logger

from convoy.errors import ConvoyError
from convoy.run.layout import RunDirectory
from convoy.training.metric_files import CsvFile, TensorBoardFile


def loggers(run: RunDirectory, tracker: str | None) -> list[Logger]:
    """Lightning's loggers of a run. Raises ConvoyError where the tracker's package is missing.

    TensorBoard comes first: NAVSIM's callbacks draw their pictures into `trainer.logger`.
    """
    found: list[Logger] = [
        TensorBoardFile(run.root, name="tensorboard", version=""),
        CsvFile(run.root, name="metrics"),
    ]
    if tracker is None:
        return found
    if find_spec(tracker) is None:
        raise ConvoyError(
            f"tracker={tracker} needs the package {tracker}, which is not installed here. Put it "
            f"into the image (make image EXTRA=…, docs/image.md), or leave tracker out."
        )
    name, experiment = run.root.name, run.root.parent.name
    if tracker == "wandb":
        from pytorch_lightning.loggers import WandbLogger

        # A fixed id: later starts of the run go on in the same W&B run once they are synced.
        folder = str(run.tracker)
        run.tracker.mkdir(parents=True, exist_ok=True)
        return [
            *found,
            WandbLogger(name, folder, f"{experiment}-{name}", offline=True, project=experiment),
        ]
    from pytorch_lightning.loggers import MLFlowLogger

    # From 3.7 on MLflow wants a database instead of files unless it is told so; a database on a
    # shared file system needs locks that many do not have.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    earlier = next(
        run.tracker.glob("*/*/meta.yaml"), None
    )  # <experiment>/<run>, if there was a start
    folder = run.tracker.absolute().as_uri()
    same = earlier.parent.name if earlier else None
    return [*found, MLFlowLogger(experiment, name, tracking_uri=folder, run_id=same)]
