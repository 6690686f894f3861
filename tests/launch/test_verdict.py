import signal

from convoy.launch import verdict
from convoy.launch.verdict import Failure
from convoy.run.layout import RunDirectory


def records(tmp_path, *found: Failure) -> list[Failure]:
    run = RunDirectory(tmp_path)
    for failure in found:
        verdict.write(run, "77-0", failure)
    return verdict.read(run, "77-0")


def test_the_cause_comes_before_its_consequences_even_by_a_late_clock(tmp_path):
    """Nodes' clocks differ by more than a broken connection takes."""
    found = records(
        tmp_path,
        Failure(0, "gl001", 10.0, 1, "DistBackendError: Connection closed by peer [172.18.0.4]:9"),
        Failure(5, "gl006", 10.5, 1, "KeyError: 'trajectory'"),
    )
    assert [failure.rank for failure in found] == [5, 0]


def test_among_equals_the_first_counts(tmp_path):
    found = records(
        tmp_path, Failure(3, "a", 2.0, 1, "ValueError: x"), Failure(1, "b", 1.0, 1, "ValueError: y")
    )
    assert [failure.rank for failure in found] == [1, 3]


def test_a_ranks_own_word_is_not_replaced_by_the_agents(tmp_path):
    own = Failure(3, "gl001", 1.0, 1, "ValueError: x")
    assert records(tmp_path, own, verdict.died(3, "gl001", 1)) == [own]


def test_a_killed_rank_says_by_what():
    killed = verdict.died(2, "gl001", -signal.SIGKILL)
    assert (
        "killed by SIGKILL" in killed.message
        and "memory" in killed.message
        and not killed.is_consequence
    )
    assert verdict.died(2, "gl001", -signal.SIGTERM).is_consequence
    unmounted = verdict.died(2, "gl001", -signal.SIGBUS)
    assert "killed by SIGBUS (SLURM ended what kept the mounted image" in unmounted.message
    assert not unmounted.is_consequence
    assert "exit code 7" in verdict.died(2, "gl001", 7).message


def test_the_report_shows_the_first_ranks_last_lines(tmp_path):
    run = RunDirectory(tmp_path)
    run.logs.mkdir()
    run.rank_log(5).write_text("".join(f"line {number}\n" for number in range(100)))
    text = verdict.report(
        [Failure(5, "gl006", 1.0, 1, "KeyError: 'x'"), Failure(0, "gl001", 2.0, 1, "gone")], run
    )
    lines = text.splitlines()
    assert lines[0] == "convoy: rank 5 on gl006 failed first: KeyError: 'x'"
    assert lines[2] == "  | line 85" and lines[-2] == "  | line 99"
    assert lines[-1] == "  then rank 0"


def test_a_mistake_is_one_line_and_the_other_ranks_that_say_the_same(tmp_path):
    found = [
        Failure(rank, host, 1.0, 1, f"no GPU on {host}", True)
        for rank, host in ((1, "a"), (0, "a"), (2, "b"))
    ]
    text = verdict.report(found, RunDirectory(tmp_path))
    assert text.splitlines() == [
        "convoy: rank 1 on a failed first: no GPU on a",
        "  the same on rank 0, 2",
    ]


def test_records_that_a_full_disk_left_empty_are_no_obstacle(tmp_path):
    run = RunDirectory(tmp_path)
    verdict.write(run, "77-0", Failure(1, "a", 1.0, 1, "ValueError: x"))
    run.failure("77-0", 0).write_text("")
    assert [failure.rank for failure in verdict.read(run, "77-0")] == [1]


def test_a_rank_that_memory_killed_says_so():
    said = verdict.died(3, "gl002", -9, "255.1 of 256.0 GiB").message
    assert said.startswith("it was killed by SIGKILL for lack of host memory (255.1 of 256.0 GiB")
    assert "num_workers" in said and "--mem" in said
