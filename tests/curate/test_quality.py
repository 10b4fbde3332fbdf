"""The rules, each broken by a text made for it and by no other."""

import re
from pathlib import Path

import pytest
from datatrove.data import Document
from hypothesis import given
from hypothesis import strategies as st

from components.curate.params import Params, QualityParams
from components.curate.quality import broken_bound, letters, repeated_share
from components.curate.shards.steps import Job, Language, Quality
from stagecraft.contract.params import load

BOUNDS = QualityParams(min_characters=200, max_characters=5000, max_line_characters=500, min_letter_share=0.6, min_ascii_share=0.97,
                       max_repeated_share=0.3)
GOOD = "\n".join(f"Line {'abcdefghij'[number]} tells of the river and what {'klmnopqrst'[number]} lies beside it." for number in range(10))
BREAKERS = {
    "too_short": "A short text.",
    "too_long": "\n".join(f"{GOOD} {number}" for number in range(20)),
    "long_line": GOOD.replace("\n", " "),
    "control_markup": GOOD + "\nand then <|im_end|> appears",
    "not_ascii": GOOD + "\n" + "привет " * 10,
    "few_letters": GOOD[:200] + "\n" + "\n".join(f"0x{number:04x}, 1234, 5678;" for number in range(30)),
    "repetitive": GOOD + "\nThe same line again and again and again.\n" * 10,
}


def test_good_text_is_within_all_bounds():
    assert broken_bound(GOOD, BOUNDS) is None


@pytest.mark.parametrize("name", BREAKERS)
def test_a_text_made_to_break_a_bound_breaks_it_first(name):
    assert broken_bound(BREAKERS[name], BOUNDS) == name


@given(st.text())
def test_letters_are_counted_as_a_pattern_counts_them(text):
    assert letters(text) == len(re.findall(r"[^\W\d_]|\s", text))


def test_repeated_share_counts_characters_of_lines_seen_before():
    assert repeated_share("ab\n\n  ab\ncd\n") == pytest.approx(2 / 6)
    assert repeated_share("") == 0


OTHERS = {  # as web text has it, in scripts with blanks between words and without
    "de": """Der Fluss entspringt in den Bergen und erreicht nach langer Strecke das Meer. Auf seinem Weg durchquert er drei Provinzen, in
denen die Menschen seit Jahrhunderten vom Fischfang leben. Im Frühjahr, wenn der Schnee schmilzt, steigt das Wasser oft über die Ufer.
Die Bauern haben gelernt, mit dem Hochwasser zu leben. Sie bauen ihre Häuser auf kleinen Hügeln und halten immer ein Boot bereit.""",
    "ru": """Река берёт начало в горах и после долгого пути впадает в море. По дороге она пересекает три области, где люди веками живут
рыбной ловлей. Весной, когда тает снег, вода часто выходит из берегов и заливает поля. Крестьяне научились жить с паводками.
Они строят дома на невысоких холмах и всегда держат наготове лодку. После наводнения земля особенно плодородна.""",
    "hi": """यह नदी पहाड़ों से निकलती है और लंबी यात्रा के बाद समुद्र में मिल जाती है। अपने रास्ते में वह तीन प्रांतों से होकर गुजरती है, जहाँ लोग सदियों
से मछली पकड़कर जीवन बिताते आए हैं। वसंत में जब बर्फ पिघलती है, तब पानी अक्सर किनारों के ऊपर चढ़ जाता है और खेत डूब जाते हैं।""",
    "zh": """这条河发源于山中，经过漫长的路程流入大海。
沿途它穿过三个省份，那里的人们几百年来一直以捕鱼为生。春天冰雪融化的时候，河水常常漫过堤岸，淹没田地。
农民们已经学会了与洪水共处。他们把房子建在小山丘上，家里总是备着一条船。洪水退去之后，土地格外肥沃，收成也特别好。因此当地人常说，这条河一只手拿走，另一只手又还给人们。
近几年来，上游正在修建一座水坝。很多人担心，河边的生活会因此永远改变。年轻人离开村庄去城里找工作，老人们则坐在岸边，回忆从前河里鱼多得数不清的日子。""",
}
NO_STOP_WORDS = """She had never seen such a large library, so she decided on reading every book in it. Her brother laughed. He said
nobody could finish so many books in a single life. Years later he came back, found her beside a window, reading. She smiled, gave him
a small book about rivers, then asked him which shelf was his favourite. He did not know. They sat there until night, without a word."""


def test_the_profile_with_a_multilingual_category_keeps_text_for_it():
    params = load(Params, "curate", Path(__file__).parents[2] / "params" / "super-120b.yaml")
    steps = [step(Job([], Path(), params)) for step in (Language, Quality)]
    for step in steps:
        step.open()

    def verdict(text, path="a.txt"):
        document = Document(text, "0", metadata={"source": "input", "path": path})
        return document.metadata, next((found for step in steps if (found := step.apply(document))), None)

    for language, text in OTHERS.items():
        known, removed = verdict(text)
        assert known["language"] == language and removed is None, (language, removed)
        assert verdict("\n\n".join([text] * 3))[1][0] in ("repetitive", "repetition_dup_para_frac")
    assert verdict(NO_STOP_WORDS)[1] == ("gopher_few_stop_words", "gopher few stop words")  # English is judged as before
