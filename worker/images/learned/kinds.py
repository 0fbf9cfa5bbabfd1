"""The two kinds of learned codec, told apart by the first bytes of their files: a transform with a network behind it, and an autoencoder with a hyperprior."""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.images.hyperprior import model as hyperprior_model
from worker.images.hyperprior.codec import HyperpriorCodec
from worker.images.hyperprior.network import Network
from worker.images.learned import model as transform_model
from worker.images.learned.codec import LearnedCodec

MAGICS = (transform_model.MAGIC, hyperprior_model.MAGIC)
MOST_BYTES = max(transform_model.MOST_BYTES, hyperprior_model.MOST_BYTES)
Model = transform_model.Model | hyperprior_model.Model


@dataclass(frozen=True)
class Trained:
    """Args:
    model: what decodes; `data` is its file.
    encoder: the network of an autoencoder, its encoder's weights in place; None where the model encodes too, or where nothing is to be encoded.
    learned: digest -> columns of what it has learned from (`held_out`).
    """

    model: Model
    data: bytes
    encoder: Network | None = None
    learned: dict[str, int] = field(default_factory=dict)


def loaded(data: bytes) -> Model:
    """Raises: Damaged."""
    return (hyperprior_model if data.startswith(hyperprior_model.MAGIC) else transform_model).loaded(data)


def dumped(model: Model) -> bytes:
    return (hyperprior_model if isinstance(model, hyperprior_model.Model) else transform_model).dumped(model)


def codec_of(trained: Trained, variants: dict[str, tuple]) -> LearnedCodec:
    """Args: variants: by effort."""
    model = trained.model
    if isinstance(model, hyperprior_model.Model):
        return HyperpriorCodec(variants, None, trained.data, first=model.quality, fitted=model, encoder=trained.encoder)
    return LearnedCodec(variants, model.basis, trained.data, first=model.quality, fitted=model)
