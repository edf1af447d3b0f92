#!/bin/sh
# Into the namespace of the apps: the authority, the tokens, and passwords that stay as they are once made.
set -eu

apply() { kubectl create --dry-run=client -o yaml -n babblebox "$@" | kubectl apply -f -; }
once() { kubectl get -n babblebox secret "$1" >/dev/null 2>&1 || kubectl create -n babblebox secret generic "$@"; }
random() { head -c 32 /dev/urandom | sha256sum | head -c 48; }

apply secret generic pulsar-ca --from-file=ca.crt=/ca/ca.crt
for token in /tokens/*; do
  apply secret generic "pulsar-token-${token##*/}" --from-literal="TOKEN=$(cat "$token")"
done
password=$(random)
once database --from-literal=password="$password" \
  --from-literal=DATABASE_URL="postgresql+psycopg://babblebox:$password@database/babblebox"
once secret-key --from-literal=SECRET_KEY="$(random)"
once blobs --from-literal=AWS_ACCESS_KEY_ID=babblebox --from-literal=AWS_SECRET_ACCESS_KEY="$(random)"
