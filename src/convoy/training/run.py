"""One training run on one rank: from a checked configuration to results."""

import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from convoy.agents.calls import AgentCalls
from convoy.agents.contract import TrainableAgent
from convoy.config import Settings, differences
from convoy.data.cache import Builders, skipped_samples
from convoy.data.module import DataModule
from convoy.data.shard_split import ShardSplit
from convoy.data.source import Split, open_source
from convoy.data.split import choose_logs
from convoy.errors import ConvoyError
from convoy.health.link import Link
from convoy.navsim.agents import build_agent
from convoy.run.atomic import write_text
from convoy.run.kernel_cache import kernel_cache
from convoy.run.layout import RunDirectory
from convoy.run.progress import ProgressFile
from convoy.run.stop_request import StopRequest
from convoy.topology import Topology
from convoy.training import flops, logs
from convoy.training.all_reduce import check_all_reduce, link_of, say_all_reduce
from convoy.training.checkpoint import CheckpointFolder, CheckpointWriter
from convoy.training.lean_hooks import lean_hooks
from convoy.training.manifest import add_cost, complete_manifest, has_cost, write_manifest
from convoy.training.memory import MemoryForecast, explain
from convoy.training.metrics import TrajectoryKeys
from convoy.training.module import AgentModule, NavsimMetricNames
from convoy.training.pace import Pace
from convoy.training.process_group import HostGroup, process_group
from convoy.training.profiling import StepTrace
from convoy.training.progress import ProgressReport
from convoy.training.randomness import Randomness
from convoy.training.refusals import explained
from convoy.training.rehearsal import SAMPLES, Rehearsal, rehearse
from convoy.training.report import write_report
from convoy.training.resume import choose_checkpoint
from convoy.training.safe_points import SafePoints
from convoy.training.speed.acceleration import Acceleration
from convoy.training.speed.peer_mean import reason_against_copies
from convoy.training.speed.recipe import Recipe
from convoy.training.speed.recipe import choose as choose_recipe
from convoy.training.speed.whole_step import EAGER_STEPS
from convoy.training.start import Start, started
from convoy.training.start_up import StartUp
from convoy.training.timers import StepTimers
from convoy.training.trainer import build_trainer, device, require_accelerator
from convoy.training.watchdog import Watchdog
from convoy.training.weights import load_weights

logger = logging.getLogger("convoy")


@dataclass(frozen=True)
class Data:
    """Both splits, found once by rank 0 for all."""

    train: Split
    val: Split


def train(
    settings: Settings,
    topology: Topology,
    request: StopRequest,
    failed: Callable[[str], None] = lambda message: None,
) -> None:
    """Train, and leave the results in the run directory.

    Raises ConvoyError for what the user can fix, StoppedEarly after `request`. A run that gets
    stuck is ended from a thread, after `failed` was called with the reason.
    """
    config = settings.config
    start_up = StartUp()
    start_up.reached("imports")
    logs.speak_on_rank_zero(topology)
    require_accelerator(config.trainer.params.accelerator, topology)
    if config.trainer.params.deterministic:  # Lightning sets it when cuBLAS has read it
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    timeout = timedelta(minutes=config.distributed_timeout_minutes)
    with process_group(topology, config.trainer.params.accelerator, timeout) as host_group:
        _require_one_configuration(config, topology, host_group)
        with started(config, topology, host_group) as start:
            _log_start(start.run, settings, topology)
            link = _check_all_reduce(start, host_group, config, failed)
            start_up.reached("ranks")
            watchdog = Watchdog(
                start.run, topology, request, config.watchdog_minutes, start.record_any, failed
            )
            try:
                _train(settings, start, host_group, request, watchdog, start_up, link)
            except Exception as error:
                out_of_memory = explain(error, config, topology)
                if out_of_memory is None:
                    raise
                raise out_of_memory from error


def _train(
    settings: Settings,
    start: Start,
    host_group: HostGroup,
    request: StopRequest,
    watchdog: Watchdog,
    start_up: StartUp,
    link: Link | None,
) -> None:
    config, run, topology = settings.config, start.run, start.topology
    logs.write_to(run, topology)
    for note in settings.notes:
        logger.info(note)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    agent = build_agent(config.agent)
    load_weights(agent, config.agent)
    start_up.reached("agent")
    builders = trained_builders(agent)
    calls = AgentCalls(agent)
    data = host_group.on_rank_zero(lambda: _find_data(settings, builders))
    _require_known_tokens(calls, config, data)
    if topology.is_rank_zero:
        split = {"train": data.train.samples, "validation": data.val.samples}
        write_manifest(run, config, split)
    start_up.reached("data")
    recipe = choose_recipe(config, topology.world_size)
    carries = None if link is None else link.gb_per_s
    if recipe["peer_copies"]:
        against = reason_against_copies(topology, device(config, topology), carries, host_group)
        if against is not None:
            recipe.turn_off("peer_copies", against)
    speed = Acceleration(recipe, agent, topology.world_size, calls.wants_tokens, carries)
    datamodule = DataModule(
        data.train,
        data.val,
        builders,
        config,
        settings.batches,
        topology,
        run,
        to_device_ahead=recipe["prefetch"],
    )
    keys = TrajectoryKeys(config.metrics.prediction, config.metrics.target)
    rehearsal = _rehearse(agent, calls, datamodule, keys, device(config, topology))
    _count(agent, calls, datamodule, start, host_group)
    start_up.reached("dry pass")
    module = AgentModule(agent, calls, rehearsal, keys, run, host_group, speed)
    progress = ProgressReport(settings.batches, host_group, ProgressFile(run))
    folder = CheckpointFolder(run)
    writer = CheckpointWriter(guard=start.require_owned)
    agents_own = agent.get_training_callbacks()
    # Convoy's own callbacks know that a step may be one piece.
    speed.look_at(agents_own)
    on_gpu = device(config, topology).type == "cuda"
    timers = StepTimers(speed.steps_itself, on_gpu)
    start_up.tell(start.record, EAGER_STEPS + 1 if speed.steps_itself else 1)
    callbacks = [
        Randomness(config.seed, settings.batches, topology),
        NavsimMetricNames(),
        *agents_own,
        progress,
        Pace(run, topology, timers),
        watchdog,
        MemoryForecast(topology, start.record_any),
        SafePoints(
            folder,
            writer,
            host_group,
            request,
            start.record,
            rehearsal.monitor,
            config.checkpoint.every_minutes,
            config.checkpoint.keep,
            config.score.every_epochs,
        ),
    ]
    callbacks += [speed, start_up]
    if config.profile.steps:
        callbacks.append(StepTrace(run, timers, config.profile.warm, config.profile.steps))
    trainer = build_trainer(settings, topology, run, callbacks, writer, speed, timers)
    results: dict[str, Any] = {"run_dir": str(run.root), "world_size": topology.world_size}
    resume = choose_checkpoint(folder, host_group)
    if config.validate_first and resume is None:
        trainer.validate(module, datamodule=datamodule, verbose=False)
        results |= _metrics(module, "_before")
        module.validation = {}
    if resume is not None:
        logger.info("going on from %s", resume)
        start.record("resume", file=resume.name)
    _record_speed(recipe, run, topology)
    with speed.applied(kernel_cache(config)), lean_hooks(trainer, module), explained():
        trainer.fit(module, datamodule=datamodule, ckpt_path=resume)
    _record_speed(recipe, run, topology)  # a switch may have been given up on the way
    if progress.steps == 0 and run.results.is_file():
        logger.info("finished before: results in %s", run.results)
        return
    results |= _metrics(module, "") | {"samples_per_s": _number(progress.samples_per_second)}
    results |= {"step": trainer.global_step, "validated_step": module.validated_step}
    if topology.is_rank_zero:
        _finish(run, results, config.data.skip_bad)
        complete_manifest(run)
        write_report(run, module.drawn)


def _record_speed(recipe: Recipe, run: RunDirectory, topology: Topology) -> None:
    if topology.is_rank_zero:
        write_text(run.speed, json.dumps(recipe.record(), indent=1) + "\n")


def _check_all_reduce(
    start: Start, host_group: HostGroup, config: DictConfig, failed: Callable[[str], None]
) -> Link | None:
    """The link between the ranks, as rank 0 knows it; None where there is none or it is unknown."""
    topology = start.topology
    measured = check_all_reduce(topology, host_group, device(config, topology), failed)
    if measured is None:
        return None
    link = host_group.on_rank_zero(lambda: link_of(topology, device(config, topology), os.environ))
    if topology.is_rank_zero:
        say_all_reduce(measured, link)
        carries = None if link is None else {"name": link.name, "gb_per_s": link.gb_per_s}
        start.record("all_reduce", **asdict(measured), link=carries)
    return link


def _require_one_configuration(
    config: DictConfig, topology: Topology, host_group: HostGroup
) -> None:
    entries = host_group.gather((topology.host, OmegaConf.to_container(config)))
    for rank, (host, other) in enumerate(entries):
        changed = differences(DictConfig(entries[0][1]), DictConfig(other))
        if changed:
            shown = "; ".join(
                f"{key}: {first!r} and {own!r}" for key, (first, own) in list(changed.items())[:4]
            )
            raise ConvoyError(
                f"The configuration differs between rank 0 on {entries[0][0]} and rank {rank} on "
                f"{host}: {shown}. Start every node with the same arguments."
            )


def _log_start(run: RunDirectory, settings: Settings, topology: Topology) -> None:
    batches = settings.batches
    logger.info(
        "%s: %d node(s) x %d process(es), global batch %d = %d ranks x %d samples x %d "
        "accumulation",
        run.root,
        topology.num_nodes,
        topology.local_world_size,
        batches.global_batch,
        batches.world_size,
        batches.rank_batch,
        batches.accumulation,
    )


def trained_builders(agent: object) -> Builders:
    """Those of an agent that can be trained; raises ConvoyError for another."""
    if not isinstance(agent, TrainableAgent):
        lacking = [
            name
            for name in dir(TrainableAgent)
            if not name.startswith("_") and not hasattr(agent, name)
        ]
        raise ConvoyError(
            f"{type(agent).__name__} cannot be trained: it has no {', '.join(lacking)}."
        )
    try:
        return Builders.of(agent)
    except NotImplementedError as error:
        raise ConvoyError(f"{type(agent).__name__} cannot be trained: {error}") from error


def _find_data(settings: Settings, builders: Builders) -> Data:
    """Choose the logs and list their samples, on rank 0 for all ranks."""
    source = open_source(settings.config)
    chosen = choose_logs(settings.config, source.logs())
    data = Data(
        source.split("train", chosen.train, builders),
        source.split("validation", chosen.val, builders),
    )
    logger.info(
        "%d training samples of %d logs, %d validation samples of %d logs (%s)",
        len(data.train.samples),
        len(data.train.logs),
        len(data.val.samples),
        len(data.val.logs),
        chosen.reason,
    )
    return data


def _rehearse(
    agent: Any,
    calls: AgentCalls,
    datamodule: DataModule,
    keys: TrajectoryKeys,
    device: torch.device,
) -> Rehearsal:
    """The dry pass, where the training will be; every rank takes the same samples."""
    agent.to(device)
    batch, tokens = datamodule.first_samples(SAMPLES, device)
    rehearsal = rehearse(agent, calls, batch, tokens, keys)
    if rehearsal.note is not None:
        logger.info("best.ckpt is chosen by val/loss: %s", rehearsal.note)
    return rehearsal


def _count(
    agent: Any, calls: AgentCalls, datamodule: DataModule, start: Start, host_group: HostGroup
) -> None:
    """What a sample costs, for `convoy plan`; at the first start only. All ranks count, for a loss
    may exchange something between them."""
    if host_group.rank_zero_says(has_cost(start.run)):
        return
    where = next(agent.parameters()).device
    counted = flops.count(agent, calls, *datamodule.first_samples(SAMPLES, where))
    if counted is not None and start.topology.is_rank_zero:
        add_cost(start.run, counted)


def _require_known_tokens(calls: AgentCalls, config: DictConfig, data: Data) -> None:
    """A sample that was replaced by its neighbour would be taken for another one."""
    if calls.wants_tokens and config.data.skip_bad and not isinstance(data.train, ShardSplit):
        raise ConvoyError(
            "The agent's compute_loss asks for tokens, and data.skip_bad=true replaces samples of "
            "a gzip cache by others under their tokens. Leave data.skip_bad out, or pack the cache "
            f"without them: convoy prepare DIR --from-cache {config.cache_path}"
        )


def _metrics(module: AgentModule, suffix: str) -> dict[str, float | None]:
    """Means of the last validation as `ade<suffix>` and so on; the constant-velocity figures need
    no suffix."""
    return {
        name + ("" if "constant_velocity" in name else suffix): _number(mean)
        for name, mean in module.validation.items()
    }


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def _finish(run: RunDirectory, results: dict[str, Any], skip_bad: bool) -> None:
    if skip_bad:
        skipped = skipped_samples(run.skipped_samples)
        results["skipped_samples"] = len(skipped)
        logger.info(
            "%d unreadable samples were replaced%s",
            len(skipped),
            f", listed in {run.skipped_samples}" if skipped else "",
        )
    step, validated = results["step"], results["validated_step"]
    if validated is None:
        logger.info("no validation: results have no figures of the last weights, step %d", step)
    elif validated != step:
        logger.info(
            "the figures are those of step %d; the last weights are of step %d", validated, step
        )
    try:
        write_text(run.results, json.dumps(results, indent=1) + "\n")
    except OSError as error:
        raise ConvoyError(
            f"The training is done and its checkpoints are whole, but {run.results} cannot be "
            f"written: {error.strerror}. Free some space and start the same command again."
        ) from error
    logger.info("finished: results in %s", run.results)
