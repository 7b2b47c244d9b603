// Generated from report/schema.py by report/declarations.py: the data that the components are fed with.

export type VerdictName = "supported" | "refuted" | "inconclusive" | "invalid";

/** One file of raw data. */
export interface ArtifactEntry {
  /** Name that the study refers to it by. */
  readonly name: string;
  /** File inside the report's folder: `artifacts/<sha256>.<extension>`. */
  readonly path: string;
  /** SHA-256 of its bytes. */
  readonly sha256: string;
  /** Size in bytes. */
  readonly n_bytes: number;
}

/** The attention pattern of one head on one prompt. */
export interface AttentionExample {
  /** Name of the prompt. */
  readonly id: string;
  /** Its tokens, one display string each. */
  readonly tokens: readonly string[];
  /** Attention from each query token (row) to each key token (column); rows sum to one. */
  readonly weights: readonly (readonly number[])[];
}

/** A head whose pattern is shown. */
export interface AttentionHead {
  /** Its site, such as `pattern.1.h3`. */
  readonly site: string;
  /** Why it is shown, or what it does. */
  readonly sentence: string;
  /** A few prompts. */
  readonly examples: readonly AttentionExample[];
}

/** How well the gradient's estimate agrees with exact patching. */
export interface Attribution {
  /** Heading of the figure. */
  readonly title: string;
  /** What it shows and how to read it. */
  readonly sentence: string;
  /** Unit of both axes. */
  readonly unit: string;
  /** Pearson correlation over the points; None when it is not defined. */
  readonly correlation: number | null;
  /** One point a component. */
  readonly points: readonly AttributionPoint[];
}

/** A component's estimated effect beside its exact one. */
export interface AttributionPoint {
  /** Name of the component, such as `z.1.h3`. */
  readonly label: string;
  /** Effect by attribution, in `unit`. */
  readonly estimate: number;
  /** Effect by patching, in `unit`. */
  readonly exact: number;
}

/** What the self-check found about one kind of site. */
export interface AuditRow {
  /** Kind of site, such as `resid_post`. */
  readonly site: string;
  /** Proven on the loaded weights; found by structure only; or refused. */
  readonly status: "verified" | "structural" | "refused";
  /** The check that was made, or the reason of the refusal. */
  readonly detail: string;
  /** Largest absolute difference that the check left, in the site's own unit; None where nothing was compared. */
  readonly error: number | null;
}

/** Whether the model shows the behavior at all. Per-example values are in the order of `clusters`. */
export interface BehaviorCheck {
  /** Split that was measured. */
  readonly split: string;
  /** Metric on each clean prompt, in the metric's unit. */
  readonly clean: readonly number[];
  /** Metric on each corrupt prompt, in the metric's unit. */
  readonly corrupt: readonly number[];
  /** Cluster of each example. */
  readonly clusters: readonly string[];
  /** Share of clean prompts on which the answer beats the foil. */
  readonly accuracy: number;
  /** Mean of clean minus corrupt, in the metric's unit, with its interval over clusters. */
  readonly gap: Estimate;
  /** Least gap that counts as behavior, in the metric's unit. */
  readonly threshold: number;
  /** True when the model shows the behavior; otherwise nothing was studied. */
  readonly passed: boolean;
}

/** A control that must come out before a verdict counts. */
export interface Check {
  /** Name, such as `placebo`. */
  readonly name: string;
  /** What was measured, in `unit`. */
  readonly value: number;
  /** Unit of `value`. */
  readonly unit: string;
  /** What it had to be, such as `exactly 0`. */
  readonly rule: string;
  /** Whether it was. */
  readonly passed: boolean;
}

/** A claim with its verdict. */
export interface ClaimCard {
  /** Short name, unique in the report. */
  readonly id: string;
  /** What is claimed. */
  readonly sentence: string;
  /** Sites of the components that the claim is about. */
  readonly subject: readonly string[];
  /** The claim's verdict. */
  readonly verdict: VerdictName;
  /** Why the verdict is what it is. */
  readonly reason: string;
  /** What would change the verdict. */
  readonly would_change: string;
  /** All must hold. */
  readonly predictions: readonly PredictionCard[];
  /** Placebo and positive control; when one fails the verdict is invalid. */
  readonly checks: readonly Check[];
  /** Examples that speak most against the claim. */
  readonly worst: readonly WorstExample[];
  /** Error rate of each test, a share. */
  readonly alpha: number;
  /** Number of components that were looked at before this claim was written. */
  readonly search: number;
  /** SHA-256 of the frozen claim. */
  readonly plan: string;
  /** Name of the artifact that holds the raw result, per example. */
  readonly result: string;
}

/** Effects on a grid, such as layers by named positions or layers by heads. */
export interface EffectMap {
  /** Heading of the figure. */
  readonly title: string;
  /** What it shows and how to read it. */
  readonly sentence: string;
  /** Unit of the values, such as `share of the clean-corrupt gap`. */
  readonly unit: string;
  /** What the rows are, such as `layer`. */
  readonly row_axis: string;
  /** What the columns are, such as `position` or `head`. */
  readonly column_axis: string;
  /** Row labels, the input side first. */
  readonly rows: readonly string[];
  /** Column labels. */
  readonly columns: readonly string[];
  /** Mean effect of each cell, one tuple a row, in `unit`. */
  readonly values: readonly (readonly number[])[];
  /** Half width of each cell's interval, in `unit`; None when there is no interval. */
  readonly half_widths: readonly (readonly number[])[] | null;
  /** Number of prompt pairs behind each cell. */
  readonly n_examples: number;
}

/** Effects of a row of components, such as the MLPs from the first layer to the last. */
export interface EffectSeries {
  /** Heading of the figure. */
  readonly title: string;
  /** What it shows and how to read it. */
  readonly sentence: string;
  /** Unit of the values. */
  readonly unit: string;
  /** The components in order. */
  readonly items: readonly LabelledEffect[];
}

/** Where the study ran. Also written as `environment.json`. */
export interface Environment {
  /** Time of writing, UTC, ISO 8601. */
  readonly created: string;
  /** Version of cutaway. */
  readonly cutaway: string;
  /** Version of Python. */
  readonly python: string;
  /** Version of torch. */
  readonly torch: string;
  /** Version of transformers. */
  readonly transformers: string;
  /** Operating system and processor. */
  readonly platform: string;
  /** Device of the computation. */
  readonly device: string;
  /** Threads of the computation. */
  readonly threads: number;
  /** Seed of every random choice. */
  readonly seed: number;
  /** Versions of further packages. */
  readonly packages: Readonly<Record<string, string>>;
}

/** A mean with its interval. */
export interface Estimate {
  /** The estimate, in the unit of what it belongs to. */
  readonly value: number;
  /** Lower bound of the interval; None where the data do not bound it. */
  readonly low: number | null;
  /** Upper bound of the interval; None where the data do not bound it. */
  readonly high: number | null;
  /** Confidence level of the interval, a share. */
  readonly level: number;
}

/** One prompt pair, token by token. */
export interface Example {
  /** Name of the pair. */
  readonly id: string;
  /** Its cluster. */
  readonly cluster: string;
  /** Its split. */
  readonly split: string;
  /** Tokens of the clean prompt, one display string each. */
  readonly clean: readonly string[];
  /** Tokens of the corrupt prompt. */
  readonly corrupt: readonly string[];
  /** Indices at which the two prompts have different tokens. */
  readonly differing: readonly number[];
  /** Named positions. */
  readonly positions: readonly NamedPosition[];
  /** Text of the right continuation. */
  readonly answer: string;
  /** Text of the wrong one. */
  readonly foil: string;
  /** Metric on the clean prompt, in the metric's unit. */
  readonly clean_metric: number;
  /** Metric on the corrupt prompt, in the metric's unit. */
  readonly corrupt_metric: number;
}

/** The effect of one component. */
export interface LabelledEffect {
  /** Name of the component, such as `mlp_out.3`. */
  readonly label: string;
  /** Mean effect. */
  readonly value: number;
  /** Half width of its interval; None when there is no interval. */
  readonly half_width: number | null;
}

/** What one layer's residual stream would predict. */
export interface LensLayer {
  /** The site read, such as `resid_post.3`. */
  readonly label: string;
  /** Task metric of the read-out, in the metric's unit. */
  readonly metric: Estimate;
  /** Mean probability of the answer. */
  readonly answer_prob: number;
  /** Mean probability of the foil. */
  readonly foil_prob: number;
  /** Likeliest tokens on the shown example, the likeliest first. */
  readonly top: readonly TopToken[];
}

/** The logit lens at the answer position. */
export interface LensReadout {
  /** What it shows and how to read it. */
  readonly sentence: string;
  /** Number of prompts behind the means. */
  readonly n_examples: number;
  /** One entry a layer, the input side first. */
  readonly layers: readonly LensLayer[];
  /** The prompt whose top tokens are shown. */
  readonly example: string | null;
  /** That prompt's answer token. */
  readonly answer: string | null;
}

/** The content of `report.json`. */
export interface Manifest {
  /** Name of the format. */
  readonly format: "cutaway-report";
  /** Version of the format. */
  readonly version: 1;
  /** What the page shows. */
  readonly study: StudyReport;
  /** Raw data, by name. */
  readonly artifacts: readonly ArtifactEntry[];
  /** SHA-256 of `report.html`, `claims.jsonl` and `environment.json`. */
  readonly files: Readonly<Record<string, string>>;
  /** SHA-256 of the program text that drew the page. */
  readonly renderer: string;
  /** SHA-256 of the canonical JSON of all other fields. */
  readonly digest: string;
}

/** The number that a behavior is measured by. */
export interface MetricCard {
  /** Name, such as `logit_diff`. */
  readonly name: string;
  /** Unit, such as `nat`. */
  readonly unit: string;
  /** +1: larger means more of the behavior; -1: smaller does. */
  readonly sign: 1 | -1;
  /** What it measures, in one sentence. */
  readonly doc: string;
}

/** The model under study. */
export interface ModelCard {
  /** Name that it was loaded by. */
  readonly name: string;
  /** SHA-256 of weights and configuration. */
  readonly digest: string;
  /** Class of the module, such as `GPT2LMHeadModel`. */
  readonly architecture: string;
  /** Number of weights. */
  readonly n_parameters: number;
  /** Number of blocks. */
  readonly n_layers: number;
  /** Query heads in a layer. */
  readonly n_heads: number;
  /** Key and value heads in a layer. */
  readonly n_kv_heads: number;
  /** Width of the residual stream. */
  readonly d_model: number;
  /** Width of one head. */
  readonly d_head: number;
  /** Hidden width of the MLP; None where there is none or where it differs by layer. */
  readonly d_mlp: number | null;
  /** Size of the vocabulary. */
  readonly d_vocab: number;
  /** Number format of the weights, such as `float32`. */
  readonly dtype: string;
  /** Device that the study ran on. */
  readonly device: string;
  /** One row for each kind of site. */
  readonly audit: readonly AuditRow[];
}

/** A token that the task gives a name. */
export interface NamedPosition {
  /** Its name, such as `subject`. */
  readonly role: string;
  /** Index of the token in the clean prompt, 0 for the first. */
  readonly index: number;
}

/** What the study cost. */
export interface PlanSummary {
  /** The planner's own account. */
  readonly explain: string;
  /** Forward passes' worth of computation that was done. */
  readonly passes: number | null;
  /** Forward passes of one plain pass for each run. */
  readonly naive_passes: number | null;
  /** Wall clock of the whole study, in seconds. */
  readonly seconds: number | null;
}

/** One numeric prediction of a claim, and what came of it. */
export interface PredictionCard {
  /** Kind of prediction, such as `Necessary`. */
  readonly name: string;
  /** The prediction in words. */
  readonly sentence: string;
  /** Unit of the estimate, the controls and the minimum. */
  readonly unit: string;
  /** Side of `minimum` on which the estimate must lie. */
  readonly direction: "at_least" | "at_most";
  /** The bound that was fixed beforehand. */
  readonly minimum: number;
  /** Effect of the subject, with its interval over clusters. */
  readonly estimate: Estimate;
  /** The subject's effect in each cluster. */
  readonly cluster_means: readonly number[];
  /** Effect of each matched control. */
  readonly controls: readonly number[];
  /** Share of controls that did at least as well, counting the subject as one; None without controls. */
  readonly control_p: number | null;
  /** Number of prompt pairs. */
  readonly n_examples: number;
  /** Number of independent clusters. */
  readonly n_clusters: number;
  /** Verdict of this prediction alone. */
  readonly verdict: VerdictName;
  /** Why, in numbers. */
  readonly reason: string;
  /** What would change this prediction's verdict. */
  readonly would_change: string;
}

/** How to get the same report again. */
export interface Rerun {
  /** The command line. */
  readonly command: string;
  /** The Python that does the same. */
  readonly python: string;
  /** What may differ on another machine. */
  readonly note: string;
}

/** Size of one split of the task. */
export interface SplitCount {
  /** Name of the split. */
  readonly name: "explore" | "calibrate" | "confirm";
  /** Number of prompt pairs. */
  readonly n_pairs: number;
  /** Number of independent clusters. */
  readonly n_clusters: number;
}

/** Everything that the page of a study shows. */
export interface StudyReport {
  /** Title of the report. */
  readonly title: string;
  /** What was found, in one sentence. */
  readonly sentence: string;
  /** The model. */
  readonly model: ModelCard;
  /** The behavior. */
  readonly task: TaskCard;
  /** Whether the model shows it. */
  readonly behavior: BehaviorCheck;
  /** A few prompt pairs. */
  readonly examples: readonly Example[];
  /** Effect of the residual stream, layer by named position. */
  readonly position_map: EffectMap | null;
  /** Effect of each head, layer by head. */
  readonly head_map: EffectMap | null;
  /** Effect of each MLP. */
  readonly mlps: EffectSeries | null;
  /** Estimated effects beside exact ones. */
  readonly attribution: Attribution | null;
  /** Patterns of the named heads. */
  readonly attention: readonly AttentionHead[];
  /** Logit lens at the answer position. */
  readonly lens: LensReadout | null;
  /** Claims with their verdicts. */
  readonly claims: readonly ClaimCard[];
  /** What it cost. */
  readonly plan: PlanSummary | null;
  /** How to run it again. */
  readonly rerun: Rerun;
  /** What the report does not show. */
  readonly limits: readonly string[];
  /** Where it ran. */
  readonly environment: Environment;
}

/** The behavior under study. */
export interface TaskCard {
  /** Name of the task. */
  readonly name: string;
  /** What the model is asked to do, in a sentence or two. */
  readonly description: string;
  /** SHA-256 of the pairs. */
  readonly digest: string;
  /** How the behavior is measured. */
  readonly metric: MetricCard;
  /** Sizes of the splits; they are disjoint by cluster. */
  readonly splits: readonly SplitCount[];
  /** Named positions of the prompts. */
  readonly roles: readonly string[];
}

/** A token and its probability. */
export interface TopToken {
  /** Display string. */
  readonly token: string;
  /** Probability, 0 to 1. */
  readonly prob: number;
}

/** A prompt on which a claim did worst. */
export interface WorstExample {
  /** Name of the pair. */
  readonly id: string;
  /** Its cluster. */
  readonly cluster: string;
  /** The clean prompt. */
  readonly text: string;
  /** The prediction that it speaks against. */
  readonly prediction: string;
  /** Effect on this example, in the prediction's unit. */
  readonly value: number;
}
