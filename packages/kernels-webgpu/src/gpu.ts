import { CoppiceError } from "@coppice/core";
import { Commands } from "./commands.js";
import { GpuBuffer } from "./gpu-buffer.js";
import { compileKernel, type Kernel, type KernelSource, paramBytes } from "./kernel.js";

/** Flags of GPUBufferUsage, a global that Node lacks. */
const usage = { mapRead: 1, copySource: 4, copyTarget: 8, uniform: 64, storage: 128, queryResolve: 512 };
const mapRead = 1; // GPUMapMode.READ

/** Units of a device that multiply matrices: [m, k] by [k, n] of float16 with sums in float32, by all threads of a subgroup. */
export interface MatrixUnits {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  /** Threads of a subgroup. */
  readonly lanes: number;
}

export interface GpuOptions {
  /**
   * Most bytes of one buffer that a kernel binds; larger matrices are split.
   * @default what the device allows
   */
  readonly maxBindingBytes?: number;
  /**
   * Multiply as suits a device that runs threads one after another (`Gpu.serial`).
   * @default what the adapter says of itself: true of one in software
   */
  readonly serial?: boolean;
  /**
   * Whether WGSL has `packed_4x8_integer_dot_product` (`wgslLanguageFeatures` of `navigator.gpu`).
   * @default false
   */
  readonly packsBytes?: boolean;
  /** Of the adapter that the device came from, which some implementations tell more than the device's own. */
  readonly adapterInfo?: GPUAdapterInfo;
}

/**
 * A device with its compiled kernels and its buffers. Kernels are compiled once and kept with the device; buffers are counted,
 * so that a program can see that it gave everything back.
 */
export class Gpu {
  readonly device: GPUDevice;
  /** Most bytes of one buffer that a kernel binds. */
  readonly maxBindingBytes: number;
  readonly commands: Commands;
  /**
   * Whether threads run one after another, as a processor runs them that plays a graphics device. Barriers and memory of workgroups
   * cost it more than they save, so that products have kernels without (`serialSource`).
   */
  readonly serial: boolean;
  /** Undefined where the device has none, its subgroups differ in size, or it is `serial`. */
  readonly matrixUnits: MatrixUnits | undefined;
  /** Whether four bytes are multiplied by one instruction. */
  readonly packsBytes: boolean;
  readonly #kernels = new Map<string, Kernel>();
  readonly #alive = new Set<GpuBuffer>();
  readonly #uniforms: GPUBuffer;
  /** Buffers to read back through that no reading uses. */
  readonly #staging: GPUBuffer[] = [];
  #bytes = 0;
  #failure: CoppiceError | undefined;

  constructor(device: GPUDevice, options: GpuOptions = {}) {
    const { maxBindingBytes, adapterInfo = device.adapterInfo } = options;
    this.device = device;
    const { maxStorageBufferBindingSize, maxBufferSize } = device.limits;
    const most = Math.min(maxStorageBufferBindingSize, maxBufferSize, maxBindingBytes ?? Infinity);
    this.maxBindingBytes = Math.floor(most / 256) * 256;
    // Older browsers do not say it.
    this.serial = options.serial ?? adapterInfo.isFallbackAdapter ?? false;
    this.matrixUnits = this.serial ? undefined : findMatrixUnits(device, adapterInfo);
    this.packsBytes = options.packsBytes ?? false;
    this.#uniforms = device.createBuffer({
      size: 1024 * paramBytes,
      usage: usage.uniform | usage.copyTarget,
    });
    this.commands = new Commands(this, this.#uniforms);
    device.addEventListener("uncapturederror", (event) => {
      event.preventDefault();
      this.#failure ??= failed(`the device refused a command: ${event.error.message}`);
    });
    void device.lost.then(({ reason, message }) => {
      this.#failure = new CoppiceError(
        "COPPICE_BACKEND_LOST",
        `the device was lost (${reason}): ${message}`,
        {
          hint: "load the model again, which opens the device anew; a search goes on where it was",
          retryable: true,
        },
      );
    });
  }

  /** Buffers that are not disposed, and their bytes. */
  get memory(): { readonly buffers: number; readonly bytes: number } {
    return { buffers: this.#alive.size, bytes: this.#bytes };
  }

  has(feature: GPUFeatureName): boolean {
    return this.device.features.has(feature);
  }

  /** A buffer of zeros. @throws COPPICE_BACKEND_FAILED when the device cannot bind one as large */
  buffer(bytes: number, label: string): GpuBuffer {
    const size = Math.max(16, Math.ceil(bytes / 16) * 16);
    if (size > this.maxBindingBytes) {
      throw failed(
        `${label} would take ${size} bytes in one buffer; the device binds at most ${this.maxBindingBytes}`,
        "run fewer tokens at once",
      );
    }
    const handle = this.device.createBuffer({
      label,
      size,
      usage: usage.storage | usage.copySource | usage.copyTarget,
    });
    const buffer = new GpuBuffer(handle, size, (done) => this.#release(done));
    this.#alive.add(buffer);
    this.#bytes += size;
    return buffer;
  }

  /** A buffer with these values. */
  upload(values: Float32Array | Uint32Array | Int32Array | Uint8Array, label: string): GpuBuffer {
    const buffer = this.buffer(values.byteLength, label);
    this.write(buffer, values);
    return buffer;
  }

  /** Writes values from `byte` on: what was recorded before sees the old ones, what is recorded later the new ones. */
  write(buffer: GpuBuffer, values: Float32Array | Uint32Array | Int32Array | Uint8Array, byte = 0): void {
    if (values.byteLength === 0) return;
    this.commands.submit();
    const { queue } = this.device;
    const { byteOffset, byteLength } = values;
    const whole = byteLength - (byteLength % 4);
    const source = values.buffer as ArrayBuffer;
    if (whole > 0) queue.writeBuffer(buffer.handle, byte, source, byteOffset, whole);
    if (whole === byteLength) return;
    const rest = new Uint8Array(4);
    rest.set(new Uint8Array(source, byteOffset + whole, byteLength - whole));
    queue.writeBuffer(buffer.handle, byte + whole, rest);
  }

  /** A kernel, compiled when `key` is new. */
  kernel<P extends string>(key: string, source: () => KernelSource<P>): Kernel<P> {
    const known = this.#kernels.get(key);
    if (known) return known as Kernel<P>;
    const kernel = compileKernel(this.device, this.#kernels.size, source());
    this.#kernels.set(key, kernel as Kernel);
    return kernel;
  }

  /**
   * Submits what was recorded and reads bytes of buffers back, all in one transfer. Readings may overlap.
   * @throws COPPICE_BACKEND_LOST, COPPICE_BACKEND_FAILED when the device refused a command
   */
  async read(parts: readonly { buffer: GpuBuffer; byte?: number; bytes: number }[]): Promise<ArrayBuffer[]> {
    const total = parts.reduce((sum, { bytes }) => sum + bytes, 0);
    const staging = this.#takeStaging(total);
    let at = 0;
    for (const { buffer, byte = 0, bytes } of parts) {
      this.commands.copy(buffer, byte, staging, at, bytes);
      at += bytes;
    }
    this.commands.submit();
    this.throwIfFailed();
    try {
      await staging.mapAsync(mapRead, 0, total);
    } catch (cause) {
      staging.destroy();
      // Of a device that is lost, the news may come later than the end of what waited for it.
      await Promise.race([this.device.lost, new Promise((resolve) => setTimeout(resolve, 100))]);
      this.throwIfFailed();
      throw new CoppiceError("COPPICE_BACKEND_FAILED", "results could not be read from the device", {
        cause,
      });
    }
    const mapped = staging.getMappedRange(0, total);
    at = 0;
    const out = parts.map(({ bytes }) => {
      const part = mapped.slice(at, at + bytes);
      at += bytes;
      return part;
    });
    staging.unmap();
    this.#staging.push(staging);
    this.throwIfFailed();
    return out;
  }

  #takeStaging(bytes: number): GPUBuffer {
    const known = this.#staging.pop();
    if (known && known.size >= bytes) return known;
    known?.destroy();
    return this.device.createBuffer({
      size: Math.max(4096, 2 ** Math.ceil(Math.log2(bytes))),
      usage: usage.mapRead | usage.copyTarget,
    });
  }

  /** The first `count` values of a buffer. */
  async readFloats(buffer: GpuBuffer, count: number, from = 0): Promise<Float32Array> {
    const [bytes] = await this.read([{ buffer, byte: 4 * from, bytes: 4 * count }]);
    return new Float32Array(bytes as ArrayBuffer);
  }

  /** Waits until everything that was recorded is done. */
  async idle(): Promise<void> {
    this.commands.submit();
    await this.device.queue.onSubmittedWorkDone();
    this.throwIfFailed();
  }

  /** Nanoseconds that the recorded work took on the device; undefined where it has no timestamps. */
  async time(record: () => void): Promise<number | undefined> {
    if (!this.has("timestamp-query")) {
      record();
      await this.idle();
      return undefined;
    }
    const querySet = this.device.createQuerySet({ type: "timestamp", count: 2 });
    const resolved = this.device.createBuffer({ size: 16, usage: usage.queryResolve | usage.copySource });
    const target = this.buffer(16, "timestamps");
    this.commands.submit();
    this.commands.timePass(querySet);
    record();
    this.commands.encode((encoder) => {
      encoder.resolveQuerySet(querySet, 0, 2, resolved, 0);
      encoder.copyBufferToBuffer(resolved, 0, target.handle, 0, 16);
    });
    const [bytes] = await this.read([{ buffer: target, bytes: 16 }]);
    const [start = 0n, end = 0n] = new BigUint64Array(bytes as ArrayBuffer);
    target.dispose();
    resolved.destroy();
    querySet.destroy();
    return Number(end - start);
  }

  /** @throws COPPICE_BACKEND_FAILED when a command was refused, COPPICE_BACKEND_LOST */
  throwIfFailed(): void {
    if (this.#failure) throw this.#failure;
  }

  /** True when the device was lost or refused a command: it is not to be used again. */
  get broken(): boolean {
    return this.#failure !== undefined;
  }

  /** Frees all buffers and kernels. The device itself belongs to who made it. */
  dispose(): void {
    for (const buffer of this.#alive) buffer.dispose();
    for (const staging of this.#staging.splice(0)) staging.destroy();
    this.#uniforms.destroy();
    this.#kernels.clear();
  }

  #release(buffer: GpuBuffer): void {
    // What was recorded may still use it.
    this.commands.submit();
    this.#alive.delete(buffer);
    this.#bytes -= buffer.bytes;
    for (const forget of buffer.bound) forget();
    buffer.handle.destroy();
  }
}

/** What the WebGPU extension says of a device, which the types of the standard lack. */
interface UnitsInfo {
  readonly subgroupMinSize?: number;
  readonly subgroupMaxSize?: number;
  readonly subgroupMatrixConfigs?: Iterable<{
    readonly componentType: string;
    readonly resultComponentType: string;
    readonly M: number;
    readonly N: number;
    readonly K: number;
  }>;
}

function findMatrixUnits({ features }: GPUDevice, info: UnitsInfo): MatrixUnits | undefined {
  if (!features.has("chromium-experimental-subgroup-matrix" as GPUFeatureName)) return undefined;
  const { subgroupMinSize: lanes, subgroupMaxSize, subgroupMatrixConfigs = [] } = info;
  if (lanes === undefined || lanes !== subgroupMaxSize) return undefined;
  const fitting = [...subgroupMatrixConfigs].filter(
    ({ componentType, resultComponentType, M, N, K }) =>
      componentType === "f16" && resultComponentType === "f32" && M === N && 16 % M === 0 && 16 % K === 0,
  );
  const largest = fitting.sort((a, b) => b.M * b.N * b.K - a.M * a.N * a.K)[0];
  return largest && { m: largest.M, n: largest.N, k: largest.K, lanes };
}

function failed(message: string, hint?: string): CoppiceError {
  return new CoppiceError("COPPICE_BACKEND_FAILED", message, hint === undefined ? {} : { hint });
}
