"""Where samples to be packed come from: NAVSIM's gzip cache, or raw logs through an agent's own builders."""

import dataclasses
import hashlib
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import torch

from convoy.agents import navsim
from convoy.data import cache
from convoy.data.packing import Tensors
from convoy.data.prepare.plan import Unit
from convoy.data.shards import Builder
from convoy.errors import ConvoyError

LOG_BYTES_PER_UNIT = 4 << 20  # of a raw log; its samples are known only when it is read

Loaded = tuple[Tensors, dict[str, float]]  # a sample, and the seconds that its making took by kind


class Input(Protocol):
    """Can be pickled; is sent to the worker processes."""

    @property
    def builders(self) -> tuple[Builder, ...]: ...

    def describe(self) -> dict[str, Any]:
        """What makes it the same input; JSON."""
        ...

    def units(self, samples_per_shard: int) -> list[Unit]: ...

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
        """Raises ConvoyError when `root` is no cache."""
        if not root.is_dir():
            raise ConvoyError(f"--from-cache {root} is not a directory on this machine. Is the file system mounted?")
        for log in cache.logs_in(root):
            for token in _folders(root / log):
                names = sorted(path.name.removesuffix(".gz") for path in (root / log / token).glob("*.gz"))
                if names:
                    return cls(root, tuple(names), trusted)
        raise ConvoyError(f"--from-cache {root} holds no <log>/<token>/<builder>.gz: it is no feature cache.")

    @property
    def builders(self) -> tuple[Builder, ...]:
        return tuple(Builder(name, None) for name in self.names)

    def describe(self) -> dict[str, Any]:
        return {"source": "cache", "cache": str(self.root)}

    def units(self, samples_per_shard: int) -> list[Unit]:
        """Raises ConvoyError for a token that is in two logs."""
        units: list[Unit] = []
        log_of: dict[str, str] = {}
        for log in cache.logs_in(self.root):
            tokens = _folders(self.root / log)
            for token in tokens:
                if token in log_of:
                    raise ConvoyError(
                        f"The token {token} is in two logs of {self.root}, {log_of[token]} and {log}: it would be "
                        "trained on twice. Delete one of its folders."
                    )
                log_of[token] = log
            parts = [tokens[start : start + samples_per_shard] for start in range(0, len(tokens), samples_per_shard)]
            units += [Unit(log, number, len(parts), len(part), tuple(part)) for number, part in enumerate(parts)]
        return units

    def samples(self, unit: Unit) -> Iterator[tuple[str, Callable[[], Loaded]]]:
        for token in unit.tokens or ():
            yield token, lambda token=token: self._load(self.root / unit.log / token)

    def start_worker(self) -> None:
        torch.set_num_threads(1)

    def _load(self, folder: Path) -> Loaded:
        started = time.perf_counter()
        sample = {name: cache.read(folder / f"{name}.gz", self.trusted) for name in self.names}
        return sample, {"read": time.perf_counter() - started}


@dataclass(frozen=True)
class RawInput:
    """NAVSIM's logs and sensor data, read by its own SceneLoader and turned into tensors by an agent's builders."""

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
                raise ConvoyError(f"{name}={path} is not a directory on this machine. Is the file system mounted?")
        maps = os.environ.get("NUPLAN_MAPS_ROOT")
        if not maps or not (Path(maps) / "nuplan-maps-v1.0.json").is_file():
            raise ConvoyError(
                f"NUPLAN_MAPS_ROOT={maps} holds no nuplan-maps-v1.0.json, and NAVSIM reads its maps there. Point it "
                "at the folder of nuPlan's maps."
            )
        if self.scene_filter.get("max_scenes") or self.scene_filter.get("include_synthetic_scenes"):
            raise ConvoyError(
                f"train_test_split={self.split} asks for max_scenes or for synthetic scenes, which do not belong to "
                "one log. Choose a split without, or name log_names or tokens."
            )
        try:
            pickle.dumps(self)
        except Exception as error:
            raise ConvoyError(
                f"The agent's builders cannot be sent to worker processes ({type(error).__name__}: {error}). "
                "A builder must be picklable: no lambdas or open files among its attributes."
            ) from error

    def __reduce__(self) -> tuple[Callable[[bytes], "RawInput"], tuple[bytes]]:
        """In two steps: what makes NAVSIM importable must come before what unpickles its builders."""
        return _load_raw_input, (pickle.dumps([getattr(self, field.name) for field in dataclasses.fields(self)]),)

    @property
    def builders(self) -> tuple[Builder, ...]:
        return tuple(
            Builder(builder.get_unique_name(), role, _class_path(builder), _as_json(vars(builder)))
            for role, builders in (("feature", self.feature_builders), ("target", self.target_builders))
            for builder in builders
        )

    def describe(self) -> dict[str, Any]:
        return {
            "source": "raw",
            "navsim_log_path": str(self.logs),
            "original_sensor_path": str(self.sensors),
            "train_test_split": self.split,
            "scene_filter": hashlib.sha256(repr(sorted(self.scene_filter.items())).encode()).hexdigest(),
            "navsim_commit": navsim.commit(),
        }

    def units(self, samples_per_shard: int) -> list[Unit]:
        """Logs in parts of about 4 MiB. Their number of samples is not known, so `samples_per_shard` is not used."""
        wanted = self.scene_filter.get("log_names")
        units: list[Unit] = []
        for path in sorted(self.logs.glob("*.pkl")):
            if wanted is None or path.stem in wanted:
                size = path.stat().st_size
                parts = max(1, round(size / LOG_BYTES_PER_UNIT))
                units += [Unit(path.stem, part, parts, max(1, size // parts)) for part in range(parts)]
        if not units:
            which = f" of the {len(wanted)} logs of train_test_split={self.split}" if wanted is not None else ""
            raise ConvoyError(f"navsim_log_path={self.logs} holds no <log>.pkl{which}.")
        return units

    def samples(self, unit: Unit) -> Iterator[tuple[str, Callable[[], Loaded]]]:
        loader = navsim.open_log(unit.log, self.logs, self.sensors, self.scene_filter, self.sensor_config)
        tokens = loader.tokens
        chosen = tokens[len(tokens) * unit.part // unit.parts : len(tokens) * (unit.part + 1) // unit.parts]
        for token in chosen:
            yield token, lambda token=token: self._build(loader, token)

    def start_worker(self) -> None:
        navsim.one_thread()

    def _build(self, loader: Any, token: str) -> Loaded:
        began = time.perf_counter()
        scene = loader.get_scene_from_token(token)
        agent_input = scene.get_agent_input()
        loaded = time.perf_counter()
        sample = {builder.get_unique_name(): builder.compute_features(agent_input) for builder in self.feature_builders}
        for builder in self.target_builders:
            sample[builder.get_unique_name()] = builder.compute_targets(scene)
        return sample, {"scenes": loaded - began, "builders": time.perf_counter() - loaded}


def _load_raw_input(content: bytes) -> RawInput:
    navsim.make_importable()
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
        return {field.name: _as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _as_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_as_json(entry) for entry in value]
    return str(value) if isinstance(value, Path) else _class_path(value)
