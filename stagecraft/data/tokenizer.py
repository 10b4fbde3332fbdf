"""The tokenizer: byte-level BPE with single digits and the special tokens of the chat format."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from stagecraft.contract.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOD, IM_START, IM_END = "<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"
SPECIAL = (PAD, BOS, EOD, IM_START, IM_END)
# Not special: a decoder that skips special tokens must not erase what the verifier, the tool parser and the reader need.
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
RESERVED = re.compile(r"<\|reserved_\d+\|>")
CONTROL = re.compile("|".join([*map(re.escape, SPECIAL), RESERVED.pattern]))
SMALLEST_VOCABULARY = 256 + len(SPECIAL) + len(MARKERS)
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def reserved(count: int) -> list[str]:
    """The special tokens that wait for a meaning: `<|reserved_0|>` and on."""
    return [f"<|reserved_{number}|>" for number in range(count)]


def train_tokenizer(texts: Iterable[str], vocab_size: int, reserved_tokens: int = 0) -> Tokenizer:
    """Train a byte-level BPE tokenizer; the same texts in the same order give the same tokenizer.

    Ids: the special tokens first, in the order of `SPECIAL` (pad 0, bos 1, end of document 2), then the markers of
    thinking and tool calls, the reserved tokens, the 256 bytes, then merges. Every digit is a token of its own.

    Args:
        texts: training sample.
        vocab_size: exact number of tokens, all of the above included.
        reserved_tokens: special tokens without a meaning yet.

    Raises:
        UserError: `vocab_size` leaves no room for the bytes, or the sample is too small to fill it.
    """
    smallest = SMALLEST_VOCABULARY + reserved_tokens
    if vocab_size < smallest:
        raise UserError(f"a vocabulary of {vocab_size} is too small", where="vocab_size",
                        mend=f"bytes and special tokens alone take {smallest}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL, *MARKERS, *reserved(reserved_tokens)], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    ))
    if tokenizer.get_vocab_size() != vocab_size:
        raise UserError(f"the text gives only {tokenizer.get_vocab_size()} of {vocab_size} tokens", where="vocab_size",
                        mend="give more text or a smaller vocabulary")
    return _unmark(tokenizer)


def save_tokenizer(tokenizer: Tokenizer, directory: Path, max_length: int) -> None:
    """Write a Hugging Face tokenizer directory with the chat template; `max_length` tokens is what it advertises."""
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=IM_END, model_max_length=max_length,
        clean_up_tokenization_spaces=False, chat_template=CHAT_TEMPLATE.read_text(),
    )
    kept = [token.content for token in tokenizer.get_added_tokens_decoder().values() if RESERVED.fullmatch(token.content)]
    wrapped.add_special_tokens({"additional_special_tokens": [EOD, IM_START, *kept]})
    wrapped.save_pretrained(directory)


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer directory.

    Raises:
        UserError: the directory or a file of it is missing or unreadable, or a token of the chat format is.
    """
    from transformers import PreTrainedTokenizerFast

    path = Path(path)
    mend = "run the stage that makes it: curate"
    if not (path / "tokenizer.json").is_file():
        raise UserError("no tokenizer.json", where=str(path), mend=mend)
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    except Exception as error:  # the Rust parser raises bare Exception
        raise UserError(f"unreadable tokenizer: {error}", where=str(path), mend=mend) from None
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in (*SPECIAL, *MARKERS) if token not in vocabulary]
    if missing:
        raise UserError(f"the tokenizer lacks {missing[0]}", where=str(path), mend=mend)
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template", where=str(path), mend=mend)
    return tokenizer


def refuse_another(corpus: Path, model: Path) -> None:
    """Refuse a corpus whose tokens a model takes for others.

    Raises:
        UserError: its tokenizer is another than the model's; or as `load_tokenizer`.
    """
    if load_tokenizer(corpus / "tokenizer").get_vocab() != load_tokenizer(model).get_vocab():
        raise UserError(f"the tokens of this corpus are not those of {model}", where=str(corpus / "tokenizer"),
                        mend="use the corpus that the model was trained on, or one that was made with its tokenizer (curate.tokenizer)")


def _unmark(tokenizer: Tokenizer) -> Tokenizer:
    """Make the markers ordinary added tokens: the trainer marks every token it reserves as special."""
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] not in MARKERS
    return Tokenizer.from_str(json.dumps(state))


