#!/bin/sh
# A control plane without kube-proxy. Argument: its address.
set -eu
address=$1

kubeadm init \
    --apiserver-advertise-address "$address" \
    --pod-network-cidr 10.244.0.0/16 \
    --service-cidr 10.96.0.0/16 \
    --skip-phases addon/kube-proxy

mkdir -p /root/.kube
cp /etc/kubernetes/admin.conf /root/.kube/config
