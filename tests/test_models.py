"""The models: parameter counts of the literature, shapes, body and head, and what a model may not be."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from fedsim import models
from fedsim.errors import InputError
from fedsim.ground.layout import Layout

CONFIGS = Path(__file__).parent.parent / "configs" / "model"

FROZEN: list[tuple[Callable[..., nn.Module], tuple[int, ...], int, dict[str, Any], int]] = [
    (models.linear, (300,), 2, {}, 301),
    (models.linear, (300,), 2, {"single_logit": False}, 602),
    (models.linear, (1, 28, 28), 10, {}, 7_850),
    (models.linear_zero, (7,), 1, {}, 7),
    (models.mlp, (1, 28, 28), 10, {}, 159_010),  # McMahan's 2NN has 199,210
    (models.mlp, (1, 28, 28), 10, {"hidden": (200, 200)}, 199_210),
    (models.cnn, (1, 28, 28), 10, {}, 18_378),
    (models.cnn, (1, 28, 28), 10, {"channels": (32, 64), "padding": 2, "hidden": (512,)}, 1_663_370),
    (models.cnn, (1, 8, 8), 10, {"padding": 2}, 14_538),
    (models.lenet, (1, 28, 28), 10, {}, 61_706),
    (models.lenet, (3, 32, 32), 10, {}, 62_006),
    (models.resnet18_gn, (3, 32, 32), 10, {}, 11_181_642),
    (models.resnet18_gn_cifar, (3, 32, 32), 10, {}, 11_173_962),
    (models.resnet_small_gn, (3, 32, 32), 10, {}, 78_042),
    (models.resnet_small_gn, (3, 32, 32), 10, {"depth": 20}, 272_474),
    (models.resnet_small_gn, (1, 28, 28), 10, {}, 78_042 - 2 * 9 * 16),
    (models.char_lstm, (20,), 80, {}, 819_920),
    (models.transformer, (32,), 1000, {}, 231_016),
    (models.gpt_small, (80,), 65, {}, 820_289),
    (models.vit_small, (3, 32, 32), 10, {}, 207_946),
    *(
        (models.fedgh_cnn, (3, 32, 32), classes, {"variant": variant}, count)
        for classes, counts in (
            (10, (2_621_558, 1_815_142, 1_320_558, 1_060_358, 670_058)),
            (100, (2_666_648, 1_860_232, 1_365_648, 1_105_448, 715_148)),
        )
        for variant, count in enumerate(counts, start=1)
    ),
]


OF_TOKENS = (models.char_lstm, models.transformer, models.gpt_small)


@pytest.mark.parametrize(("factory", "shape", "outputs", "options", "count"), FROZEN)
def test_parameter_counts_and_shapes(
    factory: Callable[..., nn.Module], shape: tuple[int, ...], outputs: int, options: dict[str, Any], count: int
) -> None:
    model = models.build(factory, shape, outputs, options, seed=0)
    assert Layout.of(model).d == count
    x = torch.randint(min(80, outputs), (2, *shape)) if factory in OF_TOKENS else torch.rand(2, *shape)
    features = model.get_submodule("body")(x)
    out = model(x)
    k = 1 if factory is models.linear and outputs == 2 and options.get("single_logit", True) else outputs
    assert out.shape == ((2, *shape, k) if factory in OF_TOKENS else (2, k))
    assert torch.equal(out, model.get_submodule("head")(features))
    assert isinstance(model.get_submodule("head"), nn.Linear)


def test_a_transformer_sees_no_later_token_and_classifies_whole_sequences() -> None:
    model = models.build(models.transformer, (7,), 9, {}, seed=0)
    tokens = torch.randint(9, (2, 7))
    later = tokens.clone()
    later[:, 4:] = (later[:, 4:] + 1) % 9
    assert torch.equal(model(tokens)[:, :4], model(later)[:, :4])
    assert not torch.equal(model(tokens)[:, 4:], model(later)[:, 4:])
    layers = model.get_submodule("body.encoder.layers")
    assert not torch.equal(layers[0].linear1.weight, layers[1].linear1.weight)  # type: ignore[index, arg-type, union-attr]
    of_sequences = models.build(models.transformer, (7,), 3, {"vocabulary": 9, "causal": False}, seed=0)
    assert of_sequences(tokens).shape == (2, 3)


def test_fedgh_features_are_the_500_relu_outputs() -> None:
    model = models.build(models.fedgh_cnn, (3, 32, 32), 10, {"variant": 3}, seed=0)
    features = model.get_submodule("body")(torch.rand(4, 3, 32, 32))
    assert features.shape == (4, 500)
    assert features.min() == 0


def test_resnet_has_torchvisions_shapes_in_its_order() -> None:
    shapes = [tuple(p.shape) for p in models.resnet18_gn((3, 32, 32), 10).parameters()]
    assert shapes[:3] == [(64, 3, 7, 7), (64,), (64,)]
    assert shapes[15:21] == [(128, 64, 3, 3), (128,), (128,), (128, 128, 3, 3), (128,), (128,)]
    assert shapes[21:24] == [(128, 64, 1, 1), (128,), (128,)]  # the shortcut of the first block of layer 2
    assert shapes[-2:] == [(10, 512), (10,)]
    norms = [m for m in models.resnet18_gn((3, 32, 32), 10).modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 20
    assert {m.num_groups for m in norms} == {2}


def test_linear_zero_starts_at_zero() -> None:
    assert models.linear_zero((5,), 1)(torch.ones(1, 5)).item() == 0


def test_build_is_addressed_by_the_seed_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (models.build(models.mlp, (4,), 3, {}, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    flat = [Layout.of(m).flatten(m) for m in (first, again, other)]
    assert torch.equal(flat[0], flat[1])
    assert not torch.equal(flat[0], flat[2])


def numpys(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    model = nn.Linear(input_shape[0], outputs)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(np.random.rand(*model.weight.shape)) + random.random())  # noqa: NPY002
    return model


def test_initial_parameters_from_numpy_and_python_are_addressed_too() -> None:
    before = np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]  # noqa: NPY002
    first, again, other = (Layout.of(m).flatten(m) for m in (models.build(numpys, (4,), 3, {}, s) for s in (1, 1, 2)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert before == (np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]  # noqa: NPY002


class Own(nn.Module):
    """A user's class that takes neither input_shape nor outputs."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


def test_a_users_class_and_a_users_module() -> None:
    assert models.build(Own, (3,), 2, {"width": 3}, seed=0)(torch.ones(5, 3)).shape == (5, 2)
    mine = Own()
    built = models.build(mine, (3,), 2, {}, seed=0)
    with torch.no_grad():
        built.get_submodule("layer").weight.zero_()
    assert mine.layer.weight.abs().sum() > 0


class Noisy(Own):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.rrelu(x, training=True))


class Counting(Own):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.get_buffer("calls").add_(1)
        return super().forward(x)


def frozen() -> nn.Module:
    return Own().requires_grad_(False)


def counts() -> nn.Module:
    model = Own()
    model.register_parameter("steps", nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False))
    return model


def sequential(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("factory", "shape", "message"),
    [
        (sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), (1, 8, 8), "BatchNorm2d at 1, whose running statistics"),
        (sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), (1, 8, 8), "per-sample gradients do not exist"),
        (Noisy, (3,), "draws random numbers in forward"),
        (Counting, (3,), "changes its buffer calls in forward"),
        (frozen, (3,), "model must have parameters to train, got 'every one frozen (requires_grad=False)'"),
        (counts, (3,), "parameter steps must be floating point, got torch.int64"),
        (nn.Flatten, (2,), "model must have parameters to train"),
        (lambda: 3, (3,), "must be or give a torch.nn.Module, got 'int'"),
        (Own, (4,), "fails on a zero sample of shape (1, 4)"),
        (lambda: nn.Linear(3, 5), (3,), "to outputs [1, 2], got (1, 5)"),
        (lambda: torch.jit.script(nn.Linear(3, 2)), (3,), "got one made by torch.jit.script or torch.jit.trace"),
        (lambda: nn.Sequential(nn.Linear(3, 2, device="meta")), (3,), "model's 0.weight must hold numbers"),
    ],
)
def test_refusals(factory: Callable[[], nn.Module], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        models.build(factory, shape, 2, {}, seed=0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("layer", "shape"), [(nn.Linear(3, 2), (3,)), (nn.Conv2d(1, 2, 3), (1, 3, 3))])
def test_whole_numbers_for_a_model_of_features_are_told_what_to_become(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    with pytest.raises(InputError, match=r"whole numbers are tokens: for features pass x.astype\('float32'\)"):
        models.build(sequential(layer, nn.Flatten()), shape, 2, {}, seed=0, tokens=True)


@pytest.mark.parametrize(
    ("factory", "shape", "options", "message"),
    [
        (models.cnn, (1, 8, 8), {}, "too small for 2 convolutions of 5x5"),
        (
            models.cnn,
            (64,),
            {},
            "model=cnn needs images of shape (channels, height, width), got samples of shape (64,)",
        ),
        (models.cnn, (1, 28, 28), {"kernel": 3, "padding": 3}, "padding must be in 0..2"),
        (models.lenet, (1, 8, 8), {}, "needs images of 28x28 or 32x32, got 8x8"),
        (models.fedgh_cnn, (3, 32, 32), {"variant": 6}, "variant must be 1, 2, 3, 4 or 5, got 6"),
        (models.linear_zero, (3,), {}, "outputs must be 1 for model=linear_zero, got 10"),
        (models.mlp, (3,), {"hidden": ()}, "hidden must be one or more widths"),
        (models.mlp, (3,), {"width": 3}, "model mlp has no option width; its options are: hidden, activation"),
        (models.resnet18_gn, (3, 32, 32), {"groups": 3}, "groups must be a divisor of 64, got 3"),
        (models.resnet_small_gn, (3, 32, 32), {"depth": 10}, "depth must be 6 n + 2: 8, 14, 20, ..., got 10"),
        (models.resnet_small_gn, (3, 32, 32), {"depth": 2}, "depth must be 6 n + 2"),
        (models.resnet_small_gn, (3, 32, 32), {"groups": 3}, "groups must be a divisor of 16, got 3"),
        (models.resnet_small_gn, (64,), {}, "model=resnet_small_gn needs images"),
        (models.char_lstm, (3, 32, 32), {}, "needs token sequences of shape (t,)"),
        (models.transformer, (3, 32, 32), {}, "needs token sequences of shape (t,)"),
        (models.transformer, (8,), {"heads": 5}, "heads must divide the width 64, got 5"),
        (models.gpt_small, (64, 2), {}, "needs token sequences of shape (t,)"),
        (models.vit_small, (3, 32, 30), {}, "patch must divide both sides of the image, got 4"),
        (models.vit_small, (32,), {}, "model=vit_small needs images"),
    ],
)
def test_factories_explain_themselves(
    factory: Callable[..., nn.Module], shape: Sequence[int], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        models.build(factory, tuple(shape), 10, options, seed=0)
    assert message in str(caught.value)


def test_batchnorm_becomes_groupnorm_of_two_groups() -> None:
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Sequential(nn.BatchNorm2d(6, affine=False)))
    with torch.no_grad():
        model[1].weight.fill_(3.0)
    converted = models.validate(model, "groupnorm")
    norms = [m for m in converted.modules() if isinstance(m, nn.GroupNorm)]
    assert [(m.num_groups, m.num_channels, m.affine) for m in norms] == [(2, 6, True), (2, 6, False)]
    assert norms[0].weight.tolist() == [3.0] * 6
    small = [models.validate(nn.Sequential(nn.BatchNorm1d(c), nn.Linear(c, 1)), "groupnorm") for c in (2, 3, 4)]
    assert [model.get_submodule("0").num_groups for model in small] == [1, 1, 2]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_model_config_builds(path: Path) -> None:
    loaded = yaml.safe_load(path.read_text())
    for node in loaded.get("architectures", [loaded]):
        factory = getattr(models, node.pop("_target_").removeprefix("fedsim.models."))
        assert factory.__name__ == path.stem or "architectures" in loaded
        shapes = {"linear_zero": ((5,), 1), **{f.__name__: ((12,), 30) for f in OF_TOKENS}}
        shape, outputs = shapes.get(path.stem, ((3, 32, 32), 10))
        policy = node.pop("batchnorm", "error")
        made = [partial(factory, **options) for options in (node, {})]
        both = [models.Adapted(one, batchnorm=policy) if policy != "error" else one for one in made]
        model, defaults = (models.build(one, shape, outputs, {}, seed=0) for one in both)
        same = torch.equal(Layout.of(model).flatten(model), Layout.of(defaults).flatten(defaults))
        assert same == (node.get("variant", 1) == 1)


def test_a_model_of_numbers_is_refused_for_tokens() -> None:
    with pytest.raises(InputError, match=r"fails on a zero sample of shape \(1, 6\) as int64"):
        models.build(models.mlp, (6,), 9, {}, 0, tokens=True)
    models.build(models.char_lstm, (6,), 9, {"hidden": 4}, 0, tokens=True)


def test_small_resnets_have_the_papers_shapes() -> None:
    """6 n + 2 layers with weights: a stem, three stages of n blocks of two convolutions, a head."""
    for depth in (8, 14, 20):
        model = models.resnet_small_gn((3, 32, 32), 10, depth)
        convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert len(convolutions) == depth - 1
        shortcuts = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
        assert [(m.in_channels, m.out_channels, m.stride) for m in shortcuts] == [(16, 32, (2, 2)), (32, 64, (2, 2))]
        per_stage = [sum(m.out_channels == width for m in convolutions) for width in (16, 32, 64)]
        assert per_stage == [1 + (depth - 2) // 3, (depth - 2) // 3, (depth - 2) // 3]
        assert {m.num_groups for m in model.modules() if isinstance(m, nn.GroupNorm)} == {2}
    model = models.resnet_small_gn((3, 32, 32), 10, groups=4)
    assert {m.num_groups for m in model.modules() if isinstance(m, nn.GroupNorm)} == {4}
    maps: list[tuple[int, ...]] = []
    for stage in ("layer1", "layer2", "layer3"):
        model.get_submodule(f"body.{stage}").register_forward_hook(lambda _, __, out: maps.append(tuple(out.shape)))
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert maps == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]
