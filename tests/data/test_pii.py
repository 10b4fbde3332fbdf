"""Personal data planted in real text is found, look-alikes are left alone, and redacting again changes nothing."""

import ipaddress
from pathlib import Path
from random import Random
from sysconfig import get_path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stagecraft.data.pii import CARD, EMAIL, IBAN, IPV4, IPV6, PHONE, SECRET, redact
from tests.curate.intervals import lower_end, recall_and_precision

PLACEHOLDERS = {"email": (EMAIL,), "ip": (IPV4, IPV6), "phone": (PHONE,), "card": (CARD,), "iban": (IBAN,), "secret": (SECRET,)}
UPPER, LOWER, NUMERALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz", "0123456789"


def chars(random: Random, alphabet: str, count: int) -> str:
    return "".join(random.choices(alphabet, k=count))


def email(random: Random) -> str:
    user = random.choice(["{a}", "{a}.{b}", "{a}_{b}", "{a}+{b}", "{a}-{b}9"]).format(a=chars(random, LOWER, 5), b=chars(random, LOWER, 4))
    return f"{user}@{random.choice(['', 'mail.', 'cs.'])}{chars(random, LOWER, 6)}.{random.choice(['com', 'de', 'org', 'co.uk', 'museum'])}"


def ipv4(random: Random) -> str:
    while True:
        address = ipaddress.IPv4Address(random.getrandbits(32))
        if address.is_global:
            return str(address)


def ipv6(random: Random) -> str:
    address = ipaddress.IPv6Address((0x2A00 << 112) + random.getrandbits(100))
    return random.choice([str(address), address.exploded, str(address).upper(), str(ipaddress.IPv6Address(int(address) >> 64 << 64 | 1))])


def phone(random: Random) -> str:
    form = random.choice(["+49 30 {4}{4}", "+1 (415) {3}-{4}", "+1-415-{3}-{4}", "+44 20 {4} {4}", "+33 1 {2} {2} {2} {2}",
                          "+8613{4}{4}{1}", "+39.06.{4}.{4}", "+7 495 {3}-{2}-{2}", "+44 (0)20 {4} {4}"])
    return "".join(chars(random, "23456789", int(part[0])) + part[2:] if part[1:2] == "}" else part for part in form.split("{"))


def luhn_digit(body: str) -> str:
    """The digit that completes a card number: the one for which the sum of the doubled and the other digits ends in 0."""
    total = sum(sum(map(int, str(int(digit) * (2 if place % 2 == 0 else 1)))) for place, digit in enumerate(reversed(body)))
    return str(-total % 10)


def card(random: Random, shift: int = 0) -> str:
    """`shift` other than 0 makes the check digit wrong."""
    prefix, size = random.choice([("4", 16), ("51", 16), ("2221", 16), ("37", 15), ("6011", 16)])
    body = prefix + chars(random, NUMERALS, size - 1 - len(prefix))
    digits = body + str((int(luhn_digit(body)) + shift) % 10)
    cuts = (4, 10) if size == 15 else (4, 8, 12)
    separator = random.choice(["", " ", "-"])
    return separator.join(digits[start:end] for start, end in zip((0, *cuts), (*cuts, size)))


def iban(random: Random, shift: int = 0) -> str:
    country, size = random.choice([("DE", 22), ("GB", 22), ("FR", 27), ("NO", 15), ("MT", 31), ("NL", 18)])
    account = ("NWBK" if country in {"GB", "NL", "MT"} else "") + chars(random, NUMERALS, size)
    account = account[:size - 4]
    number = int("".join(str(int(character, 36)) for character in account + country + "00"))
    compact = f"{country}{(96 - number % 97 + shift) % 97 + 2:02d}{account}"
    return random.choice([compact, " ".join(compact[start:start + 4] for start in range(0, size, 4))])


def secret(random: Random) -> str:
    mixed = UPPER + LOWER + NUMERALS
    key = "\n".join(chars(random, mixed + "+/", 64) for _ in range(6))
    return random.choice([
        "AKIA" + chars(random, UPPER + NUMERALS, 16), "ghp_" + chars(random, mixed, 36), "github_pat_" + chars(random, mixed, 82),
        "xoxb-" + chars(random, NUMERALS, 12) + "-" + chars(random, mixed, 24), "AIza" + chars(random, mixed, 35),
        "sk-proj-" + chars(random, mixed, 40) + "1", f"-----BEGIN RSA PRIVATE KEY-----\n{key}==\n-----END RSA PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----",
    ])


KINDS = {"email": [email], "ip": [ipv4, ipv6], "phone": [phone], "card": [card], "iban": [iban], "secret": [secret]}


def decoy(random: Random) -> str:
    """What looks like personal data and is none."""
    number = random.randrange
    return random.choice([
        f"192.168.{number(256)}.{number(256)}", f"10.{number(256)}.{number(256)}.{number(256)}", f"127.0.0.{number(256)}", "255.255.255.0",
        f"version {number(20)}.{number(90)}.{number(200)}.{number(200)}", f"{number(10)}.{number(10)}.{number(10)}.{number(90)}",
        f"pkg-{number(20)}.{number(90)}.{number(99)}.{number(99)}", f"=={number(20)}.{number(90)}.{number(99)}.{number(99)}",
        f"{number(300, 999)}.12.13.14", f"1.{number(99)}.{number(99)}.{number(99)}.{number(99)}", "fe80::1", "::1", "2001:db8::ff",
        f"20{number(10, 30)}-0{number(1, 9)}-1{number(9)}T1{number(9)}:30:00+01:00", f"1{number(9)}:{number(10, 59)}:{number(10, 59)}",
        "std::vector", f"+{number(1, 100)}", f"+0{number(1, 9)}00", f"1{number(9)}+{number(10**8)}", f"(555) 123-{number(1000, 9999)}",
        card(random, shift=number(1, 10)), iban(random, shift=number(1, 90)), f"0.4{chars(random, NUMERALS, 15)}",
        chars(random, "0123456789abcdef", 40), f"@{chars(random, LOWER, 6)}.setter", f"icon@{number(2, 4)}x.png", "git@github.com:a/b.git",
        f"user@{chars(random, LOWER, 8)}", f"{chars(random, LOWER, 5)}@example.org", "a@b.dot(c)",
        "sk-learn-compatible-estimators-and-others", "-----BEGIN PRIVATE KEY-----", "ghp_token", "AKIA", PHONE,
    ])


def real_lines() -> list[str]:
    """Lines of the standard library's sources that redaction leaves as they are."""
    lines = [line for path in sorted(Path(get_path("stdlib")).glob("*.py"))[:60] for line in path.read_text("utf-8").split("\n")]
    return [line for line in lines if line.strip() and redact(line) == (line, {})]


def plant(random: Random, lines: list[str], thing: str) -> str:
    """`thing` between two words of a line of real text, among its neighbours."""
    at = random.randrange(len(lines) - 4)
    before, _, after = lines[at + 1].partition(" ")
    opening, closing = random.choice([("", ""), ("<", ">"), ("(", ")"), ('"', '"'), ("", ","), ("", ". ")])
    return "\n".join([lines[at], f"{before} {opening}{thing}{closing} {after}", *lines[at + 2:at + 4]])


def test_planted_data_is_found_and_look_alikes_are_left():
    random, lines = Random(1), real_lines()
    assert len(lines) > 10_000
    found, tries = dict.fromkeys(KINDS, 0), 150
    for kind, makers in KINDS.items():
        for _ in range(tries):
            thing = random.choice(makers)(random)
            text = plant(random, lines, thing)
            expected = [text.replace(thing, placeholder) for placeholder in PLACEHOLDERS[kind]]
            redacted, counts = redact(text)
            found[kind] += redacted in expected and counts == {kind: 1}
    wrong = 0
    for _ in range(600):
        text = plant(random, lines, decoy(random))
        wrong += redact(text) != (text, {})
    for kind, count in found.items():  # found whole, and nothing else touched
        assert lower_end(f"{kind}: recall", count, tries) > 0.9
    recall, precision = recall_and_precision("personal data", sum(found.values()), tries * len(KINDS), wrong)
    assert recall > 0.98 and precision > 0.98  # with two look-alikes on three true ones


def test_the_checks_on_published_numbers():
    assert redact("4111 1111 1111 1111")[0] == CARD  # the payment networks' test number
    assert redact("GB82 WEST 1234 5698 7654 32 and more")[0] == f"{IBAN} and more"  # ISO 13616's example
    assert redact("GB82 WEST 1234 5698 7654 33")[1] == {}
    assert redact("3782 822463 10005")[1] == redact("378282246310005")[1] == {"card": 1}


@pytest.mark.parametrize(("text", "redacted", "counts"), [
    ("Write to ann@mail.org, bob@mail.org.", f"Write to {EMAIL}, {EMAIL}.", {"email": 2}),
    ("from 93.184.216.34 to 2606:2800:220:1::1:", f"from {IPV4} to {IPV6}:", {"ip": 2}),
    ("...ann@mail.org", f"...{EMAIL}", {"email": 1}),
    ("tel:+4930123456 or 030 123456", f"tel:{PHONE} or 030 123456", {"phone": 1}),
    ("", "", {}),
])
def test_examples(text, redacted, counts):
    assert redact(text) == (redacted, counts)


FRAGMENTS = st.sampled_from([
    *(maker(Random(seed)) for makers in KINDS.values() for maker in makers for seed in range(3)),
    *(decoy(Random(seed)) for seed in range(40)), *(placeholder for group in PLACEHOLDERS.values() for placeholder in group),
    "@", ".", "-", "+", ":", "::", " ", "\n", "1", "49", "a", "A1", "(",
    "é", "_", "٣", "\ud800", "4111", "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "sk-", "com", "2a00:", "version ",
])


@given(st.one_of(st.lists(FRAGMENTS, max_size=12).map("".join), st.text(max_size=80), st.text("+0123456789.:-@ aAEBF", max_size=60)))
@example("a@b.c@d.ef@g.hi")
@settings(max_examples=400, deadline=None, derandomize=True)
def test_redacting_again_changes_nothing(text):
    redacted, counts = redact(text)
    assert redact(redacted) == (redacted, {})
    assert (redacted == text) == (not counts)
    assert not counts.keys() - KINDS.keys() and all(count > 0 for count in counts.values())
