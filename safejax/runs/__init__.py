"""Run directories that survive interruptions, and the policies in them."""

from safejax.runs.errors import Interrupted, RunError
from safejax.runs.files import write_json
from safejax.runs.policy import Policy, from_plain, load_policy, save_policy
from safejax.runs.run import Run

__all__ = [
    "Interrupted",
    "Policy",
    "Run",
    "RunError",
    "from_plain",
    "load_policy",
    "save_policy",
    "write_json",
]
