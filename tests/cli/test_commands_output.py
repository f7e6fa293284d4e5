"""Output and exit status of the commands: streamed rows, odd names, closed and full streams."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from ee_export.cli.main import cli
from ee_export.package.store import Package
from tests.conftest import COMMAND

BENCH = [sys.executable, "-c", "from ee_export.bench.cli import main; main()"]
WORDS = json.dumps({"words": ["Total"], "boxes": [[10, 10, 90, 30]]})
ODD = [b"[red]x[", b"\x1b[31mred", b"M\xe4rz", b"new\nline", b":smile:", "日本".encode(), b"plain"]


@pytest.fixture(scope="module")
def odd_pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages with odd names, and a broken one."""
    folder = tmp_path_factory.mktemp("odd")
    for name in ODD:
        path = folder / os.fsdecode(name + b".png")
        Image.new("L", (30, 40), 200).save(path)
        path.with_suffix(".json").write_text(WORDS)
    (folder / "broken\x1b[0m.png").write_bytes(b"no image")
    return folder


def run(command: list[str], *arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a process of its own, as a user does, with undecoded output."""
    environment = {**os.environ, **options.pop("env", {})}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([*command, *map(str, arguments)], timeout=300, env=environment, **options)


def line_of(error: bytes, name: str) -> str:
    """The only line of an error."""
    (line,) = error.decode().splitlines()
    assert line.startswith(f"{name}: ")
    return line


def test_rows_of_odd_names_are_printed_escaped_one_a_line(tiny_package: Package, odd_pages: Path) -> None:
    done = run(COMMAND, "predict", tiny_package.path, odd_pages, env={"PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 1
    head, *rows = done.stdout.decode().splitlines()
    assert head.split() == ["label", "exit", "score", "OCR", "ms", "page"]
    assert len(rows) == len(ODD) + 1
    assert all(row.isprintable() for row in rows)
    for name in ("[red]x[.png", r"\x1b[31mred.png", r"M\udce4rz.png", r"new\nline.png", ":smile:.png", "日本.png"):
        assert sum(row.endswith(f"/{name}") for row in rows) == 1, name
    assert [row.split()[0] for row in rows].count("error") == 1
    assert r"broken\x1b[0m.png: " in line_of(done.stderr, "ee-export")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_json_lines_are_json_for_all_names_and_terminals(tiny_package: Package, odd_pages: Path, encoding: str) -> None:
    done = run(COMMAND, "predict", tiny_package.path, odd_pages, "--jsonl", env={"PYTHONIOENCODING": encoding})
    rows = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert (done.returncode, len(rows), done.stderr) == (1, len(ODD) + 1, b"")
    for row in rows:
        row["path"].encode()  # no half of a surrogate pair
    names = {os.path.basename(row["path"]) for row in rows}
    assert names == {
        "[red]x[.png",
        "\x1b[31mred.png",
        r"M\udce4rz.png",
        "new\nline.png",
        ":smile:.png",
        "日本.png",
        "plain.png",
        "broken\x1b[0m.png",
    }
    assert b"\x1b" not in done.stdout


@pytest.mark.parametrize("options", [[], ["--jsonl"]])
def test_rows_are_printed_as_they_are_answered(tiny_package: Package, odd_pages: Path, options: list[str]) -> None:
    command = [*COMMAND, "predict", str(tiny_package.path), *[str(odd_pages / "plain.png")] * 2000, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": ""})
    assert process.stdout is not None
    with process.stdout as lines:
        assert lines.readline() and lines.readline()
        process.terminate()
        assert lines.read().count(b"\n") < 1000
    assert process.wait(60) == 143


def test_one_line_counts_the_files_that_predict_skips(tiny_package: Package, tmp_path: Path) -> None:
    page = Image.new("L", (30, 40), 200)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
    (tmp_path / "a.JSON").write_text(WORDS)
    (tmp_path / "b.pdf").write_bytes(b"%PDF")
    (tmp_path / "._a.tif").write_bytes(b"")
    done = run(COMMAND, "predict", tiny_package.path, tmp_path, "--jsonl")
    (row,) = map(json.loads, done.stdout.splitlines())
    assert (done.returncode, row["ocr_used"]) == (0, False)
    assert line_of(done.stderr, "ee-export").endswith(": passed over: all pages but the first of 1 TIFF, 1 PDF")
    (tmp_path / "a.tif").unlink()
    done = run(COMMAND, "predict", tiny_package.path, tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert "no page images in this folder" in line_of(done.stderr, "ee-export")
    assert "1 PDF" in line_of(done.stderr, "ee-export")


def test_limits_are_options(tiny_package: Package, odd_pages: Path) -> None:
    page = odd_pages / "plain.png"
    done = run(COMMAND, "predict", tiny_package.path, page, "--max-json-bytes", 10)
    assert done.returncode == 2
    assert "--max-json-bytes" in line_of(done.stderr, "ee-export")


COMMANDS = {
    "predict": [*COMMAND, "predict", "PACKAGE", "PAGE"],
    "predict --jsonl": [*COMMAND, "predict", "PACKAGE", "PAGE", "--jsonl"],
    "inspect": [*COMMAND, "inspect", "PACKAGE"],
    "inspect --json": [*COMMAND, "inspect", "PACKAGE", "--json"],
    "verify": [*COMMAND, "verify", "PACKAGE"],
    "--help": [*COMMAND, "--help"],
    "ee-bench exits": [*BENCH, "exits", "PACKAGE", "--tokens", "16", "--runs", "3", "--loads", "0", "--json"],
}


def filled(name: str, package: Package, pages: Path) -> tuple[list[str], str]:
    """A command's words, and the name that its errors begin with."""
    words = {"PACKAGE": str(package.path), "PAGE": str(pages / "plain.png")}
    return [words.get(word, word) for word in COMMANDS[name]], "ee-bench" if "bench" in name else "ee-export"


def without_warnings(error: bytes) -> bytes:
    """Lines of stderr without the benchmark's warning about a busy machine."""
    return b"".join(line for line in error.splitlines(keepends=True) if b"machine was busy" not in line)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_behind_standard_output_is_one_line_and_status_2(
    tiny_package: Package, odd_pages: Path, name: str
) -> None:
    command, who = filled(name, tiny_package, odd_pages)
    with open("/dev/full", "wb") as full:
        done = run(command, stdout=full)
    assert done.returncode == 2
    assert "the output cannot be written (No space left on device)" in line_of(without_warnings(done.stderr), who)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_is_gone_ends_a_command_silently_with_status_141(
    tiny_package: Package, odd_pages: Path, name: str
) -> None:
    command, _ = filled(name, tiny_package, odd_pages)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run(command, stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, without_warnings(done.stderr)) == (141, b"")


@pytest.mark.parametrize("name", ["predict", "inspect", "ee-bench exits"])
def test_a_closed_standard_output_is_reported_in_one_line_before_any_work(
    tiny_package: Package, odd_pages: Path, name: str
) -> None:
    command, who = filled(name, tiny_package, odd_pages)
    done = run(["sh", "-c", '"$@" >&-', "sh", *command], stdout=None)
    assert done.returncode == 2
    assert "standard output is closed" in line_of(done.stderr, who)
    done = run(["sh", "-c", '"$@" >&- 2>&-', "sh", *command], stdout=None)
    assert (done.returncode, done.stderr) == (2, b"")


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
@pytest.mark.parametrize("name", ["predict", "inspect", "inspect --json", "--help"])
def test_terminals_that_lack_letters_get_them_escaped(
    tiny_package: Package, odd_pages: Path, name: str, environment: dict[str, str]
) -> None:
    command, _ = filled(name, tiny_package, odd_pages)
    done = run(command, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout
    done = run([*COMMAND, "predict", str(tiny_package.path), os.fsdecode("日本-nowhere.png".encode())], env=environment)
    assert done.returncode == 2
    assert b"nowhere.png: no such file" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_an_unexpected_error_is_one_line_with_a_traceback_on_request(tiny_package: Package) -> None:
    broken = "import ee_export.package.store as p\nfrom ee_export.cli.main import main\ndel p.open_package\nmain()"
    done = run([sys.executable, "-c", broken], "inspect", tiny_package.path)
    assert (done.returncode, done.stdout) == (2, b"")
    line = line_of(done.stderr, "ee-export")
    assert "unexpected ImportError" in line and "report it" in line and "EE_DEBUG=1" in line
    done = run([sys.executable, "-c", broken], "inspect", tiny_package.path, env={"EE_DEBUG": "1"})
    assert done.returncode == 1
    assert b"Traceback" in done.stderr


def test_labels_and_names_of_a_package_are_printed_escaped(package: Path) -> None:
    manifest = json.loads((package / "manifest.json").read_text())
    manifest["labels"][0] = "[red]ad\u202e"  # control characters are refused at load
    (package / "manifest.json").write_text(json.dumps(manifest))
    for options in ([], ["--json"]):
        done = CliRunner().invoke(cli, ["inspect", str(package), *options])
        assert "\u202e" not in done.output
        assert "[red]ad" in done.output


SCORE = '{"exit": "vision", "scores": {"vision": %s}}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (SCORE % "NaN", "the score at vision is nan; expected a number in [0, 1]"),
        (SCORE % "1e400", "the score at vision is inf"),
        (SCORE % "-0.1", "the score at vision is -0.1"),
        (SCORE % "true", "the score at vision is True"),
        (SCORE % '"0.5"', "the score at vision is '0.5'"),
        (SCORE % ("9" * 5000), "not JSON"),
        ("\udcff\udcfe", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1, " * 400_000, "longer than 1 MB"),
        ("[1]", "not a row of"),
        ("3", "not a row of"),
        ("null", "not a row of"),
        ('"error"', "not a row of"),
        ('["error"]', "not a row of"),
        ('{"exit": ["vision"], "scores": {}}', "not a row of"),
        ('{"exit": "vision", "scores": [0.5]}', "not a row of"),
        ('{"exit": "\\u001b[31m", "scores": {}}', "'\\x1b[31m' is no exit of the package (vision, "),
        ('{"exit": "vision", "scores": {"visio": 0.5}}', "'visio' is no exit of the package (vision, "),
    ],
)
def test_a_line_that_monitor_cannot_read_is_named(
    tiny_package: Package, tmp_path: Path, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from ee_export.errors import BadData
    from ee_export.verify.drift import read_answers

    path = tmp_path / "answers.jsonl"
    path.write_bytes(((SCORE % 0.5 + "\n") * 25).encode() + os.fsencode(line) + b"\n")
    with path.open("rb") as file, pytest.raises(BadData) as caught:
        read_answers(file, str(path), tiny_package.manifest.exits)
    assert str(caught.value).startswith(f"{path}:26: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600
