"""A run is a directory: every file of it is named here, once. Standard library only: host tools
read runs too."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run; everything that a run writes lies below `root`."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration; the run belongs to it."""
        return self.root / "config.yaml"

    @property
    def logs(self) -> Path:
        """One `rank-<rank>.log` per rank."""
        return self.root / "logs"

    def rank_log(self, rank: int) -> Path:
        return self.logs / f"rank-{rank:03d}.log"

    def agent_log(self, host: str) -> Path:
        """What torchrun's agent on `host` says, and a rank before it has its own log."""
        return self.logs / f"torchrun-{host}.log"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        return self.checkpoints / "best.ckpt"

    @property
    def skipped_samples(self) -> Path:
        """One line of JSON per unreadable sample that was replaced (`data.skip_bad=true`)."""
        return self.root / "skipped.jsonl"

    @property
    def results(self) -> Path:
        """Figures of a finished run, as JSON."""
        return self.root / "results.json"

    @property
    def speed(self) -> Path:
        """The speed switches of the latest start, each with its reason, as JSON."""
        return self.root / "speed.json"

    @property
    def compile_cache(self) -> Path:
        """Compiled kernels, shared by the runs of all experiments beside this one's."""
        return self.root.parent.parent / "compile-cache"

    def non_finite_batch(self, rank: int) -> Path:
        """Tokens of the batch whose loss was not finite on `rank`."""
        return self.root / f"non-finite-rank-{rank:03d}.json"

    @property
    def launches(self) -> Path:
        """One line of JSON per start (run/record.py)."""
        return self.root / "launches.jsonl"

    @property
    def progress(self) -> Path:
        """How far the run is, as JSON; rewritten as it goes (run/progress.py)."""
        return self.root / "progress.json"

    def failures(self, start: str) -> Path:
        """Folder of the records that the failed ranks of a start leave."""
        return self.logs / f"failed-{start}"

    def failure(self, start: str, rank: int) -> Path:
        return self.failures(start) / f"rank-{rank:03d}.json"

    @property
    def metrics(self) -> Path:
        """CSV files of metrics, one `version_<n>` per start."""
        return self.root / "metrics"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"
