"""The arguments of a NAVSIM command line: Hydra's own flags, and overrides."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from convoy.errors import ConvoyError

# Groups that NAVSIM reads when it builds a cache or scores; its training from a cache ignores them,
# and composing navtrain's list of tokens takes 14 s. So their files are not read.
NOT_COMPOSED = ("train_test_split", "worker", "traffic_agents_policy", "proposal_sampling")

_FLAGS = {
    "--config-name": "config_name",
    "-cn": "config_name",
    "--config-dir": "config_dir",
    "-cd": "config_dir",
    "--config-path": "config_dir",
    "-cp": "config_dir",
}


@dataclass
class Arguments:
    """What a command line asks for."""

    config_name: str | None = None  # of a primary configuration other than Convoy's
    config_dir: Path | None = None  # one more folder to look for configurations in
    search_path: list[str] = field(default_factory=list)  # hydra.searchpath: file://… and pkg://…
    overrides: list[str] = field(default_factory=list)  # for Hydra, as typed
    groups: dict[str, str] = field(default_factory=dict)  # NOT_COMPOSED's group -> its choice

    @property
    def keys(self) -> set[str]:
        """Dotted names that the overrides set, remove or add."""
        return {key(override) for override in self.overrides}


def key(override: str) -> str:
    """The dotted name in an override: `trainer.params.strategy` of `~trainer.params.strategy`."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def read(arguments: Sequence[str]) -> Arguments:
    """Raises ConvoyError for an option of Hydra's that means nothing here."""
    found = Arguments()
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag in _FLAGS:
            given = value if equals else next(words, None)
            if not given:
                raise ConvoyError(f"{flag} lacks its value: {flag} NAME.")
            _take(found, _FLAGS[flag], given)
        elif word.startswith("-"):
            raise ConvoyError(
                f"{word} is not an option of a training. Of Hydra's, --config-name and "
                "--config-dir are; everything else is NAME=VALUE."
            )
        elif key(word) == "hydra.searchpath":
            found.search_path += _entries(word)
        elif key(word).split(".")[0].split("/")[0] == "hydra":
            raise ConvoyError(
                f"{word} has no meaning here: Hydra composes the configuration and starts nothing. "
                "The run's folder is run_dir=/path."
            )
        elif (group := key(word).split(".")[0]) in NOT_COMPOSED:
            if key(word) == group and value:
                found.groups[group] = value
        else:
            found.overrides.append(word)
    return found


def _take(found: Arguments, name: str, value: str) -> None:
    if name == "config_name":
        found.config_name = value.removesuffix(".yaml")
        return
    found.config_dir = Path(value).absolute()
    if not found.config_dir.is_dir():
        raise ConvoyError(f"--config-dir {value} is not a directory on this machine.")


def _entries(override: str) -> list[str]:
    """The entries of `hydra.searchpath=[…]`."""
    try:
        value = OverridesParser.create().parse_override(override).value()
    except HydraException as error:
        raise ConvoyError(f"{override} cannot be read: {str(error).splitlines()[0]}") from error
    entries = [str(entry) for entry in value] if isinstance(value, list) else [str(value)]
    for entry in entries:
        folder = Path(entry.removeprefix("file://"))
        if not entry.startswith("pkg://") and not folder.is_dir():
            raise ConvoyError(f"hydra.searchpath names {entry}, which is not a directory here.")
    return entries
