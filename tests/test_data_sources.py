"""The same data give the same digest wherever they come from, and each way takes at most five lines."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.data import Csv, Dataset, HuggingFace, ImageFolder, Npz, Parquet, from_arrays, from_pandas, from_torch
from fedsim.data.arrays import divide, holdout_of_each, with_digest
from fedsim.ground.rng import numpy_stream

pandas = pytest.importorskip("pandas", reason="the extra `dev` is not installed")
Image = pytest.importorskip("PIL.Image", reason="the extra `images` is not installed")

RANDOM = np.random.default_rng(5)
N, SHAPE = 60, (3, 4, 5)
X = RANDOM.integers(0, 256, (N, *SHAPE)).astype(np.uint8)
WHO = np.sort(RANDOM.permutation(np.array(["ann", "bob", "eve"]).repeat(20)))
LABEL = np.concatenate([np.sort(RANDOM.choice(["cat", "dog", "emu"], 20)) for _ in range(3)]).astype("U5")
"""In the order of folders: by client, then by class."""

FEATURES = RANDOM.normal(size=(N, 3))
TARGET = RANDOM.normal(size=N)


def table(x: np.ndarray, y: Any, **more: Any) -> Any:
    columns = {f"p{i}": column for i, column in enumerate(x.reshape(len(x), -1).T)}
    return pandas.DataFrame({**columns, "label": y, **more})


class Torch(torch.utils.data.Dataset[Any]):
    """What a user has: a class with two methods."""

    def __init__(self, make: Callable[[int], Any]):
        self.make = make

    def __len__(self) -> int:
        return N

    def __getitem__(self, number: int) -> Any:
        return self.make(number)


def picture(number: int) -> Any:
    return Image.fromarray(np.moveaxis(X[number], 0, 2))


def npz(folder: Path) -> Any:
    np.savez(folder / "a.npz", x=X, y=LABEL, client=WHO)
    return Npz(str(folder / "a.npz"))


def arrays(folder: Path) -> Any:
    return from_arrays(torch.from_numpy(X), list(LABEL), client=list(WHO))


def png_of_client_folders(folder: Path) -> Any:
    for number in reversed(range(N)):  # whatever order the file system has
        file = folder / "images" / "train" / WHO[number] / LABEL[number] / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(file)
    (folder / "images" / ".DS_Store").write_text("no class")
    (file.parent / "notes.txt").write_text("no image")
    return ImageFolder(str(folder / "images"), clients="folders")


def csv(folder: Path, name: str = "a.csv") -> Any:
    table(X, LABEL, who=WHO).to_csv(folder / name, index=False)
    return Csv(str(folder / name), "label", client="who", shape=SHAPE, pixels=True)


def parquet(folder: Path) -> Any:
    pytest.importorskip("pyarrow", reason="the extra `tables` is not installed")
    table(X, LABEL, who=WHO).to_parquet(folder / "a.parquet")
    return Parquet(str(folder / "a.parquet"), "label", client="who", shape=SHAPE, pixels=True)


def frame(folder: Path) -> Any:
    return from_pandas(table(X, LABEL, who=WHO), "label", client="who", shape=SHAPE, pixels=True)


def torch_pictures(folder: Path) -> Any:
    return from_torch(Torch(lambda i: (picture(i), str(LABEL[i]))), client=lambda i: WHO[i])


def torch_tensors(folder: Path) -> Any:
    number = {"cat": 0, "dog": 1, "emu": 2}
    return from_torch(Torch(lambda i: (torch.from_numpy(X[i]), torch.tensor(number[LABEL[i]]))), client=WHO)


def hub(folder: Path) -> Any:
    datasets = pytest.importorskip("datasets", reason="the extra `hf` is not installed")
    kinds = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog", "emu"]),
            "who": datasets.Value("string"),
        }
    )
    rows = {"image": [picture(i) for i in range(N)], "label": list(LABEL), "who": list(WHO)}
    datasets.Dataset.from_dict(rows, features=kinds).save_to_disk(folder / "saved")
    return HuggingFace(str(folder / "saved"), "label", features=("image",), client="who")


WAYS = [npz, arrays, png_of_client_folders, csv, lambda f: csv(f, "a.csv.gz"), parquet, frame, torch_pictures]
WAYS += [torch_tensors, hub]


def plain(seed: int) -> Dataset:
    """The truth: everything by hand but the choice of what is held out, whose law has its own test."""
    y, who = (np.unique(names, return_inverse=True)[1] for names in (LABEL, WHO))
    train, test = divide(holdout_of_each(who, y, 0.2, numpy_stream(seed, "data.split")), X, y, who)
    scaled = train.x.astype(np.float64) / 255
    mean, std = scaled.mean((0, 2, 3)), scaled.std((0, 2, 3))
    return with_digest(Dataset("own", train, test, "classification", 3, tuple(mean), tuple(std)))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_images_have_one_digest(way: Callable[[Path], Any], tmp_path: Path) -> None:
    want = plain(3)
    data = way(tmp_path).load(3)
    assert data.digest == want.digest
    assert data.clients == ("ann", "bob", "eve")
    np.testing.assert_allclose(data.mean, want.mean, rtol=1e-12)  # sums in another order
    np.testing.assert_allclose(data.std, want.std, rtol=1e-12)
    assert data.outputs == 3
    assert data.test is not None
    assert len(data.test) == 12


@pytest.mark.parametrize("standardise", [False, True])
def test_features_have_one_digest(standardise: bool, tmp_path: Path) -> None:
    x, y = FEATURES.astype(np.float32), TARGET.astype(np.float32)
    np.savez(tmp_path / "a.npz", x=FEATURES, y=TARGET)
    rows = table(FEATURES, TARGET)
    rows.to_csv(tmp_path / "a.csv", index=False)
    with gzip.open(tmp_path / "b.csv.gz", "wt") as file:
        file.write((tmp_path / "a.csv").read_text().replace(",", ";"))
    sources = [
        Npz(str(tmp_path / "a.npz"), standardise=standardise),
        Csv(str(tmp_path / "a.csv"), "label", standardise=standardise),
        Csv(str(tmp_path / "b.csv.gz"), "label", standardise=standardise, delimiter=";"),
        from_arrays(x, y, standardise=standardise),
        from_pandas(rows, "label", standardise=standardise),
        from_torch(Torch(lambda i: (torch.from_numpy(x[i]), y[i])), standardise=standardise),
    ]
    made = [source.load(1) for source in sources]
    assert len({data.digest for data in made}) == 1
    assert {data.task for data in made} == {"regression"}
    assert made[0].train.x.dtype == made[0].train.y.dtype == np.float32
    whole = np.concatenate([made[0].train.y, made[0].test.y])  # type: ignore[union-attr]
    assert sorted(whole) == sorted(y)
    if standardise:
        np.testing.assert_allclose(made[0].train.x.mean(0), 0, atol=1e-6)  # float32
        np.testing.assert_allclose(made[0].train.x.std(0), 1, rtol=1e-5)


def test_test_samples_of_a_file_a_frame_and_a_folder_have_one_digest(tmp_path: Path) -> None:
    cut = slice(0, 40), slice(40, N)
    label = LABEL.copy()
    label[40] = "zebra"  # a class that the training samples lack has its number all the same
    label[40:] = np.sort(label[40:])
    tables = [table(X[c], label[c]) for c in cut]
    order = np.argsort(label[cut[0]], kind="stable")
    for name, one in zip(("train", "test"), tables, strict=True):
        one.to_csv(tmp_path / f"{name}.csv", index=False)
        for number in range(len(one)):
            file = tmp_path / "images" / name / one.label[number] / f"{number:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = one.drop(columns="label").to_numpy()[number].astype(np.uint8).reshape(SHAPE)
            Image.fromarray(np.moveaxis(pixels, 0, 2)).save(file)
    tables[0] = tables[0].iloc[order]  # as folders are sorted
    tables[0].to_csv(tmp_path / "train.csv", index=False)
    np.savez(tmp_path / "a.npz", x=X[cut[0]][order], y=label[cut[0]][order], x_test=X[cut[1]], y_test=label[cut[1]])
    made = [
        Npz(str(tmp_path / "a.npz")).load(0),
        ImageFolder(str(tmp_path / "images")).load(0),
        Csv(str(tmp_path / "train.csv"), "label", test=str(tmp_path / "test.csv"), shape=SHAPE, pixels=True).load(0),
        from_pandas(tables[0], "label", test=tables[1], shape=SHAPE, pixels=True).load(0),
    ]
    assert len({data.digest for data in made}) == 1
    assert {data.classes for data in made} == {("cat", "dog", "emu", "zebra")}


def test_the_index_of_a_frame_is_no_input(tmp_path: Path) -> None:
    """Files that pandas writes hold it where rows were chosen or shuffled: in sorted data it tells the class."""
    datasets = pytest.importorskip("datasets", reason="the extra `hf` is not installed")
    rows = table(FEATURES, LABEL, who=WHO).iloc[RANDOM.permutation(N)]
    rows.to_csv(tmp_path / "a.csv")
    rows.to_parquet(tmp_path / "a.parquet")
    again = pandas.read_csv(tmp_path / "a.csv")  # calls it "Unnamed: 0"
    again.to_parquet(tmp_path / "again.parquet")
    datasets.Dataset.from_pandas(rows).save_to_disk(tmp_path / "saved")
    sources = [
        from_pandas(rows, "label", client="who"),
        from_pandas(again, "label", client="who"),
        Csv(str(tmp_path / "a.csv"), "label", client="who"),
        Parquet(str(tmp_path / "a.parquet"), "label", client="who"),
        Parquet(str(tmp_path / "again.parquet"), "label", client="who"),
        HuggingFace(str(tmp_path / "saved"), "label", client="who"),
    ]
    made = [source.load(0) for source in sources]
    assert {data.input_shape for data in made} == {(3,)}
    assert len({data.digest for data in made}) == 1
    named = HuggingFace(str(tmp_path / "saved"), "label", features=("p0", "__index_level_0__"), client="who").load(0)
    assert named.input_shape == (2,), "who names it has it"


def test_arrays_of_the_hub_keep_their_type(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra `hf` is not installed")
    kinds = {"x": datasets.Array3D(SHAPE, "uint8"), "label": datasets.Value("string"), "who": datasets.Value("string")}
    rows = {"x": list(X), "label": list(LABEL), "who": list(WHO)}
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).save_to_disk(tmp_path / "saved")
    data = HuggingFace(str(tmp_path / "saved"), "label", client="who").load(3)
    assert data.digest == plain(3).digest
