"""Scores of a training that goes on: which checkpoints wait, what is kept of each, which is the
best."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from convoy.errors import ConvoyError
from convoy.run.layout import RunDirectory
from convoy.run.score_layout import ScoreDirectory, scoring_of_run
from convoy.run.story import read_lines


@dataclass(frozen=True)
class Waiting:
    """A checkpoint that waits, and the words of `convoy score` for it."""

    path: Path
    step: int
    words: tuple[str, ...]


def waiting(run: RunDirectory) -> list[Waiting]:
    """Oldest first. Raises ConvoyError where the run's configuration cannot be read."""
    try:
        score = OmegaConf.load(run.config).score
        split, arguments = str(score.split), [str(word) for word in score.arguments]
    except (OSError, ValueError, AttributeError) as error:
        raise ConvoyError(
            f"{run.config} does not say what is to be scored (score.split): {error}."
        ) from error
    found = []
    for path in run.all_waiting_for_score():
        step = int(path.stem.rpartition("-")[2])
        out = scoring_of_run(run, split, run.step_checkpoint(step).stem).root
        words = (str(run.root), f"--checkpoint={path}", f"--split={split}", f"--out={out}")
        found.append(Waiting(path, step, (*words, *arguments)))
    return found


def keep(run: RunDirectory, scored: Waiting, summary: Mapping[str, Any], out: Path) -> bool:
    """Note a score, and keep the checkpoint if none was better; it waits no more. Returns whether
    it is the best. `out` is the scoring's directory."""
    earlier = [
        entry["score"]
        for entry in read_lines(run.score_history)
        if entry.get("split") == summary["split"] and entry.get("tokens") == summary["tokens"]
    ]
    score = summary["score"]
    is_best = score is not None and all(before is None or score > before for before in earlier)
    if is_best:
        beside = run.checkpoints / f".{run.best_by_score.name}.{os.getpid()}"
        beside.unlink(missing_ok=True)
        os.link(scored.path, beside)
        beside.replace(run.best_by_score)
    entry = {
        "time": round(time.time(), 3),
        "step": scored.step,
        "split": summary["split"],
        "tokens": summary["tokens"],
        "failed": len(summary["failed"]),
        "score": score,
        **{bound: summary["metrics"]["score"][bound] for bound in ("low", "high")},
        "table": str(ScoreDirectory(out).table),
    }
    run.score_history.parent.mkdir(parents=True, exist_ok=True)
    with run.score_history.open("a") as file:
        file.write(json.dumps(entry) + "\n")
    scored.path.unlink(missing_ok=True)
    return is_best
