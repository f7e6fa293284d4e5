"""The wording of drawn business papers: what a page is stands in its title or in one sentence only.

All other sentences are drawn from the same lists whatever the class. A plain page names at most one other kind of paper,
so its words nearly tell the class. A crowded one names all four kinds, each as often as the others, so that neither a
noun's count nor the words around it tell anything; where the noun stands does.
"""

from __future__ import annotations

from dataclasses import dataclass

from draw.source import Source

NOUNS = {"invoice": "invoice", "credit_note": "credit note", "reminder": "reminder", "quotation": "quotation"}

# In the templates no sign and no article "a" or "an" touches {noun}: both would make it another word.
_ROLES = (
    "Enclosed please find our {noun} dated {date}.",
    "With this page you receive our {noun} of {date}.",
    "Please accept this page as our {noun} no. {number}.",
    "This page is our {noun} for the goods listed below.",
    "We hereby send you our {noun} for the goods named below.",
    "For the goods below please find here our {noun} of today.",
)
_OPENINGS = (
    "We thank you for your order of {date} and for your trust.",
    "We refer to our talk of {date} with your purchasing department.",
    "The goods listed below were agreed with your office on {date}.",
    "Below please find the list of goods that you asked for.",
    "We are pleased to do business with you again.",
)
_ASIDES = (
    "Please see also our {noun} no. {number} of {date}.",
    "Our {noun} of {date} reached you by separate mail.",
    "The amounts agree with the {noun} no. {number} in your file.",
    "The last {noun} that we sent you bears the number {number}.",
    "Your letter of {date} about our {noun} has been passed on to our accounts department.",
    "Kindly keep the {noun} no. {number} together with this page.",
    "This page does not replace the {noun} of {date} in any way.",
    "For the {noun} you will hear from us by separate mail.",
    "This page is no {noun} and should not be entered as one.",
    "Should your copy of the {noun} no. {number} be missing, we shall send another.",
    "The prices below were also the basis of our {noun} of {date}.",
    "Questions about the {noun} no. {number} are answered by {person}.",
)
_SUBJECTS = (
    "Re: our {noun} no. {number} of {date}",
    "Subject: {noun} no. {number} and your order of {date}",
    "Concerning our {noun} no. {number}",
)
_CORNERS = ("Refers to {noun} no. {number}", "See {noun} no. {number}", "cf. {noun} of {date}")
_FILLERS = (
    "Please quote the number of this page in all letters and payments.",
    "All prices are in US dollars.",
    "Partial shipments are possible on request.",
    "Our office is closed on the last working day of the year.",
    "Your contact in our house is {person}.",
    "The goods remain our property until they are paid for.",
    "Please note our new bank account.",
)
_TERMS = {
    "invoice": (
        "On acceptance of our offer an invoice follows.",
        "Every invoice is due within {days} days without deduction.",
        "Objections to an invoice have to reach us in writing.",
    ),
    "credit_note": (
        "A credit note is issued for goods that come back unused.",
        "Each credit note is set off against the next payment.",
        "We issue a credit note where goods arrive damaged.",
    ),
    "reminder": (
        "A reminder is sent after {days} days.",
        "Each further reminder costs a fee of ${fee}.",
        "Interest is charged from the first reminder onwards.",
    ),
    "quotation": (
        "Every quotation binds us for {days} days.",
        "A quotation is free of charge unless agreed otherwise.",
        "Prices in a quotation do not include freight.",
    ),
}
GOODS = (
    "Hex bolts M8", "Copy paper A4", "Office chair black", "Desk lamp LED", "Steel shelf 2m", "Cable drum 50m",
    "Work gloves L", "Ring binder grey", "Label printer", "Toner cartridge", "Safety goggles", "Pallet wrap clear",
    "Filter cartridge", "Drill bit 6mm", "Hand pump", "Hose 25m", "Extension lead", "Storage box 40l",
    "Tool case empty", "Step ladder", "Floor mat", "Wall clock", "Power supply 24V", "Terminal block",
    "Relay 12V", "Sensor PT100", "Pressure gauge", "Ball valve", "Gasket set", "Bearing 6204", "V-belt 900",
    "Paint white 5l", "Brush set", "Sanding discs", "Cutting oil 1l", "Grease cartridge", "Packing tape",
    "Bubble wrap", "Carton 30x40", "Marker pens", "Whiteboard", "Notebook A5",
)  # fmt: skip
_LETTERS = (str.upper, str.upper, str.title, str.lower)


@dataclass(frozen=True, slots=True)
class Wording:
    """The text of a business paper above its table, and the terms below it."""

    title: str  # empty on a page where one of the sentences says what it is
    subject: str  # may be empty, as all below
    corner: str
    sentences: tuple[str, ...]
    references: tuple[tuple[str, str], ...]  # names and numbers of earlier papers
    terms: str


def wording(source: Source, label: str, crowded: bool) -> Wording:
    """The text of one of the four papers; on a crowded one each noun stands once, twice or three times, all four alike."""
    titled = source.chance(0.7)
    letters = source.pick(_LETTERS[:3] if titled else _LETTERS)  # the nouns beside the title look like it
    names = {name: letters(noun) for name, noun in NOUNS.items()}
    others = source.some([names[name] for name in NOUNS if name != label], 3 if crowded else source.whole(0, 1))
    templates = list(source.some(_ASIDES, 3))
    subject = _fill(source, source.pick(_SUBJECTS), others.pop()) if others and source.chance(0.4) else ""
    corner = _fill(source, source.pick(_CORNERS), others.pop()) if others and source.chance(0.3) else ""
    sentences = [_fill(source, templates.pop(), noun) for noun in others]
    sentences.append(_fill(source, source.pick(_OPENINGS if titled else _ROLES), names[label]))
    sentences += [_fill(source, filler) for filler in source.some(_FILLERS, source.whole(0, 2))]
    references = [(f"{noun.capitalize()} no.", _number(source)) for noun in NOUNS.values()]
    return Wording(
        names[label] if titled else "",
        subject,
        corner,
        tuple(source.some(sentences, len(sentences))),
        tuple(source.some(references, 4)) if crowded and source.chance(0.6) else (),
        terms(source) if crowded and source.chance(0.6) else "",
    )


def terms(source: Source) -> str:
    """Terms of business, one sentence about each of the four kinds of paper."""
    chosen = [source.pick(_TERMS[name]) for name in NOUNS]
    return " ".join(_fill(source, sentence) for sentence in source.some(chosen, 4))


def _fill(source: Source, template: str, noun: str = "") -> str:
    values = {
        "noun": noun, "date": source.date(2012, 2024, "long"), "number": _number(source), "person": source.person(),
        "days": source.pick((7, 10, 14, 21, 30)), "fee": source.whole(3, 20),
    }  # fmt: skip
    return template.format(**values)


def _number(source: Source) -> str:
    return source.digits(source.whole(4, 6))
