"""Sockets between the host and the guest.

`api` and `client` are the daemon's side. Everything else is the device program, a vhost-user-vsock backend in a
process of its own: QEMU gives it guest RAM and the rings, the daemon connects to it or passes it descriptors.

    main ─ backend ─┬─ listener ──── handshake          clients of the Unix socket
                    ├─ hub ───────── muxer, connection   connections and their host descriptors (stream)
                    ├─ device ─────┬ transmit            guest -> host packet loop
                    │              ├ receive             host -> guest packet loop
                    │              └ vring, memory       rings and RAM, every access checked
                    └─ vhost_user                        what QEMU says

One thread, one epoll (poller), no lock. The program imports C modules where their Python wrappers cost
milliseconds, and nothing that builds classes at import time: a device is started for every sandbox.
"""
