"""What a failed build says in the end, from the words of the programs that failed."""

import pytest
from diagnosis import explain


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            "Write failed because No space left on device\nFATAL ERROR: Failed to write",
            "the disk is full",
        ),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.",
            "not the one that is locked",
        ),
        (
            "SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate",
            "CA=/path/to/ca.pem",
        ),
        ("pull access denied, repository does not exist", "BASE="),
        ('initializing source docker://debian:12: Get "https://…": dial tcp: lookup', "BASE="),
        ("ERROR: No matching distribution found for torch==2.13.0+cpu", "PIP_EXTRA_INDEX_URL"),
        ("The conflict is caused by … Conflicting dependencies", "EXTRA asks for another version"),
        ("E: Failed to fetch http://deb…  Temporary failure resolving", "APT_MIRROR"),
        ("FATAL: could not use fakeroot: no mapping entry found in /etc/subuid", "/etc/subuid"),
    ],
)
def test_the_reason_names_the_remedy(output, expected):
    reason = explain(f"some line\n{output}\nanother")
    assert reason is not None and expected in reason and "\n" not in reason


def test_the_unknown_is_left_alone():
    assert explain("Segmentation fault") is None
