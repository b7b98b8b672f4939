from typing import final

ENOTSUPP: int

@final
class Rows:
    keys: bytearray
    values: bytearray
    by_batch: bool
    def __init__(
        self,
        fd: int,
        *,
        key_size: int,
        value_stride: int,
        max_entries: int,
        chunk_rows: int,
        walk_only: bool = False,
        trie: bool = False,
    ) -> None: ...
    def start(self) -> None: ...
    def next(self) -> int: ...

@final
class Ring:
    def __init__(self, fd: int, size: int) -> None: ...
    def close(self) -> None: ...
    @property
    def size(self) -> int: ...
    def used(self) -> int: ...
    def read(self, limit_bytes: int) -> bytes: ...
