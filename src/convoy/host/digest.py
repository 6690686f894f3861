"""The digest of an image file, computed once: it is kept beside the image, where the launch reads
it too."""

import contextlib
import hashlib
from pathlib import Path

from convoy.errors import ConvoyError


def image_digest(image: Path) -> str:
    """SHA-256 of `image`, from `<image>.sha256` where that is newer. Raises ConvoyError where there
    is no image."""
    try:
        modified = image.stat().st_mtime_ns
        kept = image.with_name(f"{image.name}.sha256")
        if kept.is_file() and kept.stat().st_mtime_ns > modified:
            return kept.read_text().split()[0]
        with image.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConvoyError(
            f"The image {image} cannot be read ({error.strerror}): make image, or "
            "CONVOY_IMAGE=/path/to/convoy.sif."
        ) from error
    with contextlib.suppress(OSError):  # somebody else's image: then it is computed each time
        kept.write_text(f"{digest}  {image.name}\n")
    return digest
