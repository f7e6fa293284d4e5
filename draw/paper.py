"""Layouts of scientific_paper: title pages, body pages with formulas, figures and tables, and references."""

from __future__ import annotations

import numpy as np

from draw.marks import wear
from draw.page import Sheet, Style
from draw.source import Source

_NOUNS = (
    "operator", "kernel", "estimate", "spectrum", "lattice", "field", "model", "network", "distribution",
    "sample", "cluster",
    "boundary", "function", "potential", "gradient", "measure", "signal", "matrix", "graph", "channel",
    "flow", "emission",
    "density", "coupling", "symmetry", "phase", "energy", "solution", "sequence", "algorithm", "manifold",
    "particle",
)  # fmt: skip
_ADJECTIVES = (
    "linear", "stochastic", "sparse", "thermal", "local", "bounded", "discrete", "optimal", "nonlinear",
    "random", "quantum",
    "smooth", "effective", "asymptotic", "magnetic", "uniform", "convex", "spectral", "Gaussian", "finite",
    "critical",
)  # fmt: skip
_SENTENCES = (
    "The {a} {n} is obtained from the {n2} by a change of variables.",
    "We now show that the {n} of the {a} {n2} converges in the limit of large {v}.",
    "In this section we study how the {n} depends on the {a} {n2}, following [{k}].",
    "It follows from Eq. ({k}) that the {n} has at most {v} {a} components.",
    "Figure {d} shows the measured {n} together with the prediction of the {a} model.",
    "Let {v} denote the {a} {n} and let {w} be the corresponding {n2}.",
    "This result agrees with earlier work on the {a} {n} [{k}, {m}].",
    "Note that the {n2} does not affect the {n} unless {v} = {w}.",
    "Our simulations use {m} samples of the {a} {n} and a step size of 0.{k}.",
    "Since the {n} is {a}, the second term vanishes and the {n2} dominates.",
    "Table {d} lists the values of the {n} for each {a} {n2}.",
    "We assume that {v} > 0, so that the {n} remains {a} for all times.",
    "A detailed account of the {a} {n2} can be found in Ref. [{k}].",
    "Hence the {n} is {a} whenever the {n2} is.",
    "The uncertainty of the {n} is about {k} %, mainly because of the {a} {n2}.",
    "To leading order, the {a} {n} scales as {v}^2 with the size of the {n2}.",
)
_HEADS = (
    "INTRODUCTION", "METHODS", "RESULTS", "DISCUSSION", "THE MODEL", "NUMERICAL RESULTS", "RELATED WORK",
    "CONCLUSIONS",
    "PRELIMINARIES", "DATA AND ANALYSIS", "MAIN THEOREM", "ACKNOWLEDGMENTS", "OBSERVATIONS", "EXPERIMENTS",
)  # fmt: skip
_JOURNALS = (
    "Phys. Rev.",
    "Ann. Math.",
    "J. Comput. Sci.",
    "Astrophys. J.",
    "Nucl. Phys. B",
    "J. Stat. Mech.",
    "IEEE Trans.",
    "Proc. AMS",
)


def scientific_paper(source: Source, hard: bool) -> Sheet:
    """A page of a paper in one or two columns."""
    sheet = Sheet(source.between(0.705, 0.775), source, squeeze=source.between(0.8, 0.9))
    two = source.chance(0.5)
    size = source.between(17, 20) if two else source.between(20, 25)
    body = Style(size, bold=source.pick((0.0, 0.0, 0.15)), serif=source.chance(0.75), ink=source.pick((0, 0, 40)))
    margin = sheet.width * (source.between(0.07, 0.1) if two else source.between(0.11, 0.19))
    left, right = margin, sheet.width - margin
    y, floor = source.between(110, 220), sheet.height - source.between(160, 330)
    number = str(source.whole(1, 60))
    kind = source.pick(("title", "body", "body", "body", "references", "figures"))
    if source.chance(0.5):
        sheet.text(right, y - 50, number, body, "right")
        if source.chance(0.5):
            sheet.text(sheet.width / 2, y - 50, _title(source), body.but(slant=0.2), "center")
    if kind == "title":
        y = _front(sheet, source, body, left, right, y, two)
    elif source.chance(0.2):
        y = _figure(sheet, source, body, left, right, y, source.between(300, 480)) + size
    leading = source.pick((1.16, 1.2, 1.3)) if two or source.chance(0.6) else source.between(1.5, 1.9)
    short = floor - source.between(0, 700) if source.chance(0.15) else floor
    gutter = sheet.width * 0.03
    spans = [(left, sheet.width / 2 - gutter / 2), (sheet.width / 2 + gutter / 2, right)] if two else [(left, right)]
    for x0, x1 in spans:
        sheet.next_block()
        _column(sheet, source, body, x0, x1, y, short, leading, kind)
    sheet.next_block()
    if source.chance(0.5):
        sheet.text(sheet.width / 2, floor + 60, number, body, "center")
    if hard and source.chance(0.6):
        wear(sheet, source)
    return sheet


def _column(
    sheet: Sheet,
    source: Source,
    body: Style,
    x0: float,
    x1: float,
    y: float,
    floor: float,
    leading: float,
    kind: str,
) -> None:
    size, width = body.size, x1 - x0
    entry = source.whole(1, 40)
    while y < floor - size * 2:
        draw = source.between(0, 1)
        if kind == "references":
            text = f"[{entry}] {_reference(source)}"
            y = sheet.paragraph(x0 + 40, y, width - 40, text, body, leading, "justify", -40, floor) + size * 0.3
            entry += 1
        elif draw < 0.14 and y < floor - 150:
            y = _heading(sheet, source, body, x0, x1, y + size * 1.2)
        elif draw < (0.5 if kind == "body" else 0.3) and y < floor - 120:
            y = _formula(sheet, source, body, x0, x1, y + size * 1.3)
        elif draw > (0.75 if kind == "figures" else 0.96) and y < floor - 420:
            y = _figure(sheet, source, body, x0, x1, y, source.between(220, 360)) + size
        elif draw > (0.65 if kind == "figures" else 0.93) and y < floor - 330:
            y = _table(sheet, source, body, x0, x1, y + size)
        else:
            y = sheet.paragraph(
                x0, y, width, _prose(source, source.whole(2, 7)), body, leading, "justify", size * 1.2, floor
            )


def _words(source: Source) -> dict[str, str | int]:
    return {
        "a": source.pick(_ADJECTIVES), "n": source.pick(_NOUNS), "n2": source.pick(_NOUNS),
        "v": source.pick("xyzkNTLEuq"),
        "w": source.pick("abcmnprstv"), "k": source.whole(1, 60), "m": source.whole(61, 180),
        "d": source.whole(1, 8),
    }  # fmt: skip


def _prose(source: Source, sentences: int) -> str:
    return " ".join(source.pick(_SENTENCES).format(**_words(source)) for _ in range(sentences))


def _title(source: Source) -> str:
    template = source.pick((
        "A remark on the {a} {n} of a {n2}", "On {a} bounds for the {n} of {n2}s", "Measuring the {a} {n}",
        "The {a} {n} and its {n2}",
        "{a} {n}s from a {a} {n2}", "Fast computation of the {a} {n}",
    ))  # fmt: skip
    text = template.format(**_words(source))
    return text[0].upper() + text[1:]


def _author(source: Source) -> str:
    return f"{source.fake.random_uppercase_letter()}. {source.fake.last_name()}"


def _reference(source: Source) -> str:
    authors = ", ".join(_author(source) for _ in range(source.whole(1, 4)))
    title = f"{_title(source)}, " if source.chance(0.5) else ""
    tail = f" [arXiv:{source.digits(4)}.{source.digits(4)}]" if source.chance(0.4) else ""
    where = f"{source.pick(_JOURNALS)} {source.whole(2, 900)}, {source.digits(4)} ({source.whole(1970, 2020)})"
    return f"{authors}, {title}{where}.{tail}"


def _front(sheet: Sheet, source: Source, body: Style, left: float, right: float, y: float, two: bool) -> float:
    size, width = body.size, right - left
    big = body.but(size=size * source.between(1.5, 2.1), bold=source.pick((0.0, 0.9)))
    y = sheet.paragraph(left + width * 0.08, y + 50, width * 0.84, _title(source), big, 1.2, "center") + size
    y = sheet.paragraph(
        left, y, width, ", ".join(source.person() for _ in range(source.whole(1, 4))), body, 1.3, "center"
    )
    faculty = source.pick(("Physics", "Mathematics", "Computer Science", "Astronomy"))
    place = f"Department of {faculty}, University of {source.fake.city()}"
    y = sheet.paragraph(left, y + 6, width, place, body.but(slant=0.2), 1.3, "center") + size
    small = body.but(size=size * 0.92, bold=source.pick((0.0, 0.5)))
    inset = width * 0.08
    sheet.text(sheet.width / 2, y, "Abstract", body.but(bold=0.8), "center")
    y = sheet.paragraph(
        left + inset,
        y + size * 1.5,
        width - 2 * inset,
        _prose(source, source.whole(5, 9)),
        small,
        1.2,
        "justify",
    )
    if source.chance(0.4):
        keys = f"Keywords: {source.pick(_ADJECTIVES)} {', '.join(source.some(_NOUNS, 3))}"
        y = sheet.paragraph(left + inset, y + 8, width - 2 * inset, keys, small)
    return y + size * 2


def _heading(sheet: Sheet, source: Source, body: Style, x0: float, x1: float, y: float) -> float:
    text = f"{source.pick(('I.', 'II.', 'III.', 'IV.', '1.', '2.', '3.1', '4.'))} {source.pick(_HEADS)}"
    strong = body.but(bold=source.pick((0.3, 0.8)))
    if source.chance(0.6):
        sheet.text((x0 + x1) / 2, y, text, strong, "center")
    else:
        sheet.text(x0, y, text.title(), strong.but(size=body.size * 1.15))
    return y + body.size * 2


def _formula(sheet: Sheet, source: Source, body: Style, x0: float, x1: float, y: float) -> float:
    """A displayed equation: italic symbols, sums, integrals and fractions, and its number."""
    size = body.size
    italic, small = body.but(slant=0.22, size=size * 1.1), body.but(size=size * 0.7, slant=0.2)
    y += size
    x = x0 + (x1 - x0) * source.between(0.12, 0.3)
    end = x1 - size * 4
    x = sheet.text(x, y, f"{source.pick('fgFuHSD')}({source.pick('xtkr')})", italic) + 10
    x = sheet.text(x, y, "=", body) + 12
    while x < end - size * 2:
        kind = source.whole(0, 4)
        letters = "".join(source.pick("xyzabkmnrtuvqE") for _ in range(source.whole(1, 3)))
        if kind == 0:  # a fraction
            below = source.pick(("2", "1 + x", "N", "4n", "a + b"))
            wide = max(italic.measure(letters), body.measure(below)) + 8
            sheet.text(x + wide / 2, y - size * 0.75, letters, italic, "center")
            sheet.rule(x, y - size * 0.3, x + wide, y - size * 0.3, width=1, ink=body.ink)
            sheet.text(x + wide / 2, y + size * 0.75, below, body, "center")
            x += wide + 8
        elif kind == 1:  # a sum or an integral
            if source.chance(0.5):
                points = [
                    (x + size, y - size * 1.1),
                    (x, y - size * 1.1),
                    (x + size * 0.5, y - size * 0.3),
                    (x, y + size * 0.5),
                    (x + size, y + size * 0.5),
                ]
                sheet.draw.line(points, fill=body.ink, width=2)
            else:
                sheet.draw.arc((x + 8, y - size * 1.3, x + 20, y - size * 0.8), 180, 360, fill=body.ink, width=2)
                sheet.draw.line((x + 8, y - size, x + 8, y + size * 0.5), fill=body.ink, width=2)
                sheet.draw.arc((x - 4, y + size * 0.2, x + 8, y + size * 0.8), 0, 180, fill=body.ink, width=2)
            sheet.text(x, y + size * 1.2, source.pick(("k=1", "i=0", "0")), small)
            sheet.text(x + 4, y - size * 1.5, source.pick(("N", "n", "T")), small)
            x += size * 1.5
        else:
            x = sheet.text(x, y, letters, italic)
            place = (y + size * 0.35) if source.chance(0.5) else (y - size * 0.5)
            x = sheet.text(x + 2, place, source.pick(("2", "i", "k", "n+1", "0")), small) + 8
        if x < end - size * 3:
            if source.chance(0.25):
                break
            x = sheet.text(x, y, source.pick("+-=+<"), body) + 10
    if source.chance(0.8):
        sheet.text(x1, y, f"({source.whole(1, 160)})", body, "right")
    return y + size * 2.6


def _figure(sheet: Sheet, source: Source, body: Style, x0: float, x1: float, y: float, height: float) -> float:
    """A plot of some curves or points with axes, tick labels and a caption."""
    rng = source.rng
    tiny = body.but(size=max(12, body.size * 0.75))
    left, right, foot = x0 + 60, x1 - 15, y + height - 50
    sheet.box(left, y, right, foot, ink=30)
    for i in range(5):
        x = left + (right - left) * i / 4
        sheet.rule(x, foot, x, foot - 8)
        sheet.text(x, foot + tiny.size * 1.2, f"{i * 2}", tiny, "center")
        level = foot - (foot - y) * i / 5
        sheet.rule(left, level, left + 8, level)
        sheet.text(left - 6, level + 5, f"{i / 5:.1f}", tiny, "right")
    sheet.text(
        (left + right) / 2,
        foot + tiny.size * 2.5,
        source.pick(("time [s]", "energy [MeV]", "iteration", "x")),
        tiny,
        "center",
    )
    t = np.linspace(0, 1, 80)
    for _ in range(source.whole(1, 4)):
        curve = 0.5 + 0.4 * np.sin(rng.uniform(1, 9) * t + rng.uniform(0, 6)) * np.exp(-rng.uniform(0, 3) * t)
        points = list(zip((left + (right - left) * t).tolist(), (foot - (foot - y) * curve).tolist(), strict=True))
        if source.chance(0.6):
            sheet.draw.line(points, fill=source.whole(0, 140), width=source.whole(2, 3))
        else:
            for px, py in points[::4]:
                sheet.draw.ellipse((px - 4, py - 4, px + 4, py + 4), outline=0, fill=source.pick((0, 255)), width=2)
    caption = f"{source.pick(('FIG.', 'Figure'))} {source.whole(1, 9)}: {_prose(source, source.whole(1, 3))}"
    return sheet.paragraph(
        x0,
        foot + tiny.size * 2.5 + body.size * 1.6,
        x1 - x0,
        caption,
        body.but(size=body.size * 0.9),
        1.15,
        "justify",
    )


def _table(sheet: Sheet, source: Source, body: Style, x0: float, x1: float, y: float) -> float:
    rows, columns, step = source.whole(3, 8), source.whole(3, 5), body.size * 1.3
    caption = f"{source.pick(('TABLE I.', 'Table 2:'))} {_prose(source, 1)}"
    y = sheet.paragraph(x0, y, x1 - x0, caption, body.but(size=body.size * 0.9), 1.15) + body.size
    width = (x1 - x0) / columns
    sheet.rule(x0, y - step, x1, y - step)
    for r in range(rows + 1):
        for c in range(columns):
            text = (
                source.pick(_NOUNS)[:7]
                if r == 0
                else f"{source.between(0, 99):.2f}"
                if c
                else f"{source.pick('ABCX')}{r}"
            )
            sheet.text(x0 + (c + 0.5) * width, y + r * step, text, body, "center")
    sheet.rule(x0, y + step * 0.3, x1, y + step * 0.3, width=1)
    sheet.rule(x0, y + (rows + 0.4) * step, x1, y + (rows + 0.4) * step)
    return y + (rows + 2) * step
