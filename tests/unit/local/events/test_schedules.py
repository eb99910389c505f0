from __future__ import annotations

from datetime import UTC, datetime

import pytest

from windlass.local.events.schedules import Schedule


@pytest.mark.parametrize(
    ("text", "after", "expected"),
    [
        # the user guide's own examples
        ("cron(0 10 * * ? *)", "2026-03-01 09:00", "2026-03-01 10:00"),
        ("cron(0 10 * * ? *)", "2026-03-01 10:00", "2026-03-02 10:00"),
        ("cron(15 12 * * ? *)", "2026-12-31 23:00", "2027-01-01 12:15"),
        ("cron(0 18 ? * MON-FRI *)", "2026-03-06 18:00", "2026-03-09 18:00"),
        ("cron(0 8 1 * ? *)", "2026-03-01 09:00", "2026-04-01 08:00"),
        ("cron(0/15 * * * ? *)", "2026-03-01 09:46", "2026-03-01 10:00"),
        ("cron(0/10 * ? * MON-FRI *)", "2026-03-07 00:00", "2026-03-09 00:00"),
        ("cron(0/5 8-17 ? * MON-FRI *)", "2026-03-06 17:55", "2026-03-09 08:00"),
        ("cron(15 10 ? * 6L 2026-2027)", "2026-03-01 00:00", "2026-03-27 10:15"),
        ("cron(0 0 L * ? *)", "2028-02-01 00:00", "2028-02-29 00:00"),
        ("cron(0 0 ? * TUE#2 *)", "2026-03-01 00:00", "2026-03-10 00:00"),
        ("cron(0 0 15W * ? *)", "2026-08-01 00:00", "2026-08-14 00:00"),  # the 15th is a Saturday
        ("cron(0 0 1W * ? *)", "2026-08-01 00:00", "2026-08-03 00:00"),  # and the 1st, too: not into July
        ("cron(0 0 LW * ? *)", "2026-05-01 00:00", "2026-05-29 00:00"),
        ("cron(0 0 ? * FRI-MON *)", "2026-03-03 00:00", "2026-03-06 00:00"),
        ("cron(0 0 1 JAN,JUL ? *)", "2026-03-01 00:00", "2026-07-01 00:00"),
        ("cron(0 0 29 2 ? *)", "2026-03-01 00:00", "2028-02-29 00:00"),
        ("cron(0 0 1 1 ? 2020)", "2026-03-01 00:00", None),
        ("rate(5 minutes)", "2026-03-01 00:00", "2026-03-01 00:05"),
        ("rate(1 hour)", "2026-03-01 00:00", "2026-03-01 01:00"),
        ("rate(2 days)", "2026-03-01 00:00", "2026-03-03 00:00"),
    ],
)
def test_the_next_run(text: str, after: str, expected: str | None) -> None:
    found = Schedule.parse(text).next_after(datetime.fromisoformat(f"{after}+00:00").timestamp())
    shown = None if found is None else f"{datetime.fromtimestamp(found, UTC):%Y-%m-%d %H:%M}"
    assert shown == expected


@pytest.mark.parametrize(
    "text",
    [
        "rate(5 minute)",
        "rate(1 minutes)",
        "rate(0 minutes)",
        "rate(-1 hours)",
        "rate(1 week)",
        "cron(0 10 * * * *)",
        "cron(0 10 ? * ? *)",
        "cron(0 10 * * ?)",
        "cron(60 10 * * ? *)",
        "cron(0 24 * * ? *)",
        "cron(0 0 32 * ? *)",
        "cron(0 0 * 13 ? *)",
        "cron(0 0 ? * 8 *)",
        "cron(0/0 0 * * ? *)",
        "cron(x 0 * * ? *)",
        "every day",
        "",
    ],
)
def test_what_is_no_schedule(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - its message is the text itself
        Schedule.parse(text)
