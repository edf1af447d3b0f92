#!/bin/bash
# The tenant of our apps, whose administrator is the role `topics`, and what holds for its namespace. Run again, it sets
# everything again, and does no harm.
set -eu
TENANT=${NAMESPACE%/*}

admin() { bin/pulsar-admin "$@"; }
namespaces() { bin/pulsar-admin namespaces "$@"; }

until admin brokers healthcheck; do sleep 5; done

admin tenants create "$TENANT" --admin-roles topics --allowed-clusters "$CLUSTER" ||
  admin tenants update "$TENANT" --admin-roles topics --allowed-clusters "$CLUSTER"
namespaces create "$NAMESPACE" --clusters "$CLUSTER" || namespaces policies "$NAMESPACE" >/dev/null

# The outbox publishes again what may have been confirmed when it was killed; the broker drops it.
namespaces set-deduplication "$NAMESPACE" --enable
# By topic: events stay for a while after everybody has acknowledged them, so that a subscription can be set back.
namespaces set-retention "$NAMESPACE" --time "$RETENTION_TIME" --size "$RETENTION_SIZE"
# By topic: nothing of what waits is dropped; publishers are told that there is no room, and wait.
namespaces set-backlog-quota "$NAMESPACE" --limit "$BACKLOG_LIMIT" --policy producer_request_hold
namespaces set-delayed-delivery "$NAMESPACE" --enable --time 1s
# A topic goes when it is deleted, not when nobody has used it for a while.
namespaces set-inactive-topic-policies "$NAMESPACE" --disable-delete-while-inactive --max-inactive-duration 7d \
  --delete-mode delete_when_no_subscriptions
if [ -n "${OFFLOAD_ABOVE:-}" ]; then
  namespaces set-offload-threshold "$NAMESPACE" --size "$OFFLOAD_ABOVE"
  namespaces set-offload-deletion-lag "$NAMESPACE" --lag 4h # meanwhile both copies are there
fi
