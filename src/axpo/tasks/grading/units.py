"""Units behind (or, for currencies, before) a number.

A unit that only one side states is ignored; units that both state must be the same one, in any
spelling ("cm", "centimetres"), and are not converted: 5 cm is neither 5 m nor 0.05 m.
"""

from __future__ import annotations

import re

_NAMES: dict[str, str] = {
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "dm": "decimeter decimetre",
    "m": "meter metre", "km": "kilometer kilometre", "nm": "nanometer nanometre",
    "in": "inch inches", "ft": "foot feet", "yd": "yard", "mi": "mile",
    "mg": "milligram", "g": "gram", "kg": "kilogram", "t": "ton tonne", "lb": "lbs pound",
    "oz": "ounce",
    "ml": "mL milliliter millilitre", "l": "L liter litre", "cc": "", "gal": "gallon",
    "ms": "millisecond", "s": "sec second", "min": "minute", "h": "hr hour", "day": "", "week": "",
    "month": "", "yr": "year",
    "Hz": "hertz", "kHz": "kilohertz", "MHz": "", "N": "newton", "kN": "", "Pa": "pascal",
    "kPa": "", "J": "joule", "kJ": "kilojoule", "W": "watt", "kW": "kilowatt", "mW": "milliwatt",
    "MW": "megawatt", "V": "volt", "kV": "", "mV": "millivolt", "A": "ampere amp",
    "mA": "milliampere", "C": "coulomb",
    "ohm": "Omega", "F": "farad", "K": "kelvin", "mol": "mole", "eV": "", "cal": "calorie",
    "degree": "deg", "rad": "radian", "unit": "", "%": "percent percentage pct",
    "dollar": "usd", "cent": "", "euro": "", "pound sterling": "", "yen": "", "yuan": "rmb",
    "mph": "", "kmh": "kph", "people": "person", "piece": "", "point": "", "time": "",
    "degree C": "celsius", "degree F": "fahrenheit",
}  # fmt: skip
_BY_NAME = {name: unit for unit, names in _NAMES.items() for name in (unit, *names.split())}
_CURRENCIES = {"dollar": "dollar", "euro": "euro", "pound": "pound sterling", "yen": "yen"}
_POWERS = (("square", "2"), ("sq", "2"), ("cubic", "3"), ("cu", "3"))
_CURRENCY = re.compile(r"^(-?) ?\\(dollar|euro|pound|yen) ?(?=[-0-9.(\\])")
_DEGREE = re.compile(r"(?: ?\\degree)(?: ?(?:\\text\{([CF])\}|([CF])))?$")
_POWER = r"(?:\^\{?([23])\}?)?"
# A unit in \text{}, one in plain letters (a single letter only behind a space), a currency sign.
_TEXT = re.compile(r" ?\\text\{([^{}]*)\}" + _POWER + "$")
_PLAIN = re.compile(
    r"(?:(?<=[0-9)}]) ?(?=[A-Za-z]{2})|(?<=[0-9)}]) (?=[A-Za-z](?![A-Za-z]))"
    r"|(?<=[A-Za-z]) (?=[A-Za-z]{2}))"
    r"([A-Za-z][A-Za-z. ]*(?:\^\{?[23]\}?)?(?: ?/ ?[A-Za-z]+)?)" + _POWER + "$"
)
# Things counted: "12 students" beside "12"; not "12 million".
_COUNTED = re.compile(r"(-?[0-9][0-9.,/]*) ?(?:(?<= )([a-z]{3,})|\\text\{([a-z]{3,})\})")
_NO_THING = re.compile(
    r"hundred|thousand|[a-z]*illion|dozen|score|half|third|quarter|percent|squared|cubed|factorial"
    r"|and|less|more|mod|modulo|times|plus|minus|below|above|pairs|base|not"
)
_SIGN = re.compile(r" ?\\(dollar|euro|pound|yen)$")


def known_unit(text: str) -> str | None:
    """The one name of a unit in any spelling ("square inches" is in^2), None for other words."""
    text = text.strip().rstrip(".").strip()
    if not text or len(text) > 40:
        return None
    if "/" in text or " per " in text:
        above, _, below = text.replace(" per ", "/").partition("/")
        units = known_unit(above), known_unit(below)
        return f"{units[0]}/{units[1]}" if all(units) else None
    if found := re.fullmatch(r"(.+?) ?\^ ?\{?([23])\}?", text):
        unit = known_unit(found[1])
        return f"{unit}^{found[2]}" if unit else None
    for word, power in _POWERS:
        rest = text.lower().removeprefix(word)
        if rest != text.lower() and (unit := known_unit(rest.lstrip(". "))):
            return f"{unit}^{power}"
    # Symbols are told apart by case (mW, MW), words are not.
    for name in (text, *((text.lower(), text.lower().removesuffix("s")) if len(text) > 2 else ())):
        if name in _BY_NAME:
            return _BY_NAME[name]
    return None


def split_unit(text: str) -> tuple[str, str]:
    """A tidy expression without the unit that it states, and the unit's name ("" for none)."""
    text = text.strip()
    if found := _CURRENCY.match(text):
        return found[1] + text[found.end() :].strip(), _CURRENCIES[found[2]]
    if (found := _SIGN.search(text)) and found.start():
        return text[: found.start()], _CURRENCIES[found[1]]
    if text.endswith("%") and len(text) > 1:
        return text[:-1].rstrip(), "%"
    if (found := _DEGREE.search(text)) and found.start():
        # Degrees inside a function are an angle's size, not a unit of the value.
        if re.search(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])", text):
            return text, ""
        scale = found[1] or found[2]
        return text[: found.start()], f"degree {scale}" if scale else "degree"
    for pattern in (_TEXT, _PLAIN):
        if (found := pattern.search(text)) and found.start():
            power = f"^{found[2]}" if found[2] else ""
            if unit := known_unit(found[1] + power):
                return text[: found.start()].rstrip(), unit
    if (found := _COUNTED.fullmatch(text)) and not _NO_THING.fullmatch(found[2] or found[3]):
        return found[1], (found[2] or found[3]).removesuffix("s")
    return text, ""
