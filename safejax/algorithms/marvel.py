"""Marvel: fine-tune an offline policy safely online, by value pre-alignment and an adaptive PID multiplier.

Chen et al. 2024, https://arxiv.org/abs/2412.04426. Two phases over one State (SAC-Lagrangian's):
`make_alignment` re-fits both critics to the frozen offline policy on the offline data, under the objective that
fine-tuning will use; `make_finetuning` is SAC-Lagrangian whose multiplier is an adaptive PID controller.

The paper's equations were read through its public reviews; the entropy coefficients of alignment are not published
(unconfirmed). What the released code (CLIVERCHEN/Marvel-O2O_Safe_RL@dbc214a) does otherwise, and we do not:
- its driver crashes on an undefined argument, so no published command runs;
- its alignment has no entropy term at all; the variant with one adds the batch mean to both targets;
- its "log-probability" is the Gaussian's entropy minus the tanh correction, so the temperature penalises entropy;
- its actor trunk ends in tanh where the offline actor's ends in ReLU: parameters load, the function differs;
- critics are loaded by matching name and shape, which silently loads none of BEAR-Lag's: `warm_start` is strict;
- restoring the actor's Adam state restores its offline learning rate; move `actor.params` to start afresh;
- BEAR-Lag's critics are trained at reward scale 1 and used at 0.1;
- a time limit counts as termination, offline and online; here it bootstraps;
- the actor follows the target critics; here the online ones;
- the controller ticks 20 times per outer iteration with one cost (`MultiplierConfig.ticks`);
- the adaptive gains start by shrinking and the derivative gain only grows (see `constraints.adaptive_pid`).

Shapes: B batch, E critics, O observation, A action.
"""

from __future__ import annotations

from dataclasses import dataclass

from safejax.algorithms import sac_lag
from safejax.algorithms.sac_lag import Networks, State, default_networks, init
from safejax.multipliers import MultiplierConfig
from safejax.types import (
    Algorithm,
    BatchSpec,
    Key,
    Metrics,
    Transition,
    bind,
    check_range,
    choose_networks,
)

__all__ = [
    "Config",
    "Networks",
    "State",
    "align",
    "default_networks",
    "init",
    "make",
    "make_alignment",
    "make_finetuning",
]


@dataclass(frozen=True, kw_only=True)
class Config(sac_lag.Config):
    """SAC-Lagrangian's numbers with Marvel's multiplier, and alignment's two."""

    multiplier: MultiplierConfig = MultiplierConfig(kind="adaptive_pid")
    alignment_entropy_coefficient: float = 0.0  # alpha of the reward target; 0 is the released code
    alignment_cost_entropy_coefficient: float = 0.0  # alpha_c of the cost target; the paper has alpha_c < alpha


def align(state: State, batch: Transition, key: Key, *, config: Config, networks: Networks) -> tuple[State, Metrics]:
    """One step of value pre-alignment on offline data [B]: critics and targets move, actor and multiplier do not.

    Fixed point (derived): Q = Q^pi + alpha U and Qc = Qc^pi + alpha_c U with U the discounted future entropy, so a
    positive alpha_c raises the cost critic where the offline policy is uncertain. Source: paper eqs. 8 and 9.
    """
    coefficients = (config.alignment_entropy_coefficient, config.alignment_cost_entropy_coefficient)
    return sac_lag.update_critics(
        state, batch, key, entropy_coefficients=coefficients, config=config, networks=networks
    )


def make_alignment(
    config: Config = Config(), networks: Networks | None = None, *, action_size: int | None = None
) -> Algorithm:
    """The first phase: `update` is `align`, on uniform batches of the offline data."""
    sac_lag.check(config)
    check_range("alignment_entropy_coefficient", config.alignment_entropy_coefficient, 0.0)
    check_range("alignment_cost_entropy_coefficient", config.alignment_cost_entropy_coefficient, 0.0)
    return bind(
        config=config,
        networks=choose_networks(networks, default_networks, action_size),
        batch=BatchSpec.uniform(),
        init=init,
        update=align,
        act=sac_lag.act,
    )


def make_finetuning(
    config: Config = Config(), networks: Networks | None = None, *, action_size: int | None = None
) -> Algorithm:
    """The second phase: SAC-Lagrangian under the configured multiplier, from an empty or a mixed replay."""
    return sac_lag.make(config, networks, action_size=action_size)


make = make_finetuning  # what a trained policy acts with: the table's other modules have one `make`
