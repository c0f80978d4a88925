"""Which kernel computes a block, and how many clients it holds: a fixed rule by model, shape and device.

Nothing is timed at run time, and the number of workers plays no part, so that the same configuration always gives the
same bits. The constants are those of a ``kernels.tuning.Tuning``. Its built-in numbers come from measurements of one
gradient step (forward, backward, gradients gathered into [b, d]) on one busy AVX-512 core, speed-up of the stacked
kernels over a plain loop with the sizes b of the rule: logistic regression 40 to 60, MLP 784-200-10 2, MLP
784-512-256-10 1.4, CNN with 16 and 32 filters 1.6 (8x8 images: 2.4), the CNN of 1,663,370 parameters 1.3, LeNet 2.1,
FedGH's CNNs 1.2 to 1.4, ResNet-18 1.4; but 0.85 with the stem for small images, whose wide convolutions on 32x32 pixels
are the loop's exception. On a core shared with other work: a GRU of two layers of 64 units 2 with two clients, 3.2 with
five; a transformer of two layers of width 64 over 1,000 words, whose products fill the CPU for one client already, 0.9
with two clients, 1.25 with five. Nothing is measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from fedsim.errors import first_line
from fedsim.ground.layout import Layout
from fedsim.kernels.stacked import Unstackable, stack
from fedsim.kernels.stacked_ops import input_channels, with_keys
from fedsim.kernels.tuning import Tuning
from fedsim.models import twin, zero_sample
from fedsim.models.dropout import trial_masks

Kernel = Literal["stacked", "vmap", "loop", "loop_last"]
"""How clients are computed: many at once on stacked parameters, many at once under vmap, or one by one, as the module
is or with images channels last in memory."""

ON_GPU = 2**30
"""Numbers that a block on a GPU may keep for its backward pass: 4 GiB of float32, about half of what it takes at its
peak. The GPU's own memory plays no part, so that equal configuration gives equal bits; ``engine.block`` says else."""

AT_ONCE = 8192
"""Samples that a GPU evaluates at once, at most."""

ALONE: tuple[Kernel, ...] = ("loop", "loop_last")
"""One by one."""

_SLOW_UNDER_VMAP = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Choice(NamedTuple):
    """One way to compute blocks: the kernel, how many clients a block may have, and why."""

    kernel: Kernel
    block: int  # most clients in a block
    why: str  # in one line


def kernel_rule(
    model: nn.Module, layout: Layout, input_shape: tuple[int, ...], device: str, tuning: Tuning
) -> Iterator[Choice]:
    """What ``engine.kernel=auto`` tries, the fastest first; the last is one client at a time.

    Stacked kernels where the model has them; else vmap, except for layers that vmap makes slow (recurrent layers and
    attention; convolutions on the CPU) or whose gradient it gets wrong, and for models that it cannot run.

    Args:
        model: as it comes from ``fedsim.models.build``; it is run, and left as it was.
        layout: of its parameters.
        input_shape: shape of one sample.
        device: ``cpu`` or ``cuda``.
        tuning: the constants.
    """
    sample = zero_sample(model, input_shape)
    reason = no_kernel("stacked", model, layout, sample)
    if not reason:
        heavy = widest(model, sample, tuning)
        if heavy > tuning.alone:
            why = f"a wide convolution gives {heavy:,} numbers per example: one client fills the CPU"
            yield from _alone(model, device, tuning, why)
            return
        yield Choice("stacked", block(model, layout, sample, tuning), "every layer has a stacked kernel")
    why = f"{reason}; " if reason else ""
    slow = _SLOW_UNDER_VMAP if device == "cuda" else (*_SLOW_UNDER_VMAP, *_CONVOLUTIONS)
    for path, module in model.named_modules():
        if isinstance(module, slow):
            why = f"{why}{type(module).__name__} at {path or 'the top'} is slow under vmap"
            yield from _alone(model, device, tuning, why)
            return
    problem = no_kernel("vmap", model, layout, sample)
    if not problem:
        yield Choice("vmap", block(model, layout, sample, tuning), reason)
    yield from _alone(model, device, tuning, f"{why}{problem}".removesuffix("; "))


def _alone(model: nn.Module, device: str, tuning: Tuning, why: str) -> Iterator[Choice]:
    """One client at a time, with images channels last where that is faster."""
    if tuning.channels_last and device != "cuda" and any(isinstance(layer, nn.Conv2d) for layer in model.modules()):
        yield Choice("loop_last", 1, why)
    yield Choice("loop", 1, why)


def no_kernel(kernel: Kernel, model: nn.Module, layout: Layout, sample: Tensor) -> str:
    """Why a model cannot be computed by a kernel, in one line, or "" where it can.

    Args:
        kernel: ``stacked`` or ``vmap``.
        model: as of ``kernel_rule``.
        layout: of its parameters.
        sample: [1, ...] one sample that passes through it.
    """
    # Two clients with two examples each: with one of either, wrong shapes would broadcast and pass.
    two = sample.expand(2, 2, *sample.shape[1:])
    params = {n: p.detach().expand(2, *p.shape) for n, p in model.named_parameters() if p.requires_grad}
    model = twin(model)  # what forward keeps of a trace or under vmap is of no use afterwards
    try:
        with torch.no_grad():
            if kernel == "stacked":
                stack(model, layout)(with_keys(params, torch.zeros(2, 2, dtype=torch.int64)), two)
            else:
                _refuse_under_vmap(model, sample)
                with trial_masks(model):
                    vmap(lambda p, x: functional_call(model, p, (x,)))(params, two)
    except Unstackable as error:
        return first_line(error)
    except Exception as error:  # user code and vmap raise many types
        return f"{'the stacked model' if kernel == 'stacked' else 'vmap'} fails: {first_line(error)}"
    return ""


def _refuse_under_vmap(model: nn.Module, sample: Tensor) -> None:
    """Raise Unstackable for what vmap is known to ignore silently: backward hooks, and options of embeddings."""
    for path, module in model.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            what = f"{type(module).__name__} at {path or 'the top'}"
            raise Unstackable(f"vmap does not call the backward hooks of {what}")
    with trial_masks(model), _Embeddings() as seen:
        model(sample)
    if seen.option:
        raise Unstackable(f"vmap ignores {seen.option} of an embedding")


class _Embeddings(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every embedding at work, of ``torch.nn`` or of ``torch.nn.functional``, and the options it is given."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.option = ""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operation imports torch's compiler, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name == "aten::embedding":
            given = dict(zip(("weight", "indices", "padding_idx", "scale_grad_by_freq"), args, strict=False))
            if given.get("padding_idx", -1) >= 0:
                self.option = "padding_idx"
            elif given.get("scale_grad_by_freq", False):
                self.option = "scale_grad_by_freq"
        elif "embedding_bag" in name:
            self.option = "the bags"
        return func(*args, **(kwargs or {}))


def block(model: nn.Module, layout: Layout, sample: Tensor, tuning: Tuning) -> int:
    """Clients that a block of this model holds."""
    return tuning.block(layout.d, *activations(model, sample))


def activations(model: nn.Module, sample: Tensor) -> tuple[int, int]:
    """Numbers per example in the largest output of a layer: of any but sequences of rows, and of these."""
    largest = numbers(model, sample, kind=lambda rank: rank != 3)
    return largest, numbers(model, sample, kind=lambda rank: rank == 3)


def clients_on_gpu(model: nn.Module, sample: Tensor, batch: int) -> int:
    """Clients of a block on a GPU whose minibatches of this size leave memory free."""
    return max(2, ON_GPU // (numbers_kept(model, sample) * batch))


def samples_on_gpu(model: nn.Module, sample: Tensor, least: int) -> int:
    """Samples that a GPU takes at once where nothing is trained: at least so many."""
    return max(least, min(AT_ONCE, ON_GPU // numbers_kept(model, sample)))


def numbers_kept(model: nn.Module, sample: Tensor) -> int:
    """Numbers per example that a forward pass keeps for the backward pass, beside the parameters; at least 1."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[tuple[int, int], int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            found[tensor.data_ptr(), tensor.numel()] = tensor.numel()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), trial_masks(model):
        out = model(sample)  # alive to the end, and with it what it keeps: no memory is used twice
    total = sum(found.values())
    del out
    return max(1, total)


def widest(model: nn.Module, sample: Tensor, tuning: Tuning) -> int:
    """Numbers per example in the largest output of a wide convolution; 1 where there is none."""
    return numbers(model, sample, lambda layer: isinstance(layer, nn.Conv2d) and input_channels(layer) >= tuning.wide)


def numbers(
    model: nn.Module,
    sample: Tensor,
    wanted: Callable[[nn.Module], bool] = lambda layer: True,
    kind: Callable[[int], bool] = lambda rank: True,
) -> int:
    """Numbers per example in the largest output, of such a rank, of the wanted layers that have parameters; or 1."""
    found = layer_outputs(model, sample)
    return max((prod(shape[1:]) for layer, shape in found if wanted(layer) and kind(len(shape))), default=1)


def layer_outputs(model: nn.Module, sample: Tensor) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """The layers that have parameters, and the shapes of the tensors that they give for a sample."""
    found: list[tuple[nn.Module, tuple[int, ...]]] = []

    def note(layer: nn.Module, args: Any, out: Any) -> None:
        if isinstance(out, Tensor):
            found.append((layer, tuple(out.shape)))

    layers = (m for m in model.modules() if list(m.parameters(recurse=False)))
    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        with torch.no_grad(), trial_masks(model):
            model(sample)
    finally:
        for handle in handles:
            handle.remove()
    return found
