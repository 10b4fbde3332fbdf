#!/usr/bin/env bash
# Builds .venv from the pinned locks, unless the one that is there was built from the same locks by the same Python.
#
# An image gives STAGECRAFT_LOCKS: it has no use for the development tools.
# The digest of what it was built from is written last, so an interrupted build is taken up again, never mistaken for a finished one.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
read -ra locks <<< "${STAGECRAFT_LOCKS:-requirements/laptop.lock requirements/development.lock}"
stamp=.venv/.stagecraft-digest

fail() { echo "error: $*" >&2; exit 2; }

command -v "$python" >/dev/null || fail "$python: not found - install Python 3.11 or later, or name one: make setup PYTHON=python3.12"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || fail "$python is Python $version - Stagecraft needs 3.11 or later: make setup PYTHON=python3.12"

digest=$({ cat "${locks[@]}" pyproject.toml setup.py; echo "$version ${TORCH_INDEX:-}"; } \
  | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$digest" ]; then exit 0; fi

command -v g++ >/dev/null || fail "g++: not found - install a C++ compiler (Debian, Ubuntu: apt install g++); megatron-core is built from source"
"$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null \
  || fail "libnuma.so.1: not found - install it (Debian, Ubuntu: apt install libnuma1); vLLM's kernels for CPUs need it"
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python has no venv module - install it (Debian, Ubuntu: apt install python3-venv)"

echo "building .venv with Python $version from ${locks[*]} (a few minutes, 3.7 GB)"
started=$SECONDS
rm -f "$stamp"
if [ "$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" != "$version" ]; then rm -rf .venv; fi
[ -x .venv/bin/pip ] || "$python" -m venv .venv

# --no-deps: the lock is complete, and a few declared bounds exclude each other without need (docs/dependencies.md).
export PIP_IGNORE_REQUIRES_PYTHON=1 PIP_DISABLE_PIP_VERSION_CHECK=1
.venv/bin/pip install -qq --no-deps --no-compile --no-binary megatron-core ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
  "${locks[@]/#/--requirement=}"
.venv/bin/pip install -qq --no-deps --no-compile --no-build-isolation --editable .

cuda=$(.venv/bin/python -c 'import torch; print(torch.version.cuda or "")' 2>/dev/null || echo unloadable)
[ -z "$cuda" ] || fail "pip installed torch's CUDA build - give an index that has CPU builds of torch (PyTorch's installation page names one): make setup TORCH_INDEX=URL"

# All at once, on all processors. Where Python may not write it beside the sources (PYTHONDONTWRITEBYTECODE, a pod's read-only root) every
# process would compile anew what it imports, which takes most of its start. Some packages hold files for other Pythons, hence `true`.
.venv/bin/python -m compileall -qq -j 0 -x '/tests?/' .venv/lib || true

echo "$digest" > "$stamp"
echo "built .venv in $((SECONDS - started)) s"
