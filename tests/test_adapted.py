"""Parts of a model by name, values from files, adapters: tied weights, layers in two places, files that do not fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fedsim.assembly.factory import ModelFactory
from fedsim.errors import InputError
from fedsim.ground.frozen_norm import FrozenNorm
from fedsim.ground.model_file import write_model
from fedsim.models import Adapted, LoRA, mlp
from fedsim.models.lora import LoRALinear
from fedsim.models.policy import Policy


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 3), nn.Linear(3, 3)
        self.head.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x))  # type: ignore[no-any-return]


def made(model: Any, **how: Any) -> nn.Module:
    """The model, with a second factor of any adapters that is not zero."""
    torch.manual_seed(0)
    found = Adapted(model, **how)((3,), 3)
    if "init" not in how:
        for name, p in found.named_parameters():
            if name.endswith("lora_B.weight"):
                nn.init.normal_(p)
    return found


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}


def small(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    return mlp(input_shape, outputs, hidden=(4,))


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ({"train": ("head.*",)}, {"first.weight", "head.weight", "head.bias"}),
        ({"train": ("first.*",)}, {"first.weight", "head.weight", "first.bias"}),
        ({"freeze": ("head.weight",)}, {"first.bias", "head.bias"}),
        ({"freeze": ("first.weight",)}, {"first.bias", "head.bias"}),
    ],
)
def test_a_tied_weight_goes_by_each_of_its_names(how: dict[str, Any], names: set[str]) -> None:
    assert trained(made(Tied, **how)) == names


@pytest.mark.parametrize(
    ("pattern", "meant"), [("body", "body.*"), ("weight", "*.weight"), ("1", "*.1.*"), ("xyz", "")]
)
def test_a_name_that_is_no_pattern_says_which_is(pattern: str, meant: str) -> None:
    with pytest.raises(InputError) as caught:
        made(small, train=(pattern,))
    said = (
        f"did you mean {meant!r}? there are: body.1.weight" if meant else f"got {pattern!r}; there are: body.1.weight"
    )
    assert said in str(caught.value)


def test_tied_weights_of_two_values_in_a_file_are_refused(tmp_path: Path) -> None:
    """An adapter at one of two layers with one weight: without it they would be two weights."""
    adapted = made(Tied, lora=LoRA(rank=1, targets=("head",)))
    write_model(tmp_path / "adapted.safetensors", adapted)
    message = "with two values for one tensor first.weight, head.weight"
    with pytest.raises(InputError, match=re.escape(message)):
        made(Tied, init=str(tmp_path / "adapted.safetensors"))
    again = made(Tied, init=str(tmp_path / "adapted.safetensors"), lora=LoRA(rank=1, targets=("head",)))
    x = torch.randn(5, 3)
    assert torch.equal(again(x), adapted(x))


@pytest.mark.parametrize("policy", ["groupnorm", "frozen"])
@pytest.mark.parametrize("homes", [1, 2])
def test_a_normalisation_in_two_places_stays_one(policy: Policy, homes: int) -> None:
    norm = nn.BatchNorm1d(4)
    layers = (nn.Linear(4, 4), norm, nn.ReLU(), nn.Linear(4, 4), norm)
    model = (
        nn.Sequential(*layers) if homes == 1 else nn.Sequential(nn.Sequential(*layers[:3]), nn.Sequential(*layers[3:]))
    )
    d = sum(p.numel() for p in model.parameters())
    found = made(model, batchnorm=policy)
    norms = {m for m in found.modules() if isinstance(m, (nn.GroupNorm, FrozenNorm))}
    assert len(norms) == 1
    assert not any(isinstance(m, nn.BatchNorm1d) for m in found.modules())
    assert sum(p.numel() for p in found.parameters()) == d


def test_adapters_of_another_scale_are_refused(tmp_path: Path) -> None:
    file = str(tmp_path / "adapted.safetensors")
    first = made(small, lora=LoRA(rank=2, alpha=8))
    write_model(Path(file), first)
    x = torch.randn(5, 3)
    assert torch.equal(made(small, init=file, lora=LoRA(rank=2, alpha=8))(x), first(x))
    torch.testing.assert_close(made(small, init=file)(x), first(x))
    with pytest.raises(InputError, match=re.escape("model.lora.alpha must be 8, as of the adapters in")):
        made(small, init=file, lora=LoRA(rank=2, alpha=2))


def test_new_adapters_have_a_scale_of_their_own(tmp_path: Path) -> None:
    """Adapters that a file has and the user leaves out: values of W from the file, the rest as for any other W."""
    write_model(tmp_path / "a.safetensors", made(small, lora=LoRA(rank=2, alpha=8, targets=("head",))))
    skip = ("*.lora_?.*",)
    again = made(
        small, init=str(tmp_path / "a.safetensors"), init_skip=skip, lora=LoRA(rank=3, alpha=6, targets=("head",))
    )
    assert again.get_buffer("head.scale") == 2
    assert torch.equal(again.get_parameter("head.lora_B.weight"), torch.zeros(3, 3))


class Mine(nn.Module):
    """Adapters of a user's own, of names like those of fedsim's."""

    def __init__(self, scaled: bool = False) -> None:
        super().__init__()
        self.base = nn.Linear(3, 3)
        self.lora_A, self.lora_B = nn.Linear(3, 2, bias=False), nn.Linear(2, 3, bias=False)
        if scaled:
            self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_B(self.lora_A(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "factory", [Mine, lambda: Mine(scaled=True), lambda: LoRALinear(nn.Linear(3, 3), LoRA(rank=1))]
)
def test_adapters_of_the_models_own_make_the_round_trip(factory: Callable[[], nn.Module], tmp_path: Path) -> None:
    first = made(factory)
    write_model(tmp_path / "mine.safetensors", first)
    again = made(factory, init=str(tmp_path / "mine.safetensors")).state_dict()
    assert all(torch.equal(again[name], value) for name, value in first.state_dict().items())


def test_a_module_that_is_wholly_frozen_may_get_adapters() -> None:
    """From the command line as from Python: whether anything is left to train is asked when all is said."""

    def frozen(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        return small(input_shape, outputs).requires_grad_(False)

    factory = ModelFactory(frozen, {})
    assert trained(made(factory, train=("head.*",))) == {"head.weight", "head.bias"}
    assert len(trained(made(factory, lora=LoRA(rank=2)))) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.to(torch.complex64), "of another kind body.1.weight complex64 for float32"),
        (lambda v: v.to(torch.int64), "of another kind body.1.weight int64 for float32"),
        (lambda v: v.to_sparse(), "must be a file of dense tensors"),
        (lambda v: v.to("meta"), "must be a file of dense tensors"),
        (lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8), "must be a file of dense tensors"),
    ],
)
def test_tensors_of_other_kinds_are_refused(change: Callable[[Tensor], Tensor], message: str, tmp_path: Path) -> None:
    torch.save({name: change(value) for name, value in made(small).state_dict().items()}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=re.escape(message)):
        made(small, init=str(tmp_path / "x.pt"))


def test_lower_precision_is_taken(tmp_path: Path) -> None:
    want = {name: value.half() for name, value in made(small).state_dict().items()}
    torch.save(want, tmp_path / "x.pt")
    got = made(small, init=str(tmp_path / "x.pt")).state_dict()
    assert all(torch.equal(got[name], value.float()) for name, value in want.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "without body.1.weight, body.1.bias, head.weight, head.bias"),
        ({0: torch.zeros(3)}, "which holds dict"),
        (
            nn.Linear(3, 3),
            "which holds more than tensors, or is damaged; write it with torch.save(model.state_dict(), FILE)",
        ),
        ({"model": {}, "epoch": 3}, "which holds dict"),
    ],
)
def test_other_contents_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError) as caught:
        made(small, init=str(tmp_path / "x.pt"))
    assert message in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch's advice is to turn the protection off
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.ckpt", "x.pt", "x", "x.safetensors"])
@pytest.mark.parametrize("pickled", [False, True])
def test_what_a_file_is_says_its_content(name: str, pickled: bool, tmp_path: Path) -> None:
    want = made(small).state_dict()
    if pickled:
        torch.save(want, tmp_path / name)
    else:
        save_file(want, tmp_path / name)
    got = made(small, init=str(tmp_path / name)).state_dict()
    assert all(torch.equal(got[key], value) for key, value in want.items())
