"""Checkpoints without pickles: config.json, model.safetensors and tokenizer.json in one folder."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer
from transformers.utils import logging

from ee_export.data.tokenizer import FIT_ROWS, LARGEST, read_whole_tokenizer, require_rows
from ee_export.errors import BadCheckpoint, BadRequest, EeError, require_known, shorten
from ee_export.model.early_exit import EarlyExitModel
from ee_export.model.families import FAMILIES, PREFIX, require_trunk
from ee_export.model.parts import PartedModel, encoder_inputs
from ee_export.model.strategies import head_prefix
from ee_export.package.encoding import ORDERS, UNSTATED, Encoding

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

_AGAIN = "copy the checkpoint again"

ENDS = {"bos_token_id": ("[CLS]", "<s>"), "eos_token_id": ("[SEP]", "</s>"), "pad_token_id": ("[PAD]", "<pad>")}
"""Fields of a configuration for the tokens that begin, end and fill a text, with their names in tokenizers."""


def save(folder: Path, model: EarlyExitModel, tokenizer: Tokenizer, dtype: torch.dtype) -> None:
    """Write a checkpoint into an existing folder, weights rounded to ``dtype`` (``float16`` halves the file)."""
    weights = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in model.state_dict().items()
    }
    with silence_transformers():
        model.save_pretrained(folder, state_dict=weights)
    tokenizer.save(str(folder / "tokenizer.json"))


def load(folder: Path) -> tuple[EarlyExitModel, Tokenizer]:
    """Load an early-exit model in fp32, in evaluation mode, and its tokenizer.

    Raises:
        BadCheckpoint: the folder lacks one of the three files, one is damaged, or it is no early-exit checkpoint.
    """
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise BadCheckpoint(f"{folder / name}: missing; expected a checkpoint that `ee-export train` wrote")
    model_type = str(read_config(folder).get("model_type"))
    family = FAMILIES.get(model_type.removeprefix(PREFIX)) if model_type.startswith(PREFIX) else None
    if family is None:
        expected = ", ".join(PREFIX + name for name in FAMILIES.names())
        raise BadCheckpoint(
            f"{folder / 'config.json'}: model_type is '{model_type}', expected one of {expected}; a stock model has no exits: "
            "train them with `ee-export train DATA --init FOLDER`"
        )
    with catch_load_errors(folder), silence_transformers():
        model, info = family.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        tokenizer = _read_tokenizer(folder)
    _require_rows(folder, model, tokenizer)
    if info["missing_keys"] or info["unexpected_keys"]:
        wrong = sorted(info["missing_keys"] or info["unexpected_keys"])[0]
        kind = "lacks" if info["missing_keys"] else "has an unknown"
        raise BadCheckpoint(
            f"{folder / 'model.safetensors'}: {kind} weight {wrong}; config.json belongs to another model"
        )
    return model.eval(), tokenizer


def load_stock(
    folder: Path, config_changes: dict[str, Any], trunk: str = "layoutlmv3", *, new_classifier: bool = False
) -> tuple[EarlyExitModel, Tokenizer]:
    """Load a stock checkpoint of a trunk (such as a downloaded ``microsoft/layoutlmv3-base``), and add untrained exits.

    Args:
        folder: the checkpoint.
        config_changes: fields of its configuration, such as exits and labels.
        trunk: the kind of trunk it must be.
        new_classifier: true for an untrained classifier, even if the checkpoint has one of this size.

    Raises:
        BadCheckpoint: there is no such model in safetensors form, or no tokenizer although it reads text.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise BadCheckpoint(f"{folder / name}: missing; --init takes a checkpoint folder with safetensors")
    family = FAMILIES[trunk_of(folder, trunk, "the recipe")]
    with catch_load_errors(folder), silence_transformers():
        config = family.config_class.from_pretrained(folder, **config_changes)
        tokenizer = _stock_tokenizer(folder, family)
        for name, value in special_ids(tokenizer).items():
            if getattr(config, name) is None:  # a BERT's configuration leaves them to its tokenizer
                setattr(config, name, value)
        model, info = family.from_pretrained(
            folder, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
    for name, stored, needed in sorted(info["mismatched_keys"]):
        if not name.startswith((*head_prefix("final"), "exits.")):  # a classifier of other labels is untrained
            raise BadCheckpoint(
                f"{folder}: weight {name} is {list(stored)}, and the configuration needs {list(needed)}; take sizes out of the recipe's "
                "[model]"
            )
    if new_classifier:
        untrained = dict(family(config).named_parameters())
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.startswith(head_prefix("final")):
                    weight.copy_(untrained[name])
    _require_rows(folder, model, tokenizer)
    for name, tokens in ENDS.items():
        if getattr(config, name) is None:
            raise BadCheckpoint(
                f"{folder / 'config.json'}: has no {name}, and the tokenizer has none of {', '.join(tokens)}; set {name} to "
                "the id of that token"
            )
    return model, tokenizer


def read_config(folder: Path) -> dict[str, Any]:
    """Read the contents of a checkpoint's config.json. Raises BadCheckpoint."""
    path = folder / "config.json"
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadCheckpoint(f"{path}: missing; expected a checkpoint that `save_pretrained` wrote") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path}: cannot be read ({shorten(error)}); copy the checkpoint again") from None
    if not isinstance(content, dict):
        raise BadCheckpoint(f"{path}: not a JSON object; copy the checkpoint again")
    return content


def trunk_of(folder: Path, expected: str | None = None, named_by: str = "") -> str:
    """The kind of trunk of a checkpoint, stock or with exits, from its config.json.

    Args:
        folder: the checkpoint.
        expected: the required kind, ``None`` for any.
        named_by: the option or file that names ``expected``, for the message.

    Raises:
        BadCheckpoint: config.json cannot be read, or names another kind of trunk than ``expected`` or an unknown one.
        BadRequest: ``expected`` is unknown.
    """
    if expected is not None:
        FAMILIES.find(expected)
    path, model_type = folder / "config.json", read_config(folder).get("model_type")
    trunk = require_trunk(path, model_type.removeprefix(PREFIX) if isinstance(model_type, str) else model_type)
    if expected not in (None, trunk):
        raise BadCheckpoint(
            f"{path}: model_type is '{model_type}', expected '{expected}', which {named_by} names; name '{trunk}' there, or take "
            "another checkpoint"
        )
    return trunk


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the tokens that begin, end and fill a text, by field of a configuration, if the tokenizer has them."""
    ids_by_field = {}
    for name, tokens in ENDS.items():
        if ids := [known for token in tokens if (known := tokenizer.token_to_id(token)) is not None]:
            ids_by_field[name] = ids[0]
    return ids_by_field


def train_tokenizer(texts: Iterator[list[str]], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer with RoBERTa's special tokens (``<s>`` 0, ``<pad>`` 1, ``</s>`` 2)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((word for words in texts for word in words), trainer)
    return tokenizer


def encoding_of(config: Any) -> Encoding:
    """The encoding of pages for a model of this configuration.

    Raises:
        BadRequest: the trunk has too few positions for its tokens, or pages are resized in an unknown order.
    """
    resize = getattr(config, "resize", UNSTATED)  # a trunk of words has none
    require_known(resize, ORDERS, "order of the resize")
    if config.max_text_tokens > config.longest_text:
        raise BadRequest(
            f"max_text_tokens is {config.max_text_tokens}, and the trunk has positions for {config.longest_text}; set "
            f"max_text_tokens = {config.longest_text} in [model] of the recipe"
        )
    brought = {
        name: tuple(value) if isinstance(value, list) else value for name, value in (config.encoding or {}).items()
    }
    return Encoding(
        **{
            "image_size": config.input_size,
            "image_mode": config.image_mode,
            "image_mean": tuple(config.image_mean),
            "image_std": tuple(config.image_std),
            "max_text_tokens": config.max_text_tokens,
            "bos_id": config.bos_token_id,
            "eos_id": config.eos_token_id,
            "pad_id": config.pad_token_id,
            "bands": config.word_bands(),
            "vocab_size": config.vocab_size,
            "resize": resize,
            **brought,
        }
    )


def labels_of(config: Any) -> tuple[str, ...]:
    """The class names in logit order."""
    return tuple(config.id2label[index] for index in range(config.num_labels))


def make_parted_model(model: EarlyExitModel, tokenizer: Tokenizer | None = None) -> PartedModel:
    """Convert a family's model to the form of a build, see :class:`~ee_export.model.parts.PartedModel`.

    Raises:
        BadRequest: see :func:`encoding_of`.
    """
    config, encoding = model.config, encoding_of(model.config)
    return PartedModel(
        parts=model.parts(answer_first=True),
        exits=config.exit_names(),
        labels=labels_of(config),
        module=model,
        inputs=encoder_inputs(encoding, model.INPUTS),
        encoding=encoding,
        tokenizer=tokenizer,
        reference=model.reference_logits,
        description={
            "type": config.model_type,
            "layers": config.num_hidden_layers,
            "hidden_size": config.width_of("final"),
            "heads": {exit_name: asdict(spec) for exit_name, spec in config.head_specs().items()},
        },
        longest_proof=config.longest_proof,
    )


def _stock_tokenizer(folder: Path, family: type[EarlyExitModel]) -> Tokenizer:
    """Read the tokenizer of a stock checkpoint, set to cut words one by one, without truncation."""
    if (folder / "tokenizer.json").is_file():
        tokenizer = _read_tokenizer(folder)
    elif not family.reads("text"):
        return train_tokenizer(iter([]), 0)
    else:
        text = AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str()
        tokenizer = read_whole_tokenizer(text.encode(), f"{folder}: its tokenizer", BadCheckpoint, _AGAIN)
    if isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        tokenizer.pre_tokenizer.add_prefix_space = True  # otherwise a word would continue the one before it
    return tokenizer


def _read_tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    return read_whole_tokenizer(data, str(path), BadCheckpoint, _AGAIN)


def _require_rows(folder: Path, model: EarlyExitModel, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer with more tokens than the model's embedding has rows, because pages with such tokens fail."""
    if model.reads("text"):
        require_rows(tokenizer, model.config.vocab_size, str(folder / "tokenizer.json"), BadCheckpoint, FIT_ROWS)


@contextlib.contextmanager
def catch_load_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except EeError:
        raise
    except SafetensorError as error:
        raise BadCheckpoint(f"{folder / 'model.safetensors'}: damaged ({error}); copy the checkpoint again") from None
    except Exception as error:  # tokenizers has no exception class of its own
        reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:2]) or type(error).__name__
        raise BadCheckpoint(
            f"{folder}: cannot be loaded ({reason}); copy the checkpoint again or train it again"
        ) from None


@contextlib.contextmanager
def silence_transformers() -> Iterator[None]:
    """Silence transformers' bars and tables during a load. This module checks and raises all relevant errors."""
    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
