#!/bin/sh
# Re-creates the lock files of this directory from the pyproject files (needs uv; installing needs only pip).
#
#   requirements/compile.sh             new or changed requirements; other versions stay
#   requirements/compile.sh --upgrade   every version anew
#
# One resolution of everything comes first, so that the locks agree with each other wherever they meet.
# shellcheck disable=SC2046 # package names have no spaces
set -eu
cd "$(dirname "$0")/.."
all=$(mktemp)
trap 'rm -f "$all"' EXIT
cat requirements/*.txt > "$all" 2>/dev/null || true

compile() { # compile OUTPUT ARGUMENT...
  output=$1
  shift
  uv pip compile --quiet --universal --python-version 3.11 --no-header --no-emit-index-url \
    --no-emit-package llm-grpc-client --no-annotate --output-file "$output" "$@"
}
lock() { # lock NAME ARGUMENT...
  name=$1
  shift
  : > "requirements/$name.txt"
  compile "requirements/$name.txt" --generate-hashes --constraints "$all" "$@"
  echo "requirements/$name.txt: $(grep -c '==' "requirements/$name.txt") packages"
}
packages() { sed -n 's/^\([a-z0-9._-]*\)==.*/\1/p' "$1" | sort -u; }
without() { # without LOCK...: the options that leave out what these locks hold
  for name in "$@"; do packages "requirements/$name.txt"; done | sed 's/^/--no-emit-package /'
}

compile "$all" "$@" pyproject.toml --extra cpu --extra dev --extra export --extra bench
lock build requirements/build.in
lock serve pyproject.toml --extra cpu
lock dev pyproject.toml --extra cpu --extra dev $(without serve)
lock bench pyproject.toml --extra bench $(without serve)
lock export pyproject.toml --extra export $(without serve dev) $(packages "$all" |
  grep -E '^(torch|triton|nvidia-.*|cuda-.*)$' | sed 's/^/--no-emit-package /')
lock torch pyproject.toml --extra export $(without serve dev export)
lock encoder requirements/encoder.in --no-deps
lock cuda pyproject.toml --extra cuda
lock gpu requirements/gpu.in $(without cuda)
