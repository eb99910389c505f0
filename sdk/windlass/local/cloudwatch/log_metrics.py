"""Metrics out of logs: metric filters, and the embedded metric format (EMF).

    pattern = Pattern.parse('{ $.level = "ERROR" && $.latency > 100 }')
    pattern.match(line)                    # -> what $.fields and $names can be read from, or None
    register(metrics)                      # every line that any log stream gets is looked at from now on

The syntax is that of the CloudWatch Logs user guide, "Filter pattern syntax for metric filters"; EMF is that of the CloudWatch
user guide, "Specification: Embedded metric format".
"""

from __future__ import annotations

import fnmatch
import functools
import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from moto.logs import models, urls
from moto.logs.models import LogsBackend, logs_backends

from windlass.local.cloudwatch.logs import StoredStream
from windlass.local.cloudwatch.metric_store import Datum, Metric, MetricStore
from windlass.local.events.bus import json_path
from windlass.local.faults import Fault
from windlass.metrics import UNITS

log = logging.getLogger(__name__)

Fields = Mapping[str, Any]
Test = Callable[[Any], bool]

_MOST_METRICS, _MOST_VALUES, _MOST_DIMENSIONS = 100, 100, 30


class PatternError(ValueError):
    """The pattern is wrong; the message says where."""


@dataclass(frozen=True)
class Pattern:
    """A filter pattern: of words, of JSON, or of fields between spaces."""

    text: str
    _match: Callable[[str], Fields | None]

    @classmethod
    @functools.cache
    def parse(cls, text: str) -> Pattern:
        """Raises PatternError."""
        stripped = text.strip()
        if stripped.startswith("{"):
            if not stripped.endswith("}"):
                raise PatternError(f"'{text}' begins with a brace and does not end with one")
            test = _JsonParser(stripped[1:-1]).parse()
            return cls(text, functools.partial(_match_json, test))
        if stripped.startswith("["):
            if not stripped.endswith("]"):
                raise PatternError(f"'{text}' begins with a bracket and does not end with one")
            return cls(text, functools.partial(_match_fields, _fields(stripped[1:-1])))
        return cls(text, _words(stripped))

    def match(self, line: str) -> Fields | None:
        """What the fields of the line are, by the names that a transformation has for them; None when it does not match."""
        return self._match(line)

    def value(self, fields: Fields, name: str) -> Any:
        """``$.latency`` of JSON, ``$status`` of fields, or else the text itself."""
        if name.startswith(("$.", "$[")):
            return json_path(dict(fields), name)
        return fields.get(name[1:]) if name.startswith("$") else name


# --- words -------------------------------------------------------------------------------------------------------------------

# Groups are not among what AWS allows in a regular expression; without them none can backtrack without end.
_NO_REGEX = re.compile(r"[^A-Za-z0-9 :_#=@/;,\-^$?\[\]{}|\\*+.]")
_WORD = re.compile(r'\s*([?-]?)(?:"((?:[^"\\]|\\.)*)"|%([^%]*)%|([^\s"]+))')


def _words(text: str) -> Callable[[str], Fields | None]:
    wanted: list[Callable[[str], bool]] = []
    either: list[Callable[[str], bool]] = []
    banned: list[Callable[[str], bool]] = []
    position = 0
    while text[position:].strip():
        match = _WORD.match(text, position)
        if match is None:
            raise PatternError(f"Unexpected '{text[position:].strip()[0]}' in '{text}'")
        position = match.end()
        sign, quoted, expression, word = match.groups()
        {"": wanted, "?": either, "-": banned}[sign].append(_in_line(quoted, expression, word))

    def test(line: str) -> Fields | None:
        found = all(each(line) for each in wanted) and not any(each(line) for each in banned)
        # AWS ignores the optional words beside others.
        return {} if found and (wanted or banned or not either or any(each(line) for each in either)) else None

    return test


def _in_line(quoted: str | None, expression: str | None, word: str | None) -> Callable[[str], bool]:
    if expression is not None:
        if strange := _NO_REGEX.search(expression):
            raise PatternError(
                f"%{expression}% has a character that regular expressions here may not have: {strange[0]!r}"
            )
        try:
            compiled = re.compile(expression)
        except re.error as error:
            raise PatternError(f"%{expression}% is no regular expression: {error}") from error
        return lambda line: compiled.search(line) is not None
    wanted = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else word or ""
    return lambda line: wanted in line


# --- comparisons -------------------------------------------------------------------------------------------------------------


def _comparison(sign: str, wanted: str) -> Test:
    """``= "ERR*"``, ``!= 3``, ``>= 100``: on one value."""
    quoted = len(wanted) > 1 and wanted[0] == wanted[-1] == '"'
    text = re.sub(r"\\(.)", r"\1", wanted[1:-1]) if quoted else wanted
    number = None if quoted else _number(text)
    if sign in ("<", "<=", ">", ">="):
        if number is None:
            raise PatternError(f"{sign} needs a number, not {wanted}")
        work: Callable[[float, float], bool] = {
            "<": lambda a, b: a < b,
            "<=": lambda a, b: a <= b,
            ">": lambda a, b: a > b,
            ">=": lambda a, b: a >= b,
        }[sign]
        limit = number

        def compare(value: Any) -> bool:
            found = _number(value)
            return found is not None and work(found, limit)

        return compare

    def equal(value: Any) -> bool:
        if number is not None and (found := _number(value)) is not None:
            return found == number
        if isinstance(value, bool):
            return text == str(value).lower()
        if value is None or isinstance(value, dict | list):
            return False
        # Only the asterisk is special.
        return fnmatch.fnmatchcase(str(value), re.sub(r"([?\[])", r"[\1]", text))

    if sign == "!=":
        return lambda value: value is not None and not equal(value)
    return equal


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


# --- JSON --------------------------------------------------------------------------------------------------------------------

_JSON_TOKEN = re.compile(
    r'\s*(?:(?P<path>\$[.\[][^\s=!<>&|()"]*)|(?P<sign>&&|\|\||!=|<=|>=|[=<>()])|(?P<text>"(?:[^"\\]|\\.)*")'
    r"|(?P<word>[^\s=!<>&|()\"]+))"
)


class _JsonParser:
    """``$.a = 1 && ($.b = "x*" || $.c NOT EXISTS)``"""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, str]] = []
        position = 0
        while text[position:].strip():
            match = _JSON_TOKEN.match(text, position)
            if match is None or match.lastgroup is None:
                raise PatternError(f"Unexpected '{text[position:].strip()[0]}' in '{text}'")
            self._tokens.append((match.lastgroup, match[match.lastgroup]))
            position = match.end()
        self._position = 0

    def parse(self) -> Test:
        test = self._either()
        if self._position < len(self._tokens):
            raise PatternError(f"Unexpected '{self._tokens[self._position][1]}' in '{self._text}'")
        return test

    def _either(self) -> Test:
        tests = [self._both()]
        while self._at("||"):
            self._position += 1
            tests.append(self._both())
        return lambda value: any(test(value) for test in tests)

    def _both(self) -> Test:
        tests = [self._one()]
        while self._at("&&"):
            self._position += 1
            tests.append(self._one())
        return lambda value: all(test(value) for test in tests)

    def _one(self) -> Test:
        if self._at("("):
            self._position += 1
            test = self._either()
            self._take("sign", ")")
            return test
        path = self._take("path")
        kind, text = self._next()
        if kind == "word":
            return self._state(path, text.upper())
        if text not in ("=", "!=", "<", "<=", ">", ">="):
            raise PatternError(f"Unexpected '{text}' in '{self._text}'")
        kind, wanted = self._next()
        if kind not in ("text", "word"):
            raise PatternError(f"Unexpected '{wanted}' in '{self._text}'")
        compare = _comparison(text, wanted)
        return lambda value: compare(json_path(value, path))

    def _state(self, path: str, word: str) -> Test:
        """What follows IS, NOT or EXISTS."""
        rest = self._next()[1].upper() if word in ("IS", "NOT") else ""
        if (word, rest) == ("NOT", "EXISTS"):
            return lambda value: json_path(value, path) is None
        if (word, rest) == ("IS", "NULL"):
            return lambda value: json_path(value, path) is None
        if word == "IS" and rest in ("TRUE", "FALSE"):
            return lambda value: json_path(value, path) is (rest == "TRUE")
        if word == "EXISTS":
            return lambda value: json_path(value, path) is not None
        raise PatternError(f"Unexpected '{word} {rest}' in '{self._text}'".replace(" '", "'"))

    def _at(self, text: str) -> bool:
        return self._position < len(self._tokens) and self._tokens[self._position] == ("sign", text)

    def _next(self) -> tuple[str, str]:
        if self._position >= len(self._tokens):
            raise PatternError(f"'{self._text}' ends too early")
        self._position += 1
        return self._tokens[self._position - 1]

    def _take(self, kind: str, text: str | None = None) -> str:
        found, value = self._next()
        if found != kind or text not in (None, value):
            raise PatternError(f"Unexpected '{value}' in '{self._text}'")
        return value


def _match_json(test: Test, line: str) -> Fields | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and test(value) else None


# --- fields between spaces ---------------------------------------------------------------------------------------------------

_FIELD = re.compile(r"\s*(\w+)\s*(?:(=|!=|<=|>=|<|>)\s*(.+?))?\s*")
_VALUE = re.compile(r'"((?:[^"\\]|\\.)*)"|\[([^\]]*)\]|(\S+)')


def _fields(text: str) -> list[tuple[str, Test | None]]:
    """(name, its test) of each field; the name of an ellipsis is ``...``."""
    found: list[tuple[str, Test | None]] = []
    for part in re.findall(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+', text):
        if part.strip() == "...":
            found.append(("...", None))
            continue
        # Several conditions on one field are joined by && or ||, and repeat its name.
        alternatives = [[_field(each, part) for each in option.split("&&")] for option in part.split("||")]
        name = alternatives[0][0][0]
        tests = [[test for _, test in option if test is not None] for option in alternatives]
        found.append((name, _any_of(tests) if any(tests) else None))
    if sum(name == "..." for name, _ in found) > 1:
        raise PatternError(f"[{text}] has more than one ellipsis")
    return found


def _field(text: str, whole: str) -> tuple[str, Test | None]:
    match = _FIELD.fullmatch(text)
    if match is None:
        raise PatternError(f"'{whole.strip()}' is no field")
    name, sign, wanted = match.groups()
    return name, _comparison(sign, wanted) if sign else None


def _any_of(options: Sequence[Sequence[Test]]) -> Test:
    return lambda value: any(all(test(value) for test in option) for option in options)


def _match_fields(fields: Sequence[tuple[str, Test | None]], line: str) -> Fields | None:
    values = [next(group for group in match.groups() if group is not None) for match in _VALUE.finditer(line)]
    names = [name for name, _ in fields]
    if "..." in names:
        where, spare = names.index("..."), len(values) - len(fields) + 1
        if spare < 0:
            return None
        values = [*values[:where], " ".join(values[where : where + spare]), *values[where + spare :]]
    if len(values) != len(fields):
        return None
    if all(test is None or test(value) for (_, test), value in zip(fields, values, strict=True)):
        return dict(zip(names, values, strict=True))
    return None


# --- metrics -----------------------------------------------------------------------------------------------------------------


def filtered(filters: Sequence[Mapping[str, Any]], lines: Sequence[tuple[float, str]]) -> Iterator[Datum]:
    """What metric filters make of lines (seconds since the epoch, text).

    A default value counts for the lines that do not match; AWS publishes it once for each minute that had lines only.
    """
    for each in filters:
        pattern = Pattern.parse(each.get("filterPattern") or "")
        matches = [(at, pattern.match(line)) for at, line in lines]
        for transformation in each["metricTransformations"]:
            name, namespace = transformation["metricName"], transformation["metricNamespace"]
            unit = transformation.get("unit") or "None"
            quiet = {at // 60 for at, _ in matches} - {at // 60 for at, fields in matches if fields is not None}
            for at, fields in matches:
                if fields is None:
                    continue
                value = _number(pattern.value(fields, str(transformation["metricValue"])))
                wanted = (transformation.get("dimensions") or {}).items()
                dimensions = {key: pattern.value(fields, str(path)) for key, path in wanted}
                # AWS publishes nothing when a dimension or the value is not in the line.
                if value is not None and all(given is not None for given in dimensions.values()):
                    metric = Metric.of(namespace, name, {key: str(given) for key, given in dimensions.items()})
                    yield Datum(metric, at, ((value, 1.0),), None, unit)
            if (default := transformation.get("defaultValue")) is not None:
                for minute in sorted(quiet):
                    yield Datum(Metric.of(namespace, name, {}), minute * 60, ((float(default), 1.0),), None, unit)


def embedded(line: str, now: float) -> Iterator[Datum]:
    """The metrics in a line of the embedded metric format; none of any other line."""
    if '"_aws"' not in line:
        return
    try:
        root = json.loads(line)
        meta = root["_aws"]
        at = float(meta.get("Timestamp", now * 1000)) / 1000
        directives = meta["CloudWatchMetrics"]
        for directive in directives:
            namespace = directive["Namespace"]
            if not isinstance(namespace, str) or namespace.startswith("AWS/"):
                continue
            for given in directive["Metrics"][:_MOST_METRICS]:
                values = root.get(given["Name"])
                numbers = list(map(_number, values if isinstance(values, list) else [values]))
                samples = tuple((number, 1.0) for number in numbers[:_MOST_VALUES] if number is not None)
                unit = given.get("Unit", "None")
                if not samples or unit not in UNITS:
                    continue
                for names in directive.get("Dimensions") or [[]]:
                    found = {name: root.get(name) for name in names}
                    if len(names) <= _MOST_DIMENSIONS and all(isinstance(each, str) for each in found.values()):
                        metric = Metric.of(namespace, given["Name"], {name: str(text) for name, text in found.items()})
                        yield Datum(metric, at, samples, None, unit, given.get("StorageResolution", 60))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # CloudWatch keeps the line and drops the metrics; it counts such lines in EMFParsingErrors.
        log.info("A line of the embedded metric format is not well-formed: %s: %s", type(error).__name__, error)


# --- in moto's place ---------------------------------------------------------------------------------------------------------


class LocalLogStream(StoredStream):
    """moto's record, which tells the metrics what it gets."""

    metrics: ClassVar[MetricStore]

    def put_log_events(self, log_events: list[dict[str, Any]]) -> str:
        token: str = super().put_log_events(log_events)
        group = self.log_group.name
        backend = logs_backends[self.account_id][self.region]
        filters = backend.filters.get_matching_filters(log_group_name=group)
        lines = [(event["timestamp"] / 1000, str(event["message"])) for event in log_events]
        data = list(filtered(filters, lines)) if filters else []
        for at, line in lines:
            data += embedded(line, at)
        if data:
            self.metrics.put_many(self.region, data)
        return token


class LocalLogsBackend(LogsBackend):  # type: ignore[misc]
    """moto's records, with patterns that are read when they are put."""

    @property
    def _url_module(self) -> Any:
        return urls

    def put_metric_filter(
        self, filter_name: str, filter_pattern: str, log_group_name: str, metric_transformations: Any
    ) -> None:
        if log_group_name not in self.groups:
            raise Fault("ResourceNotFoundException", "The specified log group does not exist.")
        try:
            Pattern.parse(filter_pattern)
        except PatternError as error:
            raise Fault("InvalidParameterException", f"Invalid metric filter pattern: {error}") from error
        self.filters.delete_filter(filter_name, log_group_name)  # a second one of that name takes its place
        super().put_metric_filter(filter_name, filter_pattern, log_group_name, metric_transformations)


def register(metrics: MetricStore) -> None:
    """Look at every line from now on. Before the first log group is made."""
    # Not on a class of this cloud's own: a snapshot finds the classes of what it holds by name.
    LocalLogStream.metrics = metrics
    models.LogStream = LocalLogStream
    logs_backends.backend = LocalLogsBackend
    logs_backends.clear()
