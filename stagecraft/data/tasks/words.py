"""The word lists the tasks draw from: short, common, lower case, so that each is one or two tokens."""


def _list(words: str) -> list[str]:
    return words.split()


NOUNS = _list(
    "ant apple bank bear bell bird boat bone book box bread brick bus cake camel car cat chair clock cloud coat corn cow "
    "cup deer desk dog door drum duck ear egg fan farm fire fish flag fox frog gate goat gold hand hat hill horse "
    "house ice ink iron jar key king kite lake lamp leaf lemon lion milk moon mouse nail nest oak owl paint pear pen "
    "piano pig plum pond rain ring river road rock roof rope rose sail salt sand seed ship shoe snow soap sock star "
    "stone sun tent tiger train tree wall wheel wolf"
)

NAMES = _list("Ada Ben Cleo Dan Eva Finn Gus Hana Ivo Jane Kai Lena Max Nora Otto Pia Rex Sara Tom Uma Vic Will Yara Zoe")

CITIES = _list("Oslo Rome Paris Lima Cairo Delhi Tokyo Berlin Madrid Vienna Boston Dublin Kyoto Lagos Milan Quito")
