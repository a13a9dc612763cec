#!/bin/sh
# Takes Heddle from every node of the cluster. Argument: the directory deploy/kubernetes.
#
# Nodes that still have pods of its network wait for these to go: kubectl drain NODE --ignore-daemonsets
set -eu
manifests=$1

kubectl delete --ignore-not-found --filename "$manifests/heddle.yaml"
kubectl --namespace kube-system delete --ignore-not-found configmap heddle-api
kubectl apply --filename "$manifests/uninstall.yaml"
kubectl --namespace kube-system rollout status daemonset heddle-uninstall --timeout=600s
kubectl delete --filename "$manifests/uninstall.yaml"
