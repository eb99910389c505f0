"""The report page: well-formed, self-contained, and showing what it was given."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from examples.digits.report import Epoch, Event, Journey, Point, Row, Version, render

START = 1_764_000_000.0
VOID = {"meta", "br", "hr", "img", "link", "input"}


def journey() -> Journey:
    """Two versions; the second is rolled back."""
    return Journey(
        title="Digits",
        summary="Version 2 was rolled back.",
        versions=[
            Version(
                "v1",
                "5 epochs",
                curve=[Epoch(1, 1.2217, 0.8694), Epoch(2, 0.2616, 0.9512)],
                metrics={"accuracy": 0.9917, "f1_macro": 0.9893},
                confusion={"0": {"0": 36, "1": 0}, "1": {"0": 3, "1": 41}},
            ),
            Version("v2", "shuffled", curve=[Epoch(1, 2.4721, 0.0613)], metrics={"accuracy": 0.1194}),
        ],
        accuracy=[Point(START + 5, 0.9871), Point(START + 25, 0.1063)],
        p50_latency=[Point(START + 5, 3.217), Point(START + 25, 3.419)],
        p99_latency=[Point(START + 5, 7.913), Point(START + 25, 9.177)],
        events=[
            Event(START, "deploy", "v1 goes out"),
            Event(START + 20, "deploy", "v2 goes out"),
            Event(START + 27.5, "alarm", "accuracy is low"),
            Event(START + 28.1, "rollback", "v1 is back"),
        ],
        rows=[Row("Accuracy of version 1", "0.9917", "DescribeTrainingJob")],
        promised_accuracy=0.93,
        promised_p99_latency=20.0,
    )


class Page(HTMLParser):
    """Fails on a tag that closes what is not open, and gathers text and addresses."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open
        self.text = " ".join(self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")
        ]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)


def drawings(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(drawing) for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def test_the_page_is_well_formed_and_so_is_each_drawing() -> None:
    page = render(journey())

    assert Page(page).tags[0] == "html"
    # The time line and two learning curves, each for wide and narrow screens, and one confusion matrix
    assert len(drawings(page)) == 7


def test_nothing_is_fetched_from_elsewhere() -> None:
    page = render(journey())

    assert Page(page).addresses == []
    assert "script" not in Page(page).tags
    assert not re.search(r"url\(|@import|@font-face", page)
    assert set(re.findall(r"\w+://[^\s\"'<]+", page)) == {"http://www.w3.org/2000/svg"}


def test_light_and_dark_mode_are_both_there() -> None:
    page = render(journey())

    assert '<meta name="color-scheme" content="light dark">' in page
    assert "prefers-color-scheme: dark" in page


def test_every_number_and_every_event_is_shown() -> None:
    text = Page(render(journey())).text

    # The learning curves, the time lines, the evaluation, the confusion matrix, the promises and the table
    for number in (
        *("1.222", "0.8694", "0.2616", "0.9512", "2.472", "0.0613"),
        *("0.9871", "0.1063", "3.217", "3.419", "7.913", "9.177"),
        *("0.9917", "0.9893", "0.1194"),
        *("36", "41", "true 1, predicted 0: 3"),
        *("promised: at least 0.93", "promised p99: at most 20"),
        "DescribeTrainingJob",
    ):
        assert number in text
    for words in (
        "v1 goes out",
        "v2 goes out",
        "accuracy is low",
        "v1 is back",
        "27.5 seconds",
        "Latency (ms)",
        "epoch",
    ):
        assert words in text
    assert "seconds since 2025-11-24 16:00:00 UTC" in text


def test_a_promise_far_above_what_was_measured_does_not_flatten_the_lines() -> None:
    text = Page(render(Journey("fast", p99_latency=[Point(START, 2.0)], promised_p99_latency=200.0))).text

    assert "Latency (ms), promised p99: at most 200" in text


def test_event_labels_neither_overlap_nor_leave_the_drawing() -> None:
    # Given events close together, and the last at the right edge
    events = [Event(START + offset, "rollback", "") for offset in (0, 0.1, 0.2, 3, 3.1, 50, 99.9, 100)]

    page = render(Journey("crowded", events=events, accuracy=[Point(START + 100, 0.5)]))

    for drawing in drawings(page):
        width = float(drawing.attrib["viewBox"].split()[2])
        rectangles = [
            tuple(float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
            for flag in drawing.iter("{http://www.w3.org/2000/svg}g")
            if flag.attrib.get("class", "").startswith("flag")
            for rect in flag.iter("{http://www.w3.org/2000/svg}rect")
        ]
        assert len(rectangles) == len(events)
        for index, (x, y, wide, high) in enumerate(rectangles):
            assert x >= 0
            assert x + wide <= width
            for x2, y2, wide2, high2 in rectangles[:index]:
                assert x >= x2 + wide2 or x2 >= x + wide or y >= y2 + high2 or y2 >= y + high


def test_the_labels_at_the_ends_of_lines_stay_within_the_drawing() -> None:
    # Given names as the registry gives them, one of them long
    curves = [Epoch(1, 1.2345, 0.9861), Epoch(2, 0.04512, 0.1389)]
    versions = [Version(name, curve=curves) for name in ("digits/1", "digits/2", "a-model-with-a-long-name/12")]

    page = render(Journey("names", versions=versions))

    labels = [
        (
            float(label.attrib["x"]) + len(label.text or "") * 8.4,
            float(drawing.attrib["viewBox"].split()[2]),
            label.text,
        )
        for drawing in drawings(page)
        for label in drawing.iter("{http://www.w3.org/2000/svg}text")
        if label.attrib.get("class", "").startswith("end")
    ]
    assert len(labels) == 12
    assert all(end <= width + 0.1 for end, width, _ in labels)
    assert {text.split()[0] for _, _, text in labels if text} == {"digits/1", "digits/2", "…g-name/12"}


def test_values_of_one_moment_are_all_among_the_numbers() -> None:
    page = render(Journey("switch", accuracy=[Point(START, 0.9891), Point(START, 0.1079), Point(START + 10, 0.9874)]))

    assert "<td>0.9891, 0.1079</td>" in page


HOSTILE = "<script>alert(1)</script> \"'&]]> \x00\x1b\ud800 <img src=x onerror=y>"


def test_hostile_text_is_shown_as_text() -> None:
    hostile = Journey(
        title=HOSTILE,
        summary=HOSTILE,
        versions=[Version(HOSTILE, HOSTILE, [Epoch(1, 1, 1)], {HOSTILE: 1.0}, {HOSTILE: {HOSTILE: 1}})],
        events=[Event(START, HOSTILE, HOSTILE)],  # type: ignore[arg-type]
        rows=[Row(HOSTILE, HOSTILE, HOSTILE)],
    )

    page = render(hostile)

    page.encode("utf-8")
    assert not {"script", "img"} & set(Page(page).tags)
    assert drawings(page)
    assert Page(page).text.count("<script>alert(1)</script>") >= 10


@pytest.mark.parametrize(
    "sparse",
    [
        Journey("nothing"),
        Journey("versions without anything", versions=[Version("v1")]),
        Journey("one point", accuracy=[Point(START, 1.0)], p99_latency=[Point(START, 0.0)]),
        Journey("events only", events=[Event(START, "deploy", "out")]),
        Journey("one epoch", versions=[Version("v1", curve=[Epoch(1, 0.0, 0.0)])]),
        Journey("no numbers", accuracy=[Point(START, float("nan"))], p50_latency=[Point(START, float("inf"))]),
        Journey("diverged", versions=[Version("v1", curve=[Epoch(1, float("nan"), 0.1), Epoch(2, float("inf"), 0.1)])]),
        Journey("empty matrix", versions=[Version("v1", confusion={"0": {"0": 0}})]),
        Journey("a month", accuracy=[Point(START, 0.9), Point(START + 30 * 86_400, 0.8)]),
        Journey("many versions", versions=[Version(f"version-{n}", curve=[Epoch(1, n, 0.5)]) for n in range(9)]),
    ],
    ids=lambda sparse: sparse.title,
)
def test_empty_and_odd_series_are_handled(sparse: Journey) -> None:
    page = render(sparse)

    Page(page)
    for drawing in drawings(page):
        assert not re.search(
            r"\b(nan|inf)\b", ElementTree.tostring(drawing, encoding="unicode").replace("nan</text>", "")
        )


def test_what_was_not_read_is_said() -> None:
    text = Page(render(Journey("nothing"))).text

    for words in ("No metric and no event", "No learning curve", "No evaluation", "No number"):
        assert words in text
