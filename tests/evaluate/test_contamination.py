"""What counts as found in training text."""

import shutil
import unicodedata

from components.evaluate.contamination import check
from stagecraft.data.decontamination import forms
from stagecraft.data.tasks import read_rows, write_rows


def test_short_prompts_are_found_as_whole_lines_however_many(corpus, tmp_path):
    whole = shutil.copytree(corpus, tmp_path / "corpus")
    path = whole / "tasks" / "rl.jsonl"
    (row, *others) = read_rows(path)
    write_rows(path, [{**row, "messages": [{"role": "user", "content": "Say after me:\n  Two  short\n\nlines, here\nthe end"}]}, *others])
    asked = ["two short\nLines, here", "Two short", "short\nlines, here", "lines, here\nTwo short", "the", ""]
    found = check(whole, {"asked": asked})["asked"]
    assert [asked[row] for row in found.rows] == ["two short\nLines, here", "Two short"]


def test_prompts_are_found_in_the_forms_that_curation_leaves(corpus, tmp_path):
    whole = shutil.copytree(corpus, tmp_path / "corpus")
    path = whole / "tasks" / "rl.jsonl"
    (row, *others) = read_rows(path)
    asked = [unicodedata.normalize("NFD", "Une société a décidé de déplacer son siège à côté de la rivière qui est située près du château"),
             "Please forward the complete signed contract to maria.lopez@contoso.com before Friday",
             "Nobody was ever taught this question of at least thirteen words, whichever way it may be written"]
    write_rows(path, [{**row, "messages": [{"role": "user", "content": "".join(forms(text)[-1] for text in asked[:2])}]}, *others])
    assert check(whole, {"asked": asked})["asked"].rows == [0, 1]
