#!/usr/bin/env python3
"""Writes a container image as an archive, without a container engine.

    image.py OUT.tar NAME:TAG[,NAME:TAG…] ENTRYPOINT CMD ENTRY…

ENTRYPOINT and CMD are JSON lists. An ENTRY puts one thing into the image's only layer:
SRC=DST a file, link:TARGET=DST a symbolic link, dir:=DST a folder, data:TEXT=DST a small file,
tree:FOLDER=/ all that is in a folder.
"""
import hashlib
import io
import json
import os
import sys
import tarfile


def header(name, kind=tarfile.REGTYPE, mode=0o755, size=0, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size, info.linkname = kind, mode, size, target
    return info


def add_parents(tar, path, made):
    folder = ""
    for part in path.split("/")[:-1]:
        folder = f"{folder}/{part}".lstrip("/")
        if folder not in made:
            made.add(folder)
            tar.addfile(header(folder, tarfile.DIRTYPE))


def by_root(info):
    """The files of a tree belong to root, and the archive's digest does not depend on when it was made."""
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info


def add(tar, entry, made):
    source, name = entry.rsplit("=", 1)
    if source.startswith("tree:"):
        folder = source[5:]
        for child in sorted(os.listdir(folder)):
            tar.add(os.path.join(folder, child), child, filter=by_root)
        return
    name = name.lstrip("/")
    add_parents(tar, name, made)
    if name in made:
        return
    made.add(name)
    if source == "dir:":
        tar.addfile(header(name, tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755))
    elif source.startswith("link:"):
        tar.addfile(header(name, tarfile.SYMTYPE, target=source[5:]))
    elif source.startswith("data:"):
        text = source[5:].encode().decode("unicode_escape").encode()
        tar.addfile(header(name, mode=0o644, size=len(text)), io.BytesIO(text))
    else:
        with open(source, "rb") as file:
            content = file.read()
        tar.addfile(header(name, size=len(content)), io.BytesIO(content))


def layer_of(entries):
    buffer, made = io.BytesIO(), set()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for entry in entries:
            add(tar, entry, made)
    return buffer.getvalue()


def config_of(layer_digest, entrypoint, cmd):
    epoch = "1970-01-01T00:00:00Z"
    return {
        "architecture": "amd64",
        "os": "linux",
        "created": epoch,
        "config": {
            "Entrypoint": entrypoint or None,
            "Cmd": cmd or None,
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
        "history": [{"created": epoch}],
    }


def main(out, names, entrypoint, cmd, *entries):
    layer = layer_of(entries)
    layer_digest = hashlib.sha256(layer).hexdigest()
    config = json.dumps(config_of(layer_digest, json.loads(entrypoint), json.loads(cmd))).encode()
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    layer_name = f"{layer_digest}/layer.tar"
    manifest = [{"Config": config_name, "RepoTags": names.split(","), "Layers": [layer_name]}]
    with tarfile.open(out, "w") as tar:
        for name, content in (
            (config_name, config),
            (layer_name, layer),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            tar.addfile(header(name, mode=0o644, size=len(content)), io.BytesIO(content))


if __name__ == "__main__":
    main(*sys.argv[1:])
