# SPDX-License-Identifier: MIT
# Sourced by scripts/spfemu and scripts/test: a venv inside the checkout, made when it is needed.
#
#   prepare_venv base|dev   sets $venv; ends the script with one line and status 3 if it cannot
#
# SPFEMU_PYTHON names the Python to use, SPFEMU_VENV another place for the venv.

readonly OLDEST_PYTHON=3.11
readonly EXIT_ENVIRONMENT=3
readonly EXIT_INTERRUPTED=130

root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
venv=${SPFEMU_VENV:-$root/.venv}
marker=$venv/.made-by-spfemu # it is ours: may be removed
stamp=$venv/.spfemu-stamp    # it is complete: what was installed

say() {
    echo "spfemu: $*" >&2
}

give_up() {
    say "$*"
    exit "$EXIT_ENVIRONMENT"
}

# Sets $python to the first one that is new enough.
find_python() {
    local candidate found=""
    for candidate in ${SPFEMU_PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if "$candidate" -c "import sys; sys.exit(sys.version_info < (${OLDEST_PYTHON/./, }))" \
            2>/dev/null; then
            python=$candidate
            return
        fi
        if [[ -z $found ]]; then
            found=$("$candidate" --version 2>/dev/null || true)
        fi
    done
    give_up "needs Python $OLDEST_PYTHON or newer, found ${found:-none}:" \
        "install one, or name one in SPFEMU_PYTHON"
}

# Sets and exports CC: what builds the shim.
find_compiler() {
    local candidate candidates=(cc gcc clang) program='#include <stdint.h>
#include <linux/futex.h>
int main(void) { return 0; }'
    if [[ -n ${CC:-} ]]; then
        candidates=("$CC")
    fi
    for candidate in "${candidates[@]}"; do
        # shellcheck disable=SC2086 # CC may carry flags
        if $candidate -x c -fsyntax-only - <<<"$program" 2>/dev/null; then
            export CC=$candidate
            return
        fi
    done
    give_up "needs a C compiler with the headers of the C library and of Linux:" \
        "install one (Debian: apt install gcc libc6-dev), or name one in CC"
}

# Prints what the installed venv depends on.
fingerprint() {
    (
        cd "$root"
        echo "$root"
        sha256sum setup.cfg setup.py pyproject.toml native_shims/*.[ch] 2>/dev/null
    ) | sha256sum
}

# up_to_date EXTRA HASH: dev includes base.
up_to_date() {
    local extra hash
    [[ -x $venv/bin/python && -r $stamp ]] || return 1
    read -r extra hash <"$stamp" || return 1
    [[ $hash == "$2" && ($extra == "$1" || $extra == dev) ]] && "$venv/bin/python" -c "" 2>/dev/null
}

# Removes what an interrupted start left, never what somebody else made.
make_venv() {
    if [[ -e $venv && ! -e $marker ]]; then
        give_up "$venv was not made by this script:" \
            "move it away, or name another place in SPFEMU_VENV"
    fi
    rm -rf "$venv"
    if ! { mkdir -p "$venv" && touch "$marker"; } 2>/dev/null; then
        give_up "cannot write $venv: name another place in SPFEMU_VENV"
    fi
    say "making a venv in $venv with $("$python" --version), the first time only"
    if ! "$python" -m venv "$venv" >"$venv/install.log" 2>&1; then
        give_up "$python cannot make a venv (Debian: apt install python3-venv);" \
            "see $venv/install.log"
    fi
}

install_project() {
    local what=$root
    if [[ $1 == dev ]]; then
        what="${root}[dev]"
    fi
    say "installing spfemu and what it needs; this takes a minute or two"
    # One line per package, so that somebody who waits sees it move.
    if "$venv/bin/python" -m pip install --no-input --disable-pip-version-check \
        --editable "$what" 2>&1 </dev/null | tee "$venv/install.log" |
        sed -u -n -E 's/^ *Collecting ([A-Za-z0-9_.-]+).*/spfemu:   \1/p;
            s|^Processing .*/([A-Za-z0-9_.]+)-[0-9][^/]*$|spfemu:   \1|p;
            s/^ *Building editable .*started.*/spfemu:   building the shim/p;
            s/^Installing collected packages.*/spfemu:   unpacking/p' >&2; then
        return
    fi
    explain_failure
}

explain_failure() {
    local log=$venv/install.log
    if grep -q -E 'NewConnectionError|NameResolutionError|ConnectTimeout|No matching distribution|Could not find a version' "$log"; then
        give_up "cannot download what it needs: check the network, or point pip at local" \
            "wheels (PIP_FIND_LINKS, PIP_NO_INDEX); see $log"
    elif grep -q -E 'Failed (building|to build).*spfemu' "$log"; then
        give_up "$CC cannot build native_shims/; see $log"
    elif grep -q 'No space left on device' "$log"; then
        give_up "no space left for $venv (about 600 MB)"
    fi
    give_up "the installation failed; see $log"
}

prepare_venv() {
    local extra=$1 hash
    [[ $(uname) == Linux ]] || give_up "needs Linux, this is $(uname)"
    hash=$(fingerprint | cut -d ' ' -f 1)
    if up_to_date "$extra" "$hash"; then
        return
    fi
    trap 'say "interrupted; the next start begins again"; exit $EXIT_INTERRUPTED' INT TERM
    # The lock is on the checkout itself, so it leaves no file; pip inherits it, so nobody gets it
    # while a pip that outlived its script still writes.
    exec 9<"$root"
    if ! flock --nonblock 9; then
        say "waiting for another start that installs"
        flock 9
    fi
    if ! up_to_date "$extra" "$hash"; then
        find_python
        find_compiler
        if [[ -r $stamp && -x $venv/bin/python ]] && "$venv/bin/python" -c "" 2>/dev/null; then
            say "the project's build files changed: installing again"
            if grep -q '^dev ' "$stamp"; then
                extra=dev
            fi
            rm -f "$stamp"
        else
            make_venv
        fi
        install_project "$extra"
        echo "$extra $hash" >"$stamp.new"
        mv "$stamp.new" "$stamp"
        say "installed"
    fi
    exec 9<&-
    trap - INT TERM
}
