#!/bin/sh
# The service from a terminal, with nothing but grpcurl and the server's reflection.
#
#   ADDRESS=localhost:50051 clients/grpcurl/calls.sh [CALL...]
#
# CALL is list, describe, unary, stream, original, model or health; without one, all of them run in turn.
# PROMPT and MAX_TOKENS change what is asked, GRPCURL names another grpcurl.
set -eu

ADDRESS=${ADDRESS:-localhost:50051}
PROMPT=${PROMPT:-Translate to French: the cat sees the house.}
MAX_TOKENS=${MAX_TOKENS:-32}
GRPCURL=${GRPCURL:-grpcurl}
V1=llm_grpc.v1.LLMService

escaped=$(printf %s "$PROMPT" | sed 's/[\\"]/\\&/g')
request="{\"prompt\": \"$escaped\", \"max_tokens\": $MAX_TOKENS}"

call() {
  case $1 in
    list) "$GRPCURL" -plaintext "$ADDRESS" list ;;
    describe) "$GRPCURL" -plaintext "$ADDRESS" describe "$V1" ;;
    unary) "$GRPCURL" -plaintext -d "$request" "$ADDRESS" "$V1/GenerateText" ;;
    stream) "$GRPCURL" -plaintext -d "$request" "$ADDRESS" "$V1/StreamGenerateText" ;;
    original) "$GRPCURL" -plaintext -d "$request" "$ADDRESS" LLMService/GenerateText ;;
    model) "$GRPCURL" -plaintext -d '{}' "$ADDRESS" llm_grpc.v1.ModelService/GetModel ;;
    health) "$GRPCURL" -plaintext -d "{\"service\": \"$V1\"}" "$ADDRESS" grpc.health.v1.Health/Check ;;
    *)
      echo "$1 is none of: list describe unary stream original model health" >&2
      return 2
      ;;
  esac
}

[ $# -gt 0 ] || set -- list describe unary stream original model health
for name in "$@"; do
  echo "# $name"
  call "$name"
done
