"""The word lists the tasks draw from: short, common, lower case, so that each is one or two tokens."""


NOUNS = "ant bear bell boat book cake cat corn cup desk dog door fish frog hat jar key lamp lion moon oak ring ship tree".split()

NAMES = "Ada Ben Cleo Dan Eva Finn Gus Hana Ivo Jane Kai Lena Max Nora Otto Pia Rex Tom".split()

CITIES = "Oslo Rome Paris Lima Cairo Delhi Tokyo Berlin Madrid Vienna Boston Dublin Kyoto Lagos Milan".split()
