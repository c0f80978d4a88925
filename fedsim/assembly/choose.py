"""Eighth stage of assembly: kernels, those asked for or the best first, of what has the plain module's numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from fedsim.assembly.agreement import Agreement, trial
from fedsim.assembly.conduct import padded, refuse_conduct
from fedsim.assembly.initial import Initial
from fedsim.assembly.kernel_table import table_of
from fedsim.assembly.parts import Parts
from fedsim.assembly.uses import uses
from fedsim.errors import InputError
from fedsim.ground.layout import Layout
from fedsim.kernels.kernel import ALONE, Choice, Kernel, block, clients_on_gpu, kernel_rule, no_kernel, samples_on_gpu
from fedsim.models import twin, zero_sample
from fedsim.pool.engine import Engine
from fedsim.pool.worker import Setup


@dataclass(frozen=True)
class Chosen:
    """How one architecture is computed.

    Attributes:
        kernel: of its local steps.
        block: most clients at once.
        why: the reason, in a line.
        by_layer: whether sums of clipped gradients may be computed layer by layer.
        prediction: the kernel of its predictions, in evaluation mode: any but ``vmap``.
        note: what the user should know, or "".
    """

    kernel: Kernel
    block: int
    why: str
    by_layer: bool
    prediction: Kernel
    note: str


def with_kernels(
    parts: Parts, setup: Setup, initial: Initial, input_shape: tuple[int, ...]
) -> tuple[Setup, tuple[Chosen, ...]]:
    """The set-up with the kernels that were chosen, and how each architecture is computed.

    A round is rehearsed to see what the algorithm asks of each model; kernels are tried on that.

    Raises:
        InputError: the algorithm fails in the rehearsal, or no kernel has the model's own numbers.
    """
    asked = uses(setup, initial.states, initial.x0, parts.planned_rounds)
    each = [choose(setup, k, initial.x0s[k], input_shape, parts.engine, what) for k, what in enumerate(asked)]
    kernels, by_layer = tuple(one.kernel for one in each), tuple(one.by_layer for one in each)
    predictions = tuple(one.prediction for one in each)
    setup = replace(setup, kernels=kernels, by_layer=by_layer, predictions=predictions)
    if parts.engine.device == "cuda":
        models = (twin(model).eval() for model in setup.models)
        most = (samples_on_gpu(model, zero_sample(model, input_shape), setup.chunk) for model in models)
        setup = replace(setup, chunk=min(most))
    return setup, tuple(each)


def choose(
    setup: Setup, number: int, x0: Tensor, input_shape: tuple[int, ...], engine: Engine, asked: frozenset[str]
) -> Chosen:
    """The kernel of one architecture, checked against the module itself.

    Args:
        setup: of the run; its kernels do not matter.
        number: of the architecture.
        x0: [d] the model that it starts from.
        input_shape: of one sample.
        engine: what the configuration asks for.
        asked: what the run will ask of the oracle, see ``fedsim.assembly.uses``.

    Raises:
        InputError: the kernel asked for cannot compute this model, or computes something else; or no kernel does.
    """
    model = setup.models[number]
    name, at = type(model).__name__, trial(setup.train, x0, setup.seed)
    refuse_conduct(setup, model, at)
    if setup.written and asked & {"example_grads", "clipped_sum"}:
        raise InputError(
            f"model.batchnorm must be groupnorm or frozen for a method that asks for gradients by example: {name} "
            "mixes the examples of a minibatch"
        )
    agreement = Agreement(model, setup.loss, at, setup.written, setup.wide)
    wide = [] if setup.written else [Agreement(model, setup.loss, p, wide=setup.wide) for p in padded(setup, at)]
    rejected: list[str] = []
    alone = [Choice("loop", 1, "forward writes buffers, which each client has for itself")]
    for choice in alone if setup.written else _candidates(twin(model), input_shape, engine):
        by_layer = True
        problem = agreement.training(choice.kernel, asked - {"clipped_sum"})
        if not problem and "clipped_sum" in asked:
            by_layer = not agreement.training(choice.kernel, ["clipped_sum"])
            problem = "" if by_layer else agreement.training(choice.kernel, ["clipped_sum"], by_layer=False)
        if not problem and choice.kernel not in ALONE:  # which pads nothing
            problem = next((found for one in wide if (found := one.training(choice.kernel, ["outputs"]))), "")
        if not problem:
            break
        if engine.kernel != "auto" and engine.batching == "auto":
            do = "use engine.kernel=auto"
            raise InputError(f"engine.kernel={engine.kernel} is not right for model {name}: {problem}; {do}")
        rejected.append(f"{choice.kernel} is not right for {name}: {problem}")
    else:
        raise InputError(
            f"model {name} cannot be trained with its own gradients, not even one client at a time: {problem}"
        )
    prediction: Kernel = "loop" if choice.kernel == "vmap" else choice.kernel
    if prediction != "loop" and (other := agreement.prediction(prediction)):
        rejected.append(
            f"{prediction} is not right for {name} in evaluation mode, which is left to the module: {other}"
        )
        prediction = "loop"
    if prediction == "loop" and (other := agreement.prediction("loop")):
        raise InputError(f"model {name} does not give the same numbers every time: {other}")
    why = "; ".join(part for part in (*rejected, choice.why) if part)
    note = f"{'; '.join(rejected)}; kernel in use: {choice.kernel}" if rejected else ""
    most = choice.block if engine.block == "auto" else engine.block
    if engine.device == "cuda" and engine.block == "auto" and choice.kernel not in ALONE:
        batch = setup.local.batch(int(setup.train.sizes().max()))
        most = min(most, clients_on_gpu(twin(model), zero_sample(model, input_shape), batch))
    return Chosen(choice.kernel, most, why, by_layer, prediction, note)


def _candidates(model: nn.Module, input_shape: tuple[int, ...], engine: Engine) -> Iterable[Choice]:
    """What may be used, the best first.

    Raises:
        InputError: ``engine.kernel`` names a kernel that the model has not.
    """
    layout = Layout.of(model)
    if engine.batching == "loop":
        return [Choice("loop", 1, "engine.batching=loop")]
    if engine.kernel == "auto":
        return kernel_rule(model, layout, input_shape, engine.device, table_of(engine))
    sample = zero_sample(model, input_shape)
    if problem := no_kernel(engine.kernel, model, layout, sample):
        raise InputError(
            f"engine.kernel must be auto for model {type(model).__name__}, got {engine.kernel!r}: {problem}"
        )
    return [Choice(engine.kernel, block(model, layout, sample, table_of(engine)), "engine.kernel")]
