"""Layouts of form: typed office and laboratory forms of the kind that are scanned from paper archives."""

from __future__ import annotations

from draw.marks import logo, scribble, signature, wear
from draw.page import Sheet, Style
from draw.source import Source

_TITLES = (
    "REQUEST FOR CHECK", "PURCHASE REQUISITION", "SAMPLE ANALYSIS RECORD", "PRODUCT SPECIFICATION",
    "FAX TRANSMISSION",
    "PROJECT AUTHORIZATION", "SUGGESTION FORM", "TRAVEL EXPENSE REPORT", "NEW COMPETITIVE PRODUCTS",
    "RESEARCH REQUEST",
    "TEST REPORT", "PRESS INQUIRY", "JOB CHANGE NOTICE", "SALES PROGRAM EVALUATION", "MATERIAL TRANSFER",
    "INTERVIEW RECORD",
    "CREATIVE BRIEF", "LABORATORY WORK ORDER", "CONTRACT SUMMARY", "DOCUMENT CLEARANCE SHEET",
    "BUDGET TRANSFER",
)  # fmt: skip
_FIELDS = (
    "Date", "To", "From", "Subject", "Department", "Division", "Project No.", "Account No.", "Supplier",
    "Brand", "Style",
    "Color", "Quantity", "Requested By", "Approved By", "Phone", "Fax No.", "Location", "Sample No.",
    "Batch Size",
    "Date Received", "Date Reported", "Investigator", "Method", "Dry Weight", "Wet Weight", "Moisture",
    "Length", "Width",
    "Purpose", "Cost Center", "Contact", "Market", "Distribution", "List Price", "Manufacturer", "Reference",
    "Type of Paper",
    "Circumference", "Test No.", "Delivery Date", "Amount", "Charge To", "Vendor", "Supervisor", "Copies To",
    "Status",
)  # fmt: skip
_WORDS = (
    "White", "Blend", "Standard", "Research", "Carton", "Domestic", "Regular", "Spring", "Market test",
    "Paper", "Pilot plant", "Marketing",
    "Filter", "Export", "Sample", "Various", "Chemistry", "Legal", "By mail", "Weekly", "Special", "New",
    "See below", "Good", "Sales",
)  # fmt: skip
_HEADS = (
    "Group",
    "No.",
    "Dosage",
    "Results",
    "Total",
    "Male",
    "Female",
    "Weight",
    "Yield",
    "Units",
    "Cost",
    "Date",
    "% Sol.",
)
_CHECKS = (
    "Yes",
    "No",
    "Urgent",
    "Routine",
    "Other",
    "Approved",
    "Rejected",
    "Pending",
    "Internal",
    "External",
    "Retain",
    "N/A",
)
_ASK = (
    "Describe the reason for this request:", "Remarks:", "Comments of the supervisor:", "Summary of results:",
    "Special instructions:", "Conclusion:", "What is the expected benefit?", "Actions taken so far:",
    "Background:",
)  # fmt: skip


def form(source: Source, hard: bool) -> Sheet:
    """A filled office form: title, fields with answers, tables, check boxes, remarks, signatures."""
    sheet = Sheet(source.between(0.752, 0.79), source, squeeze=source.between(0.85, 1.0))
    size = source.between(20, 26)
    typed = source.chance(0.65)
    label = (
        Style(size, fixed=typed, bold=source.pick((0.2, 0.5)), serif=source.chance(0.5))
        if typed
        else Style(size, bold=source.pick((0.0, 0.5, 0.9)), serif=source.chance(0.5))
    )
    label = label.but(size=size * 0.9) if typed else label
    answer = Style(size * 0.92, fixed=True, bold=source.pick((0.1, 0.5)), serif=label.serif)
    if hard and source.chance(0.3):
        answer = Style(size * 1.3, hand=True, slant=source.between(0, 0.3), bold=0.5, ink=30)
    left, right = sheet.width * source.between(0.07, 0.14), sheet.width * source.between(0.86, 0.95)
    y = _title(sheet, source, label, left, right)
    floor = sheet.height - source.between(120, 420)
    makers = [_fields, _fields, _fields, _table, _checks, _remarks, _names]
    first = True
    while y < floor:
        maker = _fields if first else source.pick(makers)
        first = False
        y = maker(sheet, source, label, answer, left, right, y, floor) + size * source.between(1.2, 3)
    if source.chance(0.6) and y < sheet.height - 90:
        y = _sign(sheet, source, label, left, right, y + 20)
    if source.chance(0.3):
        sheet.box(left - 24, 60, right + 24, min(max(y, floor) + 30, sheet.height - 40), width=3)
    if source.chance(0.6):
        _bates(sheet, source)
    if hard:
        wear(sheet, source)
        if source.chance(0.4):
            scribble(sheet, source, source.between(0.1, 0.7) * sheet.width, source.between(40, 90))
    return sheet


def _title(sheet: Sheet, source: Source, label: Style, left: float, right: float) -> float:
    y = source.between(90, 170)
    size = label.size
    if source.chance(0.25):
        logo(sheet, source, source.pick((left, sheet.width / 2 - 45)), y - 60, 90)
        y += 80
    if source.chance(0.6):
        sheet.text(sheet.width / 2, y, source.company().upper(), label, "center")
        y += size * 1.8
    big = label.but(size=size * source.between(1.0, 1.6), bold=0.9, spacing=source.pick((0.0, 0.0, 5.0)))
    title = source.pick(_TITLES)
    sheet.text(sheet.width / 2, y, title, big, "center")
    if source.chance(0.4):
        half = big.measure(title) / 2
        sheet.rule(sheet.width / 2 - half, y + 6, sheet.width / 2 + half, y + 6)
    if source.chance(0.3):
        sheet.text(right, 70, f"Page 1 of {source.whole(1, 12)}", label, "right")
    return y + size * source.between(2.5, 4)


def _value(source: Source) -> str:
    return source.pick((
        str(source.fake.last_name()), source.date(1960, 1998), source.person(),
        f"{source.between(0, 120):.2f}", source.digits(5),
        f"{source.whole(1, 99)}-{source.digits(4)}", source.pick(_WORDS),
        source.pick(("None", "N/A", "-", "As above", "OK")),
        f"{source.whole(2, 90)} {source.pick(('mm', 'gms.', '%', 'lbs.', 'mg', 'copies'))}",
        str(source.fake.city()), "",
        source.pick(_WORDS), f"{source.pick(_WORDS)} {source.pick(_WORDS).lower()}",
    ))  # fmt: skip


def _fields(
    sheet: Sheet,
    source: Source,
    label: Style,
    answer: Style,
    left: float,
    right: float,
    y: float,
    floor: float,
) -> float:
    columns = source.pick((1, 2, 2))
    rows = source.whole(3, 9)
    names = source.some(_FIELDS, rows * columns)
    step = label.size * source.between(1.5, 2.3)
    ruled, mark, upper = source.chance(0.8), source.pick((":", ":", "")), source.chance(0.4)
    width = (right - left) / columns
    tab = width * source.between(0.38, 0.5)
    for i, name in enumerate(names):
        x, line = left + (i % columns) * width, y + (i // columns) * step
        if line > floor + 60:
            break
        end = sheet.text(x, line, (name.upper() if upper else name) + mark, label)
        start = max(end + 8, x + tab)
        stop = x + width - 20
        if ruled:
            sheet.rule(start, line + 5, stop, line + 5)
        text = _value(source)
        if answer.measure(text) < stop - start:
            sheet.text(start + 10, line, text, answer)
    return y + rows * step


def _table(
    sheet: Sheet,
    source: Source,
    label: Style,
    answer: Style,
    left: float,
    right: float,
    y: float,
    floor: float,
) -> float:
    columns, rows = source.whole(3, 6), source.whole(3, 8)
    step, lined = label.size * source.between(1.5, 2), source.chance(0.5)
    width = (right - left) / columns
    heads = source.some(_HEADS, columns)
    rows = min(rows, max(2, int((floor + 60 - y) / step)))
    for c, head in enumerate(heads):
        sheet.text(left + (c + 0.5) * width, y, head, label, "center")
        if not lined:
            half = label.measure(head) / 2
            sheet.rule(left + (c + 0.5) * width - half, y + 5, left + (c + 0.5) * width + half, y + 5)
    for r in range(1, rows + 1):
        for c in range(columns):
            value = str(r) if c == 0 else source.pick((f"{source.between(0, 60):.2f}", str(source.whole(1, 4000)), "-"))
            sheet.text(left + (c + 0.5) * width, y + r * step, value, answer, "center")
    if lined:
        top, foot = y - step * 0.65, y + (rows + 0.35) * step
        for r in range(rows + 2):
            sheet.rule(left, top + r * step, right, top + r * step)
        for c in range(columns + 1):
            sheet.rule(left + c * width, top, left + c * width, foot)
    return y + (rows + 0.5) * step


def _checks(
    sheet: Sheet,
    source: Source,
    label: Style,
    answer: Style,
    left: float,
    right: float,
    y: float,
    floor: float,
) -> float:
    end = sheet.text(left, y, source.pick(_FIELDS) + ":", label)
    x = end + 40
    for name in source.some(_CHECKS, source.whole(2, 6)):
        if x + label.measure(name) + 60 > right:
            x, y = left + 60, y + label.size * 1.7
        x = sheet.check(x, y, name, label, source.chance(0.35)) + 40
    return y + label.size


def _remarks(
    sheet: Sheet,
    source: Source,
    label: Style,
    answer: Style,
    left: float,
    right: float,
    y: float,
    floor: float,
) -> float:
    sheet.text(left, y, source.pick(_ASK), label)
    step = answer.size * source.between(1.2, 1.9)
    text = source.chatter(source.whole(1, 4))
    end = sheet.paragraph(
        left + 40, y + step * 1.2, right - left - 60, text, answer, step / answer.size, bottom=floor + 60
    )
    if source.chance(0.4):
        for i in range(source.whole(2, 5)):
            line = y + step * 1.2 + 6 + i * step
            sheet.rule(left, line, right, line, width=1)
            end = max(end, line)
    return end


def _names(
    sheet: Sheet,
    source: Source,
    label: Style,
    answer: Style,
    left: float,
    right: float,
    y: float,
    floor: float,
) -> float:
    sheet.text(left, y, source.pick(("cc:", "Copies to:", "Distribution:")), label)
    rows, columns = source.whole(2, 5), source.whole(1, 3)
    for r in range(rows):
        for c in range(columns):
            name = f"{source.pick('ABCDEGHJKLMPRST')}. {source.pick('ABCDEFHJKLMR')}. {source.fake.last_name()}"
            sheet.text(left + 60 + c * (right - left) / columns, y + (r + 1) * label.size * 1.25, name, answer)
    return y + rows * label.size * 1.3


def _sign(sheet: Sheet, source: Source, label: Style, left: float, right: float, y: float) -> float:
    for x in (left, (left + right) / 2)[: source.whole(1, 2)]:
        name = source.pick(("Approved by:", "Signature", "Supervised by:", "Prepared by:"))
        end = sheet.text(x, y, name, label)
        sheet.rule(end + 8, y + 4, x + (right - left) * 0.46, y + 4)
        if source.chance(0.8):
            signature(sheet, source, end + 30, y, 180, 60)
    return y + label.size


def _bates(sheet: Sheet, source: Source) -> None:
    """The number that archives print at the foot of a page."""
    number = source.digits(source.whole(8, 10))
    sheet.text(
        sheet.width * source.between(0.68, 0.8),
        sheet.height - source.between(40, 90),
        number,
        Style(32, fixed=True, bold=0.9),
    )
