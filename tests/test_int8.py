"""Quantisation to int8: ranges, calibration, rounding and the search, against plain numpy and plain torch."""

import dataclasses
import functools
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from deeprank.export.formats.torch_network import onnx_graph
from deeprank.export.quantise import calibration
from deeprank.export.quantise import search as quantise_search
from deeprank.export.quantise.calibration import RULES, Range, Seen, entropy, min_max, observe, percentile
from deeprank.export.quantise.graph import Anatomy, anatomy_of, constant_inputs, prepared
from deeprank.export.quantise.int8 import correct_biases, layers_of, quantised, rounding_error, tensors_to_watch
from deeprank.export.quantise.rounding import observe_patches, rounded_weights
from deeprank.export.quantise.search import MIN_PICTURES, TARGET, quantise
from deeprank.models.network import NetworkConfig, build_network
from deeprank.models.normalisation import HALF
from deeprank.runtime import devices
from deeprank.runtime.devices import session_options
from deeprank.runtime.errors import ExportError
from deeprank.runtime.images import PictureRule
from deeprank.runtime.progress import start_nothing

SIDE, DIM = 16, 8
QDQ = ("QuantizeLinear", "DequantizeLinear")

Array = np.ndarray


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def some_pictures(count: int, side: int = SIDE, seed: int = 3) -> Array:
    """Coarse blocks of colour: unlike noise, they differ from each other once they are averaged."""
    blocks = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    return blocks.repeat(side // 4, axis=1).repeat(side // 4, axis=2)


# -- small networks ----------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """Pictures to unit vectors; ``vectors`` is what differs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Linear(16, DIM, bias=False)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def vectors(self, x: torch.Tensor) -> torch.Tensor:
        return self.embedding(self.features(x))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.vectors(((pictures.float() - 127.5) / 64).permute(0, 3, 1, 2)), dim=1)


class Plain(Small):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Conv2d(16, 16, 3)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu()).relu().mean((2, 3))


class Depthwise(Small):
    """Relu6, a residual addition, and layers of one pixel without padding."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 16, 1, bias=False)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu6(self.first(x))
        x = x + self.point(functional.relu6(self.depthwise(x)))
        return functional.adaptive_avg_pool2d(x, 1).flatten(1)


class Excited(Small):
    """Groups, hard swish, squeeze and excitation, and a hidden linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.hidden = nn.Linear(16, 16)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.hardswish(self.first(x))
        x = functional.hardswish(self.grouped(x))
        x = x * self.excite(self.squeeze(functional.adaptive_avg_pool2d(x, 1)).relu()).sigmoid()
        return self.hidden(functional.adaptive_avg_pool2d(x, 1).flatten(1)).relu()


class WithoutEmbedding(Plain):
    def vectors(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x)


class Weightless(Small):
    """One layer, and that is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(3, DIM, bias=False)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


class Spread(Small):
    """Channels between ``depthwise`` and ``point`` span four orders of magnitude, and all matter equally."""

    def __init__(self, blocks: int = 1, after: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 1)
        self.depthwise = nn.ModuleList(nn.Conv2d(16, 16, 3, groups=16, padding=1) for _ in range(blocks))
        self.point = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(blocks))
        self.after = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(after))
        scale = torch.logspace(0, 4, 16)
        with torch.no_grad():
            for depthwise, point in zip(self.depthwise, self.point, strict=True):
                depthwise.weight *= scale[:, None, None, None]
                depthwise.bias *= scale
                point.weight /= scale[None, :, None, None]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for depthwise, point in zip(self.depthwise, self.point, strict=True):
            x = point(depthwise(x).relu())
        for layer in self.after:
            x = layer(x).relu()
        return x.mean((2, 3))


def centred(network: Small) -> Small:
    """Let the vectors of all pictures spread around zero, where differences of small ones show."""
    with torch.no_grad():
        pictures = torch.from_numpy(some_pictures(64))
        x = ((pictures.float() - 127.5) / 64).permute(0, 3, 1, 2)
        network.embedding.bias = nn.Parameter(-network.vectors(x).mean(0))
    return network


def multiscale() -> nn.Module:
    torch.manual_seed(0)
    return build_network(
        NetworkConfig("timm:resnet10t", 32, DIM, (24,), 0.0, 0.0, HALF.mean, HALF.deviation, multiscale=True)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "depthwise": Depthwise,
    "excited": Excited,
    "without embedding": WithoutEmbedding,
    "multi-scale": multiscale,
}
SMALL = tuple(NETWORKS)[:3]
in_each = pytest.mark.parametrize("name", NETWORKS)
in_each_small = pytest.mark.parametrize("name", SMALL)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, its graph, and what 40 pictures showed of it."""

    network: nn.Module
    model: onnx.ModelProto
    parts: Anatomy
    pictures: Array
    seen: dict[str, Seen]

    @property
    def ranges(self) -> dict[str, Range]:
        return {name: min_max(seen) for name, seen in self.seen.items()}

    def in_eight_bits(self, in_float: tuple[str, ...] = ()) -> onnx.ModelProto:
        corrected = correct_biases(self.model, self.parts, self.seen, in_float)
        return quantised(corrected, self.parts, self.ranges, in_float)


@functools.cache
def case(name: str) -> Case:
    network = NETWORKS[name]().eval()
    side = 32 if name == "multi-scale" else SIDE
    pictures = some_pictures(40, side)
    model = prepared(onnx_graph(network, PictureRule(side)))
    parts = anatomy_of(model)
    return Case(network, model, parts, pictures, observe(model, tensors_to_watch(model, parts), pictures, 1))


def graph_of(network: nn.Module) -> onnx.ModelProto:
    return prepared(onnx_graph(network.eval(), PictureRule(SIDE)))


def by_onnx(model: onnx.ModelProto, pictures: Array) -> Array:
    options, _ = session_options(1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["embedding"], {"image": pictures})[0]


def layer_modules(given: Case) -> dict[str, nn.Module]:
    """Match the quantised layers of the graph with the modules, by the values of their weights."""
    constants = constant_inputs(given.model)
    nodes = {node.name: node for node in given.model.graph.node}
    modules = [module for module in given.network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    found = {}
    for name in layers_of(given.model, given.parts):
        weights = numpy_helper.to_array(constants[nodes[name].input[1]])
        (found[name],) = (m for m in modules if np.array_equal(m.weight.detach().numpy(), weights))
    return found


def inputs_and_outputs(given: Case) -> dict[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """Run torch on all pictures and keep what each layer takes and gives."""
    kept: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
    modules = layer_modules(given).values()
    hooks = [m.register_forward_hook(lambda m, x, y: kept.update({m: (x[0], y)})) for m in modules]
    with torch.inference_mode():
        given.network(torch.from_numpy(given.pictures))
    for hook in hooks:
        hook.remove()
    return kept


# -- ranges ------------------------------------------------------------------------------------------------------------


def seen_of(values: Array) -> Seen:
    return Seen(float(values.min()), float(values.max()), values.astype(np.float32), np.zeros(1))


def tensors() -> dict[str, Array]:
    random = np.random.default_rng(0)
    return {
        "normal": random.normal(0.3, 2, 5_000),
        "after relu": random.normal(0, 1, 5_000).clip(0),
        "with outliers": np.concatenate([random.normal(0, 1, 5_000), [50.0, -31.0]]),
        "negative": random.uniform(-7, -2, 3_000),
        "constant": np.full(500, 3.5),
        "negative constant": np.full(500, -0.25),
        "zero": np.zeros(500),
    }


TENSORS = tensors()
of_each_tensor = pytest.mark.parametrize("kind", TENSORS)


@of_each_tensor
@pytest.mark.parametrize("rule", RULES)
def test_every_range_holds_zero_and_is_not_empty(rule: str, kind: str) -> None:
    low, high = RULES[rule](seen_of(TENSORS[kind]))
    assert low <= 0 <= high
    assert low < high
    assert math.isfinite(low)
    assert math.isfinite(high)


@of_each_tensor
def test_min_max_is_what_was_seen(kind: str) -> None:
    seen = seen_of(TENSORS[kind])
    if kind != "zero":
        assert min_max(seen) == (min(seen.lowest, 0), max(seen.highest, 0))
    # The extremes are exact; the sample need not hold them.
    wider = dataclasses.replace(seen, lowest=seen.lowest - 100, highest=seen.highest + 100)
    assert min_max(wider) == (seen.lowest - 100, seen.highest + 100)


@pytest.mark.parametrize("kind", ["normal", "after relu", "with outliers", "negative"])
def test_percentile_by_sorting(kind: str) -> None:
    """0.001 % lie outside at each end; between two values of the sample, in proportion."""
    values = sorted(float(value) for value in TENSORS[kind].astype(np.float32))

    def at(share: float) -> float:
        place = share * (len(values) - 1)
        below = math.floor(place)
        return values[below] + (place - below) * (values[min(below + 1, len(values) - 1)] - values[below])

    low, high = percentile(seen_of(TENSORS[kind]))
    assert low == pytest.approx(min(at(0.00001), 0), rel=1e-4)
    assert high == pytest.approx(max(at(0.99999), 0), rel=1e-4)


def test_percentile_leaves_out_what_is_rarest() -> None:
    values = np.concatenate([np.random.default_rng(0).uniform(-1, 1, 400_000), [90.0], [-80.0]])
    low, high = percentile(seen_of(values))
    assert -1 <= low < -0.99
    assert 0.99 < high <= 1


def slow_entropy(values: Array, levels: int = 256, bins: int = 2048) -> tuple[list[float], list[Range]]:
    """Return the divergence of each candidate range, as the talk describes it, bin by bin."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    counts, edges = np.histogram(values.astype(np.float32), bins, (low, high))
    centres = [float(edges[i] + edges[i + 1]) / 2 for i in range(bins)]
    losses, ranges = [], []
    for share in np.linspace(0.25, 1, 61).tolist():
        a, b = low * share, high * share
        inside = [i for i in range(bins) if a <= centres[i] <= b]
        losses.append(slow_divergence([int(count) for count in counts], centres, inside, a, b, levels))
        ranges.append((a, b))
    return losses, ranges


def slow_divergence(
    counts: list[int], centres: list[float], inside: list[int], low: float, high: float, levels: int
) -> float:
    if not any(counts[i] for i in inside):
        return math.inf
    p = {i: float(counts[i]) for i in inside}
    p[inside[0]] += sum(counts[: inside[0]])
    p[inside[-1]] += sum(counts[inside[-1] + 1 :])
    members: dict[int, list[int]] = {}
    for i in inside:
        level = min(int((centres[i] - low) / (high - low) * levels), levels - 1)
        members.setdefault(level, []).append(i)
    q = dict.fromkeys(inside, 0.0)
    for bins in members.values():
        filled = [i for i in bins if counts[i] > 0]
        for i in filled:
            q[i] = sum(counts[j] for j in bins) / len(filled)
    all_p, all_q = sum(p.values()), sum(q.values())
    loss = 0.0
    for i in inside:
        if p[i] > 0:
            loss += p[i] / all_p * math.log(p[i] / all_p / max(q[i] / all_q, 1e-12))
    return loss


@pytest.mark.parametrize("kind", ["normal", "after relu", "with outliers", "negative"])
def test_entropy_by_a_double_loop(kind: str) -> None:
    losses, ranges = slow_entropy(TENSORS[kind])
    best = losses.index(min(losses))
    assert entropy(seen_of(TENSORS[kind])) == pytest.approx(ranges[best])
    if kind == "with outliers":
        assert best < 60  # what lies far outside is given up for finer steps


# -- calibration -------------------------------------------------------------------------------------------------------


@in_each_small
def test_what_tensors_hold_against_forward_hooks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of seven pictures, the last one of five."""
    monkeypatch.setattr(calibration, "_PIXELS", 7 * SIDE * SIDE)
    given = case(name)
    done: list[int] = []
    seen = observe(given.model, tensors_to_watch(given.model, given.parts), given.pictures, 1, done.append)
    assert done == [7, 7, 7, 7, 7, 5]
    nodes = {node.name: node for node in given.model.graph.node}
    kept = inputs_and_outputs(given)
    for layer, module in layer_modules(given).items():
        for tensor, values in zip((nodes[layer].input[0], nodes[layer].output[0]), kept[module], strict=True):
            check_seen(seen[tensor], values.numpy())


def check_seen(seen: Seen, values: Array) -> None:
    assert seen.lowest == pytest.approx(values.min(), abs=1e-5)
    assert seen.highest == pytest.approx(values.max(), abs=1e-5)
    means = values.mean(axis=(0, 2, 3) if values.ndim == 4 else 0, dtype=np.float64)
    np.testing.assert_allclose(seen.channel_means, means, atol=1e-5)
    every = np.sort(values.ravel())
    if values.size <= 1000 * len(values):
        np.testing.assert_allclose(np.sort(seen.values), every, atol=1e-5)
    else:
        assert len(seen.values) == 1000 * len(values)
        above = every.searchsorted(seen.values).clip(1, len(every) - 1)
        nearest = np.minimum(abs(every[above] - seen.values), abs(every[above - 1] - seen.values))
        assert nearest.max() <= 1e-5


@pytest.mark.thorough
@in_each
def test_every_tensor_that_is_quantised_was_seen(name: str) -> None:
    given = case(name)
    tensors = {node.input[0] for node in given.in_eight_bits().graph.node if node.op_type == "QuantizeLinear"}
    assert tensors
    assert tensors <= set(given.seen)


# -- weights and activations as they are written -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (6, 1, 3, 3), (7, 20)])
def test_rounding_error_by_a_loop(shape: tuple[int, ...]) -> None:
    weights = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    weights[2] = 0
    weights[3] *= 1000
    error = rounding_error(weights)
    for channel, off in zip(weights, error, strict=True):
        scale = float(abs(channel).max()) / 127
        for value, moved in zip(channel.ravel().tolist(), off.ravel().tolist(), strict=True):
            expected = round(value / scale) * scale - value if scale else 0.0
            assert moved == pytest.approx(expected, abs=1e-6 * max(scale, 1))


def written_weights(model: onnx.ModelProto, layer: onnx.NodeProto) -> tuple[Array, Array, int]:
    """Return a layer's weights as its file holds them: dequantised in float64, the scales, and their axis."""
    constants = constant_inputs(model)
    (pair,) = (node for node in model.graph.node if layer.input[1] in node.output)
    assert pair.op_type == "DequantizeLinear"
    whole, scales, zero = (numpy_helper.to_array(constants[tensor]) for tensor in pair.input)
    assert whole.dtype == zero.dtype == np.int8
    assert not zero.any()
    axis = next(entry.i for entry in pair.attribute if entry.name == "axis")
    shape = [len(scales) if at == axis else 1 for at in range(whole.ndim)]
    return whole * scales.astype(np.float64).reshape(shape), scales, axis


@in_each_small
def test_weights_in_the_file_are_the_rounded_ones(name: str) -> None:
    given = case(name)
    model = given.in_eight_bits()
    nodes = {node.name: node for node in model.graph.node}
    for layer, module in layer_modules(given).items():
        weights = module.weight.detach().numpy()
        found, scales, axis = written_weights(model, nodes[layer])
        assert axis == 0
        assert len(scales) == len(weights)
        np.testing.assert_allclose(found, weights + rounding_error(weights), atol=1e-6)


@in_each
def test_activations_have_eight_bits_without_sign(name: str) -> None:
    given = case(name)
    model = given.in_eight_bits()
    constants = constant_inputs(model)
    made_by = {tensor: node.op_type for node in model.graph.node for tensor in node.output}
    pairs = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert {constants[node.input[2]].data_type for node in pairs} == {TensorProto.UINT8}
    for node in pairs:
        if made_by[node.input[0]] in ("MaxPool", "AveragePool"):
            continue  # these share what they take
        low, high = given.ranges[node.input[0]]
        scale, zero = (float(numpy_helper.to_array(constants[tensor])) for tensor in node.input[1:])
        assert scale == pytest.approx((high - low) / 255, rel=1e-5)
        assert zero == pytest.approx(-low / scale, abs=0.51)


@in_each_small
def test_all_layers_of_the_network_are_quantised(name: str) -> None:
    given = case(name)
    expected = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in given.network.modules()) - 1
    model = given.in_eight_bits()
    made_by = {tensor: node for node in model.graph.node for tensor in node.output}
    from_pairs = [
        node.name
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm")
        and all(made_by[tensor].op_type == "DequantizeLinear" for tensor in node.input if tensor in made_by)
        and node.input[1] in made_by
    ]
    assert len(from_pairs) == expected


# -- rounding on pictures ----------------------------------------------------------------------------------------------


@in_each_small
def test_moments_are_of_what_the_layers_read(name: str) -> None:
    """Sums over random patches: of each layer, whole numbers of the patches that torch unfolds."""
    given = case(name)
    moments = observe_patches(given.model, layers_of(given.model, given.parts), given.pictures[:1], 1)
    modules, kept = layer_modules(given), inputs_and_outputs(given)
    convolutions = {layer for layer, module in modules.items() if isinstance(module, nn.Conv2d)}
    assert set(moments) == {layer for layer in convolutions if modules[layer].weight[0].numel() <= 64}
    for layer, found in moments.items():
        module, x = modules[layer], kept[modules[layer]][0][:1]
        read = functional.unfold(x, module.kernel_size, 1, module.padding, module.stride)[0].T.double().numpy()
        read = read.reshape(len(read), module.groups, -1)
        squares = np.einsum("pgk,pgk->pg", read, read)
        traces = np.trace(found, axis1=1, axis2=2)
        assert found.shape == (module.groups, read.shape[2], read.shape[2])
        assert (traces >= 64 * squares.min(0) * (1 - 1e-5)).all()
        assert (traces <= 64 * squares.max(0) * (1 + 1e-5)).all()
        # Nothing outside the space of the patches.
        for group, matrix in enumerate(found):
            basis = np.linalg.svd(read[:, group], full_matrices=False)[2][: np.linalg.matrix_rank(read[:, group])]
            np.testing.assert_allclose(basis.T @ basis @ matrix, matrix, atol=1e-3 * traces[group])


@in_each_small
def test_rounding_on_pictures_changes_outputs_less(name: str) -> None:
    """On pictures that it has not seen, in total; the file holds just these weights."""
    given = case(name)
    moments = observe_patches(given.model, layers_of(given.model, given.parts), given.pictures, 1)
    corrected = correct_biases(given.model, given.parts, given.seen, (), moments)
    written = quantised(corrected, given.parts, given.ranges)
    nodes = {node.name: node for node in written.graph.node}
    kept = inputs_and_outputs(dataclasses.replace(given, pictures=some_pictures(20, given.pictures.shape[1], seed=11)))
    nearest, by_pictures = 0.0, 0.0
    for layer, module in layer_modules(given).items():
        if layer not in moments:
            continue
        weights = module.weight.detach().numpy()
        ours = rounded_weights(weights, moments[layer])
        scales = np.abs(weights).reshape(len(weights), -1).max(axis=1) / 127
        steps = ours / scales.reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
        np.testing.assert_allclose(written_weights(written, nodes[layer])[0], ours, atol=1e-6)
        x = kept[module][0]
        y = run_layer(module, x, weights, None)
        sizes = [
            float((run_layer(module, x, kind, None) - y).var(dim=(0, 2, 3)).sum() / y.var(dim=(0, 2, 3)).sum())
            for kind in (weights + rounding_error(weights), ours)
        ]
        nearest, by_pictures = nearest + sizes[0], by_pictures + sizes[1]
    assert by_pictures < 0.8 * nearest


def test_layers_in_float_keep_their_weights() -> None:
    given = case("depthwise")
    layers = layers_of(given.model, given.parts)
    moments = observe_patches(given.model, layers, given.pictures, 1)
    corrected = correct_biases(given.model, given.parts, given.seen, layers[:1], moments)
    before, after = (
        [node.input[1] for node in model.graph.node if node.name in layers] for model in (given.model, corrected)
    )
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, *[name not in moments for name in layers[1:]]]


# -- biases ------------------------------------------------------------------------------------------------------------


def run_layer(module: nn.Module, x: torch.Tensor, weights: Array, bias: Array | None) -> torch.Tensor:
    weight = torch.from_numpy(weights).float()
    added = None if bias is None else torch.from_numpy(bias.copy()).float()
    if isinstance(module, nn.Linear):
        return functional.linear(x, weight, added)
    assert isinstance(module, nn.Conv2d)
    return functional.conv2d(x, weight, added, module.stride, module.padding, module.dilation, module.groups)


def channel_means(values: torch.Tensor) -> Array:
    return values.double().numpy().mean(axis=(0, 2, 3) if values.ndim == 4 else 0)


@in_each_small
def test_rounded_layers_keep_the_mean_of_each_channel(name: str) -> None:
    """Given what the float network gives them. Exactly where all pixels count alike, else nearly."""
    given = case(name)
    corrected = correct_biases(given.model, given.parts, given.seen)
    constants, nodes = constant_inputs(corrected), {node.name: node for node in corrected.graph.node}
    kept = inputs_and_outputs(given)
    for layer, module in layer_modules(given).items():
        x, y = kept[module]
        weights = module.weight.detach().numpy()
        rounded = weights + rounding_error(weights)
        bias = None if module.bias is None else module.bias.detach().numpy()
        before = channel_means(run_layer(module, x, rounded, bias)) - channel_means(y)
        new_bias = numpy_helper.to_array(constants[nodes[layer].input[2]])
        after = channel_means(run_layer(module, x, rounded, new_bias)) - channel_means(y)
        assert abs(before).max() > 1e-4  # there is something to correct
        if isinstance(module, nn.Linear) or module.kernel_size == (1, 1):
            np.testing.assert_allclose(after, 0, atol=2e-6)
        else:
            assert np.linalg.norm(after) < 0.3 * np.linalg.norm(before), layer


def test_layers_that_share_a_bias_get_biases_of_their_own() -> None:
    class Shared(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.second.bias = self.first.bias

    model = graph_of(Shared())
    parts = anatomy_of(model)
    seen = observe(model, tensors_to_watch(model, parts), some_pictures(8), 1)
    first, second = (node for node in correct_biases(model, parts, seen).graph.node if node.op_type == "Conv")
    assert first.input[2] != second.input[2]


def test_a_convolution_along_channels_keeps_its_bias() -> None:
    """Of an attention over channels (ECA-Net), the mean that it sees is none of a channel."""

    class Attentive(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.along = nn.Conv1d(1, 1, 3, padding=1)

        def features(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x).relu()
            weights = self.along(x.mean((2, 3)).unsqueeze(1)).squeeze(1).sigmoid()
            return self.second(x * weights[:, :, None, None]).relu().mean((2, 3))

    model = graph_of(Attentive())
    parts = anatomy_of(model)
    seen = observe(model, tensors_to_watch(model, parts), some_pictures(8), 1)
    corrected = correct_biases(model, parts, seen)
    before, after = (
        {node.name: node.input[2] for node in m.graph.node if node.op_type == "Conv"} for m in (model, corrected)
    )
    assert sum(before[name] != after[name] for name in before) == 2
    (along,) = (name for name in before if before[name] == after[name])
    assert "1d" in along


def test_a_bias_that_is_computed_is_kept() -> None:
    given = by_hand(
        helper.make_node("Gemm", ["features", "hidden", "features"], ["more"], "residual"),
        helper.make_node("MatMul", ["more", "weights"], ["vectors"], "product"),
        hidden=np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32),
        weights=np.eye(3, dtype=np.float32),
    )
    model = onnx.shape_inference.infer_shapes(given)
    parts = anatomy_of(model)
    pictures = some_pictures(8)
    seen = observe(model, tensors_to_watch(model, parts), pictures, 1)
    corrected = correct_biases(model, parts, seen, ("conv",))
    np.testing.assert_array_equal(by_onnx(corrected, pictures), by_onnx(model, pictures))


def test_a_layer_in_float_keeps_its_bias() -> None:
    given = case("plain")
    first, second = layers_of(given.model, given.parts)
    before = {node.name: list(node.input) for node in given.model.graph.node}
    corrected = correct_biases(given.model, given.parts, given.seen, (first,))
    after = {node.name: list(node.input) for node in corrected.graph.node}
    assert after[first] == before[first]
    assert after[second] != before[second]


# -- anatomy: what stays in float --------------------------------------------------------------------------------------


@in_each
def test_each_node_is_in_one_part(name: str) -> None:
    given = case(name)
    parts = [getattr(given.parts, field.name) for field in dataclasses.fields(given.parts)]
    assert sum(len(part) for part in parts) == len(given.model.graph.node)
    assert frozenset().union(*parts) == {node.name for node in given.model.graph.node}
    operators = {node.name: node.op_type for node in given.model.graph.node}
    assert {"Cast", "Transpose"} <= {operators[node] for node in given.parts.before}
    assert not {operators[node] for node in given.parts.before} & {"Conv", "Gemm", "MatMul"}
    assert {operators[node] for node in given.parts.after} >= {"ReduceL2", "Div"}
    assert [operators[node] for node in given.parts.embedding] == ([] if name == "without embedding" else ["Gemm"])
    assert {operators[node] for node in given.parts.network} >= {"Conv"}


@in_each
def test_both_ends_stay_in_float(name: str) -> None:
    """Nothing is rounded from the pictures to the first layer, and from the embedding layer to the end."""
    given = case(name)
    model = given.in_eight_bits()
    ends = given.parts.before | given.parts.embedding | given.parts.after
    constants = constant_inputs(model)
    made_by = {tensor: node for node in model.graph.node for tensor in node.output}
    inside = given.parts.embedding | given.parts.after
    for node in model.graph.node:
        sources = {tensor: made_by[tensor] for tensor in node.input if tensor in made_by}
        if node.name in given.parts.before:
            assert not any(source.op_type in QDQ for source in sources.values()), node.name
        if node.name in given.parts.after and given.parts.embedding:
            assert not any(source.op_type in QDQ for source in sources.values()), node.name
        if node.name in given.parts.embedding:
            assert constants[node.input[1]].data_type == TensorProto.FLOAT
        if node.op_type == "QuantizeLinear":
            assert made_by[node.input[0]].name not in inside
    assert ends <= {node.name for node in model.graph.node}  # as they were, under their names


@in_each
def test_the_embedding_layer_has_its_own_weights(name: str) -> None:
    given = case(name)
    if not given.parts.embedding:
        return
    last = [module for module in given.network.modules() if isinstance(module, nn.Linear)]
    owned = {module.weight.detach().numpy().tobytes() for module in last}
    model = given.in_eight_bits()
    (gemm,) = (node for node in model.graph.node if node.name in given.parts.embedding)
    weights = numpy_helper.to_array(constant_inputs(model)[gemm.input[1]])
    assert weights.tobytes() in owned


@in_each
def test_all_layers_in_float_is_the_float_network(name: str) -> None:
    """Layers that are put back take what belongs to them along: biases, and the operators that follow."""
    given = case(name)
    model = given.in_eight_bits(tuple(layers_of(given.model, given.parts)))
    assert not [node.name for node in model.graph.node if node.op_type in QDQ]
    expected = given.network(torch.from_numpy(given.pictures)).detach().numpy()
    np.testing.assert_allclose(by_onnx(model, given.pictures), expected, atol=1e-5)


@in_each
def test_eight_bits_give_nearly_the_same_vectors(name: str) -> None:
    given = case(name)
    expected = given.network(torch.from_numpy(given.pictures)).detach().numpy()
    found = by_onnx(given.in_eight_bits(), given.pictures)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert (found * expected).sum(axis=1).min() > 0.98
    assert abs(found - expected).max() > 1e-5  # it is another computation


def by_hand(*tail: onnx.NodeProto, **constants: Array) -> onnx.ModelProto:
    """A graph whose features [n, 3] go through ``tail`` to "vectors"."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["x"], "transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["x", "kernel"], ["maps"], "conv"),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["features"], "flatten"),
        *tail,
        helper.make_node("ReduceL2", ["vectors", "axis"], ["length"], "norm"),
        helper.make_node("Div", ["vectors", "length"], ["embedding"], "div"),
    ]
    values = {"kernel": np.ones((3, 3, 1, 1), np.float32), "axis": np.array([1]), **constants}
    graph = helper.make_graph(
        nodes,
        "by hand",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_an_embedding_layer_of_two_nodes() -> None:
    model = by_hand(
        helper.make_node("MatMul", ["features", "weights"], ["product"], "product"),
        helper.make_node("Add", ["product", "bias"], ["vectors"], "sum"),
        weights=np.eye(3, dtype=np.float32),
        bias=np.ones(3, np.float32),
    )
    parts = anatomy_of(model)
    assert parts.before == {"cast", "transpose"}
    assert parts.network == {"conv", "pool", "flatten"}
    assert parts.embedding == {"product", "sum"}
    assert parts.after == {"norm", "div"}
    (product,) = (node for node in quantise_by_min_max(model).graph.node if node.name == "product")
    assert product.input[1] == "weights"


def test_a_nonlinear_end_is_no_embedding_layer() -> None:
    model = by_hand(
        helper.make_node("MatMul", ["features", "weights"], ["product"], "product"),
        helper.make_node("Relu", ["product"], ["vectors"], "relu"),
        weights=np.eye(3, dtype=np.float32),
    )
    parts = anatomy_of(model)
    assert parts.embedding == frozenset()
    assert parts.network == {"conv", "pool", "flatten", "product", "relu"}


def test_a_graph_that_does_not_end_in_unit_vectors() -> None:
    model = by_hand(helper.make_node("Relu", ["features"], ["vectors"], "relu"))
    model.graph.node[-1].op_type = "Mul"
    with pytest.raises(ExportError, match="ends in Mul; expected the division"):
        anatomy_of(model)


def quantise_by_min_max(model: onnx.ModelProto) -> onnx.ModelProto:
    model = onnx.shape_inference.infer_shapes(model)
    parts = anatomy_of(model)
    seen = observe(model, tensors_to_watch(model, parts), some_pictures(8), 1)
    return quantised(model, parts, {name: min_max(one) for name, one in seen.items()})


# -- the search --------------------------------------------------------------------------------------------------------


def cosine(a: Array, b: Array) -> float:
    return float((a.astype(np.float64) * b).sum(axis=1).mean())


@pytest.mark.parametrize("name", ["excited", "depthwise"])
def test_the_rule_that_does_best_on_held_out_pictures(name: str) -> None:
    given = case(name)
    model, chosen = quantise(given.model, given.pictures, 1, start_nothing)
    assert set(chosen.cosine_by_rule) == set(RULES)
    assert chosen.rule == max(chosen.cosine_by_rule, key=lambda rule: chosen.cosine_by_rule[rule])
    assert (chosen.calibration_pictures, chosen.held_out_pictures) == (30, 10)
    seen = observe(given.model, tensors_to_watch(given.model, given.parts), given.pictures[:30], 1)
    moments = observe_patches(given.model, layers_of(given.model, given.parts), given.pictures[:30], 1)
    expected = by_onnx(given.model, given.pictures[30:])
    for rule, found in chosen.cosine_by_rule.items():
        ranges = {tensor: RULES[rule](one) for tensor, one in seen.items()}
        again = quantised(correct_biases(given.model, given.parts, seen, (), moments), given.parts, ranges)
        assert found == pytest.approx(cosine(by_onnx(again, given.pictures[30:]), expected), abs=1e-7)
    assert chosen.cosine == pytest.approx(cosine(by_onnx(model, given.pictures[30:]), expected), abs=1e-7)


def test_layers_that_hurt_most_go_back_to_float() -> None:
    """Of five layers, those on both sides of the tensor that eight bits cannot hold."""
    network = centred(Spread())
    model = graph_of(network)
    pictures = some_pictures(64)
    found, chosen = quantise(model, pictures, 1, start_nothing)
    assert max(chosen.cosine_by_rule.values()) < TARGET
    constants = constant_inputs(model)
    weights = {
        node.name: numpy_helper.to_array(constants[node.input[1]])
        for node in model.graph.node
        if node.name in chosen.in_float
    }
    bad = (network.depthwise[0], network.point[0])
    assert len(weights) == 2
    for module in bad:
        assert any(np.array_equal(module.weight.detach().numpy(), one) for one in weights.values())
    assert chosen.cosine >= TARGET
    expected = network(torch.from_numpy(pictures)).detach().numpy()
    assert cosine(by_onnx(found, pictures), expected) >= TARGET
    left = [node for node in found.graph.node if node.op_type == "QuantizeLinear"]
    assert left  # the others are in eight bits


def test_tensors_that_no_layer_alone_can_save() -> None:
    """Two of them: either side goes by eight bits until both sides are float, so that one layer alone gains nothing."""
    network = centred(Spread(blocks=2, after=3))
    model = graph_of(network)
    _, chosen = quantise(model, some_pictures(64), 1, start_nothing)
    constants = constant_inputs(model)
    in_float = [node for node in model.graph.node if node.name in chosen.in_float]
    weights = {numpy_helper.to_array(constants[node.input[1]]).tobytes() for node in in_float}
    assert weights == {m.weight.detach().numpy().tobytes() for m in (*network.depthwise, *network.point)}
    assert max(chosen.cosine_by_rule.values()) < 0.5
    assert chosen.cosine > 0.98


def test_the_search_ends_where_nothing_helps() -> None:
    network = centred(Spread(blocks=3, after=0))
    model, pictures = graph_of(network), some_pictures(40)
    found, chosen = quantise(model, pictures, 1, start_nothing)
    assert chosen.layers == 7
    assert len(chosen.in_float) <= 3
    assert chosen.cosine < TARGET
    assert chosen.cosine >= max(chosen.cosine_by_rule.values())
    expected = by_onnx(model, pictures[30:])
    assert chosen.cosine == pytest.approx(cosine(by_onnx(found, pictures[30:]), expected), abs=1e-7)


def test_a_network_of_one_layer_is_not_put_back_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    class One(Small):
        def __init__(self) -> None:
            super().__init__()
            self.only = nn.Conv2d(3, 16, 3)

        def features(self, x: torch.Tensor) -> torch.Tensor:
            return self.only(x).relu().mean((2, 3))

    monkeypatch.setattr(quantise_search, "TARGET", 2.0)
    model, chosen = quantise(graph_of(One()), some_pictures(32), 1, start_nothing)
    assert chosen.in_float == ()
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def test_too_few_pictures() -> None:
    with pytest.raises(ExportError, match=r"^31 pictures to calibrate with; expected at least 32 readable train"):
        quantise(case("plain").model, some_pictures(MIN_PICTURES - 1), 1, start_nothing)


def test_a_network_without_layers() -> None:
    with pytest.raises(ExportError, match=r"^The network has no layer with weights .*; export it as fp32\.$"):
        quantise(graph_of(Weightless()), some_pictures(40), 1, start_nothing)


# -- processors without instructions for eight bits --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "expected"), [({"avx2"}, "1"), ({"avx2", "avx_vnni"}, None), ({"avx512_vnni"}, None), (set(), "1")]
)
def test_products_that_cannot_overflow_are_asked_for(
    flags: set[str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cpu_features", lambda: frozenset(flags))
    options, _ = session_options(1)
    if expected is None:
        with pytest.raises(RuntimeError, match="does not have"):
            options.get_session_config_entry("session.x64quantprecision")
    else:
        assert options.get_session_config_entry("session.x64quantprecision") == expected


class Loud(Plain):
    """All products large and of one sign: sums of two of them need more than 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.first.weight.abs_()
            self.second.weight.abs_()

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.vectors((pictures.float() / 255).permute(0, 3, 1, 2)), dim=1)


# /proc/cpuinfo tells of the real processor there, so that what it is has to be said.
TWO_WAYS = """
import sys, numpy, onnxruntime
from deeprank.runtime import devices
devices.cpu_features = lambda: frozenset({"avx2"})
plain = onnxruntime.SessionOptions()
plain.intra_op_num_threads = 1
pictures = numpy.load("pictures.npy")
found = []
for options in (devices.session_options(1)[0], plain):
    session = onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
    found.append(session.run(["embedding"], {"image": pictures})[0])
numpy.save(sys.argv[1], numpy.stack(found))
"""


@pytest.mark.skipif(not shutil.which("qemu-x86_64"), reason="needs qemu-x86_64 to emulate a processor")
def test_the_same_vectors_on_a_processor_without_vnni(tmp_path: Path) -> None:
    """Haswell has AVX2, whose eight-bit products saturate; natively, whatever this processor has."""
    model, _ = quantise(graph_of(Loud()), some_pictures(40), 1, start_nothing)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    np.save(tmp_path / "pictures.npy", some_pictures(8, seed=4))
    emulator = ["qemu-x86_64", "-cpu", "Haswell"]
    for name, prefix in (("native", []), ("haswell", emulator)):
        command = [*prefix, sys.executable, "-c", TWO_WAYS, f"{name}.npy"]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250)
        assert ran.returncode == 0, ran.stderr
    native, (with_option, without) = np.load(tmp_path / "native.npy"), np.load(tmp_path / "haswell.npy")
    np.testing.assert_allclose(with_option, native[0], atol=1e-6)
    assert abs(without - with_option).max() > 1e-3
