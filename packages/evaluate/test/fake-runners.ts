import {
  drawToken,
  type KvCache,
  layerKey,
  type MoeModel,
  type Plan,
  type Runner,
  type RunRequest,
  type RunResult,
  throwIfAborted,
} from "@coppice/core";
import { toyModel } from "@coppice/plugin-kit";

/** A toy model description with the sizes that a test wants. */
export function fakeModel(
  sizes: Partial<Pick<MoeModel, "vocabSize" | "contextLength" | "endTokens">> = {},
): MoeModel {
  return { ...toyModel(), vocabSize: 600, contextLength: 64, endTokens: [0], ...sizes };
}

interface FakeCache extends KvCache {
  tokens: number[][];
}

export interface FakeRunner extends Runner {
  readonly requests: RunRequest[];
}

/** Logits of the next token after `ids`, the whole sequence so far. */
type NextLogits = (ids: readonly number[], plan: Plan | undefined) => Float32Array;

/** A runner whose logits come from a function; without hidden states. */
export function scriptedRunner(model: MoeModel, next: NextLogits): FakeRunner {
  return fakeRunner(model, (request, prefixes) => {
    const rows: Float32Array[] = [];
    request.sequences.forEach((ids, s) => {
      const prefix = prefixes[s] ?? [];
      for (const position of request.positions?.[s] ?? []) {
        rows.push(next([...prefix, ...ids.subarray(0, position + 1)], request.plan));
      }
    });
    return { rows, boundaries: new Map() };
  });
}

/** A scripted runner that is sure of one next token. */
export function sureRunner(model: MoeModel, next: (ids: readonly number[]) => number): FakeRunner {
  return scriptedRunner(model, (ids) => {
    const logits = new Float32Array(model.vocabSize);
    logits[next(ids)] = 20;
    return logits;
  });
}

/**
 * A runner with hidden states: every layer mixes each token with all before it, differently for every layer plan.
 * Rounded to float32 like a backend's, so that resuming at a boundary gives the same bits.
 */
export function hiddenRunner(model: MoeModel): FakeRunner {
  const size = model.hiddenSize;
  const head = Float32Array.from(
    { length: model.vocabSize * size },
    (_, i) => 4 * Math.cos(Math.floor(i / size) * 1.3 + (i % size)),
  );
  return fakeRunner(model, (request, prefixes) => {
    const { from = 0, to = model.layers.length } = request;
    const plans = new Map(request.plan?.layers.map((layer) => [layer.layer, hash(layerKey(layer))]));
    const boundaries = new Map<number, Float32Array[]>();
    const rows: Float32Array[] = [];
    let offset = 0;
    request.sequences.forEach((ids, s) => {
      const all = [...(prefixes[s] ?? []), ...ids];
      const skipped = all.length - ids.length;
      let state: Float32Array = request.hidden
        ? request.hidden.slice(offset * size, (offset + ids.length) * size)
        : Float32Array.from({ length: all.length * size }, (_, i) =>
            Math.sin((all[Math.floor(i / size)] as number) * 0.7 + (i % size)),
          );
      offset += ids.length;
      for (let layer = from; layer < to; layer++) {
        state = mix(state, size, (plans.get(layer) ?? 0.5) + layer);
        if (request.boundaries?.includes(layer + 1)) {
          boundaries.set(layer + 1, [...(boundaries.get(layer + 1) ?? []), state.slice(skipped * size)]);
        }
      }
      for (const position of request.positions?.[s] ?? []) {
        const at = (skipped + position) * size;
        const values = state.subarray(at, at + size);
        const row = new Float32Array(model.vocabSize);
        for (let i = 0; i < head.length; i++) {
          const v = Math.floor(i / size);
          row[v] = (row[v] as number) + (values[i % size] as number) * (head[i] as number);
        }
        rows.push(row);
      }
    });
    const packed = [...boundaries].map(([layer, parts]) => [layer, concat(parts)] as const);
    return { rows, boundaries: new Map(packed) };
  });
}

/** The same runner as one that draws: it gives out tokens, and no logits where a draw is asked for. */
export function drawingRunner(runner: FakeRunner): FakeRunner {
  return {
    ...runner,
    draws: true,
    async run({ draw, ...request }) {
      const result = await runner.run(request);
      const { logits, ...rest } = result;
      if (!draw) return result;
      const { vocabSize } = runner.model;
      const row = (r: number) => (logits ?? new Float32Array(0)).subarray(r * vocabSize, (r + 1) * vocabSize);
      const drawn = Int32Array.from(draw.uniforms, (uniform, r) =>
        drawToken(row(r), draw.rule, uniform, draw.seen?.[r]),
      );
      return { ...rest, drawn };
    },
  };
}

function fakeRunner(
  model: MoeModel,
  compute: (
    request: RunRequest,
    prefixes: readonly (readonly number[])[],
  ) => { rows: Float32Array[]; boundaries: Map<number, Float32Array> },
): FakeRunner {
  const requests: RunRequest[] = [];
  return {
    model,
    requests,
    async run(request): Promise<RunResult> {
      throwIfAborted(request.signal, "running");
      requests.push(request);
      const cache = request.cache as FakeCache | undefined;
      const { rows, boundaries } = compute(request, cache?.tokens ?? []);
      cache?.tokens.forEach((tokens, s) => {
        tokens.push(...(request.sequences[s] as Int32Array));
        if (tokens.length > model.contextLength) throw new Error("beyond the context");
      });
      const tokens = request.sequences.reduce((sum, { length }) => sum + length, 0);
      const tokenLayers = tokens * ((request.to ?? model.layers.length) - (request.from ?? 0));
      if (!request.targets) return { logits: concat(rows), boundaries, tokenLayers };
      const targets = request.targets.flatMap((ids) => [...ids]);
      return {
        targetLogProbs: Float32Array.from(rows, (row, r) => logProb(row, targets[r] as number)),
        argmax: Int32Array.from(rows, (row) => row.indexOf(Math.max(...row))),
        boundaries,
        tokenLayers,
      };
    },
    createCache(sequences): KvCache {
      const tokens: number[][] = Array.from({ length: sequences }, () => []);
      const cache: FakeCache = {
        tokens,
        get lengths() {
          return tokens.map(({ length }) => length);
        },
        dispose() {},
      };
      return cache;
    },
    dispose: async () => {},
    [Symbol.asyncDispose]: async () => {},
  };
}

function mix(state: Float32Array, size: number, factor: number): Float32Array {
  const out = new Float32Array(state.length);
  const sums = new Float64Array(size);
  for (let i = 0; i < state.length; i++) {
    const d = i % size;
    sums[d] = (sums[d] as number) + (state[i] as number);
    out[i] = Math.tanh(factor * (state[i] as number) + (sums[(d + 1) % size] as number) / (1 + i));
  }
  return out;
}

function hash(text: string): number {
  let value = 7;
  for (const character of text) value = (value * 31 + character.charCodeAt(0)) % 9973;
  return value / 9973;
}

function concat(parts: readonly Float32Array[]): Float32Array {
  const out = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let offset = 0;
  for (const part of parts) {
    out.set(part, offset);
    offset += part.length;
  }
  return out;
}

function logProb(row: Float32Array, target: number): number {
  const max = Math.max(...row);
  let sum = 0;
  for (const value of row) sum += Math.exp(value - max);
  return (row[target] as number) - max - Math.log(sum);
}
