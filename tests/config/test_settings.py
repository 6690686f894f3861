import inspect
import typing

import pytest
from omegaconf import OmegaConf

from convoy import config
from convoy.config.settings import DDP, LOADER, OURS, SETTINGS, TRAINER
from convoy.errors import ConvoyError
from convoy.topology import Topology


def load(cache, *overrides):
    return config.load(
        [f"cache_path={cache}", "agent=bev_fusion_agent", *overrides], Topology.planned(1, 2), None
    )


def test_every_setting_has_its_kind():
    """A setting that is added to settings.yaml gets its row in config/settings.py."""
    settings = OmegaConf.load(config.CONF / "settings.yaml")
    plain = OmegaConf.to_container(settings, resolve=False)
    leaves = set(_leaves(plain))
    known = set(SETTINGS) | {f"dataloader.params.{name}" for name in LOADER}
    known |= {f"trainer.params.{name}" for name in TRAINER}
    assert leaves <= known


def _leaves(node, prefix=""):
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_the_defaults_are_of_their_kinds(ego_cache):
    load(ego_cache)


def test_lightnings_arguments_are_all_known():
    import convoy.navsim.torchvision_cpu  # noqa: F401

    # isort: split
    import pytorch_lightning as pl
    from lightning_fabric.plugins.precision import precision
    from torch.nn.parallel import DistributedDataParallel

    theirs = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
    assert theirs == TRAINER.keys() | OURS.keys()
    for name in theirs & OURS.keys():
        assert name not in TRAINER
    literals = [
        value
        for union in typing.get_args(precision._PRECISION_INPUT)
        for value in typing.get_args(union)
    ]
    assert len(literals) > 10
    for value in literals:
        assert TRAINER["precision"].holds(value), value
    assert DDP.keys() <= inspect.signature(DistributedDataParallel.__init__).parameters.keys()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=abc", "seed=abc is not a whole number from 0 to 4294967295"),
        ("seed=-1", "seed=-1 is not"),
        ("checkpoint.every_minutes=abc", "every_minutes=abc is not a number of at least 0"),
        ("data.val_fraction=-3", "val_fraction=-3 is not a number above 0 and below 1"),
        ("data.skip_bad=yes", "skip_bad=yes is not true or false"),
        ("trainer.params.precision=nonsense", "precision=nonsense is not 16, 32, 64"),
        ("dataloader.params.num_workers=-2", "num_workers=-2 is not a whole number of at least 0"),
        ("dataloader.params.batch_size=1.5", "batch_size=1.5 is not a whole number of at least 1"),
        ("trainer.params.limit_val_batches=1.5", "limit_val_batches=1.5 is not .* a share"),
        ("trainer.params.val_check_interval=0", "val_check_interval=0 is not"),
        ("trainer.params.gradient_clip_algorithm=abs", "gradient_clip_algorithm=abs is not norm"),
        ("+trainer.params.max_time=soon", "max_time=soon is not a time as DD:HH:MM:SS"),
        ("trainer.params.max_epochs=null,", "cannot be read"),
        ("trainer.params.strategy={static:true}", "DistributedDataParallel has no .*'static'"),
        (
            "trainer.params.strategy={static_graph:1}",
            "strategy.static_graph=1 is not true or false",
        ),
        ("train_logs=log-0", "train_logs=log-0 is not a list of names"),
        ("experiment_name=null", "experiment_name=null is not text"),
        ("agent.checkpoint_path=/gone", "no setting 'agent.checkpoint_path'"),
        ("+agent.checkpoint_path=/gone", "agent.checkpoint_path=/gone is not a file"),
    ],
)
def test_values_that_a_training_would_end_for(ego_cache, override, message):
    with pytest.raises(ConvoyError, match=message):
        load(ego_cache, override)


def test_all_mistakes_are_told_at_once(ego_cache):
    with pytest.raises(ConvoyError) as refused:
        load(ego_cache, "seed=abc", "data.val_fraction=2", "trainer.params.max_epochs=many")
    assert len(str(refused.value).splitlines()) == 3


@pytest.mark.parametrize(
    "override",
    [
        "trainer.params.limit_val_batches=0",
        "trainer.params.limit_train_batches=3",
        "trainer.params.gradient_clip_val=null",
        "trainer.params.precision=bf16",
        "trainer.params.precision=32",
        "+trainer.params.max_time={hours:12}",
        "trainer.params.max_epochs=-1",
        "trainer.params.fast_dev_run=true",
        "dataloader.params.prefetch_factor=null",
    ],
)
def test_values_that_are_possible(ego_cache, override):
    load(ego_cache, override)
