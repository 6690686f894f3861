import pytest
from omegaconf import OmegaConf

from convoy import config
from convoy.errors import ConvoyError
from convoy.navsim import tree
from convoy.topology import Topology

TWO_NODES = Topology.planned(2, 4)


def load(*overrides, topology=TWO_NODES):
    """With Convoy's own agent where none is named: NAVSIM's default needs NAVSIM's tree."""
    named = any(override.startswith("agent=") for override in overrides)
    own = () if named else ("agent=bev_fusion_agent",)
    return config.load([*own, *overrides], topology, tree.config_directory())


@pytest.fixture
def cache(ego_cache):
    return f"cache_path={ego_cache}"


def test_launch_facts_are_written_into_the_configuration(cache):
    settings = load(cache, "global_batch=176")
    params = settings.config.trainer.params
    assert (params.num_nodes, params.devices, params.accumulate_grad_batches) == (2, 4, 1)
    assert settings.batches.rank_batch == 22


def test_navsims_documented_command_line_ports(cache, foreign_tree):
    """The arguments of NAVSIM's docs for training from a cache, with only the program's name
    changed."""
    settings = load(
        cache,
        "experiment_name=training_foreign_agent",
        "agent=foreign_agent",
        "trainer.params.max_epochs=50",
        "train_test_split=navtrain",
        "split=trainval",
        "worker=sequential",
        "use_cache_without_dataset=True",
        "force_cache_computation=False",
        "dataloader.params.batch_size=16",
        "dataloader.params.prefetch_factor=2",
        "trainer.params.gradient_clip_val=1.0",
        "seed=3",
    )
    assert settings.config.agent._target_ == "navsim.agents.foreign_agent.ForeignAgent"
    assert settings.config.global_batch == 16 * 8
    assert settings.config.train_test_split == "navtrain"


def test_all_navsim_agents_are_found(navsim_tree):
    assert {"transfuser_agent", "ego_status_mlp_agent", "bev_fusion_agent"} <= config.agents_found(
        tree.config_directory()
    ).keys()


def test_overrides_with_shell_characters_survive(cache):
    name = "a b$HOME'c"
    settings = load(cache, f'experiment_name="{name}"')
    assert settings.config.experiment_name == name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["agent=no_such_agent"],
            r"Unknown agent 'no_such_agent'. Found: .*bev_fusion_agent.*Looked in: .*conf/agent",
        ),
        (
            ["trainer.params.max_epoch=3"],
            "no setting 'trainer.params.max_epoch'. Nearest: trainer.params.max_epochs",
        ),
        (["globl_batch=3"], "no setting 'globl_batch'. Nearest: global_batch"),
        (["max_epochs=3"], "no setting 'max_epochs'. Nearest: .*trainer.params.max_epochs"),
        (["agent.learning=3"], "no setting 'agent.learning'"),
        (["seed=[1"], "cannot be read"),
        (["trainer.params.num_nodes=4"], "num_nodes=4 contradicts the launch, which has 2"),
        (["trainer.params.devices=8"], "devices=8 contradicts the launch, which has 4"),
        (["train_logs=[a,b]", "val_logs=[b,c]"], r"share 1 logs \(b\)"),
        (["train_logs=[a]"], "train_logs is given and val_logs is not"),
        (["train_logs=[]", "val_logs=[a]"], "train_logs is an empty list"),
        (["use_cache_without_dataset=false"], "from packed shards or a cache"),
        (["force_cache_computation=true"], "from packed shards or a cache"),
        (["global_batch=100"], "global_batch=96 or 104"),
        (
            ["trainer.params.accelerator=cpu", "trainer.params.precision=16-mixed"],
            "precision=16-mixed needs a GPU",
        ),
        (["speed=fast"], "speed=.*plain, default, max"),
        (["experiment_name=${nowhere}"], "cannot be resolved"),
    ],
)
def test_mistakes_are_told_with_the_way_out(cache, overrides, message):
    with pytest.raises(ConvoyError, match=message):
        load(cache, *overrides)


@pytest.mark.parametrize(
    ("overrides", "precision"),
    [
        ([], "bf16-mixed"),
        (["speed=plain"], "16-mixed"),
        (["speed_switches.bf16=false"], "16-mixed"),
        (["speed=plain", "speed_switches.bf16=true"], "bf16-mixed"),
        (["trainer.params.accelerator=cpu"], "32-true"),
        (["trainer.params.precision=32-true"], "32-true"),
    ],
)
def test_precision_is_derived_where_it_is_not_given(cache, overrides, precision):
    assert load(cache, *overrides).config.trainer.params.precision == precision


def test_missing_cache_path():
    with pytest.raises(ConvoyError, match="cache_path is not set.*convoy synth"):
        load()


def test_cache_that_is_not_there(tmp_path):
    with pytest.raises(ConvoyError, match="gone is not a directory"):
        load(f"cache_path={tmp_path}/gone")


def test_empty_cache(tmp_path):
    with pytest.raises(ConvoyError, match="is empty: expected packed shards"):
        load(f"cache_path={tmp_path}")


def test_a_devkit_root_without_navsim(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("NAVSIM_DEVKIT_ROOT", str(tmp_path))
    with pytest.raises(ConvoyError, match="has no navsim/ folder"):
        load(cache)


def test_differences_are_leaves():
    old = OmegaConf.create({"a": {"b": 1, "c": [1, 2]}, "d": None})
    new = OmegaConf.create({"a": {"b": 2, "c": [1, 2]}, "e": 5})
    assert config.differences(old, new) == {"a.b": (1, 2), "e": (None, 5)}
