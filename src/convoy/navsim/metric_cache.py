"""The metric cache in NAVSIM's own layout, `<root>/<log>/unknown/<token>/metric_cache.pkl`: what a
scene's metrics need of map and traffic, computed by NAVSIM's processor.

Each file is written whole or not at all, so any number of processes and nodes may fill one cache,
and a scoring that was killed finds what it had made. A file that cannot be read is made again.
"""

import contextlib
import json
import lzma
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from convoy.errors import ConvoyError
from convoy.navsim import tree
from convoy.navsim.importing import make_importable
from convoy.run.atomic import replacing

IDENTITY = "convoy.json"  # what the cache was computed with
METADATA = Path("metadata") / "metric_cache_metadata_node_0.csv"
SCENARIO_TYPE = "unknown"  # NavSimScenario's
MAP_VERSION = "nuplan-maps-v1.0"


def cache_path(root: Path, log: str, token: str) -> Path:
    return root / log / SCENARIO_TYPE / token / "metric_cache.pkl"


def claim_cache(root: Path, proposal_sampling: Mapping[str, Any]) -> str | None:
    """Write down what the cache of `root` is computed with, where nothing says so yet.

    Returns a sentence for a cache that NAVSIM's own script made: nothing tells its commit. Raises
    ConvoyError for a cache of another commit or another sampling.
    """
    identity = {"navsim_commit": tree.commit(), "proposal_sampling": dict(proposal_sampling)}
    path = root / IDENTITY
    try:
        held = json.loads(path.read_bytes())
    except FileNotFoundError:
        if (root / "metadata").is_dir():
            return (
                f"metric_cache_path={root} was made by NAVSIM's own script: nothing in it says "
                "with which commit."
            )
        _write(path, json.dumps(identity, indent=1).encode())
        return None
    except ValueError as error:
        raise ConvoyError(f"{path} is damaged ({error}). Delete it, or the cache.") from error
    changed = [
        f"{key}: {held.get(key)} -> {identity[key]}"
        for key in identity
        if held.get(key) != identity[key]
    ]
    if changed:
        raise ConvoyError(
            f"metric_cache_path={root} was computed with something else ({'; '.join(changed)}). "
            "Give another metric_cache_path, or the NAVSIM tree of that commit."
        )
    return None


class MetricCaches:
    """Metric caches by token: read, or computed and written where they are missing."""

    def __init__(self, root: Path, maps: Path, proposal_sampling: Any) -> None:
        """`proposal_sampling` is nuPlan's TrajectorySampling."""
        make_importable()
        from navsim.planning.metric_caching.metric_cache_processor import MetricCacheProcessor

        self._root, self._maps = root, maps
        self._processor = MetricCacheProcessor(
            cache_path=str(root),
            force_feature_computation=True,
            proposal_sampling=proposal_sampling,
        )
        self.made = 0  # how many were computed here

    def get(self, log: str, token: str, scene: Callable[[], Any]) -> Any:
        """NAVSIM's MetricCache of a token; `scene` loads its scene, where that is needed.

        Raises whatever NAVSIM's processor raises, and ConvoyError on a full disk.
        """
        path = cache_path(self._root, log, token)
        # Missing, half written, or of a class that has changed: made, or made again.
        with contextlib.suppress(Exception):
            return _read(path.read_bytes())
        content = self._compute(scene())
        _write(path, content)
        self.made += 1
        return _read(content)

    def _compute(self, scene: Any) -> bytes:
        from navsim.planning.scenario_builder.navsim_scenario import NavSimScenario

        scenario = NavSimScenario(scene, map_root=str(self._maps), map_version=MAP_VERSION)
        cache = self._processor.compute_metric_cache(scenario)
        # As its own dump() does, which writes in place.
        return lzma.compress(pickle.dumps(cache, protocol=pickle.HIGHEST_PROTOCOL), preset=0)


def write_metadata(root: Path, scenes: Iterable[tuple[str, str]]) -> None:
    """Write NAVSIM's list of the cache, by which its own scripts find what is in it; `scenes` are
    (log, token). What an earlier list had is kept."""
    path = root / METADATA
    lines = set(path.read_text().splitlines()[1:]) if path.is_file() else set()
    lines |= {
        str(file) for log, token in scenes if (file := cache_path(root, log, token)).is_file()
    }
    _write(path, "\n".join(["file_name", *sorted(lines), ""]).encode())


def _read(content: bytes) -> Any:
    # A pickle of NAVSIM's classes; docs/trust.md says whom a metric cache trusts.
    return pickle.loads(lzma.decompress(content))


def _write(path: Path, content: bytes) -> None:
    try:
        with replacing(path, durable=False) as file:
            file.write(content)
    except OSError as error:
        raise ConvoyError(f"{path} could not be written: {error.strerror}.") from error
