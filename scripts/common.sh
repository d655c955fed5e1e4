# shellcheck shell=bash
# Sourced by the other scripts here: root, Debian packages, which tests there are.

# Runs a command as root: directly, or through sudo.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        printf 'kmsfs: error: root is needed to run: %s\n' "$*" >&2
        printf 'kmsfs: hint: run it as root, or install sudo\n' >&2
        return 1
    fi
}

# Installs the Debian packages among the arguments that are not installed yet.
install_packages() {
    local package missing=()
    if ! command -v apt-get >/dev/null; then
        printf 'kmsfs: error: this is no Debian or Ubuntu: install by hand what corresponds to: %s\n' "$*" >&2
        return 1
    fi
    for package; do
        case "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" in
            'install ok installed') ;;
            *) missing+=("$package") ;;
        esac
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    printf 'installing %s\n' "${missing[*]}"
    as_root apt-get -qq update
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
}

# The names of cargo's integration tests, of which `mount` takes those that mount, and
# `pure` the others.
integration_tests() {
    local file kind
    for file in tests/*.rs tests/*/main.rs; do
        [ -e "$file" ] || continue
        kind=pure
        if grep -q '^mod common;' "$file"; then kind=mount; fi
        [ "$kind" = "$1" ] || continue
        file=${file%/main.rs}
        basename "$file" .rs
    done
}
