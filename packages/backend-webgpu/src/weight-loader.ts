import {
  elementCount,
  type LinearSpec,
  type MlpSpec,
  type NormSpec,
  type QuantizedMatrix,
  type TensorRef,
  throwIfAborted,
  type WeightReader,
} from "@coppice/core";
import {
  createMatrix,
  disposeMatrix,
  type Gpu,
  type GpuBuffer,
  type GpuMatrix,
  writeQuantized,
  writeRows,
} from "@coppice/kernels-webgpu";
import type { ExpertBiases, Experts, Linear, Mlp, Norm, Owned } from "./model-weights.js";
import { commonFormat, interleave, interleaveCodes } from "./weight-format.js";

/** Bytes of uploads that may be under way: the host holds no more of the weights than that. */
const uploadBytes = 256 * 1024 * 1024;

/** Reads tensors, each once, and puts them on the device; none is kept on the host. */
export class WeightLoader implements Owned {
  readonly #gpu: Gpu;
  readonly #reader: WeightReader;
  readonly #signal: AbortSignal | undefined;
  readonly #wide: boolean;
  readonly #buffers: GpuBuffer[] = [];
  readonly #matrices: GpuMatrix[] = [];
  #pending = 0;

  /** @param wide whether projections that are no codes are widened to float32 */
  constructor(gpu: Gpu, reader: WeightReader, signal: AbortSignal | undefined, wide: boolean) {
    this.#gpu = gpu;
    this.#reader = reader;
    this.#signal = signal;
    this.#wide = wide;
  }

  dispose(): void {
    for (const buffer of this.#buffers) buffer.dispose();
    for (const matrix of this.#matrices) disposeMatrix(matrix);
  }

  /** Values on the host. */
  async values(ref: TensorRef): Promise<Float32Array> {
    throwIfAborted(this.#signal, `reading ${ref.name}`);
    return this.#reader.read(ref, this.#signal ? { signal: this.#signal } : {});
  }

  async optionalValues(ref: TensorRef | undefined): Promise<Float32Array | undefined> {
    return ref && this.values(ref);
  }

  buffer(values: Float32Array, name: string): GpuBuffer {
    const buffer = this.#gpu.upload(values, name);
    this.#buffers.push(buffer);
    return buffer;
  }

  async vector(ref: TensorRef | undefined): Promise<GpuBuffer | undefined> {
    return ref && this.buffer(await this.values(ref), ref.name);
  }

  /** A matrix in blocks of one row. */
  async matrix(ref: TensorRef, isProjection: boolean): Promise<GpuMatrix> {
    const [blocks, columns] = ref.shape as [number, number];
    const format = commonFormat([ref], this.#canReadCodes, isProjection && this.#wide);
    const matrix = this.#create({ format, blocks, rows: 1, columns }, ref.name);
    await this.#fill(matrix, 0, [ref]);
    return matrix;
  }

  async linear({ weight, bias }: LinearSpec): Promise<Linear> {
    const [outputs, inputs] = weight.shape as [number, number];
    return { weight: await this.matrix(weight, true), bias: await this.vector(bias), inputs, outputs };
  }

  async norm({ kind, weight, bias, epsilon }: NormSpec): Promise<Norm> {
    return { kind, epsilon, weight: await this.vector(weight), bias: await this.vector(bias) };
  }

  async mlp({ gate, up, down, gateBias, upBias, downBias, width, activation }: MlpSpec): Promise<Mlp> {
    const columns = up.shape[1] as number;
    const refs = gate ? [up, gate] : [up];
    const format = commonFormat(refs, this.#canReadCodes);
    const units = this.#create({ format, blocks: width, rows: refs.length, columns }, up.name);
    await this.#fill(units, 0, refs);
    const biases = await this.#unitBiases(upBias, gate && gateBias);
    return {
      width,
      activation,
      units,
      unitsBias: biases && this.buffer(biases.inTurn, up.name),
      down: await this.linear({ weight: down, ...(downBias && { bias: downBias }) }),
    };
  }

  /** Experts of equal shapes, each in a block. */
  async experts(specs: readonly MlpSpec[]): Promise<{ experts: Experts; biases: ExpertBiases[] }> {
    const first = specs[0] as MlpSpec;
    const { width, activation } = first;
    const gated = first.gate !== undefined;
    const turns = gated ? 2 : 1;
    const [hidden, columns] = first.down.shape as [number, number];
    const unitRefs = specs.flatMap(({ up, gate }) => (gate ? [up, gate] : [up]));
    const count = specs.length;
    const unitFormat = commonFormat(unitRefs, this.#canReadCodes);
    const downFormat = commonFormat(
      specs.map(({ down }) => down),
      this.#canReadCodes,
    );
    const units = this.#create(
      { format: unitFormat, blocks: count, rows: turns * width, columns: hidden },
      first.up.name,
    );
    const down = this.#create({ format: downFormat, blocks: count, rows: hidden, columns }, first.down.name);
    const biases: ExpertBiases[] = [];
    const unitBias = new Float32Array(first.upBias ? count * turns * width : 0);
    const downBias = new Float32Array(first.downBias ? count * hidden : 0);
    for (const [i, spec] of specs.entries()) {
      await this.#fill(units, i * turns * width, spec.gate ? [spec.up, spec.gate] : [spec.up]);
      await this.#fill(down, i * hidden, [spec.down]);
      const own = await this.#unitBiases(spec.upBias, spec.gate && spec.gateBias);
      if (own) unitBias.set(own.inTurn, i * turns * width);
      const last = await this.optionalValues(spec.downBias);
      if (last) downBias.set(last, i * hidden);
      biases.push({ up: own?.up, gate: own?.gate, down: last });
    }
    const stack = (matrix: GpuMatrix, bias: Float32Array) => ({
      matrix,
      bias: bias.length > 0 ? this.buffer(bias, "biases of experts") : undefined,
    });
    const experts = { width, activation, gated, units: stack(units, unitBias), down: stack(down, downBias) };
    return { experts, biases };
  }

  get #canReadCodes(): boolean {
    return this.#reader.readQuantized !== undefined;
  }

  #create(form: Omit<GpuMatrix, "parts">, name: string): GpuMatrix {
    const matrix = createMatrix(this.#gpu, form, name);
    this.#matrices.push(matrix);
    return matrix;
  }

  async #unitBiases(up: TensorRef | undefined, gate: TensorRef | undefined) {
    if (!up) return undefined;
    const values = { up: await this.values(up), gate: await this.optionalValues(gate) };
    return { ...values, inTurn: values.gate ? interleave(values.up, values.gate, 1) : values.up };
  }

  /** Reads one tensor, or two whose rows lie in turn, into rows from `row` on. */
  async #fill(matrix: GpuMatrix, row: number, refs: readonly TensorRef[]): Promise<void> {
    if (matrix.format.kind === "quantized") {
      const [first, second] = [
        await this.#codes(refs[0] as TensorRef),
        refs[1] && (await this.#codes(refs[1])),
      ];
      writeQuantized(this.#gpu, matrix, row, second ? interleaveCodes(first, second) : first);
    } else {
      const [first, second] = [await this.values(refs[0] as TensorRef), await this.optionalValues(refs[1])];
      writeRows(this.#gpu, matrix, row, second ? interleave(first, second, matrix.columns) : first);
    }
    this.#pending += refs.reduce((sum, { shape }) => sum + 4 * elementCount(shape), 0);
    if (this.#pending < uploadBytes) return;
    this.#pending = 0;
    await this.#gpu.idle();
  }

  async #codes(ref: TensorRef): Promise<QuantizedMatrix> {
    throwIfAborted(this.#signal, `reading ${ref.name}`);
    const codes = await this.#reader.readQuantized?.(ref, this.#signal ? { signal: this.#signal } : {});
    if (!codes) throw new TypeError(`${ref.name} is described as packed codes and read as something else`);
    return codes;
  }
}
