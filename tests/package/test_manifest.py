"""Fields of a manifest that a later stage would stumble over: refused at load, by name."""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ee_export.errors import BadPackage
from ee_export.package.manifest import to_json
from ee_export.package.read_manifest import from_json
from ee_export.package.store import open_package
from ee_export.package.write import seal

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def manifest(sample: Path) -> dict[str, Any]:
    """The sample's manifest, to change."""
    fields: dict[str, Any] = json.loads((sample / "manifest.json").read_bytes())
    return fields


def target(manifest: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = manifest["targets"]["cpu-fp32"]
    return fields


def point(manifest: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = target(manifest)["operating_points"]["default"]
    return fields


def predicts_failures(manifest: dict[str, Any]) -> None:
    point(manifest).update(criterion="failure_prediction", weights={name: [0.0] for name in manifest["exits"]})


CHANGES: list[tuple[Change, str]] = [
    (lambda m: m.update(labels=["a", "", *m["labels"][2:]]), r"labels\[1\]"),
    (lambda m: m.update(labels=["a\x1b[31m", *m["labels"][1:]]), r"labels\[0\]: found .* without control characters"),
    (lambda m: m.update(labels=["caf\u00e9", "cafe\u0301", *m["labels"][2:]]), "labels: found 7, 6 of them different"),
    (lambda m: m.update(exits=[]), r"exits: found \[\], expected one exit or more"),
    (lambda m: m.update(exits=["-x", *m["exits"][1:]]), r"exits\[0\]: found \"-x\", expected 1 to 64 letters"),
    (lambda m: m.update(exits=["a" * 65, *m["exits"][1:]]), r"exits\[0\]: found .*expected 1 to 64 letters"),
    (lambda m: m.update(exits=["ocr", *m["exits"][1:]]), r"exits\[0\]: .*not 'source' or 'ocr'"),
    (lambda m: m.update(exits=[*m["exits"], "Vision"]), r"exits\[\d+\]: found \"Vision\", expected each exit once"),
    (lambda m: m.update(exits=[*m["exits"], "vision.gate"]), r"exits\[\d+\]: .*as the gate of another exit"),
    (lambda m: m.update(exits=["text.0", *m["exits"][1:]]), r"exits\[0\]: found \"text.0\", expected text\.<p>"),
    (lambda m: m.update(exits=["vision.1", *m["exits"][1:]]), r"cpu-fp32\.segments: not one segment for each exit"),
    (lambda m: m["encoding"].update(image_size=0), r"encoding\.image_size: found 0, expected a number in 1 to 4,096"),
    (lambda m: m["encoding"].update(image_size=10**9), r"encoding\.image_size"),
    (lambda m: m["encoding"].update(image_mode="CMYK"), r"encoding\.image_mode"),
    (lambda m: m["encoding"].update(image_mean=[0.5]), r"encoding\.image_mean: .*expected 3 numbers"),
    (lambda m: m["encoding"].update(image_std=[0.5, 0, 0.5]), r"encoding\.image_std\[1\]"),
    (lambda m: m["encoding"].update(resample="cubic"), r"encoding\.resample: .*nearest, box, .*lanczos"),
    (lambda m: m["encoding"].update(resize_to=224), r"encoding\.resize_to"),
    (lambda m: m["encoding"].update(resize_to=[224, 224, 3]), r"encoding\.resize_to: .*no, one or two sides"),
    (lambda m: m["encoding"].update(resize_to=[256.5], center_crop=True), r"encoding\.resize_to\[0\]"),
    (lambda m: m["encoding"].update(resize_to=[0], center_crop=True), r"encoding\.resize_to\[0\].*1 to 4,096"),
    (lambda m: m["encoding"].update(resize_to=[9000], center_crop=True), r"encoding\.resize_to\[0\].*1 to 4,096"),
    (lambda m: m["encoding"].update(resize_to=[256, 256]), r"encoding\.resize_to: .*224, the image_size, without"),
    (lambda m: m["encoding"].update(resize_to=[256]), r"encoding\.resize_to: .*without center_crop"),
    (lambda m: m["encoding"].update(center_crop=1), r"encoding\.center_crop: .*true or false"),
    (lambda m: m["encoding"].update(rescale=0), r"encoding\.rescale"),
    (lambda m: m["encoding"].update(rescale=float("inf")), r"encoding\.rescale|Infinity"),
    (lambda m: m["encoding"].update(bgr="yes"), r"encoding\.bgr: .*true or false"),
    (lambda m: m["encoding"].update(draft=None), r"encoding\.draft: .*true or false"),
    (lambda m: m["encoding"].update(max_text_tokens=1), r"encoding\.max_text_tokens"),
    (lambda m: m["encoding"].update(bos_id=-1), r"encoding\.bos_id"),
    (lambda m: m["encoding"].update(vocab_size=2, eos_id=2), r"encoding\.eos_id: found 2, expected a number in 0 to 1"),
    (lambda m: m["encoding"].update(bands=[50, 40]), r"encoding\.bands"),
    (lambda m: m["inputs"].update(sound="image"), r"inputs\.sound: unknown input"),
    (lambda m: m["inputs"].update(bbox="image"), r"inputs\.bbox: found \"image\", expected 'text'"),
    (lambda m: m["inputs"].pop("bbox"), r"inputs\.bbox: neither an input of the package nor made by a segment"),
    (lambda m: m["model"].update(layers=0), r"model\.layers"),
    (lambda m: m.update(targets={}), "targets: found 0"),
    (lambda m: m["targets"].update({"../x": target(m)}), r"targets\.\.\./x: .*plain name"),
    (lambda m: target(m).update(tolerance=-1), r"cpu-fp32\.tolerance"),
    (lambda m: target(m)["equality"].update(x=1), r"equality\.x"),
    (lambda m: target(m)["segments"][0]["inputs"][0].update(dtype="float16"), r"inputs\.pixel_values: found"),
    (lambda m: target(m)["segments"][0]["outputs"][0].update(shape=["B", 6]), r"segments\.vision\.outputs: the first"),
    (lambda m: target(m)["segments"][3]["outputs"].append(target(m)["segments"][3]["outputs"][1]), "made twice"),
    (lambda m: target(m)["segments"][3]["outputs"][1].update(shape=["T", "B"]), r"outputs\.text\.shape"),
    (lambda m: target(m)["segments"][3]["outputs"][1].update(dtype="object"), r"outputs\.text\.dtype"),
    (lambda m: target(m)["costs"].update(tokens=[]), r"costs\.tokens"),
    (lambda m: target(m)["costs"].update(tokens=[2, 32, 32, 128, 256]), r"costs\.tokens: .*rise"),
    (lambda m: target(m)["costs"]["segments_ms"]["text"].pop(), r"segments_ms\.text: .*one number for each"),
    (lambda m: target(m)["costs"]["segments_ms"]["text"].insert(0, -1), "segments_ms"),
    (lambda m: target(m)["costs"].update(ocr_ms=-1), r"costs\.ocr_ms"),
    (lambda m: target(m)["costs"].update(runs=0), r"costs\.runs"),
    (lambda m: target(m)["calibration"]["text"].update(scale=[1e300] * 7), r"calibration\.text\.scale\[0\]"),
    (lambda m: point(m)["thresholds"].update(vision=1e12), r"thresholds\.vision"),
    (lambda m: point(m).update(criterion="gate"), r"thresholds\.\S+: the criterion 'gate' needs a gate"),
    (lambda m: point(m).update(criterion="failure_prediction"), r"default\.weights\.vision: missing"),
    (predicts_failures, r"default\.weights\.vision: .*14 numbers"),
    (lambda m: point(m).update(weights={"x": [1.0]}), r"default\.weights\.x"),
    (lambda m: point(m)["measured"].pop("accuracy"), r"measured\.accuracy: missing"),
    (lambda m: point(m)["seen"]["exits"].pop("text"), r"seen\.exits\.text: missing"),
    (lambda m: point(m)["seen"]["scores"]["text"].pop(), r"seen\.scores\.text: .*20 counts"),
    (lambda m: point(m)["seen"]["scores"]["text"].__setitem__(0, 2**40), r"seen\.scores\.text\.0"),
    (lambda m: point(m).update(data="abc"), r"default\.data: .*sha256"),
    (lambda m: point(m)["certificate"].update(epsilon=0), r"certificate\.epsilon"),
    (lambda m: point(m)["certificate"].update(delta=1.5), r"certificate\.delta"),
    (lambda m: point(m)["certificate"].update(delta=None), r"certificate\.delta: found null, expected a number"),
    (lambda m: point(m)["certificate"].update(method="conformal_risk_control"), r"certificate\.delta.*expected null"),
    (lambda m: point(m)["certificate"].update(method="trust_me"), r"certificate\.method"),
    (lambda m: point(m)["certificate"].update(risk="acc"), r'certificate\.risk: found "acc"'),
    (lambda m: point(m)["certificate"].update(losses=138), r"certificate\.losses: found 138"),
    (lambda m: target(m)["operating_points"].update({"a/b": point(m)}), r"operating_points\.a/b: .*plain name"),
    (lambda m: target(m).update(backend="tensorrt"), r"compiled\.visual_tokens: missing"),
    (lambda m: target(m).update(compiled={"visual_tokens": "many"}), r"compiled\.visual_tokens"),
    (lambda m: m["split"]["pages"].pop("certify"), r"split\.pages\.certify: missing"),
    (lambda m: m["split"].update(data="0"), r"split\.data"),
    (lambda m: m["files"]["golden.npz"].update(sha256="0" * 63), r"files\.golden\.npz\.sha256"),
    (lambda m: m["files"]["golden.npz"].update(size=-1), r"files\.golden\.npz\.size"),
    (lambda m: m["files"].update({"Golden.npz": m["files"]["golden.npz"]}), "differs from 'golden.npz' in case"),
    (lambda m: m["files"].update({"manifest.json": m["files"]["golden.npz"]}), "not a plain path"),
    (lambda m: m["files"].update({"a\x1b[2J": m["files"]["golden.npz"]}), "not a plain path"),
    (lambda m: m["files"].update({"a/" * 600 + "b": m["files"]["golden.npz"]}), "not a plain path"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_value_out_of_range_names_its_field(manifest: dict[str, Any], change: Change, message: str) -> None:
    change(manifest)
    with pytest.raises(BadPackage, match=message) as refused:
        from_json(json.dumps(manifest).encode(), "a.ee/manifest.json")
    text = str(refused.value)
    assert text.startswith("a.ee/manifest.json: ") and text.endswith("rebuild it with `ee-export build`")
    assert len(text) < 400 and text.isprintable()


def test_a_manifest_is_read_as_it_is_written(manifest: dict[str, Any]) -> None:
    whole = from_json(json.dumps(manifest).encode(), "x")
    assert from_json(to_json(whole), "x") == whole


@pytest.mark.parametrize(
    "fields",
    [
        {"resample": "lanczos", "resize_to": (256, 300), "center_crop": True, "rescale": 1 / 127.5, "draft": False},
        {"resample": "nearest", "resize_to": (256,), "center_crop": True, "bgr": True},
        {"resize_to": (), "image_mean": (0.0,) * 3, "image_std": (1.0,) * 3, "rescale": 1.0},
        {"resize_to": (224,)},
        {"resize_to": (224, 224)},
    ],
)
def test_how_a_brought_model_reads_images_is_read_as_it_is_written(
    manifest: dict[str, Any], fields: dict[str, Any]
) -> None:
    whole = from_json(json.dumps(manifest).encode(), "x")
    brought = replace(whole, encoding=replace(whole.page_encoding(), **fields))
    assert from_json(to_json(brought), "x") == brought


def test_a_manifest_that_cannot_be_opened_is_not_written(sample: Path, tmp_path: Path) -> None:
    whole = open_package(sample).manifest
    with pytest.raises(BadPackage, match=r"encoding\.max_text_tokens: .*nothing was written"):
        seal(tmp_path, replace(whole, encoding=replace(whole.page_encoding(), max_text_tokens=0)))
    assert list(tmp_path.iterdir()) == []


def test_labels_of_any_language_are_read(manifest: dict[str, Any]) -> None:
    manifest["labels"] = ["فاتورة", "請求書", "می‌خواهم", "счёт", "τιμολόγιο", "חשבונית", "🧾"]
    assert from_json(json.dumps(manifest).encode(), "x").labels[2] == "می‌خواهم"


VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    2**63,
    1e308,
    0.5,
    "",
    "x" * 5000,
    "\x1b[31m",
    [],
    {},
    [[[]]],
    {"a": {}},
    "final",
    10**30,
]


def test_a_thousand_changed_manifests_are_read_or_refused(manifest: dict[str, Any]) -> None:
    chance = random.Random(0)
    text = json.dumps(manifest)
    for _ in range(1000):
        changed = json.loads(text)
        owner, key = changed, chance.choice(list(changed))
        while isinstance(owner[key], dict | list) and owner[key] and chance.random() < 0.85:
            owner = owner[key]
            key = chance.choice(list(owner)) if isinstance(owner, dict) else chance.randrange(len(owner))
        if chance.random() < 0.3:
            del owner[key]
        else:
            owner[key] = chance.choice(VALUES)
        try:
            from_json(json.dumps(changed).encode(), "manifest.json")
        except BadPackage as error:
            assert len(str(error)) < 500 and str(error).isprintable()


def folder_with(manifest: Callable[[Path], object], folder: Path) -> Path:
    folder.mkdir()
    manifest(folder / "manifest.json")
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: os.mkfifo(path), "not a plain file"),
        (lambda path: path.mkdir(), "not a plain file"),
        (lambda path: path.symlink_to("/dev/zero"), "plain file"),
        (lambda path: path.write_bytes(b" " * (4 * 2**20 + 1)), "too large for a manifest"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    with pytest.raises(BadPackage, match=message):
        open_package(folder_with(make, tmp_path / "a.ee"))


@pytest.mark.parametrize("name", [".DS_Store", "cpu-fp32/.DS_Store", "extra/deep/file", "x\x1b[31m"])
def test_files_that_the_manifest_does_not_list_are_refused(sample: Path, tmp_path: Path, name: str) -> None:
    package = Path(shutil.copytree(sample, tmp_path / "a.ee"))
    (package / name).parent.mkdir(parents=True, exist_ok=True)
    (package / name).write_text("?")
    with pytest.raises(BadPackage, match="not part of the package; remove it") as refused:
        open_package(package)
    assert str(refused.value).isprintable()


def test_a_folder_of_many_files_is_not_walked(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(shutil.copytree(sample, tmp_path / "a.ee"))
    (package / "cache").mkdir()
    for number in range(3000):
        (package / "cache" / str(number)).touch()
    listed: list[str] = []
    scandir = os.scandir

    def noting(path: Any) -> Any:
        listed.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", noting)
    with pytest.raises(BadPackage, match="cache: not part of the package"):
        open_package(package)
    assert not any("cache" in path for path in listed)
