"""Training command lines of NAVSIM and of public forks: with only the program's name changed they
compose, or are refused with one sentence for each argument that cannot work."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from convoy import config
from convoy.commands.__main__ import main
from convoy.errors import ConvoyError
from convoy.topology import Topology

GTRS = (
    "--config-name competition_training trainer.params.num_nodes={nodes} agent={agent} "
    "experiment_name=train_dp train_test_split=navtrain dataloader.params.batch_size=22 "
    "~trainer.params.strategy trainer.params.max_epochs=50 trainer.params.precision=32 "
    "agent.config.ckpt_path=train_dp agent.lr=0.0002"
)
IJEPA = (
    "agent={agent} experiment_name=exp_20251113 train_test_split=navtrain "
    "trainer.params.max_epochs=50 trainer.params.accelerator=gpu trainer.params.num_nodes={nodes} "
    "dataloader.params.batch_size=32 dataloader.params.num_workers=2 "
    "dataloader.params.pin_memory=true"
)

# Name, nodes, arguments, and what must have come of it.
PORTED = [
    (
        "NAVSIM run_ego_mlp_agent_training.sh",
        1,
        "experiment_name=training_ego_mlp_agent trainer.params.max_epochs=50 "
        "train_test_split=navtrain",
        {"agent._target_": "navsim.agents.ego_status_mlp_agent", "trainer.params.max_epochs": 50},
    ),
    (
        "NAVSIM run_transfuser_training.sh",
        1,
        "agent=transfuser_agent experiment_name=training_transfuser_agent "
        "train_test_split=navtrain",
        {"agent._target_": "navsim.agents.transfuser_agent", "train_test_split": "navtrain"},
    ),
    (
        "NAVSIM docs, from a cache",
        1,
        "agent=transfuser_agent train_test_split=navtrain use_cache_without_dataset=True "
        "force_cache_computation=False worker=sequential",
        {"worker": "sequential"},
    ),
    (
        "DiffusionDrive docs/train_eval.md",
        1,
        "agent=diffusiondrive_agent experiment_name=training_diffusiondrive_agent "
        "train_test_split=navtrain split=trainval trainer.params.max_epochs=100 "
        "use_cache_without_dataset=True force_cache_computation=False",
        {"agent._target_": "navsim.agents.diffusiondrive_agent", "agent.lr": 6e-4},
    ),
    (
        "GTRS docs/gtrs_training.md, diffusion policy",
        3,
        GTRS.format(nodes=3, agent="gtrs_diffusion_policy"),
        {
            "agent.lr": 0.0002,
            "agent.config.ckpt_path": "train_dp",
            "train_logs": ["log-0", "log-1", "log-2"],
            "trainer.params.strategy": "ddp",
            "trainer.params.limit_val_batches": 0.03,
            "dataloader.params.num_workers": 16,
            "trainer.params.precision": 32,
            "trainer.params.num_nodes": 3,
            "run_dir": None,
            "use_cache_without_dataset": True,
        },
    ),
    (
        "GTRS docs/gtrs_training.md, dense",
        4,
        GTRS.format(nodes=4, agent="gtrs_dense_vov"),
        {"agent._target_": "navsim.agents.gtrs_dense_vov"},
    ),
    (
        "i-JEPA fork, ego MLP",
        2,
        IJEPA.format(nodes=2, agent="ego_status_mlp_agent"),
        {"dataloader.params.num_workers": 2},
    ),
    (
        "i-JEPA fork, ego MLP on a tenth",
        1,
        IJEPA.format(nodes=1, agent="ego_status_mlp_agent")
        + " trainer.params.limit_train_batches=0.1",
        {"trainer.params.limit_train_batches": 0.1},
    ),
    (
        "i-JEPA fork, I-JEPA and MLP",
        4,
        IJEPA.format(nodes=4, agent="ijepa_planning_agent"),
        {"agent.learning_rate": 1e-4},
    ),
    (
        "i-JEPA fork, TransFuser",
        2,
        IJEPA.format(nodes=2, agent="transfuser_agent")
        + " trainer.params.strategy=ddp_find_unused_parameters_true agent.config.backbone=ijepa",
        {"agent.config.backbone": "ijepa"},
    ),
    (
        "i-JEPA fork, Hydra-MDP",
        4,
        IJEPA.format(nodes=4, agent="hydra_mdp_v8192_w_ep")
        + " ~trainer.params.strategy trainer.params.precision=16-mixed",
        {"trainer.params.strategy": "ddp"},
    ),
    (
        "all the keys that NAVSIM's caching and scoring read",
        1,
        "agent=transfuser_agent verbose=true logger_level=debug gpu=false max_number_of_workers=8 "
        "experiment_uid=1 date_format=%Y distributed_timeout_seconds=60 traffic_agents=reactive "
        "proposal_sampling.num_poses=8 synthetic_sensor_path=/x synthetic_scenes_path=/x "
        "sensor_blobs_path=/x original_sensor_path=/x navsim_log_path=/x metric_cache_path=/x "
        "train_test_split.scene_filter.frame_interval=1 "
        "train_test_split.scene_filter.log_names=[a] worker=ray_distributed "
        "worker.threads_per_node=8 ++worker.debug_mode=true "
        "traffic_agents_policy.reactive._target_=x",
        {"worker": "ray_distributed", "agent._target_": "navsim.agents.transfuser_agent"},
    ),
    (
        "Lightning's arguments",
        2,
        "agent=transfuser_agent trainer.params.devices=-1 +trainer.params.enable_progress_bar=true "
        "+trainer.params.use_distributed_sampler=false +trainer.params.logger=true "
        "+trainer.params.max_time=00:12:00:00 +trainer.params.max_steps=1000 "
        "+trainer.params.sync_batchnorm=true +dataloader.params.persistent_workers=true "
        "+dataloader.params.drop_last=true "
        "trainer.params.strategy={static_graph:true,find_unused_parameters:true}",
        {"trainer.params.devices": 4, "trainer.params.strategy.static_graph": True},
    ),
    ("all devices", 1, "agent=transfuser_agent trainer.params.devices=auto", {}),
]

REFUSED = [
    (
        "GTRS as it stands: features on the fly",
        3,
        GTRS.format(nodes=3, agent="gtrs_dense_vov") + " cache_path=null",
        ["cache_path is not set"],
    ),
    (
        "i-JEPA fork as it stands: features on the fly",
        4,
        IJEPA.format(nodes=4, agent="ijepa_planning_agent") + " cache_path=null",
        ["cache_path is not set"],
    ),
    (
        "what Convoy gives Lightning itself, each with its reason",
        1,
        "agent=transfuser_agent +trainer.params.logger=false +trainer.params.callbacks=[] "
        "+trainer.params.barebones=true +trainer.params.overfit_batches=4 "
        "+trainer.params.enable_checkpointing=false +dataloader.params.drop_last=false "
        "+dataloader.params.multiprocessing_context=spawn trainer.params.strategy=fsdp "
        "trainer.params.accelerator=auto +trainer.params.track_grad_norm=2",
        [
            "trainer.params.logger=False is not possible: Convoy writes TensorBoard",
            r"trainer.params.callbacks=\[\] is not possible",
            "trainer.params.barebones=True is not possible",
            "trainer.params.overfit_batches=4 is not possible",
            "trainer.params.enable_checkpointing=False is not possible",
            "dataloader.params.drop_last=False is not possible",
            "no parameter 'multiprocessing_context'",
            "trainer.params.strategy=fsdp is not ddp, ",
            "trainer.params.accelerator=auto is not gpu, cuda, cpu",
            "no parameter 'track_grad_norm'",
        ],
    ),
    (
        "other options of Hydra's",
        1,
        "agent=transfuser_agent --multirun",
        ["--multirun is not an option of a training"],
    ),
    (
        "Hydra's own settings",
        1,
        "agent=transfuser_agent hydra.run.dir=/tmp/x",
        ["hydra.run.dir=/tmp/x has no meaning here.*run_dir=/path"],
    ),
]


@pytest.mark.parametrize(
    ("nodes", "line", "expected"), [row[1:] for row in PORTED], ids=[row[0] for row in PORTED]
)
def test_a_command_line_composes(fork, nodes, line, expected):
    settings = config.load(shlex.split(line), Topology.planned(nodes, 4), fork)
    for key, value in expected.items():
        assert OmegaConf.select(settings.config, key) == value, key
    assert settings.config.trainer.params.num_nodes == nodes


@pytest.mark.parametrize(
    ("nodes", "line", "sentences"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_a_command_line_is_refused_with_one_sentence_an_argument(fork, nodes, line, sentences):
    with pytest.raises(ConvoyError) as refused:
        config.load(shlex.split(line), Topology.planned(nodes, 4), fork)
    lines = str(refused.value).splitlines()
    assert len(lines) == len(sentences), refused.value
    for sentence in sentences:
        assert re.search(sentence, str(refused.value)), sentence


def test_the_commands_of_the_guide_to_forks_compose(fork, tmp_path, monkeypatch):
    """docs/forks.md's own last block, by bash, with a `convoy` that writes down its arguments."""
    guide = (Path(__file__).parents[2] / "docs/forks.md").read_text()
    trainings = re.findall(r"```sh\n(.*?)```", guide, re.DOTALL)[-1]
    monkeypatch.chdir(tmp_path)
    for shards in re.findall(r"cache_path=(\S+)", trainings):
        (Path(shards) / "log-0").mkdir(parents=True, exist_ok=True)
    subprocess.run(["bash", "-c", "convoy() { printf '%s\\n' \"$@\"; }\n" + trainings], check=True)
    started = {}
    for log in Path("forks").glob("*-0.log"):
        word, *arguments = log.read_text().splitlines()
        options = [argument for argument in arguments if argument.startswith("--")]
        assert word == "train" and {"--nodes=2", "--node-rank=0"} <= set(options)
        overrides = [argument for argument in arguments if argument not in options]
        loaded = config.load(overrides, Topology.planned(2, 2), fork).config
        assert loaded.trainer.params.max_epochs == 2 and loaded.trainer.params.accelerator == "cpu"
        started[loaded.agent._target_.rpartition(".")[2]] = loaded.global_batch
    assert started == {
        "diffusiondrive_agent": 16,
        "gtrs_diffusion_policy": 4,
        "gtrs_dense_vov": 4,
        "ijepa_planning_agent": 4,
    }


def test_arguments_without_an_effect_are_named(fork):
    line = "agent=transfuser_agent verbose=true worker=sequential train_test_split=navtrain"
    (note,) = config.load(line.split(), Topology.planned(1, 1), fork).notes
    assert note.endswith("not in a training: train_test_split, worker, verbose.")


def test_convoy_check_takes_hydras_flags_anywhere(fork, capsys):
    line = [
        "check",
        "--nodes",
        "2",
        "-cn",
        "competition_training",
        "~trainer.params.strategy",
        "agent=gtrs_dense_vov",
        "--processes-per-node=4",
    ]
    assert main(line) == 0
    assert "gtrs_dense_vov" in capsys.readouterr().out
    assert main(["check", "--config-name=nowhere", "agent=gtrs_dense_vov"]) == 1
    assert "no nowhere.yaml in" in capsys.readouterr().err


def test_without_a_tree_no_other_agent_is_trained_silently(ego_cache):
    with pytest.raises(ConvoyError, match="No agent is named, and NAVSIM's default, ego_status"):
        config.load([f"cache_path={ego_cache}"], Topology.planned(1, 1), None)


def test_a_configuration_outside_any_navsim_tree(ego_cache, tmp_path):
    """docs/training.md's example: a package of one's own, with its agents and a primary."""
    package = tmp_path / "my planner's"
    (package / "agent").mkdir(parents=True)
    (package / "agent/my_agent.yaml").write_text("_target_: my_planner.Agent\nlr: 0.1\n")
    (package / "my_training.yaml").write_text(
        "defaults:\n  - agent: my_agent\n  - _self_\n"
        "trainer: {params: {max_epochs: 3, accumulate_grad_batches: 2}}\nglobal_batch: 16\n"
    )
    here = Topology.planned(1, 4)
    cache = f"cache_path={ego_cache}"
    for words in (
        ["--config-dir", str(package), "agent=my_agent"],
        [f"hydra.searchpath=['file://{str(package)}']".replace("r's", "r\\'s"), "agent=my_agent"],
        ["-cn", "my_training", "-cd", str(package)],
    ):
        settings = config.load([*words, cache], here, None)
        assert settings.config.agent._target_ == "my_planner.Agent"
    assert settings.config.trainer.params.max_epochs == 3
    assert settings.config.trainer.params.accumulate_grad_batches == 2
    assert settings.batches.rank_batch == 2


def test_a_package_on_the_python_path(ego_cache, tmp_path, monkeypatch):
    package = tmp_path / "my_planner_conf"
    (package / "agent").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "agent/my_agent.yaml").write_text("_target_: my_planner.Agent\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    words = [
        "hydra.searchpath=[pkg://my_planner_conf]",
        "agent=my_agent",
        f"cache_path={ego_cache}",
    ]
    assert config.load(words, Topology.planned(1, 1), None).config.agent._target_
    with pytest.raises(ConvoyError, match="no package nowhere can be imported"):
        config.load(["hydra.searchpath=[pkg://nowhere]"], Topology.planned(1, 1), None)


def test_a_typed_overlap_of_the_splits_is_refused_a_published_one_is_said(fork):
    named = ["--config-name", "competition_training"]
    notes = config.load(named, Topology.planned(1, 4), fork).notes
    assert any("names 1 logs that are trained on and validated on" in note for note in notes)
    with pytest.raises(ConvoyError, match="share 1 logs"):
        config.load([*named, "val_logs=[log-1]"], Topology.planned(1, 4), fork)
