# Sourced by the recipes, from the repository's root: $python, an interpreter that has llmctl, and
# the function llmctl.
#
# LLMCTL_WORKSPACE says where the artefacts go (default: ./workspace); LLMCTL_PYTHON names an
# interpreter that has llmctl already, and then nothing is installed. packages, set before, are what
# a recipe needs besides.
packages=${packages:-scikit-learn}
export LLMCTL_WORKSPACE=${LLMCTL_WORKSPACE:-$PWD/workspace}

if [ -n "${LLMCTL_PYTHON:-}" ]; then
  python=$LLMCTL_PYTHON
else
  [ -x .venv/bin/python ] || python3 -m venv .venv
  python=.venv/bin/python
  pip() { "$python" -m pip --quiet --disable-pip-version-check "$@"; }
  # Once all is there, no network is needed to go on.
  if ! "$python" -c 'import sys; from importlib.metadata import version
for package in sys.argv[1:]: version(package)' torch llmctl $packages 2>/dev/null; then
    # PyTorch first and by itself: a range would let another package choose its build.
    pip install torch==2.13.0
    # shellcheck disable=SC2086  # several packages are several words
    pip install --editable . $packages
  fi
fi
llmctl() { "$python" -m llmctl "$@"; }
tasks=$LLMCTL_WORKSPACE/tasks
begun=$SECONDS
