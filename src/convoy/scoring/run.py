"""Scores one task's share of a split; the first task waits for the others and makes the table."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from convoy import __version__
from convoy.data import pool
from convoy.data.prepare.plan import missing_at_start, share
from convoy.data.prepare.tasks import TaskBoard
from convoy.errors import ConvoyError
from convoy.navsim import tree
from convoy.navsim.metric_cache import claim_cache, write_metadata
from convoy.navsim.planner import require_sensors, rule_based
from convoy.navsim.score_config import folder, maps_root, plain
from convoy.navsim.score_table import make_table
from convoy.navsim.split_scenes import SceneSource
from convoy.run.atomic import replacing, write_text
from convoy.run.score_layout import ScoreDirectory, baseline_of
from convoy.scoring.agent import load_agent
from convoy.scoring.parts import Rows
from convoy.scoring.plan import Plan, Unit, list_units, open_plan
from convoy.scoring.predict import Inference, predict
from convoy.scoring.summary import SCORE, Table, metrics
from convoy.scoring.work import Done, Entrant, Work, score_unit, start_worker
from convoy.topology import Task
from convoy.training.checkpoint import fingerprint, verify

COMMAND = "convoy score"
BASELINES = ("human_agent", "constant_velocity_agent")
LISTED = 8  # values of a list that an identity names one by one
PARTS = ("simulator", "scorer", "traffic_agents_policy")  # of NAVSIM's configuration


@dataclass(frozen=True)
class Request:
    """One checkpoint on one split. `config` is NAVSIM's scoring configuration, its `agent` that of
    the checkpoint; an agent without weights has no checkpoint."""

    split: str
    config: DictConfig
    out: Path
    checkpoint: Path | None = None
    baselines: bool = True
    retry_failed: bool = False
    workers: int | None = None  # None: one per core that this process may use
    inference: Inference = Inference()


@dataclass(frozen=True)
class Progress:
    """Over all tasks of this start, in scenes of the whole scoring."""

    done: int
    total: int
    failed: int


@dataclass(frozen=True)
class Outcome:
    """What one task did; `summary` is there on the task that finished the whole."""

    done: Done
    seconds: float
    notes: tuple[str, ...]
    summary: dict[str, Any] | None = None


@dataclass
class _Scoring:
    """A scoring that has begun: where it is written, and by what."""

    request: Request
    task: Task
    work: Work
    plan: Plan
    board: TaskBoard
    progress: Callable[[Progress], None]
    agent: Any
    baselines: dict[str, ScoreDirectory] = field(default_factory=dict)
    found_done: int = 0  # scenes that were scored before this start

    def missing(self, retry_failed: bool = False) -> list[int]:
        """Numbers of the units that lack rows of any entrant; with `retry_failed` also of those
        with a scene that failed."""
        folders = [entrant.directory for entrant in self.work.entrants]
        done = [{path.stem for path in each.rows.glob("*.npz")} for each in folders]
        return [
            number
            for number, unit in enumerate(self.plan.units)
            if any(unit.name not in names for names in done)
            or (retry_failed and any(Rows.read(f.rows_of(unit.name)).failures for f in folders))
        ]

    def report(self) -> None:
        signs = self.board.signs()
        done = self.found_done + sum(sign.done for sign in signs)
        failed = sum(sign.failed for sign in signs)
        self.progress(Progress(min(done, self.plan.tokens), self.plan.tokens, failed))


def score(
    request: Request, task: Task, progress: Callable[[Progress], None] = lambda _: None
) -> Outcome:
    """Do this task's share of what is missing in `request.out`; task 0 also waits for the others
    and writes table and summary.

    Raises ConvoyError when a folder, a log or a weight is missing, when another start is at work
    there, or on a full disk; what is finished is kept whatever happens.
    """
    started = time.monotonic()
    scoring, notes = _begin(request, task, progress)
    state = "stopped"
    try:
        missing = missing_at_start(
            request.out, task.start, lambda: scoring.missing(request.retry_failed)
        )
        units = [
            scoring.plan.units[number]
            for number in share(scoring.plan.units, missing, task.number, task.count)
        ]
        if request.retry_failed:
            _forget(scoring.work, units)
        left = sum(scoring.plan.units[number].weight for number in missing)
        scoring.found_done = scoring.plan.tokens - left
        if request.inference.batches(scoring.agent):
            predict(scoring.work, units, request.inference, scoring.agent, request.workers)
        done = _score_units(scoring, units)
        state = "finished"
    finally:
        scoring.board.close(state)
    seconds = time.monotonic() - started
    if task.number != 0:
        return Outcome(done, seconds, notes)
    scoring.board.wait(
        lambda: len(scoring.missing()), len(scoring.plan.units), "units", scoring.report
    )
    summary = _finish(scoring, time.monotonic() - started)
    scoring.board.remove()
    return Outcome(done, seconds, notes, summary)


def _begin(
    request: Request, task: Task, progress: Callable[[Progress], None]
) -> tuple[_Scoring, tuple[str, ...]]:
    config = request.config
    agent = plain(config, "agent")["agent"]
    source = scene_source(config)
    parts = plain(config, *PARTS)
    cache = folder(config, "metric_cache_path")
    maps = maps_root()
    if request.checkpoint is not None:
        verify(request.checkpoint)
    request.inference.check()
    loaded = load_agent(agent, request.checkpoint)  # a wrong one is an error before all else
    if request.inference.shards is None:
        require_sensors(source.sensors, loaded)
    note = claim_cache(cache, plain(config, "proposal_sampling")["proposal_sampling"])
    of_scenes = _identity(request, source, parts)
    identity = of_scenes | {
        "agent": {key: value for key, value in agent.items() if key != "checkpoint_path"},
        "checkpoint": request.checkpoint and fingerprint(request.checkpoint),
    }
    directory = ScoreDirectory(request.out)
    _make(request.out)
    board = TaskBoard(request.out, task, COMMAND)
    board.open()
    try:
        plan = open_plan(
            directory, identity, lambda: list_units(source, request.split, request.workers)
        )
        entrants = [Entrant(directory, agent, request.checkpoint)]
        baselines = {}
        for name in BASELINES if request.baselines else ():
            baseline = baseline_of(cache, name, of_scenes)
            open_plan(baseline, of_scenes | {"agent": name}, lambda: plan.units)
            baselines[name] = baseline
            entrants.append(Entrant(baseline, rule_based(name)))
    except BaseException:
        board.close("stopped")
        raise
    reactive = source.two_stage or config.traffic_agents == "reactive"
    work = Work(source, parts, reactive, cache, maps, tuple(entrants))
    scoring = _Scoring(request, task, work, plan, board, progress, loaded, baselines)
    return scoring, (note,) if note else ()


def scene_source(config: DictConfig) -> SceneSource:
    """Where the split's scenes are. Raises ConvoyError for a folder that is not named."""
    chosen = plain(config, "train_test_split")["train_test_split"]
    second = bool(chosen["scene_filter"].get("include_synthetic_scenes"))
    if second and not chosen.get("reactive_all_mapping"):
        raise ConvoyError(
            "The split has synthetic scenes and no reactive_all_mapping, by which NAVSIM's script "
            "weighs them: choose one that has, like navhard_two_stage."
        )
    return SceneSource(
        folder(config, "navsim_log_path"),
        folder(config, "original_sensor_path"),
        chosen["scene_filter"],
        folder(config, "synthetic_scenes_path") if second else None,
        folder(config, "synthetic_sensor_path") if second else None,
    )


def _identity(request: Request, source: SceneSource, parts: dict[str, Any]) -> dict[str, Any]:
    """What the scores of the same trajectories depend on."""
    return {
        "split": request.split,
        "scene_filter": {key: _short(value) for key, value in source.scene_filter.items()},
        "traffic_agents": request.config.traffic_agents,
        "navsim_commit": tree.commit(),
    } | parts


def _short(value: Any) -> Any:
    """A setting of a scene filter as it is, but of a long list its length and its digest."""
    if not isinstance(value, list) or len(value) <= LISTED:
        return value
    digest = hashlib.sha256(json.dumps(sorted(value)).encode()).hexdigest()[:12]
    return f"{len(value)} values, {digest}"


def _score_units(scoring: _Scoring, units: Sequence[Unit]) -> Done:
    done = Done()
    scoring.report()
    for _, each in pool.run(score_unit, scoring.work, units, scoring.request.workers, start_worker):
        done.scenes += each.scenes
        done.failed += each.failed
        done.caches_made += each.caches_made
        for kind, seconds in each.seconds.items():
            done.seconds[kind] = done.seconds.get(kind, 0.0) + seconds
        scoring.board.count(done.scenes, done.failed)
        scoring.report()
    return done


def _forget(work: Work, units: Sequence[Unit]) -> None:
    """Take away what is to be tried again: rows with failures, and their trajectories."""
    for unit in units:
        for entrant in work.entrants:
            path = entrant.directory.rows_of(unit.name)
            if path.exists() and Rows.read(path).failures:
                path.unlink(missing_ok=True)
                entrant.directory.trajectories_of(unit.name).unlink(missing_ok=True)


def _finish(scoring: _Scoring, seconds: float) -> dict[str, Any]:
    """Tables of all entrants, and the summary. Raises ConvoyError when no scene was scored."""
    plan, request = scoring.plan, scoring.request
    directory = ScoreDirectory(request.out)
    table, failed = _tabulate(scoring, directory)
    figures = metrics(table, plan.log_of)
    summary = {
        "split": request.split,
        "agent": request.config.agent["_target_"],
        "checkpoint": None if request.checkpoint is None else str(request.checkpoint),
        "fingerprint": plan.identity["checkpoint"],
        "tokens": plan.tokens,
        "failed": failed,
        "score": figures[SCORE]["mean"],
        "metrics": figures,
        "baselines": {},
        "seconds": round(seconds, 2),
        "software": {"convoy": __version__, "navsim": tree.commit()},
    }
    for name, baseline in scoring.baselines.items():
        summary["baselines"][name] = {"path": str(baseline.root)} | _figures(scoring, baseline)
    write_text(directory.summary, json.dumps(summary, indent=1))
    write_metadata(scoring.work.metric_cache, ((log, t) for t, log in plan.log_of.items()))
    return summary


def _figures(scoring: _Scoring, baseline: ScoreDirectory) -> dict[str, Any]:
    """What the summary says of a baseline: its metrics, or why it has none."""
    try:
        table, failed = _tabulate(scoring, baseline)
    except ConvoyError as error:
        return {"failed": scoring.plan.tokens, "metrics": {}, "reason": str(error)}
    return {"failed": len(failed), "metrics": metrics(table, scoring.plan.log_of)}


def _tabulate(scoring: _Scoring, directory: ScoreDirectory) -> tuple[Table, list[dict[str, str]]]:
    """NAVSIM's table of an entrant's rows, written, and what failed."""
    rows: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    for unit in scoring.plan.units:
        part = Rows.read(directory.rows_of(unit.name))
        rows += [row for row in part.rows if not isinstance(row, str)]
        failed += [
            {"log": unit.log, "token": token, "reason": reason}
            for token, reason in part.failures.items()
        ]
    if not rows:
        first = failed[0]
        raise ConvoyError(
            f"Not one of {len(failed)} scenes could be scored. {first['log']}/{first['token']}: "
            f"{first['reason']}"
        )
    config = scoring.request.config
    try:
        content = make_table(
            rows,
            [entry["token"] for entry in failed],
            plain(config, "proposal_sampling")["proposal_sampling"],
            plain(config, "train_test_split")["train_test_split"]["reactive_all_mapping"]
            if scoring.work.source.two_stage
            else None,
        )
    except Exception as error:  # NAVSIM's script over two stages needs every scene
        if not failed:
            raise
        first = failed[0]
        raise ConvoyError(
            f"NAVSIM's script makes no table of two stages when scenes fail, and {len(failed)} "
            f"did ({type(error).__name__}). {first['log']}/{first['token']}: {first['reason']} "
            "Once that is fixed: --retry-failed."
        ) from error
    with replacing(directory.table) as file:
        file.write(content)
    return Table.parse(content), failed


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConvoyError(
            f"{out} cannot be written: {error.strerror}. Give another directory: --out DIR."
        ) from error
