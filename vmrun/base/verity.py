"""The dm-verity hash tree of a root, as the kernel's verity target reads it.

Format version 1, sha256, 4096-byte blocks: the digest of a block is that of the salt and the
block; a hash block holds 128 digests and is padded with zeros; levels are stored from the top.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from vmrun.model.base import Verity

BLOCK = 4096
_DIGESTS_A_BLOCK = BLOCK // hashlib.sha256().digest_size


def append_hash_tree(image: Path) -> Verity:
    """Pad ``image`` to whole blocks, append its hash tree, and return the parameters.

    The salt is derived from the content, so that the same content gives the same tree.
    """
    content = hashlib.sha256()
    with image.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            content.update(chunk)
    salt = hashlib.sha256(b"vmrun verity salt\0" + content.digest()).digest()

    seed = hashlib.sha256(salt)

    def digest_of(block: bytes) -> bytes:
        digest = seed.copy()
        digest.update(block)
        return digest.digest()

    digests = []
    with image.open("rb") as stream:
        while block := stream.read(BLOCK):
            digests.append(digest_of(block.ljust(BLOCK, b"\0")))
    data_blocks = len(digests)

    levels: list[list[bytes]] = []
    while True:
        blocks = [
            b"".join(digests[start : start + _DIGESTS_A_BLOCK]).ljust(BLOCK, b"\0")
            for start in range(0, len(digests), _DIGESTS_A_BLOCK)
        ]
        levels.append(blocks)
        digests = [digest_of(block) for block in blocks]
        if len(blocks) == 1:
            break

    with image.open("r+b") as output:
        output.truncate(data_blocks * BLOCK)
        output.seek(data_blocks * BLOCK)
        for level in reversed(levels):
            output.writelines(level)
    return Verity(
        root_hash=digests[0].hex(),
        salt=salt.hex(),
        data_blocks=data_blocks,
        hash_start=data_blocks,
    )
