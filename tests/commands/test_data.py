import json
import os

import pytest
from PIL import Image

from convoy.commands.__main__ import main


@pytest.fixture
def root(ego_cache, tmp_path):
    assert (
        main(
            [
                "prepare",
                str(tmp_path / "set"),
                "--from-cache",
                str(ego_cache),
                "--workers=1",
                "--no-verify",
            ]
        )
        == 0
    )
    return tmp_path / "set"


def run(capsys, *arguments):
    capsys.readouterr()
    code = main(["data", *map(str, arguments)])
    return code, capsys.readouterr()


def test_info(root, capsys):
    code, printed = run(capsys, "info", root)
    assert code == 0
    assert "32 samples of 4 logs in 4 shards" in printed.out
    assert "float64 8x3" in printed.out and "trajectory_target" in printed.out


def test_info_as_json(root, capsys):
    _, printed = run(capsys, "info", root, "--json")
    record = json.loads(printed.out)
    assert (record["samples"], record["logs"], record["shards"], record["bytes"]) == (
        32,
        4,
        4,
        32 * 224 + 4 * 256,
    )
    assert record["layouts"][0]["tensors"]["ego_status_feature.ego_status"] == "float32 8"
    assert record["origin"]["source"] == "cache"


def test_ls(root, capsys):
    code, printed = run(capsys, "ls", root, "--json")
    assert code == 0
    assert [(row["log"], row["samples"]) for row in json.loads(printed.out)] == [
        (f"log-{n}", 8) for n in range(4)
    ]
    _, printed = run(capsys, "ls", root, "log-2")
    assert (
        printed.out.splitlines()[0] == "log-2/0002000000000000"
        and len(printed.out.splitlines()) == 8
    )
    code, printed = run(capsys, "ls", root, "log-9")
    assert code == 1 and "has no log 'log-9'" in printed.err


def test_verify(root, capsys):
    code, printed = run(capsys, "verify", root)
    assert code == 0 and "4 shards are whole, 0 are damaged" in printed.out


def flipped(path):
    content = bytearray(path.read_bytes())
    content[1000] ^= 0x10
    path.write_bytes(content)


def truncated(path):
    os.truncate(path, 1000)


def missing(path):
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (flipped, "its checksum is not"),
        (truncated, "it has 1000 bytes, the manifest says 2048"),
        (missing, "No such file"),
    ],
)
def test_verify_names_the_damaged_file(root, capsys, damage, problem):
    path = root / "shards/log-1-000.safetensors"
    damage(path)
    code, printed = run(capsys, "verify", root)
    assert code == 1 and f"damaged: {path}: {problem}" in printed.out
    code, printed = run(capsys, "verify", root, "--json")
    (found,) = json.loads(printed.out)["damaged"]
    assert code == 1 and found["file"] == str(path) and problem in found["problem"]


def test_damage_is_mended_by_what_verify_says(root, ego_cache, capsys):
    flipped(root / "shards/log-1-000.safetensors")
    (root / "shards/log-1-000.json").unlink()
    assert main(["prepare", str(root), "--from-cache", str(ego_cache), "--workers=1"]) == 0
    assert run(capsys, "verify", root)[0] == 0


def test_verify_shows_files_that_nobody_knows(root, capsys):
    (root / "shards/.log-1-000.safetensors.node.7.tmp").touch()
    code, printed = run(capsys, "verify", root)
    assert (
        code == 0
        and "not of this data set" in printed.out
        and ".log-1-000.safetensors.node.7.tmp" in printed.out
    )


@pytest.mark.parametrize("action", ["info", "verify", "ls"])
def test_what_is_no_data_set_is_told(tmp_path, capsys, action):
    code, printed = run(capsys, action, tmp_path)
    assert code == 1 and "manifest.json is missing" in printed.err


def test_a_picture_sheet(tmp_path, capsys):
    cache, out = tmp_path / "cache", tmp_path / "set"
    main(["synth", str(cache), "--samples", "4", "--logs", "2", "--workers", "1"])
    main(["prepare", str(out), "--from-cache", str(cache), "--workers", "1", "--no-verify"])
    code, _ = run(capsys, "info", out, "--picture", tmp_path / "sheet.png", "--samples", 3)
    assert code == 0
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.width > 800 and picture.height > 400
        # Camera, maps and lines, not an empty page.
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 500


def test_a_picture_of_what_has_none(root, capsys, tmp_path):
    code, _ = run(capsys, "info", root, "--picture", tmp_path / "sheet.png")
    assert code == 0  # the trajectories


def test_what_looks_like_markup_is_shown_as_it_is(root, capsys):
    """A reason with brackets once ended the table after hours of work."""
    path = root / "manifest.json"
    content = json.loads(path.read_text())
    odd = "KeyError: [/lanes] [red]of :car: [link=x]"
    content["shards"][0]["failures"] = [{"log": "log-[/0]", "token": "[b]t", "reason": odd}]
    content["origin"]["cache"] = "/data/[/cache]"
    path.write_text(json.dumps(content))
    code, printed = run(capsys, "info", root)
    assert code == 0 and odd in printed.out and "/data/[/cache]" in printed.out
    assert "log-[/0]" in printed.out and "[b]t" in printed.out
