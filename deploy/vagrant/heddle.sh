#!/bin/sh
# Heddle, once for the cluster. Arguments: the API server, as in https://10.0.0.1:6443, and deploy/kubernetes/heddle.yaml.
set -eu
api=$1
manifest=$2

# By its address, and not by its service: that one will be made by what is installed here.
kubectl --namespace kube-system create configmap heddle-api --from-literal=address="$api"
kubectl apply --filename "$manifest"
kubectl --namespace kube-system rollout status daemonset heddle --timeout=300s
