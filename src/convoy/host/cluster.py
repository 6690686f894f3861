"""The cluster as SLURM describes it: the one module that runs SLURM's commands and reads their
output.

Formats are those of SLURM 22.05 and newer: `scontrol --oneliner`, `squeue --Format`, never
`--json`, which older sites lack. Every function asks once and returns plain data; nothing is kept.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from convoy.errors import ConvoyError
from convoy.host.cluster_model import Cluster, Job, Limits, Node, Partition
from convoy.host.job_file import seconds
from convoy.topology import expand_hosts

TIMEOUT = 20  # seconds; a controller under load answers slowly, one that is gone not at all
USABLE = frozenset({"IDLE", "MIXED", "ALLOCATED", "COMPLETING"})
UNUSABLE_FLAGS = frozenset(
    {
        "DRAIN",
        "DRAINED",
        "DRAINING",
        "DOWN",
        "FAIL",
        "MAINT",
        "NOT_RESPONDING",
        "PERFCTRS",
        "REBOOT",
    }
)


class SlurmUnavailable(ConvoyError):
    """A command of SLURM's is not here, or the controller did not answer."""


@dataclass(frozen=True)
class Answer:
    """What `sbatch --test-only` said of one job: an expected start, or why it would not be
    taken."""

    start: datetime | None
    refusal: str = ""


def run(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """A SLURM command's standard output. Raises SlurmUnavailable with its own words if it fails."""
    done = _call(command, environment)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise SlurmUnavailable(f"{command[0]} failed: {reason}")
    return done.stdout


def _call(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    timeout: float | None = TIMEOUT,
) -> subprocess.CompletedProcess[str]:
    # A user's own display settings must not change what is parsed.
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SQUEUE_", "SINFO_", "SCONTROL_"))
    }
    own |= {"SLURM_TIME_FORMAT": "standard", **(environment or {})}
    try:
        return subprocess.run(
            command,
            text=True,
            capture_output=True,
            timeout=timeout,
            env=own,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise SlurmUnavailable(
            f"{command[0]} is not in PATH: run this on a login node of the cluster."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SlurmUnavailable(f"{command[0]} did not answer within {timeout} s.") from error


def read(user: str) -> Cluster:
    """Nodes, partitions, queue and limits as they are now. Raises SlurmUnavailable."""
    with ThreadPoolExecutor(4) as pool:
        nodes = pool.submit(run, "scontrol", "--oneliner", "show", "node")
        known = pool.submit(partitions)
        queue = pool.submit(jobs)
        allowed = pool.submit(limits, user)
        return Cluster(
            datetime.now(),
            tuple(parse_nodes(nodes.result())),
            known.result(),
            tuple(queue.result()),
            allowed.result(),
            user,
        )


def partitions() -> dict[str, Partition]:
    """All of the cluster's by name. Raises SlurmUnavailable."""
    shown = run("scontrol", "--oneliner", "--all", "show", "partition")
    return {found.name: found for found in parse_partitions(shown)}


def limits(user: str) -> Limits | None:
    """Accounts and limits of `user`, None where the site has no accounting."""
    show = ("sacctmgr", "--noheader", "--parsable2", "show")
    try:
        return parse_limits(
            run(*show, "assoc", f"user={user}", "format=Account,QOS"),
            run(*show, "qos", "format=Name,MaxWall,MaxTRESPerUser"),
        )
    except SlurmUnavailable:  # a site without accounting
        return None


# --- the queue

QUEUE_FIELDS = tuple(
    (
        "JobArrayID UserName Account Partition State Reason NumNodes TimeLimit TimeLeft StartTime "
        "PriorityLong SubmitTime tres-alloc tres-per-node NodeList QOS Name"
    ).split()
)
QUEUE_FORMAT = ",".join(f"{name}:|" for name in QUEUE_FIELDS)


def jobs(*options: str) -> list[Job]:
    """Jobs of the queue; `options` narrow it (`--user=me`, `--jobs=12`)."""
    return parse_queue(
        run("squeue", "--all", "--noheader", "--array", "-O", QUEUE_FORMAT, *options)
    )


def parse_queue(text: str) -> list[Job]:
    """Lines of `squeue -O QUEUE_FORMAT`."""
    found = []
    for line in text.splitlines():
        words = line.split("|", len(QUEUE_FIELDS) - 1)
        if len(words) < len(QUEUE_FIELDS):
            continue  # squeue's own remark
        row = dict(zip(QUEUE_FIELDS, words, strict=True))
        nodes = int(row["NumNodes"].partition("-")[0] or 1)
        found.append(
            Job(
                id=row["JobArrayID"],
                user=row["UserName"],
                account=row["Account"],
                partitions=tuple(row["Partition"].split(",")),
                state=row["State"],
                reason=row["Reason"],
                nodes=nodes,
                gpus=_job_gpus(row["tres-alloc"], row["tres-per-node"], nodes),
                limit=_limit(row["TimeLimit"]),
                left=_limit(row["TimeLeft"]),
                start=_moment(row["StartTime"]),
                priority=int(row["PriorityLong"] or 0),
                submitted=_moment(row["SubmitTime"]),
                hosts=row["NodeList"],
                qos=row["QOS"],
                name=row["Name"].removesuffix("|"),
            )
        )
    return found


def _job_gpus(allocated: str, per_node: str, nodes: int) -> int | None:
    """GPUs of a job; None where the site's accounting does not count them."""
    counted = _tres_gpus(allocated)
    if counted is None:
        asked = re.search(r"gpu(?::[A-Za-z][\w.-]*)?(?:[:=](\d+))?(?:,|$)", per_node)
        return int(asked.group(1) or 1) * nodes if asked else None
    return counted


def _tres_gpus(text: str) -> int | None:
    found = re.search(r"gres/gpu=(\d+)", text)
    return int(found.group(1)) if found else None


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # N/A, Unknown
        return None


def _limit(text: str) -> int | None:
    try:
        return seconds(text)
    except ValueError:  # NOT_SET, INVALID, a job past its limit
        return None


# --- nodes and partitions

_FACT = re.compile(r"(\S+?)=(.*?)(?= [A-Za-z][\w/:]*=| *$)")


def _facts(line: str) -> dict[str, str]:
    return {name: value.strip() for name, value in _FACT.findall(line)}


def parse_nodes(text: str) -> list[Node]:
    """Lines of `scontrol --oneliner show node`."""
    return [_node(_facts(line)) for line in text.splitlines() if line.startswith("NodeName=")]


def _node(facts: Mapping[str, str]) -> Node:
    state, *flags = facts["State"].upper().split("+")
    base = state.rstrip("*~#!%$@^-")
    silent = "*" in facts["State"]  # the node does not respond
    gpu, gpus = _gres(facts.get("Gres", ""))
    used = _tres_gpus(facts.get("AllocTRES", ""))
    if used is None and _tres_gpus(facts.get("CfgTRES", "")) is None and base != "IDLE":
        used = gpus  # not counted at this site: a busy node is taken to be full
    partitions = facts.get("Partitions", "")
    return Node(
        facts["NodeName"],
        tuple(partitions.split(",")) if partitions else (),
        gpu,
        gpus,
        used or 0,
        int(facts.get("CPUTot", 0)),
        int(facts.get("RealMemory", 0)),
        base,
        base in USABLE and not silent and not UNUSABLE_FLAGS.intersection(flags),
        facts.get("Reason", ""),
    )


def _gres(text: str) -> tuple[str, int]:
    """Type and number of a node's GPUs, of `gpu:l40s:4(S:0-1)`.

    Of several types the most frequent.
    """
    found: dict[str, int] = {}
    for name, count in re.findall(r"(?:^|,)gpu(?::([A-Za-z][\w.-]*))?:(\d+)", text):
        found[name or "gpu"] = found.get(name or "gpu", 0) + int(count)
    return max(found.items(), key=lambda item: item[1]) if found else ("", 0)


def parse_partitions(text: str) -> list[Partition]:
    """Lines of `scontrol --oneliner show partition`."""
    found = []
    for line in text.splitlines():
        facts = _facts(line)
        if "PartitionName" not in facts:
            continue
        allowed = facts.get("AllowAccounts", "ALL")
        most, total = facts.get("MaxNodes", ""), facts.get("TotalNodes", "")
        found.append(
            Partition(
                facts["PartitionName"],
                facts.get("State", "UP") == "UP",
                _limit(facts.get("MaxTime", "UNLIMITED")),
                int(most) if most.isdigit() else None,
                int(facts.get("MinNodes", 0) or 0),
                None if allowed == "ALL" else tuple(allowed.split(",")),
                tuple(filter(None, facts.get("DenyAccounts", "").split(","))),
                facts.get("Default") == "YES",
                nodes=int(total) if total.isdigit() else None,
            )
        )
    return found


def parse_limits(associations: str, qos: str) -> Limits:
    """Of `sacctmgr show assoc format=Account,QOS` and `show qos
    format=Name,MaxWall,MaxTRESPerUser`."""
    accounts: dict[str, tuple[str, ...]] = {}
    for line in associations.splitlines():
        account, _, names = line.partition("|")
        accounts[account] = tuple(filter(None, names.split(",")))
    wall, gpus = {}, {}
    for line in qos.splitlines():
        name, limit, tres = [*line.split("|"), "", ""][:3]
        longest, most = _limit(limit), _tres_gpus(tres)
        if longest is not None:
            wall[name] = longest
        if most is not None:
            gpus[name] = most
    return Limits(accounts, wall, gpus)


# --- questions about a job that is not submitted

_START = re.compile(r"Job \S+ to start at (\S+) ")


def test_only(commands: Sequence[Sequence[str]]) -> list[Answer]:
    """Ask SLURM when each sbatch command would start, side by side; nothing is submitted."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(_test_only, commands))


def _test_only(command: Sequence[str]) -> Answer:
    done = _call([command[0], "--test-only", *command[1:]])
    return parse_test_only(done.stderr + done.stdout)


def parse_test_only(text: str) -> Answer:
    """What `sbatch --test-only` writes to standard error."""
    found = _START.search(text)
    if found:
        return Answer(_moment(found.group(1)))
    line = (text.strip().splitlines() or ["no answer"])[-1]
    return Answer(None, re.sub(r"^(sbatch: error: |allocation failure: )+", "", line))


# --- acting on a job


def submit(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Submit, and return the job's id. Raises ConvoyError with sbatch's own words."""
    # However long it takes: a job that was given up on might be queued all the same.
    done = _call([command[0], "--parsable", *command[1:]], environment, timeout=None)
    job = done.stdout.strip().partition(";")[0]
    if done.returncode or not job:
        raise ConvoyError(f"{shlex.join(command[:2])} …: {done.stderr.strip() or 'no job id'}")
    return job


def hosts(names: str) -> list[str]:
    """A node list as names: `gl[001,006-008]`."""
    return expand_hosts(names)


def job_facts(job: str) -> dict[str, str]:
    """`scontrol show job` as NAME -> value; of an array the first line."""
    lines = run("scontrol", "--oneliner", "show", "job", job).splitlines()
    return _facts(lines[0]) if lines else {}


def cancel(job: str) -> None:
    """End a job now."""
    run("scancel", job)


def ask_to_stop(job: str) -> None:
    """Tell a running job's batch script to checkpoint and end, and SLURM not to requeue it."""
    run("scontrol", "update", f"JobId={job}", "Requeue=0")
    # Of a task of an array SLURM 26.05 says that it cannot be altered, though the signal arrives;
    # without --ctld scancel tries again for two minutes.
    run("scancel", "--ctld", "--batch", "--signal=USR1", job)
