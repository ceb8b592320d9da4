"""One update of the official DiffCPS or Diffusion-QL, for loss_parity.py; see loss_parity_peer.py."""

from __future__ import annotations

import functools
import importlib
import types

import numpy as np
from loss_parity_peer import ACTION, BATCH, EVALUATED, OBSERVATION, STEPS, chain, main, prefixed, recorded, replaced


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


if __name__ == "__main__":
    main("torch", {peer: functools.partial(diffusion, peer) for peer in ("diffcps", "diffusion_ql")})
