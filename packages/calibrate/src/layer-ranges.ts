import {
  attentionTensors,
  CoppiceError,
  elementCount,
  type LayerRange,
  type MoeModel,
  mlpTensors,
  normTensors,
  routerTensors,
  storedBytes,
  type TensorRef,
} from "@coppice/core";
import type { Collection } from "./collection.js";
import { statisticsBytes } from "./statistics-size.js";

/** What running a stretch of layers takes. */
export interface RangeCost {
  /** Bytes of its tensors in the checkpoint, those of the embedding or the head included where they are read. */
  readonly stored: number;
  /** Parameters that are held. */
  readonly held: number;
  /** Parameters that one token is multiplied with. */
  readonly applied: number;
}

/** @param all True when every token runs all experts */
export function rangeCost(model: MoeModel, { from, to }: LayerRange, all: boolean): RangeCost {
  const cost = { stored: 0, held: 0, applied: 0 };
  const add = (tensors: readonly TensorRef[], applied = 1) => {
    for (const tensor of tensors) {
      const parameters = elementCount(tensor.shape);
      cost.stored += storedBytes(tensor);
      cost.held += parameters;
      cost.applied += applied * parameters;
    }
  };
  for (const { attention, attentionNorm, feedForward, feedForwardNorm } of model.layers.slice(from, to)) {
    add([...attentionTensors(attention), ...normTensors(attentionNorm), ...normTensors(feedForwardNorm)]);
    if (feedForward.kind === "dense") add(mlpTensors(feedForward.mlp));
    if (feedForward.kind !== "moe") continue;
    const { experts, router, shared, sharedGate } = feedForward;
    add(routerTensors(feedForward));
    add([...(shared ? mlpTensors(shared) : []), ...(sharedGate ? [sharedGate] : [])]);
    add(experts.flatMap(mlpTensors), all ? 1 : router.topK / experts.length);
  }
  // Rows of the embedding are looked up, and the head does not run.
  if (from === 0) add([model.embedding], 0);
  if (to === model.layers.length) {
    add([...normTensors(model.finalNorm), ...(model.tied && from === 0 ? [] : [model.head])], 0);
  }
  return cost;
}

/** Memory of a process that has nothing loaded yet: Node, the native library of a backend, and buffers for reading. */
const idleBytes = 300e6;
/** What all experts compute of some tokens is shown in pieces of at most this size, and copied once. */
const everyBytes = 2 ** 27;

/** Most bytes of memory that running these layers takes: float32 weights, one batch, and statistics; an estimate. */
export function rangeMemory(collection: Collection, range: LayerRange): number {
  const { model, most, content, allExperts } = collection;
  const layers = model.layers.slice(range.from, range.to);
  const each = layers.map(({ attention, feedForward }) => {
    const scores = attention.kind === "other" ? 0 : 2 * attention.heads * most.sequence ** 2;
    if (feedForward.kind !== "moe") return scores;
    const { experts, router } = feedForward;
    const width = experts[0]?.width ?? 0;
    return scores + most.batch * (router.topK * (3 * width + 2 * model.hiddenSize) + experts.length);
  });
  const values = rangeCost(model, range, false).held + 12 * most.batch * model.hiddenSize + Math.max(...each);
  const sums = layers.reduce((sum, { index }) => sum + statisticsBytes(model, content, index), 0);
  // Sums of one part beside those of all.
  return idleBytes + 4 * values + 2 * sums + (allExperts !== "none" ? everyBytes : 0);
}

/**
 * Stretches of consecutive layers from `from` on, each of as many as fit; one layer each where no limit is given.
 * @throws COPPICE_USAGE when not even one fits
 */
export function layerRanges(collection: Collection, from: number, memory: number | undefined): LayerRange[] {
  const ranges: LayerRange[] = [];
  for (let begin = from; begin < collection.end; ) {
    let to = begin + 1;
    if (memory !== undefined) {
      const least = rangeMemory(collection, { from: begin, to });
      if (least > memory) throw tooLarge(begin, least, memory);
      while (to < collection.end && rangeMemory(collection, { from: begin, to: to + 1 }) <= memory) to++;
    }
    ranges.push({ from: begin, to });
    begin = to;
  }
  return ranges;
}

function tooLarge(layer: number, bytes: number, memory: number): CoppiceError {
  const size = (value: number) => `${(value / 1e9).toFixed(1)} GB`;
  return new CoppiceError(
    "COPPICE_USAGE",
    `layer ${layer} alone takes about ${size(bytes)} of memory, the limit is ${size(memory)}`,
    { hint: "allow more memory, or shorten the sequences", details: { layer, bytes, memory } },
  );
}
