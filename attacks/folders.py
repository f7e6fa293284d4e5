"""Whole folders of odd files through ``ee-export predict`` in a process of its own: every page gets a row, whatever the others are."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacks.family import Attack, Family, Ground, Wrong
from attacks.image_seeds import seeds
from attacks.odd_images import odd_images
from attacks.packages import MANIFEST, check_output, copy_package, read_manifest, replace_file
from attacks.pages import drawn_page
from attacks.word_files import word_files
from ee_export.errors import UnexpectedError

_COMMAND = [sys.executable, "-c", "from ee_export.cli.main import main; main()"]
_REPOSITORY = Path(__file__).resolve().parent.parent
_WORDS = json.dumps({"words": ["TOTAL", "10.53"], "boxes": [[83, 600, 283, 660], [333, 600, 533, 660]]})


@dataclass(frozen=True, slots=True)
class Run:
    """Exit status of a command and the bytes that it wrote."""

    status: int
    output: bytes
    errors: bytes


def run(
    arguments: list[str | bytes | Path],
    *,
    timeout_s: float = 240.0,
    text: bytes = b"",
    environment: dict[str, str] | None = None,
    **options: Any,
) -> Run:
    """Run ``ee-export`` in a process of its own, with OCR engines out of reach, and check how it ends.

    Raises:
        Wrong: it ends with a traceback, by a signal, with an unknown status, or prints control characters.
    """
    variables = {
        **os.environ,
        "PYTHONPATH": str(_REPOSITORY),
        "PATH": "/nowhere",
        "COLUMNS": "120",
        **(environment or {}),
    }
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "input": text, **options}
    done = subprocess.run([*_COMMAND, *arguments], env=variables, timeout=timeout_s, check=False, **options)
    result = Run(done.returncode, done.stdout or b"", done.stderr or b"")
    errors = result.errors.decode(errors="replace")
    if "Traceback" in errors or "Exception ignored" in errors:
        lines = [line for line in errors.splitlines() if "/ee_export/" in line]
        raise Wrong(f"a traceback: {errors.strip().splitlines()[-1][:200]} ({(lines or ['?'])[-1].strip()[-90:]})")
    if result.status not in (0, 1, 2, 74, 141):
        raise Wrong(f"exit status {result.status}: {errors.strip()[-200:]}")
    if environment is None:  # else the output may be of another encoding
        check_output(errors)
        check_output(result.output.decode(errors="surrogateescape"))
    return result


def rows_of(folder: Path, ground: Ground, pages: list[str], *, package: Path | None = None) -> list[dict[str, object]]:
    """Predict a folder, and check that each of the pages has one row, in an order of their own."""
    done = run(["predict", package or ground.package, folder, "--jsonl", "--operating-point", "full", "--threads", "1"])
    rows = [json.loads(line) for line in done.output.decode().splitlines()]
    names = [str(row["path"]).rpartition("/")[2] for row in rows]
    paths = [str(row["path"]) for row in rows]
    missing = [page for page in pages if page not in names]
    if len(set(paths)) != len(paths):
        raise Wrong(f"two rows for one path among {len(paths)}")
    if missing:
        raise Wrong(f"{len(missing)} of {len(pages)} pages have no row, such as {missing[:3]}; status {done.status}")
    for row in rows:
        if ("error" in row) == ("label" in row):
            raise Wrong(f"a row is neither an answer nor an error: {str(row)[:200]}")
    for row in rows:
        if "unexpected " in str(row.get("error", "")):
            raise UnexpectedError(str(row["error"]))
    return rows


def _pages(folder: Path, number: int = 3) -> list[str]:
    """Put a few good pages with words into a folder."""
    names = []
    for index in range(number):
        name = f"good{index}.png"
        drawn_page().save(folder / name)
        (folder / f"good{index}.json").write_text(_WORDS)
        names.append(name)
    return names


def _require_answers(rows: list[dict[str, object]], names: list[str]) -> None:
    """Raise Wrong if a good page has an error."""
    for row in rows:
        if str(row["path"]).rpartition("/")[2] in names and "error" in row:
            raise Wrong(f"a good page has an error: {row['error']}")


def _odd_images(ground: Ground) -> None:
    folder = ground.folder("pages")
    good, names = _pages(folder), []
    for index, (_, data) in enumerate(odd_images()):
        names.append(f"odd{index}{'.jpg' if index % 2 else '.tif'}")
        (folder / names[-1]).write_bytes(data)
        (folder / f"odd{index}.json").write_text(_WORDS)
    _require_answers(rows_of(folder, ground, [*good, *names]), good)


def _cut_images(ground: Ground) -> None:
    folder = ground.folder("pages")
    good, names = _pages(folder), []
    for index, (_, data) in enumerate(seeds()):
        names.append(f"cut{index}.png")
        (folder / names[-1]).write_bytes(data[: len(data) * 2 // 3])
        (folder / f"cut{index}.json").write_text(_WORDS)
    _require_answers(rows_of(folder, ground, [*good, *names]), good)


def _odd_words(ground: Ground) -> None:
    folder = ground.folder("pages")
    good, names = _pages(folder), []
    for index, (_, write) in enumerate(word_files()):
        names.append(f"page{index}.png")
        drawn_page().save(folder / names[-1])
        write(folder / f"page{index}.json")
    _require_answers(rows_of(folder, ground, [*good, *names]), good)


def _odd_names(ground: Ground) -> None:
    """Names that are no UTF-8, hold escape sequences, markup or quotes, or are reserved on Windows."""
    folder = ground.folder("pages")
    good = _pages(folder)
    names = [b"caf\xe9.png", b"\xff\xfe.png", "cafe\u0301.png".encode(), "café.png".encode(), b"\x1b[2J.png", b"a\nb.png", b"a\rb.png", b"tab\t.png", b" .png", b"-rf.png",
             b"--help.png", b"[bold]x[red].png", b"'\"`$(id).png", b"*?.png", b"CON.png", b"nul.PNG", b"a:b.png", b"a\\b.png", b"%s%n.png", b"{0}.png", b"x" * 250 + b".png",
             "\u202egnp.exe.png".encode(), "\U0001f600.png".encode(), b"a.json.png", b"page.PNG", b"~.png", b"&lt;.png"]  # fmt: skip
    for name in names:
        path = os.fsencode(folder) + b"/" + name
        with open(path, "wb") as file:
            drawn_page().save(file, "PNG")
        with open(os.path.splitext(path)[0] + b".json", "w") as file:
            file.write(_WORDS)
    rows = rows_of(folder, ground, good)
    if len(rows) != len(names) + len(good):
        raise Wrong(f"{len(rows)} rows of {len(names) + len(good)} pages")
    done = run(["predict", ground.package, folder, "--threads", "1"])
    if b"good0" not in done.output:
        raise Wrong("the table lacks a good page")


def _odd_entries(ground: Ground) -> None:
    """Entries that are no files: FIFO, folder, links that dangle or turn in rings, sockets, names of system files."""
    import socket

    folder = ground.folder("pages")
    good = _pages(folder)
    os.mkfifo(folder / "fifo.png")
    (folder / "folder.png").mkdir()
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "ring.png").symlink_to("ring.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "memory.png").symlink_to("/proc/self/mem")
    (folder / "here").symlink_to(".")
    for name in (".DS_Store", "Thumbs.db", "._good0.png", ".hidden.png", "desktop.ini", "notes.txt", "page.pdf"):
        (folder / name).write_bytes(b"\0")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "._good0.png").write_bytes(b"\0\5\x16\7")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(folder)
        try:
            server.bind("socket.png")
        finally:
            os.chdir(here)
        _require_answers(rows_of(folder, ground, good), good)


def _deep_folder(ground: Ground) -> None:
    """Pages 900 folders deep, and one beside the first."""
    folder = ground.folder("pages")
    good = _pages(folder)
    below = folder / "/".join(["d"] * 900)
    below.mkdir(parents=True)
    drawn_page().save(below / "deep.png")
    _require_answers(rows_of(folder, ground, good), good)


def _too_deep_folder(ground: Ground) -> None:
    """Folders beyond the longest path of the system."""
    folder = ground.folder("pages")
    good = _pages(folder)
    here = os.open(folder, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("deep", dir_fd=here)
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        _require_answers(rows_of(folder, ground, good), good)
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def _vanishing(ground: Ground) -> None:
    """Files and folders that vanish while the command runs."""
    import threading

    folder = ground.folder("pages")
    good = _pages(folder)
    (folder / "sub").mkdir()
    for index in range(300):
        drawn_page().save(folder / "sub" / f"z{index:03}.png")
        (folder / "sub" / f"z{index:03}.json").write_text(_WORDS)
    stop = threading.Event()

    def remove() -> None:
        for index in range(299, -1, -1):
            if stop.wait(0.01):
                return
            (folder / "sub" / f"z{index:03}.png").unlink()
            (folder / "sub" / f"z{index:03}.json").unlink()

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        _require_answers(rows_of(folder, ground, good), good)
    finally:
        stop.set()
        thread.join()


def _odd_arguments(ground: Ground) -> None:
    """Paths that do not exist, are no folders, are empty, or are odd."""
    folder = ground.folder("pages")
    _pages(folder, 1)
    (folder / "empty").mkdir()
    for path in (
        "",
        "nowhere",
        "a\ud8ff",
        b"caf\xe9",
        "/dev/null",
        "/dev/zero",
        "/proc/self/mem",
        folder / "empty",
        "x" * 5000,
        "\x1b[2J",
        "[red]x[/nope]",
    ):
        argument = os.fsencode(path.encode("utf-8", "surrogatepass") if isinstance(path, str) else path)
        done = run(["predict", ground.package, argument, "--jsonl", "--threads", "1"])
        if done.status == 0:
            raise Wrong(f"{argument[:40]!r}: exit status 0 without a page")
    for package in ("", "nowhere", "/dev/null", folder, "\x1b[2J", b"caf\xe9"):
        if run(["inspect", package]).status != 2:
            raise Wrong(f"the package {package!r}: exit status is not 2")


def _streams(ground: Ground) -> None:
    """Outputs that are full, closed, read in part, or of another encoding."""
    folder = ground.folder("pages")
    _pages(folder, 4)
    (folder / "bad.png").write_bytes(b"")
    drawn_page().save(folder / "日本.png")
    arguments: list[str | bytes | Path] = ["predict", ground.package, folder, "--threads", "1"]
    for options in ([], ["--jsonl"]):
        with open("/dev/full", "wb") as full:
            if run([*arguments, *options], stdout=full).status == 0:
                raise Wrong("exit status 0 though nothing could be written")
            run([*arguments, *options], stderr=full)
        for encoding in ("latin-1", "ascii"):
            done = run([*arguments, *options], environment={"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
            if done.output.count(b"good") < 4:
                raise Wrong(f"rows are missing on a terminal of {encoding}")
        reading, writing = os.pipe()
        os.close(reading)
        try:
            run([*arguments, *options], stdout=writing)
        finally:
            os.close(writing)
        run([*arguments, *options], preexec_fn=lambda: os.close(1), stdout=None)
    for text in (b"", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b'{"exit": "final", "scores": {"final": NaN}}\n' * 30, b'{"exit": "final", "scores": {"final": 1e400}}\n' * 30, b"null\n", b'{"exit": 7}\n', b'{"exit": "\\ud800", "scores": {"\\u001b[2J": 0.5}}\n' * 30):  # fmt: skip
        run(["monitor", ground.package, "-"], text=text)


def _odd_labels(ground: Ground) -> None:
    """A package with markup, escape sequences and half surrogate pairs in its labels and names. It is refused, or
    they are escaped."""
    folder = ground.folder("pages")
    good = _pages(folder)
    for label in ("[bold]x[/nope]", "\x1b[31mred", "a\nb", "\ud800", "", " ", "x" * 100_000, "\u202ex"):
        package = copy_package(ground)
        manifest = read_manifest(package)
        manifest["labels"] = [f"{label}{index}" for index in range(len(manifest["labels"]))]
        manifest["name"] = label
        replace_file(package, MANIFEST, json.dumps(manifest))
        shown = run(["inspect", package])
        done = run(["predict", package, folder / good[0], "--threads", "1"])
        if shown.status == 0 != done.status:
            raise Wrong(f"labels of {label[:20]!r}: inspect accepts them, and predict ends with status {done.status}")


def _good(ground: Ground) -> None:
    """Good pages alone: all are answered, and the exit status is 0."""
    folder = ground.folder("pages")
    good = _pages(folder, 30)
    _require_answers(rows_of(folder, ground, good), good)


FOLDERS: tuple[tuple[str, Callable[[Ground], None]], ...] = (
    ("good pages", _good),
    ("odd images", _odd_images),
    ("images that are cut", _cut_images),
    ("odd word files", _odd_words),
    ("odd names", _odd_names),
    ("odd entries", _odd_entries),
    ("pages 900 folders deep", _deep_folder),
    ("folders beyond the longest path", _too_deep_folder),
    ("files that vanish", _vanishing),
    ("odd paths", _odd_arguments),
    ("odd streams", _streams),
    ("odd labels", _odd_labels),
)
"""Name of each attack, and the function that runs it."""


def folder_attack(ground: Ground, index: int) -> Attack:
    """One attack of the list."""
    name, act = FOLDERS[index]

    def attempt() -> None:
        try:
            act(ground)
        except subprocess.TimeoutExpired as error:
            raise Wrong(f"a command hangs: no end in {error.timeout:.0f} s") from None

    return Attack(name, attempt)


FAMILIES = (Family("folders", lambda package: len(FOLDERS), folder_attack, least=4, timeout_s=900.0),)
