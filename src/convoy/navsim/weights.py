"""Backbone weights for agents that would download them."""

from pathlib import Path

from convoy.errors import ConvoyError


def write_random_backbone(architecture: str, folder: Path) -> Path:
    """Write randomly initialised weights of a timm model to `folder`, as
    `image_architecture=local-dir:<folder>` reads them: for trying TransFuser where no model hub can
    be reached. Returns `folder`."""
    import convoy.navsim.torchvision_cpu  # noqa: F401

    # isort: split
    try:
        import timm
        from timm.models import save_for_hf
    except ImportError as error:
        raise ConvoyError(
            f"timm cannot be imported ({error}): make navsim installs what NAVSIM's agents need."
        ) from error

    save_for_hf(
        timm.create_model(architecture, pretrained=False), str(folder), safe_serialization=False
    )
    return folder
