import { noExpert, type RoutingTrace, type TraceLayer } from "./routing-trace.js";

/** Uses of experts in the order in which a runtime needs them. An item is an expert of a layer. */
export interface TraceUses {
  /** Bytes of every item. */
  readonly bytes: Float64Array;
  /** Place of the MoE layer of every item. */
  readonly layers: Int32Array;
  readonly uses: Int32Array;
  /** Tokens before each use. */
  readonly times: Float64Array;
  /** 1 where a token is decoded, 0 in a prefill. */
  readonly decode: Uint8Array;
}

/**
 * What running the trace asks for. A prompt goes through a layer as a whole, so that each expert that any of its tokens
 * chose is used once, in the order of their indices; decoded tokens go through all layers one by one, each using its
 * experts in the order of the choice.
 */
export function traceUses({ layers, sequences }: RoutingTrace): TraceUses {
  const offsets = layers.map((_, i) => layers.slice(0, i).reduce((sum, { experts }) => sum + experts, 0));
  const items = layers.reduce((sum, { experts }) => sum + experts, 0);
  const most = layers.reduce((sum, { routes }) => sum + routes.length, 0);
  const uses = new Int32Array(most);
  const times = new Float64Array(most);
  const decode = new Uint8Array(most);
  let count = 0;
  let token = 0;
  const use = (place: number, expert: number, decoded: boolean) => {
    uses[count] = (offsets[place] as number) + expert;
    times[count] = token;
    decode[count++] = decoded ? 1 : 0;
  };
  for (const sequence of sequences) {
    const end = token + sequence.prefill;
    layers.forEach((layer, place) => {
      for (const expert of distinct(layer, token, end)) use(place, expert, false);
    });
    token = end;
    for (const last = end + sequence.decode; token < last; token++) {
      layers.forEach(({ topK, routes }, place) => {
        for (const expert of routes.subarray(token * topK, (token + 1) * topK)) {
          if (expert !== noExpert) use(place, expert, true);
        }
      });
    }
  }
  return {
    bytes: Float64Array.from(layers.flatMap(({ experts, expertBytes }) => Array(experts).fill(expertBytes))),
    layers: Int32Array.from({ length: items }, (_, item) => offsets.findLastIndex((first) => first <= item)),
    uses: uses.subarray(0, count),
    times: times.subarray(0, count),
    decode: decode.subarray(0, count),
  };
}

/** Uses of every item. */
export function useCounts({ uses, bytes }: TraceUses): Float64Array {
  const counts = new Float64Array(bytes.length);
  for (const item of uses) counts[item] = (counts[item] as number) + 1;
  return counts;
}

function distinct({ topK, routes }: TraceLayer, begin: number, end: number): number[] {
  const found = new Set(routes.subarray(begin * topK, end * topK));
  found.delete(noExpert);
  return [...found].sort((a, b) => a - b);
}
