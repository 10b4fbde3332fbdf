"""Replaces personal data and secrets by placeholders that belong to nobody."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

EMAIL, IPV4, IPV6, PHONE = "email@example.com", "192.0.2.1", "2001:db8::1", "+1 202 555 0100"  # reserved: RFC 2606, 5737, 3849; NANPA
CARD, IBAN, SECRET = "<card-number>", "<iban>", "<secret>"

_EMAIL = re.compile(r"(?<![\w.%+-])([.%+-]*)(\w[\w.%+-]{0,63})@((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24})"
                    r"(?![\w(-])")
_NO_DOMAIN = re.compile(r"(?:^|\.)(?:example(?:\.(?:com|net|org))?|invalid|test|png|jpe?g|gif|svg|webp)$", re.IGNORECASE)
_IPV4 = re.compile(r"(?<![\w.])(?<![A-Za-z]-)\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\w|-[A-Za-z])")
_VERSION = re.compile(r"(?:\b(?:version|release|ver|v|rev|build|firmware|update|section|chapter)\b[\s:.=]*|[<>=!~]=\s*)$", re.IGNORECASE)
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}(?::{1,2}[0-9A-Fa-f]{1,4}){1,7}(?:::)?(?!\w|:\w)")
# ITU-T E.164: the assigned country codes, then up to 15 digits in all.
_COUNTRY = (r"(?:1|7|2[07]|2[1-689]\d|3[0-469]|3[578]\d|4[013-9]|42\d|5[1-8]|5[09]\d|6[0-6]|6[789]\d|8[1246]|8[03578]\d|9[0-58]|9[679]\d)")
_PHONE = re.compile(rf"(?<![\w+.])\+{_COUNTRY}[ .-]?(?:\(0?\d{{0,4}}\)[ .-]?)?\d{{1,5}}(?:[ .-]?\d{{2,5}}){{1,5}}(?![\w+]|[.,-]\d)")
_FICTIONAL = re.compile(r"1\d{3}55501\d\d")
_CARD = re.compile(r"(?<![\w.+-])(?:3[47]\d\d([ -]?)\d{6}\1\d{5}|[2-6]\d{3}([ -]?)\d{4}\2\d{4}\2\d{4}(?:\2\d{3})?)(?![\w-]|\.\d| \d{4}\b)")
_ISSUER = re.compile(r"4\d{15}(?:\d{3})?|5[1-5]\d{14}|2(?:2[2-9]|[3-6]\d|7[01]|720)\d{12,13}|3[47]\d{13}|6(?:011|5\d\d)\d{12}|35\d{14}")
# Countries by the length of their IBAN (the registry of ISO 13616).
_IBAN_LENGTHS = {
    15: "NO", 16: "BE", 18: "DK FI FO GL NL", 19: "MK SI", 20: "AT BA EE KZ LT LU XK", 21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST", 26: "IS TR",
    27: "FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB PL SV", 29: "BR EG PS QA UA", 30: "JO KW MU", 31: "MT SC", 32: "LC",
}
_IBAN = re.compile(r"\b(?:" + "|".join(
    rf"(?:{codes.replace(' ', '|')})\d\d(?: ?[A-Z0-9]){{{length - 4}}}" for length, codes in _IBAN_LENGTHS.items()) + r")(?![A-Za-z0-9])")
# What makes each kind of secret recognisable, with the pattern that is worth trying if a text holds it.
_SECRETS = {
    "AKIA": r"\bAKIA[0-9A-Z]{16}\b", "ASIA": r"\bASIA[0-9A-Z]{16}\b", "github_pat_": r"\bgithub_pat_\w{60,90}\b",
    **{f"gh{kind}_": rf"\bgh{kind}_[A-Za-z0-9]{{36,255}}\b" for kind in "pousr"}, "glpat-": r"\bglpat-[\w-]{20,64}",
    "hf_": r"\bhf_[A-Za-z]{34}\b", "xox": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,250}", "AIza": r"\bAIza[\w-]{35}(?![\w-])",
    "sk_live_": r"\bsk_live_[A-Za-z0-9]{24,99}\b",
    "sk-": r"(?<![\w-])sk-(?=[\w-]{0,200}\d)[\w-]{32,200}(?![\w-])",
    "eyJ": r"\beyJ[\w-]{10,4000}\.eyJ[\w-]{10,8000}\.[\w-]{10,2000}",
    "PRIVATE KEY": r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----[\w\s+/=:,.()\\-]{40,20000}?-----END (?:[A-Z0-9]+ ){0,3}"
                   r"PRIVATE KEY(?: BLOCK)?-----",
}
_SECRET_PATTERNS = {marker: re.compile(pattern) for marker, pattern in _SECRETS.items()}
# What a line must hold to be looked at further: a few nanoseconds a character instead of 200 for the patterns above.
_CANDIDATE = re.compile(r"[@\d]")
_DIGITS = re.compile(r"\d[\d -]{5}|\d\.\d|[23][0-9A-Fa-f]{3}:|\+\d|[A-Z]{2}\d\d")


def redact(text: str) -> tuple[str, dict[str, int]]:
    """Replace e-mail addresses, public IP addresses, phone and card numbers, IBANs and secrets.

    Kept, since they tell of no one: reserved and private addresses, version-like numbers (three parts below 10, or after a word
    such as `version`), national phone numbers, numbers that fail their check digits, `git@host`. Redacting again changes nothing.

    Returns:
        (text, kind -> how many were replaced), kinds that did not occur left out.
    """
    counts: dict[str, int] = {}
    while True:
        # A placeholder is never replaced itself, so that every round uses up characters of the text and the rounds end.
        before = text
        for marker, pattern in _SECRET_PATTERNS.items():
            if marker in text:
                text = _replace(pattern, text, lambda match: SECRET, "secret", counts)
        text = "\n".join([_redact_line(line, counts) if _CANDIDATE.search(line) else line for line in text.split("\n")])
        if text == before:
            return text, counts


def _redact_line(line: str, counts: dict[str, int]) -> str:
    if "@" in line:
        line = _replace(_EMAIL, line, _email, "email", counts)
    if _DIGITS.search(line):
        line = _replace(_IBAN, line, _iban, "iban", counts)
        line = _replace(_CARD, line, _card, "card", counts)
        line = _replace(_IPV4, line, _ipv4, "ip", counts)
        if ":" in line:
            line = _replace(_IPV6, line, _ipv6, "ip", counts)
        if "+" in line:
            line = _replace(_PHONE, line, _phone, "phone", counts)
    return line


def _replace(pattern: re.Pattern[str], text: str, by: Callable[[re.Match[str]], str], kind: str, counts: dict[str, int]) -> str:
    def counted(match: re.Match[str]) -> str:
        replacement = by(match)
        if replacement != match.group():
            counts[kind] = counts.get(kind, 0) + 1
        return replacement

    return pattern.sub(counted, text)


def _email(match: re.Match[str]) -> str:
    lead, user, domain = match.groups()
    return match.group() if user == "git" or _NO_DOMAIN.search(domain) else lead + EMAIL


def _ipv4(match: re.Match[str]) -> str:
    written = match.group()
    before = match.string[max(0, match.start() - 20):match.start()]
    version = sum(len(part) == 1 for part in written.split(".")) >= 3 or _VERSION.search(before)
    return written if version or not _is_global(written) else IPV4


def _ipv6(match: re.Match[str]) -> str:
    return IPV6 if _is_global(match.group()) else match.group()


def _is_global(written: str) -> bool:
    try:
        return ipaddress.ip_address(written).is_global
    except ValueError:
        return False


def _phone(match: re.Match[str]) -> str:
    digits = re.sub(r"\D", "", match.group())
    return PHONE if 8 <= len(digits) <= 15 and not _FICTIONAL.fullmatch(digits) else match.group()


def _card(match: re.Match[str]) -> str:
    digits = re.sub(r"\D", "", match.group())
    return CARD if _ISSUER.fullmatch(digits) and _luhn(digits) else match.group()


def _luhn(digits: str) -> bool:
    """ISO/IEC 7812-1: from the right, every second digit doubled and its digits summed."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def _iban(match: re.Match[str]) -> str:
    """ISO 13616: the first four characters moved to the end, letters as numbers from 10, modulo 97 is 1."""
    compact = match.group().replace(" ", "")
    return IBAN if int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1 else match.group()
