"""Algorithms traced on concrete input, step by step. The verifier finds each result by another algorithm, see `references`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from random import Random
from typing import Any

from components.curate.synthetic.item import Item, problem
from components.curate.synthetic.wording import GOODS, PEOPLE, TOWNS, choose, commas, listed

FAMILY = "algorithmic"
_NUMBER, _LIST = "Answer with the number alone.", "Answer with the elements separated by commas."


def _traced(random: Random, topic: str, text: str, steps: str, answer: str, function: str, arguments: list[Any], form: str) -> Item:
    return problem(random, FAMILY, topic, text, steps, answer, {"kind": "reference", "function": function, "arguments": arguments}, form)


def euclid(random: Random) -> Item:
    """Greatest common divisor by repeated division."""
    factor = random.randint(2, 24)
    a, b = factor * random.randint(10, 90), factor * random.randint(5, 60)
    who, good = random.choice(PEOPLE), random.choice(GOODS)
    text = choose(
        random, f"Use Euclid's algorithm to find the greatest common divisor of {a} and {b}.",
        f"{who} wants to pack {a} {good} and {b} lids into equal boxes, as many boxes as possible and nothing left over. How many boxes "
        "can there be? Trace the Euclidean algorithm.",
        f"What is the largest number that divides both {a} and {b}? Show the divisions of Euclid's algorithm.")
    steps = choose(random, "Divide the larger number by the smaller, then the divisor by the remainder, until nothing remains.",
                   "A common divisor of two numbers also divides the remainder of their division, so the pair can be made smaller.",
                   "Replace the pair by the smaller number and the remainder, again and again.")
    x, y = a, b
    while y:
        steps += " " + choose(random, f"Here {x} = {x // y} * {y} + {x % y}.", f"Then {x} mod {y} = {x % y}.",
                              f"{y} goes {x // y} times into {x}, and {x} - {x // y} * {y} = {x % y} remains.")
        x, y = y, x % y
    steps += " " + choose(random, f"The last divisor was {x}.", f"Nothing remains, and the divisor of that step is {x}.") + (
        f" Indeed {a} = {x} * {a // x} and {b} = {x} * {b // x}.")
    return _traced(random, "euclid", text, steps, str(x), "gcd", [a, b], _NUMBER)


def binary_search(random: Random) -> Item:
    """Where a value stands in a sorted list."""
    numbers = sorted(random.sample(range(2, 180), random.randint(9, 15)))
    present = random.random() < 0.7
    wanted = random.choice(numbers) if present else random.choice([n for n in range(2, 180) if n not in numbers])
    who = random.choice(PEOPLE)
    text = choose(
        random, f"The sorted list is {commas(numbers)}. Trace a binary search for {wanted}.",
        f"{who} has cards with the numbers {commas(numbers)} face down in this order and looks for {wanted} by halving.",
        f"Search {commas(numbers)} for the value {wanted} with binary search.") + (
        " At which position is it, counted from 1? Say 0 if it is not there.")
    steps = choose(random, "Compare with the middle and keep the half in which the value must lie.",
                   "Because the list is sorted, one comparison rules out half of what is left.")
    low, high, place = 1, len(numbers), 0
    while low <= high:
        middle = (low + high) // 2
        value = numbers[middle - 1]
        steps += " " + choose(random, f"Positions {low} to {high} are left; the middle one, {middle}, holds {value}",
                              f"Look at position {middle} between {low} and {high}: there is {value}",
                              f"With {high} - {low} + 1 = {high - low + 1} left, position {middle} is examined and shows {value}")
        if value == wanted:
            steps, place = steps + ", the value itself.", middle
            break
        smaller = value < wanted
        steps += choose(random, f", which is too {'small' if smaller else 'large'}.",
                        f", and {wanted} is {'larger' if smaller else 'smaller'}.",
                        f", so go {'right' if smaller else 'left'}.")
        low, high = (middle + 1, high) if smaller else (low, middle - 1)
    if not place:
        steps += choose(random, " No position is left, so the value is not in the list.", " The interval is empty: it is missing.")
    return _traced(random, "binary search", text, steps, str(place), "position", [numbers, wanted], _NUMBER)


def sorting(random: Random) -> Item:
    """Insertion or selection sort, list by list."""
    numbers = random.sample(range(1, 99), random.randint(5, 7))
    insertion = random.random() < 0.5
    name, who = ("insertion sort" if insertion else "selection sort"), random.choice(PEOPLE)
    text = choose(random, f"Sort {commas(numbers)} in ascending order with {name} and show the list after each pass.",
                  f"{who} sorts the cards {commas(numbers)} by {name}. How does the row look after each pass, and in the end?",
                  f"Trace {name} on the list {commas(numbers)}.")
    steps = (choose(random, "Insertion sort takes the next element and moves it left to its place among those before it.",
                    "The left part is always sorted; each pass inserts one more element there.") if insertion else
             choose(random, "Selection sort looks for the smallest of the rest and swaps it to the front of the rest.",
                    "Each pass puts the least remaining element where it belongs."))
    row = list(numbers)
    for index in range(1, len(row)) if insertion else range(len(row) - 1):
        if insertion:
            value, place = row.pop(index), index
            while place and row[place - 1] > value:
                place -= 1
            row.insert(place, value)
            moved = index - place
            what = f"{value} moves {moved} place{'s' if moved > 1 else ''} to the left" if moved else f"{value} stays"
        else:
            least = min(range(index, len(row)), key=row.__getitem__)
            what = f"{row[least]} is the smallest and stays" if least == index else f"{row[least]} changes places with {row[index]}"
            row[index], row[least] = row[least], row[index]
        steps += " " + choose(random, f"Next {what}, which gives {commas(row)}.", f"Now {what}: {commas(row)}.",
                              f"{what[0].upper()}{what[1:]}, and the list is "
                              f"{commas(row)}.")
    return _traced(random, "sorting", text, steps, commas(row), "sort", [numbers], _LIST)


def sieve(random: Random) -> Item:
    """The primes up to a limit."""
    limit, who = random.randint(18, 60), random.choice(PEOPLE)
    text = choose(random, f"Find all prime numbers up to {limit} with the sieve of Eratosthenes.",
                  f"{who} writes down the numbers from 2 to {limit} and strikes out multiples. Which numbers stay?",
                  f"Which primes are there not larger than {limit}? Describe how the sieve of Eratosthenes finds them.")
    alive = dict.fromkeys(range(2, limit + 1), True)
    steps = choose(random, "Go through the numbers in order; each that is not struck out is prime, and its multiples are struck out.",
                   "Multiples of a prime are not prime, so they are crossed off, prime after prime.")
    for prime in range(2, limit + 1):
        if prime * prime > limit:
            steps += " " + choose(random, f"Since {prime} * {prime} = {prime * prime} is more than {limit}, nothing more has to be struck "
                                          "out.",
                                  f"The next square, {prime} * {prime} = {prime * prime}, is beyond {limit}, so all that is left is prime.")
            break
        if alive[prime]:
            struck = [n for n in range(prime * prime, limit + 1, prime) if alive[n]]
            alive.update(dict.fromkeys(struck, False))
            steps += " " + choose(random, f"For {prime} strike out {listed(struck)}.", f"The prime {prime} removes {listed(struck)}.",
                                  f"Because of {prime}, {listed(struck)} {'goes' if len(struck) == 1 else 'go'}.")
    primes = [n for n in alive if alive[n]]
    return _traced(random, "sieve", text, steps, commas(primes), "primes", [limit], _LIST)


def digits(random: Random) -> Item:
    """A number in another base, by repeated division."""
    base, who = random.choice((2, 2, 3, 4, 5, 6, 7, 8, 9)), random.choice(PEOPLE)
    number = random.randint(20, 250) if base == 2 else random.randint(100, 9000)
    text = choose(random, f"Write the decimal number {number} in base {base} by repeated division.",
                  f"{who} counts in base {base}. How does {who} write the number that we write {number}?",
                  f"Convert {number} to base {base} and show the remainders.")
    steps = choose(random, "The remainders of dividing by the base are the digits, the last digit first.",
                   "Divide by the base, note the remainder, go on with the quotient.")
    rest, found = number, ""
    while rest:
        steps += " " + choose(random, f"From {rest} = {rest // base} * {base} + {rest % base} comes the digit {rest % base}.",
                              f"Dividing {rest} by {base} gives {rest // base}, remainder {rest % base}.",
                              f"As {rest} mod {base} = {rest % base}, write {rest % base} and keep {rest // base}.")
        found, rest = f"{rest % base}{found}", rest // base
    steps += " " + choose(random, f"Read from the last to the first the digits are {found}.", f"Backwards this reads {found}.")
    return _traced(random, "digits", text, steps, found, "digits", [number, base], "Answer with the digits alone.")


def power(random: Random) -> Item:
    """Modular power by squaring."""
    base, exponent, modulus = random.randint(2, 19), random.randint(9, 70), random.randint(11, 97)
    text = choose(random, f"Compute {base} to the power {exponent} modulo {modulus} by repeated squaring.",
                  f"What is the remainder of {base} to the power of {exponent} when divided by {modulus}? Use binary exponentiation.",
                  f"Find the remainder that {base} multiplied {exponent} times with itself leaves after division by {modulus}.")
    steps = choose(random, f"In binary the exponent {exponent} is {exponent:b}, which says which squares are multiplied.",
                   f"Halve the exponent and square the base at each step, starting from {base} and {exponent} with the product 1.")
    square, left, value = base % modulus, exponent, 1
    while left:
        if left % 2:
            steps += " " + choose(random, f"The exponent {left} is odd, so the product becomes {value} * {square} mod {modulus} = "
                                  f"{value * square % modulus}.",
                                  f"As {left} is odd, multiply: {value} * {square} mod {modulus} = {value * square % modulus}.")
            value = value * square % modulus
        if left > 1:
            steps += " " + choose(random, f"Squaring gives {square} * {square} mod {modulus} = {square * square % modulus}.",
                                  f"The next square is {square} * {square} mod {modulus} = {square * square % modulus}.")
        square, left = square * square % modulus, left // 2
    return _traced(random, "power", text, steps, str(value), "power", [base, exponent, modulus], _NUMBER)


def shortest_path(random: Random) -> Item:
    """Dijkstra's algorithm on a small map."""
    towns = random.sample(TOWNS, random.randint(5, 6))
    edges = {frozenset((one, two)): random.randint(2, 30) for one, two in itertools.pairwise(towns)}
    while len(edges) < len(towns) + 2:
        edges.setdefault(frozenset(random.sample(towns, 2)), random.randint(3, 40))
    roads = [[*sorted(pair), length] for pair, length in sorted(edges.items(), key=lambda item: sorted(item[0]))]
    random.shuffle(roads)
    start, goal = random.sample(towns, 2)
    text = choose(random, "The roads and their lengths in kilometres are", "A map shows these roads, with kilometres:",
                  "Between the towns there are these roads, the lengths given in kilometres:") + " " + (
        f"{listed([f'{one} to {two} {length}' for one, two, length in roads])}. ") + choose(
        random, f"How long is the shortest way from {start} to {goal}?",
            f"Find the distance from {start} to {goal} with Dijkstra's algorithm.")
    steps = choose(random, "Always settle the town with the smallest distance known so far, and look at its neighbours.",
                   "Dijkstra's algorithm fixes the distances from the start in ascending order.")
    known, settled = {start: 0}, set()
    while True:
        town = min((each for each in known if each not in settled), key=lambda each: (known[each], each))
        settled.add(town)
        if town == goal:
            break
        better = []
        for one, two, length in roads:
            other = two if one == town else one if two == town else None
            if other and other not in settled and known[town] + length < known.get(other, 10**9):
                known[other] = known[town] + length
                better.append(f"{other} over {known[town]} + {length} = {known[other]}")
        steps += " " + choose(random, f"{town} is settled at {known[town]}", f"Take {town}, distance {known[town]}",
                              f"The nearest town is {town} with {known[town]}") + (
            f"; from there one reaches {listed(better)}." if better else ", which brings nothing shorter.")
    steps += f" Then {goal} is next, and nothing shorter than {known[goal]} can come."
    return _traced(random, "shortest path", text, steps, str(known[goal]), "distance", [roads, start, goal], _NUMBER)


def coins(random: Random) -> Item:
    """Fewest coins for an amount, by dynamic programming."""
    kinds = [1, *sorted(random.sample(range(3, 14), 2))]
    amount, land = random.randint(10, 21), random.choice(TOWNS)
    best = [0]
    for total in range(1, amount + 1):
        best.append(1 + min(best[total - coin] for coin in kinds if coin <= total))
    text = choose(random, f"In {land} there are coins of {listed(kinds)} cents. What is the smallest number of coins that makes {amount} "
                          "cents?",
                  f"How few coins of {listed(kinds, 'or')} cents are enough to pay {amount} cents in {land}? Build the table of smaller "
                  "amounts.")
    steps = choose(random, "The fewest coins for an amount are one more than the fewest for what is left after one coin.",
                   "Work upwards: for each amount try every coin as the last one.") + (
        f" The table for 1 to {amount} cents reads {commas(best[1:])}. ")
    rest, taken = amount, []
    while rest:
        coin = next(coin for coin in reversed(kinds) if coin <= rest and best[rest - coin] == best[rest] - 1)
        taken.append(coin)
        steps += choose(random, f"For {rest} cents a coin of {coin} is a best last one, leaving {rest} - {coin} = {rest - coin}. ",
                        f"Take {coin} from {rest}: {rest} - {coin} = {rest - coin} cents are left. ")
        rest -= coin
    steps += f"Together {' + '.join(map(str, taken))} = {amount}. " if len(taken) > 1 else "One coin is enough. "
    greedy, count = amount, 0
    for coin in reversed(kinds):
        count, greedy = count + greedy // coin, greedy % coin
    steps += (f"Taking the largest coin first would have needed {count}." if count > len(taken) else
              "Taking the largest coin first happens to be as good here.")
    return _traced(random, "coins", text, steps, str(len(taken)), "fewest_coins", [kinds, amount], _NUMBER)


def largest_sum(random: Random) -> Item:
    """Kadane's algorithm."""
    numbers = [random.randint(-15, 20) for _ in range(random.randint(7, 10))]
    who = random.choice(PEOPLE)
    text = choose(random, f"Find the largest sum of neighbouring elements of {commas(numbers)} with Kadane's algorithm.",
                  f"{who} noted daily gains and losses of {commas(numbers)}. Which is the largest total over consecutive days?",
                  f"Trace Kadane's algorithm for the maximum subarray sum on {commas(numbers)}.")
    steps = choose(random, "At each element either go on with the run or start a new one there, whichever is larger.",
                   "A run whose sum has become negative is never worth keeping.")
    run = best = numbers[0]
    steps += f" Begin with {run}."
    for value in numbers[1:]:
        if run > 0:
            steps += " " + choose(random, f"Adding gives {run} + ({value}) = {run + value}", f"Go on to {run} + ({value}) = {run + value}")
            run += value
        else:
            steps += " " + choose(random, f"The run is worth {run}, so start anew with {value}", f"From {value} a new run starts")
            run = value
        steps += choose(random, ", the best yet.", ", a new maximum.") if run > best else choose(random, f"; the best stays {best}.", ".")
        best = max(best, run)
    return _traced(random, "largest sum", text, steps, str(best), "largest_sum", [numbers], _NUMBER)


def horner(random: Random) -> Item:
    """A polynomial's value by Horner's rule."""
    coefficients = [random.randint(1, 9), *(random.randint(-12, 12) for _ in range(random.randint(2, 4)))]
    x, who = random.randint(2, 9), random.choice(PEOPLE)
    text = choose(random, f"Evaluate the polynomial with the coefficients {commas(coefficients)}, highest power first, at x = {x} by "
                          f"Horner's rule.",
                  f"{who} has a polynomial with coefficients {commas(coefficients)} from the highest power down. What is its value at {x}?",
                  f"What does the polynomial given by {commas(coefficients)}, leading coefficient first, come to for the argument {x}?")
    steps = choose(random, "Start with the leading coefficient; multiply by the argument and add the next coefficient.",
                   "Horner's rule needs one multiplication and one addition per coefficient.")
    value = coefficients[0]
    for coefficient in coefficients[1:]:
        steps += " " + choose(random, f"This gives ({value}) * {x} + ({coefficient}) = {value * x + coefficient}.",
                              f"Next, ({value}) * {x} + ({coefficient}) = {value * x + coefficient}.",
                              f"With the coefficient {coefficient} it becomes ({value}) * {x} + ({coefficient}) = "
                              f"{value * x + coefficient}.")
        value = value * x + coefficient
    return _traced(random, "horner", text, steps, str(value), "polynomial", [coefficients, x], _NUMBER)


def majority(random: Random) -> Item:
    """Boyer and Moore's vote."""
    one, two, three = random.sample(GOODS, 3)
    count = random.randint(4, 6)
    votes = [one] * count + [random.choice((two, three)) for _ in range(count - random.randint(1, 2))]
    random.shuffle(votes)
    who = random.choice(TOWNS)
    text = choose(random, f"The votes in {who} were {commas(votes)}. Which choice has more than half of them? Use the Boyer-Moore vote.",
                  f"Run the majority vote algorithm of Boyer and Moore on {commas(votes)}, one choice of which is in the majority.")
    steps = choose(random, "Keep a candidate and a counter; equal votes raise the counter, others lower it, and at zero the next vote is "
                           "the new candidate.", "Pairs of different votes cancel out, so a true majority survives.")
    candidate, level = "", 0
    for vote in votes:
        if level == 0:
            candidate, level = vote, 1
            steps += " " + choose(random, f"The vote for {vote} makes it the candidate.", f"Now {vote} leads with 1.")
        else:
            level += 1 if vote == candidate else -1
            steps += " " + choose(random, f"After {vote} the counter is {level}.", f"{vote.capitalize()} brings it to {level}.",
                                  f"A vote for {vote}: {level}.")
    steps += f" Counting again, {candidate} has {votes.count(candidate)} of {len(votes)} votes, more than half."
    return _traced(random, "majority", text, steps, candidate, "majority", [votes], "Answer with the choice alone.")


def common_subsequence(random: Random) -> Item:
    """Longest common subsequence of two words, row by row."""
    letters = random.sample("abcdeghiklmnoprstu", random.randint(3, 5))
    one, two = ("".join(random.choices(letters, k=random.randint(4, 6))) for _ in range(2))
    text = choose(random, f"How long is the longest common subsequence of {one} and {two}? Fill the table row by row.",
                  f"Letters may be left out of {one} and of {two} but not moved. What is the length of the longest word that both can "
                  "become?")
    steps = choose(random, "An entry is one more than its upper left neighbour where the letters agree, else the larger of the entries "
                           "above and to the "
                           "left.", "Equal letters extend the best of the shorter words; different ones take over the better neighbour.")
    row = [0] * (len(two) + 1)
    for letter in one:
        above = row
        row = [0]
        for place, other in enumerate(two, 1):
            row.append(above[place - 1] + 1 if letter == other else max(above[place], row[-1]))
        steps += " " + choose(random, f"The row of {letter} is {commas(row[1:])}.",
                              f"For the letter {letter} the entries are {commas(row[1:])}.",
                              f"Then {letter} gives {commas(row[1:])}.")
    steps += f" The last entry is {row[-1]}."
    return _traced(random, "common subsequence", text, steps, str(row[-1]), "common", [one, two], _NUMBER)


def knapsack(random: Random) -> Item:
    """0/1 knapsack, thing by thing."""
    things = random.sample(GOODS, random.randint(3, 4))
    weights, values = [random.randint(1, 6) for _ in things], [random.randint(2, 25) for _ in things]
    capacity = random.randint(max(weights) + 1, max(max(weights) + 2, sum(weights) - 1))
    who = random.choice(PEOPLE)
    offers = listed([f"the {thing} weigh {weight} kilograms and are worth {value} dollars" for thing, weight, value in
                     zip(things, weights, values)])
    text = choose(random, f"{who} can carry {capacity} kilograms. Of what is there, {offers}.",
                  f"A sledge takes {capacity} kilograms. {offers[0].upper()}{offers[1:]}.") + choose(
        random, " What is the largest value that can be taken, each only once and whole?", " How valuable can the best load be?")
    steps = choose(random, "For each capacity keep the best value so far, and let each new thing either stay or come.",
                   "Dynamic programming over the capacities: a thing is worth taking if its value and the best for the rest beat the old "
                   "entry.")
    best = [0] * (capacity + 1)
    for thing, weight, value in zip(things, weights, values):
        best = [max(best[room], best[room - weight] + value if weight <= room else 0) for room in range(capacity + 1)]
        steps += " " + choose(random, f"With the {thing} the best values for 1 to {capacity} kilograms are {commas(best[1:])}.",
                              f"Allowing the {thing} too gives {commas(best[1:])}.")
    return _traced(random, "knapsack", text, steps, str(best[-1]), "best_value", [weights, values, capacity], _NUMBER)


TOPICS: tuple[Callable[[Random], Item], ...] = (
    euclid, binary_search, sorting, sieve, digits, power, shortest_path, coins, largest_sum, horner, majority, common_subsequence, knapsack,
)
