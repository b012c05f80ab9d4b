"""Pods as a kubelet has them: crictl, containerd's CRI plugin, real CNI plugins."""
