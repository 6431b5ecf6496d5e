#!/bin/sh
# On a Cortex-M4F; what it needs is told in on-target.sh.
here=$(dirname "$0")
exec "$here/../../on-target.sh" "$here" mps2-an386
