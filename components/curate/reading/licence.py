"""The licence of a text as an SPDX identifier, where the text itself or its package says so; never a guess."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

_SPDX = re.compile(r"SPDX-License-Identifier:\s*([\w.+-]+(?:\s+(?:AND|OR|WITH)\s+[\w.+-]+)*)")
_HEAD = 4096  # characters looked at
_FIELD = re.compile(r"^(License-Expression|License): *(\S.*)$", re.MULTILINE)
_CLASSIFIER = re.compile(r"^Classifier: License :: OSI Approved :: (.+)$", re.MULTILINE)
_NAMES = {
    "mit": "MIT", "mit license": "MIT", "apache-2.0": "Apache-2.0", "apache 2.0": "Apache-2.0", "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0", "bsd-3-clause": "BSD-3-Clause", "bsd 3-clause": "BSD-3-Clause",
    "bsd-2-clause": "BSD-2-Clause",
    "psf-2.0": "PSF-2.0", "python software foundation license": "PSF-2.0", "mpl-2.0": "MPL-2.0",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0", "isc": "ISC", "isc license (iscl)": "ISC", "the unlicense (unlicense)": "Unlicense",
}
_TEXTS = (
    (re.compile(r"Permission is hereby granted, free of charge, to any person obtaining a\s+copy"), "MIT"),
    (re.compile(r"Apache License\s+Version 2\.0, January 2004"), "Apache-2.0"),
    (re.compile(r"GNU LESSER GENERAL PUBLIC LICENSE\s+Version 3"), "LGPL-3.0"),
    (re.compile(r"GNU LESSER GENERAL PUBLIC LICENSE\s+Version 2\.1"), "LGPL-2.1"),
    (re.compile(r"GNU GENERAL PUBLIC LICENSE\s+Version 3"), "GPL-3.0"),
    (re.compile(r"GNU GENERAL PUBLIC LICENSE\s+Version 2"), "GPL-2.0"),
    (re.compile(r"Mozilla Public License,? [Vv]ersion 2\.0"), "MPL-2.0"),
    (re.compile(r"PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2"), "PSF-2.0"),
    (re.compile(r"This is free and unencumbered software released into the public domain"), "Unlicense"),
)


def licence_of(source: str, path: str, text: str) -> str:
    """SPDX identifier, or "" if nothing says it.

    Args:
        source, path: of the file; the files of an installed package share what its METADATA declares, the standard
            library is under Python's licence.
    """
    if source == "stdlib":
        return "PSF-2.0"
    if source in ("descriptions", "licences") and (declared := _declared(_package(path))):
        return declared
    if match := _SPDX.search(text, 0, _HEAD):
        return match.group(1)
    return next((name for pattern, name in _TEXTS if pattern.search(text, 0, _HEAD)), "")


def _package(path: str) -> str:
    return path[:path.index(".dist-info") + len(".dist-info")] if ".dist-info" in path else ""


@lru_cache(maxsize=1024)
def _declared(package: str) -> str:
    """What the METADATA of a dist-info directory declares."""
    try:
        head = (Path(package) / "METADATA").read_text(errors="replace").partition("\n\n")[0]
    except OSError:
        return ""
    fields = dict(_FIELD.findall(head))
    if expression := fields.get("License-Expression", "").strip():
        return expression
    for words in (fields.get("License", ""), *_CLASSIFIER.findall(head)):
        if name := _NAMES.get(words.strip().lower()):
            return name
    return ""
