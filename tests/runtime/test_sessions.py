"""Chains share sessions only of verified files, and run only hashed files."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import ee_export
from attacks.threads import negate_heads
from ee_export.errors import BadPackage, BadRequest
from ee_export.package import reading
from ee_export.package import store as packages
from ee_export.package.store import open_package
from ee_export.runtime import ort
from ee_export.runtime.chain import Chain
from ee_export.runtime.opening import open_segments
from tests.runtime.altered import copied, flattened, same_logits, with_manifest

WEIGHTS = Path("cpu-fp32", "weights.bin")


@pytest.fixture(scope="module")
def intact(sample: Path) -> Chain:
    return ee_export.load(sample, threads=1)


@pytest.fixture
def package(sample: Path, tmp_path: Path) -> Path:
    return copied(sample, tmp_path / "copy.ee")


def test_a_damaged_copy_does_not_poison_an_intact_package(sample: Path, package: Path, intact: Chain) -> None:
    negate_heads(package / WEIGHTS)
    with pytest.raises(BadPackage, match=r"weights\.bin: sha256 differs") as kept:  # its traceback keeps all frames
        ee_export.load(package, threads=3)
    assert same_logits(ee_export.load(sample, threads=3), intact)
    del kept


def test_loads_beside_a_damaged_copy_give_the_intact_weights(sample: Path, package: Path, intact: Chain) -> None:
    negate_heads(package / WEIGHTS)
    ended = threading.Event()
    accepted = []

    def load_damaged() -> None:
        while not ended.is_set():
            with contextlib.suppress(BadPackage):
                accepted.append(ee_export.load(package, threads=2))

    thread = threading.Thread(target=load_damaged)
    thread.start()
    try:
        for _ in range(8):
            assert same_logits(ee_export.load(sample, threads=2), intact)
    finally:
        ended.set()
        thread.join()
    assert not accepted


def test_a_package_repaired_in_place_uses_its_repaired_weights(sample: Path, package: Path, intact: Chain) -> None:
    negate_heads(package / WEIGHTS)
    with pytest.raises(BadPackage) as kept:
        ee_export.load(package, threads=4)
    shutil.copyfile(sample / WEIGHTS, package / WEIGHTS)
    assert same_logits(ee_export.load(package, threads=4), intact)
    del kept


def test_packages_with_segments_at_the_root_do_not_share_weights(package: Path, tmp_path: Path, intact: Chain) -> None:
    flattened(package)
    other = copied(package, tmp_path / "other.ee")
    negate_heads(other / "weights.bin")
    chains = [ee_export.load(path, threads=1) for path in (package, with_manifest(other))]
    assert same_logits(chains[0], intact)
    assert not same_logits(chains[1], intact)


def test_a_damaged_file_at_the_root_is_refused(package: Path) -> None:
    negate_heads(flattened(package) / "weights.bin")
    with pytest.raises(BadPackage, match=r"weights\.bin: sha256 differs"):
        ee_export.load(package, threads=1)


def test_copies_of_a_package_share_their_sessions(package: Path, intact: Chain) -> None:
    again = ee_export.load(package, threads=1)
    assert all(ours is theirs for ours, theirs in zip(again.segments, intact.segments, strict=True))


def test_other_weights_under_the_same_manifest_entries_are_not_shared(package: Path, intact: Chain) -> None:
    negate_heads(package / WEIGHTS)
    changed = ee_export.load(with_manifest(package), threads=1)
    assert changed.segments[0].inputs == intact.segments[0].inputs
    assert not same_logits(changed, intact)


def test_chains_of_other_thread_counts_do_not_share(sample: Path, intact: Chain) -> None:
    assert ee_export.load(sample, threads=5).segments[0] is not intact.segments[0]


def swap_contents(package: Path, other: Path) -> None:
    for names in ((WEIGHTS, "aside"), (other / WEIGHTS, WEIGHTS)):
        (package / names[0]).rename(package / names[1])


def swap_contents_back(package: Path, other: Path) -> None:
    (package / WEIGHTS).rename(other / WEIGHTS)
    (package / "aside").rename(package / WEIGHTS)


def swap_folder(package: Path, other: Path) -> None:
    (package / "cpu-fp32").rename(package / "aside")
    (other / "cpu-fp32").rename(package / "cpu-fp32")


def swap_folder_back(package: Path, other: Path) -> None:
    (package / "cpu-fp32").rename(other / "cpu-fp32")
    (package / "aside").rename(package / "cpu-fp32")


def overwrite(package: Path, other: Path) -> None:
    (package / WEIGHTS).write_bytes((other / WEIGHTS).read_bytes())


def swap_package(package: Path, other: Path) -> None:
    package.rename(package.with_name("aside"))
    other.rename(package)


def swap_package_back(package: Path, other: Path) -> None:
    package.rename(other)
    package.with_name("aside").rename(package)


def swap_parent(package: Path, other: Path) -> None:
    swap_package(package.parent, other.parent)


def swap_parent_back(package: Path, other: Path) -> None:
    swap_package_back(package.parent, other.parent)


def nothing(package: Path, other: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (swap_contents, nothing),
        (swap_contents, swap_contents_back),
        (swap_folder, swap_folder_back),
        (overwrite, nothing),
        (swap_package, nothing),
        (swap_package, swap_package_back),
        (swap_parent, swap_parent_back),
    ],
    ids=["file", "file-and-back", "folder-and-back", "in-place", "package", "package-and-back", "parent-and-back"],
)
def test_files_swapped_during_a_load_never_answer(
    sample: Path,
    tmp_path: Path,
    intact: Chain,
    monkeypatch: pytest.MonkeyPatch,
    before: Callable[[Path, Path], None],
    after: Callable[[Path, Path], None],
) -> None:
    package, other = copied(sample, tmp_path / "a" / "x.ee"), copied(sample, tmp_path / "b" / "x.ee")
    negate_heads(other / WEIGHTS)
    with_manifest(other)
    hashed, lock = threading.Event(), threading.Lock()
    swapped: list[object] = []
    make_session, hash_files = ort.open_session, reading.Reading.hash

    def hash_then_tell(self, names):
        hashes = hash_files(self, names)
        hashed.set()
        return hashes

    def make_session_of_others(*arguments, **options):
        with lock:
            assert hashed.wait(30)
            if not swapped:
                before(package, other)
            session = make_session(*arguments, **options)
            swapped.append(session)
            if len(swapped) == len(intact.exits):
                after(package, other)
            return session

    monkeypatch.setattr(reading.Reading, "hash", hash_then_tell)
    monkeypatch.setattr(ort, "open_session", make_session_of_others)
    try:
        chain = ee_export.load(package, threads=6)
    except BadPackage as error:
        assert "load the package again" in str(error)
    else:
        assert len(swapped) == len(intact.exits)
        assert same_logits(chain, intact)


def test_a_package_replaced_during_a_load_is_refused(
    package: Path, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = copied(sample, tmp_path / "b.ee")
    negate_heads(other / WEIGHTS)
    with_manifest(other)
    require_files = packages._require_files

    def replaced_first(folder: Path, sizes):
        if other.exists():
            shutil.rmtree(package)
            other.rename(package)
            (package / "vision.onnx").touch()
        return require_files(folder, sizes)

    monkeypatch.setattr(packages, "_require_files", replaced_first)
    with pytest.raises(BadPackage, match="replaced while it was loaded; load the package again"):
        ee_export.load(package)


def test_a_load_into_memory_gives_the_same_logits(sample: Path, intact: Chain) -> None:
    held = ee_export.load(sample, threads=1, in_memory=True)
    assert held.segments[0] is not intact.segments[0]
    assert same_logits(held, intact)
    assert ee_export.load(sample, threads=1, in_memory=True).segments[0] is held.segments[0]


@pytest.mark.parametrize("damage", ["os.truncate(weights, 0)", "weights.write_bytes(bytes(weights.stat().st_size))"])
def test_files_damaged_after_a_load_into_memory_change_nothing(package: Path, damage: str) -> None:
    script = f"""
import os
import ee_export
from pathlib import Path
from tests.runtime.altered import some_arrays
package = Path({os.fspath(package)!r})
weights = package / "cpu-fp32" / "weights.bin"
chain = ee_export.load(package, threads=1, in_memory=True)
before = chain.logits(some_arrays(chain))
{damage}
after = chain.logits(some_arrays(chain))
print(all((before[name] == after[name]).all() for name in chain.exits))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr


def test_a_damaged_package_is_not_loaded_into_memory(package: Path) -> None:
    negate_heads(package / WEIGHTS)
    with pytest.raises(BadPackage, match=r"weights\.bin: sha256 differs"):
        ee_export.load(package, threads=1, in_memory=True)


def test_a_backend_that_opens_files_itself_refuses_to_load_into_memory(sample: Path) -> None:
    package = open_package(sample)
    target = replace(package.manifest.targets["cpu-fp32"], backend="openvino")
    package = replace(package, manifest=replace(package.manifest, targets={"cpu-bf16": target}))
    with pytest.raises(BadRequest, match=r"in_memory=True: cpu-bf16 runs on openvino.*leave it out"):
        open_segments(package, "cpu-bf16", 1, one_pool=False, in_memory=True)
