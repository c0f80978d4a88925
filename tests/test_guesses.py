"""First guesses lead home: what somebody types who knows the field, but not fedsim, is answered with what works.

One table: the words typed, and the words that the one line about them must hold. The laws: the line holds them, they
compose, and nothing that is answered composes as it was typed.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsim.cli import completion
from fedsim.cli.argv import COMMANDS, as_sweep, with_own_classes
from fedsim.cli.catalogue import GROUPS
from fedsim.cli.commands import command_first
from fedsim.cli.compose import check
from fedsim.cli.folder import config_folder
from fedsim.cli.guesses import WORDS
from fedsim.data.downloads import DOWNLOADS
from fedsim.errors import InputError

GUESSES = {
    "lr=0.05": "algorithm.lr=0.05",
    "algorithm.learning_rate=0.05": "algorithm.lr=0.05",
    "clients=50": "partition.clients=50",
    "batch_size=16": "local.batch_size=16",
    "local.batch=16": "local.batch_size=16",
    "optimizer=adam": "algorithm=adam",
    "partition.beta=0.1": "partition.alpha=0.1",
    "num_workers=4": "engine.actors=4",
    "n_rounds=5": "rounds=5",
    "fraction=0.1": "schedule=bernoulli schedule.rate=0.1",
    "patience=3": "callbacks=[early_stopping] callbacks.early_stopping.patience=3",
    "dataset=cifar": "data=cifar10",
    "compressor=topk": "channel=[topk]",
    "wandb=true": "callbacks=[wandb]",
    "iid=true": "partition=iid",
    "algorithm=FedAvg": "algorithm=fedavg",
    "algorithm.lrr=1": "algorithm.lr=1",
    "schedulee.cohort=4": "schedule.cohort=4",
    "model=resnet": "model=resnet18_gn",
    "--rounds 5": "rounds=5",
    "--rounds=5": "rounds=5",
    "-rounds 5": "rounds=5",
    "--num-clients 5": "partition.clients=5",
    "rounds = 5": "rounds=5",
    "algorithm.lr = 0.1 rounds= 5": "algorithm.lr=0.1 rounds=5",
    "algorithm fedprox": "algorithm=fedprox",
    "fedprox": "algorithm=fedprox",
    "mnist": "data=mnist",
    "data=wine.csv": "data=csv data.path=wine.csv",
    "data=wine.npz": "data=npz data.path=wine.npz",
    "data.path=wine.parquet": "data=parquet data.path=wine.parquet",
    "data=images": "data=image_folder",
    "loss=mine.focal": "task=own task.loss=mine.focal",
    "task=mine.focal": "task=own task.loss=mine.focal",
    "task.loss=mine.focal": "task=own task.loss=mine.focal",
    "metric=[macro_f1]": "evaluate.metrics=[macro_f1]",
    "algorithm=mine.Mine": "algorithm._target_=mine.Mine",
    "schedule.rate=0.5": "schedule=bernoulli schedule.rate=0.5",
    "topology.p=0.5": "topology=erdos_renyi topology.p=0.5",
    "freeze=[body.*]": "model.freeze=[body.*]",
    "model.freze=[body.*]": "model.freeze=[body.*]",
    "model.bn=frozen": "model.batchnorm=frozen",
    "batchnorm=frozen": "model.batchnorm=frozen",
    "model.lora_rank=4": "model.lora.rank=4",
    "lora.rank=4": "model.lora.rank=4",
    "pretrained=first": "model.init=first",
    "model.pretrained=first": "model.init=first",
    "precision=bf16": "engine.precision=bf16",
    "amp=true": "engine.precision=bf16",
    "model.precision=bf16": "engine.precision=bf16",
}
"""{what is typed: what would have done it}"""


def lines(*argv: str) -> list[str]:
    """What is wrong with a command line."""
    with pytest.raises(InputError) as caught:
        check(as_sweep(with_own_classes(argv)))
    return str(caught.value).splitlines()


@pytest.mark.parametrize("typed", GUESSES)
def test_a_first_guess_leads_to_a_command_that_composes(typed: str) -> None:
    line = lines(*typed.split())[0]
    assert re.search(rf"(write|did you mean|no dashes:) .*{re.escape(GUESSES[typed])}(?![\w.=-])", line), line
    check([*with_own_classes(GUESSES[typed].split()), "--cfg", "job"])


def test_what_stands_for_a_word_of_others_is_a_key_or_words_of_fedsims() -> None:
    """Every entry of the table, at a value that fits, but for Hydra's own keys and a device that may be missing."""
    text = "".join(path.read_text() for path in config_folder().rglob("*.yaml"))
    for word, meant in WORDS.items():
        if "=" in meant:
            words = meant.format("0.1" if "rate" in meant else "1").split()
            check([*with_own_classes(words), "--cfg", "job"])
        else:
            last = meant.rpartition(".")[2]
            assert meant in GROUPS or meant == "hydra.run.dir" or re.search(rf"^ *{last}:", text, re.M), word


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("train", "fedsim alone starts a run: leave the word out"),
        ("lst", "did you mean fedsim list?"),
        ("experiment=nope", "nearest: "),
        ("~scheduel", "did you mean ~schedule?"),
        ("~schedule.nope", "keys of schedule: cohort"),
    ],
)
def test_what_has_no_command_of_its_own_says_what_there_is(typed: str, said: str) -> None:
    (line,) = lines(typed)
    assert said in line
    assert "schedule, did you mean schedule" not in line


def test_a_key_that_must_be_given_is_known_beside_one_that_is_not() -> None:
    (line,) = lines("data=csv", "data.path=wine.csv", "data.label=kind")
    assert line.startswith("unknown key data.label (got 'data.label=kind')")


def test_a_deleted_key_with_a_default_is_no_mistake() -> None:
    check(["~schedule.cohort", "--cfg", "job"])


def test_a_preset_that_there_is_not_gives_the_nearest_three(
    console: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert console("presets", "mnist_100") == 2
    (line,) = capsys.readouterr().err.splitlines()
    near = re.search(r"nearest: (\S+), (\S+), (\S+); fedsim presets describes all \d+", line)
    assert near
    presets = {path.stem for path in (config_folder() / "experiment").glob("*.yaml")}
    assert {name for name in near.groups() if name.startswith("mnist_100")} == set(near.groups()) <= presets


def test_help_is_a_command_too(console: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert console("help") == 0
    whole = capsys.readouterr().out
    assert console("--help") == 0
    assert capsys.readouterr().out == whole
    assert console("help", "download") == 0
    assert "usage: fedsim download" in capsys.readouterr().out


@pytest.mark.parametrize("flag", [["--config-dir", "mine"], ["-cd", "mine"], ["--config-dir=mine"]])
def test_a_folder_of_ones_own_may_stand_before_a_command_and_behind_it(
    console: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, flag: list[str]
) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "my_own.yaml").write_text("# Mine alone.\n")
    said = []
    for argv in (["presets", *flag, "my_own"], [*flag, "presets", "my_own"]):
        assert console(*argv) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert "Mine alone." in said[0]
    for name in ("replay", "export", "download"):
        assert console(*flag, name, "--help") == 0
        capsys.readouterr()
    assert console(*flag, "replay", str(tmp_path / "no"), "round=1") == 2
    assert "resume must be the folder of a run" in capsys.readouterr().err
    assert command_first([*flag, "verify", "rounds=1"]) == ["verify", *flag, "rounds=1"]
    assert command_first([*flag, "rounds=1"]) == [*flag, "rounds=1"]


@pytest.mark.parametrize("module", ["random", "types"])
def test_a_module_named_like_one_of_pythons_own_names_the_file_that_was_found(
    console: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, module: str
) -> None:
    (tmp_path / f"{module}.py").write_text("class Mine: ...\n")
    for target in (f"{module}.Mine", f"{module}.inner.Mine"):
        assert console("engine=serial", f"algorithm._target_={target}") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{module} is a module of Python's own ({sys.modules[module].__file__})" in line
        assert "rename yours" in line


def test_no_message_names_a_script_of_the_checkout() -> None:
    package = Path(completion.__file__).parents[1]
    assert [str(path) for path in package.rglob("*.py") if "scripts/" in path.read_text()] == []
    shown = config_folder().rglob("*.yaml")  # by `fedsim presets NAME`; scripts/*.sh are those of other projects
    assert [str(path) for path in shown if re.search(r"scripts/\S*\.py", path.read_text())] == []


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("fedsim ", {*COMMANDS, "help", "algorithm=", "rounds="}),
        ("fedsim do", {"download", "downlink."}),
        ("fedsim download mn", {"mnist"}),
        ("fedsim download mnist ", set(DOWNLOADS) - {"mnist"}),
        ("fedsim list alg", {"algorithm"}),
        ("fedsim list algorithm fedpro", {"fedprox", "fedproto"}),
        ("fedsim presets beer_m", {"beer_mnist"}),
        ("fedsim replay run r", {"round="}),
        ("fedsim export ", set()),
        ("fedsim algorithm=fedpro", {"algorithm=fedprox", "algorithm=fedproto"}),
        ("fedsim verify algorithm=fedpro", {"algorithm=fedprox", "algorithm=fedproto"}),
        ("fedsim algorithm=fedprox algorithm.m", {"algorithm.mu=", "algorithm.momentum="}),
        ("fedsim algorithm=nope algorithm.m", set()),
        ("fedsim --nope al", set()),
        ("fedsim [", set()),
    ],
)
def test_completion_offers_words_and_never_an_error(
    console: Callable[..., int],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    offered: set[str],
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert console("-sc", "query=bash") == 0
    out, err = capfd.readouterr()
    assert err == ""
    found = set(out.split())
    assert found >= offered if line.endswith(" ") else found == offered
    assert all(word.startswith(shlex.split(line)[-1]) for word in found) or line.endswith(" ")
