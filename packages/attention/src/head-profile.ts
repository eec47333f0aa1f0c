import {
  type AttentionSample,
  CoppiceError,
  type LimitableLayer,
  limitableLayers,
  type MoeModel,
  type RunEmitter,
  type Runner,
  type SpanRule,
  spanTokens,
  startProgress,
  throwIfAborted,
  type WeightReader,
} from "@coppice/core";
import { embedTokens } from "./embed-tokens.js";
import { layerHeads } from "./layer-heads.js";
import { LayerProbe, type ProbedLayer } from "./layer-probe.js";
import { outputGram } from "./output-gram.js";
import { type ProfileRows, profileRows } from "./profile-samples.js";
import { type ProfileWeights, readProfileWeights } from "./profile-weights.js";
import { spanErrors } from "./span-errors.js";

export interface ProfileRequest {
  readonly model: MoeModel;
  readonly runner: Runner;
  readonly weights: WeightReader;
  /** Texts per length. */
  readonly samples: readonly (readonly AttentionSample[])[];
  readonly rules: readonly SpanRule[];
  readonly blockSize: number;
  readonly sinks: number;
  /** Positions of each text. */
  readonly rows: number;
  /** What positions of prompts count together, where those of responses count 1. */
  readonly promptWeight: number;
  /** Measures what heads are worth; absent: their output errors are taken as they are. */
  readonly probe?: { readonly per: "layer" | "head"; readonly samples: number };
  readonly emitter?: RunEmitter;
  readonly signal?: AbortSignal;
}

export interface HeadProfile {
  /** [K][H, R], what the rule loses of a length's texts; H are the KV heads of layers that plans can limit. */
  readonly losses: readonly Float64Array[];
  /** [H], loss (nats of divergence per predicted token) per relative output error; 1 where it was not measured. */
  readonly sensitivity: Float64Array;
}

interface Text {
  readonly tokens: Int32Array;
  /** [tokens, hidden], input of the layer; absent for the first. */
  hidden: Float32Array | undefined;
  readonly rows: ProfileRows;
}

/**
 * What every rule loses in every KV head, without gradients: the error of the layer's output, relative to the output,
 * e(h, r) = Σ_i w_i ‖W_O (o_i(r) - o_i)‖² / Σ_i w_i ‖y_i‖², of which MoA's influence (arXiv 2406.14909, equation 3) is the first order
 * but for the gradient; instead of that comes a factor per layer or head, the divergence of predictions with that layer or
 * head limited, over its e. Layers go one after the other, with the inputs of all texts held.
 */
export async function profileHeads(request: ProfileRequest): Promise<HeadProfile> {
  const { model, runner, weights, samples, rules, signal } = request;
  const limited = limitableLayers(model);
  const heads = limited.reduce((sum, { attention }) => sum + attention.kvHeads, 0);
  const texts = samples.map((group) =>
    group.map((sample): Text => {
      const rows = profileRows(sample, request.rows, request.promptWeight);
      return { tokens: sample.tokens, hidden: undefined, rows };
    }),
  );
  const probe = request.probe && (await LayerProbe.start(request, request.probe));
  const losses = texts.map(() => new Float64Array(heads * rules.length));
  const sensitivity = new Float64Array(heads).fill(1);
  const tell = startProgress(request.emitter, "profiling attention", "layers of texts");
  const steps = texts.flat().length * limited.length;
  let done = 0;
  let place = 0;
  for (const layer of model.layers) {
    const isLimited = limited.some(({ index }) => index === layer.index);
    if (!isLimited) {
      for (const text of texts.flat()) text.hidden = await passLayer(runner, layer.index, text, signal);
      continue;
    }
    const own = layer as LimitableLayer;
    const read = await readProfileWeights(own, weights);
    const { heads: all, kvHeads, headDim } = own.attention;
    const width = (all / kvHeads) * headDim;
    const grams = Array.from({ length: kvHeads }, (_, head) =>
      outputGram(read.output, all * headDim, head * width, width),
    );
    // Only the first layer reads embeddings, which are the largest matrix of small models.
    const table = own.index === 0 ? await weights.read(model.embedding) : undefined;
    const work = { request, layer: own, read, grams, table };
    const hidden = texts[0]?.map((text) => text.hidden) ?? [];
    const probed = probe && (await probe.measure(own, place, hidden));
    for (const [k, group] of texts.entries()) {
      for (const text of group) {
        throwIfAborted(signal, `profiling attention of layer ${layer.index}`);
        const errors = await textErrors(work, text, probed && k === 0 ? probed : undefined);
        const into = losses[k] as Float64Array;
        for (let i = 0; i < errors.length; i++)
          into[place * rules.length + i] =
            (into[place * rules.length + i] as number) + (errors[i] as number) / group.length;
        tell(++done, steps);
      }
    }
    probed?.finish(sensitivity);
    place += own.attention.kvHeads;
  }
  if (probe) weigh(losses, evened(sensitivity), rules.length);
  return { losses, sensitivity };
}

interface LayerWork {
  readonly request: ProfileRequest;
  readonly layer: LimitableLayer;
  readonly read: ProfileWeights;
  /** [kvHeads][G * headDim, G * headDim], see `spanErrors`. */
  readonly grams: readonly Float64Array[];
  /** [vocab, hidden], for the first layer. */
  readonly table: Float32Array | undefined;
}

/** Relative errors of all rules on one text, [kvHeads, R]; the text moves on to the next layer. */
async function textErrors(
  { request, layer, read, grams, table }: LayerWork,
  text: Text,
  probed: ProbedLayer | undefined,
): Promise<Float64Array> {
  const { model, runner, rules, signal } = request;
  const { attention, index } = layer;
  const { heads, kvHeads, headDim, scale } = attention;
  const { positions, weights: rowWeights } = text.rows;
  const hidden = text.hidden ?? embedTokens(model, table as Float32Array, text.tokens);
  const { queries, keys, values } = layerHeads(hidden, positions, layer, read);
  text.hidden = await passLayer(runner, index, text, signal);
  const group = heads / kvHeads;
  const width = group * headDim;
  const length = text.tokens.length;
  const windowOf = (rule: SpanRule) => spanTokens(request, rule, length) - request.sinks;
  const all = [...rules, ...(probed?.rules ?? [])];
  const windows = [...new Set(all.map(windowOf))].sort((a, b) => a - b);
  const relative = new Float64Array(kvHeads * rules.length);
  const whole = new Float64Array(positions.length * heads * headDim);
  const sums: Float64Array[] = [];
  for (let head = 0; head < kvHeads; head++) {
    const { errors, outputs } = spanErrors(
      {
        rows: positions,
        queries: queries[head] as Float32Array,
        keys: keys[head] as Float32Array,
        values: values[head] as Float32Array,
        queryHeads: group,
        keyDim: headDim,
        valueDim: headDim,
        scale,
        ...(read.sinkLogits && {
          sinkLogits: read.sinkLogits.subarray(head * group, (head + 1) * group),
        }),
      },
      { sinks: request.sinks, windows },
      grams[head] as Float64Array,
    );
    positions.forEach((_, row) => {
      whole.set(outputs.subarray(row * width, (row + 1) * width), row * heads * headDim + head * width);
    });
    const byWindow = new Float64Array(windows.length);
    for (let i = 0; i < errors.length; i++) {
      const w = i % windows.length;
      byWindow[w] =
        (byWindow[w] as number) + (rowWeights[(i - w) / windows.length] as number) * (errors[i] as number);
    }
    sums.push(byWindow);
  }
  const size = outputSize(read.output, whole, rowWeights, heads * headDim);
  for (let head = 0; head < kvHeads; head++) {
    const error = (rule: SpanRule) =>
      ((sums[head] as Float64Array)[windows.indexOf(windowOf(rule))] as number) / size;
    rules.forEach((rule, r) => {
      relative[head * rules.length + r] = error(rule);
    });
    probed?.addErrors(head, probed.rules.map(error));
  }
  return relative;
}

/** Σ_i w_i ‖W_O o_i‖² */
function outputSize(
  output: Float32Array,
  whole: Float64Array,
  rowWeights: Float64Array,
  columns: number,
): number {
  let size = 0;
  rowWeights.forEach((weight, row) => {
    let square = 0;
    for (let at = 0; at < output.length; at += columns) {
      let y = 0;
      for (let i = 0, from = row * columns; i < columns; i++)
        y += (output[at + i] as number) * (whole[from + i] as number);
      square += y * y;
    }
    size += weight * square;
  });
  return size || 1;
}

async function passLayer(
  runner: Runner,
  layer: number,
  { tokens, hidden }: Text,
  signal: AbortSignal | undefined,
): Promise<Float32Array> {
  const to = layer + 1;
  const { boundaries } = await runner.run({
    sequences: [tokens],
    from: layer,
    to,
    boundaries: [to],
    ...(hidden && { hidden }),
    ...(signal && { signal }),
  });
  const next = boundaries.get(to);
  if (next) return next;
  throw new CoppiceError("COPPICE_BACKEND_FAILED", `the backend returned no output of layer ${layer}`);
}

/** Factors are measured on little: none is taken to be more than ten times, or less than a tenth of, the middle one. */
function evened(sensitivity: Float64Array): Float64Array {
  const middle = sensitivity.slice().sort()[Math.floor(sensitivity.length / 2)] as number;
  for (let i = 0; i < sensitivity.length; i++)
    sensitivity[i] = Math.min(10 * middle, Math.max(middle / 10, sensitivity[i] as number));
  return sensitivity;
}

function weigh(losses: readonly Float64Array[], sensitivity: Float64Array, rules: number): void {
  for (const own of losses)
    for (let i = 0; i < own.length; i++)
      own[i] = (own[i] as number) * (sensitivity[Math.floor(i / rules)] as number);
}
