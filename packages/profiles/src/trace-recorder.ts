import {
  CoppiceError,
  type KvCache,
  type LayerTap,
  type MoeModel,
  type Plan,
  type Runner,
} from "@coppice/core";
import { noExpert, type RoutingTrace, type TraceLayer, traceHeader } from "./routing-trace.js";
import { withTap } from "./with-tap.js";

export interface TraceRecorderOptions {
  /** What is recorded, for people. */
  readonly name: string;
  /**
   * The plan that every run is under, or whose experts the runner holds: slots are written down as the experts of the
   * whole model whose router rows they answer to.
   */
  readonly plan?: Plan;
}

/** Tokens of one sequence so far. */
interface Sequence {
  prefill: number;
  decode: number;
  /** By MoE layer, [tokens, k] of each run. */
  readonly routes: Uint16Array[][];
}

/** Writes down what routers choose while a runner works. */
export class TraceRecorder {
  readonly #header: ReturnType<typeof traceHeader>;
  readonly #name: string;
  readonly #planned: boolean;
  /** Layer -> its place among the MoE layers. */
  readonly #places: ReadonlyMap<number, number>;
  /** By layer: expert in every slot, where a plan says so. */
  readonly #experts: ReadonlyMap<number, readonly number[]>;
  readonly #sequences: Sequence[] = [];
  readonly #cached = new WeakMap<KvCache, Sequence[]>();
  readonly #topK: number[] = [];

  /** @param model the whole model */
  constructor(model: MoeModel, { name, plan }: TraceRecorderOptions) {
    this.#name = name;
    this.#planned = plan !== undefined;
    this.#header = traceHeader(model);
    this.#places = new Map(this.#header.layers.map(({ layer }, place) => [layer, place]));
    this.#experts = new Map(plan?.layers.map(({ layer, experts }) => [layer, experts]));
  }

  /**
   * The runner, observed. Sequences of a run without a cache are read at once; with a cache the first run of a sequence
   * is its prefill, and what comes later its decoding. Every run must reach the last MoE layer.
   */
  watch(runner: Runner): Runner {
    const dispose = () => runner.dispose();
    return {
      model: runner.model,
      ...(runner.draws && { draws: true }),
      createCache: (sequences, attention) => runner.createCache(sequences, attention),
      dispose,
      [Symbol.asyncDispose]: dispose,
      run: async (request) => {
        const { sequences, cache } = request;
        const rows = new RunRoutes(
          sequences.reduce((sum, { length }) => sum + length, 0),
          this.#places,
        );
        const result = await runner.run(
          withTap(request, ["routing"], (layer) => rows.add(layer, this.#experts)),
        );
        this.#check(rows);
        const known = cache && this.#cached.get(cache);
        const own = known ?? this.#open(sequences.length);
        if (cache && !known) this.#cached.set(cache, own);
        this.#take(rows, own, sequences, known ? "decode" : "prefill");
        return result;
      },
    };
  }

  /**
   * Runs sequences of which the first tokens are a prompt and the others stand for what the model would write after it:
   * routed as if they were decoded one by one.
   * @param prompts tokens of each sequence that are its prompt
   * @throws those of `Runner.run`
   */
  async read(
    runner: Runner,
    sequences: readonly Int32Array[],
    prompts: readonly number[],
    options: { readonly plan?: Plan; readonly signal?: AbortSignal } = {},
  ): Promise<void> {
    const rows = new RunRoutes(
      sequences.reduce((sum, { length }) => sum + length, 0),
      this.#places,
    );
    const to = 1 + Math.max(...this.#places.keys());
    await runner.run(
      withTap({ sequences, to, ...options }, ["routing"], (layer) => rows.add(layer, this.#experts)),
    );
    this.#check(rows);
    const own = this.#open(sequences.length);
    this.#take(rows, own, sequences, "prefill");
    own.forEach((sequence, i) => {
      sequence.decode = Math.max(0, sequence.prefill - (prompts[i] as number));
      sequence.prefill -= sequence.decode;
    });
  }

  /** Everything so far. @throws COPPICE_USAGE when nothing was recorded */
  finish(): RoutingTrace {
    if (this.#sequences.length === 0) {
      throw new CoppiceError("COPPICE_USAGE", "nothing was run, so there is no trace");
    }
    return {
      ...this.#header,
      name: this.#name,
      ...(this.#planned && { planned: true }),
      sequences: this.#sequences.map(({ prefill, decode }) => ({ prefill, decode })),
      layers: this.#header.layers.map((layer, place): TraceLayer => {
        const parts = this.#sequences.flatMap(({ routes }) => routes[place] as Uint16Array[]);
        const routes = new Uint16Array(parts.reduce((sum, { length }) => sum + length, 0));
        let at = 0;
        for (const part of parts) {
          routes.set(part, at);
          at += part.length;
        }
        return { ...layer, topK: this.#topK[place] as number, routes };
      }),
    };
  }

  /** Refuses a run that does not show what the trace needs, before anything of it is kept. */
  #check(rows: RunRoutes): void {
    for (let place = 0; place < this.#places.size; place++) {
      const topK = rows.topK(place);
      const before = this.#topK[place] ?? topK;
      if (topK === 0 || topK !== before) {
        throw new CoppiceError(
          "COPPICE_USAGE",
          `MoE layer ${place} showed ${topK} choices per token, ${before || "at least 1"} were expected`,
          { hint: "record runs through all MoE layers, all under the same plan" },
        );
      }
      this.#topK[place] = topK;
    }
  }

  #open(count: number): Sequence[] {
    const opened = Array.from({ length: count }, () => ({
      prefill: 0,
      decode: 0,
      routes: this.#header.layers.map(() => []),
    }));
    this.#sequences.push(...opened);
    return opened;
  }

  #take(
    rows: RunRoutes,
    own: readonly Sequence[],
    sequences: readonly Int32Array[],
    phase: "prefill" | "decode",
  ): void {
    let start = 0;
    sequences.forEach(({ length }, i) => {
      const sequence = own[i] as Sequence;
      sequence[phase] += length;
      sequence.routes.forEach((parts, place) => {
        parts.push(rows.of(place, start, start + length));
      });
      start += length;
    });
  }
}

/** The choices of one run, by MoE layer. */
class RunRoutes {
  readonly #tokens: number;
  readonly #places: ReadonlyMap<number, number>;
  readonly #layers: { readonly topK: number; readonly routes: Uint16Array }[] = [];

  constructor(tokens: number, places: ReadonlyMap<number, number>) {
    this.#tokens = tokens;
    this.#places = places;
  }

  add(tap: LayerTap, experts: ReadonlyMap<number, readonly number[]>): void {
    const { layer, tokens, topK, rows, slots, gates } = tap;
    const place = this.#places.get(layer);
    if (place === undefined || !slots || !gates) return;
    this.#layers[place] ??= { topK, routes: new Uint16Array(this.#tokens * topK).fill(noExpert) };
    const { routes } = this.#layers[place];
    const names = experts.get(layer);
    for (let token = 0; token < tokens; token++) {
      for (let choice = 0; choice < topK; choice++) {
        const slot = slots[token * topK + choice] as number;
        // Skipped choices have it, too.
        if (gates[token * topK + choice] === 0) continue;
        routes[(rows[token] as number) * topK + choice] = names?.[slot] ?? slot;
      }
    }
  }

  topK(place: number): number {
    return this.#layers[place]?.topK ?? 0;
  }

  /** [tokens, k] from row `begin` to before `end`. */
  of(place: number, begin: number, end: number): Uint16Array {
    const { topK, routes } = this.#layers[place] as { topK: number; routes: Uint16Array };
    return routes.slice(begin * topK, end * topK);
  }
}
