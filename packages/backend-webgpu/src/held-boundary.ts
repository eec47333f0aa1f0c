import { CoppiceError, type HeldBoundary } from "@coppice/core";
import type { Gpu, GpuBuffer } from "@coppice/kernels-webgpu";

/** Buffers without a use that are kept for the next boundary of their size; a search lets one go for each that it takes. */
const mostSpare = 64;

/** The input of a layer on the device. */
export class DeviceBoundary implements HeldBoundary {
  readonly owner: object;
  readonly layer: number;
  readonly bytes: number;
  readonly #release: (buffer: GpuBuffer) => void;
  #buffer: GpuBuffer | undefined;

  constructor(owner: object, layer: number, buffer: GpuBuffer, release: (buffer: GpuBuffer) => void) {
    this.owner = owner;
    this.layer = layer;
    this.bytes = buffer.bytes;
    this.#buffer = buffer;
    this.#release = release;
  }

  /** @throws COPPICE_BACKEND_DISPOSED */
  get buffer(): GpuBuffer {
    if (this.#buffer) return this.#buffer;
    throw new CoppiceError("COPPICE_BACKEND_DISPOSED", "a held boundary was disposed before a run used it");
  }

  dispose(): void {
    const buffer = this.#buffer;
    this.#buffer = undefined;
    if (buffer) this.#release(buffer);
  }
}

/** The boundaries of a runner. Their buffers are used again: what was recorded before reads the old values. */
export class BoundaryStore {
  readonly #owner: object;
  readonly #gpu: Gpu;
  readonly #spare: GpuBuffer[] = [];
  readonly #used = new Set<GpuBuffer>();
  #disposed = false;

  constructor(owner: object, gpu: Gpu) {
    this.#owner = owner;
    this.#gpu = gpu;
  }

  /** Records a copy of [tokens, hidden] float32 of `from`. */
  hold(layer: number, from: GpuBuffer, byte: number, bytes: number): DeviceBoundary {
    const at = this.#spare.findIndex((buffer) => buffer.bytes === bytes);
    const [buffer = this.#gpu.buffer(bytes, "a held boundary")] = at < 0 ? [] : this.#spare.splice(at, 1);
    this.#used.add(buffer);
    this.#gpu.commands.copy(from, byte, buffer, 0, bytes);
    return new DeviceBoundary(this.#owner, layer, buffer, (done) => this.#release(done));
  }

  /** Records a copy into `to`. @throws as `check` does */
  restore(held: HeldBoundary, layer: number, to: GpuBuffer, byte: number, bytes: number): void {
    this.#gpu.commands.copy(this.check(held, layer, bytes), 0, to, byte, bytes);
  }

  /** @throws COPPICE_USAGE when a boundary is of another runner, layer or batch, COPPICE_BACKEND_DISPOSED */
  check(held: HeldBoundary, layer: number, bytes: number): GpuBuffer {
    if (held instanceof DeviceBoundary && held.owner === this.#owner) {
      // Buffers are rounded up to whole vectors.
      if (held.layer === layer && held.bytes - bytes >= 0 && held.bytes - bytes < 16) return held.buffer;
      throw new CoppiceError(
        "COPPICE_USAGE",
        `the held boundary is of layer ${held.layer} and takes ${held.bytes} bytes; ` +
          `the run begins at layer ${layer} and needs ${bytes}`,
        { hint: "give it to runs of the sequences that it was made of" },
      );
    }
    throw new CoppiceError("COPPICE_USAGE", "the held boundary was made by another runner", {
      hint: "give it to the runner that made it",
    });
  }

  dispose(): void {
    this.#disposed = true;
    for (const buffer of [...this.#spare.splice(0), ...this.#used]) buffer.dispose();
    this.#used.clear();
  }

  #release(buffer: GpuBuffer): void {
    this.#used.delete(buffer);
    if (!this.#disposed && this.#spare.length < mostSpare) this.#spare.push(buffer);
    else buffer.dispose();
  }
}
