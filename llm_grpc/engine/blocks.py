"""The memory of lowering ``paged``: each running request has a table of blocks, and beginnings are shared."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from heapq import heappop, heappush

from llm_grpc.engine.block_digest import digests, root
from llm_grpc.engine.block_mates import longest_tail
from llm_grpc.engine.block_pool import BlockPool
from llm_grpc.engine.block_table import BlockTable
from llm_grpc.engine.request import Request, slot_of
from llm_grpc.engine.step_plan import BlockCopy, StepPlan

MAX_CHUNK_TOKENS = 1024
"""Of one prompt in a step: longer chunks near a full context are reported to read memory that is not theirs
(onnxruntime 1.31, H200)."""

WATERMARK = 0.01
"""Of all blocks stay free when a request is admitted, so that those that run do not give way at once."""


class Blocks:
    """``KvMemory`` over a ``BlockPool``.

    A request is admitted when there are blocks for what it knows; more come as it says more. Full blocks are
    shared with whoever begins alike; nobody writes to those. Of a block that is not full, or whose last token
    it has to compute itself, a request gets a copy from a running one of its group: into its own block, so
    that this takes no memory. Copies are done in order before anything is computed, so what they read may
    belong to somebody else by then.
    """

    def __init__(
        self, num_blocks: int, block_size: int, max_running: int, max_chunk_tokens: int = MAX_CHUNK_TOKENS
    ) -> None:
        self.pool = BlockPool(num_blocks)
        self.max_chunks = max_running
        self.max_chunk_tokens = max_chunk_tokens
        self._block_size = block_size
        self._free_slots = list(range(max_running))
        self._tables: dict[int, BlockTable] = {}
        self._running: dict[int, Request] = {}
        self._copies: dict[int, BlockCopy] = {}  # by target
        self._left: defaultdict[str, set[bytes]] = defaultdict(set)  # names, by private salt
        self._last_names: tuple[Sequence[int], str, list[bytes]] = ((), "", [])

    @property
    def max_tokens(self) -> int:
        """Tokens that all blocks hold together."""
        return self.pool.num_blocks * self._block_size

    def num_used(self, running: Collection[Request]) -> int:
        """Tokens that the blocks of running requests have room for."""
        return (self.pool.num_blocks - self.pool.num_free) * self._block_size

    def table(self, request: Request) -> BlockTable:
        """The blocks of a running request."""
        return self._tables[slot_of(request)]

    def admit(self, request: Request, most_tokens: int) -> bool:
        """Give the request a slot and blocks for all that it knows, found ones and blank ones."""
        if not self._free_slots:
            return False
        names = self._names(request)
        found = self._found(request, names)
        num_blank = self._num_blocks(len(request.known_ids)) - len(found)
        num_taken = num_blank + sum(not self.pool.references(block) for block in found)
        if self.pool.num_free - num_taken < self._watermark:
            return False
        request.slot = heappop(self._free_slots)
        for block in found:
            self.pool.share(block)
        blocks = [*found, *(self.pool.take() for _ in range(num_blank))]
        name = _name(request.salt, names, len(found))
        most_blocks = self._num_blocks(most_tokens)
        table = BlockTable(request.slot, self._block_size, most_blocks, name, names, blocks, [])
        table.num_full = len(found)
        self._tables[request.slot] = table
        self._running[request.slot] = request
        return True

    def load(self, request: Request) -> int:
        """Take what others have computed since then too."""
        table = self.table(request)
        if table.num_computed < request.max_found:
            found = self._found(request, table.names)
            if len(found) > table.num_full:
                table.begin_with(found, _name(request.salt, table.names, len(found)), self.pool)
                self._drop_copies()
            self._copy_tail(request, table)
        return table.num_computed

    def reserve(self, request: Request, num_tokens: int) -> bool:
        """Take blank blocks."""
        return self.table(request).extend(num_tokens, self.pool)

    def computed(self, request: Request, tokens: Sequence[int], num_wrong: int = 0) -> None:
        """Write it down, make full blocks findable, and give back those of wrong guesses."""
        table = self.table(request)
        table.append(tokens, self.pool)
        if num_wrong:
            table.cut(self.pool)

    def compact(self, decoding: Sequence[Request]) -> None:
        """Nothing: slots are rows of a table, and cost what they hold."""

    def free(self, request: Request) -> None:
        """Take slot and blocks back. Its group gets what it has, the last block too."""
        slot = slot_of(request)
        for mate in self._mates(request):
            if mate.is_prefilling and mate.is_untouched:
                mate.num_computed = mate.num_cached = self.load(mate)
        table = self._tables.pop(slot)
        if request.private_salt is not None:
            names = map(self.pool.name, table.blocks)
            self._left[request.private_salt].update(name for name in names if name is not None)
        table.release(self.pool)
        self._drop_copies()
        del self._running[slot]
        heappush(self._free_slots, slot)
        request.slot = None

    def forget(self, salt: str) -> None:
        """Make blocks of the salt blank."""
        for name in self._left.pop(salt, ()):
            self.pool.forget(name)

    def with_changes(self, plan: StepPlan) -> StepPlan:
        """The plan with the places of tables that the runner does not know, and copies; most have neither."""
        grants = tuple(grant for table in self._tables.values() if (grant := table.grant))
        copies = tuple(self._copies.values())
        return replace(plan, grants=grants, block_copies=copies) if grants or copies else plan

    def committed(self, plan: StepPlan) -> None:
        """The runner knows all places; copies are done."""
        self._copies.clear()
        for grant in plan.grants:
            self._tables[grant.slot].num_granted = grant.first + len(grant.blocks)

    def failed(self, plan: StepPlan) -> Collection[int]:
        """Copies may be done or not, and what they read may be overwritten: who was to get one keeps its full
        blocks, and hands on no more. Nothing else that anybody may find was to be written.
        """
        for request in self._running.values():
            table = self.table(request)
            if table.tail and table.blocks[table.num_full] in self._copies:
                table.tail = []
                request.num_computed = request.num_cached = table.num_computed
        self._copies.clear()
        return ()

    def check_integrity(self, running: Collection[Request]) -> None:
        """Raise AssertionError unless slots are free or owned, blocks have as many references as there are
        tables with them, and tables hold what their requests have computed.
        """
        slots = Counter([*self._free_slots, *(request.slot for request in running)])
        assert slots == Counter(range(self.max_chunks)), f"this is a bug: slots, free and owned, are {slots}"
        held = Counter(block for table in self._tables.values() for block in table.blocks)
        for block in range(self.pool.num_blocks):
            assert self.pool.references(block) == held[block], (
                f"this is a bug: {held[block]} tables have block {block}, which counts otherwise"
            )
        for request in running:
            _check(self.table(request), request, self._block_size)
        self.pool.check_integrity()

    def _mates(self, request: Request) -> list[Request]:
        """Other running requests that share with this one what is not in full blocks."""
        if not request.group:
            return []
        running = (each for each in self._running.values() if each is not request)
        return [each for each in running if (each.group, each.salt) == (request.group, request.salt)]

    def _copy_tail(self, request: Request, table: BlockTable) -> None:
        """Have the block behind the full ones copied from who has more of it."""
        mate, num_tokens = longest_tail(request, table, self._mates(request))
        if mate is None:
            return
        source, target = self.table(mate).blocks[table.num_full], table.blocks[table.num_full]
        pending = self._copies.get(source)
        self._copies[target] = BlockCopy(pending.source if pending else source, target)
        table.tail = list(request.known_ids[table.num_full * self._block_size : num_tokens])

    def _drop_copies(self) -> None:
        """Nobody has what these were to write to."""
        for target in [target for target in self._copies if not self.pool.references(target)]:
            del self._copies[target]

    @property
    def _watermark(self) -> int:
        """Blocks that stay free beside a newcomer: for each that runs the next one it may come to need."""
        if not self._tables:
            return 0
        growing = sum(len(table.blocks) < table.most_blocks for table in self._tables.values())
        return max(growing, int(WATERMARK * self.pool.num_blocks))

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)

    def _names(self, request: Request) -> list[bytes]:
        """The names of the full blocks of all that is known but for the last token."""
        if request.salt is None:
            return []
        tokens, salt, names = self._last_names  # who waits is looked for in every step
        if tokens is not request.known_ids or salt != request.salt:
            names = list(digests(request.salt, request.known_ids[:-1], self._block_size))
            self._last_names = request.known_ids, request.salt, names
        return names

    def _found(self, request: Request, names: Sequence[bytes]) -> list[int]:
        """The full blocks that are there and that the request may have."""
        return self.pool.find(names[: request.max_found // self._block_size])


def _name(salt: str | None, names: Sequence[bytes], num_full: int) -> bytes | None:
    """The name of the last of so many blocks; of none, the salt's."""
    if salt is None:
        return None
    return names[num_full - 1] if num_full else root(salt)


def _check(table: BlockTable, request: Request, block_size: int) -> None:
    """Raise AssertionError unless a table holds what its request has computed."""
    computed = request.computed_ids
    assert table.num_computed == len(computed) <= len(table.blocks) * block_size, (
        f"this is a bug: the table of request {request.request_id} has {len(table.blocks)} blocks for "
        f"{len(computed)} tokens, and says {table.num_computed}"
    )
    assert table.tail == computed[table.num_full * block_size :], (
        f"this is a bug: the tail of request {request.request_id} is not what it computed"
    )
