"""TensorBoard's own reader finds what was written."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, metadata

from fedsim.ground.flat import flat_hyperparameters
from fedsim.record.run_folder import RunFolder
from fedsim.record.tensorboard import DPI, EventFile, Picture, charts, png_of

CONFIG = {"seed": 1, "algorithm": {"_target_": "fedsim.algorithms.FedDyn", "alpha": 0.1, "normalize": True}}
RECORDS = [
    {"round": 0, "eval/accuracy": 0.125, "eval/loss": 2.5},
    {"round": 1, "train/loss": 2.25, "comm/uplink_bytes": 4096, "comm/uplink_total_bytes": 4096},
    {"round": 2, "train/loss": math.nan, "comm/uplink_bytes": 512, "comm/uplink_total_bytes": 4608, "eval/loss": 1.5},
]


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with RunFolder.create(tmp_path, CONFIG, {}) as folder:
        for record in RECORDS:
            folder.write(record)
        figure = Figure(figsize=(3, 2))
        figure.subplots().plot([0, 1])
        folder.picture("data/split", Picture.of(figure), 2)
        folder.text("notes", "*hello*")
        folder.finish({"status": "finished"})
    return tmp_path


def test_every_scalar_is_read_back_at_its_round(run: Path) -> None:
    events = read(run)
    for tag in {tag for record in RECORDS for tag in record} - {"round"}:
        written = [(record["round"], record[tag]) for record in RECORDS if tag in record]
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        np.testing.assert_array_equal(found, written)
    assert "round" not in events.Tags()["scalars"]


def test_there_is_one_event_file(run: Path) -> None:
    assert len(list((run / "tensorboard").iterdir())) == 1


def test_a_scalar_is_on_disk_when_write_returns(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, {}, {}) as folder:
        folder.write(RECORDS[0])
        assert [event.value for event in read(tmp_path).Scalars("eval/accuracy")] == [0.125]


def test_image_and_text(run: Path) -> None:
    events = read(run)
    (image,) = events.Images("data/split")
    assert image.step == 2
    assert imread(io.BytesIO(image.encoded_image_string)).shape[:2] == (image.height, image.width) == (2 * DPI, 3 * DPI)
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in ("notes/text_summary",)}
    assert texts == {"notes/text_summary": "*hello*"}
    assert "alpha: 0.1" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()


@pytest.mark.parametrize(("status", "shown"), [("finished", "STATUS_SUCCESS"), ("diverged", "STATUS_FAILURE")])
def test_hyper_parameters_and_how_the_run_ended(tmp_path: Path, status: str, shown: str) -> None:
    with RunFolder.create(tmp_path, CONFIG, {}) as folder:
        folder.finish({"status": status})
    found = read(tmp_path).summary_metadata
    start = metadata.parse_session_start_info_plugin_data(
        found[metadata.SESSION_START_INFO_TAG].plugin_data.content
    ).hparams
    assert {key: getattr(value, value.WhichOneof("kind")) for key, value in start.items()} == {
        "seed": 1.0,
        "algorithm": "FedDyn",
        "algorithm.alpha": 0.1,
        "algorithm.normalize": True,
    }
    end = metadata.parse_session_end_info_plugin_data(found[metadata.SESSION_END_INFO_TAG].plugin_data.content)
    assert api_pb2.Status.Name(end.status) == shown


def test_hyper_parameters_of_an_unfinished_run_are_there(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG, {}):
        pass
    found = read(tmp_path).summary_metadata
    assert metadata.SESSION_START_INFO_TAG in found
    assert metadata.SESSION_END_INFO_TAG not in found


def test_the_layout_is_written_once_and_puts_both_losses_together(run: Path) -> None:
    (event,) = read(run).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    shown = {chart.title: list(chart.multiline.tag) for page in layout.category for chart in page.chart}
    assert shown == {
        "accuracy": ["^eval/accuracy$"],
        "loss": ["^eval/loss$", "^train/loss$"],
        "bytes in each round": ["^comm/uplink_bytes$"],
        "bytes since the start": ["^comm/uplink_total_bytes$"],
    }


def test_gossip_privacy_and_virtual_time_have_pages_of_their_own() -> None:
    tags = {"gossip/consensus_distance", "gossip/consensus_before", "gossip/spectral_gap", "gossip/period_gap"}
    pages = charts(tags | {"privacy/epsilon", "time/virtual_s", "time/round_s"})
    shown = {page: {title: lines[1] for title, lines in groups.items()} for page, groups in pages.items()}
    assert shown == {
        "gossip": {
            "distance to the mean of the peers": ["^gossip/consensus_before$", "^gossip/consensus_distance$"],
            "spectral gap": ["^gossip/period_gap$", "^gossip/spectral_gap$"],
        },
        "privacy": {"epsilon": ["^privacy/epsilon$"]},
        "time": {"virtual time": ["^time/virtual_s$"]},
    }


def test_the_papers_to_cite_stand_beside_the_configuration(tmp_path: Path) -> None:
    config = {"algorithm": {"_target_": "fedsim.algorithms.feddyn.FedDyn"}}
    for name, cfg in (("cited", config), ("not", {"seed": 1})):
        RunFolder.create(tmp_path / name, cfg, {}).close()
    (event,) = read(tmp_path / "cited").Tensors("papers/text_summary")
    assert b"@inproceedings{acar2021federated," in event.tensor_proto.string_val[0]
    assert "papers/text_summary" not in read(tmp_path / "not").Tags()["tensors"]


def test_pictures_alone_make_no_row_of_hyper_parameters(tmp_path: Path) -> None:
    EventFile(tmp_path / "tensorboard", None).close()
    assert metadata.SESSION_START_INFO_TAG not in read(tmp_path).summary_metadata


def test_no_chart_without_curves() -> None:
    assert charts({"eval/loss", "time/round_s"}) == {"learning": {"loss": ["Multiline", ["^eval/loss$"]]}}


def test_flatten_names_classes_and_leaves_nothing_nested() -> None:
    config = {"_target_": "x", "a": {"_target_": "m.B", "k": None, "deep": {"v": [1, 2]}}, "empty": {}, "on": False}
    assert flat_hyperparameters(config) == {"_target_": "x", "a": "B", "a.deep.v": "[1, 2]", "on": False}


def test_a_picture_is_what_savefig_writes() -> None:
    """Drawn once, where savefig draws a figure with a layout twice."""
    figures = []
    for _ in range(2):
        figure = Figure(figsize=(3, 2), layout="constrained", facecolor="#ddeeff")
        figure.subplots().set(xlabel="client", ylabel="samples")
        figure.suptitle("who holds what")
        figures.append(figure)
    png = io.BytesIO()
    figures[0].savefig(png, format="png", dpi=DPI, facecolor="white")
    assert png_of(figures[1]) == png.getvalue()
    assert (figures[1].dpi, figures[1].get_facecolor()) == (figures[0].dpi, figures[0].get_facecolor())
