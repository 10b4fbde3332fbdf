"""Code concepts: small Python functions, each about one idea, described, explained and tested.

The expected values of the tests come from another algorithm than the function's. The verifier executes the code as the document has it.
"""

from __future__ import annotations

from random import Random
from string import Template
from typing import Any

from components.curate.synthetic.concepts import CONCEPTS
from components.curate.synthetic.item import Item
from components.curate.synthetic.wording import FIRMS, GOODS, PEOPLE, TOWNS, choose

FAMILY = "code-concepts"
_TESTS = 4


def draw(random: Random) -> Item:
    """One function with its tests; the task asks what a call returns."""
    concept = random.choice(CONCEPTS)
    names = {"f": random.choice(concept.functions.split())}
    for placeholder, options in concept.names.items():
        names[placeholder] = random.choice([name for name in options.split() if name not in names.values()])
    constants = {placeholder: number(random) for placeholder, number in concept.constants}
    given = {**names, **{placeholder: str(value) for placeholder, value in constants.items()}}
    code = Template(concept.code.lstrip()).substitute(given)
    calls: dict[str, Any] = {}
    while len(calls) < _TESTS:
        arguments = concept.draw(random)
        calls[", ".join(map(repr, arguments))] = concept.expected(*arguments, *constants.values())
    call = f"list({names['f']}({{}}))" if "yield" in code else f"{names['f']}({{}})"
    shown = [(call.format(arguments), repr(value)) for arguments, value in calls.items()]
    asserts = [f"assert {left} == {right}" for left, right in shown]
    (example, value), (last, answer) = shown[0], shown[-1]
    task = Template(random.choice(concept.tasks)).substitute(given)
    note = Template(random.choice(concept.notes)).substitute(given)
    who, town, firm = random.choice(PEOPLE), random.choice(TOWNS), random.choice(FIRMS)
    text = choose(
        random, f"Write a Python function `{names['f']}` that {task}.",
        f"Exercise on {concept.topic}: implement `{names['f']}`, which {task}.",
        f"{who} needs a function that {task}, and wants to call it `{names['f']}`.",
        f"For the {firm} in {town} a small helper is wanted: `{names['f']}`, a function that {task}.",
        f"The topic is {concept.topic}. Define `{names['f']}` such that it {task}.") + " " + choose(
        random, f"For example, `{example}` is `{value}`.", f"So `{example}` should give `{value}`.",
        f"A list of {random.choice(GOODS)} or anything else may be behind the data; `{example}` has to be `{value}`.")
    lead = choose(random, "One way to do it:", "A solution in Python:", "Here is the code.", f"The idea is {concept.topic}.", "This works:")
    tests = choose(random, "These tests pass.", "Some checks:", "To be sure, a few tests:", "Tests, with values found in another way:")
    steps = f"{note}\n\n{lead}\n\n```python\n{code}```\n\n{tests}\n\n```python\n" + "\n".join(asserts) + "\n```"
    closing = choose(random, f"The last test says that `{last}` gives", f"In particular the value of `{last}` is",
                     f"Called as `{last}` it returns")
    prompt = (f"Here is a Python function about {concept.topic}.\n\n{code}\nWhat does `{last}` return? Answer with the value alone, as "
              "Python shows it.")
    return Item(FAMILY, concept.topic, f"{text}\n\n{steps}\n\n{closing} {answer}.\n", prompt, note, answer,
                {"kind": "program", "code": code, "asserts": asserts})
