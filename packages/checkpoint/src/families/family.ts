import type { ActivationSpec, RouterSpec } from "@coppice/core";
import type { ConfigReader } from "../config.js";

/** What always holds, or what a config key says. */
export type Flag = boolean | { readonly key: string; readonly fallback: boolean };

/** Names of the matrices of an expert or dense MLP, without `.weight`. */
export interface MlpNames {
  /** Absent where the MLP has no gate (Nemotron-H). */
  readonly gate?: string;
  readonly up: string;
  readonly down: string;
}

/** Names of the tensors that have one entry per expert. */
export interface RouterNames {
  /** [experts, hidden] */
  readonly router: string;
  /** Part of the logits, [experts]. */
  readonly routerBias?: string;
  /** Added to the scores for the choice alone, [experts] or [1, experts]. */
  readonly correction?: string;
}

/** How the experts of a layer lie in the files. */
export type ExpertLayout = SeparateLayout | StackedLayout;

/** Every matrix of every expert is a tensor. */
export interface SeparateLayout extends RouterNames {
  readonly kind: "separate";
  readonly experts: MlpNames;
}

/** Tensors that hold all experts of a layer, one after the other. Names are whole names. */
export interface StackedLayout extends RouterNames {
  readonly kind: "fused";
  /** Gate and up of each expert together; or else `up`, with or without `gate`, on their own. */
  readonly gateUp?: string;
  readonly gate?: string;
  readonly up?: string;
  readonly down: string;
  /**
   * How an expert's matrices lie. `rows`: as linear layers have them, [outputs, inputs], gate rows before up rows;
   * `columns`: [inputs, outputs], gate columns before up columns (Llama-4); `interleaved`: as `columns`, gate in even
   * and up in odd ones (GPT-OSS); `either`: `rows` or `columns`, as the shapes say.
   */
  readonly order: "rows" | "columns" | "interleaved" | "either";
  /** True: only `down` lies as `columns` (DBRX). */
  readonly downColumns?: true;
  /** True: every matrix has a bias, in a tensor of its name and `_bias` (GPT-OSS). */
  readonly biases?: true;
  /** True: experts are not an axis; their rows follow one another, [experts * width, hidden] (DBRX). */
  readonly flat?: true;
}

/** What attention of single layers may have. */
export interface LayerAttention {
  readonly slidingWindow?: number;
  readonly chunk?: number;
  /** False: positions do not rotate. */
  readonly rotates?: boolean;
  readonly temperature?: { readonly floor: number; readonly scale: number };
  /** True: queries and keys go through a norm over each head that has no weight. */
  readonly plainNorm?: boolean;
}

export interface GroupedAttention {
  readonly kind: "gqa";
  /** Biases of query, key and value. */
  readonly bias: Flag;
  readonly outputBias: Flag;
  readonly norms?: {
    readonly query: string;
    readonly key: string;
    readonly over: "head" | "projection";
    readonly when?: Flag;
  };
  /** True: norms come after the rotation. */
  readonly normAfterRotary?: true;
  readonly interleaved?: true;
  /** The part of each head that rotates, where the family lets configs choose (`partial_rotary_factor`). */
  readonly partialRotary?: number;
  /** True: `short_mscale` and `long_mscale` of a longrope config are the factors on cos and sin (Phi-3.5-MoE). */
  readonly statedMagnitudes?: true;
  /** Key of the limit on queries, keys and values. */
  readonly clip?: string;
  readonly sinks?: string;
  /** Factor on q·k; absent: 1 / sqrt(headDim). */
  readonly scale?: (config: ConfigReader) => number;
  /** Absent: all layers see everything before them. */
  readonly perLayer?: (config: ConfigReader) => (layer: number) => LayerAttention;
}

/** Multi-head latent attention; its dimensions are settings of the config (`kv_lora_rank` and others). */
export interface LatentAttention {
  readonly kind: "mla";
  readonly bias: Flag;
  readonly interleaved: Flag;
}

/** Token mixers that Coppice does not run: what they are, for messages. */
export interface OtherAttention {
  readonly kind: "other";
  readonly name: string;
}

/** The settings of a router that a config decides. */
export type RouterSettings = Partial<
  Pick<RouterSpec, "normalize" | "scale" | "groups" | "scalesInput" | "jitter">
>;

/** An MLP that every token goes through beside the routed experts. */
export interface SharedDescription {
  readonly names: MlpNames;
  /** Its width; 0: the model has none. */
  readonly width: (config: ConfigReader, layer: number) => number;
  readonly bias?: Flag;
  /** Name of the projection [1, hidden] whose sigmoid multiplies its output. */
  readonly gate?: string;
}

/** Values of the stock implementation for keys that a config may leave out. */
export interface ConfigDefaults {
  readonly epsilon: number;
  readonly theta: number;
  readonly contextLength: number;
  /** Absent: as many as heads. */
  readonly kvHeads?: number;
  /** Absent: hidden size / heads. */
  readonly headDim?: number;
  readonly topK?: number;
  readonly tied?: boolean;
  /** `rope_parameters` of a config without any. */
  readonly rotary?: Readonly<Record<string, unknown>>;
}

/** Where a family keeps layers for multi-token prediction, whose experts follow the plan of the last MoE layer. */
export interface MtpDescription {
  /** What stands in place of `layers.` in the names of such a layer; `layers`: decoder layers after the last one. */
  readonly at: "layers" | readonly string[];
}

/**
 * A model family as data: where its tensors and settings are, and which of the known computations it uses.
 * In tensor names `{l}` stands for the layer and `{e}` for the expert. Lists of config keys are in the order of
 * preference; surgery rewrites every one that is present.
 */
export interface FamilyDescription {
  /** The `model_type` of its stock implementation. */
  readonly name: string;
  /** Other `model_type`s of the same computation and names. */
  readonly aliases?: readonly string[];
  /** How people write it. */
  readonly title: string;
  /** Paper or model card. */
  readonly reference: string;
  /** Why no backend runs it; absent: it is executed. */
  readonly editOnly?: string;
  readonly config: {
    readonly experts: readonly string[];
    readonly topK: readonly string[];
    /** Number of expert groups, and of those a token may use. */
    readonly groups?: readonly string[];
    readonly groupsKept?: readonly string[];
    /** Limits on tokens per expert at several stages (ERNIE). */
    readonly capacity?: readonly string[];
    /** Rows of an expert's gate and up. */
    readonly expertWidth: readonly string[];
    /** Rows of a dense layer's gate and up, where the family has such layers. */
    readonly denseWidth?: readonly string[];
    readonly hiddenSize?: readonly string[];
    readonly contextLength?: readonly string[];
    /** Inputs of experts where it is not the hidden size (Nemotron-H). */
    readonly expertInput?: readonly string[];
    readonly defaults: ConfigDefaults;
  };
  /** Number of decoder layers; absent: `num_hidden_layers`. */
  readonly layerCount?: (config: ConfigReader) => number;
  /** What all names of the language model begin with, but for the head. Default `model.`. */
  readonly body?: string;
  readonly tensors: {
    readonly embedding: string;
    readonly finalNorm: string;
    readonly head: string;
    readonly attentionNorm: string;
    readonly feedForwardNorm: string;
    readonly dense?: MlpNames;
  };
  readonly norm: "rms" | "layer";
  readonly attention: GroupedAttention | LatentAttention | OtherAttention;
  /** The layouts in use, the stock one of published files first. */
  readonly layouts: readonly ExpertLayout[];
  readonly router: {
    readonly order: RouterSpec["order"];
    readonly settings: (config: ConfigReader) => RouterSettings;
  };
  readonly activation?: ActivationSpec;
  readonly shared?: SharedDescription;
  /** Biases of dense MLPs. */
  readonly denseBias?: Flag;
  readonly headBias?: Flag;
  /** Factors on embeddings, residual branches and logits. */
  readonly factors?: (config: ConfigReader) => { embedding: number; residual: number; logits: number };
  /** Which layers have experts; absent: all. */
  readonly moeLayers?: (config: ConfigReader) => (layer: number) => boolean;
  readonly mtp?: MtpDescription;
  readonly notes: FamilyNotes;
}

/** What the reference documentation says about a family beyond its data. */
export interface FamilyNotes {
  /** How tokens choose experts, as one sentence without its full stop. */
  readonly routing: string;
  /** What pruning keeps exact, and what it cannot. */
  readonly exact: string;
}

export function flag(config: ConfigReader, value: Flag | undefined): boolean {
  if (value === undefined || typeof value === "boolean") return value === true;
  return config.boolean(value.key, value.fallback);
}
