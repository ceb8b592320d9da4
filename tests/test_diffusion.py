"""Diffusion on Gaussian actions, where the best denoiser, the losses, the bound and the chains have closed forms.

The golden numbers for T = 5 follow from the formulas of Diffusion-QL (https://arxiv.org/abs/2208.06193) and DDPM
(https://arxiv.org/abs/2006.11239). Integrals over actions and noise are Gauss-Hermite sums, exact for the squares of
linear denoisers.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safejax import diffusion
from safejax.diffusion import DiffusionConfig, make_schedule, sample

KEY = jax.random.key(0)
ERROR = jax.jit(diffusion.denoising_error, static_argnums=(0, 1))
TERMS = jax.jit(diffusion.elbo_terms, static_argnums=(0, 1))
SAMPLE = jax.jit(sample, static_argnums=(0, 1))
VP = make_schedule("vp", 5)
CHAINS = [("vp", 5), ("vp", 20), ("cosine", 5), ("linear", 1000)]
FREE = DiffusionConfig(clip="none", variance="beta")
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(5)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def gaussian_denoiser(schedule, mean, variance):
    """The mean of the noise given a^i, when a^0 ~ N(mean, variance)."""

    def denoise(noisy, index):
        share = jnp.asarray(schedule.alpha_bar)[index][..., None]
        return jnp.sqrt(1.0 - share) * (noisy - jnp.sqrt(share) * mean) / (share * variance + 1.0 - share)

    return denoise


def curved_denoiser(noisy, index):
    """Nothing in particular, but nonlinear in both."""
    return jnp.tanh(1.5 * noisy + 0.3 * index) - 0.1 * index


def gauss_hermite(mean, variance):
    """Actions and noise [25, 1] with their weights [25]."""
    pairs = np.array(list(itertools.product(NODES, NODES)))
    weights = np.array([first * second for first, second in itertools.product(WEIGHTS, WEIGHTS)])
    return jnp.asarray(mean + math.sqrt(variance) * pairs[:, :1]), jnp.asarray(pairs[:, 1:]), jnp.asarray(weights)


# Schedules.


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("beta", [0.195875, 0.458818, 0.635781, 0.754878, 0.835031]),
        ("alpha_bar", [0.804125, 0.435178, 0.158500, 0.038852, 0.006409]),
        ("posterior_variance", [0.0, 0.159114, 0.426742, 0.660907, 0.807766]),
        ("posterior_clean", [1.0, 0.728435, 0.498410, 0.312681, 0.165654]),
        ("posterior_noisy", [0.0, 0.255116, 0.405078, 0.433466, 0.392901]),
    ],
)
def test_the_constants_of_five_vp_steps(column, expected):
    values = getattr(VP, column)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, expected, rtol=0.0, atol=6e-7)


@pytest.mark.parametrize("step_count", [1, 5, 10, 20, 50])
def test_a_vp_chain_ends_at_the_same_share_whatever_its_length(step_count):
    schedule = make_schedule("vp", step_count)
    assert schedule.beta.shape == (step_count,)
    np.testing.assert_allclose(schedule.alpha_bar[-1], math.exp(-5.05), rtol=1e-6)
    assert (schedule.beta > 0.0).all()
    assert (schedule.beta < 1.0).all()
    assert (np.diff(schedule.beta) > 0.0).all()


def test_the_betas_of_five_cosine_steps_and_of_a_long_linear_chain():
    expected = [0.101294, 0.279544, 0.473635, 0.724052, 0.999]
    np.testing.assert_allclose(make_schedule("cosine", 5).beta, expected, rtol=0.0, atol=6e-7)
    np.testing.assert_allclose(make_schedule("linear", 1000).beta, np.linspace(1e-4, 2e-2, 1000), rtol=1e-6)


@pytest.mark.parametrize(("kind", "step_count"), CHAINS)
def test_the_posterior_is_the_gaussian_conditional(kind, step_count):
    beta, alpha_bar, variance, clean, noisy = (column.astype(np.float64) for column in make_schedule(kind, step_count))
    np.testing.assert_allclose(alpha_bar, np.cumprod(1.0 - beta), rtol=3e-5)
    # a^{i-1} has mean sqrt(previous) a^0 and variance 1 - previous; a^i = sqrt(alpha) a^{i-1} + sqrt(beta) noise
    alpha, previous = 1.0 - beta, np.append(1.0, alpha_bar[:-1])
    gain = np.sqrt(alpha) * (1.0 - previous) / (alpha * (1.0 - previous) + beta)
    np.testing.assert_allclose(noisy, gain, rtol=2e-3, atol=1e-7)
    np.testing.assert_allclose(clean, np.sqrt(previous) * (1.0 - gain * np.sqrt(alpha)), rtol=2e-3)
    np.testing.assert_allclose(variance, (1.0 - gain * np.sqrt(alpha)) * (1.0 - previous), rtol=2e-3, atol=1e-9)


def test_the_weights_of_the_bound_that_the_plain_loss_drops():
    beta, alpha_bar, variance, _, _ = (column[1:] for column in VP)
    weights = beta**2 / (2.0 * variance * (1.0 - beta) * (1.0 - alpha_bar))
    np.testing.assert_allclose(weights, [2.164160, 1.545267, 1.829848, 2.633183], rtol=1e-5)


def test_a_cached_schedule_cannot_be_written():
    assert make_schedule("vp", 5) is VP
    with pytest.raises(ValueError, match="read-only"):
        VP.beta[0] = 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(schedule="linear"),
            "schedule 'linear' with step_count 5 ends at alpha_bar 0.95063, expected at most 0.05: such a chain "
            "cannot start from N(0, I); use 'vp' or more steps",
        ),
        (dict(schedule="square"), "schedule is 'square', expected one of cosine, linear, vp"),
        (dict(step_count=0), "step_count is 0, expected a number in [1, inf)"),
        (dict(sampler="ddpn"), "sampler is 'ddpn', expected one of ddim, ddpm"),
        (dict(clip="action"), "clip is 'action', expected one of clean, noisy, none"),
        (dict(variance="alpha"), "variance is 'alpha', expected one of beta, posterior"),
        (dict(temperature=-0.5), "temperature is -0.5, expected a number in [0, inf)"),
    ],
)
def test_what_a_chain_refuses(changes, message):
    config = DiffusionConfig(**changes)
    calls = (
        lambda: diffusion.check_diffusion(config),
        lambda: sample(config, curved_denoiser, jnp.zeros((5, 1))),
        lambda: diffusion.denoising_error(config, curved_denoiser, jnp.zeros((2, 1)), KEY),
        lambda: diffusion.elbo_terms(config, curved_denoiser, jnp.zeros((2, 1)), jnp.zeros((5, 2, 1))),
    )
    for call in calls:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            call()
        assert str(caught.value) == message


def test_the_chains_of_the_papers_are_accepted():
    diffusion.check_diffusion(DiffusionConfig())
    diffusion.check_diffusion(DiffusionConfig(clip="noisy", variance="beta", step_count=50, sampler="ddim"))
    diffusion.check_diffusion(DiffusionConfig(schedule="linear", step_count=297))


# Forward noise and the loss.


def test_forward_noise_scales_action_and_noise_row_by_row():
    clean, noise = jax.random.normal(KEY, (2, 5, 3))
    noisy = diffusion.add_noise(VP, clean, noise, jnp.arange(5))
    expected = np.sqrt(VP.alpha_bar)[:, None] * clean + np.sqrt(1.0 - VP.alpha_bar)[:, None] * noise
    np.testing.assert_allclose(noisy, expected, rtol=1e-6)
    for index in range(5):
        one = diffusion.add_noise(VP, clean[index], noise[index], jnp.int32(index))
        np.testing.assert_array_equal(one, noisy[index])


@pytest.mark.parametrize("index", range(5))
def test_forward_noise_is_that_many_single_steps(index):
    """Mean and variance of the Markov chain a^i = sqrt(1 - beta_i) a^{i-1} + sqrt(beta_i) noise, from N(0.8, 0.25)."""
    mean, variance = 0.8, 0.25
    for beta in VP.beta[: index + 1]:
        mean, variance = math.sqrt(1.0 - beta) * mean, (1.0 - beta) * variance + beta
    clean, noise, weights = gauss_hermite(0.8, 0.25)
    noisy = diffusion.add_noise(VP, clean, noise, jnp.int32(index))[:, 0]
    np.testing.assert_allclose(weights @ noisy, mean, rtol=1e-5)
    np.testing.assert_allclose(weights @ (noisy - mean) ** 2, variance, rtol=1e-5)


def test_the_loss_compares_the_prediction_with_the_noise_it_mixed_in():
    clean = 0.3 * jnp.ones((64, 2))

    def denoise(noisy, index):
        assert noisy.shape == (64, 2)
        assert index.shape == (64,)
        share = jnp.asarray(VP.alpha_bar)[index][:, None]
        noise = (noisy - jnp.sqrt(share) * clean) / jnp.sqrt(1.0 - share)
        return noise + jnp.stack([jnp.full(64, 2.0), index.astype(jnp.float32)], axis=-1)

    error = ERROR(DiffusionConfig(), denoise, clean, KEY)
    np.testing.assert_allclose(error[:, 0], 4.0, rtol=1e-4)
    np.testing.assert_allclose(jnp.sqrt(error[:, 1]), jnp.round(jnp.sqrt(error[:, 1])), atol=2e-3)
    assert set(np.asarray(jnp.round(jnp.sqrt(error[:, 1]))).astype(int)) == {0, 1, 2, 3, 4}


def test_every_step_is_drawn_equally_often_and_the_zero_predictor_scores_one():
    rows = 50_000
    config, clean = DiffusionConfig(), jnp.zeros((rows, 2))
    steps = ERROR(
        config,
        lambda noisy, index: noisy / jnp.sqrt(1.0 - jnp.asarray(VP.alpha_bar)[index])[:, None] + index[:, None],
        clean,
        KEY,
    )
    counts = np.bincount(np.asarray(jnp.round(jnp.sqrt(steps[:, 0]))).astype(int), minlength=5)
    assert (((counts - rows / 5) ** 2) / (rows / 5)).sum() < 18.47  # chi-square, 4 degrees of freedom, p = 0.001
    error = ERROR(config, lambda noisy, index: jnp.zeros_like(noisy), clean, KEY)
    np.testing.assert_allclose(error.mean(), 1.0, atol=4.0 * math.sqrt(2.0 / error.size))
    np.testing.assert_allclose(jnp.mean(error[:, 0] * error[:, 1]), 1.0, atol=4.0 * math.sqrt(8.0 / rows))


def expected_error(denoise, mean, variance, index):
    """[] expectation of the squared error at one step, over actions and noise."""
    clean, noise, weights = gauss_hermite(mean, variance)
    index = jnp.full(clean.shape[:-1], index)
    return weights @ jnp.square(denoise(diffusion.add_noise(VP, clean, noise, index), index) - noise)[:, 0]


@pytest.mark.parametrize(("variance", "least"), [(1.0, 0.288613), (0.25, 0.144918), (0.01, 0.009886), (0.0, 0.0)])
def test_the_least_loss_on_gaussian_actions(variance, least):
    for mean in (0.0, 0.8):
        errors = [expected_error(gaussian_denoiser(VP, mean, variance), mean, variance, index) for index in range(5)]
        share = VP.alpha_bar * variance
        np.testing.assert_allclose(errors, share / (share + 1.0 - VP.alpha_bar), atol=2e-6)
        np.testing.assert_allclose(np.mean(errors), least, atol=2e-6)


def test_the_loss_reaches_that_least_value():
    clean = 0.8 + 0.5 * jax.random.normal(jax.random.key(1), (100_000, 1))
    error = ERROR(DiffusionConfig(), gaussian_denoiser(VP, 0.8, 0.25), clean, KEY)
    np.testing.assert_allclose(error.mean(), 0.144918, atol=4.0 * float(error.std()) / math.sqrt(error.size))


@pytest.mark.parametrize("index", range(5))
def test_the_closed_form_denoiser_is_the_minimiser(index):
    best = gaussian_denoiser(VP, 0.8, 0.25)

    @jax.jit
    def loss(scale, shift):
        return expected_error(lambda noisy, step: (1.0 + scale) * best(noisy, step) + shift, 0.8, 0.25, index)

    np.testing.assert_allclose(jax.grad(loss, (0, 1))(0.0, 0.0), 0.0, atol=2e-6)
    for scale, shift in [(0.1, 0.0), (-0.1, 0.0), (0.0, 0.1), (0.0, -0.1)]:
        assert loss(scale, shift) > loss(0.0, 0.0) + 1e-3 * VP.beta[index]


# The bound.


def expected_terms(mean, variance):
    clean, noise, weights = gauss_hermite(mean, variance)
    noise = jnp.broadcast_to(noise, (5, *noise.shape))
    return TERMS(FREE, gaussian_denoiser(VP, mean, variance), clean, noise) @ weights


def chain_moments(config, mean, variance):
    """Mean and variance of the chain for the best denoiser: it is affine in its noise, so both are exact."""
    schedule = make_schedule(config.schedule, config.step_count)
    chain = jax.jit(lambda noise: sample(config, gaussian_denoiser(schedule, mean, variance), noise[:, None])[0])
    zero = jnp.zeros(config.step_count)
    return float(chain(zero)), np.asarray(jax.grad(chain)(zero))


def test_the_bound_is_tight_on_standard_normal_actions():
    terms = expected_terms(0.0, 1.0)
    np.testing.assert_allclose(terms, [0.603798, 0.529518, 0.199338, 0.066471, 0.016598, 0.003215], atol=3e-6)
    np.testing.assert_allclose(terms.sum(), 0.5 * math.log(2.0 * math.pi * math.e), rtol=2e-6)


@pytest.mark.parametrize(
    ("variance", "bound", "cross_entropy", "entropy"),
    [(0.25, 0.851939, 0.769824, 0.725791), (0.01, 0.381268, 0.131726, -0.883647)],
)
def test_the_bound_the_cross_entropy_and_the_entropy(variance, bound, cross_entropy, entropy):
    terms = expected_terms(0.8, variance)
    np.testing.assert_allclose(terms.sum(), bound, atol=5e-6)
    mean, gradient = chain_moments(FREE, 0.8, variance)
    spread = float((gradient**2).sum() + VP.beta[0])  # the bounded chain has noise in its last step too
    exact = 0.5 * math.log(2.0 * math.pi * spread) + ((0.8 - mean) ** 2 + variance) / (2.0 * spread)
    np.testing.assert_allclose(exact, cross_entropy, atol=5e-6)
    np.testing.assert_allclose(0.5 * math.log(2.0 * math.pi * math.e * variance), entropy, atol=1e-6)
    assert bound > cross_entropy > entropy


def test_the_terms_add_over_actions_and_keep_the_leading_axes():
    clean, noise = 0.5 * jax.random.normal(KEY, (3, 4, 2)), jax.random.normal(jax.random.key(1), (5, 3, 4, 2))
    seen = []

    def denoise(noisy, index):
        seen.append((noisy.shape, index.shape))
        return curved_denoiser(noisy, index)

    terms = TERMS(FREE, denoise, clean, noise)
    assert terms.shape == (6, 3, 4)
    assert seen == [((3, 4, 2), ())]
    parts = [TERMS(FREE, curved_denoiser, clean[..., column, None], noise[..., column, None]) for column in (0, 1)]
    np.testing.assert_allclose(terms, parts[0] + parts[1], rtol=1e-4, atol=1e-5)


def test_one_step_has_a_density_and_a_start():
    config = dataclasses.replace(FREE, step_count=1)
    share = math.exp(-5.05)
    clean, noise = jnp.full((1, 1), 0.5), jnp.full((1, 1, 1), 2.0)
    terms = TERMS(config, lambda noisy, index: jnp.zeros_like(noisy), clean, noise)
    error = math.sqrt((1.0 - share) / share) * 2.0
    first = 0.5 * (math.log(2.0 * math.pi * (1.0 - share)) + error**2 / (1.0 - share))
    last = 0.5 * (share * 0.25 - share - math.log(1.0 - share))
    np.testing.assert_allclose(terms[:, 0], [first, last], rtol=1e-5)


def test_the_bound_clips_the_predicted_action_as_its_chain_does():
    config = dataclasses.replace(FREE, clip="clean")
    # the point mass predicted far outside is clipped to the edge: the true action there, so its density is the peak
    terms = TERMS(config, gaussian_denoiser(VP, 3.0, 0.0), jnp.ones((1, 1)), jnp.ones((5, 1, 1)))
    np.testing.assert_allclose(terms[0, 0], 0.5 * math.log(2.0 * math.pi * VP.beta[0]), rtol=1e-5)


def test_the_bound_of_the_posterior_variance_is_refused():
    with pytest.raises(ValueError, match=r"^variance is 'posterior', 0 at the first step.*expected 'beta'$"):
        diffusion.elbo_terms(DiffusionConfig(), curved_denoiser, jnp.zeros((2, 1)), jnp.zeros((5, 2, 1)))


# Samplers.


@pytest.mark.parametrize(
    ("variance", "mean", "with_beta", "with_posterior"),
    [
        (0.0025, 0.799987, 6.56016e-5, 2.52222e-5),
        (0.25, 0.798712, 0.196672, 0.087259),
        (1.0, 0.794873, 0.804125, 0.456202),
    ],
)
def test_the_moments_of_the_reverse_chain(variance, mean, with_beta, with_posterior):
    for kind, spread in [("beta", with_beta), ("posterior", with_posterior)]:
        first, gradient = chain_moments(DiffusionConfig(clip="none", variance=kind), 0.8, variance)
        np.testing.assert_allclose(first, mean, atol=2e-6)
        np.testing.assert_allclose((gradient**2).sum(), spread, rtol=1e-4)


def test_temperature_scales_the_noise_of_the_steps_and_not_the_start():
    _, full = chain_moments(FREE, 0.8, 0.25)
    for temperature in (0.0, 0.5):
        _, gradient = chain_moments(dataclasses.replace(FREE, temperature=temperature), 0.8, 0.25)
        np.testing.assert_allclose(gradient, full * np.array([1.0, *[temperature] * 4]), rtol=1e-5)
    assert (full > 0.0).all()


def chain_by_hand(config, noise):
    """The reverse chain as the papers write it, in float64: (A) through a^0, (B) without it, DDIM."""
    beta, alpha_bar, posterior_variance, _, _ = (
        column.astype(np.float64) for column in make_schedule(config.schedule, config.step_count)
    )
    noisy, rows = noise[0].astype(np.float64), iter(noise[1:])
    for index in reversed(range(config.step_count)):
        previous = alpha_bar[index - 1] if index else 1.0
        predicted = np.tanh(1.5 * noisy + 0.3 * index) - 0.1 * index
        clean = (noisy - np.sqrt(1 - alpha_bar[index]) * predicted) / np.sqrt(alpha_bar[index])
        if config.clip == "clean":
            clean = np.clip(clean, -1, 1)
        if config.sampler == "ddim":
            implied = (noisy - np.sqrt(alpha_bar[index]) * clean) / np.sqrt(1 - alpha_bar[index])
            noisy = np.sqrt(previous) * clean + np.sqrt(1 - previous) * implied
        elif config.clip == "noisy":
            noisy = (noisy - beta[index] / np.sqrt(1 - alpha_bar[index]) * predicted) / np.sqrt(1 - beta[index])
        else:
            noisy = (np.sqrt(previous) * beta[index] * clean + np.sqrt(1 - beta[index]) * (1 - previous) * noisy) / (
                1 - alpha_bar[index]
            )
        if index and config.sampler == "ddpm":
            variance = beta[index] if config.variance == "beta" else posterior_variance[index]
            noisy = noisy + config.temperature * np.sqrt(variance) * next(rows)
        if config.clip == "noisy":
            noisy = np.clip(noisy, -1, 1)
    return noisy if config.clip == "none" else np.clip(noisy, -1, 1)


CLIPS, VARIANCES = ("clean", "noisy", "none"), ("posterior", "beta")


@pytest.mark.parametrize(
    ("schedule", "step_count", "sampler", "clip", "variance"),
    [
        *itertools.product(["vp"], [5], ["ddpm"], CLIPS, VARIANCES),
        *itertools.product(["cosine"], [5], ["ddpm", "ddim"], CLIPS, ["posterior"]),
        *itertools.product(["vp"], [1], ["ddpm", "ddim"], ["clean"], ["beta"]),
        *itertools.product(["vp"], [5], ["ddim"], CLIPS, ["beta"]),
    ],
)
def test_the_chain_is_the_papers(schedule, step_count, sampler, clip, variance):
    config = DiffusionConfig(
        schedule=schedule, step_count=step_count, sampler=sampler, clip=clip, variance=variance, temperature=0.7
    )
    noise = diffusion.draw_noise(config, KEY, (2, 6, 3))
    assert noise.shape == (step_count, 2, 6, 3)
    actions = SAMPLE(config, curved_denoiser, noise)
    assert actions.shape == (2, 6, 3)
    assert actions.dtype == jnp.float32
    expected = chain_by_hand(config, np.asarray(noise))
    np.testing.assert_allclose(actions, expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_where_nothing_is_clipped_the_three_clips_agree(variance):
    noise = 0.02 * diffusion.draw_noise(DiffusionConfig(), KEY, (4, 2))
    config = DiffusionConfig(variance=variance)

    def denoise(noisy, index):
        return 0.9 * noisy + 0.001 * index

    actions = [sample(dataclasses.replace(config, clip=clip), denoise, noise) for clip in ("clean", "noisy", "none")]
    assert jnp.abs(actions[2]).max() < 1.0
    np.testing.assert_allclose(actions[0], actions[2], rtol=1e-5)
    np.testing.assert_allclose(actions[1], actions[2], rtol=1e-5)


def test_clipping_by_kind():
    """A denoiser that always says 0 blows the iterate up by 1 / sqrt(alpha_bar)."""
    config, noise = DiffusionConfig(temperature=0.0), jnp.ones((5, 1))

    def zero(noisy, index):
        return jnp.zeros_like(noisy)

    free = SAMPLE(dataclasses.replace(config, clip="none"), zero, noise)
    np.testing.assert_allclose(free, 1.0 / math.sqrt(VP.alpha_bar[-1]), rtol=1e-5)
    for clip in ("clean", "noisy"):
        np.testing.assert_array_equal(sample(dataclasses.replace(config, clip=clip), zero, noise), [1.0])
    # inside: a predicted a^0 of 2 counts as 1, so the iterate is c_T + d_T; clipping the iterate leaves 1
    seen = {}
    for clip in ("clean", "noisy"):
        record = []

        def spy(noisy, index, record=record):
            jax.debug.callback(lambda value: record.append(float(value)), noisy[0], ordered=True)
            return jnp.zeros_like(noisy)

        SAMPLE(dataclasses.replace(config, clip=clip), spy, noise).block_until_ready()
        jax.effects_barrier()
        seen[clip] = record
    np.testing.assert_allclose(seen["clean"][:2], [1.0, VP.posterior_clean[-1] + VP.posterior_noisy[-1]], rtol=1e-5)
    np.testing.assert_allclose(seen["noisy"], np.ones(5), rtol=1e-6)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("clip", ["clean", "noisy", "none"])
def test_a_point_mass_comes_back(clip, sampler, variance):
    config = DiffusionConfig(clip=clip, sampler=sampler, variance=variance)
    point = jnp.array([0.3, -0.7])
    actions = SAMPLE(config, gaussian_denoiser(VP, point, 0.0), diffusion.draw_noise(config, KEY, (64, 2)))
    np.testing.assert_allclose(actions, jnp.broadcast_to(point, (64, 2)), atol=1e-5)


@pytest.mark.parametrize(("schedule", "step_count"), [("vp", 5), ("vp", 1), ("cosine", 10)])
@pytest.mark.parametrize("variance", [0.0025, 0.25, 1.0])
def test_ddim_maps_the_start_to_the_action_along_a_line(schedule, step_count, variance):
    config = DiffusionConfig(schedule=schedule, step_count=step_count, sampler="ddim", clip="none")
    alpha_bar = make_schedule(schedule, step_count).alpha_bar.astype(np.float64)
    previous = np.append(1.0, alpha_bar[:-1])
    shared = np.sqrt(previous * alpha_bar) * variance + np.sqrt((1.0 - previous) * (1.0 - alpha_bar))
    slope = np.prod(shared / (alpha_bar * variance + 1.0 - alpha_bar))
    mean, gradient = chain_moments(config, 0.8, variance)
    np.testing.assert_allclose(gradient[0], slope, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gradient[1:], 0.0)
    np.testing.assert_allclose(mean, 0.8 - slope * math.sqrt(alpha_bar[-1]) * 0.8, rtol=1e-4)


def test_a_long_ddim_chain_keeps_the_spread_of_the_data():
    config = DiffusionConfig(step_count=500, sampler="ddim", clip="none")
    _, gradient = chain_moments(config, 0.8, 0.25)
    share = math.exp(-5.05)
    np.testing.assert_allclose(gradient[0], 0.5 / math.sqrt(share * 0.25 + 1.0 - share), rtol=5e-3)


def test_gradients_flow_through_every_call_of_the_denoiser():
    """A denoiser theta_i a^i multiplies the noiseless iterate by f_i = (1 - beta_i / sqrt(1 - alpha_bar_i) theta_i) /
    sqrt(1 - beta_i), so that the gradient in theta_i is the action times the derivative of log f_i."""
    theta = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    beta, alpha_bar = VP.beta.astype(np.float64), VP.alpha_bar.astype(np.float64)
    noise = jnp.zeros((5, 1)).at[0].set(0.1)

    def action(theta, stopped=-1):
        def denoise(noisy, index):
            value = theta[index] * noisy
            return jnp.where(index == stopped, jax.lax.stop_gradient(value), value)

        return sample(DiffusionConfig(clip="none"), denoise, noise)[0]

    slope = beta / np.sqrt(1.0 - alpha_bar)
    factors = (1.0 - slope * theta) / np.sqrt(1.0 - beta)
    value, gradient = jax.value_and_grad(action)(jnp.asarray(theta))
    np.testing.assert_allclose(value, 0.1 * np.prod(factors), rtol=1e-5)
    np.testing.assert_allclose(gradient, value * -slope / (1.0 - slope * theta), rtol=1e-4)
    for stopped in range(5):
        ablated = np.asarray(jax.grad(action)(jnp.asarray(theta), stopped))
        assert ablated[stopped] == 0.0
        assert np.abs(ablated - gradient).max() > 1e-3 * np.abs(gradient).max()


def test_the_denoiser_meets_each_step_once_with_one_index():
    record, shapes = [], []

    def denoise(noisy, index):
        shapes.append((noisy.shape, index.shape, index.dtype))
        jax.debug.callback(lambda value: record.append(int(value)), index, ordered=True)
        return jnp.zeros_like(noisy)

    SAMPLE(DiffusionConfig(), denoise, jnp.ones((5, 7, 2))).block_until_ready()
    jax.effects_barrier()
    assert set(shapes) == {((7, 2), (), jnp.dtype("int32"))}
    assert record == [4, 3, 2, 1, 0]


def test_noise_for_another_number_of_steps_is_refused():
    for call in (
        lambda: sample(FREE, curved_denoiser, jnp.zeros((4, 2))),
        lambda: diffusion.elbo_terms(FREE, curved_denoiser, jnp.zeros((2,)), jnp.zeros((4, 2))),
    ):
        with pytest.raises(ValueError, match=r"^noise has 4 rows, expected one for each of 5 steps$"):
            call()


def test_drawn_noise_is_standard_normal():
    noise = diffusion.draw_noise(DiffusionConfig(), KEY, (20_000, 2))
    rows = np.asarray(noise).reshape(5, -1)
    np.testing.assert_allclose(rows.mean(1), 0.0, atol=4.0 / math.sqrt(40_000))
    np.testing.assert_allclose(np.cov(rows), np.eye(5), atol=4.0 * math.sqrt(2.0 / 40_000))


def test_chains_run_under_jit_and_temperatures_under_vmap():
    noise = diffusion.draw_noise(FREE, KEY, (3, 2))

    def at(temperature):
        return sample(dataclasses.replace(FREE, temperature=temperature), curved_denoiser, noise)

    temperatures = jnp.array([0.0, 0.5, 1.0])
    together = jax.jit(jax.vmap(at))(temperatures)
    for temperature, actions in zip([0.0, 0.5, 1.0], together, strict=True):
        np.testing.assert_allclose(actions, at(temperature), rtol=1e-4, atol=1e-5)
