"""Loops that see an `Algorithm` value, never its file."""

from safejax.training.collect import collect, gather, limit_schedule, whole_episodes
from safejax.training.collect_maze import collect_maze
from safejax.training.guard import finite_means, skip_non_finite
from safejax.training.host import HostState, evaluate_host, host_rollout, init_online_host, train_online_host
from safejax.training.offline import train_offline
from safejax.training.online import OnlineState, init_online, replay_for, train_iteration, train_online
from safejax.training.rollout import Actors, evaluate, rollout, start
from safejax.training.slabs import train_offline_slabs

__all__ = [
    "Actors",
    "HostState",
    "OnlineState",
    "collect",
    "collect_maze",
    "evaluate",
    "evaluate_host",
    "finite_means",
    "gather",
    "host_rollout",
    "init_online",
    "init_online_host",
    "limit_schedule",
    "replay_for",
    "rollout",
    "skip_non_finite",
    "start",
    "train_iteration",
    "train_offline",
    "train_offline_slabs",
    "train_online",
    "train_online_host",
    "whole_episodes",
]
