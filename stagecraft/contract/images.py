"""The container image of each stage."""

import os


def image(stage: str) -> str:
    """`$STAGECRAFT_REGISTRY/stagecraft-<stage>:$STAGECRAFT_TAG` (defaults: localhost, dev)."""
    registry, tag = os.environ.get("STAGECRAFT_REGISTRY", "localhost"), os.environ.get("STAGECRAFT_TAG", "dev")
    return f"{registry}/stagecraft-{stage}:{tag}"
