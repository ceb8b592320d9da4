"""Flax modules behind `Network(init, apply)`; nothing here knows an algorithm."""

from safejax.networks.denoiser import MLPDenoiser, ResidualDenoiser
from safejax.networks.encoders import Encoded, PixelEncoder, given, member, with_encoder
from safejax.networks.mlp import (
    MLP,
    CategoricalActor,
    Critic,
    GaussianActor,
    Value,
    ensemble,
)
from safejax.networks.vae import ConditionalVAE

__all__ = [
    "MLP",
    "CategoricalActor",
    "ConditionalVAE",
    "Critic",
    "Encoded",
    "GaussianActor",
    "MLPDenoiser",
    "PixelEncoder",
    "ResidualDenoiser",
    "Value",
    "ensemble",
    "given",
    "member",
    "with_encoder",
]
