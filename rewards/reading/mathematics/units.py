"""Units of measurement in words, symbols and Chinese, and what they are a product of."""

import math
import re
from dataclasses import dataclass
from fractions import Fraction

#: dimension, its exponent, size in base units, names; names of three letters and more have a plural.
_TABLE = """
length 1 1            m meter metre 米
length 1 1000         km kilometer kilometre 千米 公里
length 1 0.1          dm 分米
length 1 0.01         cm centimeter centimetre 厘米
length 1 0.001        mm millimeter millimetre 毫米
length 1 1e-9         nm nanometer
length 1 0.0254       inch inches
length 1 0.3048       ft foot feet
length 1 0.9144       yd yard
length 1 1609.344     mi mile
length 3 1e-3         L l liter litre 升
length 3 1e-6         mL ml milliliter millilitre 毫升
mass 1 1              g gram 克
mass 1 1000           kg kilogram 千克 公斤
mass 1 0.001          mg milligram 毫克
mass 1 1000000        ton tonne 吨
mass 1 453.59237      lb lbs
mass 1 28.349523125   oz ounce
time 1 1              s sec second 秒
time 1 0.001          ms millisecond
time 1 60             min minute 分钟
time 1 3600           h hr hour 小时
time 1 86400          day 天
time 1 604800         week 周
year 1 1              year 年
year 1 1/12           month 个月
force 1 1             N newton
energy 1 1            J joule
energy 1 1000         kJ kilojoule
power 1 1             W watt
power 1 1000          kW kilowatt
pressure 1 1          Pa pascal
pressure 1 1000       kPa kilopascal
voltage 1 1           V volt
current 1 1           A amp ampere
charge 1 1            C coulomb
resistance 1 1        Ω ohm
frequency 1 1         Hz hertz
amount 1 1            mol mole
kelvin 1 1            K kelvin
celsius 1 1           °C
fahrenheit 1 1        °F
dollar 1 1            dollar USD
dollar 1 0.01         cent
euro 1 1              euro EUR
pound 1 0.01          pence
yuan 1 1              yuan RMB 元
yuan 1 0.1            角
rupee 1 1             rupee
angle 1 1             rad radian
angle 1 π/180         ° deg degree 度
"""
_SPELLED = (
    (re.compile(r"\\Omega"), "Ω"),
    (re.compile(r"\bkm\s*/?\s*hr?\b|\bkph\b"), "km/h"),
    (re.compile(r"\bmph\b"), "mile/h"),
    (re.compile(r"(?:°|degrees?)\s*(C|F)(?:elsius|ahrenheit)?\b"), r"°\1"),
    (re.compile(r"\bper\b|每"), "/"),
    (re.compile(r"\b(?:square|sq\.?)\s+(?!units?)([a-z]+)|平方([一-鿿]+)"), r"\1\2^2"),
    (re.compile(r"\b(?:cubic|cu\.?)\s+(?!units?)([a-z]+)|立方([一-鿿]+)"), r"\1\2^3"),
)


@dataclass(frozen=True)
class Unit:
    """A product of units: its dimension, as (name, exponent) pairs, and its size in base units."""

    dimension: tuple[tuple[str, int], ...]
    size: Fraction


def _read_table() -> dict[str, tuple[str, int, Fraction]]:
    units = {}
    for line in _TABLE.strip().splitlines():
        dimension, exponent, size, *names = line.split()
        value = Fraction(math.pi) / 180 if size == "π/180" else Fraction(size)
        plurals = [name + "s" for name in names if len(name) > 2 and name.isascii()]
        units |= dict.fromkeys([*names, *plurals], (dimension, int(exponent), value))
    return units


_UNITS = _read_table()
_NAME = "|".join(re.escape(name) for name in sorted(_UNITS, key=len, reverse=True))
_FACTOR = re.compile(rf"\s*(/|\\cdot|\*)?\s*({_NAME})(?![A-Za-z])\s*(?:\^\s*\{{?\s*(-?\d)\s*\}}?)?")
#: The unit of angles in formulas with π.
DEGREE = Unit((("angle", 1),), _UNITS["°"][2])


def read_unit(text: str) -> Unit | None:
    """Read the unit that a text is: `cm`, `m/s^2`, `square meters`, `平方厘米`; None for anything else.

    One letter right after a number is a variable, as in `5m`.
    """
    if not text.strip() or len(text) > 60 or re.fullmatch(r"[A-Za-z]", text):
        return None
    for pattern, replacement in _SPELLED:
        text = pattern.sub(replacement, text)
    text = re.sub(r"(?<=[A-Za-z一-鿿]\^\d)\s*的?$", "", text)
    dimension: dict[str, int] = {}
    size, position = Fraction(1), 0
    while position < len(text):
        factor = _FACTOR.match(text, position)
        if factor is None:
            return None
        exponent = int(factor.group(3) or 1) * (-1 if factor.group(1) == "/" else 1)
        name, power, scale = _UNITS[factor.group(2)]
        dimension[name] = dimension.get(name, 0) + power * exponent
        size *= scale**exponent
        position = factor.end()
    return Unit(tuple(sorted((n, e) for n, e in dimension.items() if e)), size)
