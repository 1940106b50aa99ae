#!/bin/sh
# Writes the Python and Go stubs of protos/ and the contract image that `buf breaking` compares with.
#
#   protos/generate.sh           refuses a breaking change, then writes into the repository
#   protos/generate.sh --check   writes elsewhere and fails if the repository differs
#
# The programs come from requirements/dev.txt and .ci/tools, so the same protos give the same bytes everywhere.
# Without Go its stubs are left alone.
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

tools=$(.ci/tools/build --where)
go_stubs=
if [ -x "$tools/protoc-gen-go" ]; then
  go_stubs=clients/go/llmgrpcv1
  (cd protos && PATH="$tools:$PATH" python -m grpc_tools.protoc -I . --go_out="$out" --go-grpc_out="$out" \
    --go_opt=module=github.com/llm-grpc/llm-grpc --go-grpc_opt=module=github.com/llm-grpc/llm-grpc \
    llm_grpc/v1/*.proto)
fi

generated() {
  (cd "$1" && find llm_grpc $go_stubs \( -name '*_pb2*.py*' -o -name '*.pb.go' \) ! -path '*/__pycache__/*' |
    LC_ALL=C sort)
}

if [ "${1:-}" != --check ]; then
  generated . | xargs rm -f
  cp -R "$out/llm_grpc" .
  [ -z "$go_stubs" ] || cp -R "$out/clients" .
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
