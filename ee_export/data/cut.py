"""Cut a page's words into a tokenizer's pieces, but no more of them than a model reads."""

import json
import re
from collections.abc import Iterator
from itertools import chain

import numpy as np
from tokenizers import Encoding as Pieces
from tokenizers import Tokenizer

from ee_export.data.words import Words
from ee_export.errors import BadText, is_fault

_KNOWN_WORDS = 1 << 15
"""Largest number of words in the cache of pieces, which takes some megabytes."""
_KNOWN_PIECES = 1 << 17
"""Largest number of pieces in the cache."""
_LONGEST_KNOWN = 64
"""Characters of the longest word in the cache."""
_SHORT_TEXT = 1 << 12
"""Characters of the longest text that is cut as a whole. A longer one may have more pieces than a model reads."""
_LETTERS_A_PIECE = 8
"""Characters of a long text that are cut at a time, per piece that a model reads."""
_MOST_CUT = 1 << 18
"""Smallest number of characters to cut before a page with too few pieces is refused."""
_SPARE_PIECES = 16
"""Smallest number of pieces between the last one read and a truncated word's end, near which pieces differ."""
_SPLITTERS = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})
_LETTERS = frozenset({"Lu", "Ll", "Lt", "Lo", "Nd"})
_CLINGING = frozenset("\u0d4e\u0e33\u0eb3")
"""Letters of the basic plane that make one grapheme with the space beside them."""


class Cutter:
    """Cuts the words of pages into pieces. Thread-safe: its only state is a cache of the pieces of words.

    Args:
        tokenizer: cuts without special tokens, truncation and padding.
        most: largest number of pieces that are read of a page.
        joined: true to cut a page's words as one text with spaces, false to cut each word by itself.
        left: true to drop the beginning of a long page, false to drop its end.
    """

    def __init__(self, tokenizer: Tokenizer, most: int, joined: bool, left: bool) -> None:
        self._tokenizer = tokenizer
        self._most = most
        self._joined = joined
        self._left = left
        self._pieces: dict[str, list[int]] = {}
        self._piece_count = 0  # threads may lose each other's additions, so the bound is not exact
        self._longest_word = self._spare = 0  # see `_portion`
        self._splits_at_spaces: bool | None = None
        self._most_cut = max(_MOST_CUT, 8 * _LETTERS_A_PIECE * most)

    def cut(self, words: Words) -> tuple[list[int], np.ndarray]:
        """Return the ids of the pieces that are read, and the index in ``words`` of each piece's word, int64 ``[N]``.

        Raises:
            BadText: very many characters have too few pieces.
        """
        if self._joined:
            return self._cut_text(words)
        pieces, _ = self._cut_words(words[: -self._most - 1 : -1] if self._left else words[: self._most], 0)
        lengths = [len(piece) for piece in pieces]
        if len(lengths) < len(words) and sum(lengths) < self._most:
            pieces = self._cut_more(words, pieces)
            lengths = [len(piece) for piece in pieces]
        if not self._left:
            places = np.arange(len(lengths)).repeat(lengths)[: self._most]
            return list(chain.from_iterable(pieces))[: self._most], places
        ids = list(chain.from_iterable(reversed(pieces)))
        places = np.arange(len(words) - len(pieces), len(words)).repeat(lengths[::-1])
        read = self._read(len(ids))
        return ids[read], places[read]

    def _read(self, count: int) -> slice:
        """The slice of ``count`` pieces that is read."""
        return slice(max(0, count - self._most), count) if self._left else slice(self._most)

    def _cut_more(self, words: Words, pieces: list[list[int]]) -> list[list[int]]:
        """Add pieces of further words, if the first words have too few, because some words have no piece."""
        ordered, spent = words[::-1] if self._left else words, 0
        while len(pieces) < len(words) and sum(map(len, pieces)) < self._most:
            further, cut = self._cut_words(ordered[len(pieces) : 2 * len(pieces)], spent)
            pieces, spent = pieces + further, spent + cut
        return pieces

    def _cut_words(self, words: Words, spent: int) -> tuple[list[list[int]], int]:
        """Cut words one by one. Returns the ids of each word's pieces, and the number of characters cut.

        Pages repeat most of their words, so known words are not cut again. Words behind the last piece that is read
        have no pieces.
        """
        known = self._pieces
        new = [word for word in dict.fromkeys(words) if word not in known]
        if not new:
            return [known[word] for word in words], 0
        pieces: dict[str, list[int]] = {word: [] for word in new}
        index = count = cut = 0
        size = sum(map(len, new))
        while index < len(new) and count < self._most:
            texts = new if size <= _SHORT_TEXT else self._portion(new, index)
            index += len(texts)
            cut += size if texts is new else sum(map(len, texts))
            self._require_affordable(spent + cut)
            count += self._add(self._tokenize(texts), new[index - len(texts) : index], pieces)
            last = new[index - 1]
            if len(texts[-1]) < len(last) and count < self._most + self._spare:
                # Its beginning has fewer pieces than expected, because letters were dropped or are unknown together.
                count -= len(pieces[last])
                pieces[last] = []
                cut += len(last)
                self._require_affordable(spent + cut)
                count += self._add(self._tokenize([last]), [last], pieces)
        kept = {word: pieces[word] for word in new[:index] if len(word) <= _LONGEST_KNOWN}
        self._piece_count += sum(map(len, kept.values()))
        known.update(kept)
        if len(known) > _KNOWN_WORDS or self._piece_count > _KNOWN_PIECES:
            self._pieces, self._piece_count = {}, 0  # a new cache, because other threads may read the old one
        return [pieces[word] if word in pieces else known[word] for word in words], cut

    @staticmethod
    def _add(cut: Pieces, words: Words, pieces: dict[str, list[int]]) -> int:
        for piece, place in zip(cut.ids, cut.word_ids, strict=True):
            assert place is not None  # no special tokens
            pieces[words[place]].append(piece)
        return len(cut.ids)

    def _portion(self, words: Words, first: int) -> Words:
        """Return the next words of a long text, truncated if a word's beginning has more pieces than are read.

        No piece is longer than the longest of the vocabulary, or than the longest word that is not unknown. The pieces
        of a word's end depend on its beginning, and each piece of a Unigram model depends on the whole word.
        """
        if self._longest_word == 0:
            longest_known = getattr(self._tokenizer.model, "max_input_chars_per_word", 0)
            self._spare = max(_SPARE_PIECES, longest_known)
            longest = max(longest_known, *map(len, self._tokenizer.get_vocab()))
            depends = self._left or type(self._tokenizer.model).__name__ == "Unigram"
            letters = min(max(_SHORT_TEXT, longest * (self._most + self._spare)), self._most_cut // 2)
            self._longest_word = self._most_cut + 1 if depends else letters
        room, portion = max(_SHORT_TEXT, _LETTERS_A_PIECE * self._most), []
        while room > 0 and first < len(words):
            portion.append(words[first][: self._longest_word])
            room -= len(portion[-1])
            first += 1
        return portion

    def _cut_text(self, words: Words) -> tuple[list[int], np.ndarray]:
        """Cut all words as one text."""
        ids: list[int] = []
        places: list[np.ndarray] = []
        cut = 0
        for first, end in self._portions(words):
            starts = np.cumsum([0, *(len(word) + 1 for word in words[first : end - 1])]) - (first == 0)
            text = " " * (first > 0) + " ".join(words[first:end])
            cut += len(text)
            self._require_affordable(cut)
            pieces = self._tokenize(text)
            ends = np.asarray(pieces.offsets, np.int64).reshape(-1, 2)
            # A space belongs to the word behind it.
            letters = np.maximum(ends[:, 0], ends[:, 1] - 1)
            place = first + np.searchsorted(starts, letters, side="right").clip(1, end - first) - 1
            ids, places = (pieces.ids + ids, [place, *places]) if self._left else (ids + pieces.ids, [*places, place])
            if len(ids) >= self._most:
                break
        read = self._read(len(ids))
        return ids[read], np.concatenate([np.zeros(0, np.int64), *places])[read]

    def _portions(self, words: Words) -> Iterator[tuple[int, int]]:
        """Yield spans of words in reading order that have the same pieces separately as in the whole text."""
        if not words:
            return
        if sum(map(len, words)) + len(words) <= _SHORT_TEXT or not self._splits():
            yield 0, len(words)
            return
        step = -1 if self._left else 1
        index = begun = len(words) if self._left else 0
        room = max(_SHORT_TEXT, _LETTERS_A_PIECE * self._most)
        while True:
            room -= len(words[min(index, index + step)]) + 1
            index += step
            finished = index in (0, len(words))
            if finished or (room <= 0 and _is_plain(words[index - 1][-1:]) and _is_plain(words[index][:1])):
                yield min(begun, index), max(begun, index)
                if finished:
                    return
                begun, room = index, max(_SHORT_TEXT, _LETTERS_A_PIECE * self._most)

    def _splits(self) -> bool:
        """Return True if a space between two plain letters always ends a piece and separates all dependencies."""
        if self._splits_at_spaces is None:
            cutter = self._tokenizer.pre_tokenizer
            part = json.loads(cutter.__getstate__()) if cutter is not None else {}
            normalizer = self._tokenizer.normalizer
            strips = normalizer is not None and b'"strip_left":true' in normalizer.__getstate__()
            parts = part.get("pretokenizers", [part])
            splits = any(
                entry.get("type") in _SPLITTERS
                or (entry.get("type") == "ByteLevel" and entry.get("use_regex", True))
                or (entry.get("type") == "Metaspace" and entry.get("split", True))
                for entry in parts
            )
            added = self._tokenizer.get_added_tokens_decoder().values()
            spans = any(token.rstrip or re.search(r"[^\s▁][\s▁]", token.content) for token in added)
            self._splits_at_spaces = splits and not spans and not strips
        return self._splits_at_spaces

    def _require_affordable(self, characters: int) -> None:
        if characters > self._most_cut:
            raise BadText(
                f"over {self._most_cut:,} characters of its words have fewer than the {self._most} tokens that the model reads; "
                "expected words with spaces between them; check how the page was read"
            )

    def _tokenize(self, text: str | Words) -> Pieces:
        try:
            return self._tokenizer.encode(text, is_pretokenized=not self._joined, add_special_tokens=False)
        except BaseException as error:
            if is_fault(error) and not isinstance(error, Exception):
                raise RuntimeError(f"the tokenizer panicked: {error}") from error
            raise


def _is_plain(letter: str) -> bool:
    """Return True for a letter, digit or ASCII punctuation that no normalizer joins to a space beside it."""
    if letter.isascii():
        return letter > " " and letter != "\x7f"
    import unicodedata  # imported lazily, because few pages need its tables

    return letter <= "\uffff" and letter not in _CLINGING and unicodedata.category(letter) in _LETTERS
