"""The other side of loss_parity.py: one update of an official implementation, with all that went in and came out.

`python loss_parity_peer.py PEER CHECKOUT FILE` runs under the peer's own interpreter (Python >= 3.9) and writes an npz
file. Packages that are imported there but that no update touches (simulators, loggers) are replaced by stand-ins.
Random draws are not replaced but recorded, in their order. Names in the file:

    batch/*    what the update was given                   number/*   hyper-parameters
    before/*   parameters at its start, by network         draw/*     random draws, by what they served
    moment/*   first Adam moments after it, 0.1 x gradient after/*    parameters at its end
    term/*     what the official code says it computed     text/*     revision and versions
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import subprocess
import sys
import types

import numpy as np

BATCH, OBSERVATION, ACTION = 64, 5, 3
STEPS = 5  # of the diffusion chain, as published
EVALUATED = 8  # observations of the batch that actions are evaluated for
ABSENT = ("d4rl", "gym", "wandb", "dmcgym", "dm_control", "moviepy", "imageio", "dateutil")


class StandIn(types.ModuleType):
    """A package whose every attribute is an empty class."""

    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__class_getitem__": classmethod(lambda cls, item: cls)})


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Serves a `StandIn` for the packages in `ABSENT` and whatever is below them."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in ABSENT:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        pass


@contextlib.contextmanager
def replaced(module, **functions):
    """Attributes of `module`, replaced for a while."""
    kept = {name: getattr(module, name) for name in functions}
    try:
        for name, function in functions.items():
            setattr(module, name, function)
        yield
    finally:
        for name, function in kept.items():
            setattr(module, name, function)


@contextlib.contextmanager
def recorded(module, *names):
    """The arrays that these functions of `module` return meanwhile, in order; flax traces initialisers, which draw none."""
    draws = []

    def recording(function):
        def call(*arguments, **options):
            draw = function(*arguments, **options)
            if "Tracer" not in type(draw).__name__:
                draws.append(draw)
            return draw

        return call

    with replaced(module, **{name: recording(getattr(module, name)) for name in names}):
        yield draws


def chain(draws):
    """What one reverse chain drew, [T + 1, rows, A]: its start, then the noise of steps T - 1 to 0."""
    return np.stack([np.asarray(draw) for draw in draws])


def make_batch():
    """Standard normal rows, a fifth of them terminal; actions inside the bounds."""
    random = np.random.default_rng(0)
    rows = {
        "observation": random.normal(size=(BATCH, OBSERVATION)),
        "action": np.clip(0.5 * random.normal(size=(BATCH, ACTION)), -0.999, 0.999),
        "reward": random.normal(size=BATCH),
        "discount": random.random(BATCH) > 0.2,
        "next_observation": random.normal(size=(BATCH, OBSERVATION)),
    }
    return {name: value.astype(np.float32) for name, value in rows.items()}


def prefixed(prefix, tree):
    """The entries of `tree` under names that start with `prefix`, as NumPy arrays."""
    return {f"{prefix}/{name}": np.asarray(value).copy() for name, value in tree.items()}


def diffusion_agent(peer, **options):
    """DiffCPS or Diffusion-QL; the networks that follow the others start from weights of their own."""
    torch = importlib.import_module("torch")
    if peer == "diffcps":
        kind = importlib.import_module("agents.diffcps").DiffCPS
    else:
        kind = importlib.import_module("agents.ql_diffusion").Diffusion_QL
    sizes = {"state_dim": OBSERVATION, "action_dim": ACTION, "max_action": 1.0, "device": "cpu"}
    agents = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        agents.append(kind(beta_schedule="vp", step_start_ema=0, **sizes, **options))
    agent, other = agents
    agent.ema_model.load_state_dict(other.actor.state_dict())
    agent.critic_target.load_state_dict(other.critic.state_dict())
    return agent


def diffusion_update(agent, batch, uniform):
    """One call of `train` for one step: its logged scalars and its draws; `uniform` chooses the critic it climbs."""
    torch = importlib.import_module("torch")
    order = [batch[name] for name in ("observation", "action", "next_observation")]
    order += [batch[name][:, None] for name in ("reward", "discount")]
    rows, logged = [torch.from_numpy(part) for part in order], {}
    buffer = types.SimpleNamespace(sample=lambda size: rows)
    writer = types.SimpleNamespace(add_scalar=lambda name, value, step: logged.update({name: value}))
    with recorded(torch, "randn", "randn_like", "randint") as draws, replaced(np.random, uniform=lambda: uniform):
        metric = agent.train(buffer, 1, BATCH, log_writer=writer)
    split = STEPS + 1
    named = {"next_action": chain(draws[:split]), "time_index": draws[split], "noise": draws[split + 1]}
    named["action"] = chain(draws[split + 2 :])
    return {**logged, "Actor Loss": metric["actor_loss"][0]}, named


def diffusion_case(peer, batch, case, numbers, uniform):
    """One update under `numbers`, its entries of the file named after the `case`; and the agent as it was before."""
    agent, untouched = (diffusion_agent(peer, **numbers) for _ in range(2))
    logged, draws = diffusion_update(agent, batch, uniform)
    terms = {"critic_loss": logged["Critic Loss"], "actor_loss": logged["Actor Loss"]}
    if peer == "diffcps":  # it logs no Q loss; the multiplier in its actor's loss is the one from before its step
        terms.update(behavior_loss=logged["KL Loss"], multiplier=logged["Lambda"], multiplier_gradient=agent.LA.grad)
        terms.update(value_loss=terms["actor_loss"] - numbers["LA"] * terms["behavior_loss"])
    else:
        terms.update(behavior_loss=logged["BC Loss"], value_loss=logged["QL Loss"])
    file = {**prefixed(f"number/{case}", numbers), **prefixed(f"draw/{case}", draws), **prefixed(f"term/{case}", terms)}
    networks = {"actor": agent.actor, "critic": agent.critic}
    for name, optimizer in (("actor", agent.actor_optimizer), ("critic", agent.critic_optimizer)):
        moments = {key: optimizer.state[part]["exp_avg"] for key, part in networks[name].named_parameters()}
        file.update(prefixed(f"moment/{case}/{name}", moments))
    for name, network in (("ema_actor", agent.ema_model), ("target_critic", agent.critic_target)):
        file.update(prefixed(f"after/{case}/{name}", network.state_dict()))
    return file, untouched


def diffusion(peer, batch):
    """DiffCPS and Diffusion-QL: an update with and one without the max-Q backup, the chain, the choice of actions."""
    torch = importlib.import_module("torch")
    numbers = {"discount": 0.99, "tau": 0.005, "lr": 3e-4, "n_timesteps": STEPS}
    numbers.update({"target_kl": 0.06, "LA": 1.5, "policy_freq": 2} if peer == "diffcps" else {"eta": 1.7})
    # the second clips its gradients and climbs the second critic
    cases = {"plain": (False, 9.0, 0.75), "backup": (True, 0.3, 0.25)}
    file = {}
    for case, (backup, bound, uniform) in cases.items():
        options = {**numbers, "max_q_backup": backup, "grad_norm": bound}
        entries, agent = diffusion_case(peer, batch, case, options, uniform)
        file.update(entries)
    networks = {"actor": agent.actor, "critic": agent.critic}
    networks.update(ema_actor=agent.ema_model, target_critic=agent.critic_target)
    for name, network in networks.items():
        file.update(prefixed(f"before/{name}", network.state_dict()))

    observation, action = torch.from_numpy(batch["observation"]), torch.from_numpy(batch["action"])
    time_index, noise = (torch.from_numpy(file[f"draw/plain/{name}"]) for name in ("time_index", "noise"))
    with torch.no_grad():
        noisy = agent.actor.q_sample(action, time_index, noise)
        terms = {"noisy_action": noisy, "noise_prediction": agent.actor.model(noisy, time_index, observation)}
        with recorded(torch, "randn", "randn_like") as draws:
            terms["chain"] = agent.actor.sample(observation)
    file["draw/chain"] = chain(draws)

    probabilities, chosen, chosen_draws = [], [], []

    def likeliest(weights, count):
        probabilities.append(weights.numpy())
        return weights.argmax().reshape(count)

    for row in batch["observation"][:EVALUATED]:
        with recorded(torch, "randn", "randn_like") as draws, replaced(torch, multinomial=likeliest):
            chosen.append(agent.sample_action(row))
        chosen_draws.append(chain(draws))
    file["draw/chosen"] = np.stack(chosen_draws, axis=2)
    terms.update(chosen=np.stack(chosen), probabilities=np.stack(probabilities, axis=1))
    file.update(prefixed("term", terms))
    return file


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
        jax.tree_multimap = jax.tree_util.tree_map
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


def main():
    """Run the peer's update and write the file."""
    peer, checkout, output = sys.argv[1:]
    sys.argv = sys.argv[:1]
    sys.meta_path.insert(0, StandIns())
    sys.path[0] = checkout  # in place of this script's folder
    batch = make_batch()
    file = {"idql": idql, "iql": iql}[peer](batch) if peer in ("idql", "iql") else diffusion(peer, batch)
    file.update(prefixed("batch", batch))
    engine = "jax" if peer in ("idql", "iql") else "torch"
    git = subprocess.run(["git", "-C", checkout, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    versions = f"{engine} {importlib.import_module(engine).__version__}, Python {sys.version.split()[0]}"
    file.update(prefixed("text", {"revision": git.stdout.strip() or "unknown", "versions": versions}))
    np.savez(output, **file)


if __name__ == "__main__":
    main()
