"""Words and turns of phrase that the families share."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from random import Random

PEOPLE = """
    Alba Amir Anke Bela Bruno Carla Cyril Dalia Derek Edith Emil Farid Frida Gita Greta Hugo Ilse Iris Jonas Judit Karim Klara Lars Leila
    Livia Marco Mila Nadia Nils Olga Oscar Petra Priya Quinn Rafael Rosa Samir Selma Tarek Tilda Ugo Ulla Viktor Wanda Yusuf Zoe
""".split()
TOWNS = """
    Arden Birkholm Calder Dunmore Elsfield Farrow Glenrock Harwick Inverby Jarlsund Kestrel Lowmoor Marlow Norby Oakham Penrith
""".split()
GOODS = """
    apples barrels bicycles blankets bottles bricks candles carpets chairs coats cushions drums eggs guitars hammers jackets kettles ladders
    lanterns lemons loaves mirrors notebooks oranges paddles pears pencils pillows potatoes radios rugs sacks scarves shovels skis stools
    sweaters tents tiles towels umbrellas vases violins wheels
""".split()
FIRMS = "bakery workshop nursery mill brewery foundry dairy printer tannery pottery boatyard sawmill joinery weaver vineyard farm".split()
COUNTRIES = "Avaria Belmora Corvia Dalmora Estaria Fenria Galdora Hestia Ilmar Jorvania Kalvia Lumeria Morvia Norvia Ostria Pelagia".split()


def choose(random: Random, *options: str) -> str:
    """One of several ways to say the same."""
    return random.choice(options)


def listed(items: Sequence[object], last: str = "and") -> str:
    """`a, b and c`."""
    words = [str(item) for item in items]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def commas(items: Sequence[object]) -> str:
    """`a, b, c`."""
    return ", ".join(map(str, items))


def decimal(value: Fraction | int, places: int = 2) -> str:
    """A number in decimal, rounded half up in size to `places`, without trailing zeros if it is exact."""
    scaled = abs(Fraction(value)) * 10**places
    units = int(scaled + Fraction(1, 2))
    whole, rest = divmod(units, 10**places)
    text = f"{whole}.{rest:0{places}d}" if places else str(whole)
    if units == scaled and places:
        text = text.rstrip("0").rstrip(".")
    return f"-{text}" if value < 0 and units else text


def is_or_about(value: Fraction, places: int = 2) -> str:
    """`= 1.5`, or `which is about 1.33` if the decimal number is rounded."""
    text = decimal(value, places)
    return f"= {text}" if Fraction(text) == value else f"= {text} (rounded)"


def times(factor: int, name: str) -> str:
    """`3P`; `P` for a factor of one."""
    return name if factor == 1 else f"{factor}{name}"
