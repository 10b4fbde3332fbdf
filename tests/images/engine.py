"""podman for the tests that run real containers: skipped unless STAGECRAFT_IMAGES=1 says that the images are built of this code."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagecraft.contract.images import image
from stagecraft.contract.stages import STAGES

# What the pods of k8s/ allow, and no more. No network: a stage that needs one says so in its parameters.
LOCKED = ("--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges", "--network", "none",
          "--tmpfs", "/scratch:mode=1777,exec")


def need_images() -> None:
    """Skip the test unless it is asked for; then every stage's image must be there."""
    if os.environ.get("STAGECRAFT_IMAGES") != "1":
        pytest.skip("real containers: make images, then STAGECRAFT_IMAGES=1")
    for stage in STAGES:
        subprocess.run(["podman", "image", "exists", image(stage)], check=True)


def locked(stage: str, command: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a stage's image as a pod would have to."""
    return subprocess.run(["podman", "run", "--rm", *LOCKED, *options, image(stage), *command], capture_output=True, text=True,
                          timeout=600, check=False)


@contextlib.contextmanager
def service(directory: Path) -> Iterator[str]:
    """podman's Docker-compatible service; gives the value for DOCKER_HOST."""
    address = f"unix://{directory / 'podman.sock'}"
    process = subprocess.Popen(["podman", "system", "service", "--time", "0", address], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (directory / "podman.sock").exists():
        assert time.monotonic() < deadline and process.poll() is None, "podman's service does not start"
        time.sleep(0.1)
    try:
        yield address
    finally:
        process.terminate()
        process.wait()
