"""What a data source cannot take is one line that names the file, the row or column, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.data import Csv, HuggingFace, ImageFolder, Npz, Parquet, from_arrays, from_torch, memory
from fedsim.errors import InputError

Image = pytest.importorskip("PIL.Image", reason="the extra `images` is not installed")

X, Y = np.ones((30, 2)), [0, 1, 2] * 10
GREY = np.zeros((6, 1, 4, 4), np.uint8)


def npz(**arrays: Any) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        np.savez(folder / "a.npz", **arrays)
        return Npz(str(folder / "a.npz"))

    return make


def beyond(folder: Path) -> Any:
    """A file whose heading says a shape that is not in it."""
    import io
    import zipfile

    heading = io.BytesIO()
    np.lib.format.write_array_header_1_0(heading, {"descr": "<f8", "fortran_order": False, "shape": (10**15,)})
    with zipfile.ZipFile(folder / "a.npz", "w") as file:
        file.writestr("x.npy", heading.getvalue())
        file.writestr("y.npy", heading.getvalue())
    return Npz(str(folder / "a.npz"))


def csv_bytes(content: bytes) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        (folder / "a.csv").write_bytes(content)
        return Csv(str(folder / "a.csv"), "y")

    return make


def lacking(folder: Path) -> Any:
    (folder / "b.csv").write_text("a,y\n1,0\n1,1\n")
    return csv(GOOD, test=str(folder / "b.csv"))(folder)


def csv(text: str, target: str = "y", **keys: Any) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        (folder / "a.csv").write_text(text)
        return Csv(str(folder / "a.csv"), target, **keys)

    return make


def folder_of(files: dict[str, Any], **keys: Any) -> Callable[[Path], Any]:
    """A folder of images, each given as (mode, side) or as the text of its file."""

    def make(folder: Path) -> Any:
        for name, what in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(what, str):
                (folder / name).write_text(what)
            else:
                Image.new(what[0], (what[1], what[1])).save(folder / name)
        return ImageFolder(str(folder), **keys)

    return make


def owned(text: str) -> Callable[[Path], Any]:
    """A folder of images with a CSV of their clients."""
    return lambda folder: folder_of({**TWO, "c.csv": text}, clients=str(folder / "c.csv"))(folder)


def arrays(*given: Any, **keys: Any) -> Callable[[Path], Any]:
    return lambda folder: from_arrays(*given, **keys)


GOOD = "a,b,y\n1,2,0\n3,4,1\n"
TWO = {"train/cat/1.png": ("L", 4), "train/dog/1.png": ("L", 4)}
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no file": (lambda folder: Npz(str(folder / "no.npz")), r"data.path must be an .npz file, got .*No such file"),
    "no zip": (lambda f: (f / "a.npz").write_text("x") and Npz(str(f / "a.npz")), "be an .npz"),
    "no y": (npz(x=X, labels=Y), "must hold the array y, got 'x, labels'"),
    "a misspelt array": (npz(x=X, y=Y, x_tset=X), "no other arrays, got 'x_tset'; did you mean x_test"),
    "objects": (
        npz(x=X, y=np.array(Y, object)),
        "y must be an array of numbers or text, got Python objects; save y.ast",
    ),
    "a shape that nobody has": (beyond, r"x must fit into memory, got Unable to allocate .* PiB"),
    "nothing": (arrays(None, Y), "x must be given, got None"),
    "no labels": (arrays(X, None), "y must be given, got None"),
    "no samples": (arrays(X[:0], Y[:0]), "x must hold samples, got 0"),
    "one class": (arrays(X, ["cat"] * 30), r"y must hold two classes at least, got \('cat',\); say outputs=K"),
    "names for names": (arrays(X, [*"ab"] * 15, classes="ba"), "classes must be left out where y has names"),
    "names too few": (arrays(X, Y, classes="ab"), "classes must name each of the 3 classes, got 2"),
    "a cell of text": (csv("a,y\n1,0\n,1\n2x,1\n"), "column a must hold numbers, got '2x' in row 3"),
    "another code page": (csv_bytes("a,y\n1,é\n2,ü\n".encode("latin-1")), "cannot be read as csv .*UTF8"),
    "another delimiter": (csv("a;y\n1;0\n"), "say what stands between two cells: data.delimiter=';'"),
    "a test file that lacks one": (lacking, r"b.csv must have the column b of .*a.csv, got none"),
    "a feature twice": (csv(GOOD, features=("a", "a")), r"features must name each column once, got \['a'\]"),
    "test inputs alone": (npz(x=X, y=Y, x_test=X), "have x_test and y_test, or neither"),
    "fewer labels": (arrays(X, Y[:-1]), "y must have one entry for each of the 30 samples, got 29"),
    "fewer clients": (arrays(X, Y, client=Y[:-1]), "client must have one entry for each of the 30 samples, got 29"),
    "no label": (arrays(X, [*"ab" * 14, "a", None]), "y must have a name for every sample, got none for sample 29"),
    "no target": (arrays(X, [*([0.5] * 29), np.nan]), "y must have a value for every sample, got none for sample 29"),
    "many whole numbers": (arrays(np.ones((150, 2)), np.arange(150)), "say data.task=classification or data.task=regr"),
    "few of each": (arrays(X, np.arange(30)), "be few classes where no task is given, got '30 different"),
    "fractions as classes": (arrays(X, np.full(30, 0.5), task="classification"), "be .n. names"),
    "text to predict": (arrays(X, ["a", "b"] * 15, task="regression"), "y must be numbers for regression, got 'text'"),
    "text and numbers": (arrays(X, ["a"] * 30, x_test=X, y_test=Y), "y must be all text or all numbers"),
    "channels last": (arrays(np.zeros((6, 8, 8, 3), np.uint8), Y[:6]), r"pass x.transpose\(0, 3, 1, 2\)"),
    "bytes without channels": (arrays(GREY[:, 0], Y[:6]), r"pass x\[:, None\]"),
    "features of bytes": (arrays(GREY[:, 0, 0], Y[:6]), r"pass x.astype\('float32'\) for features"),
    "beyond float32": (arrays(X * 1e300, Y), r"lie within 3.4e\+38"),
    "a task misspelt": (arrays(X, Y, task="clasification"), "task must be one of classification"),
    "tokens standardised": (arrays(X.astype(int), Y, standardise=True), "floating-point features to be standardised"),
    "test share": (arrays(X, Y, test=1.0), r"test must be in \[0, 1\), got 1.0"),
    "a column misspelt": (csv(GOOD, "Y"), r"a.csv must have the column Y, got the columns a, b, y"),
    "a near column": (csv("age,label\n1,2\n", "lable"), "the columns age, label; did you mean label"),
    "an empty cell": (csv("a,y\n1,0\n,1\n"), r"a.csv: column a must hold finite numbers, got none in row 2; fill it"),
    "an empty target": (csv("a,y\n1,cat\n2,\n"), "column y must have no empty cell, got one in row 2"),
    "text": (
        csv("a,b,y\n1,red,0\n3,blue,1\n"),
        r"column b must hold numbers, got 'red' in row 1; data.categories=\[b\]",
    ),
    "a date": (csv("a,y\n2020-01-01,0\n2020-01-02,1\n"), "column a must hold numbers, got '2020-01-01' in row 1"),
    "cells too many": (csv("a,y\n1,0\n1,2,3\n"), "cannot be read as csv .*Row #3: Expected 2 columns, got 3"),
    "twice a name": (csv("a,a,y\n1,2,0\n"), r"name every column once, got \['a'\]"),
    "a heading only": (csv("a,y\n"), "hold a row for each sample"),
    "a shape": (csv(GOOD, shape=(1, 3, 3), pixels=True), r"have 9 columns of inputs for the shape \[1, 3, 3\], got 2"),
    "no pixels": (csv("a,y\n256,0\n1,1\n", shape=(1, 1, 1), pixels=True), "hold pixels 0..255"),
    "another test file": (csv(GOOD, test="nowhere.csv"), "nowhere.csv: cannot be read as csv"),
    "no parquet": (
        lambda f: (f / "a.csv").write_text(GOOD) and Parquet(str(f / "a.csv"), "y"),
        "cannot be read as parq",
    ),
    "no folder": (lambda folder: ImageFolder(str(folder / "no")), "data.path must be a folder of images"),
    "no classes": (folder_of({"train/1.png": ("L", 4)}), "train must hold a folder for each class"),
    "no image": (folder_of({**TWO, "train/dog/2.png": "text"}), r"dog/2.png: cannot be read as an image"),
    "another size": (
        folder_of({**TWO, "train/dog/2.png": ("L", 5)}),
        r"have the size of the first image, \[4, 4\], got \[5",
    ),
    "another colour": (
        folder_of({**TWO, "train/dog/2.png": ("RGB", 4)}),
        "be L as the first image is, got 'RGB'; say data.col",
    ),
    "transparency": (folder_of({**TWO, "train/dog/2.png": ("RGBA", 4)}), "say data.colour=grey or data.colour=rgb"),
    "a level too many": (
        folder_of({"train/ann/cat/1.png": ("L", 4)}),
        "ann must hold images, got folders; say data.clients=f",
    ),
    "a level too few": (folder_of(TWO, clients="folders"), "cat must hold a folder for each class, got none; without"),
    "no client": (owned("file,client\n"), "name the client of train/cat/1.png"),
    "no list of clients": (folder_of(TWO, clients="no.csv"), "data.clients must be folders, null or a CSV file"),
    "nothing on the hub": (lambda folder: HuggingFace(str(folder), "y"), "must be a saved folder or a name on the hub"),
    "an iterable": (lambda folder: from_torch(iter([(1, 2)])), "be a data set with a length and samples by number"),
    "samples of one": (lambda folder: from_torch([torch.ones(2)]), r"sample 0 must be \(input, target\), got 'Tensor'"),
    "samples unlike": (
        lambda folder: from_torch([(torch.ones(2), 0), (torch.ones(3), 1)]),
        r"sample 1 must be like the first, float32 \[2\], got 'float32 \[3\]'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_one_line(name: str, tmp_path: Path) -> None:
    make, says = REFUSED[name]
    with pytest.raises(InputError, match=says) as caught:
        make(tmp_path).load(0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [npz(x=X, y=Y), csv(GOOD), folder_of(TWO)], ids=["npz", "csv", "images"])
def test_what_is_larger_than_the_memory_is_refused_before_it_is_read(
    make: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path)
    assert source.load(0).digest
    monkeypatch.setattr(memory, "available", lambda: 10)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(InputError, match=r"must fit into memory, got 0.0 GB of arrays for 0.0 GB that are free"):
        source.load(0)


def test_there_is_memory() -> None:
    assert 2**20 < memory.available() < 2**60
