"""From an offline checkpoint to online learning: for every method, what moves where.

Three bridges. A Gaussian actor goes into Marvel as it is; any other policy is first extracted into a Gaussian by
weighted regression (`extraction`). Policy expansion (`pex`) keeps the offline policy frozen beside a new one. DiffCPS
goes on with its own update (`diffcps.make_finetuning`). Each is one `warm_start` mapping; value pre-alignment fits
the cost critic where the offline method had none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from presets import FINETUNING, Budget, Method, finetuning_config

from safejax import algorithms
from safejax.algorithms import cpq, diffcps, extraction, marvel, pex
from safejax.algorithms.safety import SafetyConfig
from safejax.types import Algorithm


@dataclass(frozen=True)
class Form:
    """How the benchmark runs one offline method."""

    module: str
    frozen: str  # kind of its policy, a key of `proposal.PROPOSALS`
    policy: str  # where in its State the parameters that act are
    critic: str | None = "target_critic"  # the reward critic that extraction asks; None without one
    direct: bool = False  # Marvel can fine-tune the actor as it is
    networks: tuple[tuple[str, Any], ...] = ()  # keyword arguments of default_networks
    numbers: tuple[tuple[str, Any], ...] = ()  # of the Config


FORMS = {
    "cpq": Form("cpq", "squashed", "actor.params", direct=True),
    "iql": Form("iql", "squashed", "actor.params", direct=True, networks=(("actor", "squashed"),)),
    "bc": Form("bc", "squashed", "actor.params", None, direct=True),
    "awr": Form("awr", "squashed", "actor.params", None, direct=True, networks=(("actor", "squashed"),)),
    "td3_bc": Form("td3_bc", "deterministic", "actor.params"),
    "diffusion_bc": Form("diffusion_bc", "residual", "ema_actor", None),
    "idql": Form("idql", "residual", "ema_actor"),
    "align_iql": Form("align_iql", "residual", "ema_actor"),
    "align_iql_gaussian": Form(
        "align_iql",
        "squashed",
        "actor.params",
        direct=True,
        networks=(("actor", "squashed"),),
        numbers=(("policy", "gaussian"),),
    ),
    "sfbc": Form("sfbc", "residual", "ema_actor"),
    "diffusion_ql": Form("diffusion_ql", "mlp", "actor.params"),
    "diffcps": Form("diffcps", "mlp", "actor.params"),
}
"""Method -> its form. Every method whose Config has `safety` also goes by "safe_<method>", its safe form."""


def names() -> tuple[str, ...]:
    """What `--offline` may be."""
    safe = (f"safe_{name}" for name, form in FORMS.items() if hasattr(_module(form).Config(), "safety"))
    return (*FORMS, *safe)


def _module(form: Form) -> ModuleType:
    return algorithms.module(form.module)


@dataclass(frozen=True)
class Offline:
    """One pre-training method, bound."""

    form: Form
    config: Any
    networks: Any
    algorithm: Algorithm
    action_size: int
    episode_length: int
    hidden_sizes: tuple[int, ...]
    reward_scale: float

    @property
    def safe(self) -> bool:
        """Whether the checkpoint holds a cost critic of `safety.py`."""
        return getattr(self.config, "safety", None) is not None

    @property
    def is_diffusion(self) -> bool:
        """Whether its policy is sampled from noise, which the papers draw afresh when they evaluate."""
        return self.form.frozen in ("residual", "mlp")

    @property
    def fits_likelihood(self) -> bool:
        """Whether it fits a tanh-squashed Gaussian to the data's actions."""
        return self.form.frozen == "squashed" and self.form.module != "cpq"


def offline(
    name: str,
    budget: Budget,
    *,
    action_size: int,
    episode_length: int,
    limit: float,
    reward_scale: float = FINETUNING.reward_scale,
) -> Offline:
    """The pre-training method `name` under the fine-tuning's discount, with networks of the budget's sizes."""
    form = FORMS[name.removeprefix("safe_")]
    module, default = _module(form), _module(form).Config()
    wanted = {"discount_factor": FINETUNING.discount_factor, "reward_scale": reward_scale}
    numbers = {key: value for key, value in wanted.items() if hasattr(default, key)} | dict(form.numbers)
    if isinstance(default, cpq.Config):
        numbers |= {"cost_limit": limit, "episode_length": episode_length}
    if name.startswith("safe_"):
        numbers["safety"] = _safety(limit, episode_length)
    config = replace(default, **numbers)
    sizes = {"vae_hidden_sizes": budget.hidden_sizes} if form.module == "cpq" else {}
    networks = module.default_networks(action_size, budget.hidden_sizes, **dict(form.networks), **sizes)
    algorithm = module.make(config, networks)
    return Offline(form, config, networks, algorithm, action_size, episode_length, budget.hidden_sizes, reward_scale)


def _safety(limit: float, episode_length: int, **numbers: Any) -> SafetyConfig:
    return SafetyConfig(
        cost_limit=limit,
        episode_length=episode_length,
        discount_factor=FINETUNING.discount_factor,
        target_update_rate=FINETUNING.target_update_rate,
        **numbers,
    )


def extraction_phase(source: Offline) -> tuple[Algorithm, extraction.Config, dict[str, str]] | None:
    """The extraction of a Gaussian from what `source` learned, and its `warm_start` mapping; None if not needed."""
    form = source.form
    if form.direct:
        return None
    own = extraction.default_networks(source.action_size, source.hidden_sizes, frozen=form.frozen)
    fields = {"frozen": form.policy}
    temperature = 0.0 if form.critic is None else extraction.Config().inverse_temperature
    if form.critic is not None:
        own, fields["critic"] = own._replace(critic=source.networks.critic), form.critic
    if source.safe:
        own, fields["safety"] = own._replace(safety=source.networks.safety), "safety"
    config = extraction.Config(inverse_temperature=temperature, safety=getattr(source.config, "safety", None))
    return extraction.make(config, own), config, fields


@dataclass(frozen=True)
class Online:
    """Alignment and fine-tuning of one row over one State."""

    config: Any
    alignment: Algorithm
    finetuning: Algorithm
    fields: dict[str, str]  # of `warm_start`, from the offline or the extracted State
    extracted: bool  # `fields` speaks of the extracted State
    module: str  # as `save_policy` stores it
    network_options: dict[str, Any]


def online(method: Method, source: Offline, limit: float) -> Online:
    """The row `method` behind the pre-training `source`.

    Raises:
      ValueError: a row that this pre-training cannot start, in one line.
    """
    return {"marvel": _marvel, "pex": _pex, "diffcps": _diffcps}[method.learner](method, source, limit)


def _same_critic(source: Offline, critic: Any) -> bool:
    """Whether parameters of the offline critic are the same function here; if not, alignment fits one anew.

    SfBC has one critic with swish, Diffusion-QL and DiffCPS twins with mish; the fine-tuning's are twins with ReLU.
    Of the same shapes, parameters would load and mean something else.
    """
    return source.form.critic is not None and source.networks.critic == critic


def _marvel(method: Method, source: Offline, limit: float) -> Online:
    config = replace(finetuning_config(method, limit), reward_scale=source.reward_scale)
    networks = marvel.default_networks(source.action_size, source.hidden_sizes)
    fields, form = {"actor.params": "actor.params"}, source.form
    if _same_critic(source, networks.critic):
        critic = "critic.params" if form.direct else "critic"
        fields |= {"critic.params": critic, "target_critic": critic}
    if form.module == "cpq":
        fields |= {"cost_critic.params": "cost_critic.params", "target_cost_critic": "cost_critic.params"}
    if source.safe and source.networks.safety.critic == networks.cost_critic:
        fields |= {"cost_critic.params": "safety.critic.params", "target_cost_critic": "safety.critic.params"}
    phases = marvel.make_alignment(config, networks), marvel.make_finetuning(config, networks)
    return Online(config, *phases, fields, not form.direct, "marvel", {})


def _pex(method: Method, source: Offline, limit: float) -> Online:
    actor_rate, _ = method.learning_rates
    config = pex.Config(
        discount_factor=FINETUNING.discount_factor,
        target_update_rate=FINETUNING.target_update_rate,
        reward_scale=source.reward_scale,
        expectile=0.7,
        learning_rate=actor_rate,
        offline_fraction=method.offline_fraction,
        safety=_safety(limit, source.episode_length, multiplier=method.multiplier),
    )
    form, options = source.form, {"frozen": source.form.frozen}
    networks: Any = pex.default_networks(source.action_size, source.hidden_sizes, frozen=form.frozen)
    fields = {"frozen": form.policy}
    if _same_critic(source, networks.critic):
        fields |= {"critic.params": "critic.params", "target_critic": "critic.params"}
    if source.safe and source.networks.safety.critic == networks.safety.critic:
        fields |= {"safety.critic.params": "safety.critic.params", "safety.target_critic": "safety.critic.params"}
    phases = pex.make_alignment(config, networks), pex.make(config, networks)
    return Online(config, *phases, fields, False, "pex", options)


def _diffcps(method: Method, source: Offline, limit: float) -> Online:
    if not isinstance(source.config, diffcps.Config):
        raise ValueError(f"diffcps_online goes on with DiffCPS, found --offline {source.form.module}; use diffcps")
    config = replace(
        source.config,
        offline_fraction=method.offline_fraction,
        safety=_safety(limit, source.episode_length, multiplier=method.multiplier),
    )
    fields = {name: name for name in ("actor.params", "ema_actor", "critic.params", "target_critic")}
    fields["behavior_multiplier.params"] = "behavior_multiplier.params"
    if source.safe:
        fields |= {"safety.critic.params": "safety.critic.params", "safety.target_critic": "safety.critic.params"}
    phases = diffcps.make_alignment(config, source.networks), diffcps.make_finetuning(config, source.networks)
    return Online(config, *phases, fields, False, "diffcps", dict(source.form.networks))
