"""Labels of a run: resuming, export and evaluation read the data by the same rule."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import run_command
from test_train_run import Listener, TrainingInterrupted, surroundings, train

from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.errors import DataError, TrainingError
from deeprank.train.loop.run import resume_run
from deeprank.train.reference import Reference
from deeprank.train.run.folder import RunFolder

GROUPS = {"0": "round", "1": "straight/thin", "2": "curved", "3": "curved"}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def nested(digits: Path, tmp_path: Path) -> Path:
    """Four digits as ``train/GROUP[/KIND]/DIGIT`` and ``test``."""
    for label, group in GROUPS.items():
        for number, path in enumerate(sorted((digits / label).iterdir())):
            target = tmp_path / "nested" / ("test" if number % 8 == 7 else "train") / group / label / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return tmp_path / "nested"


@pytest.mark.thorough
def test_a_run_keeps_its_rule(nested: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        train(nested, "run", Listener(90), labels="leaf")
    config = RunFolder(Path("run")).read_config()
    assert config["data"]["labels"] == "leaf"
    assert config["data"]["classes"] == ["0", "1", "2", "3"]
    with pytest.raises(TrainingError, match="labels: leaf, now top"):
        resume_run(Path("run"), {}, surroundings(), Listener(), labels="top")
    listener = Listener()
    result = resume_run(Path("run"), {}, surroundings(), listener)
    assert result.figures["kind"] == "final"
    reference = Reference(Path("run"))
    assert reference.labels_of(str(nested)) == reference.labels_of("nested") == "leaf"
    assert reference.info.classes == ("0", "1", "2", "3")


@pytest.mark.thorough
def test_export_and_evaluation_of_a_run_read_its_labels(nested: Path) -> None:
    train(nested, "run", labels="leaf", epochs=1)
    said = run_command("deeprank-export", "run", "--out", "m.onnx").stderr
    line = "4 classes by the innermost folder (0 … 3)"
    assert line in said
    assert said.splitlines()[-1] == "Next: deeprank-index sync nested --labels leaf --model m.onnx"
    words = ("deeprank-eval", "--model", "m.onnx", "--data", "nested", "--split", "test", "--k", 5)
    beside = run_command(*words, "--reference", "run")
    assert line in beside.stderr
    assert "PyTorch reference" in beside.stdout
    alone = json.loads(run_command(*words, "--labels", "leaf", "--json").stdout)
    assert alone["queries"] == 12
    assert f"{alone['precision_at_k']['runtime_exact']:.4f}" in beside.stdout


@pytest.mark.thorough
def test_a_table_may_lie_elsewhere_when_a_run_goes_on(nested: Path) -> None:
    data = open_dataset(nested, labels="leaf")
    rows = [f"{sample.path},{sample.label}" for sample in (*data.train, *data.val)]
    Path("tables").mkdir()
    Path("tables/labels.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    with pytest.raises(TrainingInterrupted):
        train(nested, "run", Listener(90), labels="tables/labels.csv", epochs=1)
    assert RunFolder(Path("run")).read_config()["data"]["labels"] == str(Path("tables/labels.csv").resolve())
    Path("tables").rename("moved")
    with pytest.raises(DataError, match=r"labels\.csv does not exist"):
        resume_run(Path("run"), {}, surroundings(), Listener())
    Path("other.csv").write_text("\n".join(["path,label", *rows[:-1]]) + "\n")
    with pytest.raises(TrainingError, match="with other names, labels or sizes"):
        resume_run(Path("run"), {}, surroundings(), Listener(), labels="other.csv")
    assert resume_run(Path("run"), {}, surroundings(), Listener(), labels="moved/labels.csv").figures["kind"] == "final"


@pytest.mark.thorough
def test_a_run_of_an_earlier_version_means_the_top_folder(nested: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        train(nested, "run", Listener(90), labels="top", epochs=1)
    config = json.loads(Path("run/config.json").read_text())
    del config["data"]["labels"]
    Path("run/config.json").write_text(json.dumps(config))
    assert resume_run(Path("run"), {}, surroundings(), Listener()).figures["kind"] == "final"


def test_a_run_that_took_splits_for_classes_is_not_resumed(nested: Path) -> None:
    (nested / "test").rename(nested / "validation")
    with pytest.raises(TrainingInterrupted):
        train(nested, "run", Listener(90), labels="leaf", epochs=1)
    config = json.loads(Path("run/config.json").read_text())
    del config["data"]["labels"]
    config["data"] |= {"classes": ["train", "validation"], "fingerprint": "0" * 64}
    Path("run/config.json").write_text(json.dumps(config))
    with pytest.raises(TrainingError) as refusal:
        resume_run(Path("run"), {}, surroundings(), Listener())
    assert "the run used the folders train and validation as classes; they are splits" in str(refusal.value)


def test_what_was_read_is_said_before_anything_else(nested: Path) -> None:
    shutil.copy(next((nested / "train" / "curved" / "2").iterdir()), nested / "test" / "round" / "0" / "twice.png")
    listener = Listener(1)
    with pytest.raises(TrainingInterrupted):
        train(nested, "run", listener)
    assert listener.remarks[0].startswith("3 classes by the top folder (curved … straight), ")
    assert listener.remarks[0].endswith("--labels leaf: 4; --labels path: 4")
    assert listener.remarks[1].startswith("Warning: 1 picture is in train and test with the same bytes")
    assert "twice.png" in listener.remarks[1]
    assert listener.remarks[2].startswith("Warning: 1 picture is in several classes")
