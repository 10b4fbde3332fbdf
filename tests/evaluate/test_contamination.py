"""What counts as found in training text."""

import shutil

from components.evaluate.contamination import check
from stagecraft.data.tasks import read_rows, write_rows


def test_short_prompts_are_found_as_whole_lines_however_many(corpus, tmp_path):
    whole = shutil.copytree(corpus, tmp_path / "corpus")
    path = whole / "tasks" / "rl.jsonl"
    (row, *others) = read_rows(path)
    write_rows(path, [{**row, "messages": [{"role": "user", "content": "Say after me:\n  Two  short\n\nlines, here\nthe end"}]}, *others])
    asked = ["two short\nLines, here", "Two short", "short\nlines, here", "lines, here\nTwo short", "the", ""]
    found = check(whole, {"asked": asked})["asked"]
    assert [asked[row] for row in found.rows] == ["two short\nLines, here", "Two short"]
