"""`convoy verdict`: how a start ended and what follows, for slurm/launch.sh.

For a person: the rank or node that failed first, on standard error. For the batch script: one line
with a mark, the action, the exit code, the nodes to avoid, and the global batch to keep (`-` for
none).
"""

import argparse
import os
import sys
import time
from pathlib import Path

from convoy.errors import ExitCode
from convoy.launch import verdict
from convoy.launch.fewer_nodes import without
from convoy.launch.next_start import HOURS_EXCLUDED, Action, Decision, Job, decide
from convoy.launch.outcome import Kind, Outcome, outcome
from convoy.run import events, lock, node_state, report
from convoy.run.layout import RunDirectory
from convoy.run.record import last_start
from convoy.topology import Agreement, least_nodes

MARK = "convoy-verdict "
WORDS = {
    Action.AGAIN: "restart",
    Action.SHRINK: "shrink",
    Action.REQUEUE: "requeue",
    Action.END: "end",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("agreement", help="the line that `convoy rendezvous` printed for the start")
    parser.add_argument("--status", type=int, default=1, help="what srun ended with")
    parser.add_argument("--job", default="", help="what `scontrol show job` says")
    parser.add_argument("--answering", help="nodes that answered afterwards, one per line")
    parser.add_argument("--asked", help="the signal that asked the batch script to stop")


def run(args: argparse.Namespace) -> int:
    agreement = Agreement.from_text(args.agreement)
    directory = RunDirectory(Path(agreement.run_dir))
    failures = verdict.read(directory, agreement.start)
    states = node_state.read(directory, agreement.start)
    started = last_start(directory, agreement.start) or {}
    hosts = started.get("nodes", [])
    answering = None if args.answering is None else args.answering.split()
    gone = node_state.lost(directory, agreement.start)
    ended = outcome(args.status, failures, hosts, states, answering, gone)
    over = hosts  # where nobody went, each node's task has ended, with its ranks
    if gone or ended.kind is Kind.LOST:
        over = [host for host, state in states.items() if state.exit_code is not None]
    lock.give_back(directory, started.get("job"), over)
    past = events.read(directory)
    # Not the highest: a start that fell back to an older checkpoint goes on from there.
    written = [entry["step"] for entry in past if entry["kind"] == "checkpoint"]
    step = written[-1] if written else 0
    job = Job.from_text(args.job)
    keep, smaller = None, None
    least = least_nodes(os.environ)
    if least is not None and ended.kind in (Kind.LOST, Kind.UNFIT):
        keep, smaller = without(directory, started, ended.nodes, least)
    decision = decide(
        ended,
        args.status,
        job,
        bool(args.asked),
        step,
        past,
        smaller=smaller,
        start=agreement.start,
    )

    if ended.is_of_a_rank and failures:
        print(verdict.report(failures, directory), file=sys.stderr)
    else:
        print(f"convoy: {ended.reason}.", file=sys.stderr)
    if decision.reason:
        print(f"launch: {decision.reason}", file=sys.stderr)
    _record(directory, agreement.start, ended, decision, step)
    avoid = ",".join(decision.excluded) or "-"
    print(f"\n{MARK}{decision.action} {decision.exit_code} {avoid} {keep or '-'}")
    report.leave(directory)
    return ExitCode.FINISHED


def _record(
    directory: RunDirectory, start: str, ended: Outcome, decision: Decision, step: int
) -> None:
    if ended.kind is Kind.LOST:
        for node in ended.nodes:
            events.record(directory, "lost_node", start=start, node=node)
    until = time.time() + HOURS_EXCLUDED * 3600
    for node in decision.fresh:
        events.record(
            directory, "excluded_node", start=start, node=node, until=until, reason=ended.reason
        )
    word = WORDS[decision.action]
    events.record(directory, word, start=start, step=step, outcome=ended.kind, reason=ended.reason)
