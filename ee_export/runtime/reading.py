"""Make a package's inputs of pages: open images, read text as far as it is needed, encode, and group pages by length."""

import time
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from ee_export.data.encode import Arrays, Encoder, blank_page
from ee_export.data.inputs import encode_pages, with_prefix, without_prefix
from ee_export.data.page import Page, require_known_boxes
from ee_export.data.text_reader import TextReader
from ee_export.errors import BadRequest
from ee_export.package.input_specs import array_specs, format_spec
from ee_export.package.manifest import Costs
from ee_export.package.store import Package
from ee_export.runtime.batch import Batch, Call, PageState
from ee_export.runtime.failures import name_page, require_page
from ee_export.runtime.ort import gather
from ee_export.runtime.plan import Stretch

_Ready = tuple[PageState, Arrays, Batch, int]
"""A page that is ready for a stretch, its inputs for the stretch, its batch before, and its position there."""


class Reading:
    """Reads pages for one target. Thread-safe."""

    def __init__(self, package: Package, encoder: Encoder | None, costs: Costs | None) -> None:
        manifest = package.manifest
        self._package = package
        self._manifest = manifest
        self._encoder = encoder
        # Inputs of all encodings, under the encoder's names. Every page starts with the image of `encoding`.
        self._reads = {base for name in manifest.all_encodings() for base in manifest.inputs_of(name)}
        self._reads_image = "pixel_values" in manifest.inputs
        self._encode_s = {name: ms / 1e3 for name, ms in costs.encode_ms.items()} if costs else {}
        self._ocr_ms = costs.ocr_ms if costs else None

    @property
    def encoder(self) -> Encoder:
        """The encoder of pages.

        Raises:
            BadRequest: the package reads arrays.
        """
        if self._encoder is None:
            inputs = ", ".join(f"{name} {format_spec(spec)}" for name, spec in array_specs(self._manifest).items())
            raise BadRequest(
                f"{self._package.path}: the package reads arrays and no pages ({inputs}); call predict_encoded with them, or give an .npz "
                "file of them to the command"
            )
        return self._encoder

    def blank(self, tokens: int | None = None) -> Arrays:
        """All inputs of one grey page with that many text tokens, by default and at most as many as are read."""
        arrays: Arrays = {}
        for name in self._manifest.all_encodings():
            encoding = self.encoder.by_name(name).encoding
            longest = encoding.max_text_tokens
            arrays |= with_prefix(name, blank_page(encoding, longest if tokens is None else min(tokens, longest)))
        return arrays

    def encode(self, pages: Sequence[Page]) -> Arrays:
        """All inputs of some pages as one batch. If the model reads text, the text of every page is read."""
        return encode_pages(pages, self.encoder, self._manifest.inputs)

    def open(self, page: object, row: int, begun: float, call: Call) -> PageState:
        """Open a page: its state has the image, or the error."""
        state = PageState(row, begun)
        try:
            checked = require_page(page, row)
            state.image, whole = self._open_image(checked)
            # An OCR engine gets the whole image. A page with words needs none.
            state.reader = TextReader(checked, state.image if whole and checked.words is None else None)
        except Exception as error:
            state.fail(error, call, name_page(page, row))
        return state

    def reopen(self, state: PageState, call: Call) -> None:
        """Open the image of a page again, for a new run from the first segment."""
        assert state.reader is not None
        try:
            state.image, _ = self._open_image(state.reader.page)
        except Exception as error:
            state.fail(error, call)

    def pixels(self, pages: Sequence[PageState]) -> Arrays:
        """Pixels of opened pages, one row each, or no arrays if the model reads no image."""
        images = [page.image for page in pages if page.image is not None]
        return self.encoder.images(images) if self._reads_image else {}

    def regroup(self, batches: Iterable[Batch], stretch: Stretch, most: int, call: Call) -> list[Batch]:
        """Make a stretch's inputs of the undecided pages, and re-batch the pages by length, up to ``most`` together."""
        ready: list[_Ready] = []
        for batch in batches:
            for position, page in enumerate(batch.pages):
                try:
                    arrays = self.inputs(page, stretch, call)
                except Exception as error:
                    page.fail(error, call)
                    continue
                if arrays is not None:
                    ready.append((page, arrays, batch, position))
        ready.sort(key=lambda entry: entry[0].tokens)
        groups: list[list[_Ready]] = []
        for entry in ready:
            if not groups or len(groups[-1]) == most or entry[0].tokens > 8 + 1.1 * groups[-1][0][0].tokens:
                groups.append([])
            groups[-1].append(entry)
        return [self._join(group, stretch) for group in groups]

    def inputs(self, page: PageState, stretch: Stretch, call: Call) -> Arrays | None:
        """Read a page's text as far as a stretch needs it, and make its pixels for the stretch's further encodings.

        Returns:
            The pixels, none for most stretches, or ``None`` if the deadline forbids either and the page is answered.
        """
        if stretch.text is not None and not self._read(page, stretch, call):
            return None
        if not stretch.pixels:
            return {}
        assert page.reader is not None
        seconds = sum(self._encode_s.get(name, 0.0) for name in stretch.pixels)
        if page.stopped_by_deadline(seconds, call):
            return None
        arrays: Arrays = {}
        for name in stretch.pixels:
            encoder = self.encoder.by_name(name)
            arrays |= with_prefix(name, encoder.image(encoder.open(page.reader.page)[0]))
        return arrays

    def needs(self, page: PageState, stretch: Stretch) -> bool:
        """True if :meth:`inputs` would make or read anything."""
        unread = page.text is None or (page.reader is not None and page.reader.runs_ocr)
        return bool(stretch.pixels) or stretch.new_text or unread

    def slice_page(self, batch: Batch, position: int, stretch: Stretch, arrays: Arrays, length: int) -> Batch:
        """The page at ``position`` with the inputs of a stretch, its text padded to ``length``."""
        single = batch.slice_page(position)
        single.state = {name: tensor for name, tensor in single.state.items() if name in stretch.carried} | arrays
        text = single.pages[0].text
        if stretch.text is not None and text is not None:
            single.tokens = length
            single.state |= with_prefix(stretch.text, self.encoder.by_name(stretch.text).collate([text], length))
        return single

    def text_of_arrays(self, stretch: Stretch, arrays: Arrays) -> Arrays | None:
        """The text of encoded inputs that a stretch is the first to read, or ``None`` if the stretch reads no new text."""
        if stretch.new_text and stretch.text is not None and self._encoder is not None and self._encoder.further:
            return without_prefix(stretch.text, arrays)
        return None

    def longest(self, stretch: Stretch) -> int:
        """Most text tokens that a stretch reads."""
        return 0 if stretch.text is None else self.encoder.by_name(stretch.text).encoding.max_text_tokens

    def _open_image(self, page: Page) -> tuple[Image.Image | None, bool]:
        """The page's image, if the model reads it, and whether it is the whole image, which an OCR engine needs."""
        require_known_boxes(page, self._reads)
        return self.encoder.open(page) if self._reads_image else (None, False)

    def _read(self, page: PageState, stretch: Stretch, call: Call) -> bool:
        """Read a page's text as far as a stretch needs it. False if the deadline forbids it and the page is answered."""
        reader = page.reader
        assert reader is not None and stretch.text is not None
        encoder = self.encoder.by_name(stretch.text)
        if not reader.runs_ocr:
            if page.text is None or stretch.new_text:
                page.text = encoder.text(*reader.read_to(100))
            return True
        share = stretch.percent / 100 - reader.share
        seconds = (self._ocr_ms or 0.0) / 1e3 * share
        if page.stopped_by_deadline(seconds, call):
            return False
        started = time.perf_counter()
        words, boxes = reader.read_to(stretch.percent)
        taken = (time.perf_counter() - started) * 1e3
        if share > 0:
            whole = taken / share
            self._ocr_ms = whole if self._ocr_ms is None else 0.8 * self._ocr_ms + 0.2 * whole
            page.ocr_used = True
            page.visits.append(("ocr", 1, taken, None, None, False))
        page.text = encoder.text(words, boxes)
        return True

    def _join(self, group: Sequence[_Ready], stretch: Stretch) -> Batch:
        """Join pages of like length in one batch."""
        pages = [page for page, _, _, _ in group]
        inputs = [arrays for _, arrays, _, _ in group]
        state = {
            name: inputs[0][name] if len(inputs) == 1 else np.concatenate([arrays[name] for arrays in inputs])
            for name in inputs[0]
        }
        tokens = 0
        if stretch.text is not None:
            texts = [page.text for page in pages if page.text is not None]
            state |= with_prefix(stretch.text, self.encoder.by_name(stretch.text).collate(texts))
            tokens = state[f"{stretch.text}.input_ids" if stretch.text else "input_ids"].shape[1]
        first = group[0][2]
        for name in first.state.keys() - state.keys():
            if name not in stretch.carried:
                continue
            if len(group) == 1 and len(first.state[name]) == 1:
                state[name] = first.state[name]
            else:
                rows = [(batch.state[name], [batch.row_of(position)]) for _, _, batch, position in group]
                state[name] = gather(rows)
        return Batch(pages, state, tokens)
