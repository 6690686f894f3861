import pytest

from convoy.errors import ConvoyError
from convoy.topology import (
    Agreement,
    Launch,
    Topology,
    agreed_launch,
    expand_hosts,
    least_nodes,
    visible_gpus,
)

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "77_0",
    "TORCHELASTIC_RESTART_COUNT": "1",
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
}


def test_torchrun_gives_ranks_and_node_count():
    topology = Topology.from_environment(TORCHRUN | {"SLURM_JOB_ID": "77"})
    assert (topology.rank, topology.local_rank, topology.node_rank) == (5, 1, 1)
    assert (topology.world_size, topology.local_world_size, topology.num_nodes) == (8, 4, 2)
    assert (topology.launcher, topology.start, topology.job_id) == ("torchrun", "77_0", "77")
    assert topology.restart_count == 1
    assert not topology.is_rank_zero


def test_alone_without_variables():
    topology = Topology.from_environment({})
    assert (topology.rank, topology.world_size, topology.num_nodes) == (0, 1, 1)
    assert topology.launcher == "alone"
    assert topology.job_id is None


def test_inside_an_allocation_without_srun_is_alone():
    topology = Topology.from_environment(
        {"SLURM_JOB_ID": "9", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
    )
    assert topology.world_size == 1


def test_several_srun_tasks_without_torchrun_are_refused():
    with pytest.raises(ConvoyError, match="8 tasks.*--ntasks-per-node=1"):
        Topology.from_environment(
            {"SLURM_JOB_ID": "9", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}
        )


def test_world_size_without_torchrun_is_refused():
    with pytest.raises(ConvoyError, match="WORLD_SIZE is 4"):
        Topology.from_environment({"WORLD_SIZE": "4"})


def test_array_tasks_have_names_of_their_own():
    environment = {"SLURM_JOB_ID": "103", "SLURM_ARRAY_JOB_ID": "100", "SLURM_ARRAY_TASK_ID": "3"}
    assert Topology.from_environment(environment).job_id == "100_3"


def test_uneven_nodes_are_refused():
    with pytest.raises(ConvoyError, match="2 nodes x 4 processes are not the world size 7"):
        Topology.from_environment(TORCHRUN | {"WORLD_SIZE": "7"})


STEP = {
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "gl[001,006]",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "1",
    "SLURMD_NODENAME": "gl006",
    "SLURM_GPUS_ON_NODE": "4",
}


JOB = STEP | {
    "SLURM_JOB_NODELIST": "gl[001,006]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_RESTART_COUNT": "3",
}


@pytest.mark.parametrize(("visible", "ranks"), [("", 1), ("0", 1), ("0,1,2", 3), ("-1", 1)])
def test_a_launch_alone_has_a_rank_per_gpu_and_at_least_one(visible, ranks):
    launch = Launch.from_environment({"CUDA_VISIBLE_DEVICES": visible})
    assert (launch.kind, launch.nodes, launch.endpoint, launch.is_host) == ("alone", 1, None, True)
    assert launch.where.startswith("alone on ") and launch.where.endswith(f": {ranks} rank(s)")
    assert launch.processes == ranks


def test_gpus_are_counted_by_the_driver_s_tool(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA L40S'; echo 'GPU 1: NVIDIA L40S'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus({}) == 2


def test_a_launch_under_srun_reads_the_step():
    launch = Launch.from_environment(STEP)
    assert (launch.kind, launch.nodes, launch.processes, launch.start) == ("srun", 2, 4, "12.0-0")
    assert (launch.endpoint, launch.is_host, launch.peer) == ("gl001", False, "gl001")
    first = Launch.from_environment(STEP | {"SLURM_NODEID": "0", "SLURMD_NODENAME": "gl001"})
    assert (first.is_host, first.peer, first.start) == (True, "gl006", launch.start)


def test_a_job_takes_all_of_its_nodes_whatever_the_step():
    """The rendezvous step has one task on the first node."""
    one = JOB | {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1"}
    first = Launch.of_job(one | {"SLURMD_NODENAME": "gl001"})
    assert (first.nodes, first.hosts, first.is_host) == (2, ("gl001", "gl006"), True)
    assert (first.start, first.peer, first.endpoint) == ("12-3", "gl006", None)
    agreement = Agreement("12-3", "10.0.0.1:61000", "/scratch/run", "10.0.0.1:61001", "/data")
    second = agreed_launch(JOB, agreement)
    assert (second.is_host, second.peer, second.endpoint) == (False, "gl001", "10.0.0.1:61000")
    assert second.start == first.start and second.job == "12"


def test_a_start_without_a_lost_node_has_the_others():
    launch = Launch.of_job(JOB | {"CONVOY_HOSTS": "gl006,gl011"})
    assert (launch.nodes, launch.hosts, launch.is_host) == (2, ("gl006", "gl011"), True)
    assert launch.where == "SLURM job 12: 2 node(s) x 4 rank(s)"


def test_on_how_few_nodes_a_job_may_continue():
    assert least_nodes(JOB) is None
    assert least_nodes(JOB | {"CONVOY_MIN_NODES": "2", "SLURM_JOB_NUM_NODES": "2"}) == 2
    for wrong in ("0", "two", "3"):
        with pytest.raises(ConvoyError, match=f"CONVOY_MIN_NODES={wrong}"):
            least_nodes(JOB | {"CONVOY_MIN_NODES": wrong, "SLURM_JOB_NUM_NODES": "2"})


def test_a_job_without_gpus_is_refused():
    with pytest.raises(ConvoyError, match="job 12 has no GPUs.*CONVOY_PROCESSES_PER_NODE"):
        Launch.of_job({**JOB, "SLURM_GPUS_ON_NODE": ""})
    assert Launch.of_job(JOB | {"CONVOY_PROCESSES_PER_NODE": "3"}).processes == 3


def test_several_nodes_by_hand():
    given = {"CONVOY_PROCESSES_PER_NODE": "2"}
    first, second = (Launch.by_hand(given, 2, rank, "[fd00::1]:29400", "a") for rank in (0, 1))
    assert (first.is_host, second.is_host) == (True, False)
    assert first.peer == second.peer == "fd00::1" and first.processes == 2


@pytest.mark.parametrize("path", ["/plain", "/with space", "/new\nline LD_PRELOAD=x", "/quo'te\""])
def test_an_agreement_is_one_line_whatever_is_in_a_path(path):
    agreement = Agreement("12-0", "10.0.0.1:61000", path, "10.0.0.1:61001", path)
    assert "\n" not in agreement.to_text()
    assert Agreement.from_text(agreement.to_text()) == agreement


@pytest.mark.parametrize(
    "text",
    [
        "",
        "welcome to the cluster",
        "[]",
        "{}",
        '{"start": "1", "endpoint": "a:1"}',
        '{"start": "1", "endpoint": "a:1", "run_dir": 5}',
        '{"start": "1", "endpoint": "a:1", "run_dir": "/r", "LD_PRELOAD": "x"}',
    ],
)
def test_anything_else_is_not_an_agreement(text):
    with pytest.raises(ConvoyError, match="What the first node agreed on cannot be read"):
        Agreement.from_text(text)


def test_several_tasks_on_a_node_are_refused():
    with pytest.raises(ConvoyError, match="4 tasks on 2 node.*--ntasks-per-node=1"):
        Launch.from_environment(STEP | {"SLURM_STEP_NUM_TASKS": "4"})


def test_in_a_job_without_srun_the_other_nodes_are_mentioned():
    job = {"SLURM_JOB_ID": "12", "SLURM_JOB_NUM_NODES": "4", "SLURM_GPUS_ON_NODE": "4"}
    launch = Launch.from_environment(job)
    assert launch.nodes == 1 and launch.processes == 4
    assert "SLURM job 12, alone on" in launch.where and "all 4 nodes" in launch.where


@pytest.mark.parametrize("value", ["0", "two", "-1"])
def test_a_setting_that_is_not_a_number(value):
    with pytest.raises(ConvoyError, match=f"CONVOY_PROCESSES_PER_NODE={value} must be a whole"):
        Launch.from_environment({"CONVOY_PROCESSES_PER_NODE": value})


@pytest.mark.parametrize(
    ("names", "hosts"),
    [
        ("gl001", ["gl001"]),
        ("gl[001,006]", ["gl001", "gl006"]),
        ("gl[008-011],h1", ["gl008", "gl009", "gl010", "gl011", "h1"]),
        ("r[1-2]n[3,5]x", ["r1n3x", "r1n5x", "r2n3x", "r2n5x"]),
        ("a-b,c-1", ["a-b", "c-1"]),
    ],
)
def test_slurms_lists_of_hosts(names, hosts):
    assert expand_hosts(names) == hosts
