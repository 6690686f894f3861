"""Raw data for the tests that read OpenScene logs, made on the spot."""

from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class RawData:
    """A raw data set: `samples` frames with 3 before and 10 after them, evenly over `logs` logs of split `mini`."""

    root: Path
    samples: int
    logs: int

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which NAVSIM finds it."""
        return {"OPENSCENE_DATA_ROOT": str(self.root), "NUPLAN_MAPS_ROOT": str(self.root / "maps")}


@pytest.fixture(scope="session")
def raw_data(tmp_path_factory: pytest.TempPathFactory) -> RawData:
    """Eight samples in two logs: speeding up behind a leader, turning right. Not to be written to: copy it first."""
    from convoy.data.synthetic.raw import write_raw

    root = tmp_path_factory.mktemp("raw")
    summary = write_raw(root, samples=8, logs=2, seed=2, all_cameras=False, workers=1)
    return RawData(root, summary.samples, summary.logs)
