# shellcheck shell=bash
# Sourced by the scripts beside it: gets onto a fresh machine what they need, or says what is missing.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

heading() {
    printf '\n== %s\n' "$*"
}

# Is version $2 at least $1?
at_least() {
    printf '%s\n%s\n' "$1" "$2" | sort -VC
}

as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "needs root for '$*', and there is no sudo"
    fi
}

# What a package is wanted for: a command, or a file. Asking for that instead of the package works
# on every distribution, and accepts a QEMU or jq that was installed in another way.
wanted_from() {
    case $1 in
        attr) echo getfattr ;;
        bsdextrautils) echo col ;;
        bsdutils) echo script ;;
        ca-certificates) echo /etc/ssl/certs/ca-certificates.crt ;;
        debian-archive-keyring) echo /usr/share/keyrings/debian-archive-keyring.gpg ;;
        dpkg-dev) echo dpkg-shlibdeps ;;
        fuse3) echo fusermount3 ;;
        groff-base) echo groff ;;
        iproute2) echo ss ;;
        libc6-dev) echo /usr/include/stdio.h ;;
        libvirt-clients) echo virsh ;;
        libvirt-clients-qemu) echo virt-qemu-qmp-proxy ;;
        libvirt-daemon-system) echo /usr/sbin/libvirtd ;;
        man-db) echo man ;;
        nodejs) echo node ;;
        procps) echo pgrep ;;
        rust-clippy) echo cargo-clippy ;;
        rust-coreutils) echo /usr/lib/cargo/bin/coreutils/cat ;;
        systemd) echo systemd-analyze ;;
        util-linux) echo findmnt ;;
        *) echo "$1" ;;
    esac
}

have_package() {
    local wanted
    wanted=$(wanted_from "$1")
    if [[ $wanted == /* ]]; then
        [[ -e $wanted ]]
    else
        command -v "$wanted" >/dev/null
    fi
}

have_apt() {
    command -v apt-get >/dev/null && command -v dpkg >/dev/null
}

apt_lists_fresh=
apt_refresh() {
    if [[ -z $apt_lists_fresh ]]; then
        # A source of the user's that is broken says nothing about the packages that are wanted here:
        # let the installation decide.
        as_root apt-get update -qq -o Acquire::Retries=3 ||
            echo "some package lists could not be refreshed; going on with what there is" >&2
        apt_lists_fresh=yes
    fi
}

# The lock timeout: a machine just booted is often still running its unattended upgrades.
# --no-remove: never at the cost of what the user has installed.
apt_install() {
    echo "installing $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends --no-remove \
        -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 "$@" >/dev/null
}

# The system's QEMU in PATH. Where it cannot be installed (apt would remove another version's qemu-utils,
# say), that of Debian 12 from target/.
need_qemu() {
    command -v qemu-system-x86_64 >/dev/null && return
    if have_apt; then
        apt_refresh
        apt_install qemu-system-x86 || true # judged below
        hash -r
        command -v qemu-system-x86_64 >/dev/null && return
    fi
    "$repo/scripts/fetch-qemu" old
    export PATH="$repo/target/qemu-old:$PATH"
}

need_packages() {
    local package missing=()
    for package in "$@"; do
        have_package "$package" || missing+=("$package")
    done
    ((${#missing[@]})) || return 0

    if ! have_apt; then
        for package in "${missing[@]}"; do
            printf '  missing: %s (package %s on Debian)\n' "$(wanted_from "$package")" "$package" >&2
        done
        die "install these with your system's package manager, then run this again"
    fi
    apt_refresh
    apt_install "${missing[@]}" || die "could not install: ${missing[*]}"
    for package in "${missing[@]}"; do
        have_package "$package" || die "$package is installed, but $(wanted_from "$package") is not there"
    done
}

cargo_version() {
    (cd "$repo" && cargo --version 2>/dev/null) | awk '{ print $2 }'
}

apt_candidate() {
    apt-cache policy "$1" | awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }'
}

# Rust, with what it takes to link a program and to fetch crates.
need_rust() {
    local want
    need_packages gcc libc6-dev ca-certificates
    want=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$repo/Cargo.toml")

    at_least "$want" "$(cargo_version)" && return
    # rustup's own installer puts cargo there and leaves PATH to the next login.
    export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    at_least "$want" "$(cargo_version)" && return

    if have_apt && ! command -v rustup >/dev/null; then
        apt_refresh
        if [[ -n $(apt_candidate rustup) ]]; then
            apt_install rustup || true # judged below
        elif at_least "$want" "$(apt_candidate cargo)"; then
            apt_install cargo rustc || true # judged below
        fi
        hash -r
    fi
    # rustup without any toolchain; one that is merely too old is the user's to update.
    if command -v rustup >/dev/null && [[ -z $(cargo_version) ]]; then
        rustup default stable || true # judged below
    fi

    at_least "$want" "$(cargo_version)" ||
        die "needs Rust $want or newer (found: $(cargo_version | grep . || echo none)):" \
            "install it as https://rustup.rs says, or run 'rustup update stable'"
}

need_fuse() {
    [[ -e /dev/fuse ]] || as_root modprobe fuse || true # judged by what is there then
    [[ -e /dev/fuse ]] ||
        die "no /dev/fuse: this kernel has no FUSE, or this container was not given it" \
            "(docker run --device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor=unconfined)"
    [[ -r /dev/fuse && -w /dev/fuse ]] || die "no permission to open /dev/fuse"
}
