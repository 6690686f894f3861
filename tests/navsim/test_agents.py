import pytest
from omegaconf import OmegaConf

from convoy.agents.contract import TrainableAgent
from convoy.config import compose
from convoy.errors import ConvoyError
from convoy.navsim import tree
from convoy.navsim.agents import build_agent
from convoy.navsim.weights import write_random_backbone


def test_a_fork_named_by_the_environment_wins(foreign_tree):
    assert tree.find() == foreign_tree
    assert tree.config_directory() == foreign_tree / "navsim/planning/script/config/common"
    assert tree.default_split() is None


def test_navsims_tree_has_yaml_and_split(navsim_tree):
    assert (tree.config_directory() / "agent" / "transfuser_agent.yaml").is_file()
    assert tree.default_split().is_file()


def test_ego_status_mlp_satisfies_the_contract(navsim_tree):
    agent = build_agent(
        compose(["agent=ego_status_mlp_agent", "cache_path=x"], tree.config_directory()).agent
    )
    assert isinstance(agent, TrainableAgent)
    assert [builder.get_unique_name() for builder in agent.get_feature_builders()] == [
        "ego_status_feature"
    ]


def test_transfuser_without_a_hub_says_how_to_give_the_weights(navsim_tree, monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConvoyError, match="model hub cannot be reached.*\n.*image_architecture"):
        build_agent(
            compose(["agent=transfuser_agent", "cache_path=x"], tree.config_directory()).agent
        )


def test_transfuser_takes_weights_from_a_folder(navsim_tree, tmp_path):
    folder = write_random_backbone("resnet34", tmp_path / "weights")
    overrides = [
        "agent=transfuser_agent",
        "cache_path=x",
        f"+agent.config.image_architecture='local-dir:{folder}'",
    ]
    agent = build_agent(compose(overrides, tree.config_directory()).agent)
    assert isinstance(agent, TrainableAgent)
    assert sum(parameter.numel() for parameter in agent.parameters()) > 50e6


def test_an_agent_that_cannot_be_imported_is_named(foreign_tree):
    with pytest.raises(ConvoyError, match="nowhere.Agent could not be built.*ModuleNotFoundError"):
        build_agent(OmegaConf.create({"_target_": "nowhere.Agent"}))


def test_a_wrong_agent_argument_is_named(foreign_tree):
    (foreign_tree / "beside_navsim.py").write_text(
        "class Agent:\n    def __init__(self, lr): ...\n"
    )
    with pytest.raises(
        ConvoyError, match="Agent could not be built.*unexpected keyword argument 'speed'"
    ):
        build_agent(OmegaConf.create({"_target_": "beside_navsim.Agent", "lr": 1, "speed": 2}))


def test_the_whole_cause_of_a_failed_build_and_the_missing_file(foreign_tree):
    (foreign_tree / "needy.py").write_text(
        "class Agent:\n"
        "    def __init__(self):\n"
        "        try:\n"
        "            open('/gone/vov.pth')\n"
        "        except OSError as error:\n"
        "            raise RuntimeError('no weights\\nfor the backbone') from error\n"
    )
    with pytest.raises(ConvoyError) as refused:
        build_agent(OmegaConf.create({"_target_": "needy.Agent"}))
    said = str(refused.value)
    assert "RuntimeError: no weights for the backbone. From FileNotFoundError" in said
    assert "'/gone/vov.pth'" in said and "\n" not in said


def test_a_requirement_of_the_agent_that_is_not_installed(foreign_tree):
    (foreign_tree / "needs_more.py").write_text("import not_installed_anywhere\nAgent = None\n")
    with pytest.raises(ConvoyError, match="not_installed_anywhere is a requirement .*EXTRA="):
        build_agent(OmegaConf.create({"_target_": "needs_more.Agent"}))
