"""A real SLURM cluster in Docker containers: `up`, `down`, `run COMMAND…`. Standard library and the
docker CLI only.

One container is the login node with the controller and the accounting database, the others are
compute nodes with pretended GPUs. All see the checkout at its own path, /scratch, and /small, a
shared file system that is soon full.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCKER = os.environ.get("DOCKER", "docker")
USER = "researcher"
SMALL = ("type=tmpfs", "device=tmpfs", "o=size=64m,mode=1777")

# Apptainer without root: user name spaces (SYS_ADMIN for the mounts of its FUSE helpers), /proc
# unmasked, /dev/fuse.
APPTAINER = (
    "--cap-add=SYS_ADMIN",
    "--security-opt=seccomp=unconfined",
    "--security-opt=apparmor=unconfined",
    "--security-opt=systempaths=unconfined",
    "--device=/dev/fuse",
)


class TestbedError(Exception):
    """What went wrong and what to do, for a person."""


@dataclass(frozen=True)
class Cluster:
    """Settings of one testbed; `name` keeps several apart."""

    name: str
    nodes: tuple[str, ...] = ()
    gpus: int = 4
    cpus: int = 128
    memory_gib: int = 1000
    partitions: tuple[str, ...] = ("l40s_public", "h200")
    slurm_conf: tuple[str, ...] = ()
    image: str = "convoy-testbed"
    accounting: bool = True
    mounts: tuple[str, ...] = ()
    gpu_types: tuple[str, ...] = ("l40s",)

    def container(self, host: str) -> str:
        return f"{self.name}-{host}"

    @property
    def kinds(self) -> dict[str, tuple[str, ...]]:
        """The nodes of each type of GPU: types in the order of the nodes, the last for the rest."""
        found: dict[str, tuple[str, ...]] = {}
        for index, node in enumerate(self.nodes):
            kind = self.gpu_types[min(index, len(self.gpu_types) - 1)]
            found[kind] = (*found.get(kind, ()), node)
        return found

    @property
    def state(self) -> Path:
        """Configuration files that the containers read at start."""
        return ROOT / "build" / "testbed" / self.name


def node_names(count: int) -> tuple[str, ...]:
    """gl001, gl006, gl011 …: with gaps, as an allocation's nodes have them."""
    return tuple(f"gl{1 + 5 * index:03d}" for index in range(count))


def slurm_conf(cluster: Cluster) -> str:
    """The whole slurm.conf; the lines of `cluster.slurm_conf` replace those of the same key."""
    lines = [
        "ClusterName=testbed",
        "SlurmctldHost=login",
        "SlurmUser=slurm",
        "AuthType=auth/munge",
        "StateSaveLocation=/var/lib/slurm/controller",
        "SlurmdSpoolDir=/var/lib/slurm/node",
        "SlurmctldPidFile=/run/slurmctld.pid",
        "SlurmdPidFile=/run/slurmd.pid",
        "SlurmctldLogFile=/var/log/slurmctld.log",
        "SlurmdLogFile=/var/log/slurmd.log",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "SlurmdParameters=config_overrides",  # the nodes pretend to be as large as an L40S node
        "PropagateResourceLimits=NONE",
        "EnforcePartLimits=ALL",
        "ReturnToService=2",
        "KillWait=10",
        "SchedulerParameters=batch_sched_delay=0,bf_interval=5",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
    ]
    for kind, nodes in cluster.kinds.items():
        gres = f" Gres=gpu:{kind}:{cluster.gpus}" if cluster.gpus else ""
        lines.append(
            f"NodeName={','.join(nodes)} SocketsPerBoard=2 CoresPerSocket={cluster.cpus // 2} "
            f"ThreadsPerCore=1 RealMemory={cluster.memory_gib * 1024}{gres} State=UNKNOWN"
        )
    if cluster.gpus:
        lines.append("GresTypes=gpu")
    if cluster.accounting:
        lines += [
            "AccountingStorageType=accounting_storage/slurmdbd",
            "AccountingStorageHost=login",
            "AccountingStorageEnforce=associations,limits",
            "AccountingStorageTRES=gres/gpu",
            "JobAcctGatherType=jobacct_gather/linux",
        ]
    for index, partition in enumerate(cluster.partitions):
        default = "YES" if index == 0 else "NO"
        lines.append(
            f"PartitionName={partition} Nodes=ALL Default={default} MaxTime=2-00:00:00 State=UP"
        )
    replaced = {line.split("=", 1)[0] for line in cluster.slurm_conf} - {
        "NodeName",
        "PartitionName",
    }
    kept = [line for line in lines if line.split("=", 1)[0] not in replaced]
    return "\n".join([*kept, *cluster.slurm_conf]) + "\n"


def up(cluster: Cluster, base: str, target: str = "cluster") -> None:
    """Start the cluster and return when every node is idle."""
    started = time.monotonic()
    if containers(cluster.name):
        raise TestbedError(f"A cluster named {cluster.name} is up: `make cluster-down` first.")
    if built_from(cluster.image) != recipe():
        build(cluster.image, base, target)
    write_state(cluster)
    uid = ROOT.stat().st_uid
    if (
        uid == 0
    ):  # the checkout belongs to root: its ordinary user may write where the Makefile and jobs do
        for folder in (ROOT, ROOT / "build", ROOT / "exp"):
            folder.mkdir(exist_ok=True)
            folder.chmod(folder.stat().st_mode | 0o777)
    docker("network", "create", cluster.name)
    docker("volume", "create", f"{cluster.name}-scratch")
    docker("volume", "create", *(f"--opt={option}" for option in SMALL), f"{cluster.name}-small")
    for host in ("login", *cluster.nodes):
        docker(
            "run",
            "--detach",
            "--init",
            f"--name={cluster.container(host)}",
            f"--hostname={host}",
            f"--network={cluster.name}",
            f"--network-alias={host}",
            *APPTAINER,
            "--cap-add=NET_ADMIN",  # a test may take a node's network away
            "--shm-size=4g",
            "--ulimit=core=0",  # a killed process leaves no core file in the checkout
            f"--env=TESTBED_UID={uid or 1000}",
            f"--env=TESTBED_GPUS={cluster.gpus}",
            f"--volume={ROOT}:{ROOT}",
            f"--volume={cluster.name}-scratch:/scratch",
            f"--volume={cluster.name}-small:/small",
            f"--volume={cluster.state}:/etc/testbed:ro",
            *(f"--volume={mount}" for mount in cluster.mounts),
            cluster.image,
            "testbed-login" if host == "login" else "testbed-node",
        )
    wait_until_idle(cluster)
    print(
        f"{len(cluster.nodes)} nodes are up after {time.monotonic() - started:.0f} s: testbed/run "
        "sinfo"
    )


def write_state(cluster: Cluster) -> None:
    shutil.rmtree(cluster.state, ignore_errors=True)
    cluster.state.mkdir(parents=True)
    gres = "".join(
        f"NodeName={','.join(nodes)} Name=gpu Type={kind} File=/dev/gpu[0-{cluster.gpus - 1}]\n"
        for kind, nodes in cluster.kinds.items()
        if cluster.gpus
    )
    for name, text in {
        "slurm.conf": slurm_conf(cluster),
        "gres.conf": gres,
        "munge.key": secrets.token_hex(64),
        "site.conf": SITE,
    }.items():
        (cluster.state / name).write_text(text)


# The site file of the testbed: its GPUs are pretended, so the training uses the CPU; a job
# without arguments is a short training on what `synth /scratch/cache` wrote.
SITE = """\
CONVOY_BIND=/scratch
CONVOY_OVERRIDES=agent=bev_fusion_agent cache_path=/scratch/cache global_batch=16 \
trainer.params.max_epochs=2 dataloader.params.num_workers=0 trainer.params.accelerator=cpu \
trainer.params.precision=32-true
NAVSIM_EXP_ROOT=/scratch/exp
"""


def wait_until_idle(cluster: Cluster, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        alive = containers(cluster.name, "running")
        stopped = [
            host for host in ("login", *cluster.nodes) if cluster.container(host) not in alive
        ]
        if stopped:
            log = docker("logs", cluster.container(stopped[0]), check=False).text
            raise TestbedError(f"{stopped[0]} stopped:\n{log[-2000:]}")
        ready = docker(
            "exec", cluster.container("login"), "test", "-e", "/run/testbed-ready", check=False
        ).ok
        states = docker(
            "exec", cluster.container("login"), "sinfo", "-hN", "-o", "%N %t", check=False
        )
        idle = {line.split()[0] for line in states.text.splitlines() if line.endswith(" idle")}
        if ready and idle == set(cluster.nodes):
            return
        time.sleep(0.5)
    raise TestbedError(
        f"The nodes are not idle after {timeout:.0f} s: {states.text.strip()}. "
        f"Look at: {DOCKER} logs {cluster.container('login')}"
    )


def down(name: str) -> None:
    """Remove the cluster's containers, network and /scratch."""
    found = containers(name)
    if found:
        docker("rm", "--force", "--volumes", *found)
    docker("network", "rm", name, check=False)
    docker("volume", "rm", "--force", f"{name}-scratch", f"{name}-small", check=False)
    shutil.rmtree(ROOT / "build" / "testbed" / name, ignore_errors=True)


def command_on(name: str, host: str, as_root: bool, command: Sequence[str]) -> list[str]:
    """Docker's command line for `command` on `host`, in the checkout."""
    user = "root" if as_root else USER
    home = "/root" if as_root else f"/home/{USER}"
    terminal = ["--tty"] if sys.stdin.isatty() and sys.stdout.isatty() else []
    return [
        DOCKER,
        "exec",
        "--interactive",
        *terminal,
        f"--user={user}",
        f"--workdir={ROOT}",
        f"--env=HOME={home}",
        f"--env=USER={user}",
        "--env=CONVOY_SITE=/etc/testbed/site.conf",
        f"{name}-{host}",
        *command,
    ]


def recipe() -> str:
    """Digest of what the image is built from."""
    return hashlib.sha256(
        b"".join((ROOT / "testbed" / name).read_bytes() for name in ("Dockerfile", "entry"))
    ).hexdigest()


def built_from(image: str) -> str | None:
    """The recipe that `image` was built from; None where there is no such image."""
    found = docker(
        "image", "inspect", image, '--format={{index .Config.Labels "convoy.recipe"}}', check=False
    )
    return found.text.strip() if found.ok else None


def build(image: str, base: str, target: str = "cluster") -> None:
    """Build the Dockerfile's `target` on `base`."""
    arguments = [
        f"--build-arg=BASE={base}",
        f"--target={target}",
        f"--label=convoy.recipe={recipe()}",
    ]
    done = subprocess.run(
        [DOCKER, "build", "--network=host", *arguments, f"--tag={image}", str(ROOT / "testbed")]
    )
    if done.returncode:
        raise TestbedError(
            f"The image {image} could not be built on {base}. Where Docker Hub cannot be reached, "
            "make a base: testbed/base-image sid convoy-base:sid, and "
            "TESTBED_BASE=convoy-base:sid make cluster-up."
        )


@dataclass(frozen=True)
class Result:
    ok: bool
    text: str


def docker(*arguments: str, check: bool = True) -> Result:
    try:
        done = subprocess.run(
            [DOCKER, *arguments],
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except FileNotFoundError as error:
        raise TestbedError(f"There is no {DOCKER} here: the testbed needs Docker.") from error
    if check and done.returncode:
        raise TestbedError(f"docker {' '.join(arguments[:2])} failed: {done.stdout.strip()}")
    return Result(done.returncode == 0, done.stdout)


def containers(name: str, status: str | None = None) -> list[str]:
    """Names of the cluster's containers."""
    filters = [f"--filter=network={name}", *([f"--filter=status={status}"] if status else [])]
    return docker("ps", "--all", *filters, "--format={{.Names}}").text.split()


def main() -> int:
    parser = argparse.ArgumentParser(prog="testbed/cluster.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--name", default=os.environ.get("TESTBED_NAME", "convoy-testbed"), help="of this cluster"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser(
        "up", help="start it", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    starting.add_argument("--nodes", default="2", help="how many, or their names with commas")
    starting.add_argument("--gpus", type=int, default=4, help="pretended GPUs per node")
    starting.add_argument(
        "--gpu-types", default="l40s", help="of the nodes in their order, the last for all others"
    )
    starting.add_argument("--cpus", type=int, default=128, help="pretended CPUs per node")
    starting.add_argument("--memory-gib", type=int, default=1000, help="pretended memory per node")
    starting.add_argument(
        "--partitions", default="l40s_public,h200", help="over all nodes; the first is the default"
    )
    starting.add_argument(
        "--slurm-conf", action="append", default=[], metavar="LINE", help="added to slurm.conf"
    )
    starting.add_argument(
        "--mount", action="append", default=[], metavar="HOST:CONTAINER", help="a folder to share"
    )
    starting.add_argument("--image", default="convoy-testbed", help="built when it does not exist")
    starting.add_argument(
        "--base", default=os.environ.get("TESTBED_BASE", "debian:sid-slim"), help="to build it on"
    )
    starting.add_argument(
        "--no-accounting", action="store_true", help="without the accounting database"
    )
    starting.add_argument(
        "--target", default="cluster", choices=("cluster", "slurm"), help="slurm: without Apptainer"
    )
    commands.add_parser("down", help="remove it, /scratch too")
    running = commands.add_parser("run", help="run a command in the checkout")
    running.add_argument("--host", default="login", help="on which host (default: login)")
    running.add_argument("--root", action="store_true", help="as root instead of the ordinary user")
    running.add_argument("arguments", nargs=argparse.REMAINDER, metavar="COMMAND")
    args = parser.parse_args()
    try:
        if args.command == "up":
            nodes = (
                node_names(int(args.nodes))
                if args.nodes.isdigit()
                else tuple(args.nodes.split(","))
            )
            cluster = Cluster(
                args.name,
                nodes,
                args.gpus,
                args.cpus,
                args.memory_gib,
                tuple(args.partitions.split(",")),
                tuple(args.slurm_conf),
                args.image,
                not args.no_accounting,
                tuple(args.mount),
                tuple(args.gpu_types.split(",")),
            )
            up(cluster, args.base, args.target)
        elif args.command == "down":
            down(args.name)
        else:
            command = args.arguments or ["bash"]
            os.execvp(DOCKER, command_on(args.name, args.host, args.root, command))
    except TestbedError as error:
        print(f"testbed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
