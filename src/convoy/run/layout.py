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

    def step_checkpoint(self, step: int) -> Path:
        """The state after so many optimiser steps; `last.ckpt` and `best.ckpt` are links."""
        return self.checkpoints / f"step-{step:09d}.ckpt"

    def step_checkpoints(self) -> list[Path]:
        """Those that are there, newest first."""
        return sorted(self.checkpoints.glob("step-*.ckpt"), reverse=True)

    def waiting_for_score(self, step: int) -> Path:
        """A second name of a checkpoint that is to be scored, which rotation leaves alone. In the
        same folder: some file systems have no hard links across folders."""
        return self.checkpoints / f"to-score-{step:09d}.ckpt"

    def all_waiting_for_score(self) -> list[Path]:
        """Those that are there, oldest first."""
        return sorted(self.checkpoints.glob("to-score-*.ckpt"))

    @property
    def best_by_score(self) -> Path:
        """The checkpoint with the best of the scores in `score_history`."""
        return self.checkpoints / "best-score.ckpt"

    @property
    def score_history(self) -> Path:
        """One line of JSON per checkpoint that was scored beside the training."""
        return self.scores / "history.jsonl"

    def owner(self, number: int) -> Path:
        """Who writes to the run: the highest number does. See `convoy.run.lock`."""
        return self.root / f"owner-{number}.json"

    def owners(self) -> list[int]:
        """Numbers of the owners' files, lowest first."""
        names = (path.stem.partition("-")[2] for path in self.root.glob("owner-*.json"))
        return sorted(int(name) for name in names if name.isdigit())

    @property
    def stop_request(self) -> Path:
        """Asks the ranks to save and stop. See `convoy.run.stop_request`."""
        return self.root / "stop-request.json"

    def rank_state(self, rank: int) -> Path:
        """What a rank is doing, and its sign of life, as JSON. See `convoy.training.watchdog`."""
        return self.root / "ranks" / f"rank-{rank:03d}.json"

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

    def nodes(self, start: str) -> Path:
        """Folder of what the nodes of a start leave (run/node_state.py)."""
        return self.logs / f"nodes-{start}"

    def node(self, start: str, host: str) -> Path:
        return self.nodes(start) / f"{host}.json"

    def lost_nodes(self, start: str) -> Path:
        """Hosts that went away while the start ran, one a line, as the others saw it."""
        return self.nodes(start) / "lost"

    @property
    def metrics(self) -> Path:
        """CSV files of metrics, one `version_<n>` per start."""
        return self.root / "metrics"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def events(self) -> Path:
        """One line of JSON per event: start, checkpoint, signal, stop."""
        return self.root / "events.jsonl"

    @property
    def prediction(self) -> Path:
        """What `convoy plan` forecast when it submitted the run, as JSON."""
        return self.root / "prediction.json"

    @property
    def manifest(self) -> Path:
        """What the run is made of, as JSON: software, packages, hardware, data, switches."""
        return self.root / "manifest.json"

    @property
    def edits(self) -> Path:
        """The difference of Convoy's files to their commit, where there was one."""
        return self.root / "edits.diff"

    @property
    def tracker(self) -> Path:
        """What Weights & Biases or MLflow write, offline."""
        return self.root / "tracker"

    @property
    def vitals(self) -> Path:
        """One `<host>.jsonl` per node: its memory and GPUs, every few seconds."""
        return self.root / "vitals"

    def node_vitals(self, host: str) -> Path:
        return self.vitals / f"{host}.jsonl"

    @property
    def paces(self) -> Path:
        """One `rank-<rank>.json` per rank: how long its steps take."""
        return self.root / "paces"

    def rank_pace(self, rank: int) -> Path:
        return self.paces / f"rank-{rank:03d}.json"

    @property
    def trace(self) -> Path:
        """Some steps of rank 0 in Chrome's format, of `convoy profile`."""
        return self.root / "profile" / "trace.json.gz"

    @property
    def profile(self) -> Path:
        """What the trace shows, on one page; beside it a picture and the figures as JSON."""
        return self.root / "profile" / "profile.html"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def report_picture(self) -> Path:
        return self.root / "report.png"

    @property
    def scores(self) -> Path:
        """`<split>/<checkpoint>` for each scoring (run/score_layout.py)."""
        return self.root / "scores"

    @property
    def trajectories(self) -> Path:
        """A picture of predicted trajectories of held-out samples."""
        return self.root / "trajectories.png"


@dataclass(frozen=True)
class SweepDirectory:
    """Paths of one sweep; the run of each of its points is a folder below `root`."""

    root: Path

    @property
    def definition(self) -> Path:
        """What was asked for and which points came of it, as JSON. See `convoy.host.sweep`."""
        return self.root / "sweep.json"

    def arguments(self, point: int) -> Path:
        """The point's overrides, one on a line: slurm/launch.sh reads them."""
        return self.root / "points" / str(point)

    @property
    def submissions(self) -> Path:
        """One line of JSON per job array."""
        return self.root / "submissions.jsonl"

    @property
    def picture(self) -> Path:
        return self.root / "sweep.png"
