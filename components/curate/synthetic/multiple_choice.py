"""Multiple choice: a computed answer among four, the wrong ones from the mistakes that are usually made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import comb
from random import Random

from components.curate.synthetic.item import Item, compose
from components.curate.synthetic.wording import GOODS, PEOPLE, TOWNS, choose, commas, decimal, is_or_about

FAMILY = "multiple-choice"
_LETTERS = "ABCD"
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def _item(random: Random, topic: str, question: str, steps: str, value: Fraction | int, mistakes: Sequence[Fraction | int], unit: str,
          expression: str) -> Item:
    """Four options in random order: the value, then the mistakes, then what lies near it; no two show the same."""
    shown = [decimal(value)]
    near = [Fraction(value) * factor for factor in (Fraction(11, 10), Fraction(9, 10), 2, Fraction(1, 2), 3, 5)]
    for other in [*mistakes, *near, *(Fraction(value) + offset for offset in (1, 2, 3, 4))]:
        if decimal(other) not in shown and other >= 0 and len(shown) < 4:
            shown.append(decimal(other))
    order = random.sample(range(4), 4)
    options = {letter: f"{shown[place]} {unit}".rstrip() for letter, place in zip(_LETTERS, order)}
    answer = _LETTERS[order.index(0)]
    mark = choose(random, "{}) {}", "{}. {}", "({}) {}", "{}: {}")
    listing = choose(random, "\n", "\n", "  ").join(mark.format(letter, text) for letter, text in options.items())
    text = f"{question}\n\n{listing}"
    wrong = random.choice([letter for letter in _LETTERS if letter != answer])
    steps = f"{steps} " + choose(random, f"That is option {answer}.", f"This is what {answer} says, and {wrong} is not it.",
                                 f"Of the four, only {answer} has this value.", f"So {answer} is right, and {wrong} is wrong.")
    return Item(FAMILY, topic, compose(random, text, steps, answer), f"{text}\n\nAnswer with the letter alone.", steps, answer,
                {"kind": "choice", "options": options, "expression": expression})


def percent(random: Random) -> Item:
    """A price after a rise or a discount."""
    price, rate = 20 * random.randint(2, 120), 5 * random.randint(1, 12)
    up = random.random() < 0.5
    good, who = random.choice(GOODS), random.choice(PEOPLE)
    change = Fraction(price * rate, 100)
    value = price + change if up else price - change
    question = choose(
        random, f"The price of a set of {good} {'rises' if up else 'falls'} by {rate} percent from {price} dollars. What is the new price?",
        f"{who} {'adds' if up else 'takes'} {rate} percent {'to' if up else 'off'} a price of {price} dollars for {good}. What do they "
        "cost now?")
    steps = choose(random, "The change is a share of the old price.", "Percent are hundredths of what was there before.") + (
        f" It is {price} * {rate} / 100 {is_or_about(change)} dollars, so the new price is {price} {'+' if up else '-'} {decimal(change)} "
        f"= {decimal(value)} dollars.")
    return _item(random, "percent", question, steps, value, [price + rate if up else price - rate, change, 2 * price - value], "dollars",
                 f"{price} * (100 {'+' if up else '-'} {rate}) / 100")


def mean(random: Random) -> Item:
    """The mean of a few numbers, or the one missing for a given mean."""
    numbers = [random.randint(2, 60) for _ in range(random.randint(4, 6))]
    who, good = random.choice(PEOPLE), random.choice(GOODS)
    total, count = sum(numbers), len(numbers)
    value, middle = Fraction(total, count), sorted(numbers)[count // 2]
    question = choose(
        random, f"On {count} days {who} sold {commas(numbers)} {good}. What is the mean per day?",
        f"{count} boxes hold {commas(numbers)} {good}. How many does a box hold on average?",
        f"What is the arithmetic mean of the numbers {commas(numbers)}, which {who} counted?")
    steps = choose(random, "Add up and divide by how many there are.", "The mean is the sum divided by the count.") + (
        f" The sum is {' + '.join(map(str, numbers))} = {total}, and {total} / {count} {is_or_about(value)}. ") + choose(
        random, "The median, "
                f"{decimal(Fraction(sum(sorted(numbers)[(count - 1) // 2:count // 2 + 1]), count // 2 - (count - 1) // 2 + 1))}, is "
                "another kind of middle.", f"The number of values is {count}, not {count - 1} or {count + 1}.")
    return _item(random, "mean", question, steps, value, [middle, Fraction(total, count - 1), Fraction(total, count + 1)], "",
                 f"({' + '.join(map(str, reversed(numbers)))}) / {count}")


def speed(random: Random) -> Item:
    """Distance, speed and time."""
    pace, minutes = random.randint(4, 110), 15 * random.randint(2, 20)
    one, two = random.sample(TOWNS, 2)
    who = random.choice(PEOPLE)
    way = Fraction(pace * minutes, 60)
    question = choose(
        random, f"{who} travels from {one} to {two} at {pace} kilometres an hour and needs {minutes} minutes. How far is it?",
        f"A train from {one} reaches {two} after {minutes} minutes at {pace} kilometres per hour. How long is the line?")
    steps = choose(random, "Distance is speed times time, with the time in hours.", "First turn minutes into hours.") + (
        f" {minutes} minutes are {minutes} / 60 {is_or_about(Fraction(minutes, 60))} hours, and {pace} * {minutes} / 60 {is_or_about(way)} "
        "kilometres.")
    return _item(random, "speed", question, steps, way, [pace * Fraction(minutes, 100), Fraction(pace * 60, minutes), pace + minutes],
                 "kilometres", f"{minutes} / 60 * {pace}")


def probability(random: Random) -> Item:
    """Drawing two of a kind without putting back."""
    red, blue = random.randint(3, 12), random.randint(3, 12)
    total = red + blue
    value = Fraction(100 * red * (red - 1), total * (total - 1))
    what, who = random.choice(("marbles", "counters", "socks", "buttons", "tickets", "beads")), random.choice(PEOPLE)
    colour, other = random.sample(("red", "blue", "green", "white", "black", "yellow"), 2)
    question = choose(
        random, f"A bag holds {red} {colour} and {blue} {other} {what}. {who} draws two without looking and without putting one back.",
        f"Of {total} {what} in a drawer {red} are {colour}, the others {other}. In the dark {who} takes out two.") + (
        f" With what probability, in percent, are both {colour}?")
    steps = choose(random, "After the first draw there is one fewer of them and one fewer in all.",
                   "The second draw depends on the first.") + (
        f" The probability is {red} / {total} times {red - 1} / {total - 1}, in percent 100 * {red} * {red - 1} / ({total} * {total - 1}) "
        f"{is_or_about(value)}.")
    return _item(random, "probability", question, steps, value, [
        Fraction(100 * red * red, total * total), Fraction(100 * red, total), Fraction(100 * blue * (blue - 1), total * (total - 1))],
        "percent", f"100 * ({red} * ({red} - 1) / 2) / ({total} * ({total} - 1) / 2)")


def weekday(random: Random) -> Item:
    """The remainder of a division by seven, as days after a Monday."""
    days, divisor = random.randint(40, 900), 7
    start, who = random.randrange(7), random.choice(PEOPLE)
    rest = days % divisor
    question = choose(
        random, f"Today is {_DAYS[start]}. {who} will be back in {days} days. How many days after a {_DAYS[start]} does that day of the "
                "week "
                "come?", f"{who} starts on a {_DAYS[start]} and stops {days} days later. By how many days is the weekday then shifted?")
    steps = choose(random, "Whole weeks do not change the weekday, so only the remainder counts.", "Weekdays repeat every 7 days.") + (
        f" {days} / 7 leaves a remainder: 7 * {days // 7} = {7 * (days // 7)} and {days} - {7 * (days // 7)} = {rest}. "
        f"The weekday is {_DAYS[(start + rest) % 7]}.")
    return _item(random, "weekday", question, steps, rest, [(rest + step) % 7 for step in (1, 6, 2, 5)], "days",
                 f"{days} - floor({days} / 7) * 7")


def progression(random: Random) -> Item:
    """A later member of an arithmetic sequence."""
    first, step, place = random.randint(1, 60), random.randint(2, 17), random.randint(8, 60)
    members = [first + step * index for index in range(4)]
    value = first + step * (place - 1)
    what, who = random.choice(("rows", "weeks", "shelves", "days", "laps", "pages")), random.choice(PEOPLE)
    question = choose(
        random, f"A sequence begins {commas(members)} and goes on in the same way. What is its member number {place}?",
        f"{who} counts {commas(members)} in the first four {what}, always {step} more. What is the count for number {place}?")
    steps = choose(random, "From one to the next it grows by the same amount.", "The differences are all equal.") + (
        f" The difference is {members[1]} - {members[0]} = {step}. Up to number {place} it is added {place} - 1 = {place - 1} times, "
        f"which gives {first} + {place - 1} * {step} = {value}.")
    return _item(random, "progression", question, steps, value, [value + step, value - step, step * place], "",
                 f"{members[3]} + ({place} - 4) * {step}")


def both_sets(random: Random) -> Item:
    """Inclusion and exclusion."""
    both, only_one, only_two, neither = (random.randint(3, 40) for _ in range(4))
    one, two, total = both + only_one, both + only_two, both + only_one + only_two + neither
    sport, other = random.sample(("chess", "tennis", "rowing", "hockey", "fencing", "skating", "judo", "golf", "squash", "cycling"), 2)
    town = random.choice(TOWNS)
    question = choose(
        random, f"Of {total} pupils in {town}, {one} like {sport}, {two} like {other}, and {neither} like neither. How many like both?",
        f"A club in {town} has {total} members. {one} play {sport}, {two} play {other}, {neither} play none of the two. How many play "
        "both?")
    steps = choose(random, "Adding the two groups counts those in both twice.", "Whoever is in both groups was counted two times.") + (
        f" In at least one group are {total} - {neither} = {total - neither}. The groups together have {one} + {two} = {one + two}, "
        f"so {one + two} - {total - neither} = {both} are in both.")
    mistakes = [one + two - total if one + two > total else only_one, only_two, both + neither]
    return _item(random, "two groups", question, steps, both, mistakes, "", f"{one} + {two} + {neither} - {total}")


def selections(random: Random) -> Item:
    """Choosing without order."""
    people, chosen = random.randint(5, 14), random.randint(2, 4)
    what, town = random.choice(GOODS), random.choice(TOWNS)
    value = comb(people, chosen)
    ordered = 1
    for taken in range(chosen):
        ordered *= people - taken
    orders = ordered // value
    question = choose(
        random, f"In how many ways can {chosen} of {people} members be sent from {town} to a meeting?",
        f"A shop in {town} has {people} kinds of {what}. How many different sets of {chosen} kinds are there?",
        f"{chosen} of {people} different {what} are packed in a parcel. How many parcels are possible?")
    steps = choose(random, "The order does not matter, so every choice was counted several times.",
                   "Count with order first and then divide by the number of orders.") + (
        f" In order there are {' * '.join(str(people - taken) for taken in range(chosen))} = {ordered} ways. Each choice has {orders} "
        f"orders, and {ordered} / {orders} = {value}.")
    return _item(random, "selections", question, steps, value, [ordered, people**chosen, people * chosen], "",
                 " * ".join(f"({people} - {taken}) / ({taken} + 1)" for taken in range(chosen)))


def circuit(random: Random) -> Item:
    """Two resistors in parallel or in a row, and the current through them."""
    one, two, volts = random.randint(2, 40), random.randint(2, 40), random.choice((6, 9, 12, 24, 48, 110, 230))
    row = random.random() < 0.4
    resistance = Fraction(one + two) if row else Fraction(one * two, one + two)
    current = volts / resistance
    question = choose(random, "Two resistors", "A lamp and a heater, two plain resistances,") + (
        f" of {one} and {two} ohms are connected {'in series' if row else 'in parallel'} to {volts} volts. What current flows in all?")
    steps = (choose(random, "In series resistances add up.", "In a row the same current flows through both, and the voltages add.") +
             f" The total is {one} + {two} = {one + two} ohms, " if row else
             choose(random, "In parallel each gets the whole voltage.", "In parallel the conductances add up.") +
             f" The total resistance is {one} * {two} / ({one} + {two}) {is_or_about(resistance)} ohms, ") + (
        f"and by Ohm's law the current is {volts} volts divided by it, {decimal(current)} amperes.")
    expression = f"{volts} / ({one} + {two})" if row else f"{volts} / {one} + {volts} / {two}"
    return _item(random, "circuit", question, steps, current, [
        volts / Fraction(one * two, one + two) if row else Fraction(volts, one + two), Fraction(volts, max(one, two)), volts * resistance],
        "amperes", expression)


def density(random: Random) -> Item:
    """Mass, volume and density of a block."""
    sides = [random.randint(2, 25) for _ in range(3)]
    material, grams = random.choice((("oak", 7), ("ice", 9), ("glass", 25), ("aluminium", 27), ("granite", 26), ("iron", 79), ("cork", 2)))
    volume = sides[0] * sides[1] * sides[2]
    mass = Fraction(volume * grams, 10)
    per = decimal(Fraction(grams, 10))
    question = choose(
        random, f"A block of {material} is {sides[0]} by {sides[1]} by {sides[2]} centimetres; the density is {per} grams per cubic "
                "centimetre.",
        f"{material.capitalize()} weighs {per} grams per cubic centimetre. A brick of it measures {sides[0]}, {sides[1]} and {sides[2]} "
        "centimetres.") + choose(random, " What is its mass?", " How heavy is it?")
    steps = choose(random, "Mass is density times volume.", "The volume of a block is the product of its three sides.") + (
        f" The volume is {sides[0]} * {sides[1]} * {sides[2]} = {volume} cubic centimetres, and the mass {volume} * {per} = "
        f"{decimal(mass)} grams.")
    return _item(random, "density", question, steps, mass, [Fraction(volume * 10, grams), Fraction(sum(sides) * grams, 10), volume],
                 "grams",
                 f"{sides[2]} * {per} * {sides[1]} * {sides[0]}")


TOPICS: tuple[Callable[[Random], Item], ...] = (
    percent, mean, speed, probability, weekday, progression, both_sets, selections, circuit, density,
)
