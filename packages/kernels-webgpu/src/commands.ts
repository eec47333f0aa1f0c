import type { Gpu } from "./gpu.js";
import type { GpuBuffer } from "./gpu-buffer.js";
import { bindGroup, type Kernel, paramBytes } from "./kernel.js";

/** Dispatches whose uniform values fit in the ring; more are submitted in between. */
const slots = 1024;

/**
 * Records kernels and copies in order. What one dispatch wrote, the next one sees. Uniform values lie in one ring buffer that
 * is written before each submission, so that recording a token allocates nothing.
 */
export class Commands {
  readonly #gpu: Gpu;
  readonly #uniforms: GPUBuffer;
  readonly #bytes = new ArrayBuffer(slots * paramBytes);
  readonly #words = {
    u32: new Uint32Array(this.#bytes),
    i32: new Int32Array(this.#bytes),
    f32: new Float32Array(this.#bytes),
  };
  readonly #offset = new Uint32Array(1);
  #used = 0;
  #encoder: GPUCommandEncoder | undefined;
  #pass: GPUComputePassEncoder | undefined;
  #timestamps: GPUComputePassTimestampWrites | undefined;

  constructor(gpu: Gpu, uniforms: GPUBuffer) {
    this.#gpu = gpu;
    this.#uniforms = uniforms;
  }

  /**
   * Runs a kernel in `x` by `y` by `z` workgroups; none when one of them is 0.
   * @param buffers in the order of the kernel's bindings, all different where one of them is written
   */
  dispatch<P extends string>(
    kernel: Kernel<P>,
    buffers: readonly GpuBuffer[],
    params: Readonly<Record<NoInfer<P>, number>>,
    x: number,
    y = 1,
    z = 1,
  ): void {
    if (x * y * z === 0) return;
    if (this.#used === slots) this.submit();
    const word = (this.#used * paramBytes) / 4;
    for (let i = 0; i < kernel.params.length; i++) {
      const { name, type } = kernel.params[i] as { name: P; type: "u32" | "i32" | "f32" };
      this.#words[type][word + i] = params[name];
    }
    const pass = this.#computePass();
    pass.setPipeline(kernel.pipeline);
    this.#offset[0] = this.#used * paramBytes;
    pass.setBindGroup(0, bindGroup(this.#gpu.device, kernel, this.#uniforms, buffers), this.#offset, 0, 1);
    pass.dispatchWorkgroups(x, y, z);
    this.#used++;
  }

  /** Copies bytes between two buffers; offsets and sizes are multiples of 4. */
  copy(from: GpuBuffer, fromByte: number, to: GpuBuffer | GPUBuffer, toByte: number, bytes: number): void {
    if (bytes === 0) return;
    this.#endPass();
    const target = "handle" in to ? to.handle : to;
    this.#open().copyBufferToBuffer(from.handle, fromByte, target, toByte, bytes);
  }

  /** The next compute pass begins and ends by writing the time to query 0 and 1 of the set. */
  timePass(querySet: GPUQuerySet): void {
    this.#endPass();
    this.#timestamps = { querySet, beginningOfPassWriteIndex: 0, endOfPassWriteIndex: 1 };
  }

  /** Runs commands of the encoder itself, such as resolving queries. */
  encode(work: (encoder: GPUCommandEncoder) => void): void {
    this.#endPass();
    work(this.#open());
  }

  /** Hands everything that was recorded to the device, and does not wait for it. */
  submit(): void {
    this.#endPass();
    if (!this.#encoder) return;
    const { queue } = this.#gpu.device;
    if (this.#used > 0) queue.writeBuffer(this.#uniforms, 0, this.#bytes, 0, this.#used * paramBytes);
    queue.submit([this.#encoder.finish()]);
    this.#encoder = undefined;
    this.#used = 0;
  }

  #open(): GPUCommandEncoder {
    this.#encoder ??= this.#gpu.device.createCommandEncoder();
    return this.#encoder;
  }

  #computePass(): GPUComputePassEncoder {
    if (!this.#pass) {
      const timestampWrites = this.#timestamps;
      this.#pass = this.#open().beginComputePass(timestampWrites && { timestampWrites });
      this.#timestamps = undefined;
    }
    return this.#pass;
  }

  #endPass(): void {
    this.#pass?.end();
    this.#pass = undefined;
  }
}
