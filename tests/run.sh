#!/usr/bin/env bash
# Installs what the tests need, then runs every check and every test of every package. Fails at the first failure.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }
die() {
  printf 'tests/run.sh: %s\n' "$*" >&2
  exit 1
}

# Debian package -> a command it brings.
packages=(curl:curl git:git gcc:cc mount:losetup e2fsprogs:mkfs.ext4)

missing=()
for entry in "${packages[@]}"; do
  command -v "${entry#*:}" >/dev/null || missing+=("${entry%%:*}")
done
if ((${#missing[@]})); then
  say "installing ${missing[*]}"
  command -v apt-get >/dev/null || die "needs ${missing[*]}; apt-get is not here to install them"
  as_root=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null || die "needs ${missing[*]}; run as root, or install sudo"
    as_root=(sudo)
  fi
  "${as_root[@]}" apt-get update -q
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}"
fi
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
