"""Losses of pytorch-metric-learning by name: their formulas as plain loops, and training by the real command."""

import inspect
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_command, run_together
from pytorch_metric_learning import losses as pml_losses
from test_train_run import rows_of

from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.errors import TrainingError, TrainingInterrupted
from deeprank.runtime.progress import Advance, SilentMonitor
from deeprank.train.loop.job import Surroundings
from deeprank.train.loop.run import resume_run, start_run
from deeprank.train.losses.objective import Objective
from deeprank.train.losses.pml import _REFUSED, PmlLoss, check_pml
from deeprank.train.losses.triplet import Triplets, normalised_softmax
from deeprank.train.options.config import TrainConfig, check_together, config_from_dict, differences
from deeprank.train.options.recipes import load_config

CLASSES, EACH, DIM = 5, 4, 6
Rows = np.ndarray

USABLE = sorted(
    name
    for name, value in vars(pml_losses).items()
    if inspect.isclass(value) and issubclass(value, torch.nn.Module) and name not in _REFUSED
)
NEEDED = {"RankedListLoss": {"margin": 0.4, "Tn": 1.0}}


def a_batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(CLASSES), EACH))
    rows = random.normal(size=(CLASSES, DIM))[labels] + random.normal(size=(len(labels), DIM))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return torch.from_numpy(rows.astype(np.float32)), torch.from_numpy(labels)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(name: str, **arguments) -> PmlLoss:
    torch.manual_seed(0)
    return PmlLoss(name, {**NEEDED.get(name, {}), **arguments}, CLASSES, DIM)


# -- what each loss is, by loops over pictures ------------------------------------------------------------------------


def unit(rows: Rows) -> Rows:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def pairs(labels: Rows) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    every = [(i, j) for i in range(len(labels)) for j in range(len(labels)) if i != j]
    return [(i, j) for i, j in every if labels[i] == labels[j]], [(i, j) for i, j in every if labels[i] != labels[j]]


def contrastive(rows: Rows, labels: Rows, vectors: None, pos_margin: float, neg_margin: float) -> float:
    positive, negative = pairs(labels)
    pulls = [max(0.0, float(np.linalg.norm(rows[i] - rows[j])) - pos_margin) for i, j in positive]
    pushes = [max(0.0, neg_margin - float(np.linalg.norm(rows[i] - rows[j]))) for i, j in negative]
    return sum(float(np.mean([value for value in values if value > 0])) for values in (pulls, pushes))


def multi_similarity(rows: Rows, labels: Rows, vectors: None, alpha: float, beta: float, base: float) -> float:
    total = 0.0
    for i in range(len(rows)):
        others = [j for j in range(len(rows)) if j != i]
        pull = sum(math.exp(-alpha * (rows[i] @ rows[j] - base)) for j in others if labels[i] == labels[j])
        push = sum(math.exp(beta * (rows[i] @ rows[j] - base)) for j in others if labels[i] != labels[j])
        total += math.log(1 + pull) / alpha + math.log(1 + push) / beta
    return total / len(rows)


def nt_xent(rows: Rows, labels: Rows, vectors: None, temperature: float) -> float:
    positive, negative = pairs(labels)
    terms = []
    for anchor, other in positive:
        near = math.exp(rows[anchor] @ rows[other] / temperature)
        far = sum(math.exp(rows[i] @ rows[j] / temperature) for i, j in negative if i == anchor)
        terms.append(-math.log(near / (near + far)))
    return float(np.mean(terms))


def sup_con(rows: Rows, labels: Rows, vectors: None, temperature: float) -> float:
    terms = []
    for i in range(len(rows)):
        shares = {j: math.exp(rows[i] @ rows[j] / temperature) for j in range(len(rows)) if j != i}
        own = [j for j in shares if labels[j] == labels[i]]
        terms.append(-sum(math.log(shares[j] / sum(shares.values())) for j in own) / len(own))
    return float(np.mean(terms))


def proxy_anchor(rows: Rows, labels: Rows, vectors: Rows, margin: float, alpha: float) -> float:
    cosines = unit(rows) @ unit(vectors).T
    pulls, pushes = [], []
    for c in range(CLASSES):
        own = [math.exp(-alpha * (cosines[i, c] - margin)) for i in range(len(rows)) if labels[i] == c]
        others = [math.exp(alpha * (cosines[i, c] + margin)) for i in range(len(rows)) if labels[i] != c]
        pulls += [math.log(1 + sum(own))] if own else []
        pushes.append(math.log(1 + sum(others)))
    return float(np.mean(pulls) + np.mean(pushes))


def cross_entropy(logits: Rows, labels: Rows) -> float:
    terms = [math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(logits, labels, strict=True)]
    return float(np.mean(terms))


def arc_face(rows: Rows, labels: Rows, vectors: Rows, margin: float, scale: float) -> float:
    cosines = unit(rows) @ unit(vectors.T).T
    for i, label in enumerate(labels):
        angle = math.acos(cosines[i, label])
        assert angle + math.radians(margin) < math.pi
        cosines[i, label] = math.cos(angle + math.radians(margin))
    return cross_entropy(scale * cosines, labels)


def softmax(rows: Rows, labels: Rows, vectors: Rows, temperature: float) -> float:
    return cross_entropy(rows @ unit(vectors.T).T / temperature, labels)


FORMULAS: list[tuple[str, Callable[..., float], dict[str, float]]] = [
    ("ContrastiveLoss", contrastive, {"pos_margin": 0.2, "neg_margin": 1.1}),
    ("MultiSimilarityLoss", multi_similarity, {"alpha": 2, "beta": 40.0, "base": 0.4}),
    ("NTXentLoss", nt_xent, {"temperature": 0.2}),
    ("SupConLoss", sup_con, {"temperature": 0.1}),
    ("ProxyAnchorLoss", proxy_anchor, {"margin": 0.1, "alpha": 16}),
    ("ArcFaceLoss", arc_face, {"margin": 20.0, "scale": 16}),
    ("NormalizedSoftmaxLoss", softmax, {"temperature": 0.1}),
]


def vectors_of(loss: PmlLoss) -> Rows | None:
    return next((vectors.detach().double().numpy() for vectors in loss.parameters()), None)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("name", "formula", "arguments"), FORMULAS, ids=[name for name, *_ in FORMULAS])
def test_a_loss_is_its_formula(name: str, formula: Callable[..., float], arguments: dict, seed: int):
    rows, labels = a_batch(seed)
    loss = made(name, **arguments)
    expected = formula(rows.double().numpy(), labels.numpy(), vectors_of(loss), **arguments)
    assert float(loss(rows, labels).loss.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("name", "formula", "arguments"), FORMULAS, ids=[name for name, *_ in FORMULAS])
def test_the_gradient_is_that_of_the_formula(name: str, formula: Callable[..., float], arguments: dict):
    rows, labels = a_batch()
    rows.requires_grad_()
    loss = made(name, **arguments)
    loss(rows, labels).loss.backward()
    exact, vectors = rows.detach().double().numpy(), vectors_of(loss)
    # Along the sphere, so that it does not matter whether a loss scales the rows to unit length once more.
    step = np.random.default_rng(1).normal(size=exact.shape)
    step -= (step * exact).sum(1, keepdims=True) * exact
    slope = [formula(unit(exact + e * step), labels.numpy(), vectors, **arguments) / 2e-5 for e in (1e-5, -1e-5)]
    assert float((rows.grad.double().numpy() * step).sum()) == pytest.approx(slope[0] - slope[1], rel=1e-3, abs=1e-4)
    if vectors is not None:
        step = np.random.default_rng(2).normal(size=vectors.shape)
        slope = [formula(exact, labels.numpy(), vectors + e * step, **arguments) / 2e-5 for e in (1e-5, -1e-5)]
        found = float((next(loss.parameters()).grad.double().numpy() * step).sum())
        assert found == pytest.approx(slope[0] - slope[1], rel=1e-3, abs=1e-4)


def test_active_are_the_pairs_that_still_cost():
    rows, labels = a_batch()
    result = made("ContrastiveLoss", pos_margin=0.6, neg_margin=0.9)(rows, labels)
    positive, negative = pairs(labels.numpy())
    active = sum(float((rows[i] - rows[j]).norm()) > 0.6 for i, j in positive)
    active += sum(float((rows[i] - rows[j]).norm()) < 0.9 for i, j in negative)
    assert (result.active, result.considered) == (active, len(positive) + len(negative))
    assert 0 < active < result.considered


def test_a_loss_that_is_one_number_says_nothing_about_active():
    result = made("PNPLoss")(*a_batch())
    assert (result.active, result.considered) == (0, 0)


# -- every loss that is not refused -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", USABLE)
def test_every_usable_loss_trains_repeats_and_goes_into_a_checkpoint(name: str, tmp_path: Path):
    check_pml(name, NEEDED.get(name, {}), DIM)
    rows, labels = a_batch()
    rows.requires_grad_()
    loss = made(name)

    def value(of: PmlLoss) -> float:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return float(of(rows, labels).loss.detach())

    np.random.seed(1)
    before = value(loss)
    state_before = np.random.get_state()[1].copy()
    loss(rows, labels).loss.backward()
    assert rows.grad.abs().sum() > 0
    assert all(vectors.grad is not None and vectors.grad.abs().sum() > 0 for vectors in loss.parameters())
    assert math.isfinite(before)
    assert np.array_equal(np.random.get_state()[1], state_before)  # it draws from nothing that a checkpoint lacks
    torch.save(loss.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(9)
    other = PmlLoss(name, NEEDED.get(name, {}), CLASSES, DIM)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert value(other) == before


def test_what_a_loss_draws_follows_the_seed_of_the_step():
    from deeprank.train.loop.step import seeded

    rows, labels = a_batch()
    loss = made("TripletMarginLoss", triplets_per_anchor=1, margin=2.0)
    values = []
    for step in (0, 1, 0):
        with seeded(5, 1, step):
            values.append(float(loss(rows, labels).loss))
    assert values[0] == values[2] != values[1]


def test_given_triplets_are_the_ones_that_are_learned_from():
    rows, labels = a_batch()
    same = labels[:, None] == labels[None, :]
    anchor = 0
    positive = next(j for j in range(1, len(rows)) if same[0, j])
    negative = next(j for j in range(1, len(rows)) if not same[0, j])
    triplets = Triplets(*(torch.tensor([place]) for place in (anchor, positive, negative)), 1)
    found = made("TripletMarginLoss", margin=2.0)(rows, labels, triplets)
    distance = [float((rows[anchor] - rows[other]).norm()) for other in (positive, negative)]
    assert float(found.loss) == pytest.approx(2.0 + distance[0] - distance[1], abs=1e-5)
    assert (found.active, found.considered) == (1, 1)


# -- in the objective -------------------------------------------------------------------------------------------------


def config(loss: str, **options) -> TrainConfig:
    return load_config("default", {"loss": loss, "embedding_dim": DIM, **options})


def test_the_softmax_term_may_be_added():
    rows, labels = a_batch()
    torch.manual_seed(0)
    both = Objective(config("pml:MultiSimilarityLoss+softmax", softmax_weight=0.5, arguments={"alpha": 3}), CLASSES)
    metric = made("MultiSimilarityLoss", alpha=3)(rows, labels)
    softmax_term = normalised_softmax(rows, both.proxies, labels, both._config.temperature)
    found = both(rows, labels, generator())
    assert float(found.loss.detach()) == pytest.approx(
        float(metric.loss) + 0.5 * float(softmax_term.detach()), rel=1e-6
    )
    assert (found.active, found.considered) == (metric.active, metric.considered)


def test_class_vectors_learn_at_their_own_rate():
    from deeprank.models.network import NetworkConfig, build_network
    from deeprank.train.loop.step import make_optimizer

    network = build_network(NetworkConfig("timm:resnet10t", 32, DIM, (), 0.0, 0.0, (0.0,) * 3, (1.0,) * 3))
    options = config("pml:SoftTripleLoss", proxy_learning_rate=0.3, freeze_backbone=False)
    objective = Objective(options, CLASSES)
    groups = make_optimizer(network, objective, options).param_groups
    rates = {id(parameter): group["base_rate"] for group in groups for parameter in group["params"]}
    assert [rates[id(vectors)] for vectors in objective.parameters()] == [0.3]
    assert rates[id(next(network.head.parameters()))] == options.learning_rate


# -- options ----------------------------------------------------------------------------------------------------------


def test_arguments_come_from_the_recipe(tmp_path: Path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[loss]\nloss = "pml:MultiSimilarityLoss"\n[loss.arguments]\nalpha = 2.0\nbeta = 40\n')
    found = load_config(recipe, {})
    assert found.arguments == {"alpha": 2.0, "beta": 40}
    assert (found.pml_loss, found.terms) == ("MultiSimilarityLoss", ("pml:MultiSimilarityLoss",))
    again = config_from_dict(json.loads(json.dumps(found.to_dict())), "again")
    assert again == found
    other = load_config(recipe, {"arguments": {"alpha": 3.0}})
    assert differences(found, other) == ["arguments: {'alpha': 2.0, 'beta': 40}, now {'alpha': 3.0}"]


@pytest.mark.parametrize(
    ("name", "arguments", "parts"),
    [
        ("MultiSimilartyLoss", {}, ["no such loss", "did you mean MultiSimilarityLoss"]),
        ("Zzz", {}, ["no such loss", "expected one of AngularLoss, ArcFaceLoss"]),
        ("MultiSimilarityLoss", {"alfa": 2}, ["alfa = 2 cannot be made", "it takes alpha (2), beta (50), base (0.5)"]),
        ("MultiSimilarityLoss", {"alpha": "2"}, ["alpha = '2' cannot be computed", "it takes alpha (2)"]),
        ("MultiSimilarityLoss", {"distance": 3}, ["distance = 3 cannot be", "it takes alpha (2)"]),
        ("MultiSimilarityLoss", {"reducer": 3}, ["reducer = 3 cannot be made", "it takes alpha (2)"]),
        ("SoftTripleLoss", {"centers_per_class": 2.5}, ["centers_per_class = 2.5 cannot be made"]),
        (
            "ProxyAnchorLoss",
            {"num_classes": 7},
            ["num_classes = 7 cannot be made", "it takes margin (0.1), alpha (32)"],
        ),
        ("SoftTripleLoss", {"centers_per_class": 10**12}, ["Out of memory with --loss pml:SoftTripleLoss"]),
        ("NPairsLoss", {"margin": 1}, ["it takes none"]),
        ("RankedListLoss", {"margin": 1}, ["'Tn'", "margin (no default)"]),
        ("RankedListLoss", {"margin": 1, "Tn": 1, "imbalance": 3}, ["cannot be made", "between 0 and 1"]),
        ("PNPLoss", {"variant": "\x1b"}, ["cannot be made", "\\x1b"]),
        *((name, {}, [f"pml:{name} cannot be used here"]) for name in _REFUSED),
    ],
)
def test_what_cannot_be_used_is_refused(name: str, arguments: dict, parts: list[str]):
    with pytest.raises(TrainingError) as refusal:
        check_pml(name, arguments, DIM)
    for part in parts:
        assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "\x1b" not in str(refusal.value)


def test_a_batch_that_the_library_refuses_is_a_sentence():
    rows, _ = a_batch()
    with pytest.raises(
        TrainingError, match=r"pml:ArcFaceLoss with no arguments cannot be computed .*\[loss.arguments\]"
    ):
        made("ArcFaceLoss")(rows, torch.full((len(rows),), CLASSES))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[loss]\narguments = 3\n", ["arguments = 3", "a table of strings"]),
        ("[loss.arguments]\nalpha = nan\n", ["arguments", "finite"]),
        ("[loss.arguments]\nalpha = [1]\n", ["arguments", "a table of strings"]),
        ("[loss.arguments]\nalpha = 1\n", ["--loss triplet+softmax takes no arguments", "alpha"]),
        ("[loss]\nloss = 'pml:'\n", ["pml:NAME, pml:NAME+softmax"]),
        ("[loss]\nloss = 'pml:A+triplet'\n", ["pml:NAME, pml:NAME+softmax"]),
        ("[loss]\nloss = 'triplet'\nbnneck = true\n", ["--bnneck", "name triplet+softmax, or leave it out"]),
    ],
)
def test_recipes_that_make_no_sense_are_refused(tmp_path: Path, text: str, parts: list[str]):
    recipe = tmp_path / "bad.toml"
    recipe.write_text(text)
    with pytest.raises(TrainingError) as refusal:
        check_together(load_config(recipe, {}))
    for part in parts:
        assert part in str(refusal.value)


# -- the command ------------------------------------------------------------------------------------------------------

TINY = """
[network]
backbone = "timm:resnet10t"
embedding_dim = 8
[batch]
classes_per_batch = 4
pictures_per_class = 3
steps_per_epoch = 8
[optimizer]
epochs = 1
[run]
report = false
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pictures"
    for sample in open_dataset("digits").train[:120]:
        target = folder / sample.label / Path(sample.path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(sample.read())
    return folder


def digits_recipe(folder: Path, loss: str) -> Path:
    from importlib import resources

    shipped = (resources.files("deeprank.train") / "recipes" / "digits.toml").read_text("utf-8")
    sections: dict[str, dict[str, str]] = {}
    for text in (shipped, TINY, loss):
        for line in text.splitlines():
            if found := re.fullmatch(r"\[(.+)\]", line):
                section = sections.setdefault(found[1], {})
            elif " = " in line and not line.startswith("#"):
                section[line.split(" = ")[0]] = line.split(" = ", 1)[1]
    lines = [
        f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items()) for name, keys in sections.items()
    ]
    (folder / "recipe.toml").write_text("".join(lines))
    return folder / "recipe.toml"


class StopsInTheSecondEpoch(SilentMonitor):
    def __init__(self):
        self.left: int | None = None

    def remark(self, text: str) -> None:
        if text.startswith("epoch 1:"):
            self.left = 3

    def __call__(self, what: str, total: int, unit: str = "pictures", done: int = 0, /) -> Advance:
        return self.advance

    def advance(self, count: int = 1, /, detail: str = "") -> None:
        if self.left is not None:
            self.left -= 1

    def stopping(self) -> bool:
        return self.left is not None and self.left <= 0


@pytest.mark.thorough
def test_a_run_with_class_vectors_goes_on_to_the_same_numbers(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    options = {"loss": "pml:ProxyAnchorLoss", "arguments": {"margin": 0.15, "alpha": 24}}
    options |= {"backbone": "timm:resnet10t", "embedding_dim": 8, "epochs": 3, "steps_per_epoch": 5, "report": False}
    chosen = load_config("digits", {**options, "classes_per_batch": 4, "pictures_per_class": 3})
    here, whole, run = Surroundings("cpu", 1, Path("cache")), Path("whole"), Path("run")

    def started(run: Path, monitor: SilentMonitor) -> None:
        start_run(str(data), chosen, "digits", here, monitor, out=run)

    started(whole, SilentMonitor())
    with pytest.raises(TrainingInterrupted):
        started(run, StopsInTheSecondEpoch())
    with pytest.raises(TrainingError) as refusal:
        resume_run(run, {"arguments": {"margin": 0.2}}, here, SilentMonitor())
    assert "arguments: {'margin': 0.15, 'alpha': 24}, now {'margin': 0.2}" in str(refusal.value)
    resume_run(run, {}, here, SilentMonitor())
    rows = rows_of(run)
    assert rows == rows_of(whole)
    found, expected = (torch.load(path / "last.pt", weights_only=True)["objective"] for path in (run, whole))
    assert list(found) == ["pml.loss.proxies"]
    assert torch.equal(found["pml.loss.proxies"], expected["pml.loss.proxies"])
    assert all(0 < row["active_share"] <= 1 for row in rows[:3])


@pytest.mark.thorough
def test_arguments_from_the_command_line_and_a_loss_without_elements(data: Path, tmp_path: Path):
    recipe = digits_recipe(tmp_path, "[loss]\nbnneck = true\n")
    words = [data, "--config", recipe, "--device", "cpu", "--out", "run"]
    words += ["--loss", "pml:PNPLoss+softmax", "--arguments", 'anneal=0.05,variant="Dq"']
    result = run_command("deeprank-train", *words, cwd=tmp_path)
    assert "active" not in result.stderr
    assert rows_of(tmp_path / "run")[0]["active_share"] is None
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert stored["arguments"] == {"anneal": 0.05, "variant": "Dq"}
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000


@pytest.mark.thorough
def test_bad_losses_get_one_sentence_and_no_run(data: Path, tmp_path: Path):
    cases = [
        (["--loss", "pml:ContrastivLoss"], "did you mean ContrastiveLoss"),
        (["--loss", "pml:CrossBatchMemory"], "cannot be used here"),
        (["--loss", "pml:ContrastiveLoss", "--arguments", "margin=1"], "it takes pos_margin (0), neg_margin (1)"),
        (["--loss", "pml:ContrastiveLoss", "--arguments", "pos_margin"], "expected name=value pairs"),
        (["--arguments", "margin=1"], "takes no arguments"),
    ]
    commands = [["deeprank-train", data, "--config", "digits", *words] for words, _ in cases]
    for result, (_, message) in zip(run_together(*commands, cwd=tmp_path), cases, strict=True):
        assert result.returncode == 1, result.args
        assert message in result.stderr, result.stderr
    assert not (tmp_path / "runs").exists()
