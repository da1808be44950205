#!/usr/bin/env bash
# Makes .venv if needed, installs the test tools and runs all the tests; arguments go to pytest.
#
#   scripts/test.sh                    everything, under 20 minutes on 2 CPU cores
#   scripts/test.sh -k sapo            the tests with sapo in their name
#   scripts/test.sh -m 'not slow'      those that take seconds
#   scripts/test.sh -n 0 --pdb         in one process; otherwise the integration tests share one of two
#   scripts/test.sh --soak             with the full numbers of trials, for hours of patience
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE

scripts/setup.sh dev
exec .venv/bin/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder "$@"
