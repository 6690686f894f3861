"""From what a person types to what is scored: the run's agent and checkpoints, NAVSIM's settings,
and where the scores go."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from omegaconf import DictConfig, OmegaConf, open_dict

from convoy.data.pool import check_workers
from convoy.errors import ConvoyError
from convoy.navsim.score_config import compose_scoring
from convoy.run.layout import RunDirectory
from convoy.run.score_layout import scoring_of_run
from convoy.scoring.predict import Inference
from convoy.scoring.run import Request

SUFFIX = ".ckpt"
SPLIT = "train_test_split="


class Asked(Protocol):
    """The words of the command line."""

    what: str | None
    overrides: Sequence[str]
    split: str
    checkpoint: Sequence[str] | None
    out: Path | None
    workers: int | None
    no_baselines: bool
    retry_failed: bool
    device: str
    precision: str
    shards: Path | None


def requests(asked: Asked) -> list[Request]:
    """One request for each checkpoint. Raises ConvoyError for the user's mistakes."""
    check_workers(asked.workers)
    run = _run_of(asked.what)
    names = _keys(asked.overrides)
    if run is None and "agent" not in names:
        raise ConvoyError(
            "Which agent is to be scored? convoy score RUN takes it from the run's "
            "configuration; beside a checkpoint, or without one, name it: agent=transfuser_agent."
        )
    of_run = _agent_of(run) if run is not None and "agent" not in names else None
    split, overrides = _split(asked)
    own = [word for word in overrides if of_run is None or not word.startswith("agent.")]
    config = compose_scoring(split, own)
    if of_run is not None:
        changes = [word.removeprefix("agent.") for word in overrides if word not in own]
        with open_dict(config):
            config.agent = OmegaConf.merge(of_run, OmegaConf.from_dotlist(changes))
    checkpoints = _checkpoints(asked, run, config)
    if asked.out is not None and len(checkpoints) > 1:
        raise ConvoyError(
            f"--out is one directory, and {len(checkpoints)} checkpoints are to be scored: leave "
            "it out, or score them one by one."
        )
    return [
        Request(
            split,
            config,
            _out(asked, split, run, checkpoint),
            checkpoint,
            not asked.no_baselines,
            asked.retry_failed,
            asked.workers,
            Inference(asked.device, asked.precision, asked.shards and asked.shards.absolute()),
        )
        for checkpoint in checkpoints
    ]


def _run_of(what: str | None) -> RunDirectory | None:
    """The run that is named, or that the named checkpoint belongs to."""
    if what is None:
        return None
    path = Path(what).absolute()
    if path.is_file():
        run = RunDirectory(path.parent.parent)
        return run if path.parent == run.checkpoints and run.config.is_file() else None
    if not path.is_dir():
        raise ConvoyError(f"{path} is neither a run directory nor a checkpoint on this machine.")
    run = RunDirectory(path)
    if not run.config.is_file():
        raise ConvoyError(f"{path} is not a run: it holds no {run.config.name}.")
    return run


def _agent_of(run: RunDirectory) -> DictConfig:
    config = OmegaConf.load(run.config)
    assert isinstance(config, DictConfig)
    return config.agent


def _split(asked: Asked) -> tuple[str, list[str]]:
    """The split's name, NAVSIM's `train_test_split=` before --split, and the other overrides."""
    named = [word for word in asked.overrides if word.startswith(SPLIT)]
    rest = [word for word in asked.overrides if word not in named]
    return (named[-1].removeprefix(SPLIT) if named else asked.split), rest


def _checkpoints(asked: Asked, run: RunDirectory | None, config: DictConfig) -> list[Path | None]:
    """Files, in the order that they were asked for; [None] for an agent without weights."""
    named = list(asked.checkpoint or ())
    if asked.what is not None and Path(asked.what).is_file():
        if named:
            raise ConvoyError(
                f"{asked.what} is a checkpoint already: give the run's directory to choose others "
                "with --checkpoint."
            )
        return [Path(asked.what).resolve()]
    if run is None and not named:
        path = config.agent.get("checkpoint_path")  # NAVSIM's own way to name it
        return [_file(path, None) if path else None]
    if not named:
        assert run is not None
        named = ["best" if run.best_checkpoint.exists() else "last"]
    return list(dict.fromkeys(_file(name, run) for name in named))


def _file(name: str, run: RunDirectory | None) -> Path:
    """The file that `best`, `last`, a name among the run's checkpoints, or a path means."""
    links: dict[str, Path] = {}
    if run is not None:
        links = {"best": run.best_checkpoint, "last": run.last_checkpoint}
        beside = run.checkpoints / f"{name.removesuffix(SUFFIX)}{SUFFIX}"
        if name not in links and beside.is_file():
            return beside.resolve()
    path = links.get(name, Path(name))
    if not path.is_file():
        there = ""
        if run is not None:
            found = [path.stem for path in run.step_checkpoints()]
            there = f" The run has: {', '.join(found) or 'no checkpoint yet'}."
        raise ConvoyError(f"--checkpoint {name}: {path} is not a file.{there}")
    return path.resolve()


def _out(asked: Asked, split: str, run: RunDirectory | None, checkpoint: Path | None) -> Path:
    if asked.out is not None:
        return asked.out.absolute()
    if run is None or checkpoint is None:
        raise ConvoyError(
            "Where should the scores go? There is no run to keep them: --out DIR, on a file "
            "system of all nodes."
        )
    return scoring_of_run(run, split, checkpoint.stem).root


def _keys(overrides: Sequence[str]) -> set[str]:
    return {word.partition("=")[0].lstrip("+~") for word in overrides}
