import { type RotarySpec, rotaryFrequencies, rotaryRegime } from "@coppice/core";
import type { Gpu, GpuBuffer } from "@coppice/kernels-webgpu";

/** cos and sin for the tokens of a run, and which row of them each token has. */
export interface RotaryRows {
  readonly table: GpuBuffer;
  /** [tokens] u32 */
  readonly rows: Uint32Array;
}

/** A sequence of a run: its tokens, and those that came before. */
export interface Stretch {
  readonly tokens: number;
  readonly past: number;
}

/**
 * cos and sin of positions on the device, by kind of rotation. Angles are rounded to float32 on the host, as the reference
 * implementations have them, so that a position turns by the same angle on every device.
 */
export class RotaryTables {
  readonly #gpu: Gpu;
  readonly #tables = new Map<string, { buffer: GpuBuffer; end: number }>();

  constructor(gpu: Gpu) {
    this.#gpu = gpu;
  }

  rowsFor(spec: RotarySpec, stretches: readonly Stretch[]): RotaryRows {
    const key = JSON.stringify(spec);
    const regimes = stretches.map(({ tokens, past }) => rotaryRegime(spec, past + tokens));
    const longest = Math.max(...stretches.map(({ tokens, past }) => past + tokens));
    const positions = new Uint32Array(stretches.reduce((sum, { tokens }) => sum + tokens, 0));
    let row = 0;
    for (const { tokens, past } of stretches) {
      for (let i = 0; i < tokens; i++) positions[row++] = past + i;
    }
    if (regimes.every((regime) => regime === 0)) {
      const known = this.#tables.get(key);
      if (known && known.end >= longest) return { table: known.buffer, rows: positions };
      const end = Math.max(longest, 2 * (known?.end ?? 0), 32);
      const all = Array.from({ length: end }, (_, position) => position);
      const table = this.#replace(key, turns(spec, longest, all), end);
      return { table, rows: positions };
    }
    // Frequencies follow the length of each sequence: rows of this run alone.
    const parts = stretches.map(({ tokens, past }) =>
      turns(
        spec,
        past + tokens,
        Array.from({ length: tokens }, (_, i) => past + i),
      ),
    );
    const values = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0));
    let at = 0;
    for (const part of parts) {
      values.set(part, at);
      at += part.length;
    }
    const table = this.#replace(`${key} of a run`, values, 0);
    return { table, rows: positions.map((_, token) => token) };
  }

  dispose(): void {
    for (const { buffer } of this.#tables.values()) buffer.dispose();
    this.#tables.clear();
  }

  #replace(key: string, values: Float32Array, end: number): GpuBuffer {
    const known = this.#tables.get(key);
    if (known && known.buffer.bytes >= values.byteLength) {
      this.#gpu.write(known.buffer, values);
      this.#tables.set(key, { buffer: known.buffer, end });
      return known.buffer;
    }
    known?.buffer.dispose();
    const buffer = this.#gpu.upload(values, "rotary angles");
    this.#tables.set(key, { buffer, end });
    return buffer;
  }
}

/** [positions, dimensions / 2, 2] cos and sin for a sequence of `length` positions. */
function turns(spec: RotarySpec, length: number, positions: readonly number[]): Float32Array {
  const { frequencies, factor } = rotaryFrequencies(spec, length);
  const half = frequencies.length;
  const out = new Float32Array(positions.length * half * 2);
  positions.forEach((position, row) => {
    for (let i = 0; i < half; i++) {
      const angle = Math.fround(position * (frequencies[i] as number));
      out[2 * (row * half + i)] = Math.fround(Math.cos(angle)) * factor;
      out[2 * (row * half + i) + 1] = Math.fround(Math.sin(angle)) * factor;
    }
  });
  return out;
}
