"""What containerd asks of the shim's binary: `start`, `delete`, `-info`, `-v` (containerd `pkg/shim`).

containerd waits for these programs for every container, so they are quick: the standard library only, and of
that what costs nothing to import. `typing`, `json`, `re`, `socket`, `hashlib`, `contextlib`, `subprocess` and
`argparse` take as long as the interpreter itself; `json` and `ctypes` are imported where they must.
"""
