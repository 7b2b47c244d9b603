"""Path patching: what travels from a sender to receivers along some paths, and along those only.

1. The sender's difference is added to the base run while the other heads are held; what each receiver then makes of
   the stream is recorded.
2. A run of the base in which the receivers have what was recorded, and all that comes after answers to it.

What is held decides which paths are meant:

    frozen="heads+mlps"   sender -> receiver, nothing between
    frozen="heads"        the same, and sender -> MLP -> ... -> receiver through any MLPs between

Neither includes a path through another head: name it, as a node between (`through`). A node between is first a
receiver, and what it then adds differently is the difference that goes on.
"""

from collections.abc import Sequence

from cutaway.errors import UsageError
from cutaway.models import Model, Site
from cutaway.patching.edges import ARROW, Edges, fields_of
from cutaway.patching.effects import TOGETHER
from cutaway.patching.graph import MODES, Changes, Reader, Sender, Stream, Writes, readers_of, senders_of
from cutaway.patching.measure import MAX_TOKENS, Cell, Progress, Wanted, choose, encode, joined, measure
from cutaway.patching.record import FROZEN, Steps, emit, private, reach, record, require_parallel
from cutaway.tasks import Batch, Task


def paths(
    model: Model,
    task: Task | Batch,
    senders: Wanted,
    receivers: Wanted,
    *,
    frozen: str,
    through: Wanted | Sequence[Wanted] = (),
    mode: str = "denoise",
    progress: Progress | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Edges:
    """Effect of each sender through its paths to the receivers, per pair; the receivers are set together.

    raw = m(base, the receivers having what they made of the sender's difference) - m(base), in the metric's unit; signs
    as in `sweep`. A receiver that comes after another keeps what it made of the difference while the other was held
    (Wang et al. 2022, arXiv 2211.00593, appendix B); for edges that follow one another use
    `edges(..., together=True)`. Source: also Goldowsky-Dill et al. 2023 (arXiv 2304.05969).
    Cost: two forward passes a side; for each sender and each stage one pass up to the deepest receiver (frozen="heads")
    or one block a place (frozen="heads+mlps"), for nodes between one block more; one run a sender for the effect.
    Laws: with one receiver and frozen="heads+mlps" it is that edge; without MLPs both choices agree; a sender that says
    the same on both sides gives exactly 0.
    Misleads: "frozen" holds heads to the base run, so what a head between would have done is not seen; a receiver sees
    a mixture that no input makes; paths do not add up to the whole (docs/methods/path-patching.md).
    Raises UsageError for a node that nothing reaches; SiteUnavailable as `edges` does.

    Args:
        senders: one cell for each; nodes as in `edges`, their own positions included.
        receivers: nodes as in `edges`, set together.
        frozen: "heads" or "heads+mlps", what is held between one stage and the next; see the top of this file.
        through: nodes between, in order: one a stage, or a list of nodes that are one stage together. A key/value head
            sends on through all heads that share it; `z.L.hH` takes and sends for one query head alone.
        mode: as in `edges`.
    """
    choose("mode", mode, tuple(MODES))
    choose("frozen", frozen, FROZEN)
    batch = encode(model, task)
    writers = senders_of(model, senders)
    stages = [readers_of(model, stage) for stage in _stages(through)]
    final = readers_of(model, receivers)
    emitters = {reader: _emitters(model, reader) for stage in stages for reader in stage}
    _require_reached(writers, [*stages, final], emitters)
    require_parallel(model, batch.clean, [*emitters, *final])
    everyone = [*writers, *(sender for some in emitters.values() for sender in some)]
    extra = [reader.entry for reader in final if reader.value is None]
    if frozen == "heads":
        extra += [Site("attn_write", i) for i, layer in enumerate(model.body.layers) if "attn_write" in layer.taps]
    changes = Changes(model, batch, Writes(model, everyone), mode, extra)
    steps = Steps(progress, 2 * len(stages) + 2)
    groups: list[dict[Sender, Stream]] = [{sender: changes.of(sender)} for sender in writers]
    for stage in stages:
        seen = record(model, changes, groups, stage, frozen=frozen, progress=steps.next(), max_tokens=max_tokens)
        groups = emit(model, changes, emitters, seen, progress=steps.next(), max_tokens=max_tokens)
    seen = record(model, changes, groups, final, frozen=frozen, progress=steps.next(), max_tokens=max_tokens)
    rest = ARROW.join(joined(reader.site for reader in stage) for stage in [*stages, final])
    cells = []
    for sender, group, one in zip(writers, groups, seen):
        within = reach(changes, *group.values())
        edits = tuple(private(reader, one[reader], changes.inputs, within) for reader in final if reader in one)
        cells.append(Cell(f"{sender.site}{ARROW}{rest}", edits))
    made = measure(
        model,
        batch,
        cells,
        on=MODES[mode],
        method=f"{mode}, {frozen} frozen",
        progress=steps.next(),
        max_tokens=max_tokens,
    )
    return Edges(**fields_of(made))


def _stages(through: Wanted | Sequence[Wanted]) -> list[Wanted]:
    """One request a stage; a single node is a stage by itself."""
    if isinstance(through, list | tuple):
        return list(through)
    return [through]  # type: ignore[list-item]


def _emitters(model: Model, reader: Reader) -> tuple[Sender, ...]:
    """What a node between adds, as a sender."""
    body, value = model.body, reader.value
    if value is None:
        raise UsageError("through 'logits': nothing comes after the logits; name them among the receivers")
    site = value.base
    if value.kind in ("q", "z"):
        site = Site("z", value.layer, value.unit)
    elif value.kind in ("k", "v"):
        shared = (body.n_heads or 1) // (body.n_kv_heads or 1)
        units = (value.unit,) if isinstance(value.unit, int) else value.unit
        heads = None if units is None else tuple(unit * shared + i for unit in units for i in range(shared))
        site = Site("z", value.layer, heads)
    elif value.kind == "mlp_act":
        site = value
    return tuple(senders_of(model, site))


def _require_reached(
    senders: Sequence[Sender], stages: Sequence[Sequence[Reader]], emitters: dict[Reader, tuple[Sender, ...]]
) -> None:
    """Every sender reaches a node of the first stage, and every node is reached by one of the stage before it."""
    lost = [sender for sender in senders if not any(reader.after(sender) for reader in stages[0])]
    if lost:
        raise UsageError(
            f"sender {str(lost[0].site)!r}: {TOGETHER.join(str(reader.site) for reader in stages[0])} comes before it "
            f"and cannot read it{f', and {len(lost) - 1} more like it' if len(lost) > 1 else ''}; name senders of "
            "earlier blocks, or of the attention for its own MLP",
            site=str(lost[0].site),
        )
    before: Sequence[Sender] = senders
    for stage in stages:
        for reader in stage:
            if not any(reader.after(sender) for sender in before):
                raise UsageError(
                    f"node {str(reader.site)!r}: nothing of the stage before it "
                    f"({TOGETHER.join(str(sender.site) for sender in before)}) is added before it reads; put the "
                    "nodes of a path in the order of the model",
                    site=str(reader.site),
                )
        before = [sender for reader in stage for sender in emitters.get(reader, ())]
