import { type RotarySpec, rotaryFrequencies, rotaryRegime } from "@coppice/core";
import type { Tensor } from "onnxruntime-node";
import type { Runtime } from "./sessions.js";

interface Tables {
  readonly cos: Tensor;
  readonly sin: Tensor;
}

/**
 * cos and sin of positions under one rotary embedding, [position, padded / 2], grown by doubling; dimensions that are
 * filled in do not turn. Of the regimes (`rotaryRegime`) the first and the one that was used last are kept.
 *
 * Angles are rounded to float32 as the reference implementations do: far into a context, exact angles would differ
 * from those the model was trained with by more than the tolerance of a logit.
 */
export class RotaryTable {
  readonly #runtime: Runtime;
  readonly #rotary: RotarySpec;
  readonly #padded: number;
  #plain: Tables | undefined;
  #stretched: { readonly regime: number; readonly tables: Tables } | undefined;

  constructor(runtime: Runtime, rotary: RotarySpec, padded: number) {
    this.#runtime = runtime;
    this.#rotary = rotary;
    this.#padded = padded;
  }

  /** Tables of at least `count` positions for sequences of the regime of `length` tokens in all. */
  tables(count: number, length: number): Tables {
    const regime = rotaryRegime(this.#rotary, length);
    if (regime === 0) {
      this.#plain = this.#grown(this.#plain, count, length);
      return this.#plain;
    }
    const known = this.#stretched?.regime === regime ? this.#stretched.tables : undefined;
    const tables = this.#grown(known, count, length);
    this.#stretched = { regime, tables };
    return tables;
  }

  #grown(tables: Tables | undefined, count: number, length: number): Tables {
    const known = tables?.cos.dims[0] ?? 0;
    if (tables && known >= count) return tables;
    const { frequencies, factor } = rotaryFrequencies(this.#rotary, length);
    const positions = Math.max(count, 2 * known, 128);
    const half = this.#padded / 2;
    const cos = new Float32Array(positions * half);
    const sin = new Float32Array(positions * half);
    for (let i = 0; i < cos.length; i++) {
      const angle = Math.fround(Math.floor(i / half) * (frequencies[i % half] ?? 0));
      cos[i] = Math.cos(angle) * factor;
      sin[i] = Math.sin(angle) * factor;
    }
    const { Tensor } = this.#runtime;
    return {
      cos: new Tensor("float32", cos, [positions, half]),
      sin: new Tensor("float32", sin, [positions, half]),
    };
  }
}

/** The rotary tables of a model's layers, equal ones shared. */
export class RotaryTables {
  readonly #runtime: Runtime;
  readonly #tables = new Map<string, RotaryTable>();

  constructor(runtime: Runtime) {
    this.#runtime = runtime;
  }

  /** @param padded rotating dimensions with those that are filled in */
  of(rotary: RotarySpec, padded: number): RotaryTable {
    const key = JSON.stringify([rotary, padded]);
    let table = this.#tables.get(key);
    if (!table) {
      table = new RotaryTable(this.#runtime, rotary, padded);
      this.#tables.set(key, table);
    }
    return table;
  }
}
