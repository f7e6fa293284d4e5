"""Labelled pages come from class folders, lists, Parquet files, saved data sets and tar archives, and are the same pages."""

import csv
import io
import json
import logging
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ee_export.data.dataset import read_dataset
from ee_export.data.labelled import Labelled, join
from ee_export.data.labelled.find import read_labelled, read_splits
from ee_export.errors import BadPage, EeError
from ee_export.model.device import Machine
from ee_export.model.recipe import TrainingRecipe
from ee_export.model.train import train

LABELS = ("invoice", "letter", "map")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of 15 small pages with words."""
    root = tmp_path_factory.mktemp("labelled") / "folders"
    rng = np.random.default_rng(0)
    for label in LABELS:
        (root / label).mkdir(parents=True)
        for number in range(5):
            file = root / label / f"{label}{number}.png"
            Image.fromarray(rng.integers(0, 256, (30, 20), np.uint8)).save(file)
            words = {"words": [label, f"no{number}"], "boxes": [[0, 0, 500, 90], [0, 100, 400, 200]]}
            file.with_suffix(".json").write_text(json.dumps(words))
    return root


def rows(folders: Path) -> list[dict[str, Any]]:
    """The pages in an order in which labels are mixed."""
    data = read_dataset(folders)
    order = np.random.default_rng(1).permutation(len(data)).tolist()
    return [
        {
            "file": data.paths[index],
            "label": data.labels[data.targets[index]],
            "number": data.targets[index],
            **json.loads(data.paths[index].with_suffix(".json").read_text()),
        }
        for index in order
    ]


def as_csv(folders: Path, out: Path) -> Path:
    shutil.copytree(folders, out / "pages")
    with (out / "pages.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows([Path("pages") / row["file"].relative_to(folders), row["label"]] for row in rows(folders))
    return out / "pages.csv"


def as_csv_with_words(folders: Path, out: Path) -> Path:
    (out / "words").mkdir()
    with (out / "pages.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "words", "label", "path"])
        writer.writeheader()
        for row in rows(folders):
            shutil.copy(row["file"], out)
            shutil.copy(row["file"].with_suffix(".json"), out / "words" / f"{row['file'].stem}-ocr.json")
            words = f"words/{row['file'].stem}-ocr.json"
            writer.writerow({"id": 1, "words": words, "label": row["label"], "path": row["file"].name})
    return out / "pages.csv"


def as_image_folder(folders: Path, out: Path) -> Path:
    lines = []
    for row in rows(folders):
        shutil.copy(row["file"], out)
        content = {"file_name": row["file"].name, "label": row["label"], "words": row["words"], "bboxes": row["boxes"]}
        lines.append(json.dumps(content))
    (out / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")
    return out


def as_tars(folders: Path, out: Path) -> Path:
    for index, row in enumerate(rows(folders)):
        with tarfile.open(out / f"shard-{index // 8}.tar", "a") as archive:

            def add(name: str, data: bytes, archive: tarfile.TarFile = archive) -> None:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))

            name = f"pages/{row['file'].stem}"
            add(f"{name}.png", row["file"].read_bytes())
            add(f"{name}.json", json.dumps({"words": row["words"], "boxes": row["boxes"]}).encode())
            add(f"{name}.cls", f"{row['label']}\n".encode())
    return out


def table_of(folders: Path, **columns: Any) -> Any:
    """An Arrow table as `datasets` makes it, with the class names in the schema's metadata."""
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed; `pip install 'ee_export[data]'`")
    pages = rows(folders)
    features = {"image": {"_type": "Image"}, "label": {"names": ["invoice", "letter", "map"], "_type": "ClassLabel"}}
    values = {
        "image": [{"bytes": row["file"].read_bytes(), "path": row["file"].name} for row in pages],
        "label": [row["number"] for row in pages],
        "words": [row["words"] for row in pages],
        "bboxes": [row["boxes"] for row in pages],
    }
    table = arrow.table({**values, **columns})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def as_parquet(folders: Path, out: Path) -> Path:
    table = table_of(folders)
    parquet = pytest.importorskip("pyarrow.parquet")
    (out / "data").mkdir()
    parquet.write_table(table.slice(0, 8), out / "data" / "part-0.parquet", row_group_size=3)
    parquet.write_table(table.slice(8), out / "data" / "part-1.parquet")
    return out


def as_saved(folders: Path, out: Path) -> Path:
    table = table_of(folders)
    ipc = pytest.importorskip("pyarrow.ipc")
    for index, part in enumerate((table.slice(0, 8), table.slice(8))):
        with (out / f"data-{index:05}-of-00002.arrow").open("wb") as file, ipc.new_stream(file, table.schema) as writer:
            writer.write_table(part, max_chunksize=3)
    files = [{"filename": f"data-{index:05}-of-00002.arrow"} for index in range(2)]
    (out / "state.json").write_text(json.dumps({"_data_files": files, "_split": None}))
    (out / "dataset_info.json").write_text("{}")
    return out


LAYOUTS = [as_csv, as_csv_with_words, as_image_folder, as_tars, as_parquet, as_saved]


def contents(data: Labelled) -> list[tuple[Any, ...]]:
    """Everything that is read of the pages, sorted."""
    pages = [(data.page(index), data.labels[data.targets[index]]) for index in range(len(data))]
    return sorted((label, *page.text(None), page.decode().tobytes()) for page, label in pages)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_holds_the_pages_of_the_class_folders(
    folders: Path, tmp_path: Path, layout: Callable[[Path, Path], Path]
) -> None:
    expected = read_dataset(folders)
    data = read_labelled(layout(folders, tmp_path))
    assert data.labels == LABELS
    assert contents(data) == contents(expected)
    backwards = data.subset(list(range(len(data)))[::-1][:9])
    for index in range(len(backwards)):
        page, same = backwards.page(index), data.page(len(data) - 1 - index)
        assert page.words == same.words and page.decode().tobytes() == same.decode().tobytes()
        assert page.name == same.name
    assert data.digest() == read_labelled(data.root, LABELS).digest() != backwards.digest()
    assert read_labelled(data.root, ("other", *LABELS)).targets == tuple(target + 1 for target in data.targets)
    with pytest.raises(EeError, match="is not a label of the model"):
        read_labelled(data.root, ("invoice", "map"))


def test_sets_of_different_layouts_are_joined_page_by_page(folders: Path, tmp_path: Path) -> None:
    tars, folder = read_labelled(as_tars(folders, tmp_path)), read_labelled(folders)
    joined = join([folder, tars, folder])
    assert contents(joined) == sorted([*contents(folder)] * 2 + contents(tars))
    assert joined.subset([16]).page(0).name == tars.page(1).name


def test_class_numbers_are_labels_in_the_order_of_their_values(folders: Path, tmp_path: Path) -> None:
    lines = ["path,label", *(f"{row['file']},{row['number'] + 9}" for row in rows(folders))]
    (tmp_path / "pages.csv").write_text("\ufeff" + "\r\n".join(lines))
    assert read_labelled(tmp_path / "pages.csv").labels == ("9", "10", "11")


def test_parts_for_training_and_validation_are_chosen_by_name(
    folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("train", "validation", "test"):
        shutil.copytree(folders, tmp_path / "folders" / name)
    shutil.rmtree(tmp_path / "folders" / "validation" / "map")
    with caplog.at_level(logging.WARNING, "ee_export"):
        train, val = read_splits(tmp_path / "folders")
    assert val is not None and (len(train), len(val)) == (15, 10)
    assert train.labels == val.labels == LABELS
    assert "passed over: test" in caplog.text

    as_tars(folders, tmp_path)
    (tmp_path / "shard-0.tar").rename(tmp_path / "train-0.tar")
    (tmp_path / "shard-1.tar").rename(tmp_path / "val-0.tar")
    train, val = read_splits(tmp_path)
    assert val is not None and (len(train), len(val)) == (8, 7)
    alone, nothing = read_splits(folders)
    assert nothing is None and len(alone) == 15

    (tmp_path / "classes" / "train").mkdir(parents=True)
    (tmp_path / "classes" / "test").mkdir()
    for name in ("train", "test"):
        shutil.copy(folders / "map" / "map0.png", tmp_path / "classes" / name)
    classes, nothing = read_splits(tmp_path / "classes")
    assert nothing is None and classes.labels == ("test", "train"), "class folders may have such names"


def test_images_that_a_list_lacks_are_counted(folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(folders / "map" / "map0.png", as_image_folder(folders, tmp_path) / "more.png")
    with caplog.at_level(logging.WARNING, "ee_export"):
        assert len(read_labelled(tmp_path)) == 15
    assert "passed over: 1 images that the list lacks" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "file,label\na.png,x\n", "a.csv: no column path; it has file, label; expected path or file_name"),
        ("a.csv", "path,class\na.png,x\n", "a.csv: no column label; it has path, class"),
        ("a.csv", "path,label\nb.png,x\n", "line 2: {}/b.png: no such file; paths count from the folder of a.csv"),
        ("a.csv", "path,label\na.png,\n", "a.csv: line 2: no label; fill in the column"),
        ("a.csv", "path,label\na.png,x,y\n", "line 2: the number of cells differs from the 2 columns of the header"),
        ("a.csv", "path,label\na.png,x\n", "only the label 'x'; a classifier needs at least two"),
        ("a.csv", "path,label\n", "a.csv: no pages"),
        ("a.csv", "", "a.csv: no pages"),
        ("a.csv", "path,label\n\udcff.png,x\n", "a.csv: not UTF-8"),
        ("a.csv", "path,label,words\na.png,x,b.json\n", "b.json: no such file"),
        ("a.jsonl", '{"path": "a.png"}', "a.jsonl: line 1: no column label; it has path"),
        ("a.jsonl", '{"path": "a.png", "label": true}', "label: found True, expected a name or a class number"),
        ("a.jsonl", '{"path": 3, "label": "x"}', "line 1: found 3, expected the path of a file"),
        ("a.jsonl", '["a.png"]', "line 1: found ['a.png'], expected an object"),
        ("a.jsonl", "path", "a.jsonl: line 1: not JSON"),
        ("a.txt", "a.png x", "a.txt: an unknown kind of file; expected .csv, .jsonl, .parquet, .tar or a folder"),
        ("a.tar", "no archive", "a.tar: cannot be read as a tar archive"),
        ("a.parquet", "no table", "a.parquet: cannot be read"),
    ],
)
def test_a_mistake_in_a_list_is_one_line_that_names_its_place(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(EeError) as refused:
        read_labelled(tmp_path / name)
    line = str(refused.value)
    assert message.format(tmp_path) in line and line.startswith(str(tmp_path)) and "\n" not in line


def test_a_mistake_in_an_archive_is_one_line_that_names_its_place(folders: Path, tmp_path: Path) -> None:
    whole = (as_tars(folders, tmp_path) / "shard-0.tar").read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[: 512 + 100])
    packed = tmp_path / "a.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(folders / "map" / "map0.png", "a.png")
    bare = tmp_path / "bare.tar"
    with tarfile.open(bare, "w") as archive:
        archive.add(folders / "map" / "map0.png", "a.png")
    for file, message in (
        (cut, "cut.tar: cannot be read as a tar archive (unexpected end of data); copy it again"),
        (packed, "a.tar.gz: cannot be read as a tar archive (compressed, and pages are read at their places)"),
        (bare, "bare.tar/a: label: found None, expected a name or a class number"),
    ):
        with pytest.raises(EeError, match=message.replace("(", r"\(").replace(")", r"\)")):
            read_labelled(file)


def test_a_mistake_in_a_table_is_one_line_that_names_its_place(folders: Path, tmp_path: Path) -> None:
    good = table_of(folders)
    parquet = pytest.importorskip("pyarrow.parquet")
    number = good.schema.get_field_index("label")
    bad = {
        "label 7: expected 0 to 2": good.set_column(number, "label", [[7] * 15]),
        "no column label; it has image, words, bboxes": good.drop_columns(["label"]),
        "no column image; it has label": good.select(["label"]).replace_schema_metadata({}),
    }
    for message, table in bad.items():
        parquet.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(EeError, match=f"^{tmp_path}/a.parquet.*{message}"):
            read_labelled(tmp_path / "a.parquet")
    empty = good.set_column(0, "image", [[{"bytes": None, "path": None}] * 15])
    parquet.write_table(empty, tmp_path / "a.parquet")
    with pytest.raises(BadPage, match=r"a.parquet/0: neither the bytes of an image nor a path"):
        read_labelled(tmp_path / "a.parquet").page(0)
    saved = as_saved(folders, tmp_path)
    (saved / "data-00001-of-00002.arrow").write_bytes((saved / "data-00001-of-00002.arrow").read_bytes()[:-900])
    with pytest.raises(EeError, match=r"data-00001-of-00002\.arrow: cannot be read"):
        read_labelled(saved)
    (saved / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(EeError, match=r"data-00001-of-00002\.arrow: missing; copy the folder again"):
        read_labelled(saved)


def test_training_from_archives_in_worker_processes_ends_with_the_weights_of_training_from_folders(
    folders: Path, tmp_path: Path
) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    sizes |= {"image_size": 64, "patch_size": 32, "image_mode": "L", "exits": []}
    recipe = TrainingRecipe(trunk="vit", model=sizes, epochs=2, batch_size=5)
    weights = []
    for name, workers in (("folders", 0), ("tars", 2)):
        (tmp_path / name).mkdir()
        data: Labelled = read_dataset(folders)
        if name == "tars":
            tars = read_labelled(as_tars(folders, tmp_path / name))
            names = [path.name for path in tars.paths]
            data = tars.subset([names.index(path.stem) for path in data.paths])  # in the order of the folders
        lines: list[str] = []
        out = train(
            data,
            data,
            tmp_path / name / "out",
            recipe,
            None,
            lambda stage, done, total: None,
            False,
            machine=Machine(workers=workers),
            report=lines.append,
        )
        weights.append(load_file(out / "model.safetensors"))
        assert len(lines) == 3 and "to validate" in lines[0] and "kept epoch" in lines[2]
        assert sorted(path.name for path in (tmp_path / name).iterdir() if path.name.startswith("out")) == ["out"]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
