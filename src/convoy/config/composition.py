"""Composes the configuration by Hydra: Convoy's settings, a named configuration of NAVSIM's or the
user's over them, and the command line's overrides over both."""

import difflib
import functools
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from convoy.config import arguments
from convoy.config.arguments import Arguments
from convoy.config.navsim_defaults import DIFFERENT
from convoy.errors import ConvoyError

CONF = Path(__file__).parents[1] / "conf"
DEFAULT_AGENT = "ego_status_mlp_agent"  # NAVSIM's: another would be trained silently
_CACHE = "${oc.env:NAVSIM_EXP_ROOT}/training_cache"  # default of cache_path, NAVSIM's too


def compose(words: Sequence[str], navsim_groups: Path | None) -> DictConfig:
    """Compose a command line's arguments. Agents come from Convoy's own folder, from
    `navsim_groups` (NAVSIM's `config/common`), and from what `--config-dir` and
    `hydra.searchpath` name. Without `agent=` and without a NAVSIM tree the result has no agent.

    Raises ConvoyError for each user mistake, naming what is valid.
    """
    asked = arguments.read(words)
    try:
        config = _composed(asked, navsim_groups)
        with open_dict(config):
            config.merge_with(asked.groups)
            if asked.config_name is not None:
                _settle(config, asked)
            if raw_value(config, "cache_path") == _CACHE and not os.environ.get("NAVSIM_EXP_ROOT"):
                config.cache_path = None
        OmegaConf.resolve(config)
    except MissingConfigException as error:
        raise _missing(error.missing_cfg_file or "", asked, navsim_groups) from error
    except HydraException as error:
        raise _bad_override(error, asked, navsim_groups) from error
    except yaml.YAMLError as error:
        raise ConvoyError(
            f"A configuration file is not YAML: {' '.join(str(error).split())}"
        ) from None
    except OmegaConfBaseException as error:
        raise ConvoyError(
            f"The configuration cannot be resolved: {str(error).splitlines()[0]}"
        ) from error
    agent = chosen_agent(asked.overrides)
    if agent is not None and "agent" not in config:
        raise _missing(f"agent/{agent}", asked, navsim_groups)
    return config


def chosen_agent(overrides: Sequence[str]) -> str | None:
    """The name that `agent=<name>` gives, if the command line has it."""
    names = [o.partition("=")[2] for o in overrides if o.partition("=")[0].lstrip("+") == "agent"]
    return names[-1] if names else None


def agents_found(navsim_groups: Path | None, asked: Arguments | None = None) -> dict[str, Path]:
    """Agent names (`agent=<name>`) and the folders that they were found in."""
    folders = agent_folders(navsim_groups, asked)
    return {path.stem: folder for folder in folders for path in sorted(folder.glob("*.yaml"))}


def agent_folders(navsim_groups: Path | None, asked: Arguments | None = None) -> list[Path]:
    folders = [CONF, *_folders(asked or Arguments(), navsim_groups)]
    return [folder / "agent" for folder in folders if (folder / "agent").is_dir()]


def raw_value(config: DictConfig, key: str) -> Any:
    """A value as it was written, interpolations unresolved."""
    content = OmegaConf.to_container(config, resolve=False)
    assert isinstance(content, dict)
    return content[key]


def flat_keys(config: DictConfig) -> Iterator[str]:
    """Every dotted key of `config`, leaves and nodes."""
    for key in map(str, config):
        yield key
        if not OmegaConf.is_missing(config, key) and isinstance(config[key], DictConfig):
            yield from (f"{key}.{below}" for below in flat_keys(config[key]))


def _composed(asked: Arguments, navsim_groups: Path | None) -> DictConfig:
    path = ",".join(_quoted(folder) for folder in _folders(asked, navsim_groups))
    overrides = [f"hydra.searchpath=[{path}]", *asked.overrides]
    if asked.config_name is None:
        return _by_hydra("train", overrides)
    body = _primary(asked, navsim_groups)
    groups = {group for entry in body.get("defaults", []) for group in _groups(entry)}
    own = ["settings", "convoy_named"]
    if "agent" not in groups:
        own.append(f"optional agent: {DEFAULT_AGENT}")
    store = ConfigStore.instance()
    store.store(name="convoy_named", node=body)
    store.store(name="convoy_primary", node={"defaults": [_entry(e) for e in own]})
    # Deleted from the defaults list: composing a split takes many seconds, and needs a choice.
    without = [f"~{group}" for group in ("train_test_split", "worker")]
    try:
        return _by_hydra("convoy_primary", [*overrides, *without])
    except HydraException as error:
        if "Could not delete" not in str(error):
            raise
        return _by_hydra("convoy_primary", overrides)  # a configuration that is not NAVSIM's


def _by_hydra(name: str, overrides: list[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base=None):
        return hydra_compose(name, overrides)


def _entry(text: str) -> Any:
    name, colon, value = text.partition(": ")
    return {name: value} if colon else name


def _groups(entry: Any) -> list[str]:
    """Names of the groups in one entry of a defaults list, without Hydra's keywords."""
    return (
        [str(name).split()[-1].split("@")[0] for name in entry] if isinstance(entry, dict) else []
    )


def _primary(asked: Arguments, navsim_groups: Path | None) -> dict[str, Any]:
    """The YAML of `--config-name`, less its `hydra` node, which only a primary may have."""
    folders = [CONF, *_folders(asked, navsim_groups)]
    for folder in folders:
        path = folder / f"{asked.config_name}.yaml"
        if path.is_file():
            with path.open() as file:
                body = yaml.load(file, Loader=yaml.CSafeLoader) or {}
            body.pop("hydra", None)
            return body
    looked = ", ".join(str(folder) for folder in folders)
    found = ", ".join(sorted({p.stem for f in folders[1:] for p in f.glob("*training*.yaml")}))
    raise ConvoyError(
        f"--config-name {asked.config_name}: no {asked.config_name}.yaml in {looked}. "
        f"{f'Found: {found}. ' if found else ''}Another folder: --config-dir DIR."
    )


def _folders(asked: Arguments, navsim_groups: Path | None) -> list[Path]:
    """Where configurations are looked for beside Convoy's own folder, nearest first."""
    folders = [asked.config_dir] if asked.config_dir else []
    for entry in asked.search_path:
        if not entry.startswith("pkg://"):
            folders.append(Path(entry.removeprefix("file://")).absolute())
            continue
        package = entry.removeprefix("pkg://")
        try:
            spec = importlib.util.find_spec(package)
        except ImportError:
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise ConvoyError(
                f"hydra.searchpath names {entry}, and no package {package} can be imported: is it "
                "installed, or on PYTHONPATH?"
            )
        folders += [Path(place) for place in spec.submodule_search_locations]
    if navsim_groups:
        folders += [navsim_groups, navsim_groups.parent / "training"]
    return [folder for folder in folders if folder.is_dir()]


def _quoted(folder: Path) -> str:
    text = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return f"'file://{text}'"


def _settle(config: DictConfig, asked: Arguments) -> None:
    """Where a named configuration has NAVSIM's default for a key and Convoy's differs, Convoy's
    counts; of keys that are not settings only those that can be resolved are kept."""
    for key, (theirs, ours) in DIFFERENT.items():
        above, _, leaf = key.rpartition(".")
        node = OmegaConf.select(config, above) if above else config
        if key in asked.keys or node is None or leaf not in node:
            continue
        if raw_value(node, leaf) == theirs:
            node[leaf] = ours
    if "agent" in config:
        OmegaConf.resolve(config.agent)
    for name in [str(name) for name in config if name not in _settings() and name != "agent"]:
        try:
            OmegaConf.to_container(OmegaConf.masked_copy(config, name), resolve=True)
        except OmegaConfBaseException:
            del config[name]  # it leads to what only NAVSIM's caching or scoring has


@functools.cache
def _settings() -> frozenset[str]:
    """Names at the top of Convoy's settings."""
    settings = OmegaConf.load(CONF / "settings.yaml")
    return frozenset(str(name) for name in settings)


def _missing(wanted: str, asked: Arguments, navsim_groups: Path | None) -> ConvoyError:
    group, _, name = wanted.rpartition("/")
    if group != "agent":
        return ConvoyError(
            f"There is no {wanted!r} among Convoy's configuration files, NAVSIM's and those that "
            "--config-dir or hydra.searchpath name."
        )
    looked = ", ".join(map(str, agent_folders(navsim_groups, asked)))
    found = ", ".join(sorted(agents_found(navsim_groups, asked)))
    hint = (
        "" if navsim_groups else " No NAVSIM tree is here: make navsim, or set NAVSIM_DEVKIT_ROOT."
    )
    return ConvoyError(f"Unknown agent {name!r}. Found: {found}. Looked in: {looked}.{hint}")


def _bad_override(
    error: HydraException, asked: Arguments, navsim_groups: Path | None
) -> ConvoyError:
    """Hydra's message, with the nearest existing names for a key that does not exist."""
    text = str(error)
    unknown = re.search(
        r"Could not override '([^']+)'|Key '([^']+)' is not in struct|"
        r"Could not delete from config. '([^']+)' does not exist",
        text,
    )
    if unknown is None:
        return ConvoyError(f"An override cannot be read: {text.splitlines()[0]}")
    name = next(group for group in unknown.groups() if group).lstrip("+~")
    name = next((key for key in asked.keys if key.endswith(name)), name)
    agent = [o for o in asked.overrides if arguments.key(o) == "agent"]
    known = list(flat_keys(compose(agent, navsim_groups)))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    leaf = name.rpartition(".")[2]
    near += [other for other in known if other.rpartition(".")[2] == leaf and other not in near]
    nearest = f" Nearest: {', '.join(near[:4])}." if near else ""
    return ConvoyError(
        f"There is no setting {name!r}.{nearest} To add a new one on purpose, write +{name}=…."
    )
