import type { Gpu, GpuBuffer } from "@coppice/kernels-webgpu";

/** Work buffers by name, kept between layers and runs, so that a token allocates none. Contents are left over. */
export class Workspace {
  readonly #gpu: Gpu;
  readonly #buffers = new Map<string, GpuBuffer>();

  constructor(gpu: Gpu) {
    this.#gpu = gpu;
  }

  /** The buffer called `name` with room for so many values of 4 bytes; grows in powers of two up to what the device binds. */
  take(name: string, words: number): GpuBuffer {
    const known = this.#buffers.get(name);
    const bytes = 4 * words;
    if (known && known.bytes >= bytes) return known;
    known?.dispose();
    this.#buffers.delete(name);
    const rounded = 2 ** Math.ceil(Math.log2(Math.max(bytes, 64)));
    const buffer = this.#gpu.buffer(rounded <= this.#gpu.maxBindingBytes ? rounded : bytes, name);
    this.#buffers.set(name, buffer);
    return buffer;
  }

  /** The buffer called `name` with these values in it. */
  put(name: string, values: Float32Array | Uint32Array | Int32Array): GpuBuffer {
    const buffer = this.take(name, values.length);
    this.#gpu.write(buffer, values);
    return buffer;
  }

  dispose(): void {
    for (const buffer of this.#buffers.values()) buffer.dispose();
    this.#buffers.clear();
  }
}
