#!/bin/sh
# kubeadm, kubelet and kubectl, from the project's packages. Arguments: this machine's address, where it has several.
set -eu
version=v1.34

DEBIAN_FRONTEND=noninteractive apt-get -qq -y install ca-certificates curl gpg
mkdir -p /etc/apt/keyrings
curl -fsSL "https://pkgs.k8s.io/core:/stable:/$version/deb/Release.key" |
    gpg --batch --yes --dearmor -o /etc/apt/keyrings/kubernetes.gpg
echo "deb [signed-by=/etc/apt/keyrings/kubernetes.gpg] https://pkgs.k8s.io/core:/stable:/$version/deb/ /" \
    >/etc/apt/sources.list.d/kubernetes.list
apt-get -qq update
# Not kubernetes-cni, which brings the reference plugins: nobody calls them here.
DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install kubeadm kubelet kubectl

if [ $# -gt 0 ]; then
    echo "KUBELET_EXTRA_ARGS=--node-ip=$1" >/etc/default/kubelet
fi
systemctl enable --now kubelet
