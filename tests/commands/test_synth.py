import argparse
import json
import subprocess
import sys

import pytest

from convoy.commands import console, synth
from convoy.synthetic import log_names


def parse(*words):
    parser = argparse.ArgumentParser()
    synth.add_arguments(parser)
    return parser.parse_args(words)


def test_arguments_are_read_without_the_heavy_packages():
    code = (
        "import argparse, sys; from convoy.commands import synth; "
        "synth.add_arguments(argparse.ArgumentParser()); "
        "sys.exit(', '.join({'torch', 'numpy', 'PIL', 'rich'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_summary_line_and_json(tmp_path, capsys):
    out = tmp_path / "cache"
    words = (str(out), "--samples", "2", "--logs", "2", "--workers", "1")
    assert synth.run(parse(*words)) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 2 samples in 2 logs, ")
    assert sorted(path.name for path in out.iterdir()) == log_names(logs=2, seed=0)

    assert synth.run(parse(*words, "--json")) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["path"] == str(out) and (record["samples"], record["logs"]) == (2, 2)
    assert record["megabytes"] > 0 and record["seconds"] >= 0


def test_raw_data_summary_line_json_and_progress(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    out = tmp_path / "raw"
    words = (
        str(out),
        "--raw",
        "--samples",
        "1",
        "--logs",
        "1",
        "--split",
        "test",
        "--cameras",
        "front",
    )
    assert synth.run(parse(*words, "--workers", "1")) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{out}: 1 samples, 14 frames in 1 logs, ")
    assert printed.err.startswith("8 of 14 frames, about ")
    assert len(list(out.glob("sensor_blobs/test/*/CAM_?0/*.jpg"))) == 3 * 14

    assert synth.run(parse(*words, "--json")) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["samples"], record["frames"], record["logs"]) == (1, 14, 1) and record[
        "megabytes"
    ] > 5


@pytest.mark.parametrize("missing", ["--samples", "--logs"])
def test_the_size_is_asked_for(missing, capsys):
    words = {"--samples": "4", "--logs": "2"}
    del words[missing]
    with pytest.raises(SystemExit):
        parse("out", *(word for pair in words.items() for word in pair))
    assert missing in capsys.readouterr().err
