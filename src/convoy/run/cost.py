"""What a sample costs to train, counted where an agent could be built, for a forecast elsewhere.

A training leaves it in its manifest, `convoy check --flops` in a file beside the experiments.
Standard library only.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convoy.run.atomic import write_text

KEY = "cost"  # in a manifest


@dataclass(frozen=True)
class Counted:
    """Of one sample: GFLOP of the forward pass, and of forward and backward together; a
    multiplication and an addition are two. `parameters` are those that are trained, in millions."""

    gflop_forward: float
    gflop: float
    parameters: float


def read(written: Any) -> Counted | None:
    """From what JSON gave; None for anything else."""
    try:
        found = Counted(*(float(written[name]) for name in Counted.__dataclass_fields__))
    except (KeyError, TypeError, ValueError):
        return None
    return found if found.gflop > 0 and found.parameters > 0 else None


def of_manifest(manifest: Mapping[str, Any]) -> Counted | None:
    return read(manifest.get(KEY))


def keep(experiments: Path, agent: str, counted: Counted) -> Path:
    """Leave it for every later plan of this agent. Raises OSError."""
    path = _file(experiments, agent)
    write_text(path, json.dumps(asdict(counted), indent=1) + "\n")
    return path


def kept(experiments: Path, agent: str) -> Counted | None:
    try:
        return read(json.loads(_file(experiments, agent).read_text()))
    except (OSError, ValueError):
        return None


def _file(experiments: Path, agent: str) -> Path:
    return experiments / "agent-costs" / f"{agent.replace('/', '-')}.json"
