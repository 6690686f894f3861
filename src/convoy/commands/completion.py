"""`convoy completion`: the shell completes commands, options, overrides, runs and jobs."""

import argparse
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

from convoy.commands.__main__ import COMMANDS
from convoy.errors import ConvoyError, ExitCode
from convoy.host import site
from convoy.navsim import tree
from convoy.run import story

CONF = Path(__file__).parents[1] / "conf"
RUNS = 50  # newest
BASH = r"""
_convoy() {
    local line=${COMP_LINE:0:COMP_POINT} words word
    IFS=$' \t' read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    word=${words[${#words[@]} - 1]}
    local IFS=$'\n'
    mapfile -t COMPREPLY < <(convoy completion --words="${words[*]:1}" 2> /dev/null)
    # Bash takes a word apart at = and completes what comes after it.
    [[ $word == *=* && $COMP_WORDBREAKS == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${word%%=*}="}")
    [[ ${COMPREPLY[0]:-} == *= ]] && compopt -o nospace
}
complete -o default -F _convoy convoy
"""
ZSH = r"""
_convoy() {
    local -a found
    found=("${(@f)$(convoy completion --words="${(pj:\n:)words[2,CURRENT]}" 2> /dev/null)}")
    if [[ ${found[1]} == *= ]]; then compadd -S '' -a -- found; else compadd -a -- found; fi
}
(( $+functions[compdef] )) || { autoload -U compinit && compinit }
compdef _convoy convoy
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = 'Into ~/.bashrc: eval "$(convoy completion bash)"; the same for zsh.'
    parser.add_argument("shell", nargs="?", choices=("bash", "zsh"), default="bash")
    # In one argument, a word a line: argparse takes a -- among several for its own.
    parser.add_argument("--words", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    if args.words is None:
        print((BASH if args.shell == "bash" else ZSH).strip())
    else:
        print(*candidates(args.words.split("\n")), sep="\n")
    return ExitCode.FINISHED


def candidates(words: Sequence[str]) -> list[str]:
    """What the last of `words` (those after `convoy`) may become, sorted."""
    *before, word = list(words) or [""]
    if not before:
        found: Iterator[str] | list[str] = [name for name, _, _ in COMMANDS]
    else:
        found = _of_command(before[0], before[1:], word)
    return sorted(name for name in found if name.startswith(word))


def _of_command(name: str, before: Sequence[str], word: str) -> Iterator[str]:
    modules = {command: module for command, module, _ in COMMANDS}
    if name not in modules:
        return
    parser = argparse.ArgumentParser(add_help=False)
    import_module(modules[name]).add_arguments(parser)
    actions = parser._actions  # argparse has no public view of what was added
    for action in actions:
        if before and before[-1] in action.option_strings and action.choices:
            yield from map(str, action.choices)
            return
    if word.startswith("-"):
        yield from (option for action in actions for option in action.option_strings)
        return
    positionals = {action.dest for action in actions if not action.option_strings}
    if "overrides" in positionals:
        yield from _overrides(word)
    if positionals & {"job", "runs", "first", "run_"}:
        yield from _runs()


def _overrides(word: str) -> Iterator[str]:
    defaults = story.read_config(CONF / "settings.yaml")
    key, sign, _ = word.partition("=")
    if not sign:
        yield from (f"{name}=" for name in ("agent", *defaults))
        return
    if key == "agent":
        groups = tree.config_directory()
        folders = [CONF / "agent", *([groups / "agent"] if groups else [])]
        yield from (f"agent={path.stem}" for folder in folders for path in folder.glob("*.yaml"))
    elif defaults.get(key) in {"true", "false"}:
        yield from (f"{key}={value}" for value in ("true", "false"))


def _runs() -> Iterator[str]:
    try:
        experiments = site.load(site.find_checkout()).experiments
    except ConvoyError:
        return
    for root in story.find(experiments)[:RUNS]:
        yield root.name if root.name.partition("_")[0].isdigit() else str(root)
