#!/usr/bin/env bash
# Installs what the tests need, then runs every check and every test of every package. Fails at the first failure.
#
# Some tests mount file systems of their own, to fill them up and to let their devices fail. That needs root, or sudo,
# and loop devices; nothing else here does, and the tests themselves run as whoever calls this.
set -euo pipefail
# A user's own search path often lacks what mounts.
PATH="$PATH:/usr/sbin:/sbin"
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }
die() {
  printf 'tests/run.sh: %s\n' "$*" >&2
  exit 1
}

as_root=()
if ((EUID != 0)); then
  command -v sudo >/dev/null || die "some tests mount file systems: install sudo, or run this as root"
  as_root=(sudo)
  say "some tests mount file systems: with sudo"
  sudo -n true 2>/dev/null || sudo -v || die "some tests mount file systems: this user may not use sudo; run this as root"
  # Kept fresh while this runs: the tests have nobody to ask for a password.
  (while sleep 60 && kill -0 $$ && sudo -n true; do :; done) 2>/dev/null &
  refresh=$!
  trap 'kill "$refresh" 2>/dev/null' EXIT
fi

# Debian package -> a command it brings.
packages=(curl:curl git:git gcc:cc mount:losetup e2fsprogs:mkfs.ext4)

missing=()
for entry in "${packages[@]}"; do
  command -v "${entry#*:}" >/dev/null || missing+=("${entry%%:*}")
done
if ((${#missing[@]})); then
  say "installing ${missing[*]}"
  command -v apt-get >/dev/null || die "needs ${missing[*]}; apt-get is not here to install them"
  "${as_root[@]}" apt-get update -q
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
fi

# Now rather than after the build: whether mounting works here, with and without a device.
probe="$(mktemp -d)"
if ! { "${as_root[@]}" mount -t tmpfs tmpfs "$probe" && "${as_root[@]}" umount "$probe"; }; then
  die "some tests mount file systems, and this machine forbids it: in a container, run it with --privileged"
fi
rmdir "$probe"
"${as_root[@]}" losetup --find >/dev/null ||
  die "some tests use loop devices, and there are none: in a container, run it with --privileged and /dev of the host"
command -v cargo >/dev/null || die "needs Rust: install rustup, which reads rust-toolchain.toml"

say "format"
cargo fmt --all --check

say "clippy, warnings denied"
cargo clippy --workspace --all-targets --all-features --locked -- -D warnings

say "documentation, no broken links"
RUSTDOCFLAGS="-A warnings -D rustdoc::broken_intra_doc_links" cargo doc --workspace --no-deps --document-private-items --locked --quiet

say "tests"
cargo test --workspace --all-targets --locked
cargo test --workspace --doc --locked

say "loom: every interleaving of the mailbox's credits"
RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/loom" cargo test -p engine --lib --release --locked mailbox::credits

say "all checks passed"
