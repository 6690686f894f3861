"""Settings of a site: one file of NAME=VALUE lines for job files and host tools."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from convoy.errors import ConvoyError

# Names that SLURM's sbatch reads from its environment, and the option that each stands for.
SBATCH_OPTIONS = {
    "SBATCH_PARTITION": "partition",
    "SBATCH_ACCOUNT": "account",
    "SBATCH_QOS": "qos",
    "SBATCH_TIMELIMIT": "time",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_GPUS_PER_NODE": "gpus-per-node",
}


@dataclass(frozen=True)
class Site:
    """The environment as a job will have it: the environment's own words, and the file's where it
    has none."""

    root: Path
    environment: Mapping[str, str]

    @property
    def image(self) -> Path:
        return Path(self.environment.get("CONVOY_IMAGE") or self.root / "build" / "convoy.sif")

    @property
    def experiments(self) -> Path:
        return Path(self.environment.get("NAVSIM_EXP_ROOT") or Path.cwd() / "exp")

    @property
    def overrides(self) -> list[str]:
        """Hydra overrides that come before those of the command line."""
        return self.environment.get("CONVOY_OVERRIDES", "").split()

    @property
    def sbatch_options(self) -> dict[str, str]:
        """Options of sbatch that the environment or the file names."""
        found = ((option, self.environment.get(name)) for name, option in SBATCH_OPTIONS.items())
        return {option: value for option, value in found if value}


def load(root: Path, environment: Mapping[str, str] | None = None) -> Site:
    """The settings of the checkout `root`: `CONVOY_SITE`, else slurm/site.conf, below
    `environment`."""
    environment = dict(os.environ if environment is None else environment)
    path = path_of(root, environment)
    if not path.is_file():
        if environment.get("CONVOY_SITE"):
            raise ConvoyError(
                f"CONVOY_SITE={path} does not exist: name a file of NAME=VALUE lines, or unset it."
            )
        return Site(root, environment)
    return Site(root, parse(path.read_bytes().decode(errors="surrogateescape")) | environment)


def path_of(root: Path, environment: Mapping[str, str]) -> Path:
    """The site's file, whether it exists or not."""
    return Path(environment.get("CONVOY_SITE") or root / "slurm" / "site.conf")


def add(path: Path, settings: Mapping[str, str]) -> None:
    """Append settings to a site's file; a new one begins with a line about itself. Raises
    ConvoyError where it cannot be written."""
    try:
        text = path.read_text() if path.exists() else "Settings of this site (docs/launch.md).\n"
        end = "" if text.endswith("\n") or not text else "\n"
        lines = "".join(f"{name}={value}\n" for name, value in settings.items())
        path.write_text(f"{text}{end}{lines}")
    except OSError as error:
        raise ConvoyError(
            f"{path} cannot be written: {error.strerror}. Name another file in CONVOY_SITE."
        ) from error


def parse(text: str) -> dict[str, str]:
    """NAME=VALUE lines, ended as on Linux or on Windows; a value is taken as it is, without quotes
    or expansion. Other lines are comments."""
    return dict(re.findall(r"^([A-Z][A-Z0-9_]*)=(.*?)\r?$", text, re.MULTILINE))


def find_checkout(environment: Mapping[str, str] | None = None) -> Path:
    """Where slurm/launch.sh is: `CONVOY_ROOT`, this folder, or that of this package's sources."""
    named = (os.environ if environment is None else environment).get("CONVOY_ROOT")
    candidates = [Path(named)] if named else [Path.cwd(), Path(__file__).parents[3]]
    for root in candidates:
        if (root / "slurm" / "launch.sh").is_file():
            return root.absolute()
    raise ConvoyError(
        f"No slurm/launch.sh in {' or '.join(map(str, candidates))}: go to Convoy's checkout, or "
        "set CONVOY_ROOT."
    )
