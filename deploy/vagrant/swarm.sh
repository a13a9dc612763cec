#!/bin/sh
# A host of Docker Swarm with Heddle's programs as services. Arguments: its own address; of all but the first one also the
# first one's, and the token that `docker swarm join-token --quiet worker` says there.
set -eu
address=$1

apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qq -y install docker.io
systemctl enable --now docker

if [ $# -eq 1 ]; then
    docker swarm init --advertise-addr "$address"
else
    docker swarm join --advertise-addr "$address" --token "$3" "$2:2377"
fi
