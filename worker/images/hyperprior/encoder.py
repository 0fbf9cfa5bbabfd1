"""What encodes, as a file: the analyses of the network as safetensors of float16. It stands in the codec's artifact, and not beside coded images."""

from __future__ import annotations

import safetensors.torch
import torch
from safetensors import SafetensorError

from worker.images.hyperprior.network import Network, Shape
from worker.images.transform.coding import Damaged

MOST_BYTES = 32 << 20
_PARTS = ("analysis.", "last.", "hyper_analysis.")


def dumped(network: Network) -> bytes:
    return safetensors.torch.save({k: v.detach().cpu().half().contiguous() for k, v in network.state_dict().items() if k.startswith(_PARTS)})


def loaded(data: bytes, shape: Shape) -> Network:
    """A network that analyses; the rest of it is not trained.

    Raises:
        Damaged: it is of another shape, or none.
    """
    if len(data) > MOST_BYTES:
        raise Damaged(f"the encoder has more than {MOST_BYTES} bytes")
    try:
        tensors = {k: v.float() for k, v in safetensors.torch.load(data).items()}
    except (SafetensorError, KeyError, ValueError) as e:
        raise Damaged(f"the encoder cannot be read: {e}") from None
    network = Network(shape)
    own = network.state_dict()
    wanted = {k: v.shape for k, v in own.items() if k.startswith(_PARTS)}
    if {k: v.shape for k, v in tensors.items()} != wanted or not all(v.isfinite().all() for v in tensors.values()):
        raise Damaged("the encoder has other weights than its codec")
    network.load_state_dict(own | tensors)
    return network.eval()


@torch.no_grad()
def halved(network: Network) -> Network:
    """As `loaded` will have it: what is measured and counted is what others will use."""
    for name, value in network.state_dict().items():
        if name.startswith(_PARTS):
            value.copy_(value.half().float())
    return network
