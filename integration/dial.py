"""Small servers for a container, and clients in Python for the other end: a small Debian has neither ping nor curl."""

from __future__ import annotations

# What the container serves: the payload as a web server that knows nothing but the loopback, one for each family;
# the payload on all addresses; and the hash of what a client has sent once it has sent all of it.
SERVERS = """
mkdir -p /cgi-bin
printf '#!/bin/sh\\necho; head -c "$CONTENT_LENGTH" | sha256sum\\n' >/cgi-bin/hash
chmod +x /cgi-bin/hash
httpd -p 127.0.0.1:7001 -h /
httpd -p [::1]:7002 -h /
nc -ll -p 7003 -e cat /payload &
nc -ll -p 7004 -e sha256sum &
exec sleep 100000
"""
# Reads from an address to the end: the hash of what came, its length, and what went wrong.
READ = """
import hashlib, socket, sys
digest, size, last = hashlib.sha256(), 0, b""
try:
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30)
    s.sendall(sys.stdin.buffer.read())
    s.shutdown(socket.SHUT_WR)
    while data := s.recv(65536):
        digest.update(data); size += len(data)
        last = data
    print(digest.hexdigest(), size, last[-100:])
except OSError as error:
    print(type(error).__name__)
"""
# The hash of a web page, or what it answers when it is given stdin.
FETCH = """
import hashlib, sys, urllib.request
given = sys.stdin.buffer.read()
answer = urllib.request.urlopen(sys.argv[1], given or None, timeout=30).read()
print(answer.decode() if given else hashlib.sha256(answer).hexdigest())
"""
# One echo request of the size that `ping` sends (no `ping` on a small Debian).
PING = """
import socket, struct, sys
data = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + bytes(56)
total = sum(struct.unpack(f"!{len(data) // 2}H", data))
total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
s.settimeout(10)
s.connect((sys.argv[1], 0))
s.send(data[:2] + struct.pack("!H", total) + data[4:])
while s.recv(2048)[20] != 0:  # ICMP behind the IP header: an echo reply
    pass
print("answered")
"""
# Sends so many bytes to one client.
SERVE = """
import socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
peer, _ = listener.accept()
peer.sendall(b"x" * int(sys.argv[3]))
"""
