"""LEAF and Tiny ImageNet from files in their authors' form; the law of what is held out of clients; names are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim import simulate
from fedsim.algorithms.fedavg import FedAvg
from fedsim.data import Leaf, TinyImagenet, from_arrays
from fedsim.data.arrays import holdout_of_each
from fedsim.errors import InputError
from fedsim.models import linear
from fedsim.partition import Natural

Image = pytest.importorskip("PIL.Image", reason="the extra `images` is not installed")


def leaf(folder: Path, users: dict[str, Any], **keys: Any) -> Leaf:
    for split in ("train", "test"):
        (folder / split).mkdir()
        counts = [len(samples["y"]) for samples in users.values()]
        content = {"users": list(users), "num_samples": counts, "user_data": users}
        (folder / split / "all_data_0.json").write_text(json.dumps(content))
    return Leaf(str(folder), **keys)


def test_femnist(tmp_path: Path) -> None:
    pixels = np.linspace(0, 1, 2 * 784).reshape(2, 784)
    users = {"f1": {"x": pixels.tolist(), "y": [61, 3]}, "f0": {"x": pixels[:1].tolist(), "y": [10]}}
    data = leaf(tmp_path, users).load(0)
    assert data.train.x.shape == (3, 1, 28, 28)
    np.testing.assert_array_equal(data.train.x[1, 0, 2, 5], np.float32(pixels[1, 2 * 28 + 5]))
    assert data.train.y.tolist() == [61, 3, 10]
    assert data.train.group is not None
    assert data.train.group.tolist() == [1, 1, 0]
    assert (data.clients, data.outputs, data.classes[61]) == (("f0", "f1"), 62, "z")


def test_shakespeare(tmp_path: Path) -> None:
    data = leaf(tmp_path, {"LEAR": {"x": ["a" * 79 + " "], "y": ["}"]}}).load(0)
    assert (data.task, data.outputs) == ("next_token", 80)
    assert data.train.x.tolist() == [[53] * 79 + [1]]  # upstream: ALL_LETTERS.find
    assert data.train.y.tolist() == [[53] * 78 + [1, 79]]
    last = Leaf(str(tmp_path), positions="last").load(0)
    assert (last.task, last.train.y.tolist()) == ("classification", [79])
    (tmp_path / "train" / "all_data_1.json").write_text(json.dumps({"user_data": {"X": {"x": ["é" * 80], "y": ["a"]}}}))
    with pytest.raises(InputError, match="80 characters of LEAF's Shakespeare only, got 'é'"):
        Leaf(str(tmp_path)).load(0)


def test_sent140(tmp_path: Path) -> None:
    users = {"u": {"x": [["1", "Mon", "NO_QUERY", "u", "good, good dog"]], "y": [1]}}
    source = leaf(tmp_path, users)
    with pytest.raises(InputError, match=r"data.vocabulary must be the words .* give LEAF's embs.json"):
        source.load(0)
    (tmp_path / "embs.json").write_text(json.dumps({"vocab": ["good", ","], "emba": []}))
    told = {"vocabulary": str(tmp_path / "embs.json")}
    data = Leaf(str(tmp_path), **told).load(0)
    assert data.train.x.tolist() == [[0, 1, 0] + [2] * 22]  # unknown words and what is missing: the vocabulary's size
    assert Leaf(str(tmp_path), words="bag", **told).load(0).train.x.tolist() == [[2.0, 1.0]]
    assert data.outputs == 2


def test_celeba(tmp_path: Path) -> None:
    source = leaf(tmp_path, {"7": {"x": ["000001.jpg"], "y": [1.0]}, "9": {"x": ["000001.jpg"], "y": [0.0]}})
    with pytest.raises(InputError, match=r"data.images must be the folder of CelebA's images"):
        source.load(0)
    (tmp_path / "raw" / "img_align_celeba").mkdir(parents=True)
    Image.new("RGB", (178, 218), (255, 0, 51)).save(tmp_path / "raw" / "img_align_celeba" / "000001.jpg", quality=100)
    data = source.load(0)
    assert data.train.x.shape == (2, 3, 84, 84)
    assert (data.train.y.tolist(), data.outputs) == ([1, 0], 2)


def test_tiny_imagenet(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-imagenet-200"
    for name in ("n02", "n01"):
        (folder / "train" / name / "images").mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(folder / "train" / name / "images" / f"{name}_0.JPEG")
    (folder / "val" / "images").mkdir(parents=True)
    Image.new("L", (64, 64), 255).save(folder / "val" / "images" / "val_0.JPEG")
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t62\t57\n")
    data = TinyImagenet(str(tmp_path)).load(0)
    assert data.train.x.shape == (2, 3, 64, 64)
    assert (data.classes, data.train.y.tolist()) == (("n01", "n02"), [0, 1])
    assert data.test is not None
    assert (data.test.y.tolist(), int(data.test.x.min())) == ([1], 255)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.5, 0.9])
def test_each_client_and_each_of_its_labels_gives_its_share(share: float) -> None:
    rng = np.random.default_rng(1)
    client, label = rng.integers(0, 40, 700), rng.integers(0, 4, 700)
    client[0] = 40  # one with a single sample keeps it
    parts = holdout_of_each(client, label, share, np.random.default_rng(2))
    assert sorted([*parts.train, *parts.test]) == list(range(700))
    assert set(client[parts.train]) == set(client)
    for one in range(40):
        mine = client == one
        for chosen in (mine, *(mine & (label == k) for k in range(4))):
            assert abs(int(chosen[parts.test].sum()) - share * int(chosen.sum())) < 1
    put_back = np.bincount(client[parts.train]) == 1  # clients that may have given one less, to keep one
    assert round(share * 700) - put_back.sum() <= len(parts.test) <= round(share * 700)


def test_single_samples_favour_no_label() -> None:
    """Ten labels once each for 300 clients at 0.2: 60 of each are expected, within 5 standard deviations of 6.9."""
    client, label = np.repeat(np.arange(300), 10), np.tile(np.arange(10), 300)
    counts = np.bincount(label[holdout_of_each(client, label, 0.2, np.random.default_rng(0)).test], minlength=10)
    assert counts.sum() == 600
    assert np.abs(counts - 60).max() < 35


def test_names_are_kept_in_the_runs_folder(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3))
    data = from_arrays(x, ["10", "9"] * 20, client=["eve", "ann"] * 20)
    result = simulate(FedAvg(lr=0.1), data=data, partition=Natural(), model=linear, rounds=1, run_dir=tmp_path / "run")
    assert result.status == "finished"
    names = json.loads((tmp_path / "run" / "names.json").read_text())
    assert names == {"classes": {"9": 0, "10": 1}, "clients": {"ann": 0, "eve": 1}}
    digest = data.load(0).digest
    assert f"digest: {digest}" in (tmp_path / "run" / "config.yaml").read_text()
