"""The set `documents`: label -> layout, for the seven classes that the demo and the tests are made of."""

from __future__ import annotations

from collections.abc import Callable

from draw.broadcast import ad_buy_form
from draw.fara import amendment, dissemination_report, short_form
from draw.office import form
from draw.page import Sheet
from draw.paper import scientific_paper
from draw.receipt import receipt
from draw.source import Source

Layouts = dict[str, tuple[Callable[[Source, bool], Sheet], float]]
"""label -> (layout, probability that a hard page is black and white only)"""

DOCUMENTS: Layouts = {
    "ad_buy_form": (ad_buy_form, 0.6),
    "fara_amendment": (amendment, 0.7),
    "fara_dissemination_report": (dissemination_report, 0.7),
    "fara_short_form": (short_form, 0.7),
    "form": (form, 0.75),
    "receipt": (receipt, 0.3),
    "scientific_paper": (scientific_paper, 0.15),
}
