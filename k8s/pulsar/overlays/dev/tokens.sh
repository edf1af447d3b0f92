#!/bin/bash
# A token for each role, signed with the key that the chart has made.
set -eu
for role in web chat transcribe images beat topics keda; do
  bin/pulsar tokens create -a RS256 --private-key file:///keys/private.key --subject "$role" >"/tokens/$role"
done
