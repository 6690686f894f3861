"""`convoy image` outside of an image; inside: tests/image."""

import pytest

from convoy.commands import __main__ as cli


@pytest.mark.parametrize("what", ["digest", "manifest"])
def test_outside_of_an_image_it_says_so(what, capsys):
    assert cli.main(["image", what]) == 1
    assert capsys.readouterr().err.startswith("convoy: There is no image here.")
