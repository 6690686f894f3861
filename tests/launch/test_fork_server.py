"""Real processes: a node's process, the one that imports for its ranks, and the ranks."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from convoy.launch import fork_server
from convoy.launch.fork_server import ForkServer
from convoy.launch.signals import children, passed_on
from convoy.launch.survivors import is_alive

SRC = Path(__file__).parents[2] / "src"

# In place of convoy.launch.rank: imports nothing, then does as its arguments say.
PROGRAM = """
import os, sys, time
from convoy.launch import fork_server
fork_server.RANK = [sys.executable, "-u", __file__]
fork_server._tell_lightning = lambda environment: None
def look(overrides):
    print("imports", *overrides, flush=True)
    os.environ["SET_AT_IMPORT"] = "/certificates"
    time.sleep(float(os.environ.get("SLOW", "0")))
    return os.environ.get("OBSTACLE")
fork_server._import_for_ranks = look
fork_server._cuda_starts = lambda: (
    "SET_AT_IMPORT" in os.environ and "CUDA_FAILS" not in os.environ  # the driver reads some
)
given, forked = sys.argv[1:], False
if given[0].startswith(fork_server.FLAG):
    number = int(given[0].removeprefix(fork_server.FLAG))
    given, forked = fork_server.become_rank(number, given[2:]), True
    assert sys.argv[1:] == given
from convoy.run.stop_request import follow_parent
follow_parent()
folder, code = given
print(f"rank {os.environ['RANK']}", file=sys.stderr)
leader = os.getsid(0) == os.getpid()
certificates = os.environ.get("SET_AT_IMPORT", "none")
text = f"{os.getpid()} {os.getppid()} {leader} {forked} {certificates}"
assert "PYTORCH_NVML_BASED_CUDA_CHECK" not in os.environ
with open(f"{folder}/{os.environ['RANK']}.tmp", "w") as file:
    file.write(text)
os.rename(file.name, file.name.removesuffix(".tmp"))
if code == "waits":
    time.sleep(300)
if code == "is asked":
    from convoy.run.stop_request import StopRequest
    time.sleep(0.5)  # the signal comes here
    code = StopRequest().install().number
os._exit(int(code))
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    program = tmp_path / "rank.py"
    program.write_text(PROGRAM)
    monkeypatch.setattr(fork_server, "RANK", [sys.executable, "-u", str(program)])
    monkeypatch.setenv("PYTHONPATH", str(SRC))
    # The server sets it for itself alone; Lightning may have set it in this process.
    monkeypatch.delenv("PYTORCH_NVML_BASED_CUDA_CHECK", raising=False)
    return lambda code: (*fork_server.RANK, str(tmp_path), code)


def fork(server: ForkServer, command: tuple[str, ...], rank: int) -> fork_server.Child:
    child = server._fork(command, os.environ | {"RANK": str(rank)})
    assert child is not None
    return child


def said(folder: Path, rank: int) -> list[str]:
    wait_for((folder / str(rank)).exists)
    return (folder / str(rank)).read_text().split()


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ranks_are_this_process_s_children_and_lead_sessions_of_their_own(command, tmp_path, capfd):
    server = ForkServer(["agent=a"], 3)
    ends = (command("0"), command("3"), command("waits"))
    ranks = [fork(server, given, rank) for rank, given in enumerate(ends)]
    assert not is_alive(server.pid)
    for rank, child in enumerate(ranks):
        started = [str(child.pid), str(os.getpid()), "True", "True", "/certificates"]
        assert said(tmp_path, rank) == started
    assert [child.wait(60) for child in ranks[:2]] == [0, 3]
    assert ranks[2].poll() is None and ranks[2].pid in children(os.getpid())
    with pytest.raises(subprocess.TimeoutExpired):
        ranks[2].wait(0.05)
    os.killpg(ranks[2].pid, signal.SIGKILL)
    assert ranks[2].wait() == -signal.SIGKILL
    out, err = capfd.readouterr()
    assert out == "imports agent=a\n"
    assert all(f"rank {rank}" in err for rank in range(3))


def test_a_stop_before_a_rank_listens_is_heard(command, tmp_path):
    server = ForkServer([], 1)
    try:
        child = fork(server, command("is asked"), 0)
        os.kill(child.pid, signal.SIGUSR1)
        assert child.wait(timeout=60) == signal.SIGUSR1
    finally:
        server.close()


@pytest.mark.parametrize(
    ("variable", "said_of_it"),
    [
        ("OBSTACLE", "each rank imports for itself: an import starts CUDA"),
        ("CUDA_FAILS", "this rank imports for itself: CUDA does not start"),
    ],
)
def test_a_rank_that_cannot_be_forked_is_a_program_of_its_own(
    command, tmp_path, capfd, monkeypatch, variable, said_of_it
):
    monkeypatch.setenv(variable, "an import starts CUDA")
    server = ForkServer([], 1)
    rank = fork(server, command("4"), 0)
    assert rank.wait(60) == 4
    assert said(tmp_path, 0) == [str(rank.pid), str(os.getpid()), "True", "False", "none"]
    assert said_of_it in capfd.readouterr().err


def test_a_server_that_has_died_leaves_the_ranks_to_torchrun(command, capfd):
    server = ForkServer([], 2)
    os.kill(server.pid, signal.SIGKILL)
    assert server._fork(command("0"), os.environ) is None
    assert "the process that imports for them has ended" in capfd.readouterr().err
    assert server._fork(command("0"), os.environ) is None
    server.close()
    assert capfd.readouterr().err == ""


def test_a_stop_before_there_are_ranks_does_not_wait_for_the_import(command, monkeypatch):
    from torch.distributed.elastic.multiprocessing.api import SignalException

    monkeypatch.setenv("SLOW", "300")
    others = children(os.getpid())  # of this test process, from before
    server = ForkServer([], 1)
    timer = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -TERM {os.getpid()}"])
    heard = []
    helpers = (server.pid, timer.pid, *others)
    with pytest.raises(SignalException), passed_on(heard.append, helpers):
        fork(server, command("0"), 0)
    server.close()
    timer.wait()
    assert heard == [signal.SIGTERM] and not is_alive(server.pid)


def test_no_rank_starts_once_a_node_ends_because_of_another_one(command, monkeypatch, capfd):
    monkeypatch.setenv("SLOW", "300")
    server = ForkServer([], 1)
    threading.Timer(0.3, server.abandon).start()
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            server._fork(command("0"), os.environ)
        assert ended.value.code == 75
    server.close()
    assert not is_alive(server.pid) and not capfd.readouterr().err


def test_a_server_ends_with_the_node_s_process(command, tmp_path):
    program = (
        "import os, sys\n"
        "from convoy.launch import fork_server\n"
        f"fork_server.RANK = {fork_server.RANK!r}\n"
        "print(fork_server.ForkServer([], 1).pid, flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    pid = int(next(line for line in done.stdout.split() if line.isdigit()))
    wait_for(lambda: not is_alive(pid))


# Reads of the variables that differ between ranks, while what a rank needs is imported.
READS = """
import os, pathlib, sys, threading, traceback
from convoy.launch import fork_server
kind = type(os.environ)
get = kind.__getitem__
def noticed(self, key):
    if key in ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK") or "MASTER_" in key:
        names = [frame.f_globals["__name__"] for frame, _ in traceback.walk_stack(None)]
        print(next(name for name in names if name.partition(".")[0] not in ("os", "__main__",
            "_collections_abc")))
    return get(self, key)
kind.__getitem__ = noticed
obstacle = fork_server._import_for_ranks(["agent=bev_fusion_agent"])
assert obstacle is None, obstacle
assert "convoy.training.run" in sys.modules
assert "torch._inductor.compile_fx" in sys.modules  # a GPU's ranks compile
assert os.environ["CUDA_CACHE_PATH"] == os.environ["NAVSIM_EXP_ROOT"] + "/compile-cache/cuda"
assert threading.active_count() == 1
assert not pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text()
kind.__getitem__ = get
by_torchrun = {"TORCHELASTIC_RUN_ID": "a", "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}
by_torchrun |= {"LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2"}
fork_server._tell_lightning(by_torchrun | {"TORCHELASTIC_RESTART_COUNT": "0"})
from pytorch_lightning.utilities.rank_zero import rank_zero_only
assert rank_zero_only.rank == 5
"""


def test_nothing_but_lightning_asks_for_its_rank_when_it_is_imported(tmp_path):
    """Else forked ranks would all take themselves for the same one."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "TORCHELASTIC_")) and "RANK" not in name
    }
    done = subprocess.run(
        [sys.executable, "-c", READS],
        env=environment | {"PYTHONPATH": str(SRC), "NAVSIM_EXP_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    readers = set(done.stdout.split())
    assert readers <= {"lightning_fabric.utilities.rank_zero", "torchmetrics.utilities.prints"}


def test_a_configuration_that_does_not_compose_is_left_to_the_ranks():
    assert fork_server._import_for_ranks(["agent=no_such_agent"]) == "ConvoyError while importing"


def test_what_is_asked_of_several_ranks_is_no_obstacle(tmp_path):
    """A process of its own imports, so that nothing of it stays in this one."""
    asked = ["speed_switches.graph=true", "speed_switches.peer_copies=true"]
    program = (
        "from convoy.launch import fork_server\n"
        f"print(fork_server._import_for_ranks(['agent=bev_fusion_agent', *{asked}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(SRC), "NAVSIM_EXP_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["None"], done.stderr


def test_cuda_that_has_not_been_started_is_told_apart_from_one_that_has(cuda):
    program = (
        "import torch\n"
        "from convoy.launch.fork_server import _cuda_is_up\n"
        "import ctypes; ctypes.CDLL('libcuda.so.1')\n"
        "before = _cuda_is_up()\n"
        "torch.cuda.init()\n"
        "print(before, _cuda_is_up())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    assert done.stdout.split() == [b"False", b"True"]
