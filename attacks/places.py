"""Packages in odd places, with odd names inside, and packages that change while they are read."""

import contextlib
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attacks.family import Attack, Family, Ground, Skipped, Wrong
from attacks.packages import MANIFEST, copy_package, exercise, replace_file, reseal
from attacks.pages import drawn_page, words_of_page
from ee_export import Page, load
from ee_export.errors import EeError
from ee_export.package.store import open_package
from ee_export.runtime.load import load_package

Act = Callable[[Ground], object]
_EXITS = ("vision", "encoder.1")
"""Exits of the shipped package after which the attacks on its graphs are named."""


def _at(name: str | bytes) -> Act:
    """The intact package in a folder of this name: it must load, for the name is no fault of the package."""

    def act(ground: Ground) -> None:
        package = copy_package(ground)
        place = Path(os.fsdecode(name)) if isinstance(name, bytes) else Path(name)
        place = ground.folder("place") / place
        place.parent.mkdir(parents=True, exist_ok=True)
        package.rename(place)
        exercise(place, verify=True)

    return act


def _act_on_name(find: str, name: str) -> Act:
    """A package in which one file has another name, in the folder and in the manifest."""

    def act(ground: Ground) -> None:
        package = copy_package(ground)
        old = _file(package, find)
        new = package / name
        new.parent.mkdir(parents=True, exist_ok=True)
        old.rename(new)

        def change(manifest: Any) -> None:
            for target in manifest["targets"].values():
                for segment in target["segments"]:
                    if package / segment["file"] == old:
                        segment["file"] = name

        reseal(package, change)
        exercise(package)

    return act


def _change(change: Callable[[Any], object]) -> Act:
    """A package with a changed manifest, which may still be valid."""

    def act(ground: Ground) -> None:
        package = copy_package(ground)
        reseal(package, change)
        exercise(package, verify=True)

    return act


def _replace(what: str, make: Callable[[Path], object]) -> Act:
    """A file is replaced after the package was opened and before it is loaded."""

    def act(ground: Ground) -> None:
        package = copy_package(ground)
        opened = open_package(package)
        path = _file(package, what)
        path.unlink()
        make(path)
        chain = load_package(opened, threads=1)
        chain.predict(Page(drawn_page(), *words_of_page()))
        raise Wrong(f"a package loaded though {path.name} was replaced")

    return act


def _entry(make: Callable[[Path], object]) -> Act:
    """A package folder with one more entry."""

    def act(ground: Ground) -> None:
        package = copy_package(ground)
        make(package)
        exercise(package)
        raise Wrong("a package with an entry that is not part of it loaded")

    return act


def _manifest_is(make: Callable[[Path], object]) -> Act:
    """A package with a manifest that is no plain file."""

    def act(ground: Ground) -> None:
        package = copy_package(ground)
        (package / MANIFEST).unlink()
        make(package / MANIFEST)
        exercise(package)
        raise Wrong("a package loaded though its manifest is no plain file")

    return act


def _path(make: Callable[[Ground, Path], object]) -> Act:
    """Another value in the place of the package's path."""

    def act(ground: Ground) -> None:
        load(make(ground, copy_package(ground)), threads=1)  # type: ignore[arg-type]

    return act


def _argument(**arguments: Any) -> Act:
    """The intact package with an odd argument of ``load``."""
    return lambda ground: load(ground.package, **{"threads": 1, **arguments})


def _mistype(act: Act) -> Act:
    """A value of another type than the signature states: Python's own TypeError is an answer too."""

    def attempt(ground: Ground) -> None:
        with contextlib.suppress(TypeError):
            act(ground)

    return attempt


def _file(package: Path, part: str) -> Path:
    """The first file with ``part`` in its name. For an exit that the package does not have, the first graph."""
    files = [path for path in sorted(package.rglob("*")) if path.is_file()]
    named = [path for path in files if part in path.name]
    if not named and part in _EXITS:
        named = [path for path in files if path.suffix == ".onnx"]
    if not named:
        raise Skipped(f"no file of the package has {part} in its name")
    return named[0]


def _shared_files(manifest: Any) -> None:
    """A second target on the files of the first, with another operating point."""
    name, target = next(iter(manifest["targets"].items()))
    manifest["targets"][f"{name}-two"] = {**target, "operating_points": {"full": _full_point(target)}}


def _odd_points(manifest: Any) -> None:
    """Operating points with odd names."""
    target = next(iter(manifest["targets"].values()))
    points, full = target.setdefault("operating_points", {}), _full_point(target)
    for name in ("", " ", "[bold]x[/nope]", "\x1b[2J", "a\nb", "../x", "x" * 5000, "é", "e\u0301"):
        points[name] = full


def _full_point(target: Any) -> Any:
    """The operating point of a target at which no page exits early, also if the target has none."""
    thresholds = {segment["exit"]: None for segment in target["segments"][:-1]}
    return target.get("operating_points", {}).get("full", {"criterion": "max_probability", "thresholds": thresholds})


def _odd_targets(manifest: Any) -> None:
    target = next(iter(manifest["targets"].values()))
    for name in ("", "[bold]x[/nope]", "\x1b[2J", "../x"):
        manifest["targets"][name] = target


def _no_targets(manifest: Any) -> None:
    manifest["targets"] = {}


def _without_descriptors(ground: Ground) -> None:
    """No file descriptors are left: loading is refused, and works again afterwards. Predicting a page from memory still works."""
    package = copy_package(ground)
    page = Page(drawn_page(), *words_of_page())
    ground.chain.predict(page)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    errors: list[EeError] = []
    try:
        for left in (0, 1, 3, 6):
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + left, hard))
            for attempt in (lambda: load(package, threads=1), lambda: open_package(package)):
                try:
                    attempt()
                except EeError as error:
                    errors.append(error)
            ground.chain.predict(page)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    load(package, threads=1)


def _without_home(ground: Ground) -> None:
    """Environment variables that name folders which are not there."""
    names = ("HOME", "TMPDIR", "XDG_CACHE_HOME")
    before = {name: os.environ.get(name) for name in names}
    try:
        os.environ.update(dict.fromkeys(names, "/nowhere"))
        exercise(copy_package(ground))
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _without_folder(ground: Ground) -> None:
    """The current folder is deleted."""
    package, here = copy_package(ground), Path.cwd()
    gone = ground.folder("gone")
    os.chdir(gone)
    gone.rmdir()
    try:
        exercise(package)
    finally:
        os.chdir(here)


def _odd_times(ground: Ground) -> None:
    """Files of 1901 and of the year 2400."""
    package = copy_package(ground)
    for index, path in enumerate(sorted(package.rglob("*"))):
        when = -(2**31) if index % 2 else 13_569_465_600
        data = path.read_bytes() if path.is_file() else None
        if data is not None:
            replace_file(package, path.relative_to(package).as_posix(), data)
        os.utime(path, (when, when))
    exercise(package, verify=True)


def _read_only(ground: Ground) -> None:
    """A package without write permission for anyone."""
    package = copy_package(ground)
    for path in [*package.rglob("*"), package]:
        if path.is_dir():
            path.chmod(0o555)
    try:
        exercise(package, verify=True)
    finally:
        for path in [package, *package.rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)


def _other_case(package: Path) -> None:
    (package / MANIFEST.upper()).write_bytes(b"{}")


PLACES: tuple[tuple[str, Act], ...] = (
    ("a folder with blanks and quotes", _at(" it's \"a\" $(package) .ee ")),
    ("a folder of markup", _at("[bold red]x[link].ee")),
    ("a folder of escape sequences", _at("\x1b[2J\x07.ee")),
    ("a folder with a line break", _at("a\nb.ee")),
    ("a folder that is no UTF-8", _at(b"caf\xe9\xff.ee")),
    ("a folder of Chinese letters", _at("模型.ee")),
    ("a folder of combining marks", _at("cafe\u0301.ee")),
    ("a folder that begins with a dash", _at("-rf.ee")),
    ("a folder called CON", _at("CON")),
    ("a folder with a colon and percent signs", _at("a:b%s%n{0}.ee")),
    ("a path of 3,000 letters", _at("/".join(["x" * 200] * 15))),
    ("a name of 255 letters", _at("x" * 252 + ".ee")),
    ("a read-only folder", _read_only),
    ("files of odd times", _odd_times),
    ("no home and no temporary folder", _without_home),
    ("no current folder", _without_folder),
    ("no file descriptors", _without_descriptors),
    ("two targets that share files", _change(_shared_files)),
    ("operating points of odd names", _change(_odd_points)),
    ("targets of odd names", _change(_odd_targets)),
    ("no targets", _change(_no_targets)),
    ("a graph called CON.onnx", _act_on_name("vision", "cpu-fp32/CON.onnx")),
    ("a graph that ends with a dot", _act_on_name("vision", "cpu-fp32/vision.")),
    ("a graph with a blank at its end", _act_on_name("vision", "cpu-fp32/vision.onnx ")),
    ("a graph with a colon", _act_on_name("vision", "cpu-fp32/vision.onnx:stream")),
    ("a graph with a line break", _act_on_name("vision", "cpu-fp32/vis\nion.onnx")),
    ("a graph of escape sequences", _act_on_name("vision", "cpu-fp32/\x1b[2J.onnx")),
    ("a graph of combining marks", _act_on_name("vision", "cpu-fp32/e\u0301.onnx")),
    ("a graph of 255 letters", _act_on_name("vision", "cpu-fp32/" + "x" * 250 + ".onnx")),
    ("a graph at the package's root", _act_on_name("vision", "vision.onnx")),
    ("a graph eight folders down", _act_on_name("vision", "a/b/c/d/e/f/g/h/vision.onnx")),
    ("a graph called manifest.json", _act_on_name("vision", "cpu-fp32/manifest.json")),
    ("a graph away from its weights", _act_on_name("encoder.1", "elsewhere/encoder.1.onnx")),
    ("weights of another name", _act_on_name("weights", "cpu-fp32/other.bin")),
    ("the tokenizer of another name", _act_on_name("tokenizer", "other.json")),
    ("a hidden file", _entry(lambda package: (package / ".hidden").write_bytes(b""))),
    ("a file of macOS", _entry(lambda package: (package / "._manifest.json").write_bytes(b""))),
    ("a file that is no UTF-8", _entry(lambda package: Path(os.fsdecode(os.fsencode(package) + b"/caf\xe9")).write_bytes(b""))),
    ("a file of escape sequences", _entry(lambda package: (package / "\x1b[2J").write_bytes(b""))),
    ("a FIFO", _entry(lambda package: os.mkfifo(package / "fifo"))),
    ("a link that dangles", _entry(lambda package: (package / "link").symlink_to("nowhere"))),
    ("a link to the package itself", _entry(lambda package: (package / "link").symlink_to("."))),
    ("a manifest in capitals too", _entry(_other_case)),
    ("a package within the package", _entry(lambda package: shutil.copytree(package / "cpu-fp32", package / "inner"))),
    ("a manifest that is a FIFO", _manifest_is(os.mkfifo)),
    ("a manifest that is a folder", _manifest_is(Path.mkdir)),
    ("a manifest that is a device", _manifest_is(lambda path: path.symlink_to("/dev/zero"))),
    ("a manifest that is memory", _manifest_is(lambda path: path.symlink_to("/proc/self/mem"))),
    ("a manifest that is a dangling link", _manifest_is(lambda path: path.symlink_to("nowhere"))),
    ("no manifest", _manifest_is(lambda path: None)),
    ("weights vanish after the package is opened", _replace("weights", lambda path: None)),
    ("weights become a FIFO", _replace("weights", os.mkfifo)),
    ("weights become a folder", _replace("weights", Path.mkdir)),
    ("weights become a link", _replace("weights", lambda path: path.symlink_to("/dev/zero"))),
    ("weights become shorter", _replace("weights", lambda path: path.write_bytes(b"\0" * 100))),
    ("a graph vanishes", _replace("vision", lambda path: None)),
    ("a graph becomes a FIFO", _replace("vision", os.mkfifo)),
    ("a graph becomes empty", _replace("vision", lambda path: path.write_bytes(b""))),
    ("the tokenizer vanishes", _replace("tokenizer", lambda path: None)),
    ("the tokenizer becomes a FIFO", _replace("tokenizer", os.mkfifo)),
    ("a path of None", _mistype(_path(lambda ground, package: None))),
    ("a path of bytes", _mistype(_path(lambda ground, package: os.fsencode(package)))),
    ("a path of a number", _mistype(_path(lambda ground, package: 7))),
    ("an empty path", _path(lambda ground, package: "")),
    ("a path with NUL", _path(lambda ground, package: f"{package}\0")),
    ("a path of half a surrogate pair", _path(lambda ground, package: "\ud800")),
    ("a path of 10,000 letters", _path(lambda ground, package: "x" * 10_000)),
    ("a path of a file", _path(lambda ground, package: package / MANIFEST)),
    ("a path of a device", _path(lambda ground, package: "/dev/zero")),
    ("a path below a file", _path(lambda ground, package: package / MANIFEST / "x.ee")),
    ("a path of a link in a ring", _path(lambda ground, package: _ring(ground))),
    ("no threads", _argument(threads=0)),
    ("-1 threads", _argument(threads=-1)),
    ("1.5 threads", _mistype(_argument(threads=1.5))),
    ("100,000 threads", _argument(threads=100_000)),
    ("threads of text", _mistype(_argument(threads="2"))),
    ("target None", _mistype(_argument(target=None))),
    ("target of a list", _mistype(_argument(target=[]))),
    ("an unknown target", _argument(target="cpu-\x1b[2J")),
    ("an unknown operating point", _argument(operating_point="x" * 100_000)),
    ("operating point None", _mistype(_argument(operating_point=None))),
    ("an unknown executor", _argument(executor="\x1b[2J")),
    ("executor None", _mistype(_argument(executor=None))),
)  # fmt: skip
"""Name of each attack, and the function that runs it."""


def _ring(ground: Ground) -> Path:
    link = ground.folder("place") / "ring.ee"
    link.symlink_to("ring.ee")
    return link


def place(ground: Ground, index: int) -> Attack:
    """One attack of the list."""
    name, act = PLACES[index]
    return Attack(name, lambda: act(ground))


FAMILIES = (Family("places", lambda package: len(PLACES), place, least=30, timeout_s=30.0),)
