#!/bin/sh
# Heddle's image into containerd, on each node; needless where the image is in a registry. Argument: the archive
# (`./x image` makes target/image/heddle.tar).
set -eu

ctr --namespace k8s.io images import "$1"
