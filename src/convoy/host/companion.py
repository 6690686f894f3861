"""The job that scores a training's checkpoints while it goes on (`score.every_epochs`)."""

from collections.abc import Sequence

from convoy.host import job_file
from convoy.host.submission import Submission

KEY = "score.every_epochs"
SHARED = ("partition", "account", "qos", "reservation")  # options of the training that hold for it


def is_wanted(overrides: Sequence[str]) -> bool:
    """Whether a training's words ask for scores while it goes on."""
    pairs = (word.partition("=") for word in overrides)
    values = [value for key, _, value in pairs if key.lstrip("+") == KEY]
    return bool(values) and values[-1] not in ("null", "")


def command(training: Submission, job: str) -> list[str]:
    """The sbatch call of the job beside the training `job`, which starts when that one does."""
    script = training.site.root / "slurm" / "score_waiting.slurm"
    shared = {name: value for name, value in training.options.items() if name in SHARED}
    return job_file.command(script, {"dependency": f"after:{job}", **shared}, [job])
