"""Safe offline-to-online reinforcement learning as pure JAX functions."""

from safejax.types import (
    Algorithm,
    BatchSpec,
    Env,
    EnvState,
    EpisodeStats,
    Metrics,
    Network,
    TrainState,
    Transition,
)

__version__ = "0.1.0"

__all__ = [
    "Algorithm",
    "BatchSpec",
    "Env",
    "EnvState",
    "EpisodeStats",
    "Metrics",
    "Network",
    "TrainState",
    "Transition",
    "__version__",
]
