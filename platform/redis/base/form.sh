#!/bin/sh
# Makes one cluster of the nodes named as arguments (host:port), a replica for each primary. Once:
# where it is formed already, nothing is done.
set -eu
SECRETS=${SECRETS:-/secrets} TLS=${TLS:-/tls} REPLICAS=${REPLICAS:-1}
REDISCLI_AUTH=$(tr -d '\n' <"$SECRETS/admin")
export REDISCLI_AUTH
cli() { redis-cli --user admin --no-auth-warning --tls --cacert "$TLS/ca.crt" "$@"; }

places=""
for node in "$@"; do
  host=${node%:*} port=${node##*:}
  tries=0
  until [ "$(cli -h "$host" -p "$port" ping 2>&1)" = PONG ]; do
    tries=$((tries + 1))
    if [ "$tries" -ge "${TRIES:-120}" ]; then
      echo "redis: $node does not answer: $(cli -h "$host" -p "$port" ping 2>&1)" >&2
      exit 1
    fi
    sleep 1
  done
  # Nodes meet by address; afterwards they go by name.
  address=$(getent ahostsv4 "$host" | head -n 1 | cut -d ' ' -f 1)
  places="$places $address:$port"
done
if cli -h "${1%:*}" -p "${1##*:}" cluster info | grep -q '^cluster_state:ok'; then
  echo "the cluster is formed already"
  exit 0
fi
# shellcheck disable=SC2086  # a list
cli --cluster create $places --cluster-replicas "$REPLICAS" --cluster-yes
# All have to know it before anybody is sent there.
for node in "$@"; do
  tries=0
  until cli -h "${node%:*}" -p "${node##*:}" cluster info | grep -q '^cluster_state:ok'; do
    tries=$((tries + 1))
    if [ "$tries" -ge "${TRIES:-120}" ]; then
      echo "redis: $node does not find the cluster whole" >&2
      exit 1
    fi
    sleep 1
  done
done
