#!/bin/sh
# Starts a node: users with the hashes of their passwords, and who this node is.
#
# CONFIG: folder with redis.conf and users.acl; SECRETS: a file for each user with its password;
# RUN and DATA: folders to write in; HOST: this node's name. Arguments go on to redis-server.
set -eu
umask 077
CONFIG=${CONFIG:-/config} SECRETS=${SECRETS:-/secrets} RUN=${RUN:-/run/redis} DATA=${DATA:-/data}
: "${HOST:?is missing: the name of this node}"

cp "$CONFIG/users.acl" "$RUN/users.acl"
for user in $(sed -n 's/.*<\([a-z-]*\)>.*/\1/p' "$CONFIG/users.acl"); do
  if ! [ -s "$SECRETS/$user" ]; then
    echo "redis: no password of the user $user in $SECRETS" >&2
    exit 2
  fi
  hash=$(tr -d '\n' <"$SECRETS/$user" | sha256sum | cut -d ' ' -f 1)
  sed "s/<$user>/#$hash/" "$RUN/users.acl" >"$RUN/users.next"
  mv "$RUN/users.next" "$RUN/users.acl"
done

{
  printf 'include %s/redis.conf\n' "$CONFIG"
  printf 'dir %s\n' "$DATA"
  printf 'aclfile %s/users.acl\n' "$RUN"
  printf 'masterauth "%s"\n' "$(tr -d '\n' <"$SECRETS/replica" | sed 's/["\\]/\\&/g')"
  printf 'cluster-announce-hostname %s\n' "$HOST"
} >"$RUN/redis.conf"
exec redis-server "$RUN/redis.conf" "$@"
