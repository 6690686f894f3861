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
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if _is_missing_download(error):
            raise ConvoyError(
                f"The agent {agent_config._target_} downloads pretrained weights, and the model "
                f"hub cannot be reached from here ({type(cause).__name__}). Give the weights as a "
                "folder with config.json and pytorch_model.bin:\n  "
                "'+agent.config.image_architecture=\"local-dir:/path/to/folder\"' (TransFuser), "
                "or give a Hugging Face home that was filled elsewhere: HF_HOME=/path, in the "
                "image --bind /path:/opt/convoy/weights."
            ) from error
        raise ConvoyError(
            f"The agent {agent_config._target_} could not be built: {str(error).splitlines()[0]} "
            f"({type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''})"
        ) from error


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
