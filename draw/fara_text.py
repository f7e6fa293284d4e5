"""The wording of drawn FARA pages: our own text in the manner of such forms, and the answers filled in."""

from __future__ import annotations

from draw.source import Source

TITLES = {
    "amendment": ("Amendment to Registration Statement", "NSD-5", "CRM-158"),
    "dissemination": ("Dissemination Report", "CRM-159", "OBD-69"),
    "short": ("Short Form Registration Statement", "NSD-6", "CRM-156"),
}

INSTRUCTIONS = {
    "amendment": (
        "Use this amendment whenever something in a registration that is already on file has changed or was wrong.",
        "Name the item or exhibit that is being amended, and attach any papers that support the amendment.",
        "An amendment may cover the initial statement, a supplemental statement or an exhibit, in any combination.",
        "Deficiencies pointed out by the Registration Unit are to be cured by an amendment within the time allowed.",
    ),
    "dissemination": (
        "Send two copies of this report, together with the material, not later than forty-eight hours after transmission.",
        "Each item of the report needs an answer; write none or not applicable where there is nothing to report.",
        "One report may cover a month where the same material is disseminated repeatedly in the ordinary course.",
        "The original of the report carries the signature of the registrant or of someone acting for the registrant.",
    ),
    "short": (
        "Partners, officers, directors, associates, employees and agents of a registrant each complete a short form.",
        "No short form is needed from persons whose work is only clerical, secretarial or of a similar kind.",
        "The short form is filed once, and again when the services or the foreign principals of the person change.",
        "A person who renders services directly in the interests of a foreign principal states them in full.",
    ),
}

NOTICES = (
    (
        "Privacy Act Statement. The information on this form is asked for under the Foreign Agents Registration Act of "
        "1938, as amended, 22 U.S.C. 611, and answering is mandatory; those who do not answer risk the penalties that "
        "Section 8 of the Act provides."
    ),
    (
        "Every statement, exhibit, amendment or other paper that this Act sends to the Attorney General becomes a "
        "public record, which anybody may read and copy at the Registration Unit in Washington, DC, during office hours."
    ),
    (
        "Registration statements, short forms, supplemental statements, dissemination reports and amendments are listed "
        "on the public web pages of the Registration Unit, http://www.fara.gov/, some days after they arrive."
    ),
    (
        "A copy of each paper, informational materials excepted, goes to the Secretary of State as Section 6(b) of the Act "
        "asks, and further copies go to other agencies and to committees of Congress when they request them."
    ),
    (
        "The Attorney General also reports to Congress at regular intervals on how the Act is administered, with the names "
        "of all registrants, whom they work for abroad, and what they have done for them."
    ),
    (
        "Public Reporting Burden. Filling in this form takes about {burden} hours on average, counting the time to read "
        "the instructions, to look up existing records, to gather the data needed and to check the answers."
    ),
    (
        "Comments on this estimate, or ideas for making the burden smaller, may be sent to the Chief, Registration Unit, "
        "{section}, U.S. Department of Justice, Washington, DC 20530."
    ),
    (
        "Another copy may go to the Office of Management and Budget, attention of the desk officer for "
        "Justice, Washington, DC 20503, with the number of this collection of information."
    ),
    (
        "Nobody has to answer a collection of information by the Federal Government unless it shows a valid number that "
        "the Budget Office gave to it; that number stands in the upper corner of the first page."
    ),
    (
        "Records under this Act are kept by name of the registrant and by name of the foreign principal, and the staff of the "
        "Registration Unit helps visitors to find them, makes copies for a fee, and answers letters and telephone calls."
    ),
    (
        "Papers that arrive without a signature, without the fee, or with items left open are sent back to the filer, and "
        "count as filed only when they have been completed and have reached the Registration Unit a second time."
    ),
    (
        "The undersigned, if a corporation, signs through an officer; if a partnership, through a partner; attach sheets "
        "of the same size where the space given for an item is too small, and number the item on each of them."
    ),
)

SECTIONS = (
    "National Security Division", "Counterespionage Section", "Internal Security Section, Criminal Division",
    "Counterintelligence and Export Control Section",
)  # fmt: skip
COUNTRIES = (
    "Japan", "Republic of Korea", "Norway", "Kenya", "Peru", "Malta", "Jordan", "Thailand", "Canada",
    "Morocco",
    "Singapore", "Chile", "Iceland", "Ghana", "Portugal", "Mongolia", "Barbados", "Austria", "Fiji",
    "Tunisia",
)  # fmt: skip
BODIES = (
    "Embassy of {}", "Government of {}", "{} National Tourist Office", "{} Trade Council",
    "Ministry of Commerce, {}",
    "{} Export Board", "Industrial Development Authority of {}", "{} Airlines", "Chamber of Shipping of {}",
)  # fmt: skip
SERVICES = (
    "public relations", "legal advice", "trade promotion", "media relations", "government affairs",
    "lobbying",
    "tourism promotion", "economic research", "strategic communications", "investment promotion",
)  # fmt: skip
MATERIALS = (
    "press release on {}", "newsletter about {}", "brochure on {}", "fact sheet on {}", "film about {}",
    "speech concerning {}", "advertisement for {}", "summary of views on {}", "mailing on {}",
    "magazine on {}",
)  # fmt: skip
TOPICS = (
    "trade and tariffs", "winter tourism", "fishing rights", "air services", "investment incentives",
    "cultural weeks",
    "the sugar quota", "export credits", "steel imports", "ship registration", "the national economy",
    "folk festivals",
)  # fmt: skip


def principal(source: Source) -> str:
    """A foreign principal."""
    return source.pick(BODIES).format(source.pick(COUNTRIES))


def notices(source: Source, kind: str, words: int) -> list[str]:
    """Paragraphs of instructions and notices, about ``words`` words, the instructions first."""
    first = "INSTRUCTIONS. " + " ".join(source.some(INSTRUCTIONS[kind], source.whole(2, 3)))
    paragraphs, used = [first], len(first.split())
    groups = [NOTICES[:5], NOTICES[5:9], NOTICES[9:]]
    for group in groups:
        chosen = []
        for sentence in group:
            if source.chance(0.08):
                continue
            length = len(sentence.split())
            if used + length > words:
                break
            burden, section = source.pick(("1.5", ".5", ".429", ".23")), source.pick(SECTIONS)
            chosen.append(sentence.format(burden=burden, section=section))
            used += length
        if chosen:
            paragraphs.append(" ".join(chosen))
    return paragraphs


def narrative(source: Source, kind: str, sentences: int) -> str:
    """A typed answer of some sentences in the manner of the kind of filing."""
    lines = []
    for _ in range(sentences):
        body, service, topic = principal(source), source.pick(SERVICES), source.pick(TOPICS)
        if kind == "amendment":
            options = [
                f"The agreement with {body} was extended until {source.date(1980, 2019, 'long')} on the same terms.",
                f"{source.person()} left the firm on {source.date(1980, 2019, 'long')} and no longer serves {body}.",
                f"Exhibit {source.pick('ABCD')} is amended to show a monthly fee of ${source.whole(2, 90)},000 for {service}.",
                f"The registrant moved its office to {', '.join(source.address())}.",
                f"In answer to Item {source.whole(5, 16)} the amount received from {body} is ${source.money(900, 99000)}.",
                f"Registrant now also represents {body} in matters of {topic}.",
                f"Termination of the contract for {service} with {body} is hereby reported.",
            ]
        elif kind == "short":
            options = [
                f"Will provide {service} to {body} with respect to {topic}.",
                f"Assist the registrant with {service} and {source.pick(SERVICES)} for {body}.",
                f"Meetings with officials and the press on {topic}, beginning {source.date(1990, 2019, 'long')}.",
                f"Research and writing in the field of {topic}.",
            ]
        else:
            options = [
                source.pick(MATERIALS).format(topic).capitalize() + f" in {source.pick(COUNTRIES)}.",
                f"Letters to editors on {topic}, sent on behalf of {body}.",
                f"Monthly bulletin on {topic}, mailed to subscribers.",
            ]
        lines.append(source.pick(options))
    return " ".join(lines)
