"""Generated from proto/ by hack/gen-proto; never edited."""

import functools

import betterproto

# betterproto evaluates all annotations of a class once for each of its fields: 6 ms of a sandbox's first Create.
_hints = functools.cache(betterproto.Message._type_hints.__func__)
betterproto.Message._type_hints = classmethod(_hints)

SOURCES = "602dff4aeba2b8726eed8181a5621de15af845dfad3cd29119c930514647ac2e"
