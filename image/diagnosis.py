"""What a failed build's output says, in plain words and with what to do."""

import re

# The first that is found counts.
REASONS = {
    r"No space left on device|ENOSPC|Write failed because": "the disk is full",
    r"DO NOT MATCH THE HASHES": (
        "a downloaded package is not the one that is locked: a damaged download, a mirror that "
        "rebuilds packages, or an edited lock file (`make lock` writes it anew)"
    ),
    r"CERTIFICATE_VERIFY_FAILED|certificate verif(y|ication) failed|"
    r"problem confirming the ssl certificate": (
        "a certificate could not be verified: behind a proxy that inspects TLS give its bundle, "
        "CA=/path/to/ca.pem"
    ),
    r"pull access denied|failed to resolve|[Ww]hile fetching|initializing source|"
    r"dial tcp|no such host": (
        "the base image cannot be fetched: without a registry give BASE= one that is here, an "
        "archive of docker save, a SIF or a root file system"
    ),
    r"No matching distribution found for torch==": (
        "the package index has no CPU build of torch: name one that has, as PyTorch's own, in "
        "PIP_EXTRA_INDEX_URL"
    ),
    r"onflicting dependencies|ResolutionImpossible": (
        "EXTRA asks for another version of what is locked: leave that package to the lock"
    ),
    r"Temporary failure|Unable to locate package|Failed to fetch": (
        "Debian's packages cannot be fetched: name a mirror that can be reached, APT_MIRROR=…"
    ),
    r"could not use fakeroot|user namespace|newuidmap": (
        "this machine does not let an ordinary user build: ask for user namespaces, or for a line "
        "in /etc/subuid"
    ),
}


def explain(output: str) -> str | None:
    """The reason in one line, or None for an output that has nothing known in it."""
    return next((reason for pattern, reason in REASONS.items() if re.search(pattern, output)), None)
