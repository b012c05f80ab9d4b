"""containerd's Sandbox service, for `sandboxer = "shim"`: the shim itself is the controller of a pod's sandbox, which
then has no pause container. Containers come by the Task service as ever.

pod      what CRI says of a pod, as the spec that shapes a sandbox (pure)
service  the RPCs
"""
