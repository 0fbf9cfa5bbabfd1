"""A checkpoint's tensors in a network of transformers: shapes first, on the meta device; then the values, mapped where they are float32 already."""

from __future__ import annotations

import torch
import transformers
from torch import nn

from app.errors import ModelpressError
from app.experts import stacks
from app.limits import shown
from app.targets import FLOATING
from worker.checkpoint import Checkpoint
from worker.runnable.architecture import PATIENCE, Architecture, broken
from worker.runnable.experts import unfuse
from worker.runnable.patience import patience
from worker.runnable.runnable import not_runnable
from worker.runnable.turned import turn, turned

_BELONGS = "a config.json that belongs to the weights"
_UNUSED = ("pooler.",)  # a layer that no output depends on, for which many encoders have no weights


def load(checkpoint: Checkpoint, architecture: Architecture) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """The network, and its parameters by the checkpoint's names.

    Raises:
        InputRefused: not-runnable: tensors of other shapes, tensors missing.
    """
    around = _fits(checkpoint, architecture)
    tensors = {name: _float32(checkpoint, name) for name in checkpoint.tensors}
    tensors |= {name: tensors[name].transpose(1, 2).contiguous() for name in around}
    tensors |= {alias: tensors[name] for alias, name in checkpoint.aliases.items()}
    module, told = _guarded(
        architecture.cls.from_pretrained, None, config=architecture.config, state_dict=dict(tensors), dtype=torch.float32, output_loading_info=True
    )
    _complete(module, told["missing_keys"], architecture.task)
    module.eval().requires_grad_(False)
    named = _by_name(module, tensors)
    new = turn(module, [named[name] for name in around if name in named])
    return module, {name: new.get(p, p) for name, p in named.items()} | unfuse(module, tensors)


def _float32(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    tensor = checkpoint.read(name)
    return tensor.float() if checkpoint.tensors[name].dtype in FLOATING else tensor


def _guarded(make, *args, **options):
    """What the library says of a stranger's numbers is a refusal; what is said of this machine is not."""
    try:
        return make(*args, **options)
    except (ModelpressError, MemoryError):
        raise
    except RuntimeError as e:
        if "memory" in str(e) or "bad_alloc" in str(e):
            raise
        raise broken(e) from e
    except Exception as e:
        raise broken(e) from e


def _fits(checkpoint: Checkpoint, architecture: Architecture) -> set[str]:
    """Before anything is allocated: every tensor that is there under the network's own name has its shape, and some are. Returns those of experts that have
    it the other way round."""

    def build() -> nn.Module:
        with patience(PATIENCE), torch.device("meta"):
            return architecture.cls(architecture.config)

    module = _guarded(build)
    wanted, prefix = module.state_dict(), f"{module.base_model_prefix}."
    shapes = {name: spec.shape for name, spec in checkpoint.tensors.items()}
    shapes |= {alias: shapes[name] for alias, name in checkpoint.aliases.items()}
    stacked, around = stacks(checkpoint.tensors, checkpoint.config), set()
    for name, shape in shapes.items():
        own = next((n for n in (name, prefix + name, name.removeprefix(prefix)) if n in wanted), None)
        if own is None:
            continue
        if name in stacked and turned(shape, tuple(wanted[own].shape)):
            around.add(name)
        elif tuple(wanted[own].shape) != shape:
            cls = architecture.cls.__name__
            raise not_runnable(f"{cls} as config.json describes it has {shown(own)} of shape {list(wanted[own].shape)}, the checkpoint {list(shape)}", _BELONGS)
    most = 4 * sum(spec.nbytes * (2 if spec.dtype in ("F16", "BF16") else 1) for spec in checkpoint.tensors.values()) + (64 << 20)
    size = sum(t.numel() * t.element_size() for t in wanted.values())
    if size > most:
        raise not_runnable(f"as config.json describes it, it has {size} bytes of weights, far more than the checkpoint", _BELONGS)
    return around


def _complete(module: nn.Module, missing: set[str], task: str) -> None:
    """Raises: InputRefused: not-runnable, where weights that the output depends on are not in the checkpoint."""
    unused = {name for name in missing if task == "encoder" and any(part in name for part in _UNUSED)}
    if lost := sorted(missing - unused):
        why = f"{len(lost)} weights of {type(module).__name__} are not in the checkpoint ({', '.join(map(shown, lost[:3]))})"
        raise not_runnable(why, "a checkpoint with all of them, or the class that it is of in `architectures` of config.json")
    with torch.no_grad():
        for name in unused:
            module.get_parameter(name).zero_()


def _by_name(module: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, nn.Parameter]:
    """Which parameter holds which tensor: the library renames, and takes float32 tensors as they are, so the memory tells; where it does not, the name."""
    own = dict(module.named_parameters(remove_duplicate=False))
    held = {p.data_ptr(): p for p in own.values() if p.numel()}
    prefix = f"{module.base_model_prefix}."
    placed = {}
    for name, tensor in tensors.items():
        parameter = held.get(tensor.data_ptr()) if tensor.numel() else None
        for same in (name, prefix + name, name.removeprefix(prefix)):
            parameter = own.get(same) if parameter is None else parameter
        if parameter is not None and parameter.shape == tensor.shape:
            placed[name] = parameter
    if not placed:
        raise not_runnable(f"none of its tensors is one of {type(module).__name__}", _BELONGS)
    return placed


def positions(module: nn.Module, config: transformers.PreTrainedConfig) -> int | None:
    """How many tokens the network has positions for; None where nothing bounds them."""
    learned = [(m.num_embeddings, m.padding_idx) for n, m in module.named_modules() if isinstance(m, nn.Embedding) and n.rsplit(".", 1)[-1] in _POSITIONS]
    if learned:
        return min(count - (0 if pad is None else pad + 1) for count, pad in learned)
    told = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")]
    return next((n for n in told if type(n) is int and n > 0), None)


_POSITIONS = ("position_embeddings", "wpe", "embed_positions")
