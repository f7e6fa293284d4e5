"""A BERT with a classifier behind every layer, a ramp, as DeeBERT has it. It reads a page's words.

Xin et al., "DeeBERT: Dynamic Early Exiting for Accelerating BERT Inference", 2020.

    python bert_ramps.py PAGES                                       # trains, and writes bert_ramps.pt
    ee-export build bert_ramps.py:make_model PAGES --out bert.ee     # cuts, proves, calibrates and tunes
"""

import sys

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import BertConfig, BertModel

from ee_export.export import Part, PartedModel, encode_folder, read_words, text_encoding

LAYERS, WIDTH, LENGTH = 3, 64, 64
WEIGHTS = "bert_ramps.pt"


class BertWithRamps(nn.Module):
    def __init__(self, rows, classes):
        super().__init__()
        config = BertConfig(
            rows, WIDTH, LAYERS, 2, 2 * WIDTH, max_position_embeddings=LENGTH, attn_implementation="eager"
        )
        self.bert = BertModel(config, add_pooling_layer=False)
        self.ramps = nn.ModuleList(nn.Linear(WIDTH, classes) for _ in range(LAYERS))

    def forward(self, input_ids, attention_mask):
        states = self.bert(input_ids, attention_mask, output_hidden_states=True).hidden_states[1:]
        return {
            f"layer.{k}": ramp(state[:, 0]) for k, (ramp, state) in enumerate(zip(self.ramps, states, strict=True), 1)
        }


def make_tokenizer(folder):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=1000, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    tokenizer.train_from_iterator((" ".join(words) for words in read_words(folder)), trainer)
    return tokenizer


def train(folder, epochs=40):
    tokenizer = make_tokenizer(folder)
    pages = encode_folder(folder, text_encoding(tokenizer, LENGTH), tokenizer)
    labels, targets = np.unique(pages["label"], return_inverse=True)
    targets = torch.from_numpy(targets)
    ids, mask = torch.from_numpy(pages["input_ids"]), torch.from_numpy(pages["attention_mask"])
    torch.manual_seed(0)
    net = BertWithRamps(tokenizer.get_vocab_size(), len(labels)).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(targets)).split(32):
            logits = net(ids[rows], mask[rows])
            loss = sum(nn.functional.cross_entropy(each, targets[rows]) for each in logits.values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.save({"weights": net.state_dict(), "labels": labels.tolist(), "tokenizer": tokenizer.to_str()}, WEIGHTS)


def make_model():
    saved = torch.load(WEIGHTS, weights_only=True)
    tokenizer = Tokenizer.from_str(saved["tokenizer"])
    net = BertWithRamps(tokenizer.get_vocab_size(), len(saved["labels"])).eval()
    net.load_state_dict(saved["weights"])

    def padding(mask):  # added to the scores of the attention, [B, 1, 1, T]
        return (1.0 - mask[:, None, None, :].float()) * -1e9

    parts = [Part(("input_ids",), ("hidden.0",), net.bert.embeddings), Part(("attention_mask",), ("padding",), padding)]
    for k, (layer, ramp) in enumerate(zip(net.bert.encoder.layer, net.ramps, strict=True), 1):
        parts.append(Part((f"hidden.{k - 1}", "padding"), (f"hidden.{k}",), layer))
        parts.append(Part((f"hidden.{k}",), (f"layer.{k}.logits",), lambda hidden, ramp=ramp: ramp(hidden[:, 0])))
    return PartedModel(
        parts=parts,
        exits=[f"layer.{k}" for k in range(1, LAYERS + 1)],
        labels=saved["labels"],
        module=net,
        encoding=text_encoding(tokenizer, LENGTH),
        tokenizer=tokenizer,
        reference=net,
    )


if __name__ == "__main__":
    train(sys.argv[1])
