"""Logic: orderings, truth tellers, assignments, truth tables, inferences; every puzzle has exactly one answer.

A puzzle is written twice, as sentences and as constraints on variables; the verifier tries all assignments of values to the variables.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, permutations, product
from random import Random

from components.curate.synthetic.item import Item, problem
from components.curate.synthetic.wording import GOODS, PEOPLE, TOWNS, choose, commas, listed

FAMILY = "logic"
_RACES = (("a rowing race", "finished"), ("a cycling race", "finished"), ("a spelling contest", "ranked"), ("a cooking contest", "ranked"),
          ("a swimming race", "finished"), ("a chess tournament", "ranked"), ("a sack race", "finished"))
_PLACES = ("first", "second", "third", "fourth", "fifth", "sixth")
_COLOURS = ("red", "blue", "green", "white", "black", "yellow", "grey", "purple", "orange", "brown")
_PETS = ("a parrot", "a hamster", "a dachshund", "a tortoise", "a goldfish", "a rabbit", "a canary", "a pony")
_JOBS = ("baker", "tailor", "painter", "gardener", "doctor", "teacher", "pilot", "plumber", "singer", "carpenter")
_JOINS: dict[str, tuple[str, Callable[[bool, bool], bool]]] = {
    "and": ("({} and {})", lambda one, two: one and two), "or": ("({} or {})", lambda one, two: one or two),
    "implies": ("((not {}) or {})", lambda one, two: two or not one), "exactly when": ("({} == {})", lambda one, two: one is two),
}
Clue = tuple[str, str, Callable[[dict[str, int]], bool]]  # sentence, constraint, the same as a function


def ordering(random: Random) -> Item:
    """Who came where, from clues that leave one order."""
    people = random.sample(PEOPLE, random.choice((4, 4, 5)))
    hidden = dict(zip(random.sample(people, len(people)), range(1, len(people) + 1)))
    (event, verb), town = random.choice(_RACES), random.choice(TOWNS)
    clues, left = _narrow(random, people, lambda: _order_clue(random, people, hidden, verb))
    order = sorted(hidden, key=hidden.__getitem__)
    whole = random.random() < 0.6
    place = random.randrange(len(people))
    text = choose(
        random, f"{listed(people)} took part in {event} in {town}, without ties.",
        f"In {event} in {town} there were {len(people)} entrants: {commas(people)}. No two did equally "
        "well.", f"After {event} in {town} {listed(people)} remember this about their places.") + (
        " " + " ".join(sentence for sentence, _, _ in clues) + " ") + (
        choose(random, "In which order did they come in?", "What was the order, from first to last?") if whole else
        f"Who was {_PLACES[place]}?")
    steps = choose(random, f"There are {left[0]} possible orders.", f"Without any clue {left[0]} orders are possible.")
    for (sentence, _, _), count in zip(clues, left[1:]):
        said = _within(sentence)
        steps += " " + choose(random, f"That {said} leaves {count}.", f"If {said}, {count} remain{'s' if count == 1 else ''}.",
                              f"Because {said}, only {count} {'is' if count == 1 else 'are'} left.")
    steps += " " + choose(random, f"The one that is left is {commas(order)}.", f"It is this one: {commas(order)}.")
    return problem(random, FAMILY, "ordering", text, steps, commas(order) if whole else order[place], {
        "kind": "models", "variables": {name: list(range(1, len(people) + 1)) for name in people}, "distinct": True,
        "constraints": [constraint for _, constraint, _ in clues], "ask": {"order": True} if whole else {"where": place + 1}},
        "Answer with the names from first to last, separated by commas." if whole else "Answer with the name alone.")


def _order_clue(random: Random, people: list[str], hidden: dict[str, int], verb: str) -> Clue:
    a, b = random.sample(people, 2)
    if hidden[a] > hidden[b]:
        a, b = b, a
    gap, place = hidden[b] - hidden[a], hidden[a]
    kind = random.choice(("before", "before", "next", "not", "gap", "ends"))
    if kind == "next" and gap == 1:
        return f"{a} {verb} directly before {b}.", f"{b} == {a} + 1", lambda at: at[b] == at[a] + 1
    if kind == "gap" and gap > 1:
        between = "exactly one other was" if gap == 2 else f"exactly {gap - 1} others were"
        return f"{between[0].upper()}{between[1:]} between {a} and {b}.", f"abs({a} - {b}) == {gap}", lambda at: abs(at[a] - at[b]) == gap
    if kind == "not":
        wrong = random.choice([each for each in range(1, len(people) + 1) if each != place])
        return f"{a} was not {_PLACES[wrong - 1]}.", f"{a} != {wrong}", lambda at: at[a] != wrong
    if kind == "ends":
        inner = 1 < place < len(people)
        return (f"{a} was {'neither' if inner else 'either'} first {'nor' if inner else 'or'} last.",
                f"{a} > 1 and {a} < {len(people)}" if inner else f"{a} == 1 or {a} == {len(people)}",
                lambda at: (1 < at[a] < len(people)) == inner)
    return f"{a} {verb} ahead of {b}.", f"{a} < {b}", lambda at: at[a] < at[b]


def _narrow(random: Random, names: list[str], draw: Callable[[], Clue]) -> tuple[list[Clue], list[int]]:
    """Clues until one permutation is left, each of which rules some out, and how many are left after each."""
    possible = [dict(zip(names, places)) for places in permutations(range(1, len(names) + 1))]
    clues: list[Clue] = []
    left = [len(possible)]
    while left[-1] > 1:
        clue = draw()
        fitting = [at for at in possible if clue[2](at)]
        if len(fitting) < len(possible):
            clues.append(clue)
            left.append(len(fitting))
            possible = fitting
    return clues, left


def assignment(random: Random) -> Item:
    """Who has what, from what they do not have."""
    people = random.sample(PEOPLE, random.choice((3, 4, 4)))
    things, frame = random.choice((
        (random.sample(_JOBS, len(people)), ("is the {}", "is not the {}", "Who is the {}?", "one is a {} each")),
        (random.sample(_COLOURS, len(people)), ("wears the {} coat", "does not wear the {} coat", "Who wears the {} coat?", "")),
        (random.sample(_PETS, len(people)), ("owns {}", "does not own {}", "Who owns {}?", "")),
        (random.sample(TOWNS, len(people)), ("comes from {}", "does not come from {}", "Who comes from {}?", "")),
        ([f"the {good}" for good in random.sample(GOODS, len(people))], ("brings {}", "does not bring {}", "Who brings {}?", ""))))
    hidden = dict(zip(people, random.sample(range(1, len(people) + 1), len(people))))

    def clue() -> Clue:
        a, b = random.sample(people, 2)
        mine, yours = hidden[a], hidden[b]
        other = random.choice([number for number in hidden.values() if number != mine])
        kind = random.choice(("not", "not", "either", "if"))
        if kind == "either" and len(people) > 3:
            one, two = sorted((mine, other))
            return (f"{a} either {frame[0].format(things[one - 1])} or {frame[0].format(things[two - 1])}.",
                    f"{a} == {one} or {a} == {two}", lambda at: at[a] in (one, two))
        if kind == "if":
            return (f"If {a} {frame[0].format(things[other - 1])}, then {b} {frame[0].format(things[mine - 1])}.",
                    f"{a} != {other} or {b} == {mine}", lambda at: at[a] != other or at[b] == mine)
        wrong = random.choice([number for number in hidden.values() if number != yours])
        return f"{b} {frame[1].format(things[wrong - 1])}.", f"{b} != {wrong}", lambda at: at[b] != wrong

    clues, left = _narrow(random, people, clue)
    asked = random.choice(range(1, len(people) + 1))
    found = next(name for name in people if hidden[name] == asked)
    text = choose(
        random, f"{listed(people)} are to be matched with {listed(things)}, one each.",
        f"Of {listed(people)} each belongs to exactly one of these: "
        f"{commas(things)}.", f"A few facts suffice to match {listed(people)} with {listed(things)}, one to one.") + (
        " " + " ".join(sentence for sentence, _, _ in clues) + " " + frame[2].format(things[asked - 1]))
    steps = choose(random, f"At first {left[0]} ways to match them are possible.",
                   f"{len(people)} persons can be matched in {left[0]} ways.")
    for (sentence, _, _), count in zip(clues, left[1:]):
        said = _within(sentence)
        steps += " " + choose(random, f"Since {said}, {count} remain{'s' if count == 1 else ''}.", f"Knowing that {said} leaves {count}.",
                              f"With \"{said}\" there {'is' if count == 1 else 'are'} {count}.")
    steps += " " + choose(random, "In the last one ", "So ", "It follows that ") + listed(
        [f"{name} {frame[0].format(things[hidden[name] - 1])}" for name in people]) + "."
    return problem(random, FAMILY, "assignment", text, steps, found, {
        "kind": "models", "variables": {name: list(range(1, len(people) + 1)) for name in people}, "distinct": True,
        "constraints": [constraint for _, constraint, _ in clues], "ask": {"where": asked}}, "Answer with the name alone.")


def truth_tellers(random: Random) -> Item:
    """Who always tells the truth, from what each says about the others."""
    people = random.sample(PEOPLE, random.choice((3, 3, 4)))
    while True:
        said = [_statement(random, people, speaker) for speaker in people]
        fitting = [values for values in product((True, False), repeat=len(people))
                   if all(values[index] == claim[2](dict(zip(people, values))) for index, claim in enumerate(said))]
        if len(fitting) == 1 and any(fitting[0]):
            break
    honest = [name for name, value in zip(people, fitting[0]) if value]
    island = random.choice(TOWNS)
    text = choose(
        random, f"On the island of {island} some people always tell the truth and the others always lie.",
        f"Everybody in {island} either always says what is true or always says what is false.",
        f"In {island} live only liars, who never say anything true, and truth tellers, who never say anything false.") + (
        " " + " ".join(choose(random, f'{name} says: "{sentence}"', f'"{sentence}" says {name}.') for name, (sentence, _, _)
                       in zip(people, said)) + " ") + choose(random, "Who tells the truth?", "Which of them can be believed?")
    wrong = random.choice([values for values in product((True, False), repeat=len(people)) if values != fitting[0]])
    broken = next(index for index, claim in enumerate(said) if wrong[index] != claim[2](dict(zip(people, wrong))))
    guess = [name for name, value in zip(people, wrong) if value]
    steps = choose(random, "A statement is true exactly if its speaker tells the truth; so each statement is an equation.",
                   "Suppose who is honest and see whether everybody then says what such a person would say.") + (
        f" With {len(people)} people there are {2**len(people)} cases. " + (
            "If all were liars, " if not guess else "If all were honest, " if len(guess) == len(people) else
            f"If {listed(guess)} {'was' if len(guess) == 1 else 'were'} honest and nobody else, ") +
        f"what {people[broken]} says would be {'false' if wrong[broken] else 'true'}, but {people[broken]} would be "
        f"{'a truth teller' if wrong[broken] else 'a liar'}. The only case without a contradiction is that {listed(honest)} "
        f"{'tells' if len(honest) == 1 else 'tell'} the truth. ")
    for name, (sentence, _, holds) in zip(people, said):
        verdict = "true" if holds(dict(zip(people, fitting[0]))) else "false"
        steps += choose(random, f"Then what {name} says is {verdict}. ", f"The words of {name} are {verdict}. ",
                        f"{name} said that {_within(sentence)}, which is {verdict}. ")
    return problem(random, FAMILY, "truth tellers", text, steps.strip(), " and ".join(honest), {
        "kind": "models", "variables": {name: [True, False] for name in people}, "constraints": [
            f"({name}) == ({constraint})" for name, (_, constraint, _) in zip(people, said)], "ask": {"where": True}},
        'Answer with the names in the order of the problem, joined by " and ".')


def _statement(random: Random, people: list[str], speaker: str) -> tuple[str, str, Callable[[dict[str, bool]], bool]]:
    others = [name for name in people if name != speaker]
    a, b = random.sample(others, 2)
    number = random.randint(1, len(people) - 1)
    total = " + ".join(f"(1 if {name} else 0)" for name in people)
    return random.choice((
        (f"{a} is a liar.", f"not {a}", lambda who: not who[a]),
        (f"{a} tells the truth.", f"{a}", lambda who: who[a]),
        (f"{a} and {b} are of the same kind.", f"{a} == {b}", lambda who: who[a] == who[b]),
        (f"{a} and {b} are of different kinds.", f"{a} != {b}", lambda who: who[a] != who[b]),
        (f"{a} or {b} lies, perhaps both.", f"not {a} or not {b}", lambda who: not (who[a] and who[b])),
        (f"If {a} is honest, so is {b}.", f"not {a} or {b}", lambda who: not who[a] or who[b]),
        (f"Exactly {number} of us {'is' if number == 1 else 'are'} honest.", f"{total} == {number}",
         lambda who: sum(who.values()) == number),
        (f"At least {number} of us {'lies' if number == 1 else 'lie'}.", f"{total} <= {len(people) - number}",
         lambda who: sum(who.values()) <= len(people) - number)))


def truth_table(random: Random) -> Item:
    """In how many cases a compound statement is true."""
    letters = random.sample("ABCDEFGHKLMPQRSTUVWXYZ", random.choice((3, 3, 4)))
    topics = random.sample(("the bridge is open", "it rains", "the shop is full", "the train is late", "the lamp is lit",
                            "the river is high",
                            "the bell rings", "the gate is locked", "the soup is hot", "the road is icy", "the choir sings"), len(letters))
    negated = random.choice(letters)
    formula, constraint, true = _leaf(letters[0], letters[0] == negated)
    for letter in letters[1:]:
        join = random.choice(list(_JOINS))
        other, its_constraint, its_truth = _leaf(letter, letter == negated)
        formula, constraint = f"({formula} {join} {other})", _JOINS[join][0].format(constraint, its_constraint)
        true = _joined(_JOINS[join][1], true, its_truth)
    formula = formula[1:-1]
    rows = [(values, true(dict(zip(letters, values)))) for values in product((True, False), repeat=len(letters))]
    count = sum(value for _, value in rows)
    text = choose(
        random, f"Let {listed([f'{letter} stand for the statement that {topic}' for letter, topic in zip(letters, topics)])}.",
        f"Write {listed([f'{letter} for {chr(34)}{topic}{chr(34)}' for letter, topic in zip(letters, topics)])}.") + (
        f" For how many of the {len(rows)} combinations of truth values is the formula \"{formula}\" true?")
    pick = random.sample(rows, 3)
    steps = choose(random, f"{len(letters)} statements have {len(rows)} combinations of truth values.",
                   f"The truth table has {len(rows)} lines.") + " " + choose(
        random, "An implication is false only if its first part is true and its second is false.",
        "\"Or\" is true if at least one side is, and \"exactly when\" if both sides agree.") + " "
    for values, value in pick:
        states = listed([f"{letter} is {'true' if state else 'false'}" for letter, state in zip(letters, values)])
        steps += choose(random, f"If {states}, the formula is {'true' if value else 'false'}. ",
                        f"Where {states}, it is {'true' if value else 'false'}. ")
    steps += f"Going through all lines, it is true in {count} and false in {len(rows) - count}."
    return problem(random, FAMILY, "truth table", text, steps, str(count), {
        "kind": "models", "variables": {letter: [True, False] for letter in letters}, "constraints": [constraint], "ask": {"count": True}},
        "Answer with the number alone.")


def _leaf(letter: str, negated: bool) -> tuple[str, str, Callable[[dict[str, bool]], bool]]:
    if negated:
        return f"not {letter}", f"(not {letter})", lambda case: not case[letter]
    return letter, letter, lambda case: case[letter]


def _joined(join: Callable[[bool, bool], bool], one: Callable[[dict[str, bool]], bool],
            two: Callable[[dict[str, bool]], bool]) -> Callable[[dict[str, bool]], bool]:
    return lambda case: join(one(case), two(case))


def inference(random: Random) -> Item:
    """Whether a conclusion follows from a chain of conditions."""
    facts = random.sample(("the mill turns", "the wind blows", "the boat sails", "the ferry runs", "the market opens", "the baker is up",
                           "the lights are on", "the alarm is set", "the guests arrive", "the fire burns", "the snow melts",
                           "the ice holds",
                           "the wheel spins", "the crops grow", "the field is wet", "the dog barks"), random.choice((4, 5)))
    letters = list("PQRST"[:len(facts)])
    who, town = random.choice(PEOPLE), random.choice(TOWNS)
    links = list(pairwise(letters))
    last, backwards = letters[-1], random.random() < 0.5
    given = (f"not {last}", f"It is not the case that {facts[-1]}.") if backwards else (letters[0], f"In fact {facts[0]}.")
    follows = random.random() < 0.5
    if not follows:  # affirming the consequent, denying the antecedent
        given = (last, f"In fact {facts[-1]}.") if backwards else (f"not {letters[0]}", f"It is not the case that {facts[0]}.")
    place = random.randrange(1, len(letters) - 1)
    conclusion, wanted = (f"not {letters[place]}", f"it is not the case that {facts[place]}") if (backwards == follows) else (
        letters[place], facts[place])
    named = dict(zip(letters, facts))
    rules = [choose(random, f"If {named[one]}, then {named[two]}.", f"Whenever {named[one]}, {named[two]}.",
                    f"{named[one].capitalize()} only if {named[two]}.") for one, two in links]
    shuffled = random.sample(rules, len(rules))
    text = choose(random, f"{who} knows this about {town}.", f"In {town} the following holds, as {who} has found out.",
                  f"Take these statements about {town} from {who} as true.") + (
        f" {' '.join(shuffled)} {given[1]} ") + choose(
        random, f"Does it follow that {wanted}?", f"Can {who} conclude that {wanted}?")
    chain = listed([named[letter] for letter in letters], "and last")
    if follows:
        reason = (f"Run the chain backwards. A condition whose consequence fails must fail itself, so each link passes the negation on, "
                  f"from {facts[-1]} back to {facts[place]}." if backwards else
                  f"Each condition that holds makes the next one hold, so from the first, {facts[0]}, one gets step by step to "
                  f"{facts[place]}.")
        verdict = choose(random, "The conclusion is forced.", "There is no way out.", "So the conclusion follows.")
    else:
        reason = (f"That a consequence holds does not say that its condition does: something else may be the reason why {facts[-1]}."
                  if backwards else
                  f"That the first condition fails says nothing about what comes after it: it may be that {facts[place]} for another "
                  "reason.")
        verdict = choose(random, "The conclusion may be false although all statements are true.", "So nothing of the kind follows.",
                         "A case with true premises and a false conclusion is possible.")
    steps = choose(random, f"The conditions form a chain: {chain}.",
                   f"Put in order, the links are these: {chain}.") + f" {reason} {verdict}"
    return problem(random, FAMILY, "inference", text, steps, "yes" if follows else "no", {
        "kind": "models", "variables": {letter: [True, False] for letter in letters},
        "constraints": [*(f"not {one} or {two}" for one, two in links), given[0]], "ask": {"entails": conclusion}},
        "Answer yes or no.")


TOPICS: tuple[Callable[[Random], Item], ...] = (ordering, assignment, truth_tellers, truth_table, inference)


def _within(sentence: str) -> str:
    """A sentence as part of another: no full stop, and a small letter unless it starts with a name."""
    said = sentence.rstrip(".")
    return said if said.partition(" ")[0] in PEOPLE else said[0].lower() + said[1:]
