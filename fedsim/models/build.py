"""From a model config node (a factory and its options) to a checked module."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.weight_norm import WeightNorm

from fedsim.errors import InputError
from fedsim.ground import addresses
from fedsim.ground.own_code import FAILURES, error_line, own_code, place, said
from fedsim.ground.rng import scoped
from fedsim.models.dropout import trial_masks
from fedsim.models.output import first_output
from fedsim.models.policy import OWNED, policy_of
from fedsim.models.pure import pure
from fedsim.models.validate import refuse_parameter_hooks, validate

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
        refuse_parameter_hooks(factory)  # which a copy does not have
        with own_code("model", factory):
            model: Any = copied(factory)
        if options:
            raise InputError(f"model {name} is a module already and takes no options, got {', '.join(options)}")
    else:
        with scoped(seed, addresses.INIT):
            try:
                model = call(factory, input_shape, outputs, options)
            except InputError:
                raise
            except FAILURES as error:  # user code: any type
                what = f"model {name} cannot be built for samples of shape {input_shape}: {error_line(error)}"
                where = place(error, factory)
                raise InputError(what + (f" ({where})" if where else "")) from error
    policy = policy_of(factory)
    checked = validate(model, policy)
    _detach_weight_norm(checked)
    with scoped(seed, addresses.INIT):
        for training in (False, True):
            checked.train(training)
            if not training or policy not in OWNED:  # else statistics of one sample: ``assembly.conduct`` tries it
                _probe(twin(checked), name, input_shape, outputs, tokens=tokens)
    return checked


def call(factory: Factory, input_shape: tuple[int, ...], outputs: int, options: Mapping[str, Any]) -> Any:
    """What a factory makes; it gets ``input_shape`` and ``outputs`` where its signature has them.

    Raises:
        InputError: it has no such option.
    """
    parameters = inspect.signature(factory).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    unknown = [] if takes_all else [key for key in options if key not in parameters]
    if unknown:
        name = getattr(factory, "__name__", type(factory).__name__)
        known = [key for key in parameters if key not in ("input_shape", "outputs")]
        raise InputError(f"model {name} has no option {unknown[0]}; its options are: {', '.join(known) or 'none'}")
    given = {"input_shape": input_shape, "outputs": outputs}
    return factory(**{key: v for key, v in given.items() if takes_all or key in parameters}, **options)


def _detach_weight_norm(model: nn.Module) -> None:
    """Before the first call, the weight that torch.nn.utils.weight_norm computes at each call cannot be copied."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                with torch.no_grad():
                    setattr(module, hook.name, hook.compute_weight(module))


def copied(model: nn.Module, instead: Mapping[int, Any] | None = None) -> nn.Module:
    """A deep copy; workers have one each.

    Args:
        model: is left as it is.
        instead: by id, what the copy gets in place of a copy.

    Raises:
        InputError: the module cannot be copied.
    """
    known = dict(instead or {})
    for module in model.modules():  # eleven dictionaries for hooks, mostly empty, took most of the time of a copy
        known.update((id(v), OrderedDict()) for v in vars(module).values() if type(v) is OrderedDict and not v)
    try:
        return copy.deepcopy(model, known)
    except FAILURES as error:  # user code: any type
        raise InputError(
            f"model {type(model).__name__} cannot be copied for the workers: {error_line(error)}; modules "
            "must hold parameters, buffers and plain values (torch.nn.utils.parametrizations.weight_norm for the older "
            "torch.nn.utils.weight_norm)"
        ) from error


def twin(model: nn.Module) -> nn.Module:
    """A copy of a module that shares the memory of its parameters, for trials that write into none of them."""
    return copied(model, {id(p): type(p)(p.detach(), p.requires_grad) for p in model.parameters()})


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
            with torch.no_grad(), trial_masks(model):
                model(sample)
            return sample
        except InputError:
            raise
        except FAILURES as error:  # user code: any type
            problems.append(f"{str(dtype).removeprefix('torch.')}: {said(error)}")
    shape = (1, *input_shape)
    do = "; whole numbers are tokens: for features pass x.astype('float32')" if tokens else ""
    raise InputError(
        f"model {type(model).__name__} fails on a zero sample of shape {shape} as {'; as '.join(problems)}{do}"
    )


def _probe(model: nn.Module, name: str, input_shape: tuple[int, ...], outputs: int, *, tokens: bool) -> None:
    """Pass one zero sample: the shape must fit, nothing random may be drawn, neither input nor buffers may change."""
    sample = zero_sample(model, input_shape, tokens=tokens)
    with torch.no_grad(), pure(model, sample, name), trial_masks(model):
        out: Any = model(sample)
    lasts = (1, outputs) if outputs == 2 else (outputs,)
    if not isinstance(out, Tensor) or out.dim() < 2 or out.shape[0] != 1 or out.shape[-1] not in lasts:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        do = "" if isinstance(out, Tensor) else f"; choose one of its outputs with model.output={first_output(out)}"
        raise InputError(
            f"model {name} must map one sample {(1, *input_shape)} to outputs [1, {outputs}], got {got}{do}"
        )
