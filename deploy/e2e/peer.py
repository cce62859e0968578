#!/usr/bin/env python3
"""The two ends of a conversation that the tests run in networks of pods, nodes and the world outside.

    peer.py serve                          TCP 8080 tells a client its address; UDP 7777 sends back what it gets
    peer.py tcp HOST PORT                  prints what such a server says
    peer.py udp HOST PORT SIZE             sends SIZE bytes and checks that they come back
    peer.py collect ADDRESS PORT FILE      appends each datagram to FILE, one a line
    peer.py vxlan OUTER VNI MACS INNER PORT TEXT [raw|fragments]
        sends TEXT as a datagram within VXLAN; OUTER, MACS and INNER are SOURCE,DESTINATION. Without a last word the
        kernel writes the outer source address, so that it is masqueraded on its way as any packet; raw writes OUTER's,
        fragments cuts the outer packet behind its UDP header.
"""
import os
import socket
import struct
import sys
import threading


def serve():
    # Nobody has to end it.
    threading.Timer(240, os._exit, [0]).start()
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp.bind(("::", 7777))

    def send_back():
        while True:
            udp.sendto(*udp.recvfrom(65536))

    threading.Thread(target=send_back, daemon=True).start()
    tcp = socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        client, address = tcp.accept()
        client.sendall(address[0].removeprefix("::ffff:").encode())
        client.close()


def tcp(host, port):
    with socket.create_connection((host, int(port)), 3) as server:
        print(server.recv(100).decode())


def udp(host, port, size):
    data = os.urandom(int(size))
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.settimeout(2)
        server.connect((host, int(port)))
        server.send(data)
        if server.recv(65536) != data:
            sys.exit("other bytes came back")


def collect(address, port, path):
    threading.Timer(60, os._exit, [0]).start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, open(path, "ab", buffering=0) as file:
        server.bind((address, int(port)))
        file.write(b"ready\n")
        while True:
            file.write(server.recv(2000) + b"\n")


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(source, destination, payload, fragment=0):
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 77, fragment, 64, 17, 0,
                         socket.inet_aton(source), socket.inet_aton(destination))
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def datagram(source, destination, payload):
    # A checksum of zero says that there is none (RFC 768).
    return struct.pack("!HHHH", source, destination, 8 + len(payload), 0) + payload


def vxlan(outer, vni, macs, inner, port, text, how=""):
    outer_source, outer_destination = outer.split(",")
    source_mac, destination_mac = (bytes.fromhex(mac.replace(":", "")) for mac in macs.split(","))
    packet = ipv4(*inner.split(","), datagram(1111, int(port), text.encode()))
    frame = struct.pack("!II", 0x08000000, int(vni) << 8) + destination_mac + source_mac + b"\x08\x00" + packet
    if not how:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(frame, (outer_destination, 4789))
        return
    whole = datagram(40000, 4789, frame)
    more = 0x2000
    pieces = [(0, whole)] if how == "raw" else [(more, whole[:8]), (1, whole[8:])]
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
        for fragment, piece in pieces:
            sender.sendto(ipv4(outer_source, outer_destination, piece, fragment), (outer_destination, 0))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
