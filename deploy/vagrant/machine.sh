#!/bin/sh
# A Debian 13 machine that can run pods: containerd, and what kubelet asks for.
set -eu

apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qq -y install containerd runc

# Where Heddle's plugins will be; cgroups as systemd has them.
mkdir -p /etc/containerd
containerd config default |
    sed -e 's#SystemdCgroup = false#SystemdCgroup = true#' \
        -e 's#bin_dir = "/usr/lib/cni"#bin_dir = "/opt/cni/bin"#' >/etc/containerd/config.toml
systemctl restart containerd

# kubeadm looks for it before there is anybody who would switch it on.
echo 'net.ipv4.ip_forward = 1' >/etc/sysctl.d/90-kubernetes.conf
sysctl -q --system

swapoff -a
sed -i '/\sswap\s/d' /etc/fstab
