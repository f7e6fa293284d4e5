"""Load a fine-tuned checkpoint of transformers with its labels, image processor and tokenizer, and add exits."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from tokenizers import Tokenizer

from ee_export.errors import BadCheckpoint, BadRequest, printable, shorten
from ee_export.model.checkpoint import catch_load_errors, read_config, silence_transformers, train_tokenizer
from ee_export.model.early_exit import EarlyExitModel
from ee_export.model.families import FAMILIES, PREFIX, require_trunk
from ee_export.model.processor import image_encoding, load_processor
from ee_export.model.source_tokenizer import text_encoding
from ee_export.package.ranges import require_labels, to_nfc
from ee_export.package.strict_json import Refused

_FILES = ["*.json", "*.safetensors", "pytorch_model*.bin", "*.txt", "*.model"]
"""Files to fetch from the Hugging Face hub. The only pickles are weights, which are loaded with ``weights_only``."""
_CLASSIFIERS = ("classifier.", "cls_classifier.")
"""Prefixes of the names of classifier weights."""
_TASKS = ("ForSequenceClassification", "ForImageClassification")


def find_checkpoint(name: str) -> Path:
    """Find the folder of a checkpoint.

    Args:
        name: a folder, or the name of a model on the Hugging Face hub, in its cache or online.

    Raises:
        BadCheckpoint: it is neither.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise BadCheckpoint(f"{name}: a file, expected the folder that `save_pretrained` wrote")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except HFValidationError:
        raise BadCheckpoint(f"{name}: no such folder; name the folder that `save_pretrained` wrote") from None
    except Exception as error:  # errors of requests, httpx or the hub, depending on cause and version
        raise BadCheckpoint(
            f"{name}: no such folder, and no model on the Hugging Face hub that can be had here ({shorten(error)}); name the folder "
            "that `save_pretrained` wrote, or download the model first"
        ) from None


def load_source(
    folder: Path, exits: Sequence[str] | None = None, labels: Mapping[str, str] | None = None
) -> tuple[EarlyExitModel, Tokenizer]:
    """Load a stock checkpoint with untrained heads at its exits. All other weights, in float32, are those of the files.

    The head of the exit ``vision`` reads pixels, because embeddings of patches hold little information on a page.

    Args:
        folder: config.json, weights (safetensors or ``pytorch_model.bin``, in one file or in shards), and the files of
            the image processor and of the tokenizer.
        exits: names of exits, default :func:`default_exits`.
        labels: new names of labels, by the checkpoint's own, such as ``{"LABEL_0": "invoice"}``.

    Raises:
        BadCheckpoint: a file is missing or damaged, the model is of an unknown type or no classifier, its weights do
            not fit its configuration, or its pages are encoded in a way that cannot be reproduced. The message names
            the file.
        BadRequest: an exit is unknown to the model, or ``labels`` names a label that it does not have.
    """
    content = read_config(folder)
    family = family_of(folder, content)
    id2label = rename_labels(folder, labels_in(folder, content), labels)
    with catch_load_errors(folder), silence_transformers():
        config = family.config_class.from_pretrained(
            folder, id2label=dict(enumerate(id2label)), label2id={label: index for index, label in enumerate(id2label)}
        )
        config.exits = list(default_exits(config) if exits is None else exits)
        if "vision" in config.exit_names():  # raises an error for exits that the trunk does not have
            config.heads = {"vision": {"reads": "pixels"}}
    encoding: dict[str, Any] = {}
    if family.reads("image"):
        side = _find_side(folder, config)
        encoding |= {"image_size": side, **image_encoding(folder, side, config.num_channels)}
    if family.reads("text"):
        with_boxes = "bbox" in family.INPUTS
        tokenizer, fields = text_encoding(
            folder, content["model_type"], config.vocab_size, config.longest_text, with_boxes
        )
        encoding |= fields
        config.max_text_tokens = encoding["max_text_tokens"]
        for field, name in (("bos_token_id", "bos_id"), ("eos_token_id", "eos_id"), ("pad_token_id", "pad_id")):
            if getattr(config, field) is None:
                setattr(config, field, encoding[name])
    else:
        tokenizer = train_tokenizer(iter([]), 0)
    encoding["bands"] = []
    config.encoding = encoding
    return _load_weights(folder, family, config), tokenizer


def family_of(folder: Path, content: Mapping[str, Any]) -> type[EarlyExitModel]:
    """Find the family of a stock classifier by its configuration. Raises BadCheckpoint for another model."""
    path, model_type = folder / "config.json", content.get("model_type")
    if isinstance(model_type, str) and model_type.startswith(PREFIX):
        raise BadCheckpoint(
            f"{path}: model_type is '{printable(model_type)}', which has exits already; run `ee-export build`"
        )
    family = FAMILIES[require_trunk(path, model_type)]
    architectures = content.get("architectures") or []
    if not any(task in str(name) for name in architectures for task in _TASKS):
        raise BadCheckpoint(
            f"{path}: architectures is {printable(shorten(architectures))}, expected a classifier (…{' or …'.join(_TASKS)}); "
            "fine-tune one first"
        )
    if content.get("problem_type") in ("multi_label_classification", "regression"):
        raise BadCheckpoint(
            f"{path}: problem_type is '{content['problem_type']}', expected a classifier with one label a page; fine-tune one"
        )
    return family


def labels_in(folder: Path, content: Mapping[str, Any]) -> list[str]:
    """Read labels in the order of the logits from ``id2label``.

    Raises BadCheckpoint if a number is missing or a name repeated.
    """
    path, table = folder / "config.json", content.get("id2label")
    if table is None:
        count = content.get("num_labels", 2)
        table = {str(number): f"LABEL_{number}" for number in range(count if isinstance(count, int) else 0)}
    if not isinstance(table, dict) or set(table) != {str(number) for number in range(len(table))}:
        raise BadCheckpoint(f"{path}: id2label is {printable(shorten(table))}, expected a label for each of 0, 1, …")
    labels = [table[str(number)] for number in range(len(table))]
    if not all(isinstance(label, str) for label in labels):
        raise BadCheckpoint(f"{path}: id2label is {printable(shorten(table))}, expected names")
    return labels


def classifier_labels(folder: Path) -> tuple[str, ...] | None:
    """Read the labels of a checkpoint's classifier, in its order, ``None`` if it has no trained classifier.

    Raises:
        BadCheckpoint: config.json or model.safetensors is damaged.
    """
    weights = folder / "model.safetensors"
    if not weights.is_file():
        return None
    with catch_load_errors(folder), safe_open(weights, "np") as file:
        names = list(file.keys())
    if not any(name.startswith(_CLASSIFIERS) for name in names):
        return None
    return tuple(labels_in(folder, read_config(folder)))


def rename_labels(folder: Path, labels: Sequence[str], names: Mapping[str, str] | None) -> list[str]:
    """Rename labels as the user states."""
    for name in names or {}:
        if name not in labels:
            raise BadRequest(
                f"--labels: '{printable(shorten(name))}' is no label of {folder}, which has {printable(shorten(', '.join(labels)))}"
            )
    renamed = [(names or {}).get(label, label) for label in labels]
    if names and (twice := [label for label, count in Counter(map(to_nfc, renamed)).items() if count > 1]):
        raise BadRequest(
            f"--labels: two labels would be '{printable(shorten(twice[0]))}'; give each label a name of its own"
        )
    try:
        require_labels(renamed)
    except Refused as error:
        raise BadCheckpoint(f"{folder / 'config.json'}: id2label: {error}; give other names with --labels") from None
    return renamed


def read_labels(path: Path) -> dict[str, str]:
    """Read new label names by the checkpoint's own, from a JSON file. Raises BadRequest."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BadRequest(f"--labels {path}: cannot be read ({shorten(error)}); write a JSON object") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content.values()):
        raise BadRequest(f'--labels {path}: expected a JSON object of names, such as {{"LABEL_0": "invoice"}}')
    return content


def default_exits(config: Any) -> tuple[str, ...]:
    """Default exits: after a quarter, a half and three quarters of the layers, and after the embeddings."""
    layers = config.num_hidden_layers
    depths = sorted({max(1, round(layers * share)) for share in (0.25, 0.5, 0.75)} - {layers})
    return (
        *(name for name in ("vision", "text") if name in config.BEFORE_ENCODER),
        *(f"encoder.{depth}" for depth in depths),
    )


def _find_side(folder: Path, config: Any) -> int:
    """Find the side of the model's images in pixels: its configuration's, or its processor's if it accepts any size."""
    if not getattr(config, "any_size", False):
        return int(config.input_size)
    processor = load_processor(folder)
    with catch_load_errors(folder), silence_transformers():
        return int(processor(Image.new("RGB", (300, 400)), return_tensors="np")["pixel_values"].shape[-1])


def _load_weights(folder: Path, family: type[EarlyExitModel], config: Any) -> EarlyExitModel:
    with catch_load_errors(folder), silence_transformers():
        model, info = family.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that the mismatch can be named
            weights_only=True,
            local_files_only=True,
        )
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(("exits.", "shared_gate.")))
    if info["mismatched_keys"]:
        name, stored, needed = sorted(info["mismatched_keys"])[0]
        raise BadCheckpoint(
            f"{folder}: weight {printable(shorten(name))} is {list(stored)}, and config.json needs {list(needed)}; take the "
            "config.json that was saved with these weights"
        )
    if missing:
        raise BadCheckpoint(
            f"{folder}: lacks the weight {printable(shorten(missing[0]))}; copy the checkpoint again, or fine-tune the classifier"
        )
    unexpected = sorted(info["unexpected_keys"])
    if unexpected:
        raise BadCheckpoint(
            f"{folder}: has the weight {printable(shorten(unexpected[0]))}, which such a model does not use; take the config.json "
            "that was saved with these weights"
        )
    return model.eval()
