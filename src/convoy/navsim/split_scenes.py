"""The scenes that a split asks to be scored, by log, and how a process opens them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convoy.errors import ConvoyError
from convoy.navsim.importing import make_importable
from convoy.navsim.scenes import open_log


@dataclass(frozen=True)
class SceneSource:
    """Where the scenes of a split are. `synthetic_*` are those of two-stage splits."""

    logs: Path
    sensors: Path
    scene_filter: Mapping[str, Any]
    synthetic_scenes: Path | None = None
    synthetic_sensors: Path | None = None

    @property
    def two_stage(self) -> bool:
        return bool(self.scene_filter.get("include_synthetic_scenes"))

    def require(self, split: str) -> None:
        """Raise ConvoyError where a folder or a log of the split is missing: NAVSIM would score
        what is there, and the figure would be of another split."""
        if not self.logs.is_dir():
            raise ConvoyError(
                f"navsim_log_path={self.logs} is not a directory on this machine. Is the file "
                "system mounted?"
            )
        wanted = self.scene_filter.get("log_names")
        if wanted is not None:
            missing = [log for log in wanted if not (self.logs / f"{log}.pkl").is_file()]
            if missing:
                raise ConvoyError(
                    f"{len(missing)} of the {len(wanted)} logs of {split} are not in "
                    f"navsim_log_path={self.logs}, the first: {missing[0]}.pkl. A part of a split "
                    "is scored by name: train_test_split.scene_filter.log_names=[…]."
                )
        elif not self.log_names():
            raise ConvoyError(f"navsim_log_path={self.logs} holds no <log>.pkl.")
        if self.scene_filter.get("max_scenes") and len(self.log_names()) > 1:
            raise ConvoyError(
                f"{split} has max_scenes={self.scene_filter['max_scenes']} over several logs, and "
                "NAVSIM takes whichever it reads first. Name tokens, or one log."
            )
        if self.two_stage and not (self.synthetic_scenes and self.synthetic_scenes.is_dir()):
            raise ConvoyError(
                f"synthetic_scenes_path={self.synthetic_scenes} is not a directory on this "
                f"machine, and {split} has a second stage."
            )

    def log_names(self) -> list[str]:
        wanted = self.scene_filter.get("log_names")
        return [
            path.stem
            for path in sorted(self.logs.glob("*.pkl"))
            if wanted is None or path.stem in wanted
        ]

    def open(self, log: str, tokens: Sequence[str], sensor_config: Any = None) -> "OpenScenes":
        """Scenes of a log by token, without sensors unless `sensor_config` names some."""
        chosen = {**self.scene_filter, "include_synthetic_scenes": False, "tokens": list(tokens)}
        return OpenScenes(
            open_log(log, self.logs, self.sensors, chosen, sensor_config or no_sensors())
        )

    def open_synthetic(self, files: Mapping[str, Path], sensor_config: Any = None) -> "OpenFiles":
        """Scenes of the second stage; `files` says where each token's scene lies."""
        return OpenFiles(files, self.synthetic_sensors, sensor_config or no_sensors())


class OpenScenes:
    """Scenes of a log, through NAVSIM's loader."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def scene(self, token: str) -> Any:
        return self._loader.get_scene_from_token(token)

    def agent_input(self, token: str) -> Any:
        return self._loader.get_agent_input_from_token(token)


class OpenFiles:
    """Synthetic scenes, a file each. NAVSIM's loader would open every file of the folder first."""

    def __init__(self, files: Mapping[str, Path], sensors: Path | None, sensor_config: Any) -> None:
        self._files, self._sensors, self._sensor_config = files, sensors, sensor_config

    def scene(self, token: str) -> Any:
        from navsim.common.dataclasses import Scene

        return Scene.load_from_disk(self._files[token], self._sensors, self._sensor_config)

    def agent_input(self, token: str) -> Any:
        return self.scene(token).get_agent_input()


def tokens_of_log(source: SceneSource, log: str) -> list[str]:
    """Tokens of the log's scenes, in time. Raises ConvoyError for a log that cannot be read."""
    chosen = {**source.scene_filter, "include_synthetic_scenes": False}
    try:
        return list(open_log(log, source.logs, None, chosen, no_sensors()).tokens)
    except Exception as error:  # NAVSIM unpickles it
        raise ConvoyError(
            f"{source.logs / f'{log}.pkl'} cannot be read: {type(error).__name__}: {error}"
        ) from error


def synthetic_scenes(source: SceneSource) -> dict[str, tuple[Path, str]]:
    """File and log of each scene of the second stage, by token, as NAVSIM's loader finds them."""
    make_importable()
    from navsim.common.dataclasses import SceneFilter
    from navsim.common.dataloader import SceneLoader

    loader = SceneLoader(
        data_path=source.logs,
        original_sensor_path=None,
        synthetic_scenes_path=source.synthetic_scenes,
        scene_filter=SceneFilter(**source.scene_filter),
        sensor_config=no_sensors(),
    )
    wanted = set(loader.reactive_tokens_stage_two or ())
    return {
        token: (Path(path), str(log))
        for token, (path, log) in loader.synthetic_scenes.items()
        if token in wanted
    }


def no_sensors() -> Any:
    make_importable()
    from navsim.common.dataclasses import SensorConfig

    return SensorConfig.build_no_sensors()
