"""The record of effects: shares are ratios of means, files come back as they were, and another model is refused."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.artifacts import Provenance, load_tensors, save_tensors
from cutaway.errors import BrokenEvidence, NoBehavior, OutOfRange, UnknownName, UsageError, WrongModel
from cutaway.figures import Bars, Heatmap
from cutaway.patching import Effects
from cutaway.stats import ratio_interval
from tests.patching.pairs import loaded


def made(**changes: Any) -> Effects:
    """Three cells on two clusters of two pairs; the last pair has nearly no gap."""
    options: dict[str, Any] = {
        "labels": ("z.0.h0@end", "z.1.h3@end", "mlp_out.1"),
        "values": torch.tensor([[1.0, 1.0, 1.0, 1.0], [3.0, 4.0, 2.0, 2.0], [0.5, 1.0, 1.5, 0.0]]),
        "clean": torch.tensor([3.0, 4.0, 2.0, 1.001]),
        "corrupt": torch.tensor([1.0, 1.0, 1.0, 1.0]),
        "on": "corrupt",
        "method": "denoise",
        "metric": "logit_diff",
        "unit": "nat",
        "sign": 1,
        "clusters": ("a", "a", "b", "b"),
        "ids": ("0", "1", "2", "3"),
        "provenance": Provenance("model", "data", "0", 3),
    }
    return Effects(**{**options, **changes})


def test_raw_is_value_minus_base() -> None:
    effects = made()
    assert effects.raw[1].tolist() == [2.0, 3.0, 1.0, 1.0]
    assert effects.mean().tolist() == pytest.approx([0.0, 1.75, -0.25])


def test_a_share_is_a_ratio_of_means_not_a_mean_of_ratios() -> None:
    effects = made()
    gap = torch.tensor([2.0, 3.0, 1.0, 0.001])
    assert effects.share()[1].item() == pytest.approx(7 / 6.001)
    assert (effects.raw[1] / gap).mean().item() > 200  # what the pair without a gap would make of it
    torch.testing.assert_close(effects.normalised, effects.raw / gap.mean())


@pytest.mark.parametrize("on", ["clean", "corrupt"])
def test_the_whole_way_is_one_on_both_sides(on: str) -> None:
    effects = made(on=on)
    whole = replace(effects, labels=("all", "none"), values=torch.stack([effects.target, effects.base]))
    assert whole.share().tolist() == pytest.approx([1.0, 0.0])


def test_a_cluster_counts_once_as_in_the_claims() -> None:
    """Three pairs of one cluster and one of another: the table, the share and the verdict's interval agree."""
    effects = made(
        clusters=("a", "a", "a", "b"),
        clean=torch.tensor([3.0, 4.0, 2.0, 2.0]),
        values=torch.ones(3, 4) + torch.eye(4)[1:],
    )
    assert effects.mean().tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 2])
    assert effects.share().tolist() == pytest.approx([1 / 9, 1 / 9, 1 / 3])
    rows = effects.table()
    assert [row["effect"] for row in rows] == pytest.approx(effects.mean().tolist())
    assert [row["share"] for row in rows] == pytest.approx(effects.share().tolist())
    assert effects.top(1) == ("mlp_out.1",)
    many = ("a", "a", "a", "b", "c", "d", "e", "f")
    wide = made(
        labels=("x",), clusters=many, ids=tuple("01234567"), corrupt=torch.zeros(8), clean=torch.arange(1.0, 9.0),
        values=torch.tensor([[0.5, 0.1, 0.9, 2.0, 1.0, 3.0, 2.0, 5.0]]),
    )  # fmt: skip
    interval = ratio_interval(wide.raw[0].double().numpy(), wide.gap.double().numpy(), many)
    assert wide.share()[0].item() == pytest.approx(interval.estimate, rel=1e-12)
    assert wide.share()[0].item() != pytest.approx((wide.raw.mean() / wide.gap.mean()).item(), rel=1e-3)


def test_no_gap_no_share() -> None:
    effects = made(clean=torch.ones(4))
    with pytest.raises(NoBehavior, match="logit_diff"):
        effects.share()
    assert effects.table()[1]["share"] is None
    assert effects.mean()[1].item() == pytest.approx(1.75)


def test_the_strongest_cells() -> None:
    effects = made(values=torch.tensor([[1.1] * 4, [1.5] * 4, [0.0] * 4]))
    assert effects.top(2) == ("mlp_out.1", "z.1.h3@end")
    assert effects.top(9, by="toward") == ("z.1.h3@end", "z.0.h0@end", "mlp_out.1")
    assert replace(effects, on="clean", clean=effects.corrupt, corrupt=effects.clean).top(1, by="toward") == (
        "z.1.h3@end",
    )
    assert replace(effects, on="clean").top(1, by="toward") == ("mlp_out.1",)  # here the other side is lower
    with pytest.raises(UnknownName, match="toward"):
        effects.top(1, by="towards")
    with pytest.raises(OutOfRange, match="at least 1"):
        effects.top(0)


def test_clusters_are_averaged_first() -> None:
    effects = made()
    assert {name: found.tolist() for name, found in effects.by_cluster().items()} == {
        "a": pytest.approx([0.0, 2.5, -0.25]),
        "b": pytest.approx([0.0, 1.0, -0.25]),
    }
    row = effects.table()[1]
    assert row["site"] == "z.1.h3@end"
    assert row["effect"] == pytest.approx(1.75)
    assert row["cluster_se"] == pytest.approx(0.75)
    assert (row["lowest"], row["highest"], row["unit"], row["examples"], row["clusters"]) == (1.0, 3.0, "nat", 4, 2)
    assert made(clusters=("a",) * 4).table()[0]["cluster_se"] is None


def test_select() -> None:
    effects = made()
    assert effects.select("z.*").labels == ("z.0.h0@end", "z.1.h3@end")
    assert effects.select("*@end").values.shape == (2, 4)
    chosen = effects.select(["mlp_out.1", "z.0.h0@end"])
    assert chosen.labels == ("mlp_out.1", "z.0.h0@end")
    assert torch.equal(chosen.values, effects.values[[2, 0]])
    assert effects.select(lambda label: "h3" in label).labels == ("z.1.h3@end",)
    with pytest.raises(UnknownName, match=r"z\.1\.h3@end"):
        effects.select(["z.1.h2@end"])
    with pytest.raises(UnknownName, match="nothing matches"):
        effects.select("resid*")


def test_a_saved_file_comes_back(tmp_path: Path) -> None:
    effects = made()
    effects.save(tmp_path / "e.safetensors")
    back = Effects.load(tmp_path / "e.safetensors")
    for field in fields(Effects):
        old, new = getattr(effects, field.name), getattr(back, field.name)
        assert torch.equal(old, new) if isinstance(old, torch.Tensor) else old == new, field.name


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this is a folder"):
        made().save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_model_is_refused(tmp_path: Path) -> None:
    model = loaded("gpt2")
    made(provenance=Provenance(model.digest, "data", "0")).save(tmp_path / "own.safetensors")
    assert Effects.load(tmp_path / "own.safetensors", model).labels
    made().save(tmp_path / "e.safetensors")
    with pytest.raises(WrongModel, match=r"e\.safetensors"):
        Effects.load(tmp_path / "e.safetensors", model)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"values": torch.ones(2)}, {"kind": "activations"})
    with pytest.raises(BrokenEvidence, match="activations"):
        Effects.load(path)
    made().save(path)
    tensors, manifest = load_tensors(path)
    save_tensors(path, {**tensors, "values": tensors["values"][:2]}, manifest)
    with pytest.raises(BrokenEvidence, match="3 cells"):
        Effects.load(path)
    save_tensors(path, tensors, {key: item for key, item in manifest.items() if key != "clusters"})
    with pytest.raises(BrokenEvidence, match="clusters"):
        Effects.load(path)


WIDE = {
    "clusters": tuple("abcdefgh"),
    "ids": tuple("01234567"),
    "corrupt": torch.zeros(8),
    "clean": torch.arange(1.0, 9.0),
}


def wide(*labels: str, **changes: Any) -> Effects:
    """Cells on eight clusters, each with another effect."""
    rows = torch.arange(len(labels) * 8.0).view(-1, 8).remainder(7) - 2
    return made(labels=labels, values=rows, **{**WIDE, **changes})


def test_intervals_are_those_of_the_claims() -> None:
    effects = wide("z.0.h0", "z.0.h1")
    gap = effects.gap.double().numpy()
    expected = [ratio_interval(row, gap, WIDE["clusters"]) for row in effects.raw.double().numpy()]
    assert list(effects.intervals()) == expected
    shown = effects.shares()["z.0.h1"]
    assert shown == pytest.approx((expected[1].estimate, (expected[1].high - expected[1].low) / 2))
    rows = effects.table()
    assert [(row["low"], row["high"]) for row in rows] == [(one.low, one.high) for one in expected]
    assert made().table()[0]["low"] is None  # two clusters carry no interval


def test_layers_by_positions_are_a_map() -> None:
    labels = ("resid_pre.0@subject", "resid_pre.0@end", "resid_pre.1@subject", "resid_post.1@end")
    (first, second) = wide(*labels).figures()
    assert isinstance(first, Heatmap)
    assert isinstance(second, Bars)
    assert (first.rows, first.columns) == (("resid_pre.0", "resid_pre.1"), ("subject", "end"))
    effects = wide(*labels)
    assert first.values[0] == pytest.approx(tuple(effects.share().tolist()[:2]))
    assert first.values[1][1] != first.values[1][1]  # no such cell
    assert first.half_widths is not None
    assert first.half_widths[0][0] == pytest.approx(effects.shares()[labels[0]][1])
    assert second.labels == labels[3:]
    assert made().figures()[0].half_widths is None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("labels", "rows", "columns"),
    [
        (("z.0.h0@end", "z.0.h1@end", "z.1.h0@end", "z.1.h1@end"), ("0", "1"), ("h0", "h1")),
        (("expert_out.0.e0", "expert_out.0.e1", "expert_out.1.e0"), ("0", "1"), ("e0", "e1")),
        (("pattern.1.h0@3", "pattern.1.h0@4", "pattern.1.h2@3"), ("pattern.1.h0", "pattern.1.h2"), ("3", "4")),
        (("mlp_out.0:3@a", "mlp_out.1:4@a", "mlp_out.0:3@b"), ("mlp_out.0:3", "mlp_out.1:4"), ("a", "b")),
        (("z.0:2.h1", "z.1:3.h1", "z.0:2.h0"), ("0:2", "1:3"), ("h1", "h0")),
        (("embed@a", "embed@b"), ("embed",), ("a", "b")),
    ],
)
def test_rows_and_columns_follow_from_the_labels(
    labels: tuple[str, ...], rows: tuple[str, ...], columns: tuple[str, ...]
) -> None:
    (figure,) = wide(*labels).figures()
    assert isinstance(figure, Heatmap)
    assert (figure.rows, figure.columns) == (rows, columns)


def test_what_has_no_two_axes_is_bars() -> None:
    for labels in (("mlp_out.0", "mlp_out.1"), ("z.0.h1 + mlp_out.2",), ("mlp_act.0.n3", "mlp_act.0.n4"), ("z.0.h1",)):
        (figure,) = wide(*labels).figures()
        assert isinstance(figure, Bars)
        assert figure.labels == labels
    many = wide(*(f"mlp_act.0.n{i}" for i in range(60)))
    (figure,) = many.figures()
    assert isinstance(figure, Bars)
    assert figure.labels == many.top(60)


def test_without_a_gap_figures_are_in_the_metrics_unit() -> None:
    effects = wide("mlp_out.0", "mlp_out.1", clean=torch.zeros(8))
    (figure,) = effects.figures()
    assert isinstance(figure, Bars)
    assert figure.unit == "nat"
    assert figure.values == pytest.approx(tuple(effects.mean().tolist()))


def test_one_cell_example_by_example() -> None:
    effects = wide("mlp_out.0", "mlp_out.1")
    (figure,) = effects.figures("mlp_out.1")
    assert isinstance(figure, Bars)
    assert (figure.labels, figure.values) == (effects.ids, tuple(effects.raw[1].tolist()))
    with pytest.raises(UnknownName, match=r"mlp_out\.2"):
        effects.figures("mlp_out.2")


def test_draws_and_details_are_told_and_kept(tmp_path: Path) -> None:
    draws = torch.stack([made().values + 1, made().values - 1])
    effects = made(draws=draws, details={"loss": torch.tensor([0.5, 0.25, 0.125], dtype=torch.float64)})
    rows = effects.table()
    assert [row["draw_sd"] for row in rows] == pytest.approx([2**0.5] * 3)
    assert [row["loss"] for row in rows] == [0.5, 0.25, 0.125]
    effects.save(tmp_path / "e.safetensors")
    back = Effects.load(tmp_path / "e.safetensors")
    assert back.draws is not None
    assert torch.equal(back.draws, draws)
    chosen = back.select("mlp_out.*")
    assert chosen.draws is not None
    assert torch.equal(chosen.draws, draws[:, 2:])
    assert chosen.details["loss"].tolist() == [0.125]
    tensors, manifest = load_tensors(tmp_path / "e.safetensors")
    save_tensors(tmp_path / "b.safetensors", {**tensors, "details.loss": torch.zeros(2)}, manifest)
    with pytest.raises(BrokenEvidence, match="loss"):
        Effects.load(tmp_path / "b.safetensors")
