import type { RunAttention } from "./attention-plan.js";
import type { MoeModel } from "./model.js";
import type { Plan } from "./plan.js";
import type { WeightReader } from "./tensor.js";
import type { TokenDraw } from "./token-draw.js";

/** Runs models. Created by a plugin of kind "backend". */
export interface Backend {
  readonly name: string;
  readonly capabilities: BackendCapabilities;
  /**
   * Makes the model ready to run. Weights are read through `weights`, each once.
   * @throws COPPICE_BACKEND_UNSUPPORTED when the backend cannot run this model
   */
  load(request: LoadRequest): Promise<Runner>;
}

export interface BackendCapabilities {
  /** True when `run` blocks the thread that calls it, so that callers run it in a worker. */
  readonly blocking: boolean;
  /** True when several runners may share weight memory through SharedArrayBuffer. */
  readonly sharesWeights: boolean;
  /** What runs and caches may limit attention by; the rest is refused. Absent: nothing. */
  readonly attention?: AttentionCapabilities;
  /** How its runners are kept busy; absent: as those that compute on cores of a processor, one run after another. */
  readonly pace?: WorkPace;
}

/** How a device is kept busy that computes much at once and takes its time to answer. */
export interface WorkPace {
  /** Tokens of one run that fill it; fewer take about as long. */
  readonly batchTokens: number;
  /** Runners that get more done together than one alone: workers beyond that gain nothing. */
  readonly runners: number;
}

/** What a backend knows of `RunAttention`, with and without caches. */
export interface AttentionCapabilities {
  /** Plans. */
  readonly spans: boolean;
  /** Maskers that have `prefill`. */
  readonly prefillMasks: boolean;
  /** Maskers that have `decode`. */
  readonly decodePages: boolean;
}

export interface LoadRequest {
  readonly model: MoeModel;
  readonly weights: WeightReader;
  /**
   * Layers that are made ready, so that a model larger than memory runs some layers at a time; default all. Embeddings
   * are read when `from` is 0, the head when `to` is the number of layers; a run outside of that is refused.
   */
  readonly layers?: LayerRange;
  readonly signal?: AbortSignal;
}

/** Layers `from` to `to`, without `to` itself. */
export interface LayerRange {
  readonly from: number;
  readonly to: number;
}

/** Keys and values of the tokens that a batch of sequences has seen so far. Belongs to the runner that made it. */
export interface KvCache {
  /** Tokens held per sequence. */
  readonly lengths: readonly number[];
  /** What its keys and values take now, room that is held ready included; absent where a backend does not count it. */
  readonly bytes?: number;
  dispose(): void;
}

/**
 * What a layer computed of one input, whatever the plan says of that layer: what its experts read, and what experts that a
 * plan leaves as they are gave the tokens that chose them. Runs that start at the layer with the same input take it from here
 * and add what is new, with the same results to the last bit. Belongs to the runner that made it.
 */
export interface LayerMemory {
  /** What it holds now. */
  readonly bytes: number;
  dispose(): void;
}

/**
 * The input of a layer, [T, hidden], that a runner keeps where it computes, for runs that start there. Belongs to the runner that
 * made it. Not to be disposed before the runs that were given it are over.
 */
export interface HeldBoundary {
  readonly bytes: number;
  dispose(): void;
}

/** A model that is loaded and can run under any valid plan without being rebuilt. */
export interface Runner extends AsyncDisposable {
  readonly model: MoeModel;
  /**
   * That of its backend. Runs of a runner with a pace may overlap: it takes them in their order, several together where it can,
   * and what they give does not depend on that. It also holds boundaries (`RunRequest.hold`).
   */
  readonly pace?: WorkPace;
  /** True when it draws tokens where it computes (`RunRequest.draw`); others refuse that, and draw nothing. */
  readonly draws?: boolean;
  /**
   * Runs layers `from` to `to` over a batch. Calls on one runner without a `pace` must not overlap.
   * @throws COPPICE_BACKEND_FAILED, COPPICE_BACKEND_DISPOSED, COPPICE_ABORTED
   */
  run(request: RunRequest): Promise<RunResult>;
  /**
   * An empty cache for a batch of `sequences` sequences.
   * @param attention what all runs with this cache are limited to; keys that no later token sees need not be kept
   * @throws COPPICE_USAGE, COPPICE_BACKEND_DISPOSED, and what `checkRunAttention` does
   */
  createCache(sequences: number, attention?: RunAttention): KvCache;
  /** An empty memory of a layer; absent where a backend computes everything anew. */
  createMemory?(): LayerMemory;
  dispose(): Promise<void>;
}

export interface RunRequest {
  /**
   * Token ids of every sequence; lengths may differ, none may be empty. Rows of all packed arrays below are the
   * tokens of sequence 0, then those of sequence 1, and so on, without padding; T is their number.
   */
  readonly sequences: readonly Int32Array[];
  /** A valid plan for the model; absent: the model as it is. */
  readonly plan?: Plan;
  /** First layer to run; default 0. When above 0, `hidden` holds that layer's input, [T, hidden]. */
  readonly from?: number;
  /** Layer before which to stop; default all. Logits need all layers. */
  readonly to?: number;
  readonly hidden?: Float32Array;
  /** Layers whose input is wanted, each in (from, to]; `to` itself gives the output of the last layer run. */
  readonly boundaries?: readonly number[];
  /** In place of `hidden`: what an earlier run of the same sequences held of layer `from`. */
  readonly held?: HeldBoundary;
  /** As `boundaries`, but held by the runner. Only of runners with a `pace`. */
  readonly hold?: readonly number[];
  /**
   * Where logits are wanted: per sequence positions within this run's tokens, ascending; a repeated position asks
   * for one more target at the same place. The rows R of the results are those positions, sequence by sequence.
   */
  readonly positions?: readonly Int32Array[];
  /**
   * One token per wanted position. When given, `targetLogProbs` and `argmax` are returned instead of `logits`,
   * which saves copying [R, vocab] values.
   */
  readonly targets?: readonly Int32Array[];
  /** In place of `targets`: draws a token at every wanted position, and returns `drawn` alone. Only of runners with `draws`. */
  readonly draw?: TokenDraw;
  readonly tap?: Tap;
  /** Continue the sequences that this cache holds, and extend it. Needs all layers. */
  readonly cache?: KvCache;
  /** What attention is limited to in this run; absent: as the model is. Not together with a cache, which has its own. */
  readonly attention?: RunAttention;
  /**
   * Of layer `from`. Every run with it has the same `from`, sequences, `hidden`, `attention` and distinct positions; its
   * plans differ in that layer and behind it. Not together with a tap or a cache.
   */
  readonly memory?: LayerMemory;
  readonly signal?: AbortSignal;
}

export interface RunResult {
  /** [R, vocab] */
  readonly logits?: Float32Array;
  /** [R], natural logarithm of the probability of each target. */
  readonly targetLogProbs?: Float32Array;
  /** [R], most likely token; ties go to the lower id. */
  readonly argmax?: Int32Array;
  /**
   * [R], the tokens that `RunRequest.draw` asks for: those of `drawToken`, unless a random number or a bound of the rule falls so
   * close to the end of a token's part that sums in another precision end on the other side.
   */
  readonly drawn?: Int32Array;
  /** Layer index -> [T, hidden]. */
  readonly boundaries: ReadonlyMap<number, Float32Array>;
  /** Layer index -> its input, for each layer of `hold`; whoever asked for them disposes them. */
  readonly held?: ReadonlyMap<number, HeldBoundary>;
  /**
   * Work really done: a token counts 1 in every layer whose output for it (attention and feed-forward block) was computed.
   * At most T times the layers of the run. It is less where a backend computes equal beginnings of sequences once (those
   * tokens count together as one), stops before layers that nothing asked for, or leaves out what is not wanted of the last
   * layer: a token of which only keys and values are computed there counts 0. A backend may compute everything. What comes
   * from a `memory` counts as if it were computed.
   */
  readonly tokenLayers: number;
  /**
   * Work really done in routed experts: a token counts 1 for every expert that computed its output for it. What comes from a
   * `memory` does not count. Absent where a backend does not count it: then every choice of every token is taken to run.
   */
  readonly expertTokens?: number;
}

/** What a tap can show of an MoE layer. */
export type TapField =
  | "residual"
  | "input"
  | "routerLogits"
  | "routing"
  | "expertOutputs"
  | "expertNorms"
  | "expertPeaks"
  | "output"
  | "everyOutput"
  | "everyUnit";

/** Observes MoE layers while they run. */
export interface Tap {
  readonly fields: readonly TapField[];
  /**
   * [T], 1 for the tokens (in packed order) of which `everyOutput` and `everyUnit` are wanted, which run experts that
   * the token did not choose; absent: all tokens.
   */
  readonly every?: Uint8Array;
  /** Called once per MoE layer and internal batch; the arrays may be reused after it returns. */
  onLayer(layer: LayerTap): void;
}

/** The wanted fields of one layer; those not asked for are absent. S is the number of slots, k the top-k. */
export interface LayerTap {
  readonly layer: number;
  readonly tokens: number;
  readonly topK: number;
  /** [tokens], place of each of the tokens in the packed order of the request. */
  readonly rows: Int32Array;
  /** The residual stream before the MoE block and its norm, to which its output is added, [tokens, hidden]. */
  readonly residual?: Float32Array;
  /** Input of the MoE block, after its norm, [tokens, hidden]. */
  readonly input?: Float32Array;
  /** Raw router logits of the slots, [tokens, S] ([tokens, experts] under a router map). */
  readonly routerLogits?: Float32Array;
  /** Chosen slots, [tokens, k], best selection score first; -1 for a choice that the plan skips. */
  readonly slots?: Int32Array;
  /** The coefficient that multiplies each chosen expert's output, or its input (`scalesInput`), [tokens, k]. */
  readonly gates?: Float32Array;
  /** Unweighted expert outputs f(x), [tokens, k, hidden]; f(g·x) where gate weights scale inputs; 0 where skipped. */
  readonly expertOutputs?: Float32Array;
  /** L2 norms of these outputs, [tokens, k]. */
  readonly expertNorms?: Float32Array;
  /** Largest magnitudes of the values of these outputs, [tokens, k]. */
  readonly expertPeaks?: Float32Array;
  /** What the routed experts add together, without a shared expert, [tokens, hidden]. */
  readonly output?: Float32Array;
  /** Indices into `tokens` of those that `Tap.every` asks for, ascending, M of them; with the two fields below. */
  readonly everyRows?: Int32Array;
  /**
   * Unweighted outputs of all slots, chosen or not, [M, S, hidden]. Where gate weights scale inputs, each slot gets the
   * gate weight that it would have if it were chosen.
   */
  readonly everyOutput?: Float32Array;
  /** Hidden units of all slots, what `down` multiplies, [M, S, width]. */
  readonly everyUnit?: Float32Array;
}
