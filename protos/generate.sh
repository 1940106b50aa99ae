#!/bin/sh
# Writes the Python stubs of protos/ and the contract image that `buf breaking` compares with.
#
#   protos/generate.sh           refuses a breaking change, then writes into the repository
#   protos/generate.sh --check   writes elsewhere and fails if the repository differs
#
# The programs come from requirements/dev.txt, so the same protos give the same bytes everywhere.
set -eu
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

if [ -e protos/image.binpb ]; then
  buf breaking protos --against protos/image.binpb
fi
buf build protos --exclude-source-info --output "$out/image.binpb"
# shellcheck disable=SC2046 # file names here have no spaces
(cd protos && python -m grpc_tools.protoc -I . --python_out="$out" --grpc_python_out="$out" \
  --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" $(find llm_grpc -name '*.proto' | LC_ALL=C sort))

generated() { (cd "$1" && find llm_grpc -name '*_pb2*.py*' ! -path '*/__pycache__/*' | LC_ALL=C sort); }

if [ "${1:-}" != --check ]; then
  generated . | xargs rm -f
  cp -R "$out/llm_grpc" .
  cp "$out/image.binpb" protos/image.binpb
  exit
fi
status=0
for file in $( (generated . && generated "$out") | LC_ALL=C sort -u); do
  diff -u "$file" "$out/$file" || status=1
done
cmp protos/image.binpb "$out/image.binpb" || status=1
[ $status = 0 ] || echo "generated code or the contract image is not what protos/ gives: run make generate" >&2
exit $status
