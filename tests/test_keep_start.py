"""Starting features beside the head: the formula in numpy, what trains, what is stored, and every exported form."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from test_train_run import Listener, rows_of, same_tensors, surroundings, train

from deeprank.export.formats.formats import FORMS, Form
from deeprank.export.formats.torch_network import TorchNetwork, onnx_graph
from deeprank.export.formats.writer import Writer
from deeprank.export.quantise.graph import anatomy_of, prepared
from deeprank.models.network import EmbeddingNet, NetworkConfig, build_network
from deeprank.models.normalisation import HALF
from deeprank.models.weights import find_weights
from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.errors import TrainingError, TrainingInterrupted
from deeprank.runtime.evaluate.parity import TOLERANCES
from deeprank.runtime.images import PictureRule, load_picture
from deeprank.runtime.metrics import rank
from deeprank.runtime.modelfile import ModelInfo
from deeprank.train.data.splits import prepare
from deeprank.train.loop.run import resume_run
from deeprank.train.loop.setup import make_network
from deeprank.train.loop.trainer import Reached, refuse_collapse
from deeprank.train.loop.whitening import learned_whitening
from deeprank.train.options.config import check_together
from deeprank.train.options.recipes import load_config
from deeprank.train.reference import Reference, load_run
from deeprank.train.run.checkpoints import read_checkpoint

WEIGHT, SIDE, DIM, WIDTH = 0.3, 32, 8, 512

Array = np.ndarray


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


def a_network(**changes) -> EmbeddingNet:
    """A network whose whitening, if it has one, does not keep the first features."""
    torch.manual_seed(0)
    values = {"hidden": (16,), "dropout": 0.1, "input_dropout": 0.0, "keep_start": WEIGHT, **changes}
    network = build_network(
        NetworkConfig("timm:resnet10t", SIDE, DIM, mean=HALF.mean, deviation=HALF.deviation, **values)
    )
    if network.config.start_dim:
        random = np.random.default_rng(0)
        network.start.weight.data.copy_(torch.from_numpy(random.normal(size=network.start.weight.shape)))
        network.start.bias.data.copy_(torch.from_numpy(random.normal(size=network.kept_dim)))
    return network.eval()


def some_pictures(count: int, seed: int = 3) -> Array:
    """Coarse blocks of colour: unlike noise, they differ from each other once they are averaged."""
    blocks = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    return blocks.repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2)


def unit(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_torch(module, pictures: Array) -> Array:
    with torch.inference_mode():
        return module(torch.from_numpy(pictures)).numpy()


# -- the formula -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{}, {"hidden": ()}, {"start_dim": 20}, {"keep_start": 0.95, "start_dim": WIDTH}], ids=str
)
def test_the_embedding_by_its_formula(changes: dict):
    network, pictures = a_network(**changes), some_pictures(6)
    weight, dim = network.config.keep_start, network.config.start_dim
    features = by_torch(network.features, pictures).astype(np.float64)
    head = unit(by_torch(network.head, features.astype(np.float32)).astype(np.float64))
    start = unit(features)
    if dim:
        start = unit(features @ network.start.weight.numpy().T.astype(np.float64) + network.start.bias.numpy())
    expected = np.concatenate([np.sqrt(weight) * start, np.sqrt(1 - weight) * head], axis=1)
    found = by_torch(network, pictures)
    assert found.shape == (6, network.embedding_dim) == (6, (dim or WIDTH) + DIM)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found @ found.T, weight * start @ start.T + (1 - weight) * head @ head.T, atol=1e-5)


def test_beside_the_low_resolution_paths_the_head_is_that_of_the_same_network_without_the_start():
    whole, alone = a_network(multiscale=True), a_network(multiscale=True, keep_start=0.0)
    alone.load_state_dict(whole.state_dict())
    pictures = some_pictures(4)
    found, head = by_torch(whole, pictures), by_torch(alone, pictures)
    np.testing.assert_allclose(found[:, WIDTH:], np.sqrt(1 - WEIGHT) * head, atol=1e-6)
    with torch.inference_mode():
        values = whole.front(torch.from_numpy(pictures))
        np.testing.assert_allclose(whole.embed_front(values).numpy(), found, atol=1e-6)
        np.testing.assert_allclose(whole.learned(whole.pooled(values), values).numpy(), head, atol=1e-6)


def test_a_picture_without_features_has_a_vector_of_unit_length():
    network = a_network()
    for parameter in network.backbone.parameters():
        parameter.data.zero_()
    np.testing.assert_allclose(np.linalg.norm(by_torch(network, some_pictures(2)), axis=1), 1, atol=1e-6)


def test_what_is_kept_does_not_change_the_heads_first_weights():
    config = load_config("digits", {"freeze_backbone": True, "backbone": "timm:resnet10t"})
    weights = find_weights(config.backbone, config.weights)
    plain, kept, projected = (
        make_network(replace(config, keep_start=weight, start_dim=dim), weights).state_dict()
        for weight, dim in ((0.0, 0), (WEIGHT, 0), (WEIGHT, 20))
    )
    assert plain.keys() == kept.keys() == projected.keys() - {"start.weight", "start.bias"}
    assert all(torch.equal(value, other[key]) for key, value in plain.items() for other in (kept, projected))


def test_a_description_without_the_words_is_of_the_head_alone():
    values = a_network(start_dim=20).config.to_dict()
    assert NetworkConfig.from_dict(values) == a_network(start_dim=20).config
    del values["keep_start"], values["start_dim"]
    assert build_network(NetworkConfig.from_dict(values)).embedding_dim == DIM


# -- training ----------------------------------------------------------------------------------------------------------

FROZEN = {"freeze_backbone": True, "views": 1}
KEPT = {**FROZEN, "keep_start": WEIGHT, "start_dim": 0}


def pictures_of(run: Path, samples) -> Array:
    rule = Reference(run).rule
    return np.stack([load_picture(sample.open(), rule) for sample in samples])


@pytest.mark.thorough
def test_the_loss_sees_the_head_alone_and_the_figures_are_of_the_whole(digits: Path):
    plain, listener = train(digits, "plain", **FROZEN), Listener()
    kept = train(digits, "kept", listener, **KEPT)
    alone, beside = (read_checkpoint(result.run / "last.pt")["model"] for result in (plain, kept))
    assert alone.keys() == beside.keys()
    assert all(torch.equal(value, beside[key]) for key, value in alone.items())
    rows, others = rows_of(kept.run), rows_of(plain.run)
    assert [row["loss"] for row in rows[:3]] == [row["loss"] for row in others[:3]]
    assert [row["head_deviation"] for row in rows[:3]] == pytest.approx([row["deviation"] for row in others[:3]])
    assert all("head_deviation" not in row for row in others)
    assert "The embedding has 520 numbers: 512 of the starting backbone's features (weight 0.3) and 8 of the head." in (
        listener.remarks
    )
    # Recomputed from the pictures: the embedding that the final figures are of is the whole one.
    data = prepare(open_dataset(digits))
    queries = unit(Reference(kept.run).embed_batch(pictures_of(kept.run, data.val)))
    gallery = unit(Reference(kept.run).embed_batch(pictures_of(kept.run, data.train)))
    assert queries.shape[1] == Reference(kept.run).info.embedding_dim == 520
    expected = rank(queries, data.val_labels, gallery, data.train_labels, data.k, with_map=True)
    assert kept.figures["precision_at_k"] == pytest.approx(expected.precision_at_k, abs=0.01)
    cosines = queries @ gallery.T
    same = data.val_labels[:, None] == data.train_labels[None]
    assert kept.figures["positive_distance"] == pytest.approx((2 - 2 * cosines[same]).mean(), abs=1e-3)
    assert kept.figures["negative_distance"] == pytest.approx((2 - 2 * cosines[~same]).mean(), abs=1e-3)


@pytest.mark.thorough
def test_the_best_epoch_is_that_of_the_whole(digits: Path):
    result = train(digits, "run", **KEPT)
    values = [row["precision_at_k"] for row in rows_of(result.run)[:3]]
    assert read_checkpoint(result.run / "best.pt")["epoch"] == values.index(max(values)) + 1


@pytest.mark.thorough
def test_the_start_is_whitened_by_the_training_pictures_and_a_stopped_run_keeps_it(digits: Path):
    options = {**KEPT, "start_dim": 20, "loss": "pml:ProxyAnchorLoss+softmax", "ema": 0.5}
    whole = train(digits, "whole", **options)
    with pytest.raises(TrainingInterrupted):
        train(digits, "run", Listener(6), **options)
    resumed = resume_run(Path("run"), {}, surroundings(), Listener())
    assert rows_of(resumed.run) == rows_of(whole.run)
    assert same_tensors(resumed.run / "best.pt", whole.run / "best.pt")
    network, info, _ = load_run(whole.run)
    assert info.embedding_dim == network.embedding_dim == 28
    data = prepare(open_dataset(digits))
    features = by_torch(network.features, pictures_of(whole.run, [data.train[position] for position in data.fit]))
    fitted = learned_whitening(features, data.train_labels[data.fit], 20)
    expected = unit((features @ fitted.weight.T + fitted.bias).astype(np.float64))
    found = unit(by_torch(network.start, features).astype(np.float64))
    # The run's features have half the precision, so the least directions differ; the cosines hardly do.
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=0.05)


@pytest.mark.thorough
def test_pictures_that_do_not_differ_cannot_be_whitened(tmp_path: Path):
    for label, gray in (("a", 40), ("b", 200)):
        (tmp_path / "same" / label).mkdir(parents=True)
        for name in range(8):
            Image.new("L", (32, 32), gray).save(tmp_path / "same" / label / f"{name}.png")
    with pytest.raises(TrainingError, match=r"No class has two different pictures.*--start-dim 0"):
        train(tmp_path / "same", "run", **{**KEPT, "start_dim": 20})


@pytest.mark.thorough
def test_whitening_is_of_the_head_and_the_start_stays_beside_it(digits: Path):
    result = train(digits, "run", **KEPT, hidden=(), whiten=True)
    network, _, _ = load_run(result.run)
    data = prepare(open_dataset(digits))
    pictures = pictures_of(result.run, data.val)
    features = by_torch(network.features, pictures)
    np.testing.assert_allclose(by_torch(network, pictures)[:, :WIDTH], np.sqrt(WEIGHT) * unit(features), atol=1e-6)
    assert [row["kind"] for row in rows_of(result.run)] == ["epoch"] * 3 + ["finish", "final"]


def test_a_collapsed_head_is_not_hidden_by_the_start():
    row = {"epoch": 1, "deviation": 0.5, "head_deviation": 0.01}
    with pytest.raises(TrainingError, match=r"its vectors is 0\.0100, and 0\.0100 in batch"):
        refuse_collapse(row, Reached(batch_deviation=0.01))
    refuse_collapse(row, Reached(batch_deviation=0.5))
    refuse_collapse({**row, "head_deviation": 0.5}, Reached(batch_deviation=0.01))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"unfreeze": 1}, r"but --unfreeze trains it; .*with --start-share"),
        ({"freeze_backbone": False}, r"but --no-freeze-backbone trains it; .*with --start-share"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other(changes: dict, words: str):
    with pytest.raises(TrainingError, match=words):
        check_together(load_config("digits", {**KEPT, **changes}))


@pytest.mark.thorough
def test_more_numbers_than_features_are_as_many_as_features(digits: Path):
    network, info, _ = load_run(train(digits, "run", **{**KEPT, "start_dim": 513}).run)
    assert info.embedding_dim == network.embedding_dim == WIDTH + DIM
    assert network.start.weight.shape == (WIDTH, WIDTH)


# -- runs of earlier versions ------------------------------------------------------------------------------------------


NEW = ("keep_start", "start_dim")


def as_before(run: Path) -> None:
    """Write the run as a version without these options wrote it."""
    description = json.loads((run / "config.json").read_text())
    for name in NEW:
        description["config"].pop(name, None)
    description.pop("automatic", None)
    (run / "config.json").write_text(json.dumps(description))
    if (run / "best.pt").exists():
        best = read_checkpoint(run / "best.pt")
        for part in ("network", "config"):
            best[part] = {key: value for key, value in best[part].items() if key not in NEW}
        torch.save(best, run / "best.pt")


@pytest.mark.thorough
def test_a_run_of_an_earlier_version_goes_on_and_opens(digits: Path):
    whole = train(digits, "whole", **FROZEN)
    with pytest.raises(TrainingInterrupted):
        train(digits, "run", Listener(6), **FROZEN)
    as_before(Path("run"))
    resumed = resume_run(Path("run"), {}, surroundings(), Listener())
    assert rows_of(resumed.run) == rows_of(whole.run)
    as_before(Path("run"))
    network, info, config = load_run(Path("run"))
    assert (info.embedding_dim, config.keep_start, config.start_dim) == (DIM, 0.0, 0)
    pictures = some_pictures(3)
    np.testing.assert_array_equal(by_torch(network, pictures), by_torch(load_run(Path("whole"))[0], pictures))
    # It does not go on with other options than it had.
    shutil.copy("run/config.json", "whole/config.json")
    with pytest.raises(TrainingError, match=r"keep_start: 0\.0, now 0\.3"):
        resume_run(Path("whole"), {"keep_start": 0.3}, surroundings(), Listener())


# -- export ------------------------------------------------------------------------------------------------------------


def writer_of(network: EmbeddingNet) -> Writer:
    info = ModelInfo("kept", network.embedding_dim, PictureRule(SIDE), "timm:resnet10t")
    return Writer(TorchNetwork(network, info.picture), info, lambda: some_pictures(64, seed=5), 1)


@pytest.mark.thorough
@pytest.mark.parametrize("changes", [{}, {"start_dim": 20, "hidden": ()}], ids=str)
def test_every_form_gives_the_networks_vectors(changes: dict):
    network, pictures = a_network(**changes), some_pictures(40)
    writer, expected = writer_of(network), by_torch(network, pictures)
    for form in FORMS:
        written = writer.write(form, Path(form.file_name))
        found = written.exported.embed_batch(pictures)
        tolerance = TOLERANCES[form.precision]
        assert written.info.embedding_dim == found.shape[1] == network.embedding_dim
        assert np.abs(found - expected).max() <= tolerance.max_abs_difference, form
        assert (found * expected).sum(axis=1).min() >= tolerance.min_cosine, form
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@pytest.mark.thorough
def test_the_graph_is_taken_apart_at_both_layers():
    network = a_network(start_dim=20)
    model = prepared(onnx_graph(network, PictureRule(SIDE)))
    parts = anatomy_of(model)
    kinds = {node.name: node.op_type for node in model.graph.node}
    assert sorted(kinds[name] for name in parts.embedding) == ["Gemm", "Gemm"]
    assert sorted(kinds[name] for name in parts.after) == sorted(
        ["Concat", "Mul", "Mul", *["ReduceL2", "Clip", "Expand", "Div"] * 3]
    )
    assert not {"ReduceL2", "Clip", "Div"} & {kinds[name] for name in parts.network}
    every = [parts.before, parts.network, parts.embedding, parts.after]
    assert sum(map(len, every)) == len(frozenset().union(*every)) == len(kinds)


@pytest.mark.thorough
@pytest.mark.parametrize("changes", [{}, {"start_dim": 20}], ids=str)
def test_the_start_of_an_int8_file_is_in_float(changes: dict):
    """Its features are read as they leave the pooling, not in the eight bits of the head's first layer."""
    network = a_network(**changes)
    model = prepared(onnx_graph(network, PictureRule(SIDE)))
    parts = anatomy_of(model)
    writer_of(network).write(Form("onnx", "int8"), Path("int8.onnx"))
    found = onnx.load("int8.onnx")
    made_by = {tensor: node.op_type for node in found.graph.node for tensor in node.output}
    pooled = next(node.output[0] for node in found.graph.node if node.op_type == "Reshape")
    readers = [node for node in found.graph.node if pooled in node.input]
    first = {"Gemm"} if changes else {"ReduceL2", "Div"}
    assert {node.op_type for node in readers} == first | {"QuantizeLinear"}
    scaling = [node for node in found.graph.node if node.name in parts.after]
    assert len(scaling) == len(parts.after)
    assert not any(made_by.get(tensor) == "DequantizeLinear" for node in scaling for tensor in node.input)
