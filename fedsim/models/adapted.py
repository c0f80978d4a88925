"""A model made ready for a run: where its values come from, which are trained, its adapters, which output counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fedsim.errors import InputError, require
from fedsim.fields import check_fields
from fedsim.ground.model_file import file_sha256, model_file, read_model
from fedsim.models.build import call, copied
from fedsim.models.initial_values import KEY, load_values
from fedsim.models.lora import LoRA, without_adapters
from fedsim.models.names import matching
from fedsim.models.output import Output
from fedsim.models.policy import Policy, converted


@dataclass(frozen=True)
class Adapted:
    """A model with values from a file, adapters, or of which a part is trained: a model wherever one is asked for.

    >>> from fedsim.models import mlp
    >>> model = Adapted(mlp, train=("head.*",))((4,), 3)
    >>> [name for name, p in model.named_parameters() if p.requires_grad]
    ['head.weight', 'head.bias']

    Attributes:
        model: a factory, a class of modules, or a module, which is copied.
        init: a file of named tensors, or the folder of a run, whose last model is taken.
        init_skip: patterns of names that keep the values that the model itself draws, a new head's for example.
        freeze: patterns of names of parameters that stay as they are, such as ``body.*``; ``*`` stands for anything.
        train: patterns of names of the parameters that are trained, all others being frozen; None: as the model says,
            or with ``lora`` none of the model's own.
        lora: adapters, which are trained. Names above are those of the model without them.
        output: which of the model's outputs counts, where it gives a dictionary, a tuple or an object; see ``Output``.
        batchnorm: what becomes of BatchNorm, see ``fedsim.models.policy.Policy``.
    """

    model: Callable[..., Any]
    init: str | None = None
    init_skip: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    train: tuple[str, ...] | None = None
    lora: LoRA | None = None
    output: str | int | None = None
    batchnorm: Policy = "error"

    def __post_init__(self) -> None:
        check_fields(self)
        must = "be empty without init, the file whose names they are"
        require(self.init is not None or not self.init_skip, "init_skip", must, self.init_skip)

    @property
    def __name__(self) -> str:
        """The model's name, for messages."""
        return getattr(self.model, "__name__", type(self.model).__name__)

    @property
    def origin(self) -> dict[str, str]:
        """The file of the initial values and its sha256, if there is one."""
        if self.init is None:
            return {}
        file = model_file(self.init, KEY)
        return {"init": str(file), "sha256": file_sha256(file)}

    def __call__(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """The model for samples of this shape and this number of outputs."""
        given = self.model
        model: Any = copied(given) if isinstance(given, nn.Module) else call(given, input_shape, outputs, {})
        require(isinstance(model, nn.Module), "model", "be or give a torch.nn.Module", type(model).__name__)
        model = converted(model, self.batchnorm)
        tensors, file = self._read()
        merged = without_adapters(tensors, kept=model.state_dict())
        with_adapters = self.lora is not None and merged.keys() != tensors.keys()
        if self.init is not None and not with_adapters:
            load_values(model, merged, file, self.init_skip)
        own = dict(model.named_parameters(remove_duplicate=False))
        if self.lora is not None:
            model = self.lora.put_into(model)
            if with_adapters:
                load_values(
                    model, tensors, file, (*self.init_skip, *self.lora.own_scales(tensors, file, self.init_skip))
                )
        choose_trained(own, self.train, self.freeze)
        if not any(p.requires_grad for p in model.parameters()):
            key, value = ("model.freeze", self.freeze) if self.freeze else ("model.train", self.train)
            raise InputError(f"{key} must leave parameters to train, got {list(value or ())}, which leaves none")
        return model if self.output is None else Output(model, self.output)

    def _read(self) -> tuple[dict[str, Tensor], str]:
        """The tensors of ``init``, and their file."""
        if self.init is None:
            return {}, ""
        file = model_file(self.init, KEY)
        return read_model(file, KEY), str(file)


def choose_trained(parameters: Mapping[str, nn.Parameter], train: Sequence[str] | None, freeze: Sequence[str]) -> None:
    """Train the parameters that match ``train`` (None: those that are), but those that match ``freeze``.

    A tied one goes by each of its names.

    Raises:
        InputError: a pattern matches no parameter.
    """
    if train is not None:
        wanted = {id(parameters[name]) for name in matching("model.train", train, parameters)}
        for p in parameters.values():
            p.requires_grad_(id(p) in wanted)
    for name in matching("model.freeze", freeze, parameters):
        parameters[name].requires_grad_(False)
