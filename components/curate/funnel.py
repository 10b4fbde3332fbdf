"""The funnel: what went into each step, what it removed, and samples of that."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from components.curate.document import Document, size
from components.curate.minhash import near_duplicates
from stagecraft.contract.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SAMPLES = 3


class Funnel:
    """The documents left, and a record of every step that removed some."""

    def __init__(self, documents: list[Document]):
        self.documents = documents
        self.steps: list[dict[str, Any]] = [{"step": "read", "documents": len(documents), "bytes": size(documents)}]

    def remove(self, step: str, why: dict[int, str]) -> None:
        """Drop the documents at the indices of `why`, each for the reason given there.

        Raises:
            UserError: nothing is left; it names the step that removed most.
        """
        dropped = [self.documents[index] for index in why]
        samples = [{"document": f"{self.documents[index].source}/{self.documents[index].name}", "why": reason,
                    "text": self.documents[index].text[:120]} for index, reason in list(why.items())[:_SAMPLES]]
        self.documents = [document for index, document in enumerate(self.documents) if index not in why]
        self.steps.append({
            "step": step, "documents": len(self.documents), "bytes": size(self.documents),
            "removed_documents": len(dropped), "removed_bytes": size(dropped), "samples": samples,
        })
        if not self.documents:
            worst = max(self.steps[1:], key=lambda record: record["removed_documents"])
            raise UserError(f"no document is left; `{worst['step']}` removed most, {worst['removed_documents']} of "
                            f"{self.steps[0]['documents']}", where="curate", mend="give more or other text, or relax that rule")

    def remove_breaking(self, rules: dict[str, Callable[[str], bool]]) -> None:
        """Apply rules one after the other; a document is removed by the first that it breaks."""
        for name, breaks in rules.items():
            self.remove(name, {index: name for index, document in enumerate(self.documents) if breaks(document.text)})

    def remove_exact_duplicates(self) -> None:
        """Of documents with equal text keep the first."""
        first: dict[bytes, Document] = {}
        why: dict[int, str] = {}
        for index, document in enumerate(self.documents):
            kept = first.setdefault(hashlib.sha256(document.text.strip().encode()).digest(), document)
            if kept is not document:
                why[index] = f"same text as {kept.source}/{kept.name}"
        self.remove("exact_duplicates", why)

    def remove_near_duplicates(self, similarity: float) -> None:
        """Of documents whose estimated Jaccard similarity reaches `similarity` keep the first."""
        found = near_duplicates([document.text for document in self.documents], similarity)
        self.remove("near_duplicates", {
            index: f"{estimate:.2f} similar to {self.documents[kept].source}/{self.documents[kept].name}"
            for index, (kept, estimate) in found.items()
        })

    def remove_prompts(self, prompts: set[str]) -> None:
        """Remove documents that hold the prompt of a task as a line of their own."""
        why = {}
        for index, document in enumerate(self.documents):
            hit = next((line for line in map(str.strip, document.text.split("\n")) if line in prompts), None)
            if hit is not None:
                why[index] = f"holds the task prompt {hit!r}"
        self.remove("task_prompts", why)

    def metrics(self) -> dict[str, float]:
        """`removed_<step>`: documents removed by each step."""
        return {f"removed_{record['step']}": record["removed_documents"] for record in self.steps[1:]}

    def figure(self) -> Figure:
        """Megabytes left after each step, with the documents written beside the bars."""
        import matplotlib
        from matplotlib.figure import Figure

        matplotlib.rcParams["svg.hashsalt"] = "curate"  # equal runs draw equal files
        figure = Figure(figsize=(7, 0.35 * len(self.steps) + 1))
        axes = figure.subplots()
        names = [record["step"].replace("_", " ") for record in self.steps]
        bars = axes.barh(names, [record["bytes"] / 1e6 for record in self.steps], color="#4c78a8")
        axes.bar_label(bars, [f"{record['documents']:,} documents" for record in self.steps], padding=4)
        axes.invert_yaxis()
        axes.margins(x=0.25)
        axes.set_xlabel("megabytes left after the step")
        axes.set_title("What curation keeps")
        axes.spines[["top", "right"]].set_visible(False)
        return figure
