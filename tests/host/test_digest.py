import hashlib
import os

import pytest

from convoy.errors import ConvoyError
from convoy.host.digest import image_digest


def test_computed_once_and_again_when_the_image_changes(tmp_path):
    image = tmp_path / "convoy.sif"
    image.write_bytes(b"first")
    os.utime(image, ns=(1, 1))
    assert image_digest(image) == hashlib.sha256(b"first").hexdigest()
    kept = tmp_path / "convoy.sif.sha256"
    assert kept.read_text().split() == [hashlib.sha256(b"first").hexdigest(), "convoy.sif"]
    kept.write_text("kept  convoy.sif\n")
    assert image_digest(image) == "kept"
    image.write_bytes(b"second")
    os.utime(image, ns=(2**62, 2**62))
    assert image_digest(image) == hashlib.sha256(b"second").hexdigest()


def test_no_image(tmp_path):
    with pytest.raises(ConvoyError, match="cannot be read .*make image"):
        image_digest(tmp_path / "gone.sif")
