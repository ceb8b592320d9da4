"""Environments of other libraries in our loops, and ours in theirs.

| library | theirs for our loops | ours for theirs |
| --- | --- | --- |
| brax | `from_brax`, an `Env` | `to_brax`, for brax's training and wrappers |
| MuJoCo Playground | `from_playground`, an `Env` | `to_brax` |
| gymnasium | `from_gymnasium`, for `train_online_host` | `to_gymnasium`, a `VectorEnv`; `to_gymnasium_env` |

gymnasium and MuJoCo Playground are extras (`pip install 'safejax[gym]'`, `'safejax[playground]'`). No library is
imported before one of its functions is called.
"""

from safejax.envs.adapters.brax import from_brax, to_brax
from safejax.envs.adapters.from_gymnasium import from_gymnasium
from safejax.envs.adapters.playground import from_playground
from safejax.envs.adapters.to_gymnasium import to_gymnasium, to_gymnasium_env

__all__ = ["from_brax", "from_gymnasium", "from_playground", "to_brax", "to_gymnasium", "to_gymnasium_env"]
