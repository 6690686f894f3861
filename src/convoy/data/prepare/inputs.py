"""Where samples come from: NAVSIM's gzip cache, or raw logs through an agent's builders."""

import dataclasses
import hashlib
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from convoy.data import cache, pool
from convoy.data.entries import require_name
from convoy.data.prepare.plan import Unit
from convoy.data.shard import Builder
from convoy.data.values import Values
from convoy.errors import ConvoyError
from convoy.navsim import tree
from convoy.navsim.importing import make_importable, one_thread
from convoy.navsim.scenes import open_log

LOGS_PER_LISTER = 8  # that a process must have to list for it to be worth starting

Loaded = tuple[Values, dict[str, float]]  # a sample, and the seconds that its making took by kind


class Input(Protocol):
    """Can be pickled; is sent to the worker processes."""

    @property
    def builders(self) -> tuple[Builder, ...]: ...

    def describe(self) -> dict[str, Any]:
        """What makes it the same input; JSON."""
        ...

    def units(self, samples_per_shard: int, workers: int | None) -> list[Unit]:
        """What there is, in parts of logs; listing it may take `workers` processes."""
        ...

    def samples(self, unit: Unit) -> Iterator[tuple[str, Callable[[], Loaded]]]:
        """Tokens of the unit and what loads each. Loading may raise whatever a builder raises."""
        ...

    def start_worker(self) -> None:
        """Called first in each worker process."""
        ...


@dataclass(frozen=True)
class CacheInput:
    """A gzip cache, with all builders that its first token has."""

    root: Path
    names: tuple[str, ...]
    trusted: bool

    @classmethod
    def open(cls, root: Path, trusted: bool) -> "CacheInput":
        """Raises ConvoyError when `root` is not a cache."""
        if not root.is_dir():
            raise ConvoyError(
                f"--from-cache {root} is not a directory on this machine. Is the file system "
                "mounted?"
            )
        for log in cache.logs_in(root):
            for token in _folders(root / log):
                names = sorted(
                    path.name.removesuffix(".gz") for path in (root / log / token).glob("*.gz")
                )
                if names:
                    return cls(root, tuple(names), trusted)
        raise ConvoyError(
            f"--from-cache {root} holds no <log>/<token>/<builder>.gz: it is not a feature cache."
        )

    @property
    def builders(self) -> tuple[Builder, ...]:
        return tuple(Builder(name, None) for name in self.names)

    def describe(self) -> dict[str, Any]:
        return {"source": "cache", "cache": str(self.root)}

    def units(self, samples_per_shard: int, workers: int | None) -> list[Unit]:
        """Raises ConvoyError for a token that is in two logs."""
        units: list[Unit] = []
        log_of: dict[str, str] = {}
        for log in cache.logs_in(self.root):
            _require_name(log, "log", self.root)
            tokens = _folders(self.root / log)
            for token in tokens:
                _require_name(token, "token", self.root / log)
                if token in log_of:
                    raise ConvoyError(
                        f"The token {token} is in two logs of {self.root}, {log_of[token]} and "
                        f"{log}: it would be trained on twice. Delete one of its folders."
                    )
                log_of[token] = log
            units += _parts(log, tokens, samples_per_shard)
        return units

    def samples(self, unit: Unit) -> Iterator[tuple[str, Callable[[], Loaded]]]:
        for token in unit.tokens or ():
            yield token, partial(self._load, self.root / unit.log / token)

    def start_worker(self) -> None:
        torch.set_num_threads(1)

    def _load(self, folder: Path) -> Loaded:
        started = time.perf_counter()
        sample = {name: cache.read(folder / f"{name}.gz", self.trusted) for name in self.names}
        return sample, {"read": time.perf_counter() - started}


@dataclass(frozen=True)
class RawInput:
    """NAVSIM's logs and sensor data, read by its own SceneLoader and turned into tensors by an
    agent's builders."""

    logs: Path
    sensors: Path
    split: str
    scene_filter: Mapping[str, Any]
    feature_builders: Sequence[Any]
    target_builders: Sequence[Any]
    sensor_config: Any

    def __post_init__(self) -> None:
        """Raises ConvoyError for what would fail at every scene."""
        for name, path in (("navsim_log_path", self.logs), ("original_sensor_path", self.sensors)):
            if not path.is_dir():
                raise ConvoyError(
                    f"{name}={path} is not a directory on this machine. Is the file system mounted?"
                )
        maps = os.environ.get("NUPLAN_MAPS_ROOT")
        if not maps or not (Path(maps) / "nuplan-maps-v1.0.json").is_file():
            raise ConvoyError(
                f"NUPLAN_MAPS_ROOT={maps} holds no nuplan-maps-v1.0.json, and NAVSIM reads its "
                "maps there. Point it at the folder of nuPlan's maps."
            )
        if self.scene_filter.get("max_scenes") or self.scene_filter.get("include_synthetic_scenes"):
            raise ConvoyError(
                f"train_test_split={self.split} asks for max_scenes or for synthetic scenes, which "
                "do not belong to one log. Choose a split without, or name log_names or tokens."
            )
        try:
            pickle.dumps(self)
        except Exception as error:
            raise ConvoyError(
                f"The agent's builders cannot be sent to worker processes ({type(error).__name__}: "
                f"{error}). A builder must be picklable: no lambdas or open files among its "
                "attributes."
            ) from error

    def __reduce__(self) -> tuple[Callable[[bytes], "RawInput"], tuple[bytes]]:
        """In two steps: NAVSIM must be importable before its builders are unpickled."""
        return _load_raw_input, (
            pickle.dumps([getattr(self, field.name) for field in dataclasses.fields(self)]),
        )

    @property
    def builders(self) -> tuple[Builder, ...]:
        return tuple(
            Builder(builder.get_unique_name(), role, _class_path(builder), _as_json(vars(builder)))
            for role, builders in (
                ("feature", self.feature_builders),
                ("target", self.target_builders),
            )
            for builder in builders
        )

    def describe(self) -> dict[str, Any]:
        return {
            "source": "raw",
            "navsim_log_path": str(self.logs),
            "original_sensor_path": str(self.sensors),
            "train_test_split": self.split,
            "scene_filter": hashlib.sha256(
                repr(sorted(self.scene_filter.items())).encode()
            ).hexdigest(),
            "navsim_commit": tree.commit(),
        }

    def units(self, samples_per_shard: int, workers: int | None) -> list[Unit]:
        """Every log is read for its scenes: only so all tasks can have equal shares."""
        wanted = self.scene_filter.get("log_names")
        logs = [
            path.stem
            for path in sorted(self.logs.glob("*.pkl"))
            if wanted is None or path.stem in wanted
        ]
        if not logs:
            which = (
                f" of the {len(wanted)} logs of train_test_split={self.split}"
                if wanted is not None
                else ""
            )
            raise ConvoyError(f"navsim_log_path={self.logs} holds no <log>.pkl{which}.")
        for log in logs:
            _require_name(log, "log", self.logs)
        available = workers or len(os.sched_getaffinity(0))
        listers = max(1, min(available, len(logs) // LOGS_PER_LISTER))
        print(f"listing the scenes of {len(logs)} logs", file=sys.stderr, flush=True)
        listed = dict(pool.run(tokens_of_log, self, logs, listers, self.start_worker))
        units: list[Unit] = []
        for log in logs:
            tokens = listed[log]
            units += (
                [Unit(log, 0, 1, 1)] if tokens is None else _parts(log, tokens, samples_per_shard)
            )
        if not units:
            raise ConvoyError(
                f"None of the {len(logs)} logs of navsim_log_path={self.logs} holds a scene of "
                f"train_test_split={self.split}."
            )
        return units

    def samples(self, unit: Unit) -> Iterator[tuple[str, Callable[[], Loaded]]]:
        chosen = (
            self.scene_filter
            if unit.tokens is None
            else {**self.scene_filter, "tokens": list(unit.tokens)}
        )
        loader = open_log(unit.log, self.logs, self.sensors, chosen, self.sensor_config)
        for token in loader.tokens:
            yield token, partial(self._build, loader, token)

    def start_worker(self) -> None:
        one_thread()

    def _build(self, loader: Any, token: str) -> Loaded:
        began = time.perf_counter()
        scene = loader.get_scene_from_token(token)
        agent_input = scene.get_agent_input()
        loaded = time.perf_counter()
        sample = {
            builder.get_unique_name(): builder.compute_features(agent_input)
            for builder in self.feature_builders
        }
        for builder in self.target_builders:
            sample[builder.get_unique_name()] = builder.compute_targets(scene)
        return sample, {"scenes": loaded - began, "builders": time.perf_counter() - loaded}


def tokens_of_log(source: RawInput, log: str) -> list[str] | None:
    """Tokens of the log's scenes, in time.

    None for a log that cannot be read: packing it will tell why.
    """
    try:
        return open_log(
            log, source.logs, source.sensors, source.scene_filter, source.sensor_config
        ).tokens
    except Exception:  # NAVSIM unpickles it
        return None


def _require_name(name: str, what: str, folder: Path) -> None:
    try:
        require_name(name, what)
    except ValueError as error:
        raise ConvoyError(f"{folder} holds a folder that is not a {what}'s: {error}.") from error


def _parts(log: str, tokens: Sequence[str], most: int) -> list[Unit]:
    """The samples of a log in units of at most `most`, nearly equal."""
    count = -(-len(tokens) // most)
    bounds = [len(tokens) * part // count for part in range(count + 1)] if count else []
    parts = [tuple(tokens[start:end]) for start, end in zip(bounds[:-1], bounds[1:], strict=True)]
    return [Unit(log, number, count, len(part), part) for number, part in enumerate(parts)]


def _load_raw_input(content: bytes) -> RawInput:
    make_importable()
    return RawInput(*pickle.loads(content))


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def _class_path(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _as_json(value: Any) -> Any:
    """A builder's configuration as JSON; what has no such form is named by its class."""
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _as_json(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): _as_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_as_json(entry) for entry in value]
    return str(value) if isinstance(value, Path) else _class_path(value)
