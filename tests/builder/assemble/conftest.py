"""Coloured pages, and a folder with them and a graph."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from ee_export.model.checkpoint import special_ids, train_tokenizer
from tests.builder.assemble.graphs import SIDE, TOP, flat_net, head_of, net, save_rows, text_net


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of three colours, 24 per class. The labels are the names of the colours."""
    folder = tmp_path_factory.mktemp("coloured") / "pages"
    rng = np.random.default_rng(1)
    for channel, label in ((2, "blue"), (1, "green"), (0, "red")):
        (folder / label).mkdir(parents=True)
        for number in range(24):
            pixels = rng.integers(0, 160, (20, 24, 3), np.uint8)
            pixels[..., channel] = rng.integers(120, 256, (20, 24))
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs and arrays of all kinds."""
    folder = tmp_path_factory.mktemp("graphs") / "base"
    folder.mkdir()
    newest = net()
    newest.opset_import[0].version = 99
    graphs = {
        "net": net(),
        "head": head_of(),
        "opset": newest,
        "small": flat_net(3, 8, 8, seed=1),
        "large": flat_net(3, SIDE, SIDE, seed=2),
        "rows": flat_net(5, seed=3),
    }
    for name, graph in graphs.items():
        onnx.save(graph, folder / f"{name}.onnx")
    rows, targets = save_rows(folder / "rows.npz")
    save_rows(folder / "wide.npz", measures=np.zeros((90, 6), np.float32))
    save_rows(folder / "purple.npz", ("blue", "green", "purple"))
    save_rows(folder / "index.npz", label=targets + 1)
    np.savez(folder / "bare.npz", measures=rows)
    rows[3, 2] = np.nan
    save_rows(folder / "nan.npz", measures=rows)
    return folder


@pytest.fixture
def folder(tmp_path: Path, pages: Path, base: Path) -> Path:
    """A folder of its own with the pages, the graphs and the arrays."""
    shutil.copytree(base, tmp_path / "own")
    (tmp_path / "own" / "pages").symlink_to(pages)
    return tmp_path / "own"


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    """Pages of words, a graph that reads them, and ``text.toml``, which makes a package without cuts."""
    rng = np.random.default_rng(4)
    names = {"blue": ["sea", "sky"], "green": ["leaf", "grass"], "red": ["rose", "fire"]}
    for label, words in names.items():
        (tmp_path / "pages" / label).mkdir(parents=True)
        for number in range(16):
            text = list(rng.choice([*words, "the", "a"], 1 + number % 5))
            (tmp_path / "pages" / label / f"{number}.json").write_text(json.dumps({"words": text}))
    tokenizer = train_tokenizer(iter([[word for words in names.values() for word in words]]), 300)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    onnx.save(text_net(tokenizer.get_vocab_size()), tmp_path / "net.onnx")
    graph = '[graph]\nfile = "net.onnx"\ninputs = {mask = "attention_mask"}\nzeros = ["token_type_ids"]\n'
    encoding = '[encoding]\ntokenizer = "tokenizer.json"\nmax_text_tokens = 24\n'
    ids = special_ids(tokenizer)
    ends = "".join(f"{key}_id = {ids[f'{key}_token_id']}\n" for key in ("bos", "eos", "pad"))
    (tmp_path / "text.toml").write_text(TOP + graph + encoding + ends)
    return tmp_path
