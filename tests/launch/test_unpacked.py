import os
import shutil

import pytest

from convoy.errors import ConvoyError
from convoy.launch import unpacked

DIGEST = "sha256:" + "0123456789abcdef" * 4
DAY = 86400


def name_of(disk):
    return unpacked.folder_name(disk, DIGEST, "/local")


def test_a_folder_per_content_that_only_its_user_can_write_to(tmp_path):
    name = name_of(tmp_path)
    assert name == f"convoy-{os.geteuid()}/image-0123456789abcdef" == name_of(tmp_path)
    assert (tmp_path / name).parent.stat().st_mode & 0o077 == 0


def test_a_folder_that_others_can_write_to_is_refused(tmp_path):
    own = tmp_path / f"convoy-{os.geteuid()}"
    own.mkdir()
    own.chmod(0o777)
    with pytest.raises(ConvoyError, match="/local/convoy-.* only you can write to"):
        name_of(tmp_path)
    own.rmdir()
    (tmp_path / "elsewhere").mkdir()
    own.symlink_to("elsewhere")
    with pytest.raises(ConvoyError, match="only you can write to"):
        name_of(tmp_path)


def test_room_is_required_for_all_that_the_image_holds(tmp_path, monkeypatch):
    (tmp_path / "image/usr").mkdir(parents=True)
    (tmp_path / "image/usr/library").write_bytes(b"x" * 5000)
    (tmp_path / "image/tmp").mkdir()
    (tmp_path / "image/tmp/other").write_bytes(b"x" * 5000)  # no content of an image
    usage = shutil.disk_usage(tmp_path)
    needed = unpacked.RESERVED + 4096 + 4096 + 8192 + 4096  # a block each for usr and the two names
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        if fits:
            unpacked.require_room(tmp_path / "folder", tmp_path / "image")
        else:
            with pytest.raises(ConvoyError, match="are free"):
                unpacked.require_room(tmp_path / "folder", tmp_path / "image")


def test_what_no_start_used_for_two_weeks_is_removed(tmp_path):
    folders = [tmp_path / f"image-{number:016}" for number in range(3)]
    for folder in folders:
        folder.mkdir()
    (tmp_path / "image-0000000000000009.partial").mkdir()
    now = folders[0].stat().st_mtime
    unpacked.use(folders[0], now)
    unpacked.use(folders[1], now + 10 * DAY)
    unpacked.use(folders[2], now + 15 * DAY)
    assert [folder.exists() for folder in folders] == [False, True, True]
    assert not (tmp_path / f"{folders[0].name}.used").exists()
    assert (tmp_path / "image-0000000000000009.partial").exists()
