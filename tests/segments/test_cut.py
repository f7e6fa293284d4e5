"""Assignment of a model's parts to segments, and the tensors that pass between segments."""

from ee_export.segments.cut import Part, cut_parts


def part(inputs: str, outputs: str) -> Part:
    return Part(tuple(inputs.split()), tuple(outputs.split()), lambda *tensors: tensors)


def test_parts_that_an_answer_does_not_read_go_to_the_next_segment() -> None:
    answer, rest = part("hidden", "key first"), part("hidden key", "hidden.1")
    head, last = part("first", "encoder.1.logits"), part("hidden.1", "final.logits")
    first, second = cut_parts([answer, rest, head, last], ["encoder.1", "final"])
    assert first.parts == (answer, head)
    assert second.parts == (rest, last)
    assert first.inputs == ("hidden",)
    assert first.outputs == ("encoder.1.logits", "key")
    assert second.inputs == ("hidden", "key")


def test_a_part_that_no_exit_needs_is_left_out() -> None:
    used, unused = part("pixels", "final.logits"), part("pixels", "attention")
    (segment,) = cut_parts([used, unused], ["final"])
    assert segment.parts == (used,)
    assert segment.outputs == ("final.logits",)


def test_an_input_that_a_later_segment_reads_again_is_not_passed_on() -> None:
    one, two = part("pixels", "vision.logits"), part("pixels words", "final.logits")
    first, second = cut_parts([one, two], ["vision", "final"])
    assert first.outputs == ("vision.logits",)
    assert second.inputs == ("pixels", "words")
