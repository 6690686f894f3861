"""One unit in one process: trajectories where they are missing, then NAVSIM's metrics."""

import gc
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convoy.errors import ConvoyError
from convoy.navsim.importing import make_importable, one_thread
from convoy.navsim.metric_cache import MetricCaches
from convoy.navsim.pdm import PdmScorer
from convoy.navsim.planner import Planner
from convoy.navsim.split_scenes import OpenFiles, OpenScenes, SceneSource
from convoy.run.score_layout import ScoreDirectory
from convoy.scoring.agent import load_agent
from convoy.scoring.parts import Rows, Trajectories
from convoy.scoring.plan import Unit

REASON = 300  # characters that are kept of what another's exception says


@dataclass(frozen=True)
class Entrant:
    """An agent whose trajectories are scored into `directory`. `agent` is its Hydra node; None
    where its trajectories are already there."""

    directory: ScoreDirectory
    agent: Mapping[str, Any] | None
    checkpoint: Path | None = None


@dataclass(frozen=True)
class Work:
    """What every worker process gets. `config` has NAVSIM's simulator, scorer and traffic."""

    source: SceneSource
    config: Mapping[str, Any]
    reactive: bool
    metric_cache: Path
    maps: Path
    entrants: tuple[Entrant, ...]


@dataclass
class Done:
    """What a unit took: seconds by kind, and metric caches that were made."""

    scenes: int = 0
    failed: int = 0
    caches_made: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def start_worker() -> None:
    """Called first in each worker process. It has no GPU: NAVSIM's agents would load their weights
    there, once a process."""
    os.environ.update(CUDA_VISIBLE_DEVICES="")
    make_importable()


def score_unit(work: Work, unit: Unit) -> Done:
    """Score the unit for each entrant that lacks it. A scene that fails is in the rows, with the
    reason."""
    started = time.perf_counter()
    return _engine(work).score(unit, Done(), started)


def unit_features(work: Work, unit: Unit) -> list[dict[str, np.ndarray] | str]:
    """Features of the unit's scenes for the first entrant, from raw data, or the reasons why some
    have none."""
    engine, scenes = _engine(work), _Scenes(work, unit)
    planner = engine.planner(work.entrants[0])
    found: list[dict[str, np.ndarray] | str] = []
    for token in unit.tokens:
        try:
            agent_input = scenes.open(planner.sensor_config).agent_input(token)
            features = planner.features(agent_input)
            found.append({name: value.numpy() for name, value in features.items()})
        except ConvoyError:
            raise
        except Exception as error:  # whatever a builder or NAVSIM's loader may raise
            found.append(reason(error))
    return found


class _Engine:
    """What a process builds once for all of its units."""

    def __init__(self, work: Work) -> None:
        # One thread, however many processes there are: another number rounds otherwise in the
        # convolutions of an agent.
        one_thread()
        self.work = work
        self._planners: dict[Path, Planner] = {}
        self._scorer = PdmScorer(work.config, work.reactive)
        sampling = self._scorer.proposal_sampling
        self._caches = MetricCaches(work.metric_cache, work.maps, sampling)
        # Unpickling a metric cache makes the collector look at everything again and again, NAVSIM's
        # many modules too: 43 ms for each, and 17 ms once these are set aside.
        gc.freeze()

    def score(self, unit: Unit, done: Done, started: float) -> Done:
        missing = [e for e in self.work.entrants if not e.directory.rows_of(unit.name).exists()]
        scenes = _Scenes(self.work, unit)
        planned = [self.trajectories(entrant, unit, scenes) for entrant in missing]
        done.seconds["trajectories"] = time.perf_counter() - started
        made = self._caches.made
        found: list[list[dict[str, Any] | str]] = [[] for _ in missing]
        for index, token in enumerate(unit.tokens):
            begun = time.perf_counter()
            cache = self._cache(unit.log, token, scenes)
            loaded = time.perf_counter()
            for rows, trajectories in zip(found, planned, strict=True):
                rows.append(self._row(token, cache, trajectories, index))
            _add(done, "metric cache", loaded - begun)
            _add(done, "metrics", time.perf_counter() - loaded)
        for entrant, rows in zip(missing, found, strict=True):
            Rows(unit.tokens, tuple(rows)).write(entrant.directory.rows_of(unit.name))
            done.failed += sum(isinstance(row, str) for row in rows)
        done.scenes = len(unit.tokens)
        done.caches_made = self._caches.made - made
        done.seconds["all"] = time.perf_counter() - started
        return done

    def trajectories(self, entrant: Entrant, unit: Unit, scenes: "_Scenes") -> Trajectories:
        path = entrant.directory.trajectories_of(unit.name)
        if path.exists() or entrant.agent is None:
            return Trajectories.read(path)
        planner = self.planner(entrant)
        found: list[np.ndarray | str] = []
        interval = 0.0
        for token in unit.tokens:
            try:
                poses, interval = planner.poses(scenes.open(planner.sensor_config), token)
                found.append(np.asarray(poses))
            except ConvoyError:
                raise
            except Exception as error:  # whatever an agent or NAVSIM's loader may raise
                found.append(reason(error))
        trajectories = Trajectories.of(unit.tokens, found, interval)
        trajectories.write(path)
        return trajectories

    def _cache(self, log: str, token: str, scenes: "_Scenes") -> Any:
        """NAVSIM's metric cache, or the reason why there is none."""
        try:
            return self._caches.get(log, token, lambda: scenes.open().scene(token))
        except ConvoyError:
            raise
        except Exception as error:  # whatever NAVSIM's processor may raise
            return reason(error)

    def _row(
        self, token: str, cache: Any, trajectories: Trajectories, index: int
    ) -> dict[str, Any] | str:
        if trajectories.reasons[index]:
            return trajectories.reasons[index]
        if isinstance(cache, str):
            return f"its metric cache could not be made: {cache}"
        try:
            return self._scorer.row(token, cache, trajectories.poses[index], trajectories.interval)
        except Exception as error:  # whatever NAVSIM's simulator or scorer may raise
            return reason(error)

    def planner(self, entrant: Entrant) -> Planner:
        root = entrant.directory.root
        if root not in self._planners:
            assert entrant.agent is not None
            self._planners[root] = Planner(load_agent(entrant.agent, entrant.checkpoint))
        return self._planners[root]


class _Scenes:
    """The scenes of a unit, opened when they are asked for and once for each choice of sensors: a
    log is a large file."""

    def __init__(self, work: Work, unit: Unit) -> None:
        self._work, self._unit = work, unit
        self._opened: dict[str, OpenScenes | OpenFiles] = {}

    def open(self, sensor_config: Any = None) -> OpenScenes | OpenFiles:
        key, source, unit = repr(sensor_config), self._work.source, self._unit
        if key not in self._opened:
            if unit.files:
                files = {
                    token: Path(file) for token, file in zip(unit.tokens, unit.files, strict=True)
                }
                self._opened[key] = source.open_synthetic(files, sensor_config)
            else:
                self._opened[key] = source.open(unit.log, unit.tokens, sensor_config)
        return self._opened[key]


def reason(error: BaseException) -> str:
    """What an exception says, in one line and never empty."""
    text = " ".join(str(error).split())[:REASON]
    return f"{type(error).__name__}: {text}".rstrip(": ")


def _add(done: Done, kind: str, seconds: float) -> None:
    done.seconds[kind] = done.seconds.get(kind, 0.0) + seconds


_kept: _Engine | None = None


def _engine(work: Work) -> _Engine:
    global _kept
    if _kept is None or _kept.work != work:
        _kept = _Engine(work)
    return _kept
