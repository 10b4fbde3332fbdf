"""The word lists the tasks draw from: short, common, lower case, so that each is one or two tokens."""


def _list(words: str) -> list[str]:
    return words.split()


NOUNS = _list(
    "ant bear bell boat book cake cat coat corn cup desk dog door drum fish flag frog gold hat horse jar key lamp leaf "
    "lion moon nest oak pear ring road rope salt ship sun tree"
)

NAMES = _list("Ada Ben Cleo Dan Eva Finn Gus Hana Ivo Jane Kai Lena Max Nora Otto Pia Rex Tom")

CITIES = _list("Oslo Rome Paris Lima Cairo Delhi Tokyo Berlin Madrid Vienna Boston Dublin Kyoto Lagos Milan")
