"""Convoy's defaults against NAVSIM's own YAML, and the table of differences in docs/training.md."""

import re
from pathlib import Path

import pytest
import yaml

from convoy import config
from convoy.config.arguments import NOT_COMPOSED
from convoy.config.navsim_defaults import DIFFERENT, NO_EFFECT

DOCS = Path(__file__).parents[2] / "docs/training.md"
NAVSIM_1 = {"sensor_blobs_path"}  # keys of its first version alone


def leaves(node, prefix=""):
    for name, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def defaults(path):
    return dict(leaves(yaml.safe_load(path.read_text())))


@pytest.fixture(scope="module")
def theirs(navsim_tree):
    """All that composing NAVSIM's default_training without its groups gives."""
    folder = navsim_tree / "navsim/planning/script/config"
    found = {}
    for name in ("default_common", "default_dataset_paths", "default_evaluation"):
        found |= defaults(folder / f"common/{name}.yaml")
    found |= defaults(folder / "training/default_training.yaml")
    # The group of agents is compared by name, Hydra's own node has no effect on a training.
    dropped = ("defaults", "hydra.", *(f"{group}." for group in NOT_COMPOSED))
    return {key: value for key, value in found.items() if not key.startswith(dropped)}


def test_every_default_is_navsims_or_a_known_difference(theirs):
    ours = defaults(config.CONF / "settings.yaml")
    assert theirs.keys() <= ours.keys()
    assert {key for key in theirs if theirs[key] != ours[key]} == DIFFERENT.keys() - NAVSIM_1
    for key, (navsims, convoys) in DIFFERENT.items():
        assert theirs.get(key, navsims) == navsims and ours.get(key, convoys) == convoys, key


def test_the_default_agent_is_navsims(navsim_tree):
    path = navsim_tree / "navsim/planning/script/config/training/default_training.yaml"
    assert {"agent": config.DEFAULT_AGENT} in yaml.safe_load(path.read_text())["defaults"]


def test_the_differences_are_one_table_of_the_docs():
    table = re.search(r"\| setting \| NAVSIM \| Convoy \|.*?\n\n", DOCS.read_text(), re.DOTALL)
    rows = [line.split("|")[1:4] for line in table.group(0).splitlines()[2:] if line]
    written = {
        name: (navsims.strip().strip("`"), convoys.strip().strip("`"))
        for names, navsims, convoys in rows
        for name in re.findall(r"`([^`]+)`", names)
    }
    assert written == {
        key: (yaml_text(navsims), yaml_text(convoys))
        for key, (navsims, convoys) in DIFFERENT.items()
    }


def test_the_keys_without_an_effect_are_in_the_docs():
    text = re.search(r"no effect on a training: (.*?)\.\n", DOCS.read_text(), re.DOTALL).group(1)
    assert set(re.findall(r"`([^`]+)`", text)) == {*NO_EFFECT, *NOT_COMPOSED}


def yaml_text(value):
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
