"""Builds NAVSIM's agents, unedited, from their Hydra nodes."""

from typing import Any

from convoy.errors import ConvoyError
from convoy.navsim.importing import make_importable


def build_agent(agent_config: Any) -> Any:
    """Instantiate an agent from its Hydra node, NAVSIM's tree being made importable first.

    Raises ConvoyError when the class cannot be imported, or when the agent wants weights from a hub
    that cannot be reached (NAVSIM's TransFuser does, at training and at evaluation).
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    if _needs_navsim(agent_config._target_):
        make_importable()
    try:
        return instantiate(agent_config)
    except InstantiationException as error:
        causes = _causes(error)
        cause = causes[-1]
        if _is_missing_download(error):
            raise ConvoyError(
                f"The agent {agent_config._target_} downloads pretrained weights, and the model "
                f"hub cannot be reached from here ({type(cause).__name__}). Give the weights as a "
                "folder with config.json and pytorch_model.bin:\n  "
                "'+agent.config.image_architecture=\"local-dir:/path/to/folder\"' (TransFuser), "
                "or give a Hugging Face home that was filled elsewhere: HF_HOME=/path, in the "
                "image --bind /path:/opt/convoy/weights."
            ) from error
        # Hydra's message quotes the cause and cuts it at its first line.
        said = " From ".join(
            f"{type(each).__name__}: {' '.join(str(each).split())}." for each in causes[1:]
        )
        files = [each.filename for each in causes if isinstance(each, OSError) and each.filename]
        missing = f" The file is {files[-1]}." if files and files[-1] not in said else ""
        raise ConvoyError(
            f"The agent {agent_config._target_} could not be built. "
            f"{said or ' '.join(str(error).split())}{missing}{_install(cause)}"
        ) from error


def _install(cause: BaseException) -> str:
    """How an agent's own requirements are installed."""
    if not isinstance(cause, ModuleNotFoundError) or not cause.name:
        return ""
    return (
        f" If {cause.name.split('.')[0]} is a requirement of the agent's: install it with "
        ".venv/bin/pip, and into the image with make image EXTRA=requirements.txt."
    )


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what led to it, the first cause last."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    return causes


def _needs_navsim(target: str) -> bool:
    """Whether the class path `target` (an agent's `_target_`) can only be imported with NAVSIM in
    place."""
    return target.split(".")[0] != "convoy"


def _is_missing_download(error: BaseException | None) -> bool:
    while error is not None:
        if type(error).__module__.split(".")[0] in {
            "huggingface_hub",
            "httpx",
            "httpcore",
            "requests",
            "urllib3",
        }:
            return True
        error = error.__cause__ or error.__context__
    return False
