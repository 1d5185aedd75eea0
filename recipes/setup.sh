# Sourced by the recipes, from the repository's root: $python, an interpreter that has llmctl, and
# the function llmctl.
#
# LLMCTL_WORKSPACE says where the artefacts go (default: ./workspace); LLMCTL_PYTHON names an
# interpreter that has llmctl already, and then nothing is installed.
export LLMCTL_WORKSPACE=${LLMCTL_WORKSPACE:-$PWD/workspace}

if [ -n "${LLMCTL_PYTHON:-}" ]; then
  python=$LLMCTL_PYTHON
else
  [ -x .venv/bin/python ] || python3 -m venv .venv
  python=.venv/bin/python
  # PyTorch first and by itself: a range would let another package choose its build.
  "$python" -m pip install --quiet --disable-pip-version-check torch==2.13.0
  "$python" -m pip install --quiet --disable-pip-version-check --editable . scikit-learn
fi
llmctl() { "$python" -m llmctl "$@"; }
tasks=$LLMCTL_WORKSPACE/tasks
begun=$SECONDS
