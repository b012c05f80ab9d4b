"""VM templates: a booted guest, saved once, from which sandboxes start instead of booting.

key      which VMs a template fits (pure)
store    the directory of templates: find, publish, remove, prune
create   boot a VM, save it, publish it
use      what a sandbox's start asks: a template for this VM, and what becomes of one that is no good
"""
