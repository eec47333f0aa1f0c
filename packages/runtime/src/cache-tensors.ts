import { CoppiceError } from "@coppice/core";
import type { CacheTensor } from "./graph-interface.js";
import type { OnnxRuntime, Tensor, Tensors } from "./onnx-runtime.js";
import type { LoadedGraph } from "./sequence.js";

/**
 * Places that buffers of keys and values have beyond so many that are needed. Attention multiplies all places, so that more of them
 * cost time in every run; a full buffer is copied, which costs some of it whatever its size. Both together are least at about this root.
 */
const sparePlaces = (needed: number) => Math.ceil(Math.sqrt(1024 + 8 * needed));

type Graph = Pick<LoadedGraph, "runtime" | "io">;

/** Those of no token. */
export function emptyPast({ runtime, io }: Graph): Tensors {
  return Object.fromEntries(
    io.cache.map((tensor) => [tensor.input, newTensor(runtime, tensor, 0, emptyData(tensor.type, 0))]),
  );
}

/**
 * A copy of the keys and values of the first `length` of `held` tokens; undefined for tensors that are not in this memory, and where
 * tokens that these would see have been given up for later ones.
 * @param past [1, heads, at least as many as are held, size] each
 */
export function firstTokens(
  { runtime, io }: Graph,
  past: Tensors,
  held: number,
  length: number,
): Tensors | undefined {
  const out: Record<string, Tensor> = {};
  for (const tensor of io.cache) {
    const { layout } = tensor;
    const values = past[tensor.input] as Tensor;
    if (values.location !== "cpu" || (length < held && held > layout.room)) return undefined;
    const filled = layout.filled(length);
    out[tensor.input] = resized(runtime, tensor, values, filled, filled);
  }
  return out;
}

/**
 * The same keys and values with room for new tokens. Those of heads that see everything grow in good time, where runs extend them in place;
 * those of heads with a span also give up places that only a prompt needed.
 * @param tokens held
 * @param added tokens of the next run
 */
export function withRoom(
  { runtime, io, inPlace }: LoadedGraph,
  past: Tensors,
  tokens: number,
  added: number,
): Tensors {
  const larger: [string, Tensor][] = [];
  for (const tensor of io.cache) {
    const values = past[tensor.input] as Tensor;
    const { layout } = tensor;
    const filled = layout.filled(tokens);
    // Runs that put out what is new alone need no room for it; it is written to where it stays.
    const behind = inPlace && io.newest !== undefined ? 0 : added;
    const needed = behind === 0 ? layout.filled(tokens + added) : filled + behind;
    const most = layout.room + behind;
    const places = values.dims[2] as number;
    if (places <= most && (!inPlace || places >= needed)) continue;
    const wanted = Math.min(needed + sparePlaces(needed), most);
    larger.push([tensor.input, resized(runtime, tensor, values, filled, wanted)]);
  }
  return larger.length === 0 ? past : { ...past, ...Object.fromEntries(larger) };
}

/**
 * Writes the keys and values of new tokens to the places where they stay.
 * @param tokens held before
 * @param newest [1, heads of all tensors, new tokens, size]
 */
export function keepNewest({ io }: Graph, past: Tensors, tokens: number, newest: Tensor): void {
  const values = newest.data as Float32Array;
  const [, , added, size] = newest.dims as [number, number, number, number];
  let from = 0;
  for (const { input, heads, layout } of io.cache) {
    const { data, dims } = past[input] as Tensor;
    const places = dims[2] as number;
    layout.ranges(tokens, tokens + added, tokens + added, (position, place, count) => {
      for (let head = 0; head < heads; head++) {
        const row = from + (head * added + position - tokens) * size;
        const to = (head * places + place) * size;
        (data as Float32Array).set(values.subarray(row, row + count * size), to);
      }
    });
    from += heads * added * size;
  }
}

/**
 * Brings new tokens from behind what was held to the places where they stay: windows of heads with a span take turns.
 * @param tokens held before
 */
export function settleTokens({ io }: Graph, past: Tensors, tokens: number, added: number): void {
  for (const { input, span, layout, heads, size } of io.cache) {
    if (!span) continue;
    const { data, dims, location } = past[input] as Tensor;
    if (location !== "cpu") {
      throw new CoppiceError(
        "COPPICE_BACKEND_UNSUPPORTED",
        `${input} lies in ${location}; caches of heads with a span are kept in this memory`,
        { hint: "leave preferredOutputLocation of the session options as it is" },
      );
    }
    const values = data as Float32Array | Uint16Array;
    const places = dims[2] as number;
    const behind = layout.filled(tokens) - tokens;
    layout.ranges(tokens, tokens + added, tokens + added, (position, place, count) => {
      const from = position + behind;
      if (from === place) return;
      for (let head = 0; head < heads; head++) {
        const first = head * places;
        values.copyWithin((first + place) * size, (first + from) * size, (first + from + count) * size);
      }
    });
  }
}

/** Tensors in this memory belong to the garbage collector, others are given back at once. */
export function disposeTensors(tensors: Tensors): void {
  for (const tensor of Object.values(tensors)) if (tensor.location !== "cpu") tensor.dispose();
}

/** The first `filled` places of every head in a tensor of as many as are wanted. */
function resized(
  runtime: OnnxRuntime,
  tensor: CacheTensor,
  values: Tensor,
  filled: number,
  wanted: number,
): Tensor {
  const { heads, size, type } = tensor;
  const data = values.data as Float32Array | Uint16Array;
  const places = values.dims[2] as number;
  const out = emptyData(type, heads * wanted * size);
  for (let head = 0; head < heads; head++) {
    const first = head * places * size;
    out.set(data.subarray(first, first + filled * size), head * wanted * size);
  }
  return newTensor(runtime, tensor, wanted, out);
}

function emptyData(type: CacheTensor["type"], length: number): Float32Array | Uint16Array {
  return type === "float32" ? new Float32Array(length) : new Uint16Array(length);
}

function newTensor(
  runtime: OnnxRuntime,
  { heads, size, type }: CacheTensor,
  places: number,
  data: Float32Array | Uint16Array,
): Tensor {
  const dims = [1, heads, places, size];
  return type === "float32"
    ? new runtime.Tensor(type, data as Float32Array, dims)
    : new runtime.Tensor(type, data as Uint16Array, dims);
}
