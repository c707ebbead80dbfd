#!/bin/sh
# Starts the handler, for host.json. Some ways of deploying, such as VS Code on
# Windows, lose the executable bit, and Azure mounts packages read-only: then a
# copy is started. exec keeps the process id, so the host sees the handler's own
# end and exit code.
set -eu
binary=./qualys-sentinel
if [ ! -x "$binary" ]; then
  tmp=${TMPDIR:-/tmp}
  rm -rf "$tmp"/qualys-sentinel.?????? # of starts before
  copy=$(mktemp -d "$tmp/qualys-sentinel.XXXXXX")/qualys-sentinel
  cp "$binary" "$copy"
  chmod 0755 "$copy"
  binary=$copy
fi
exec "$binary" "$@"
