"""Loops that see an `Algorithm` value, never its file."""

from safejax.training.collect import collect, gather, limit_schedule, whole_episodes
from safejax.training.collect_maze import collect_maze
from safejax.training.offline import train_offline
from safejax.training.online import OnlineState, init_online, replay_for, train_iteration, train_online
from safejax.training.rollout import Actors, evaluate, rollout, start

__all__ = [
    "Actors",
    "OnlineState",
    "collect",
    "collect_maze",
    "evaluate",
    "gather",
    "init_online",
    "limit_schedule",
    "replay_for",
    "rollout",
    "start",
    "train_iteration",
    "train_offline",
    "train_online",
    "whole_episodes",
]
