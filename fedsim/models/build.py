"""From a model config node (a factory and its options) to a checked module."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fedsim.errors import InputError
from fedsim.models.validate import validate
from fedsim.own_code import line, own_code, place, said
from fedsim.rng import scoped

Factory: TypeAlias = Callable[..., nn.Module]
"""``(input_shape, outputs, **options) -> nn.Module``: a function, or a class of modules."""


def build(
    factory: Factory | nn.Module,
    input_shape: tuple[int, ...],
    outputs: int,
    options: Mapping[str, Any],
    seed: int,
    *,
    tokens: bool = False,
) -> nn.Module:
    """The run's model with its initial parameters, checked, in training mode.

    Args:
        factory: gets ``input_shape`` and ``outputs`` where its signature has them, and the options. A module is
            copied and keeps its parameters.
        input_shape: shape of one sample.
        outputs: size of the last dimension of the outputs; a model for 2 may have 1, the logit of class 1.
        options: the factory's other arguments.
        seed: of the run; the initial parameters come from its stream "init".
        tokens: the samples are int64 tokens, which a model of numbers does not take.

    Raises:
        InputError: the factory fails, the result is not a module, or one zero sample does not pass through it.
    """
    name = getattr(factory, "__name__", type(factory).__name__)
    if isinstance(factory, nn.Module):
        with own_code("model", factory):
            model: Any = copy.deepcopy(factory)
        if options:
            raise InputError(f"model {name} is a module already and takes no options, got {', '.join(options)}")
    else:
        parameters = inspect.signature(factory).parameters
        takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        unknown = [] if takes_all else [key for key in options if key not in parameters]
        if unknown:
            known = [key for key in parameters if key not in ("input_shape", "outputs")]
            raise InputError(f"model {name} has no option {unknown[0]}; its options are: {', '.join(known) or 'none'}")
        given = {"input_shape": input_shape, "outputs": outputs}
        given = {key: value for key, value in given.items() if takes_all or key in parameters}
        with scoped(seed, "init"):
            try:
                model = factory(**given, **options)
            except InputError:
                raise
            except Exception as error:  # user code: any type
                what = f"model {name} cannot be built for samples of shape {input_shape}: {line(error)}"
                where = place(error, factory)
                raise InputError(what + (f" ({where})" if where else "")) from error
    checked = validate(model).train()
    with scoped(seed, "init"):
        _probe(checked, name, input_shape, outputs, tokens=tokens)
    return checked


def zero_sample(model: nn.Module, input_shape: tuple[int, ...], *, tokens: bool = False) -> Tensor:
    """One sample [1, *input_shape] of zeros that passes through the model: numbers or, failing that, int64 tokens.

    With ``tokens``, tokens only.

    Raises:
        InputError: neither passes.
    """
    parameter = next(model.parameters())
    problems = []
    for dtype in (torch.int64,) if tokens else (parameter.dtype, torch.int64):
        sample = torch.zeros(1, *input_shape, dtype=dtype, device=parameter.device)
        try:
            with torch.no_grad():
                model(sample)
            return sample
        except Exception as error:  # user code: any type
            problems.append(f"{str(dtype).removeprefix('torch.')}: {said(error)}")
    shape = (1, *input_shape)
    raise InputError(
        f"model {type(model).__name__} fails on a zero sample of shape {shape} as {'; as '.join(problems)}"
    )


def _probe(model: nn.Module, name: str, input_shape: tuple[int, ...], outputs: int, *, tokens: bool) -> None:
    """Pass one zero sample: the shape must fit, nothing random may be drawn, neither input nor buffers may change."""
    sample = zero_sample(model, input_shape, tokens=tokens)
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    random = torch.random.get_rng_state()
    version = sample._version
    with torch.no_grad():
        out: Any = model(sample)
    if sample._version != version:
        raise InputError(f"model {name} writes into its input in forward, but the samples are shared; use x = x - ...")
    if not torch.equal(random, torch.random.get_rng_state()):
        raise InputError(f"model {name} draws random numbers in forward, which have no address (seed, round, client)")
    for key, value in model.named_buffers():
        if key not in buffers or not torch.equal(buffers[key], value):
            raise InputError(
                f"model {name} changes its buffer {key} in forward, but buffers are constants that all clients share"
            )
    lasts = (1, outputs) if outputs == 2 else (outputs,)
    if not isinstance(out, Tensor) or out.dim() < 2 or out.shape[0] != 1 or out.shape[-1] not in lasts:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise InputError(f"model {name} must map one sample {(1, *input_shape)} to outputs [1, {outputs}], got {got}")
