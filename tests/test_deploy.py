"""The files of docs/deploy fit docs/deployment.md, the package, each other and the programs that read them."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from configparser import RawConfigParser
from pathlib import Path

import pytest
from conftest import BIN, run_command
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DEPLOY = DOCS / "deploy"
PAGE = DOCS / "deployment.md"
UNITS = sorted([*DEPLOY.glob("*.service"), *DEPLOY.glob("*.timer")])
ROOT_USERS = ("root", "0")


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions with what they are given; continued lines are one."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.strip().partition(" ") for line in lines) if word]


def stages() -> list[list[tuple[str, str]]]:
    """Return the instructions of each stage, those before the first left out."""
    found: list[list[tuple[str, str]]] = []
    for word, rest in instructions():
        if word == "FROM":
            found.append([])
        if found:
            found[-1].append((word, rest))
    return found


def given(stage: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for name, rest in stage if name == word]


def unit(name: str) -> dict[str, dict[str, list[str]]]:
    """Return a unit's sections: each setting with all of its values."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in (DEPLOY / name).read_text("utf-8").splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            setting, _, value = line.partition("=")
            section.setdefault(setting, []).append(value)
    return found


def options_of(*command: str) -> set[str]:
    """Return the options that a command's own help lists."""
    shown = run_command(*command, "--help", COLUMNS="200").stdout
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", shown))


def options_in(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("--")}


@pytest.fixture(scope="module")
def serve_options() -> set[str]:
    pytest.importorskip("uvicorn")
    return options_of("deeprank-serve")


def test_the_image_runs_as_nobody_in_particular_and_is_looked_after() -> None:
    builder, final = stages()
    assert given(builder, "FROM") == [f"{given(final, 'FROM')[0]} AS builder"]
    (user,) = given(final, "USER")
    assert all(part.isdecimal() and part not in ROOT_USERS for part in user.split(":"))
    assert given(final, "EXPOSE") == ["8000"]
    (entry,) = map(json.loads, given(final, "ENTRYPOINT"))
    (health,) = given(final, "HEALTHCHECK")
    code = json.loads(health[health.index("[") :])[2]
    compile(code, "HEALTHCHECK", "exec")
    port = entry[entry.index("--port") + 1]
    assert f"http://127.0.0.1:{port}/healthz" in code
    assert entry[entry.index("--host") + 1] == "0.0.0.0"
    assert "--token-file" in entry
    assert any("ORT_DISABLE_TELEMETRY=1" in rest for rest in given(final, "ENV"))


def test_what_compiles_stays_in_the_first_stage() -> None:
    builder, final = stages()
    (native,) = [rest for rest in given(builder, "RUN") if "hnswlib" in rest]
    assert re.match(r"HNSWLIB_NO_NATIVE=1 .*pip .*--no-binary hnswlib", native)
    assert all("--no-cache-dir" in rest for rest in given(builder, "RUN") if " install " in rest and "pip" in rest)
    assert not [rest for rest in given(final, "RUN") if re.search(r"\b(pip|apt-get|g\+\+)\b", rest)]
    assert [rest.split()[0] for rest in given(final, "COPY")] == ["--from=builder"]


def test_the_image_is_named_by_its_tag_and_may_be_by_its_digest() -> None:
    before = [rest for word, rest in instructions() if word == "ARG"]
    assert re.fullmatch(r"BASE=python:3\.\d+-slim-[a-z]+", before[0])
    assert before[1] == "BASE_DIGEST="
    (base,) = given(stages()[1], "FROM")
    # As a shell expands it, too.
    for digest, ending in (("", ""), ("sha256:" + "0" * 64, "@sha256:" + "0" * 64)):
        words = ["sh", "-c", f'printf %s "{base}"']
        told = subprocess.run(words, capture_output=True, text=True, env={"BASE": "python:x", "BASE_DIGEST": digest})
        assert told.stdout == f"python:x{ending}"


@pytest.mark.parametrize("name", ["serve", "sync"])
def test_the_units_bound_what_is_taken_of_the_machine(name: str) -> None:
    service = unit(f"deeprank-{name}.service")["Service"]
    high, most = (service[setting][0] for setting in ("MemoryHigh", "MemoryMax"))
    units = {"M": 1, "G": 1024}
    assert 0 < int(high[:-1]) * units[high[-1]] < int(most[:-1]) * units[most[-1]]
    assert {"TasksMax", "LimitNOFILE", "MemorySwapMax"} <= service.keys()
    assert service["LimitCORE"] == ["0"]
    text = PAGE.read_text("utf-8")
    assert f"--memory {most.lower()} " in text
    assert f"--pids-limit {service['TasksMax'][0]}" in text


def test_the_units_and_the_example_let_the_server_have_its_connections() -> None:
    pytest.importorskip("uvicorn")
    from deeprank.runtime.serve.server import MIN_CONNECTIONS

    assert int(unit("deeprank-serve.service")["Service"]["LimitNOFILE"][0]) > 2 * MIN_CONNECTIONS
    files, *_ = re.findall(r"--ulimit nofile=(\d+)", PAGE.read_text("utf-8"))
    assert int(files) > 2 * MIN_CONNECTIONS


def copied() -> list[str]:
    return [source for rest in given(stages()[0], "COPY") for source in rest.split()[:-1]]


def test_everything_that_is_copied_exists_and_is_let_through() -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert sorted(rule[1:] for rule in rules if rule.startswith("!")) == sorted(copied())
    assert all((ROOT / source).exists() for source in copied())


def test_what_is_copied_is_all_that_the_package_is_built_of() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    folders = set(project["tool"]["setuptools"]["package-dir"].values())
    files = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml"}
    assert {folder.split("/")[0] for folder in folders} | files == set(copied())


@pytest.mark.parametrize("chosen", ["onnxruntime", "onnxruntime-gpu[cuda,cudnn]"])
@pytest.mark.skipif(sys.platform != "linux", reason="the sed of GNU")
def test_the_builder_chooses_one_onnx_runtime(tmp_path: Path, chosen: str) -> None:
    (step,) = [rest for rest in given(stages()[0], "RUN") if "sed " in rest]
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = step.partition("&&")[0]
    subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, check=True, env={"ONNXRUNTIME": chosen, "PATH": "/usr/bin:/bin"}
    )
    before, after = (
        tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"] for folder in (ROOT, tmp_path)
    )
    for platform, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("win32", "AMD64")):
        place = {"sys_platform": platform, "platform_machine": machine}
        wanted = [Requirement(text) for text in after["dependencies"]]
        here = [r for r in wanted if r.name.startswith("onnxruntime") and (not r.marker or r.marker.evaluate(place))]
        assert [str(r).partition(">")[0] for r in here] == [chosen]
    others = [[text for text in p["dependencies"] if not text.startswith("onnxruntime")] for p in (before, after)]
    assert others[0] == others[1]
    assert before["optional-dependencies"] == after["optional-dependencies"]


def test_the_image_gives_options_that_the_server_has(serve_options: set[str]) -> None:
    (entry,) = map(json.loads, given(stages()[1], "ENTRYPOINT"))
    assert Path(entry[0]).name == "deeprank-serve"
    assert options_in(entry)
    assert options_in(entry) <= serve_options


@pytest.mark.thorough
def test_the_units_give_options_that_the_commands_have(serve_options: set[str]) -> None:
    known = {"deeprank-serve": serve_options, "deeprank-index": options_of("deeprank-index", "sync")}
    for name in ("deeprank-serve.service", "deeprank-sync.service"):
        (line,) = unit(name)["Service"]["ExecStart"]
        command, *words = shlex.split(line)
        assert options_in(words)
        assert options_in(words) <= known[Path(command).name]


def test_the_units_fit_each_other() -> None:
    serve, sync = (unit(f"deeprank-{name}.service")["Service"] for name in ("serve", "sync"))
    words = [shlex.split(service["ExecStart"][0]) for service in (serve, sync)]
    index = [each[each.index("--index") + 1] for each in words]
    assert index[0] == index[1]
    (state,) = sync["StateDirectory"]
    assert index[0].startswith(f"/var/lib/{state}/")
    assert serve["ReadOnlyPaths"] == [f"/var/lib/{state}"]
    assert serve["User"] == sync["User"] != ["root"]
    (credential,) = serve["LoadCredential"]
    assert words[0][words[0].index("--token-file") + 1] == "${CREDENTIALS_DIRECTORY}/" + credential.partition(":")[0]
    assert "ORT_DISABLE_TELEMETRY=1" in serve["Environment"]
    assert "ORT_DISABLE_TELEMETRY=1" in sync["Environment"]


def test_the_server_may_finish_before_it_is_killed() -> None:
    pytest.importorskip("uvicorn")
    from deeprank.runtime.serve.settings import ServeSettings

    drain = ServeSettings(index=Path()).drain_s
    (stop,) = unit("deeprank-serve.service")["Service"]["TimeoutStopSec"]
    assert int(stop) > drain
    text = PAGE.read_text("utf-8")
    waits = re.findall(r"(?:--stop-timeout|terminationGracePeriodSeconds:) (\d+)", text)
    assert len(waits) == 2
    assert all(int(wait) > drain for wait in waits)


def test_proxies_let_through_what_the_server_takes() -> None:
    pytest.importorskip("uvicorn")
    from deeprank.runtime.serve.settings import DEFAULT_MAX_UPLOAD, DEFAULT_PORT

    nginx, caddy = ((DEPLOY / name).read_text("utf-8") for name in ("nginx.conf", "Caddyfile"))
    (size,) = re.findall(r"client_max_body_size (\d+)m;", nginx)
    assert int(size) * 1024 * 1024 > DEFAULT_MAX_UPLOAD
    (size,) = re.findall(r"max_size (\d+)MB", caddy)
    assert int(size) * 1_000_000 > DEFAULT_MAX_UPLOAD
    assert re.search(r"proxy_set_header Host +\$http_host;", nginx)
    # What one address may do, and how slowly.
    assert len(re.findall(r"^ *limit_(?:conn|req) ", nginx, re.MULTILINE)) == 3
    for setting in ("client_header_timeout", "client_body_timeout", "send_timeout"):
        assert re.search(rf"^ *{setting} \d+s;$", nginx, re.MULTILINE)
    assert {"read_header", "read_body", "idle"} <= set(re.findall(r"^\t+(\w+) \d+s$", caddy, re.MULTILINE))
    for text in (nginx, caddy):
        assert f"127.0.0.1:{DEFAULT_PORT}" in text


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_are_files_of_sections(path: Path) -> None:
    parser = RawConfigParser(strict=False, delimiters=("=",))
    parser.read(path, "utf-8")
    assert parser.has_section("Unit")
    if path.suffix == ".timer":
        assert (DEPLOY / path.with_suffix(".service").name).exists()


@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    for path in UNITS:
        text = path.read_text("utf-8").replace("/opt/deeprank/bin/", f"{BIN}/")
        (tmp_path / path.name).write_text(text, "utf-8")
    said = subprocess.run(
        ["systemd-analyze", "verify", *sorted(map(str, tmp_path.iterdir()))], capture_output=True, text=True
    )
    about = [line for line in said.stderr.splitlines() if "deeprank" in line]
    assert about == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
@pytest.mark.parametrize("name", ["deeprank-serve.service", "deeprank-sync.service"])
def test_the_units_expose_little(name: str) -> None:
    words = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=15", str(DEPLOY / name)]
    said = subprocess.run(words, capture_output=True, text=True)
    if "Unknown" in said.stderr or "unrecognized" in said.stderr:
        pytest.skip("this systemd cannot rate files")
    assert said.returncode == 0, said.stdout[-300:] + said.stderr


def test_what_the_page_links_to_is_there() -> None:
    text = PAGE.read_text("utf-8")
    links = {DOCS / link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    assert all(link.exists() for link in links)
    assert set(DEPLOY.iterdir()) <= links
