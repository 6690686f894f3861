import contextlib
import json
import os
import threading

import pytest

from convoy.errors import ConvoyError, ExitCode
from convoy.launch import node, verdict
from convoy.launch.peers import LostNode
from convoy.run import node_state
from convoy.run.layout import RunDirectory
from convoy.topology import Agreement, Launch

CPU = ("trainer.params.accelerator=cpu", "trainer.params.precision=32-true")


@pytest.fixture
def alone() -> Launch:
    return Launch.from_environment({"CUDA_VISIBLE_DEVICES": "0,1"})


@pytest.fixture
def settings(ego_cache, foreign_tree, tmp_path):
    return ["agent=foreign_agent", f"cache_path={ego_cache}", f"run_dir={tmp_path / 'run'}", *CPU]


def test_a_mistake_is_found_before_any_rank_starts(settings, alone):
    with pytest.raises(ConvoyError, match="global_batch=3 cannot be split over world size 2"):
        node.train_on_node(alone, [*settings, "global_batch=3"])


def test_the_other_tasks_of_a_step_leave_the_message_to_the_first(settings, alone, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert node.train_on_node(alone, [*settings, "global_batch=3"]) == 1


def test_without_a_run_dir_the_start_names_it(settings, alone, monkeypatch, tmp_path):
    monkeypatch.setenv("NAVSIM_EXP_ROOT", str(tmp_path))
    unnamed = [word for word in settings if not word.startswith("run_dir=")]
    run_dir, _ = node.check(unnamed, alone)
    assert run_dir == tmp_path / "train" / alone.start


def test_the_beginning_of_a_start_is_recorded_and_forgets_failures_of_its_name(
    settings, alone, tmp_path
):
    run = RunDirectory(tmp_path / "run")
    run.failure(alone.start, 0).parent.mkdir(parents=True)
    run.failure(alone.start, 0).touch()
    node.begin(run, alone, settings)
    assert not run.failures(alone.start).exists()
    (line,) = run.launches.read_text().splitlines()
    assert json.loads(line)["start"] == alone.start


def test_a_node_alone_meets_itself_and_chooses_no_interface(alone, capsys, monkeypatch):
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    assert node._choose_address(alone) == "127.0.0.1"
    assert capsys.readouterr().out.startswith("launch: alone on ")
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_the_interface_on_the_route_is_chosen_and_said(capsys, monkeypatch):
    """Two nodes on this machine: the route to the other one is loopback."""
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    first, second = (Launch.by_hand({}, 2, rank, "127.0.0.1:29400", "a") for rank in (0, 1))
    assert node._choose_address(first) == "127.0.0.1"
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    assert "interface lo: 127.0.0.1 on lo is the route to 127.0.0.1" in capsys.readouterr().out
    assert node._choose_address(second) == "127.0.0.1"
    assert capsys.readouterr().out == ""  # the first node speaks for all


def test_torch_is_loaded_before_a_node_shows_signs_of_life(tmp_path, monkeypatch):
    """Its import holds up every other thread for as long as the file system takes."""
    order = []

    @contextlib.contextmanager
    def in_touch(*_):
        order.append("in touch")
        yield None

    monkeypatch.setattr(node, "load_torchrun", lambda: order.append("torch"))
    monkeypatch.setattr(node, "in_touch", in_touch)
    monkeypatch.setattr(node, "preflight", lambda *_: order.append("preflight") or {})
    monkeypatch.setattr(node, "run_torchrun", lambda *_: order.append("ranks"))
    launch = Launch("job", 1, 2, "here", "7-0", ("gl001",), "gl001")
    agreed = Agreement("7-0", "127.0.0.1:61000", str(tmp_path), "127.0.0.1:61001", str(tmp_path))
    assert node.train_on_node(launch, [], agreed) == 0
    assert order == ["torch", "in touch", "preflight", "ranks"]
    assert node_state.read(RunDirectory(tmp_path), "7-0")["gl001"].exit_code == 0


@pytest.mark.parametrize(
    ("problems", "code", "problem"),
    [({"gl006": ["no GPU"]}, 75, ""), ({"gl001": ["slow", "small"]}, 3, "slow; small")],
)
def test_an_unfit_node_stops_all_and_only_it_is_to_blame(
    tmp_path, monkeypatch, problems, code, problem
):
    launch = Launch("job", 1, 2, "here", "7-0", ("gl001",), "gl001")
    agreed = Agreement("7-0", "127.0.0.1:61000", str(tmp_path), "127.0.0.1:61001", str(tmp_path))
    monkeypatch.setattr(node, "preflight", lambda *_: problems)
    monkeypatch.setattr(node, "run_torchrun", lambda *_: pytest.fail("ranks started"))
    assert node.train_on_node(launch, [], agreed) == code
    state = node_state.read(RunDirectory(tmp_path), "7-0")["gl001"]
    assert (state.exit_code, state.problem) == (code, problem)


def test_a_node_that_does_not_come_is_left_in_the_run(tmp_path, monkeypatch):
    def preflight(*_):
        raise LostNode("gl006", "gl011")

    launch = Launch("job", 1, 2, "here", "7-0", ("gl001",), "gl001")
    agreed = Agreement("7-0", "127.0.0.1:61000", str(tmp_path), "127.0.0.1:61001", str(tmp_path))
    monkeypatch.setattr(node, "preflight", preflight)
    assert node.train_on_node(launch, [], agreed) == ExitCode.RESUMABLE
    assert node_state.lost(RunDirectory(tmp_path), "7-0") == ("gl006", "gl011")


def test_ranks_that_wait_for_those_of_a_failed_node_are_ended(alone, tmp_path, monkeypatch):
    """Not those that were asked to stop with it; but those that its watchdog found standing still,
    which end with the same exit code."""
    run = RunDirectory(tmp_path)
    part = node.Part(run, alone)
    ended = threading.Event()
    monkeypatch.setattr(node, "STOPPED", 0.05)
    monkeypatch.setattr(part, "_end", lambda *limits: ended.set())
    part._ended("gl006", ExitCode.FINISHED)
    part._ended("gl006", ExitCode.RESUMABLE)
    assert not ended.wait(0.3)
    stuck = verdict.Failure(1, "gl006", 0.0, ExitCode.RESUMABLE, "No step for 10 minutes: …", True)
    verdict.write(run, alone.start, stuck)
    part._ended("gl006", ExitCode.RESUMABLE)
    assert ended.wait(5)
    ended.clear()
    part._ended("gl006", ExitCode.FAILED)
    assert ended.wait(5)
