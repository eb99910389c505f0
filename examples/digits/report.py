"""The journey of a model as one page: how it learned, how it did in service, and what happened to it.

    page = render(Journey(title="digits", versions=[...], accuracy=[Point(1764000000.0, 0.98)], ...))
    Path("report.html").write_text(page, encoding="utf-8")

The page needs nothing but itself: its charts are inline SVG, its colours follow the reader's light or dark mode, and the
numbers behind each chart can be unfolded below it. Colours are Okabe and Ito's, which colour-blind people tell apart, and
no meaning hangs on a colour alone.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

# --- What a page shows ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Epoch:
    """One point of a learning curve. The loss is in nats, the accuracy a fraction."""

    epoch: float
    train_loss: float
    validation_accuracy: float


@dataclass(frozen=True)
class Version:
    """A model version and its evaluation on held-out data.

    Attributes:
        name: short, for legends: ``v1``.
        note: how it came about: ``5 epochs on true labels``.
        curve: its training, in order.
        metrics: name -> value, for example ``{"accuracy": 0.9861}``.
        confusion: true class -> predicted class -> count.
    """

    name: str
    note: str = ""
    curve: Sequence[Epoch] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    confusion: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """A metric's value at a time in unix seconds."""

    time: float
    value: float


@dataclass(frozen=True)
class Event:
    """Something that happened to the endpoint, at a time in unix seconds."""

    time: float
    kind: Literal["deploy", "alarm", "rollback"]
    text: str


@dataclass(frozen=True)
class Row:
    """One number and the API operation that it was read with, for example ``DescribeTrainingJob``."""

    what: str
    value: str
    source: str


@dataclass(frozen=True)
class Journey:
    """All that the page shows. Latencies are in milliseconds, accuracies are fractions."""

    title: str
    summary: str = ""
    versions: Sequence[Version] = ()
    accuracy: Sequence[Point] = ()
    p50_latency: Sequence[Point] = ()
    p99_latency: Sequence[Point] = ()
    events: Sequence[Event] = ()
    rows: Sequence[Row] = ()
    promised_accuracy: float | None = None
    promised_p99_latency: float | None = None


def render(journey: Journey) -> str:
    """The page, as HTML. Any text of the journey's is shown as it is, never as markup."""
    sections = [
        _section("In service", _in_service(journey)),
        _section("Training", _training(journey.versions)),
        _section("Evaluation on held-out data", _evaluation(journey.versions)),
        _section("Each number, and where it was read", _rows(journey.rows)),
    ]
    summary = f"<p>{_text(journey.summary)}</p>" if journey.summary else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(journey.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{_text(journey.title)}</h1>{summary}</header>\n<main>\n" + "\n".join(sections) + "\n</main>\n"
        "</body>\n</html>\n"
    )


# --- Sections ---------------------------------------------------------------------------------------------------------


def _in_service(journey: Journey) -> str:
    series = [
        _Series("accuracy", 0, [(point.time, point.value) for point in journey.accuracy]),
        _Series("p50", 2, [(point.time, point.value) for point in journey.p50_latency]),
        _Series("p99", 1, [(point.time, point.value) for point in journey.p99_latency]),
    ]
    events = sorted(journey.events, key=lambda event: event.time)
    times = [x for line in series for x, _ in line.finite] + [event.time for event in events]
    if not times:
        return _empty("No metric and no event was read.")

    start = min(times)
    unit, seconds = _time_unit(max(times) - start)
    clock = f"{unit} since {datetime.fromtimestamp(start, UTC):%Y-%m-%d %H:%M:%S} UTC"

    def elapsed(time: float) -> float:
        return (time - start) / seconds

    accuracy, p50, p99 = (_Series(line.name, line.style, [(elapsed(x), y) for x, y in line.points]) for line in series)
    marks = [(elapsed(event.time), event.kind) for event in events]
    x_high = max(elapsed(time) for time in times) or 1.0

    def chart(width: int) -> str:
        margin = max(_end_margin([accuracy]), _end_margin([p50, p99]))
        lanes, lane_height = _flags(marks, _Frame(width, 0, 0, (0.0, x_high), (0.0, 1.0), margin))
        top = _Frame(width, lane_height + 34, 150, (0.0, x_high), (0.0, 1.0), margin)
        latencies = _range_from_zero(p50, p99, journey.promised_p99_latency)
        bottom = _Frame(width, top.bottom + 62, 150, (0.0, x_high), latencies, margin)
        leaders = "".join(
            f'<line class="leader {_text(kind)}" x1="{top.x(x):.1f}" x2="{top.x(x):.1f}" y1="{y:.1f}" y2="{bottom.bottom}"/>'
            for (x, kind), (_, y) in zip(marks, lanes, strict=True)
        )
        body = (
            leaders
            + top.draw("Accuracy (fraction of labelled answers)", [accuracy], promise=journey.promised_accuracy)
            + bottom.draw(
                "Latency (ms)", [p50, p99], promise=journey.promised_p99_latency, promise_is="promised p99: at most"
            )
            + bottom.x_axis(clock)
            + "".join(flag for flag, _ in lanes)
        )
        return _svg(
            width, bottom.bottom + 46, "Accuracy and latency over time, with deploys, alarms and rollbacks", body
        )

    legend = "".join(
        f'<li class="{_text(event.kind)}"><b class="badge">{number}</b> <b>{_text(event.kind)}</b> '
        f'<span class="when">{_number(elapsed(event.time))} {unit}</span> <span>{_text(event.text)}</span></li>'
        for number, event in enumerate(events, start=1)
    )
    # Two versions may have answered in one period, so one time may have several values.
    times = sorted({x for line in (accuracy, p50, p99) for x, _ in line.points})
    rows = [
        (
            _number(time),
            *(", ".join(_number(y) for x, y in line.points if x == time) or "–" for line in (accuracy, p50, p99)),
        )
        for time in times
    ]
    return (
        _for_each_screen(chart, wide=1080, narrow=370)
        + (f'<ol class="events">{legend}</ol>' if events else "")
        + _numbers((clock, "accuracy", "p50 latency (ms)", "p99 latency (ms)"), rows)
    )


def _training(versions: Sequence[Version]) -> str:
    loss = [
        _Series(version.name, style, [(point.epoch, point.train_loss) for point in version.curve])
        for style, version in enumerate(versions)
    ]
    accuracy = [
        _Series(version.name, style, [(point.epoch, point.validation_accuracy) for point in version.curve])
        for style, version in enumerate(versions)
    ]
    epochs = [x for line in loss + accuracy for x, _ in line.finite]
    if not epochs:
        return _empty("No learning curve was read.")

    x_range = (min(epochs), max(epochs)) if min(epochs) < max(epochs) else (min(epochs) - 0.5, max(epochs) + 0.5)

    def chart(title: str, series: Sequence[_Series], y_range: tuple[float, float]) -> str:
        def of_width(width: int) -> str:
            frame = _Frame(width, 34, 190, x_range, y_range, _end_margin(series))
            body = frame.draw(title, series) + frame.x_axis("epoch", whole=True)
            return _svg(width, frame.bottom + 46, title, body)

        return f"<div>{_for_each_screen(of_width, wide=500, narrow=370)}</div>"

    notes = "".join(
        f"<li><b>{_text(version.name)}</b> {_text(version.note)}</li>" for version in versions if version.note
    )
    rows = [
        (version.name, _number(point.epoch), _number(point.train_loss), _number(point.validation_accuracy))
        for version in versions
        for point in version.curve
    ]
    return (
        (f'<ul class="notes">{notes}</ul>' if notes else "")
        + '<div class="pair">'
        + chart("Training loss (cross entropy, nats)", loss, _range_from_zero(*loss))
        + chart("Validation accuracy (fraction)", accuracy, (0.0, 1.0))
        + "</div>"
        + _numbers(("version", "epoch", "train loss", "validation accuracy"), rows)
    )


def _evaluation(versions: Sequence[Version]) -> str:
    measured = [version for version in versions if version.metrics]
    matrices = "".join(
        f"<figure><figcaption><b>{_text(version.name)}</b> {_text(version.note)}</figcaption>"
        f"{_confusion_matrix(version)}</figure>"
        for version in versions
        if version.confusion
    )
    if not measured and not matrices:
        return _empty("No evaluation was read.")
    names = list(dict.fromkeys(name for version in measured for name in version.metrics))
    table = _table(
        ("metric", *(version.name for version in measured)),
        [
            (
                name.replace("_", " "),
                *(_number(version.metrics[name]) if name in version.metrics else "–" for version in measured),
            )
            for name in names
        ],
    )
    return (f'<div class="pair">{matrices}</div>' if matrices else "") + (table if measured else "")


def _rows(rows: Sequence[Row]) -> str:
    if not rows:
        return _empty("No number was read.")
    cells = [(_text(row.what), _text(row.value), f"<code>{_text(row.source)}</code>") for row in rows]
    return _markup_table(("what", "value", "read with"), cells, css="facts")


# --- Charts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Series:
    name: str
    style: int  # index into the palette and the marks
    points: Sequence[tuple[float, float]]

    @property
    def finite(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in self.points if math.isfinite(x) and math.isfinite(y)]


@dataclass(frozen=True)
class _Frame:
    """The rectangle of one plot inside an SVG, and the scales from data to pixels."""

    width: int
    top: int
    height: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    margin: float  # on the right, for the name and last value at the end of each line

    LEFT = 46

    @property
    def bottom(self) -> int:
        return self.top + self.height

    @property
    def right(self) -> float:
        return self.width - self.margin

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.LEFT + (value - low) / (high - low) * (self.right - self.LEFT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * self.height

    def draw(
        self,
        title: str,
        series: Sequence[_Series],
        *,
        promise: float | None = None,
        promise_is: str = "promised: at least",
    ) -> str:
        if promise is not None and not self.y_range[0] <= promise <= self.y_range[1]:
            title = f"{title}, {promise_is} {_number(promise)}"
            promise = None
        parts = [f'<text class="title" x="{self.LEFT}" y="{self.top - 14}">{_text(title)}</text>']
        for tick in _ticks(*self.y_range, count=5):
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{self.LEFT}" x2="{self.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" x="{self.LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        if promise is not None:
            y = self.y(promise)
            parts.append(f'<line class="promise" x1="{self.LEFT}" x2="{self.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts += [self._line(line) for line in series if line.finite]
        if promise is not None:
            # Over the lines, with its rim. Below its own: what keeps the promise of an accuracy lies above it.
            parts.append(
                f'<text class="promise" x="{self.LEFT + 6}" y="{self.y(promise) + 14:.1f}">'
                f"{promise_is} {_number(promise)}</text>"
            )
        parts.append(self._end_labels([line for line in series if line.finite]))
        if not any(line.finite for line in series):
            middle = (self.LEFT + self.right) / 2
            parts.append(
                f'<text class="tick" x="{middle:.1f}" y="{self.top + self.height / 2:.1f}" text-anchor="middle">'
                "no data points</text>"
            )
        return "".join(parts)

    def x_axis(self, label: str, *, whole: bool = False) -> str:
        ticks = _ticks(*self.x_range, count=max(3, int(self.right - self.LEFT) // 48), whole=whole)
        marks = "".join(
            f'<text class="tick" x="{self.x(tick):.1f}" y="{self.bottom + 18}" text-anchor="middle">{tick:g}</text>'
            for tick in ticks
        )
        middle = (self.LEFT + self.right) / 2
        return (
            marks
            + f'<text class="tick" x="{middle:.1f}" y="{self.bottom + 38}" text-anchor="middle">{_text(label)}</text>'
        )

    def _line(self, line: _Series) -> str:
        dots = [(self.x(x), self.y(y)) for x, y in line.finite]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
        marks = "".join(_mark(line.style, x, y) for x, y in dots)
        return f'<g class="s{line.style % _STYLES}"><polyline points="{path}"/>{marks}</g>'

    def _end_labels(self, series: Sequence[_Series]) -> str:
        """Names at the ends of their lines, moved apart where lines end close together."""
        labels = sorted(((self.y(line.finite[-1][1]), line) for line in series), key=lambda label: label[0])
        parts, lowest = [], -math.inf
        # From the top, each at least a line's height below the one before; all moved up if that ran past the plot.
        placed: list[tuple[float, _Series]] = []
        for y, line in labels:
            lowest = max(y, lowest + 15)
            placed.append((lowest, line))
        excess = max(0.0, placed[-1][0] - self.bottom) if placed else 0.0
        for y, line in placed:
            parts.append(
                f'<text class="end s{line.style % _STYLES}" x="{self.right + _END_GAP:.1f}" y="{y - excess + 4:.1f}">'
                f"{_text(_end_label(line, series))}</text>"
            )
        return "".join(parts)


_END_GAP = 9.0
_END_CHARACTER = 8.4  # pixels; a digit of DejaVu Sans at 12 px semibold, the widest font of the page's list


def _end_label(line: _Series, among: Sequence[_Series]) -> str:
    # Long names are cut at the front: versions of a model differ at the end.
    name = line.name if len(line.name) <= 10 else "…" + line.name[-9:]
    last = _number(line.finite[-1][1])
    return f"{name} {last}" if len(among) > 1 else last


def _end_margin(series: Sequence[_Series]) -> float:
    """Room on the right for the longest of the labels at the ends of these lines."""
    drawn = [line for line in series if line.finite]
    longest = max((len(_end_label(line, drawn)) for line in drawn), default=0)
    return _END_GAP + max(4, longest) * _END_CHARACTER


def _flags(marks: Sequence[tuple[float, str]], frame: _Frame) -> tuple[list[tuple[str, float]], int]:
    """Each event's flag with the y at which its line begins, and the height that all flags take.

    A flag flies to the right of its line. It goes one row below those that it would touch, so no line crosses a flag.
    """
    row_height, row_ends, flags = 22, list[float](), list[tuple[str, float]]()
    for number, (time, kind) in enumerate(marks, start=1):
        width = 16 + 7.6 * len(f"{number} {kind}")
        x = min(frame.x(time), frame.width - width - 1)
        row = max((index + 1 for index, end in enumerate(row_ends) if end > x), default=0)
        row_ends = [*row_ends[:row], x + width + 6, *row_ends[row + 1 :]]
        y = row * row_height
        flags.append(
            (
                f'<g class="flag {_text(kind)}"><rect x="{x:.1f}" y="{y + 1}" width="{width:.1f}" height="18" rx="3"/>'
                f'<text x="{x + 7:.1f}" y="{y + 14}">{number} {_text(kind)}</text></g>',
                y + 1.0,
            )
        )
    return flags, row_height * len(row_ends)


def _confusion_matrix(version: Version) -> str:
    classes = list(version.confusion)
    classes += sorted({said for row in version.confusion.values() for said in row} - set(classes))
    size, left, top = min(32.0, 320 / len(classes)), 56, 48
    side = size * len(classes)
    parts = [
        f'<text class="tick" x="{left + side / 2:.1f}" y="14" text-anchor="middle">predicted class</text>',
        f'<text class="tick" transform="translate(14 {top + side / 2:.1f}) rotate(-90)" text-anchor="middle">true class</text>',
    ]
    for index, name in enumerate(classes):
        short = _text(name if len(name) <= 4 else name[:3] + "…")
        middle = (index + 0.5) * size
        parts.append(f'<text class="tick" x="{left + middle:.1f}" y="{top - 8}" text-anchor="middle">{short}</text>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{top + middle + 4:.1f}" text-anchor="end">{short}</text>')
    for down, true in enumerate(classes):
        row = version.confusion.get(true, {})
        total = sum(row.values()) or 1
        for across, said in enumerate(classes):
            count = row.get(said, 0)
            share = count / total
            x, y = left + across * size, top + down * size
            kind = "right" if true == said else "wrong"
            # A floor, so that a single mistake among hundreds is still seen.
            opacity = 0.0 if not count else max(0.16, share)
            ink = " strong" if opacity > 0.55 else "" if count else " none"
            parts.append(
                f"<g><title>true {_text(true)}, predicted {_text(said)}: {count}</title>"
                f'<rect class="cell" x="{x:.1f}" y="{y:.1f}" width="{size:.1f}" height="{size:.1f}"/>'
                f'<rect class="{kind}" x="{x + 1:.1f}" y="{y + 1:.1f}" width="{size - 2:.1f}" height="{size - 2:.1f}" '
                f'fill-opacity="{opacity:.2f}"/>'
                f'<text class="count{ink}" x="{x + size / 2:.1f}" y="{y + size / 2 + 4:.1f}" text-anchor="middle">'
                f"{count}</text></g>"
            )
    label = f"Confusion matrix of {version.name}"
    return _svg(left + side + 8, top + side + 8, label, "".join(parts), css="matrix")


def _for_each_screen(chart: Callable[[int], str], *, wide: int, narrow: int) -> str:
    """The chart drawn twice; the style shows the one that fits. A chart scaled down to a phone has text too small to read."""
    return f'<div class="wide">{chart(wide)}</div><div class="narrow">{chart(narrow)}</div>'


def _mark(style: int, x: float, y: float) -> str:
    """A point. Its shape tells the series apart where colours cannot."""
    match style % 4:
        case 0:
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
        case 1:
            return f'<rect x="{x - 2.7:.1f}" y="{y - 2.7:.1f}" width="5.4" height="5.4"/>'
        case 2:
            return f'<path d="M{x:.1f} {y - 3.6:.1f}l3.4 6h-6.8z"/>'
        case _:
            return f'<path d="M{x:.1f} {y - 3.8:.1f}l3.8 3.8l-3.8 3.8l-3.8-3.8z"/>'


def _svg(width: float, height: float, label: str, body: str, css: str = "chart") -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="{css}" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{_text(label)}" style="max-width:{width:g}px">{body}</svg>'
    )


def _ticks(low: float, high: float, *, count: int, whole: bool = False) -> list[float]:
    """About `count` round numbers, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    if whole:
        step = max(1.0, step)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 10) + 0.0 for index in range(first, last + 1)]


def _range_from_zero(*of: _Series | float | None) -> tuple[float, float]:
    values = [y for line in of if isinstance(line, _Series) for _, y in line.finite]
    highest = max(values, default=1.0)
    # A promise far above what was measured would squeeze the lines flat; then the title says it.
    for promise in of:
        if isinstance(promise, int | float) and highest < promise <= 3 * highest:
            highest = float(promise)
    if highest <= 0:
        return (min(0.0, *values), 1.0)
    top = _ticks(0.0, highest, count=5)
    step = top[1] - top[0]
    return (0.0, math.ceil(highest / step - 1e-9) * step)


def _time_unit(seconds: float) -> tuple[str, float]:
    for name, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds > 3 * length:
            return name, length
    return "seconds", 1.0


# --- Text -------------------------------------------------------------------------------------------------------------


def _text(text: str) -> str:
    # Control characters are not allowed in XML, escaped or not.
    return html.escape(re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text))


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 10_000 or not math.isfinite(value) else f"{value:,.0f}"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def _empty(text: str) -> str:
    return f'<p class="empty">{text}</p>'


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    return _markup_table(heads, [[_text(cell) for cell in row] for row in rows])


def _markup_table(heads: Iterable[str], rows: Iterable[Sequence[str]], css: str = "") -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in heads)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table class="{css}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _numbers(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    return f"<details><summary>The numbers behind the charts</summary>{_table(heads, rows)}</details>"


_STYLES = 6  # colours in the palette below; further series begin again

_STYLE = """
:root {
  --paper: #ffffff; --card: #f7f8fa; --ink: #1b2027; --soft: #59636f; --rule: #dfe3e8;
  --c0: #0072b2; --c1: #c24e00; --c2: #00805e; --c3: #a3528a; --c4: #8a6500; --c5: #2b7ba8;
  --on: #ffffff;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #12161b; --card: #1a2027; --ink: #e8ecf1; --soft: #a3aebb; --rule: #333c47;
    --c0: #56b4e9; --c1: #f08c4b; --c2: #35c49a; --c3: #e29ac8; --c4: #e6b422; --c5: #9fd3f2;
    --on: #0d1116;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 40px 32px 64px; max-width: 1200px; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
}
h1 { margin: 0; font-size: 30px; line-height: 1.2; letter-spacing: -0.01em; }
h2 { margin: 0 0 16px; font-size: 19px; }
header p { margin: 10px 0 0; max-width: 70ch; color: var(--soft); font-size: 17px; }
section { margin-top: 28px; padding: 24px 28px 20px;
  border: 1px solid var(--rule); border-radius: 10px; background: var(--card); }
h1, header p, td, th, li, figcaption { overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 12px; fill: var(--ink); }
.narrow { display: none; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 24px 32px; }
.empty, .when, figcaption { color: var(--soft); }
.empty { margin: 0 0 4px; font-style: italic; }
figure { margin: 0; }
figcaption { margin-bottom: 10px; }
figcaption b, .notes b { margin-right: 6px; color: var(--ink); }

.grid { stroke: var(--rule); }
svg .title { font-weight: 600; font-size: 13px; }
/* A rim of background keeps words apart from the lines behind them. */
svg .title, svg text.promise { paint-order: stroke; stroke: var(--card); stroke-width: 5px; stroke-linejoin: round; }
svg .tick { fill: var(--soft); }
.s0 { --c: var(--c0); } .s1 { --c: var(--c1); } .s2 { --c: var(--c2); }
.s3 { --c: var(--c3); } .s4 { --c: var(--c4); } .s5 { --c: var(--c5); }
polyline { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
.s1 polyline { stroke-dasharray: 7 3; } .s2 polyline { stroke-dasharray: 2 3; }
g[class^="s"] :not(polyline) { fill: var(--c); }
svg text.end { fill: var(--c); font-weight: 600; }
line.promise { stroke: var(--soft); stroke-dasharray: 3 4; }
svg text.promise { fill: var(--soft); font-size: 11px; }

.deploy { --c: var(--c0); } .alarm { --c: var(--c1); } .rollback { --c: var(--c2); }
.leader { stroke: var(--c); stroke-width: 1.5; }
.leader.alarm { stroke-dasharray: 5 3; } .leader.rollback { stroke-dasharray: 2 3; }
.flag rect { fill: var(--c); }
svg .flag text { fill: var(--on); font-weight: 600; font-size: 11.5px; }
.events, .notes { margin: 14px 0 0; padding: 0; list-style: none; }
.notes { margin: -6px 0 18px; color: var(--soft); }
.events li { display: grid; grid-template-columns: 1.7em 4.6em 7.6em 1fr; gap: 0 8px; align-items: baseline; margin: 5px 0; }
.badge {
  padding: 0 0.35em; border-radius: 3px; background: var(--c); color: var(--on);
  text-align: center; font-size: 12px; line-height: 1.6;
}

.cell { fill: none; stroke: var(--rule); }
.right { fill: var(--c0); } .wrong { fill: var(--c1); }
svg .count { font-variant-numeric: tabular-nums; }
svg .count.none { fill: var(--soft); opacity: 0.55; }
svg .count.strong { fill: var(--on); font-weight: 600; }

.scroll { overflow-x: auto; }
table { width: 100%; margin-top: 12px; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: baseline; }
thead th { color: var(--soft); font-size: 13px; font-weight: 600; }
tbody th { font-weight: 400; }
tbody tr:last-child > * { border-bottom: 0; }
.facts th { min-width: 9em; }
.facts td:nth-child(2) { width: 55%; font-weight: 600; }
.facts code { white-space: nowrap; overflow-wrap: normal; }
code { color: var(--soft); font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
details { margin-top: 14px; }
summary { color: var(--soft); cursor: pointer; }

@media (max-width: 760px) {
  body { padding: 24px 12px 40px; }
  h1 { font-size: 25px; }
  section { padding: 18px 14px 14px; margin-top: 18px; }
  .wide { display: none; } .narrow { display: block; }
  th, td { padding-right: 10px; }
  .events li { grid-template-columns: 1.7em auto 1fr; margin: 10px 0; }
  .events li :last-child { grid-column: 2 / 4; }
  .facts thead { display: none; }
  .facts tr, .facts th, .facts td, .facts td:nth-child(2) { display: block; width: auto; padding: 0; border: 0; }
  .facts tr { padding: 9px 0; border-bottom: 1px solid var(--rule); }
  .facts th { color: var(--soft); }
}
"""
