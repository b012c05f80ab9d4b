"""End-to-end tests: the real programs, a private containerd, real VMs. `hack/test integration` runs them."""
