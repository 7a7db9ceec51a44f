"""The proof of an int8 file: ranking and neighbours decide, single pictures only where a file is broken."""

import json
import os
import zipfile
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import scipy.stats
import torch
from conftest import MainLine, run_command
from onnx import numpy_helper
from torch import nn

from deeprank.export.formats.torch_network import onnx_graph
from deeprank.export.parity import ParityReport, ReferenceSide, check_parity, embed_reference
from deeprank.export.quantise.calibration import min_max, observe
from deeprank.export.quantise.graph import anatomy_of, prepared
from deeprank.export.quantise.int8 import correct_biases, quantised, tensors_to_watch
from deeprank.export.sample import load_sample
from deeprank.runtime.datasets import DataSet, open_dataset
from deeprank.runtime.evaluate.parity import TOLERANCES, RankingChange, compare_rankings
from deeprank.runtime.images import Picture
from deeprank.runtime.metrics import rank
from deeprank.train.reference import NetworkReference, Reference

INT8 = TOLERANCES["int8"]


# -- the rule ----------------------------------------------------------------------------------------------------------


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_paired_error_is_that_of_scipy_and_of_a_bootstrap() -> None:
    random = np.random.default_rng(0)
    labels, wanted = random.integers(0, 5, 300), random.integers(0, 5, 200)
    centres = random.normal(size=(5, 16))
    gallery, queries = (centres[codes] + 2 * random.normal(size=(len(codes), 16)) for codes in (labels, wanted))
    before = rank(unit(queries), wanted, unit(gallery), labels, 10)
    moved = [unit(rows + random.normal(size=rows.shape)) for rows in (queries, gallery)]
    after = rank(moved[0], wanted, moved[1], labels, 10)

    found = compare_rankings(before, after, len(labels))

    right = [(labels[one.neighbours] == wanted[:, None]).mean(axis=1) for one in (before, after)]
    changes = right[1] - right[0]
    assert found.precision == pytest.approx(changes.mean())
    assert found.error == pytest.approx(scipy.stats.sem(changes))
    drawn = changes[random.integers(0, len(changes), (4000, len(changes)))].mean(axis=1)
    assert found.error == pytest.approx(drawn.std(), rel=0.05)
    shared = [len(set(a) & set(b)) for a, b in zip(before.neighbours, after.neighbours, strict=True)]
    assert found.overlap == pytest.approx(np.mean(shared) / 10)
    assert (found.k, found.queries, found.chance) == (10, 200, pytest.approx(10 / 300))


def test_a_single_query_has_no_error() -> None:
    one = np.array([[1.0, 0.0]], np.float32)
    ranking = rank(one, np.array([0]), one, np.array([0]), 1)
    assert compare_rankings(ranking, ranking, 1) == RankingChange(1, 1, 0.0, 0.0, 1.0, 1.0)


def change(precision: float, error: float, overlap: float = 1.0, *, queries: int = 500, n: int = 5000) -> RankingChange:
    return RankingChange(30, queries, precision, error, overlap, 30 / n)


@pytest.mark.parametrize(
    ("precision", "error", "queries", "passes"),
    [
        (-0.0049, 0.0, 500, True),
        (-0.0051, 0.0, 500, False),
        (-0.0060, 0.0014, 500, True),  # the 95 % bound is 0.0037
        (-0.0080, 0.0014, 500, False),  # 0.0057
        (-0.0053, 0.0040, 120, True),
        (-0.0150, 0.0100, 60, True),  # this small a proof cannot tell
        (-0.0210, 0.1000, 60, False),  # but it cannot excuse everything
        (+0.0300, 0.0010, 500, True),  # a gain is not a fault
        (-0.0600, 0.0000, 1, True),  # two swaps of thirty
        (-0.0700, 0.0000, 1, False),
        (float("nan"), 0.001, 500, False),
        (-0.001, float("nan"), 500, False),
    ],
)
def test_only_a_loss_beyond_its_error_counts(precision: float, error: float, queries: int, passes: bool) -> None:
    failures = INT8.ranking_failures(change(precision, error, queries=queries))
    assert failures == [] if passes else failures[0].startswith("precision@30 changes by ")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_other_precisions_have_no_allowance_for_chance(precision: str, sign: int) -> None:
    tolerance = TOLERANCES[precision]
    allowed = tolerance.precision_change
    assert tolerance.ranking_failures(change(sign * 0.99 * allowed, 0.0)) == []
    assert tolerance.ranking_failures(change(sign * 1.01 * allowed, 1.0)) == [
        f"precision@30 changes by {sign * 1.01 * allowed:+.4f}, more than {allowed:.4f}"
    ]


def test_a_tighter_limit_tightens_both_bounds() -> None:
    tighter = INT8.tightened(precision_change=0.001)
    assert tighter.ranking_failures(change(-0.0041, 0.1, queries=5000)) != []
    assert tighter.ranking_failures(change(-0.0039, 0.1, queries=5000)) == []
    assert tighter.ranking_failures(change(-0.0025, 0.0005, queries=5000)) != []


def test_overlap_is_judged_above_chance() -> None:
    """Of 40 pictures, 30 random ones share three quarters; of 30, all."""
    assert INT8.ranking_failures(change(0, 0, 0.81)) == []
    assert INT8.ranking_failures(change(0, 0, 0.79)) == [
        "the overlap of the 30 nearest with PyTorch's is 0.7900, less than 0.8012"
    ]
    assert INT8.ranking_failures(change(0, 0, 0.94, n=40)) != []
    assert INT8.ranking_failures(change(0, 0, 0.96, n=40)) == []
    assert INT8.ranking_failures(change(0, 0, 1.0, n=30)) == []
    assert INT8.ranking_failures(change(0, 0, float("nan"))) != []
    assert INT8.ranking_failures(replace(change(0, 0, 0.7), k=10)) == []  # deeprank-eval -k 10: measured for 30 only


# -- networks ----------------------------------------------------------------------------------------------------------


class Graph(nn.Module):
    """An ONNX graph as a network, run without any code of ours."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", "1")
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self._session.run(["embedding"], {"image": pictures.numpy()})[0])


class Digits:
    """A network trained on handwritten digits, its float graph, and PyTorch's vectors of the proof."""

    def __init__(self, run: Path) -> None:
        torch.set_num_threads(1)
        self.reference = Reference(run)
        self.rule = self.reference.info.picture
        self.data: DataSet = open_dataset("digits")
        self.model = prepared(onnx_graph(self.reference.network.eval(), self.rule))
        self.parts = anatomy_of(self.model)
        self.calibration = load_sample(self.data.train, 64, self.rule)

    @cached_property
    def side(self) -> ReferenceSide:
        return embed_reference(self.reference, self.data)

    def quantised(self, share: float) -> onnx.ModelProto:
        """Eight bits, each range cut to a share of its own."""
        seen = observe(self.model, tensors_to_watch(self.model, self.parts), self.calibration, 1)
        ranges = {}
        for name, one in seen.items():
            low, high = min_max(one)
            ranges[name] = low * share, high * share
        return quantised(correct_biases(self.model, self.parts, seen), self.parts, ranges)

    def proof(self, network: nn.Module, precision: str = "int8") -> ParityReport:
        other = NetworkReference(network.eval(), self.reference.info, torch.device("cpu"))
        return check_parity(self.side, other, TOLERANCES[precision])


@pytest.fixture(scope="module")
def trained(line: MainLine) -> Digits:
    return Digits(line.run)


def by_ranking(failures: tuple[str, ...]) -> list[str]:
    return [failure for failure in failures if failure.startswith(("precision@30", "the overlap of the 30"))]


@pytest.mark.thorough
def test_a_good_quantisation_passes(trained: Digits) -> None:
    report = trained.proof(Graph(trained.quantised(1.0)))
    assert report.failures == ()
    assert report.change.overlap > 0.9


@pytest.mark.thorough
def test_ranges_cut_to_a_tenth_are_refused_by_ranking(trained: Digits) -> None:
    assert by_ranking(trained.proof(Graph(trained.quantised(0.1))).failures)


def test_a_wrong_scale_of_one_layer_is_refused_by_neighbours(trained: Digits) -> None:
    model = trained.quantised(1.0)
    scales = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in scales]
    first = next(node for node in weights if "bias" not in node.input[0])
    scale = numpy_helper.to_array(scales[first.input[1]]).copy()
    scale[::2] *= 3
    scales[first.input[1]].CopyFrom(numpy_helper.from_array(scale, first.input[1]))
    assert by_ranking(trained.proof(Graph(model)).failures)


class OneOdd(nn.Module):
    """Turns the vectors of one picture towards a right angle, to this cosine with its own."""

    def __init__(self, network: nn.Module, odd: Picture, cosine: float) -> None:
        super().__init__()
        self.network, self.cosine = network, cosine
        self.odd = torch.from_numpy(odd.copy())

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        vectors = self.network(pictures)
        other = torch.nn.functional.normalize(vectors.roll(1, dims=1), dim=1)
        other = torch.nn.functional.normalize(other - (other * vectors).sum(1, keepdim=True) * vectors, dim=1)
        turned = self.cosine * vectors + (1 - self.cosine**2) ** 0.5 * other
        same = (pictures == self.odd).all(dim=3).all(dim=2).all(dim=1)
        return torch.where(same[:, None], turned, vectors)


@pytest.mark.thorough
@pytest.mark.parametrize(("cosine", "passes"), [(0.85, True), (0.7, False)])
def test_one_odd_picture(trained: Digits, cosine: float, passes: bool) -> None:
    odd = load_sample(trained.side.queries.samples[40:41], 1, trained.rule)[0]
    network = OneOdd(trained.reference.network, odd, cosine)
    report = trained.proof(network)
    assert report.difference.min_cosine == pytest.approx(cosine, abs=1e-4)
    assert [failure.split(" is ")[0] for failure in report.failures] == ([] if passes else ["the smallest cosine"])
    assert trained.proof(network, "fp32").failures


def test_batches_are_compared_by_the_mean_cosine_limit() -> None:
    assert INT8.for_one_engine() == replace(INT8, min_cosine=INT8.mean_cosine)
    assert TOLERANCES["fp32"].for_one_engine() == TOLERANCES["fp32"]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small photographs, where the features of both runs are kept."""
    if not (archive := os.environ.get("DEEPRANK_TINY_IMAGENET")):
        pytest.skip("DEEPRANK_TINY_IMAGENET names no data set")
    folder = tmp_path_factory.mktemp("few")
    write_classes(Path(archive), folder / "few", classes=20, each=60)
    return folder


@pytest.mark.thorough
@pytest.mark.timeout(900)
@pytest.mark.parametrize("keep_start", ["0", "0.3"])
def test_a_default_run_on_small_pictures_exports_in_int8(few: Path, keep_start: str) -> None:
    """Both runs read the features that the first computes; benchmarks/int8_ranking.py takes more pictures."""
    train = ["deeprank-train", "few", "--out", f"run {keep_start}", "--keep-start", keep_start, "--no-report"]
    run_command(*train, "--cache", "cache", cwd=few)
    command = ["deeprank-export", f"run {keep_start}", "--precision", "int8", "--out", "m.onnx"]
    run_command(*command, cwd=few)
    report = json.loads((few / "m.parity.json").read_text("utf-8"))
    assert report["neighbour_overlap_at_k"] >= report["least_neighbour_overlap_at_k"]
    assert report["precision_change_at_k"] > -0.02


def write_classes(archive: Path, folder: Path, *, classes: int, each: int) -> None:
    """Unpack so many train pictures of each of the first classes."""
    counts: dict[str, int] = {}
    with zipfile.ZipFile(archive) as opened:
        for name in opened.namelist():
            parts = name.split("/")
            if parts[1] != "train" or not name.endswith(".JPEG") or (len(counts) == classes and parts[2] not in counts):
                continue
            if counts.setdefault(parts[2], 0) < each:
                counts[parts[2]] += 1
                target = folder / parts[2] / parts[-1]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(opened.read(name))
