"""An agent's builders, which need none of its weights."""

from dataclasses import dataclass
from typing import Any

from convoy.navsim.agents import build_agent
from convoy.navsim.importing import make_importable


@dataclass(frozen=True)
class AgentBuilders:
    """What turns scenes into features and targets. `unbuilt` says why the agent itself could not be
    built, where that was so."""

    features: tuple[Any, ...]
    targets: tuple[Any, ...]
    sensor_config: Any
    unbuilt: str | None = None


def builders_of(agent_config: Any) -> AgentBuilders:
    """The builders of the agent of a Hydra node.

    Agents keep their configuration before they build their model, and their builders ask for
    nothing else. So an agent whose model cannot be built (for want of weights, of a GPU, of a
    network) is good enough. Raises ConvoyError where it is not, with the reason.
    """
    from hydra.utils import instantiate

    make_importable()
    try:
        make = instantiate(agent_config, _partial_=True)
        agent = make.func.__new__(make.func)
    except Exception:
        return _ask(build_agent(agent_config))
    try:
        agent.__init__(*make.args, **make.keywords)
    except Exception as error:  # whatever an agent may raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        try:
            return _ask(agent, reason)
        except Exception:
            return _ask(build_agent(agent_config))
    return _ask(agent)


def _ask(agent: Any, unbuilt: str | None = None) -> AgentBuilders:
    return AgentBuilders(
        tuple(agent.get_feature_builders()),
        tuple(agent.get_target_builders()),
        agent.get_sensor_config(),
        unbuilt,
    )
