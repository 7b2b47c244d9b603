"""What a report holds: the data model of `report.json`, field by field, each with its unit.

A report is data first. The page is drawn from `StudyReport` and from nothing else, so what a reader sees can be read,
compared and verified. Every model here refuses unknown fields, NaN and infinity; sequences are stored as tuples.
A section that a study does not have is left None (or empty) and then does not appear on the page.
"""

from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

FORMAT = "cutaway-report"
SCHEMA_VERSION = 1

T = TypeVar("T")
Many: TypeAlias = Annotated[tuple[T, ...], Strict(False)]
"""A sequence: lists are taken too, tuples are kept."""

Text: TypeAlias = Annotated[str, Field(min_length=1)]
Count: TypeAlias = Annotated[int, Field(ge=0)]
Share: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]
Sha256: TypeAlias = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
VerdictName: TypeAlias = Literal["supported", "refuted", "inconclusive", "invalid"]


class Record(BaseModel):
    """Base of all parts: frozen, strict, finite numbers only, no unknown field."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Estimate(Record):
    """A mean with its interval."""

    value: float
    """The estimate, in the unit of what it belongs to."""
    low: float | None
    """Lower bound of the interval; None where the data do not bound it."""
    high: float | None
    """Upper bound of the interval; None where the data do not bound it."""
    level: Share = 0.95
    """Confidence level of the interval, a share."""

    @model_validator(mode="after")
    def _ordered(self) -> "Estimate":
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"interval from {self.low} to {self.high}: the lower bound comes first")
        return self


class AuditRow(Record):
    """What the self-check found about one kind of site."""

    site: Text
    """Kind of site, such as `resid_post`."""
    status: Literal["verified", "structural", "refused"]
    """Proven on the loaded weights; found by structure only; or refused."""
    detail: str = ""
    """The check that was made, or the reason of the refusal."""
    error: float | None = None
    """Largest absolute difference that the check left, in the site's own unit; None where nothing was compared."""


class ModelCard(Record):
    """The model under study."""

    name: Text
    """Name that it was loaded by."""
    digest: Sha256
    """SHA-256 of weights and configuration."""
    architecture: Text
    """Class of the module, such as `GPT2LMHeadModel`."""
    n_parameters: Count
    """Number of weights."""
    n_layers: Count
    """Number of blocks."""
    n_heads: Count
    """Query heads in a layer."""
    n_kv_heads: Count
    """Key and value heads in a layer."""
    d_model: Count
    """Width of the residual stream."""
    d_head: Count
    """Width of one head."""
    d_mlp: Count | None = None
    """Hidden width of the MLP; None where there is none or where it differs by layer."""
    d_vocab: Count
    """Size of the vocabulary."""
    dtype: Text
    """Number format of the weights, such as `float32`."""
    device: Text
    """Device that the study ran on."""
    audit: Many[AuditRow] = ()
    """One row for each kind of site."""


class MetricCard(Record):
    """The number that a behavior is measured by."""

    name: Text
    """Name, such as `logit_diff`."""
    unit: Text
    """Unit, such as `nat`."""
    sign: Literal[1, -1] = 1
    """+1: larger means more of the behavior; -1: smaller does."""
    doc: Text
    """What it measures, in one sentence."""


class SplitCount(Record):
    """Size of one split of the task."""

    name: Literal["explore", "calibrate", "confirm"]
    """Name of the split."""
    n_pairs: Count
    """Number of prompt pairs."""
    n_clusters: Count
    """Number of independent clusters."""


class TaskCard(Record):
    """The behavior under study."""

    name: Text
    """Name of the task."""
    description: Text
    """What the model is asked to do, in a sentence or two."""
    digest: Sha256
    """SHA-256 of the pairs."""
    metric: MetricCard
    """How the behavior is measured."""
    splits: Many[SplitCount]
    """Sizes of the splits; they are disjoint by cluster."""
    roles: Many[Text] = ()
    """Named positions of the prompts."""


class BehaviorCheck(Record):
    """Whether the model shows the behavior at all. Per-example values are in the order of `clusters`."""

    split: Text
    """Split that was measured."""
    clean: Many[float]
    """Metric on each clean prompt, in the metric's unit."""
    corrupt: Many[float]
    """Metric on each corrupt prompt, in the metric's unit."""
    clusters: Many[Text]
    """Cluster of each example."""
    accuracy: Share
    """Share of clean prompts on which the answer beats the foil."""
    gap: Estimate
    """Mean of clean minus corrupt, in the metric's unit, with its interval over clusters."""
    threshold: float
    """Least gap that counts as behavior, in the metric's unit."""
    passed: bool
    """True when the model shows the behavior; otherwise nothing was studied."""

    @model_validator(mode="after")
    def _same_length(self) -> "BehaviorCheck":
        counts = {len(self.clean), len(self.corrupt), len(self.clusters)}
        if len(counts) != 1 or counts == {0}:
            raise ValueError(
                f"{len(self.clean)} clean values, {len(self.corrupt)} corrupt values, {len(self.clusters)} clusters: "
                "one of each for every example, and at least one example"
            )
        return self


class NamedPosition(Record):
    """A token that the task gives a name."""

    role: Text
    """Its name, such as `subject`."""
    index: Count
    """Index of the token in the clean prompt, 0 for the first."""


class Example(Record):
    """One prompt pair, token by token."""

    id: Text
    """Name of the pair."""
    cluster: Text
    """Its cluster."""
    split: Text
    """Its split."""
    clean: Many[str]
    """Tokens of the clean prompt, one display string each."""
    corrupt: Many[str]
    """Tokens of the corrupt prompt."""
    differing: Many[Count]
    """Indices at which the two prompts have different tokens."""
    positions: Many[NamedPosition] = ()
    """Named positions."""
    answer: Text
    """Text of the right continuation."""
    foil: Text
    """Text of the wrong one."""
    clean_metric: float
    """Metric on the clean prompt, in the metric's unit."""
    corrupt_metric: float
    """Metric on the corrupt prompt, in the metric's unit."""

    @model_validator(mode="after")
    def _aligned(self) -> "Example":
        if len(self.clean) != len(self.corrupt):
            raise ValueError(f"pair {self.id!r}: {len(self.clean)} clean and {len(self.corrupt)} corrupt tokens")
        beyond = [index for index in (*self.differing, *(p.index for p in self.positions)) if index >= len(self.clean)]
        if beyond:
            raise ValueError(f"pair {self.id!r}: token {beyond[0]} does not exist, it has {len(self.clean)}")
        return self


class EffectMap(Record):
    """Effects on a grid, such as layers by named positions or layers by heads."""

    title: Text
    """Heading of the figure."""
    sentence: Text
    """What it shows and how to read it."""
    unit: Text
    """Unit of the values, such as `share of the clean-corrupt gap`."""
    row_axis: Text
    """What the rows are, such as `layer`."""
    column_axis: Text
    """What the columns are, such as `position` or `head`."""
    rows: Many[Text]
    """Row labels, the input side first."""
    columns: Many[Text]
    """Column labels."""
    values: Many[Many[float]]
    """Mean effect of each cell, one tuple a row, in `unit`."""
    half_widths: Many[Many[float]] | None = None
    """Half width of each cell's interval, in `unit`; None when there is no interval."""
    n_examples: Count
    """Number of prompt pairs behind each cell."""

    @model_validator(mode="after")
    def _rectangular(self) -> "EffectMap":
        if not self.rows or not self.columns:
            raise ValueError(f"map {self.title!r} has no cells; leave it out instead")
        for name, table in (("values", self.values), ("half_widths", self.half_widths)):
            if table is not None and [len(row) for row in table] != [len(self.columns)] * len(self.rows):
                raise ValueError(
                    f"map {self.title!r}: {name} must be {len(self.rows)} rows of {len(self.columns)} numbers"
                )
        return self


class LabelledEffect(Record):
    """The effect of one component."""

    label: Text
    """Name of the component, such as `mlp_out.3`."""
    value: float
    """Mean effect."""
    half_width: float | None = None
    """Half width of its interval; None when there is no interval."""


class EffectSeries(Record):
    """Effects of a row of components, such as the MLPs from the first layer to the last."""

    title: Text
    """Heading of the figure."""
    sentence: Text
    """What it shows and how to read it."""
    unit: Text
    """Unit of the values."""
    items: Annotated[tuple[LabelledEffect, ...], Strict(False), Field(min_length=1)]
    """The components in order."""


class AttributionPoint(Record):
    """A component's estimated effect beside its exact one."""

    label: Text
    """Name of the component, such as `z.1.h3`."""
    estimate: float
    """Effect by attribution, in `unit`."""
    exact: float
    """Effect by patching, in `unit`."""


class Attribution(Record):
    """How well the gradient's estimate agrees with exact patching."""

    title: Text
    """Heading of the figure."""
    sentence: Text
    """What it shows and how to read it."""
    unit: Text
    """Unit of both axes."""
    correlation: Annotated[float, Field(ge=-1.0, le=1.0)] | None = None
    """Pearson correlation over the points; None when it is not defined."""
    points: Annotated[tuple[AttributionPoint, ...], Strict(False), Field(min_length=1)]
    """One point a component."""


class AttentionExample(Record):
    """The attention pattern of one head on one prompt."""

    id: Text
    """Name of the prompt."""
    tokens: Many[str]
    """Its tokens, one display string each."""
    weights: Many[Many[Share]]
    """Attention from each query token (row) to each key token (column); rows sum to one."""

    @model_validator(mode="after")
    def _square(self) -> "AttentionExample":
        if not self.tokens or [len(row) for row in self.weights] != [len(self.tokens)] * len(self.tokens):
            raise ValueError(f"pattern of {self.id!r} must be {len(self.tokens)} rows of {len(self.tokens)} weights")
        return self


class AttentionHead(Record):
    """A head whose pattern is shown."""

    site: Text
    """Its site, such as `pattern.1.h3`."""
    sentence: Text
    """Why it is shown, or what it does."""
    examples: Annotated[tuple[AttentionExample, ...], Strict(False), Field(min_length=1)]
    """A few prompts."""


class TopToken(Record):
    """A token and its probability."""

    token: str
    """Display string."""
    prob: Share
    """Probability, 0 to 1."""


class LensLayer(Record):
    """What one layer's residual stream would predict."""

    label: Text
    """The site read, such as `resid_post.3`."""
    metric: Estimate
    """Task metric of the read-out, in the metric's unit."""
    answer_prob: Share
    """Mean probability of the answer."""
    foil_prob: Share
    """Mean probability of the foil."""
    top: Many[TopToken] = ()
    """Likeliest tokens on the shown example, the likeliest first."""


class LensReadout(Record):
    """The logit lens at the answer position."""

    sentence: Text
    """What it shows and how to read it."""
    n_examples: Count
    """Number of prompts behind the means."""
    layers: Annotated[tuple[LensLayer, ...], Strict(False), Field(min_length=1)]
    """One entry a layer, the input side first."""
    example: Text | None = None
    """The prompt whose top tokens are shown."""
    answer: str | None = None
    """That prompt's answer token."""


class Check(Record):
    """A control that must come out before a verdict counts."""

    name: Text
    """Name, such as `placebo`."""
    value: float
    """What was measured, in `unit`."""
    unit: Text
    """Unit of `value`."""
    rule: Text
    """What it had to be, such as `exactly 0`."""
    passed: bool
    """Whether it was."""


class PredictionCard(Record):
    """One numeric prediction of a claim, and what came of it."""

    name: Text
    """Kind of prediction, such as `Necessary`."""
    sentence: Text
    """The prediction in words."""
    unit: Text
    """Unit of the estimate, the controls and the minimum."""
    direction: Literal["at_least", "at_most"]
    """Side of `minimum` on which the estimate must lie."""
    minimum: float
    """The bound that was fixed beforehand."""
    estimate: Estimate
    """Effect of the subject, with its interval over clusters."""
    cluster_means: Many[float] = ()
    """The subject's effect in each cluster."""
    controls: Many[float] = ()
    """Effect of each matched control."""
    control_p: Share | None = None
    """Share of controls that did at least as well, counting the subject as one; None without controls."""
    n_examples: Count
    """Number of prompt pairs."""
    n_clusters: Count
    """Number of independent clusters."""
    verdict: VerdictName
    """Verdict of this prediction alone."""
    reason: str = ""
    """Why, in numbers."""
    would_change: str = ""
    """What would change this prediction's verdict."""


class WorstExample(Record):
    """A prompt on which a claim did worst."""

    id: Text
    """Name of the pair."""
    cluster: Text
    """Its cluster."""
    text: str
    """The clean prompt."""
    prediction: Text
    """The prediction that it speaks against."""
    value: float
    """Effect on this example, in the prediction's unit."""


class ClaimCard(Record):
    """A claim with its verdict."""

    id: Text
    """Short name, unique in the report."""
    sentence: Text
    """What is claimed."""
    subject: Annotated[tuple[Text, ...], Strict(False), Field(min_length=1)]
    """Sites of the components that the claim is about."""
    verdict: VerdictName
    """The claim's verdict."""
    reason: Text
    """Why the verdict is what it is."""
    would_change: Text
    """What would change the verdict."""
    predictions: Annotated[tuple[PredictionCard, ...], Strict(False), Field(min_length=1)]
    """All must hold."""
    checks: Many[Check] = ()
    """Placebo and positive control; when one fails the verdict is invalid."""
    worst: Many[WorstExample] = ()
    """Examples that speak most against the claim."""
    alpha: Share
    """Error rate of each test, a share."""
    search: Count
    """Number of components that were looked at before this claim was written."""
    plan: Sha256
    """SHA-256 of the frozen claim."""
    result: Text
    """Name of the artifact that holds the raw result, per example."""


class PlanSummary(Record):
    """What the study cost."""

    explain: Text
    """The planner's own account."""
    passes: float | None = None
    """Forward passes' worth of computation that was done."""
    naive_passes: float | None = None
    """Forward passes of one plain pass for each run."""
    seconds: float | None = None
    """Wall clock of the whole study, in seconds."""


class Rerun(Record):
    """How to get the same report again."""

    command: Text
    """The command line."""
    python: Text
    """The Python that does the same."""
    note: str = ""
    """What may differ on another machine."""


class Environment(Record):
    """Where the study ran. Also written as `environment.json`."""

    created: Text
    """Time of writing, UTC, ISO 8601."""
    cutaway: Text
    """Version of cutaway."""
    python: Text
    """Version of Python."""
    torch: Text
    """Version of torch."""
    transformers: Text
    """Version of transformers."""
    platform: Text
    """Operating system and processor."""
    device: Text
    """Device of the computation."""
    threads: Count
    """Threads of the computation."""
    seed: int
    """Seed of every random choice."""
    packages: dict[str, str] = Field(default_factory=dict)
    """Versions of further packages."""


class StudyReport(Record):
    """Everything that the page of a study shows."""

    title: Text
    """Title of the report."""
    sentence: Text
    """What was found, in one sentence."""
    model: ModelCard
    """The model."""
    task: TaskCard
    """The behavior."""
    behavior: BehaviorCheck
    """Whether the model shows it."""
    examples: Many[Example] = ()
    """A few prompt pairs."""
    position_map: EffectMap | None = None
    """Effect of the residual stream, layer by named position."""
    head_map: EffectMap | None = None
    """Effect of each head, layer by head."""
    mlps: EffectSeries | None = None
    """Effect of each MLP."""
    attribution: Attribution | None = None
    """Estimated effects beside exact ones."""
    attention: Many[AttentionHead] = ()
    """Patterns of the named heads."""
    lens: LensReadout | None = None
    """Logit lens at the answer position."""
    claims: Many[ClaimCard] = ()
    """Claims with their verdicts."""
    plan: PlanSummary | None = None
    """What it cost."""
    rerun: Rerun
    """How to run it again."""
    limits: Many[Text] = ()
    """What the report does not show."""
    environment: Environment
    """Where it ran."""

    @model_validator(mode="after")
    def _one_name_a_claim(self) -> "StudyReport":
        names = [claim.id for claim in self.claims]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two claims are called {twice!r}; each needs a name of its own")
        return self


class ArtifactEntry(Record):
    """One file of raw data."""

    name: Text
    """Name that the study refers to it by."""
    path: Text
    """File inside the report's folder: `artifacts/<sha256>.<extension>`."""
    sha256: Sha256
    """SHA-256 of its bytes."""
    n_bytes: Count
    """Size in bytes."""


class Manifest(Record):
    """The content of `report.json`."""

    format: Literal["cutaway-report"] = FORMAT
    """Name of the format."""
    version: Literal[1] = SCHEMA_VERSION
    """Version of the format."""
    study: StudyReport
    """What the page shows."""
    artifacts: Many[ArtifactEntry] = ()
    """Raw data, by name."""
    files: dict[Text, Sha256]
    """SHA-256 of `report.html`, `claims.jsonl` and `environment.json`."""
    renderer: Sha256
    """SHA-256 of the program text that drew the page."""
    digest: Sha256
    """SHA-256 of the canonical JSON of all other fields."""
