"""One file per method, one shape: Config, Networks, State, init, update, act, make.

To add one: copy `bc.py`; name its parts in Networks and State; write `update` from targets to metrics; write `act`;
add a line to `MODULES`. Module-level functions are the API, `make` binds them, jit belongs to the caller.

Any of them learns from pixels: `make(networks=default_networks(action_size, encoder=PixelEncoder()))` puts an encoder,
that of `safejax.networks` or another, in front of every network. Methods with a world model have one of their own.
"""

from __future__ import annotations

import importlib
from types import ModuleType

MODULES = {
    "bc": "safejax.algorithms.bc",
    "awr": "safejax.algorithms.awr",
    "iql": "safejax.algorithms.iql",
    "td3_bc": "safejax.algorithms.td3_bc",
    "diffusion_bc": "safejax.algorithms.diffusion_bc",
    "idql": "safejax.algorithms.idql",
    "align_iql": "safejax.algorithms.align_iql",
    "sfbc": "safejax.algorithms.sfbc",
    "diffusion_ql": "safejax.algorithms.diffusion_ql",
    "diffcps": "safejax.algorithms.diffcps",
    "cpq": "safejax.algorithms.cpq",
    "ppo_lag": "safejax.algorithms.ppo_lag",
    "sac_lag": "safejax.algorithms.sac_lag",
    "extraction": "safejax.algorithms.extraction",
    "pex": "safejax.algorithms.pex",
    "marvel": "safejax.algorithms.marvel",
    "safe_dreamer": "safejax.algorithms.safe_dreamer",
    "fosp": "safejax.algorithms.fosp",
}
"""The one table from a method's name to its module."""


def module(name: str) -> ModuleType:
    """The module of a method.

    Raises:
      ValueError: one line that lists the methods.
    """
    if name not in MODULES:
        raise ValueError(f"method is {name!r}, expected one of {', '.join(MODULES)}")
    return importlib.import_module(MODULES[name])
