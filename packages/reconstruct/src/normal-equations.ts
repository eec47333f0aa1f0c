import type { MatrixProducts } from "./products.js";
import { solveRidge } from "./ridge-solver.js";

/** What the fitted experts are to put out: see `FitChoice.target`. */
export type FitTarget = "stream" | "layer";

export const fitTargets: readonly FitTarget[] = ["stream", "layer"];

/** Slots that are fitted together: their hidden units together give a system of at most so many unknowns. */
const mostUnknowns = 4096;

/** What one batch of tokens shows of a layer. */
export interface LayerBatch {
  readonly tokens: number;
  readonly topK: number;
  /** [tokens, k]; -1 for a choice that is skipped. */
  readonly slots: Int32Array;
  /** What multiplies the output of each choice, [tokens, k]. */
  readonly gates: Float32Array;
  /** [tokens, slots, width] */
  readonly units: Float32Array;
  /** What the layer's experts should put out more than they do, [tokens, hidden] each. */
  readonly missing: Readonly<Record<FitTarget, Float32Array>>;
  /** How much a token counts, [tokens]. */
  readonly weights: Float32Array;
}

/** A set of slots with the sums that their fit needs. */
interface Group {
  readonly slots: readonly number[];
  /** [n, n], n = slots x width; the lower triangle. */
  readonly gram: Float64Array;
  /** [hidden, n] */
  readonly right: Readonly<Record<FitTarget, Float64Array>>;
}

/**
 * The normal equations of a layer's down projections. With u_ti the hidden units of slot i on token t, g_ti its gate weight
 * and r_t what is missing, the change D_i of the slots' projections minimises
 *
 *     Σ_t w_t ‖ r_t - Σ_i g_ti D_i u_ti ‖²  +  λ Σ_i ‖D_i‖²
 *
 * Slots whose units are too many for one system are fitted in groups, each to its share Σ_{i in group} g_ti² / Σ_i g_ti²
 * of what is missing.
 */
export class NormalEquations {
  readonly #width: number;
  readonly #hidden: number;
  readonly #products: MatrixProducts;
  readonly #groups: readonly Group[];

  /** @param most unknowns per output that one system may have */
  constructor(
    size: { slots: number; width: number; hidden: number },
    products: MatrixProducts,
    most = mostUnknowns,
  ) {
    const { slots, width, hidden } = size;
    this.#width = width;
    this.#hidden = hidden;
    this.#products = products;
    this.#groups = groupedSlots(slots, width, most).map((own) => {
      const n = own.length * width;
      return {
        slots: own,
        gram: new Float64Array(n * n),
        right: { stream: new Float64Array(hidden * n), layer: new Float64Array(hidden * n) },
      };
    });
  }

  async add(batch: LayerBatch): Promise<void> {
    for (const group of this.#groups) await this.#addGroup(group, batch);
  }

  /**
   * The changes of all slots' projections, [slots, hidden, width].
   * @param ridge λ as a share of the mean of the diagonal of the Gram matrix
   */
  solve(target: FitTarget, ridge: number): Float32Array {
    const [width, hidden] = [this.#width, this.#hidden];
    const slots = this.#groups.reduce((sum, group) => sum + group.slots.length, 0);
    const deltas = new Float32Array(slots * hidden * width);
    for (const { slots, gram, right } of this.#groups) {
      const n = slots.length * width;
      const solved = solveRidge(gram, n, right[target], ridge);
      slots.forEach((slot, place) => {
        for (let row = 0; row < hidden; row++) {
          const from = row * n + place * width;
          deltas.set(solved.subarray(from, from + width), (slot * hidden + row) * width);
        }
      });
    }
    return deltas;
  }

  async #addGroup(group: Group, batch: LayerBatch): Promise<void> {
    const n = group.slots.length * this.#width;
    const chosen = group.slots.map((slot) => choices(batch, slot));
    for (const [place, own] of chosen.entries()) {
      if (own.tokens.length === 0) continue;
      const rows = own.tokens.length;
      const units = this.#units(batch, group.slots[place] as number, own, undefined);
      for (const target of fitTargets) {
        const missing = this.#missing(batch, target, group, own.tokens);
        // [hidden, width], so that the columns of the system lie one after the other.
        const product = await this.#products.transposed({
          a: missing,
          b: units,
          rows,
          p: this.#hidden,
          q: this.#width,
        });
        addBlock(group.right[target], product, {
          rows: this.#hidden,
          columns: this.#width,
          stride: n,
          at: place * this.#width,
        });
      }
      for (let other = 0; other <= place; other++) {
        const common = other === place ? undefined : new Set((chosen[other] as Choices).tokens);
        const both = common ? filterChoices(own, common) : own;
        if (both.tokens.length === 0) continue;
        const a = common ? this.#units(batch, group.slots[place] as number, both, undefined) : units;
        const b = common
          ? this.#units(batch, group.slots[other] as number, chosen[other] as Choices, new Set(both.tokens))
          : units;
        const product = await this.#products.transposed({
          a,
          b,
          rows: both.tokens.length,
          p: this.#width,
          q: this.#width,
        });
        addBlock(group.gram, product, {
          rows: this.#width,
          columns: this.#width,
          stride: n,
          at: place * this.#width * n + other * this.#width,
        });
      }
    }
  }

  /** √w g u of the tokens that chose a slot (and are in `only`), [tokens, width]. */
  #units(
    { units, weights, slots, topK }: LayerBatch,
    slot: number,
    { tokens, gates }: Choices,
    only: ReadonlySet<number> | undefined,
  ): Float32Array {
    const width = this.#width;
    const slotCount = units.length / (slots.length / topK) / width;
    const kept = only ? tokens.flatMap((token, i) => (only.has(token) ? [i] : [])) : tokens.map((_, i) => i);
    const out = new Float32Array(kept.length * width);
    kept.forEach((i, row) => {
      const token = tokens[i] as number;
      const factor = (gates[i] as number) * Math.sqrt(weights[token] as number);
      const from = (token * slotCount + slot) * width;
      for (let u = 0; u < width; u++) out[row * width + u] = factor * (units[from + u] as number);
    });
    return out;
  }

  /** √w times the group's share of what is missing, [tokens, hidden]. */
  #missing(batch: LayerBatch, target: FitTarget, { slots }: Group, tokens: readonly number[]): Float32Array {
    const hidden = this.#hidden;
    const values = batch.missing[target];
    const out = new Float32Array(tokens.length * hidden);
    tokens.forEach((token, row) => {
      const factor = Math.sqrt(batch.weights[token] as number) * groupShare(batch, token, slots);
      const from = token * hidden;
      for (let h = 0; h < hidden; h++) out[row * hidden + h] = factor * (values[from + h] as number);
    });
    return out;
  }
}

/** Slots in the groups that are fitted together: as many as have `most` hidden units, at least one. */
export function groupedSlots(slots: number, width: number, most = mostUnknowns): number[][] {
  const together = Math.max(1, Math.min(slots, Math.floor(most / width)));
  return Array.from({ length: Math.ceil(slots / together) }, (_, g) =>
    Array.from({ length: Math.min(together, slots - g * together) }, (_, i) => g * together + i),
  );
}

/** Tokens that chose a slot, ascending, and its gate weights there. */
interface Choices {
  readonly tokens: readonly number[];
  readonly gates: readonly number[];
}

function choices({ slots, gates, topK }: LayerBatch, slot: number): Choices {
  const found = { tokens: [] as number[], gates: [] as number[] };
  slots.forEach((chosen, i) => {
    if (chosen !== slot) return;
    found.tokens.push(Math.floor(i / topK));
    found.gates.push(gates[i] as number);
  });
  return found;
}

function filterChoices({ tokens, gates }: Choices, kept: ReadonlySet<number>): Choices {
  const places = tokens.flatMap((token, i) => (kept.has(token) ? [i] : []));
  return {
    tokens: places.map((i) => tokens[i] as number),
    gates: places.map((i) => gates[i] as number),
  };
}

function groupShare({ slots, gates, topK }: LayerBatch, token: number, group: readonly number[]): number {
  let [own, all] = [0, 0];
  for (let i = token * topK; i < (token + 1) * topK; i++) {
    const slot = slots[i] as number;
    if (slot < 0) continue;
    const square = (gates[i] as number) ** 2;
    all += square;
    if (group.includes(slot)) own += square;
  }
  return all > 0 ? own / all : 0;
}

function addBlock(
  sums: Float64Array,
  block: Float32Array,
  { rows, columns, stride, at }: { rows: number; columns: number; stride: number; at: number },
): void {
  for (let row = 0; row < rows; row++) {
    const to = at + row * stride;
    for (let column = 0; column < columns; column++) {
      sums[to + column] = (sums[to + column] as number) + (block[row * columns + column] as number);
    }
  }
}
