import subprocess
import sys

import pytest

from convoy.commands import __main__ as cli

HEAVY = "torch, numpy, pytorch_lightning, matplotlib, navsim"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["synth", "--help"], ["check", "--help"], ["train", "--help"]]
)
def test_help_imports_nothing_heavy(arguments):
    program = (
        "import sys\nfrom convoy.commands import __main__ as cli\ntry: "
        f"cli.main({arguments!r})\nexcept SystemExit as end: assert end.code == 0\nloaded = [name "
        f"for name in '{HEAVY}'.split(', ') if name in sys.modules]\nsys.exit(' '.join(loaded) or "
        "0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: convoy" in done.stdout


def test_check_shows_the_launch(ego_cache, foreign_tree, capsys):
    code = cli.main(
        [
            "check",
            "--nodes",
            "2",
            "--processes-per-node",
            "4",
            "--",
            "agent=foreign_agent",
            f"cache_path={ego_cache}",
            "global_batch=176",
        ]
    )
    printed = capsys.readouterr().out
    assert code == 0
    assert "8 = 2 nodes x 4" in printed
    assert "176 = 8 ranks x 22 samples x 1 accumulation" in printed


def test_check_imports_no_torch(ego_cache, foreign_tree):
    program = (
        "import sys\nfrom convoy.commands import __main__ as cli\n"
        f"code = cli.main(['check', 'agent=foreign_agent', 'cache_path={ego_cache}'])\n"
        "sys.exit(code or ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", ["check", "train"])
def test_a_mistake_is_one_line_and_no_traceback(command, capsys, tmp_path):
    assert cli.main([command, f"cache_path={tmp_path}/gone"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("convoy: cache_path=") and printed.count("\n") == 1
