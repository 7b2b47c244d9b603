"""Variants of a blueprint that keep what it computes: decoys, a backup of the mover, a suppressor."""

from dataclasses import replace

from cutaway.zoo.handmade.blueprint import Block, Blueprint, Head, Match, Mlp, Unit, const, copies, plus, times
from cutaway.zoo.handmade.rows import BOS

SUPPRESSED = 0.4
"""Share of the answer that a suppressor takes away again."""


def with_decoys(print_: Blueprint, n: int, m: float) -> Blueprint:
    """`n` more heads in every layer, which look and write like others, into coordinates that nothing reads."""
    print_ = _with_spare(print_)
    extra = tuple(_decoy(print_, at, m) for at in range(n))
    return replace(print_, blocks=tuple(replace(block, heads=(*block.heads, *extra)) for block in print_.blocks))


def filled(print_: Blueprint, n_heads: int, m: float) -> Blueprint:
    """With decoys in the places for heads, up to `n_heads` a layer, and for neurons that the program leaves empty: a
    part that writes nothing at all is not found by watching a model. An MLP that has a part gets two more neurons, of
    which one is always on and one off: else what comes out of its activation function may be what goes in."""
    print_ = _with_spare(print_)
    busy = _busy(print_)

    def fill(block: Block) -> Block:
        extra = tuple(_decoy(print_, at, m) for at in range(n_heads - len(block.heads)))
        mlp = replace(block.mlp, units=(*block.mlp.units, *busy[:2])) if block.mlp.units else Mlp("decoy", busy)
        return Block((*block.heads, *extra), mlp)

    return replace(print_, blocks=tuple(fill(block) for block in print_.blocks))


def _with_spare(print_: Blueprint) -> Blueprint:
    """With coordinates that nothing reads."""
    if "spare" in print_.layout.parts:
        return print_
    layout = print_.layout.copy()
    layout.add("spare", len(_bits(print_)))
    return replace(print_, layout=layout)


def _bits(print_: Blueprint) -> list[dict[int, float]]:
    """Forms that are +1 or -1, by a bit of the token's id."""
    token = print_.layout.parts["token"]
    n = (len(token) - 1).bit_length()
    return [{at: 1.0 if i >> bit & 1 else -1.0 for i, at in enumerate(token)} for bit in range(n)]


def _decoy(print_: Blueprint, at: int, m: float) -> Head:
    """The even ones look at the token before, the odd ones at the same token earlier; each writes the bits of the token
    that it finds, in an order of its own."""
    spare, bits = print_.layout.parts["spare"], _bits(print_)
    moves = tuple((bit, {spare[(i + at) % len(bits)]: 0.5}) for i, bit in enumerate(bits))
    if at % 2 == 0:
        return Head("decoy", offset=1, margin=m, moves=moves)
    return Head("decoy", matches=tuple(Match(times(m / 2, bit), bit) for bit in bits), moves=moves)


def _busy(print_: Blueprint) -> tuple[Unit, ...]:
    """Neurons that tell bits of the token to nobody: for each bit one that is on when it is set, one when it is not."""
    spare, bits = print_.layout.parts["spare"], _bits(print_)
    signs = (1.0, -0.5)
    return tuple(Unit(times(sign, bit), {spare[i]: 0.5}, sharp=1.0) for i, bit in enumerate(bits) for sign in signs)


def with_backup(print_: Blueprint, m: float) -> Blueprint:
    """A second mover, one layer later, that steps in when the first has brought nothing: self-repair.

    The first also writes `done`, how much it found. Where that is set, the backup looks at BOS and brings nothing. The
    neurons that read what the movers bring run after the backup.
    """
    at, place = print_.mover()
    layout = print_.layout.copy()
    (done,), bos = layout.add("done", 1), layout.parts["token"][BOS]
    block = print_.blocks[at]
    mover = block.heads[place]
    found = (plus(const(layout, 1.0), {bos: -1.0}), {done: 1.0})
    first = replace(mover, moves=(*mover.moves, found))
    stay = Match({done: 6 * m}, {bos: 1.0})
    second = replace(mover, role="backup", matches=(*mover.matches, stay), mover=False)
    heads = (*block.heads[:place], first, *block.heads[place + 1 :])
    blocks = (*print_.blocks[:at], Block(heads), Block((second,), block.mlp), *print_.blocks[at + 1 :])
    return replace(print_, layout=layout, blocks=blocks)


def with_suppressor(print_: Blueprint, m: float) -> Blueprint:
    """One more layer at the end, with a head that takes away part of the answer that it finds at its own position."""
    out = print_.layout.parts["out"]
    head = Head("suppressor", offset=0, margin=m, moves=copies(out, out, -SUPPRESSED))
    return print_.with_block(len(print_.blocks), Block((head,), Mlp()))


def with_ballast(print_: Blueprint, size: float) -> Blueprint:
    """For norms after the sublayers: one head and one neuron a layer write a constant beside what the others write, so
    that the norm divides by nearly the same number everywhere. The sign alternates."""
    layout = print_.layout.copy()
    (at,) = layout.add("ballast", 1)
    sign, blocks = 1.0, []
    for block in print_.blocks:
        head = Head("ballast", moves=((const(layout, 1.0), {at: sign * size}),))
        sign, mlp = -sign, block.mlp
        if mlp.units:
            unit = Unit(const(layout, 1.0), {at: sign * size}, sharp=1.0)
            role = "ballast" if mlp.role == "decoy" else mlp.role
            mlp, sign = Mlp(role, (*mlp.units, unit)), -sign
        blocks.append(Block((*block.heads, head), mlp))
    return replace(print_, layout=layout, blocks=tuple(blocks))
