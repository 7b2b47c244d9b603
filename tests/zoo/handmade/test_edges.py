"""Exact interventions on connections: they add up, and they are what the blueprint says."""

from typing import Any

import pytest
import torch

from cutaway.zoo.handmade import build
from cutaway.zoo.handmade.edges import Probe, connected
from cutaway.zoo.handmade.writer import ARCHITECTURES


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_writes_before_a_reader_sum_to_the_stream(architecture: Any) -> None:
    made = build("reverse", architecture=architecture, rotate=2, decoys=1)
    probe = Probe(made.module, made.rows(8, 0))
    writers = list(probe.writers())
    assert len(probe.stream) == 2 * len(probe.blocks) + 1
    for after, stream in enumerate(probe.stream):
        total = torch.stack([writer.write for writer in writers if writer.before <= after]).sum(0)
        torch.testing.assert_close(total, stream, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_connection_left_as_it_is_changes_nothing(architecture: Any) -> None:
    made = build("lookup", architecture=architecture)
    probe = Probe(made.module, made.rows(8, 0))
    nothing = torch.zeros_like(probe.stream[0])
    readers = list(probe.readers())
    assert len(readers) == len({reader.site for reader in readers}) > 10
    for reader in readers:
        torch.testing.assert_close(reader.run(nothing), probe.logits, atol=1e-4, rtol=0)


def test_an_only_connection_is_the_whole_component() -> None:
    """The compared neurons of `sorted` are read by one head alone: cutting both of its ports is cutting them."""
    made = build("sorted", rotate=1)
    truth = made.truth
    (node,) = (node for node in truth.nodes if node.role == "compare")
    ports = [edge for edge in truth.edges if edge.source == node.site and edge.structural]
    assert {edge.target for edge in ports} == {"k.1.h0", "v.1.h0"}
    assert all(edge.zero == pytest.approx(node.effects["zero"].drop, abs=0.01) for edge in ports)


@pytest.mark.parametrize("rotate", [None, 6])
def test_the_structure_of_induction_is_that_of_the_blueprint(rotate: int | None) -> None:
    truth = build("induction", rotate=rotate).truth
    structural = {(edge.source, edge.target) for edge in truth.edges if edge.structural and edge.source != "embed"}
    assert structural == {("z.0.h0", "k.1.h0"), ("z.1.h0", "logits")}
    carried = {(edge.source, edge.target) for edge in truth.edges if edge.resample and edge.resample > 0.1}
    assert carried == {
        ("embed", "v.0.h0"),
        ("z.0.h0", "k.1.h0"),
        ("embed", "q.1.h0"),
        ("embed", "v.1.h0"),
        ("z.1.h0", "logits"),
    }


def test_shared_keys_are_one_reader() -> None:
    made = build("majority", kv_groups=2, decoys=2)
    sites = [reader.site for reader in Probe(made.module, made.rows(4, 0)).readers()]
    assert [site for site in sites if site.startswith("q.0")] == [f"q.0.h{i}" for i in range(4)]
    assert [site for site in sites if site.startswith("k.0")] == ["k.0.h0", "k.0.h1"]


def test_connected_is_about_the_product_alone() -> None:
    rows, columns = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0], [5.0], [0.0]])
    assert not connected(rows, columns)
    assert connected(rows, columns + 0.01)
    assert not connected(rows * 0, columns)
