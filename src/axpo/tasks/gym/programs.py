"""How questions of some of reasoning-gym's sets are answered with a short Python program.

A demonstration (`axpo.tasks.gym.task`) notes in a thought what the question gives, then runs the
program or answers. All of it is made of what an entry says of its own question. What the program
shows when it is run is the entry's answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import Any, NamedTuple

Entry = Mapping[str, Any]


class Program(NamedTuple):
    """What the question gives, in words, and the `code` that shows its answer."""

    thought: str
    code: str


def program(name: str, entry: Entry) -> Program | None:
    """The program for an entry of the set `name`; None where there is none for it."""
    return PROGRAMS[name](entry) if name in PROGRAMS else None


def _expression(entry: Entry) -> Program:
    expression = entry["metadata"]["expression"]
    return Program(f"The expression is {expression}.", expression)


def _of_numbers(function: str, entry: Entry) -> Program:
    numbers = ", ".join(map(str, entry["metadata"]["numbers"]))
    return Program(f"The numbers are {numbers}.", f"import math\nmath.{function}({numbers})")


def _letter_counting(entry: Entry) -> Program:
    letter, text = entry["metadata"]["target_letter"], " ".join(entry["metadata"]["span"])
    return Program(f'The letter is "{letter}".', f'"{text}".lower().count("{letter}")')


def _spell_backward(entry: Entry) -> Program:
    word = entry["metadata"]["word"]
    return Program(f"The word is {word}.", f'print("{word}"[::-1])')


def _leg_counting(entry: Entry) -> Program:
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    counts = entry["metadata"]["animals"]
    known = ", ".join(f"{animal} {ANIMALS[animal]}" for animal in counts)
    sum_of = " + ".join(f"{count}*{ANIMALS[animal]}" for animal, count in counts.items())
    return Program(f"Legs: {known}.", sum_of)


def _date(said: str) -> str:
    day = date.fromisoformat(said)
    return f"date({day.year}, {day.month}, {day.day})"


def _weekday_of(entry: Entry) -> Program:
    day = entry["metadata"]["target_date"]
    return Program(
        f"The date is {day}.", f'from datetime import date\nprint({_date(day)}.strftime("%A"))'
    )


def _weekday_after(entry: Entry) -> Program:
    day, offset = entry["metadata"]["start_date"], entry["metadata"]["offset_days"]
    days = abs(offset)
    sign, word = ("+", "after") if offset > 0 else ("-", "before")
    return Program(
        f"{days} days {word} {day}.",
        "from datetime import date, timedelta\n"
        f'print(({_date(day)} {sign} timedelta({days})).strftime("%A"))',
    )


def _weekday_from_first(entry: Entry) -> Program:
    first, day = entry["metadata"]["first_day"], entry["metadata"]["target_date"]
    january = _date(f"{day[:4]}-01-01")
    return Program(
        f"January 1 is a {first}, the date is {day}.",
        "import calendar\nfrom datetime import date\nnames = list(calendar.day_name)\n"
        f"days = ({_date(day)} - {january}).days\n"
        f'print(names[(names.index("{first}") + days) % 7])',
    )


def _day_of_month(entry: Entry) -> Program:
    of = entry["metadata"]
    ordinal, weekday = of["ordinal"], of["weekday"]
    place = ("first", "second", "third", "fourth", "last").index(ordinal)
    number = WEEKDAYS.index(weekday)
    return Program(
        f"The {ordinal} {weekday} of {of['year']}-{of['month']:02d}.",
        f"import calendar\nweeks = calendar.monthcalendar({of['year']}, {of['month']})\n"
        f"[week[{number}] for week in weeks if week[{number}]][{place if place < 4 else -1}]",
    )


def _days_between(entry: Entry, weekday: str) -> Program:
    """How many days of one weekday, or "business" days, lie in a range with both its ends."""
    start, end = entry["metadata"]["start_date"], entry["metadata"]["end_date"]
    if weekday == "business":
        counted = "d % 7 not in (0, 6)"
    else:  # day 1 of Python's calendar is a Monday
        counted = f"d % 7 == {(WEEKDAYS.index(weekday) + 1) % 7}"
    return Program(
        f"From {start} to {end}, {weekday}{' days' if weekday == 'business' else 's'}.",
        f"from datetime import date\na = {_date(start)}.toordinal()\nb = {_date(end)}.toordinal()\n"
        f"sum({counted} for d in range(a, b + 1))",
    )


def _weekdays_between(entry: Entry) -> Program:
    asked = re.search(
        rf"(?:How many|occurrences of|many times does) ({'|'.join(WEEKDAYS)})", entry["question"]
    )
    assert asked is not None
    return _days_between(entry, asked[1])


def _leap_year(entry: Entry) -> Program:
    year = entry["metadata"]["year"]
    return Program(
        f"The year is {year}.",
        f'import calendar\nprint("Yes" if calendar.isleap({year}) else "No")',
    )


def _calendar_arithmetic(entry: Entry) -> Program:
    return CALENDAR[entry["metadata"]["task"]](entry)


def _time_intervals(entry: Entry) -> Program | None:
    """None for milliseconds, which the set rounds by the error of a float."""
    of = entry["metadata"]
    start, end = (datetime.fromisoformat(of[key]) for key in ("start_time", "end_time"))
    match of["expected_format"]:
        case "D days":
            first, last = start.date().isoformat(), end.date().isoformat()
            return Program(
                f"From {first} to {last}.",
                f'from datetime import date\nprint(({_date(last)} - {_date(first)}).days, "days")',
            )
        case "HH:MM":
            return Program(
                f"From {start:%H:%M} to {end:%H:%M}.",
                f"d = ({end.hour}*60 + {end.minute}) - ({start.hour}*60 + {start.minute})\n"
                'print(f"{d // 60:02d}:{d % 60:02d}")',
            )
        case "HH:MM:SS":
            return Program(
                f"From {start:%H:%M:%S} to {end:%H:%M:%S}.",
                f"d = ({end.hour}*3600 + {end.minute}*60 + {end.second})"
                f" - ({start.hour}*3600 + {start.minute}*60 + {start.second})\n"
                'print(f"{d // 3600:02d}:{d // 60 % 60:02d}:{d % 60:02d}")',
            )
        case "HH:MM:SS.mmm":
            return None
        case longer:
            seconds = ":{s % 60:02d}" if longer.endswith("SS") else ""
            return Program(
                f"From {start} to {end}.",
                "from datetime import datetime\n"
                f'd = datetime.fromisoformat("{end}") - datetime.fromisoformat("{start}")\n'
                "s = d.seconds\n"
                f'print(f"{{d.days}} days, {{s // 3600:02d}}:{{s // 60 % 60:02d}}{seconds}")',
            )


WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
CALENDAR: dict[str, Callable[[Entry], Program]] = {
    "weekday_offset": _weekday_after,
    "weekday_of_date": _weekday_of,
    "weekday_of_date_from_first_date": _weekday_from_first,
    "recurring_event_day": _day_of_month,
    "count_days": _weekdays_between,
    "count_business_days": lambda entry: _days_between(entry, "business"),
    "is_leap_year": _leap_year,
}
"""By the kind of question that the set `calendar_arithmetic` asks."""
PROGRAMS: dict[str, Callable[[Entry], Program | None]] = {
    "calendar_arithmetic": _calendar_arithmetic,
    "chain_sum": _expression,
    "gcd": lambda entry: _of_numbers("gcd", entry),
    "lcm": lambda entry: _of_numbers("lcm", entry),
    "leg_counting": _leg_counting,
    "letter_counting": _letter_counting,
    "products": _expression,
    "spell_backward": _spell_backward,
    "time_intervals": _time_intervals,
}
"""The sets whose demonstrations may call Python."""
