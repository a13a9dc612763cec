#!/bin/sh
# Heddle as services of systemd, where there is no Kubernetes that would run it. Arguments: the directory of the
# programs (`./x image` makes target/image/bin), deploy/systemd, and a directory of manifests, the same on every node.
set -eu
programs=$1
units=$2
manifests=$3

for program in vxland proxyd proxyd-sockets; do
    install -m 0755 "$programs/$program" /usr/local/bin/
done
"$programs/heddle" install --to /opt/cni/bin

mkdir -p /etc/heddle
for daemon in vxland proxyd; do
    printf 'source = "manifests:%s"\nnode-name = "%s"\n' "$manifests" "$(hostname)" >"/etc/heddle/$daemon.toml"
done

install -m 0644 "$units/vxland.service" "$units/proxyd.service" "$units/proxyd-sockets.service" /etc/systemd/system/
systemctl daemon-reload
systemctl enable --now vxland proxyd proxyd-sockets
