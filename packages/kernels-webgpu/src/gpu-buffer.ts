let made = 0;

/** A buffer on the device, counted by the `Gpu` that made it. */
export class GpuBuffer {
  /** Different for every buffer of the program. */
  readonly id = made++;
  readonly handle: GPUBuffer;
  readonly bytes: number;
  /** What forgets the bind groups that it is in. */
  readonly bound = new Set<() => void>();
  #release: ((buffer: GpuBuffer) => void) | undefined;

  constructor(handle: GPUBuffer, bytes: number, release: (buffer: GpuBuffer) => void) {
    this.handle = handle;
    this.bytes = bytes;
    this.#release = release;
  }

  get disposed(): boolean {
    return this.#release === undefined;
  }

  /** Frees the memory, once the commands that use it are done. May be called again. */
  dispose(): void {
    this.#release?.(this);
    this.#release = undefined;
  }
}
