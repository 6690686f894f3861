"""NAVSIM's own script makes its table of rows that were computed elsewhere.

The script scores and averages in one function. It runs here as it is, with its loaders and its
workers replaced: the rows are already there. So the averages, the comfort over two frames and the
CSV are NAVSIM's, or those of a fork.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from convoy.navsim.importing import make_importable
from convoy.navsim.pdm import STATES, Row

AVERAGE = "average_all_frames"  # token of the last row
COMBINED = "extended_pdm_score_combined"  # token of the last row of two stages
ARRAYS = ("weighted_metrics", "weighted_metrics_array")


def make_table(
    rows: Sequence[Row],
    failed: Sequence[str],
    proposal_sampling: Mapping[str, Any],
    mapping: Sequence[Any] | None = None,
) -> bytes:
    """The CSV that NAVSIM's script writes of these `rows` and of tokens that `failed`.

    `mapping` is a two-stage split's `reactive_all_mapping`; None for one stage. Raises what
    NAVSIM's script raises.
    """
    make_importable()
    import pandas as pd
    from omegaconf import OmegaConf

    if mapping is None:
        import navsim.planning.script.run_pdm_score_one_stage as script
    else:
        import navsim.planning.script.run_pdm_score as script

    frame = pd.DataFrame([*rows, *_failed(failed, rows)])
    tokens = [*(row["token"] for row in rows), *failed]
    with (
        TemporaryDirectory() as folder,
        _stand_ins(script, frame, tokens),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # pandas' own, about the script
        script.main.__wrapped__(
            OmegaConf.create(
                {
                    "navsim_log_path": "",
                    "synthetic_scenes_path": "",
                    "metric_cache_path": "",
                    "train_test_split": {"scene_filter": None, "reactive_all_mapping": mapping},
                    "simulator": {"proposal_sampling": dict(proposal_sampling)},
                    "output_dir": folder,
                    "verbose": False,
                }
            )
        )
        (written,) = Path(folder).glob("*.csv")
        return written.read_bytes()


def _failed(tokens: Sequence[str], rows: Sequence[Row]) -> list[Row]:
    """Rows of tokens that failed, as the script makes them; its arrays get the shape of the
    others', without which it could not put them together."""
    from dataclasses import asdict

    from navsim.common.dataclasses import PDMResults

    shapes = {name: np.shape(row[name]) for row in rows[:1] for name in ARRAYS}
    empty = asdict(PDMResults.get_empty_results()) | {
        name: np.full(shape, np.nan) for name, shape in shapes.items()
    }
    return [{**empty, "valid": False, "token": token} for token in tokens]


class _Loader:
    """In place of NAVSIM's two loaders: it knows the tokens."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = list(tokens)

    def get_tokens_list_per_log(self) -> dict[str, list[str]]:
        return {}


@contextmanager
def _stand_ins(script: Any, frame: Any, tokens: Sequence[str]) -> Iterator[None]:
    """Names of the script's module, replaced while it runs."""
    put_together = script.create_scene_aggregators

    def aggregate(pairs: Any, scores: Any, sampling: Any) -> Any:
        if pairs:
            return put_together(pairs, scores, sampling)
        # Scenes without neighbours, as in navmini: NAVSIM's function fails over an empty list.
        scores["two_frame_extended_comfort"] = np.nan
        columns = ["token", *(name for name in scores.columns if name not in ("token", STATES))]
        return scores[columns].reset_index(drop=True)

    replaced = {
        "build_logger": lambda config: None,
        "build_worker": lambda config: None,
        "SceneLoader": lambda **kwargs: _Loader(tokens),
        "MetricCacheLoader": lambda path: _Loader(tokens),
        "worker_map": lambda worker, function, points: [frame],
        "create_scene_aggregators": aggregate,
    }
    originals = {name: getattr(script, name) for name in replaced}
    vars(script).update(replaced)
    try:
        yield
    finally:
        vars(script).update(originals)
