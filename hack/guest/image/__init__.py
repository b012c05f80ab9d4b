"""The guest image: a kernel and an initramfs made from the packages of the machine's own Debian."""
