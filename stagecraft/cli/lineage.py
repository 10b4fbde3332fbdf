"""`stagecraft lineage`: from a token that was trained on back to its document, its file and the rules it passed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagecraft.contract.errors import UserError
from stagecraft.contract.params import parse
from stagecraft.contract.stages import PATHS
from stagecraft.data.blend import read_blend
from stagecraft.data.language import surely_other
from stagecraft.data.lineage import document_at, duplicates_of
from stagecraft.data.tokenizer import load_tokenizer


def main(argv: Sequence[str]) -> None:
    """Entry point of the subcommand."""
    parser = argparse.ArgumentParser(
        prog="stagecraft lineage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
               "  stagecraft lineage --file tokens/code-tier3 --position 12345   a position in a token file\n"
               "  stagecraft lineage --row 17 --position 100                     a position in a row of the base model's training")
    parser.add_argument("--corpus", type=Path, default=PATHS["corpus"], metavar="DIR", help="the corpus artifact (default: %(default)s)")
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--file", metavar="PREFIX", help="a token file of the corpus, without suffix")
    chosen.add_argument("--row", type=int, metavar="N",
                        help="a row of pre-training, counted from 0 in the order in which the steps read them (without batch_ramp: "
                             "step x global_batch + place in the batch); the rows of long_context follow, its short rows last")
    parser.add_argument("--position", type=int, required=True, metavar="N", help="the token, counted from 0")
    parser.add_argument("--base", type=Path, default=PATHS["base"], metavar="DIR", help="the base model, for --row (default: %(default)s)")
    options = parser.parse_args(argv)
    if options.file is not None:
        prefix, position = options.corpus / options.file, options.position
    else:
        prefix, position = _trained_on(options)
    record, offset = document_at(prefix, position)
    print(json.dumps({**record, "token_file": str(prefix), "position_in_file": position, "token_of_document": offset,
                      "passed": passed(options.corpus, record), "stands_for": duplicates_of(options.corpus, record["id"])}, indent=2))


def _trained_on(options: argparse.Namespace) -> tuple[Path, int]:
    """(token file, position in it) of a token of a training row, by the very dataset that the training read."""
    from stagecraft.engine.lineage import locate
    from stagecraft.engine.phase_params import BatchRamp, LongContext
    from stagecraft.engine.phases import phase_of, phases

    try:
        params = json.loads((options.base / "manifest.json").read_text())["params"]
        of_training = phases(params["blend"], params["decay_blend"], steps=params["steps"], decay_steps=params["decay_steps"],
                             length=params["sequence_length"], batch=params["global_batch"],
                             ramp=parse(BatchRamp, params["batch_ramp"], "batch_ramp"),
                             long=parse(LongContext, params["long_context"], "long_context"))
    except (OSError, ValueError, KeyError):
        raise UserError("no manifest with the parameters of its training", where=str(options.base), mend="name a base model") from None
    tokenizer = load_tokenizer(options.corpus / "tokenizer")
    try:
        phase = phase_of(options.row, of_training)
        return locate(read_blend(options.corpus, phase.blend), options.row - phase.first, options.position,
                      samples=phase.rows, sequence_length=phase.length, seed=params["seed"] + phase.number,
                      eod=tokenizer.convert_tokens_to_ids("</s>"), vocab_size=len(tokenizer))
    except IndexError as error:
        raise UserError(str(error), where="--row, --position", mend="both count from 0") from None


def passed(corpus: Path, record: dict[str, Any]) -> dict[str, list[str]]:
    """Step -> the rules that this document was subject to; some are for texts other than code only, or for English ones, or for what others
    wrote."""
    try:
        rules: list[dict[str, Any]] = json.loads((corpus / "report.json").read_text())["rules"]
    except (OSError, ValueError, KeyError):
        raise UserError("no report.json with the rules", where=str(corpus), mend="name a corpus artifact") from None
    subject = {}
    for of_step in rules:
        spared = record["language"] == "code" or ("exempt" in of_step and record["source"] == of_step["exempt"])
        kinds = ["all"] if spared else ["all", "text"]
        if "text" in kinds and "sure" in of_step and not surely_other(record["language"], record["language_probability"], of_step["sure"]):
            kinds.append("english")
        subject[of_step["step"]] = [rule for kind in kinds for rule in of_step[kind]]
    return {step: found for step, found in subject.items() if found}
