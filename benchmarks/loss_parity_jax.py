"""One update of the official IQL or IDQL, for loss_parity.py; see loss_parity_peer.py."""

from __future__ import annotations

import importlib
import types

import numpy as np
from loss_parity_peer import ACTION, EVALUATED, OBSERVATION, STEPS, chain, main, prefixed, recorded


def flat(params):
    """Nested flax parameters by path."""
    util = importlib.import_module("flax.traverse_util")
    core = importlib.import_module("flax.core")
    return {"/".join(path): leaf for path, leaf in util.flatten_dict(core.unfreeze(params)).items()}


def first_moment(opt_state):
    """The first moments in a (nested) optimiser state."""
    if hasattr(opt_state, "mu"):
        return opt_state.mu
    for part in opt_state if isinstance(opt_state, tuple) else ():
        found = first_moment(part)
        if found is not None:
            return found
    return None


def idql(batch):
    """IDQL as its repository now has it, without dropout: one update, the sampler, the action that it evaluates.

    And one step of the values of its paper's state (`ddpm_iql`), which alone has the other two regressions.
    """
    jax = importlib.import_module("jax")
    folder = "jaxrl5.agents.{0}.ddpm_iql_learner"
    module, paper = (importlib.import_module(folder.format(name)) for name in ("ddpm_iql_simple", "ddpm_iql"))
    numbers = {"discount": 0.99, "tau": 0.005, "actor_tau": 0.001, "critic_hyperparam": 0.7, "T": STEPS, "N": 64}
    numbers.update(actor_lr=3e-4, critic_lr=3e-4, value_lr=3e-4)
    spaces = [types.SimpleNamespace(shape=(n,), sample=lambda n=n: np.zeros(n, "f")) for n in (OBSERVATION, ACTION)]

    def create(kind, **options):
        agent, other = (kind.create(seed, *spaces, **numbers, **options) for seed in (0, 1))
        return agent.replace(
            target_critic=agent.target_critic.replace(params=other.critic.params),
            target_score_model=agent.target_score_model.replace(params=other.score_model.params),
        )

    agent = create(module.DDPMIQLLearner, beta_schedule="vp")
    networks = ("score_model", "target_score_model", "critic", "target_critic", "value")
    file = prefixed("number", numbers)
    for name in networks:
        file.update(prefixed(f"before/{name}", flat(getattr(agent, name).params)))
    names = {"observations": "observation", "actions": "action", "rewards": "reward", "masks": "discount"}
    rows = {theirs: batch[ours] for theirs, ours in {**names, "next_observations": "next_observation"}.items()}

    with jax.disable_jit():  # so that draws are arrays when they are recorded
        with recorded(jax.random, "normal", "randint") as draws:
            after, terms = agent.update(rows)
        file["draw/time_index"], file["draw/noise"] = (np.array(draw) for draw in draws)
        apply, params = agent.score_model.apply_fn, agent.target_score_model.params
        schedule = (agent.alphas, agent.alpha_hats, agent.betas)
        with recorded(jax.random, "normal") as draws:
            chain_end, _ = module.ddpm_sampler(
                apply, params, STEPS, agent.rng, ACTION, rows["observations"], *schedule, 1.0, 0, True
            )
        file["draw/chain"] = chain(draws)
        evaluated, evaluated_draws = [], []
        for observation in rows["observations"][:EVALUATED]:
            with recorded(jax.random, "normal") as draws:
                evaluated.append(agent.eval_actions(observation)[0])
            evaluated_draws.append(chain(draws))
        file["draw/evaluated"] = np.stack(evaluated_draws, axis=2)
    terms = {**terms, "betas": agent.betas, "alpha_hats": agent.alpha_hats}
    file.update(prefixed("term", {**terms, "chain": chain_end, "evaluated": np.stack(evaluated)}))
    for name in networks:
        state = getattr(after, name)
        file.update(prefixed(f"after/{name}", flat(state.params)))
        if not name.startswith("target"):
            file.update(prefixed(f"moment/{name}", flat(first_moment(state.opt_state))))

    for objective, number in (("expectile", 0.7), ("quantile", 0.6), ("exponential", 1.0)):
        agent = create(paper.DDPMIQLLearner, critic_objective=objective).replace(critic_hyperparam=number)
        after, terms = agent.update_v(rows)
        file.update(prefixed(f"before/{objective}_value", flat(agent.value.params)))
        file.update(prefixed(f"before/{objective}_target_critic", flat(agent.target_critic.params)))
        file.update(prefixed(f"moment/{objective}_value", flat(first_moment(after.value.opt_state))))
        file[f"number/{objective}"], file[f"term/{objective}_value_loss"] = np.array(number), terms["value_loss"]
    return file


def iql(batch):
    """The original IQL: one update."""
    jax = importlib.import_module("jax")
    if not hasattr(jax, "tree_multimap"):  # an old name of `tree_map`, which the official code uses
        setattr(jax, "tree_multimap", jax.tree_util.tree_map)  # noqa: B010
    learner, common = importlib.import_module("learner"), importlib.import_module("common")
    # a large inverse temperature, so that some weights reach the clip at 100
    numbers = {"discount": 0.99, "tau": 0.005, "expectile": 0.7, "temperature": 50.0, "max_steps": 1000}
    example = (np.zeros((1, OBSERVATION), "f"), np.zeros((1, ACTION), "f"))
    agent, other = (learner.Learner(seed, *example, **numbers) for seed in (0, 1))
    agent.target_critic = agent.target_critic.replace(params=other.critic.params)
    networks = ("actor", "critic", "value", "target_critic")
    file = prefixed("number", numbers)
    for name in networks:
        file.update(prefixed(f"before/{name}", flat(getattr(agent, name).params)))
    order = ("observation", "action", "reward", "discount", "next_observation")
    terms = agent.update(common.Batch(*(batch[name] for name in order)))
    file.update(prefixed("term", terms))
    for name in networks:
        model = getattr(agent, name)
        file.update(prefixed(f"after/{name}", flat(model.params)))
        if name != "target_critic":
            file.update(prefixed(f"moment/{name}", flat(first_moment(model.opt_state))))
    return file


if __name__ == "__main__":
    main("jax", {"iql": iql, "idql": idql})
