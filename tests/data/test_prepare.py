"""`convoy prepare` from a gzip cache: the real command, processes that are killed, tasks side by
side, bad input."""

import gzip
import json
import math
import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from convoy.commands.__main__ import main
from convoy.data.cache import Builders, CacheDataset, CacheSplit, collate, logs_in, scan
from convoy.data.prepare.plan import Unit, share
from convoy.data.prepare.tasks import Sign
from convoy.data.shard_loader import ShardLoader
from convoy.data.shard_reader import ShardReader
from convoy.data.shard_split import split_of
from convoy.data.shards import load_manifest
from convoy.topology import Task

EGO = Builders(("ego_status_feature",), ("trajectory_target",))


def prepare(out, cache, *arguments):
    return main(["prepare", str(out), "--from-cache", str(cache), "--workers=1", *arguments])


def write(folder, name, content):
    with gzip.open(folder / f"{name}.gz", "wb", compresslevel=1) as file:
        pickle.dump(content, file)


def tokens_of(cache):
    return sorted(cache.glob("*/*"))


def shard_times(out):
    return {path.name: path.stat().st_mtime_ns for path in (out / "shards").glob("*.safetensors")}


def require_equal_to_cache(out, cache, left_out=0):
    manifest = load_manifest(out)
    split = split_of(manifest, out, manifest.logs)
    found = scan(cache, logs_in(cache), EGO).samples
    kept = [name for name in found if name in set(split.samples)]
    assert len(kept) == len(found) - left_out and split.samples == tuple(kept)
    theirs = CacheDataset(CacheSplit(cache, tuple(kept)), EGO)
    loader = ShardLoader(split, EGO, list(range(len(kept))), 8, ShardReader(0, False), 1)
    for number, batch in enumerate(loader):
        reference = collate([theirs[index] for index in range(8 * number, 8 * number + batch.size)])
        for mine, other in zip(batch, reference, strict=True):
            assert all(
                torch.equal(mine[name], other[name]) and mine[name].dtype == other[name].dtype
                for name in other
            )


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_a_cache_is_packed_whole_and_verified(ego_cache, out, capsys):
    assert prepare(out, ego_cache, "--samples-per-shard=3") == 0
    assert "32 samples of 4 logs in 12 shards" in (printed := capsys.readouterr().out)
    assert "verified" in printed
    require_equal_to_cache(out, ego_cache)
    assert sorted(path.name for path in out.iterdir()) == [
        "manifest.json",
        "preparation.json",
        "shards",
    ]
    assert len(list((out / "shards").iterdir())) == 24
    origin = load_manifest(out).origin
    assert origin["cache"] == str(ego_cache) and {"convoy", "navsim_commit"} <= origin.keys()


def test_the_summary_as_json(ego_cache, out, capsys):
    assert prepare(out, ego_cache, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["samples"], record["task_samples"], record["failed"], record["damaged"]) == (
        32,
        32,
        [],
        [],
    )
    assert record["bytes_per_sample"] == 8 * 4 + 24 * 8 + 256 / 8


def test_several_processes_make_the_same(ego_cache, out, tmp_path):
    assert prepare(out, ego_cache) == 0
    assert (
        main(
            [
                "prepare",
                str(tmp_path / "other"),
                "--from-cache",
                str(ego_cache),
                "--workers=2",
                "--no-verify",
            ]
        )
        == 0
    )
    one, other = load_manifest(out), load_manifest(tmp_path / "other")
    assert [(s.name, s.sha256) for s in one.shards] == [(s.name, s.sha256) for s in other.shards]


def test_again_does_only_what_is_missing(ego_cache, out, capsys):
    prepare(out, ego_cache)
    before = shard_times(out)
    (out / "shards/log-2-000.json").unlink()
    assert prepare(out, ego_cache) == 0
    assert "8 samples in 1 shards" in capsys.readouterr().out
    after = shard_times(out)
    assert {name for name in before if before[name] != after[name]} == {"log-2-000.safetensors"}
    require_equal_to_cache(out, ego_cache)


def command(out, cache, *arguments):
    # torch is slow to import; in one line, the program says when it begins to pack.
    code = (
        "import sys; from convoy.commands.__main__ import main; "
        "import convoy.data.prepare.run; sys.exit(main(sys.argv[1:]))"
    )
    return [
        sys.executable,
        "-c",
        code,
        "prepare",
        str(out),
        "--from-cache",
        str(cache),
        "--workers=1",
        *arguments,
    ]


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@contextmanager
def last_sample_held(cache):
    """Whoever reads the last sample waits: packing gets there and no further, however fast the
    machine is."""
    path = tokens_of(cache)[-1] / "ego_status_feature.gz"
    whole, fifo = path.with_suffix(".whole"), path.with_suffix(".fifo")
    os.mkfifo(fifo)
    path.rename(whole)
    os.link(fifo, path)
    try:
        yield
    finally:
        content = whole.read_bytes()
        whole.replace(path)
        with (
            suppress(OSError),
            open(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK), "wb") as pipe,
        ):  # ENXIO: nobody waits
            pipe.write(content)


def test_a_killed_run_is_completed_and_keeps_what_it_had(ego_cache, out):
    with last_sample_held(ego_cache):
        process = subprocess.Popen(command(out, ego_cache, "--samples-per-shard=1"))
        wait_for(lambda: len(list((out / "shards").glob("*.json"))) >= 3)
        process.kill()
        process.wait()
    before = shard_times(out)
    assert 3 <= len(list((out / "shards").glob("*.json"))) < 32
    assert not (out / "manifest.json").exists()
    assert prepare(out, ego_cache, "--samples-per-shard=1") == 0
    done = {path.stem for path in (out / "shards").glob("*.json")}
    after = shard_times(out)
    assert (
        len(done) == 32 and sum(before[name] == after[name] for name in before) >= len(before) - 1
    )
    require_equal_to_cache(out, ego_cache)


def test_two_runs_at_once_are_refused_and_the_first_goes_on(ego_cache, out, capsys):
    with last_sample_held(ego_cache):
        process = subprocess.Popen(command(out, ego_cache, "--samples-per-shard=1"))
        wait_for(lambda: len(list((out / "shards").glob("*.json"))) == 31)
        assert prepare(out, ego_cache, "--samples-per-shard=1") == 1
        error = capsys.readouterr().err
        assert "Another `convoy prepare` is writing" in error and f"process {process.pid}" in error
    assert process.wait(60) == 0
    require_equal_to_cache(out, ego_cache)


def step(job: int, tasks: int, restart: int = 0, number: int = 0) -> dict[str, str]:
    """What srun tells one of a step's tasks."""
    return {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_PROCID": str(number),
        "SLURM_RESTART_COUNT": str(restart),
    }


def foreign_sign(out, **changes):
    folder = out / ".starts/other"
    folder.mkdir(parents=True)
    (folder / "begin.json").write_text("{}")
    sign = {
        "task": 0,
        "host": "node7",
        "process": 1,
        "process_space": "elsewhere",
        "job": "17",
        "restart": 0,
    } | changes
    (folder / "task-0.json").write_text(json.dumps(vars(Sign(**sign))))
    return folder / "task-0.json"


def test_a_start_on_another_node_is_seen_until_it_is_silent(ego_cache, out, capsys):
    sign = foreign_sign(out)
    assert prepare(out, ego_cache) == 1
    assert "on node7, process 1, job 17" in capsys.readouterr().err
    os.utime(sign, (time.time() - 600,) * 2)
    assert prepare(out, ego_cache) == 0


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_a_start_that_ended_is_no_hindrance(ego_cache, out, state):
    foreign_sign(out, state=state)
    assert prepare(out, ego_cache) == 0


def test_a_requeued_job_goes_on_where_its_killed_start_was(ego_cache, out, monkeypatch):
    foreign_sign(out)
    for name, value in step(job=17, tasks=1, restart=1).items():
        monkeypatch.setenv(name, value)
    assert prepare(out, ego_cache) == 0


def test_tasks_side_by_side_do_equal_shares_and_the_first_ends_the_whole(ego_cache, out):
    environment = os.environ | step(job=5, tasks=3)
    processes = [
        subprocess.Popen(
            command(out, ego_cache, "--samples-per-shard=2", "--json"),
            env=environment | {"SLURM_PROCID": str(task)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for task in range(3)
    ]
    records = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    shares = [record["task_samples"] for record in records]
    assert sum(shares) == 32 and max(shares) - min(shares) <= 2
    assert [("samples" in record) for record in records] == [True, False, False]
    require_equal_to_cache(out, ego_cache)
    assert not (out / ".starts").exists()


def test_a_task_that_stopped_is_reported_by_the_first(ego_cache, out, monkeypatch, capsys):
    """Task 1 of 2 met a full disk, say; its share is missing, and the same command does it."""
    for name, value in step(job=5, tasks=2).items():
        monkeypatch.setenv(name, value)
    folder = out / ".starts/5.0-0"
    folder.mkdir(parents=True)
    sign = Sign(1, "node8", 1, "elsewhere", "5", 0, state="stopped")
    (folder / "task-1.json").write_text(json.dumps(vars(sign)))
    assert prepare(out, ego_cache) == 1
    assert "2 of 4 shards are missing, and task(s) 1 stopped" in capsys.readouterr().err
    monkeypatch.delenv("SLURM_STEP_ID")
    assert prepare(out, ego_cache) == 0
    require_equal_to_cache(out, ego_cache)


@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_shares_are_equal_within_a_tenth(tasks):
    sizes = [3 + (number * 37) % 91 for number in range(150)]
    units = [Unit(f"log-{number}", 0, 1, size) for number, size in enumerate(sizes)]
    missing = [number for number in range(150) if number % 7]
    shares = [share(units, missing, task, tasks) for task in range(tasks)]
    assert sorted(number for mine in shares for number in mine) == missing
    loads = [sum(sizes[number] for number in mine) for mine in shares]
    assert max(loads) <= 1.1 * min(loads)


def test_srun_tasks_are_told_apart():
    assert Task.from_environment(step(9, 4, number=3)) == Task("9.0-0", 3, 4, "9", 0)
    assert Task.from_environment(step(9, 4, 2, 3)) == Task("9.0-2", 3, 4, "9", 2)
    batch = {"SLURM_JOB_ID": "9", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
    assert Task.from_environment(batch).count == 1
    assert Task.from_environment({}).start != Task.from_environment({}).start


# --- samples that cannot be packed


def failures(out):
    return {failure.token: failure.reason for failure in load_manifest(out).failures}


def test_a_sample_without_a_builders_file_is_left_out_and_reported(ego_cache, out, capsys):
    token = tokens_of(ego_cache)[5]
    (token / "trajectory_target.gz").unlink()
    assert prepare(out, ego_cache) == 0
    reason = failures(out)[token.name]
    assert "cannot be read (No such file" in reason and str(token) in reason
    printed = capsys.readouterr().out
    assert "1 samples were left out" in printed and "31 samples of 4 logs" in printed
    shutil.rmtree(token)
    require_equal_to_cache(out, ego_cache)


def test_nan_is_left_out_and_reported_unless_allowed(ego_cache, out, tmp_path):
    token = tokens_of(ego_cache)[9]
    write(token, "ego_status_feature", {"ego_status": torch.tensor([math.nan] * 8)})
    assert prepare(out, ego_cache) == 0
    assert failures(out) == {
        token.name: "ego_status_feature.ego_status has values that are not finite"
    }
    require_equal_to_cache(out, ego_cache, left_out=1)
    assert prepare(tmp_path / "all", ego_cache, "--allow-non-finite") == 0
    assert load_manifest(tmp_path / "all").samples == 32


def test_another_schema_is_left_out_and_reported(ego_cache, out):
    tokens = tokens_of(ego_cache)
    write(tokens[3], "ego_status_feature", {"ego_status": torch.zeros(8, dtype=torch.float64)})
    write(tokens[4], "ego_status_feature", {"ego_status": torch.zeros(8), "more": torch.zeros(1)})
    write(tokens[6], "trajectory_target", {})
    assert prepare(out, ego_cache) == 0
    reasons = failures(out)
    assert "is float64 with 1 dimension(s), in other samples float32" in reasons[tokens[3].name]
    assert (
        "has, unlike the other samples, the value ego_status_feature.more"
        in reasons[tokens[4].name]
    )
    assert "lacks the value trajectory_target.trajectory" in reasons[tokens[6].name]
    require_equal_to_cache_without(out, ego_cache, [tokens[3], tokens[4], tokens[6]])


def require_equal_to_cache_without(out, cache, folders):
    for folder in folders:
        shutil.rmtree(folder)
    require_equal_to_cache(out, cache)


def test_failed_shards_are_done_again_when_asked(ego_cache, out, capsys):
    token = tokens_of(ego_cache)[0]
    good = (token / "trajectory_target.gz").read_bytes()
    (token / "trajectory_target.gz").write_bytes(good[:30])
    prepare(out, ego_cache)
    (token / "trajectory_target.gz").write_bytes(good)
    prepare(out, ego_cache)
    assert len(failures(out)) == 1
    capsys.readouterr()
    assert prepare(out, ego_cache, "--retry-failed") == 0
    assert "8 samples in 1 shards" in capsys.readouterr().out
    assert failures(out) == {}
    require_equal_to_cache(out, ego_cache)


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_code_is_refused(ego_cache, out, tmp_path):
    token = tokens_of(ego_cache)[2]
    mark = tmp_path / "mark"
    write(token, "ego_status_feature", {"ego_status": Bomb(mark)})
    assert prepare(out, ego_cache) == 0
    assert not mark.exists()
    assert (
        "asks for pathlib" in failures(out)[token.name]
        and "data.trust_cache=true" in failures(out)[token.name]
    )
    require_equal_to_cache_without(out, ego_cache, [token])


def test_a_pickle_hidden_in_a_tensors_storage_is_refused(ego_cache, out, tmp_path, monkeypatch):
    """torch.storage._load_from_bytes, which tensors' pickles call, would unpickle anything
    itself."""
    import io

    mark = tmp_path / "mark"
    inner = io.BytesIO()
    torch.save(Bomb(mark), inner)

    class Storage:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (inner.getvalue(),)

    token = tokens_of(ego_cache)[2]
    write(token, "ego_status_feature", {"ego_status": Storage()})
    assert prepare(out, ego_cache) == 0
    assert not mark.exists() and len(failures(out)) == 1


def test_a_cache_that_is_declared_trusted_may_hold_other_classes(ego_cache, out, tmp_path):
    class_of_torch = torch.nn.Parameter(torch.zeros(8), requires_grad=False)
    dtype_in_pickle = {"ego_status": class_of_torch, "size": torch.zeros(3)}
    for token in tokens_of(ego_cache):
        write(token, "ego_status_feature", dtype_in_pickle | {"extra": Size()})
    assert prepare(out, ego_cache) == 1
    shutil.rmtree(out, ignore_errors=True)
    for token in tokens_of(ego_cache):
        write(token, "ego_status_feature", Mapping(dtype_in_pickle))
    assert prepare(out, ego_cache) == 1
    shutil.rmtree(out, ignore_errors=True)
    assert prepare(out, ego_cache, "data.trust_cache=true") == 0
    assert load_manifest(out).samples == 32


class Mapping(dict):
    """A dict of the agent's own."""


class Size:
    """No tensor."""


# --- mistakes that are reported before any work


def test_duplicate_tokens_are_told(ego_cache, out, capsys):
    token = tokens_of(ego_cache)[0]
    shutil.copytree(token, ego_cache / "log-3" / token.name)
    assert prepare(out, ego_cache) == 1
    assert (
        f"token {token.name} is in two logs of {ego_cache}, log-0 and log-3"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("content", ["missing", "empty"])
def test_no_cache(tmp_path, out, capsys, content):
    if content == "empty":
        (tmp_path / "cache/log/token").mkdir(parents=True)
    assert prepare(out, tmp_path / "cache") == 1
    assert str(tmp_path / "cache") in capsys.readouterr().err


def test_another_preparation_is_refused(ego_cache, out, tmp_path, capsys):
    prepare(out, ego_cache)
    shutil.copytree(ego_cache, tmp_path / "other")
    assert prepare(out, tmp_path / "other") == 1
    error = capsys.readouterr().err
    assert "belongs to another preparation: cache:" in error and str(tmp_path / "other") in error
    assert load_manifest(out).samples == 32


def test_from_raw_data_asks_for_agent_and_split(out, capsys):
    assert main(["prepare", str(out)]) == 1
    assert "agent=transfuser_agent train_test_split=navtrain" in capsys.readouterr().err


def test_nothing_that_could_be_packed(ego_cache, out, capsys):
    for token in tokens_of(ego_cache):
        (token / "trajectory_target.gz").write_bytes(b"")
    assert prepare(out, ego_cache) == 1
    error = capsys.readouterr().err
    assert "None of the first 4 samples could be made. log-0/" in error
    assert not (out / "preparation.json").exists()


# --- a disk that is full


def test_a_full_disk_ends_the_run_and_keeps_what_is_whole(tmp_path):
    """The kernel refuses to let files grow beyond a limit: the same path as a disk without
    space."""
    cache, out = tmp_path / "cache", tmp_path / "out"
    for log, size in (("log-a", 10), ("log-b", 60_000)):
        (cache / log / f"{log}-token").mkdir(parents=True)
        write(cache / log / f"{log}-token", "ego_status_feature", {"ego_status": torch.rand(size)})
    limit = 100_000

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(command(out, cache), preexec_fn=limited, text=True, capture_output=True)
    assert done.returncode == 1
    assert (
        "log-b-000.safetensors could not be written: File too large. Finished shards are kept"
        in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert [path.name for path in sorted((out / "shards").iterdir())] == [
        "log-a-000.json",
        "log-a-000.safetensors",
    ]
    assert prepare(out, cache) == 0
    assert load_manifest(out).samples == 2
