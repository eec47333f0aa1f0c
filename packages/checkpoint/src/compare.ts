import {
  dtypeBytes,
  elementCount,
  type MlpSpec,
  type MoeLayer,
  moeLayers,
  type Plan,
  parsePlan,
  type RunEmitter,
  type SkipRule,
  type TensorRef,
  throwIfAborted,
} from "@coppice/core";
import type { ExpertRows, ExpertTensors } from "./families/expert-tensors.js";
import type { LoadedCheckpoint } from "./load.js";
import { type ExpertPart, expertParts, mergedPart } from "./merged-part.js";
import { stackShare } from "./output/expert-shares.js";
import { type ExpertSlot, isDown, type OwnSlot, slotsIn, sourcesOf } from "./output/expert-slots.js";
import { exportShape, type LayerShape } from "./output/export-shape.js";
import { neverChosen } from "./output/padding.js";

export interface CompareOptions {
  readonly signal?: AbortSignal;
  /** Gets `progress` in bytes of the other checkpoint. */
  readonly emitter?: RunEmitter;
}

/** What `compareTensors` found. */
export interface TensorComparison {
  readonly equal: boolean;
  /** Tensors and bytes of the other checkpoint. */
  readonly tensors: number;
  readonly bytes: number;
  /** What differs, in words, at most 16 entries. */
  readonly differences: readonly string[];
}

const mostDifferences = 16;
/** Bytes of each of two files that are compared at a time. */
const chunkBytes = 4 << 20;

/**
 * Whether `other` is what `plan` makes of `original`, tensor by tensor: what may not run can still be verified.
 * Both checkpoints are read through their own descriptions: every kept expert must have the bytes that it had, every
 * merged one the bits that merging anew gives, router entries must be those of their experts or of the plan, experts that
 * fill up must be out of reach, every layer must have its top-k and its skip rule, and everything else must be the same bytes under the same name.
 * @throws COPPICE_PLAN_MODEL and others of `parsePlan`, COPPICE_PLAN_EXPORT, COPPICE_IO_READ, COPPICE_ABORTED
 */
export async function compareTensors(
  original: LoadedCheckpoint,
  plan: Plan,
  other: LoadedCheckpoint,
  options: CompareOptions = {},
): Promise<TensorComparison> {
  const comparison = new Comparison(original, other, options);
  await comparison.run(parsePlan(plan, original.model));
  return comparison;
}

class Comparison implements TensorComparison {
  readonly differences: string[] = [];
  readonly #original: LoadedCheckpoint;
  readonly #other: LoadedCheckpoint;
  readonly #options: CompareOptions;
  readonly #seen = new Set<string>();
  readonly bytes: number;
  #done = 0;

  constructor(original: LoadedCheckpoint, other: LoadedCheckpoint, options: CompareOptions) {
    this.#original = original;
    this.#other = other;
    this.#options = options;
    this.bytes = [...other.tensors.values()].reduce((sum, { begin, end }) => sum + end - begin, 0);
  }

  get equal(): boolean {
    return this.differences.length === 0;
  }

  get tensors(): number {
    return this.#other.tensors.size;
  }

  async run(plan: Plan): Promise<void> {
    const { model, edits } = this.#original;
    const found = moeLayers(this.#other.model);
    const differ = (of: (layer: MoeLayer["feedForward"]) => number) =>
      new Set(found.map(({ feedForward }) => of(feedForward))).size > 1;
    const isRuntime =
      differ(({ experts }) => experts.length) ||
      differ(({ router }) => router.topK) ||
      found.some(({ feedForward }) => feedForward.router.skip);
    const shape = exportShape(model, plan, isRuntime ? "runtime" : "stock");
    const layers = new Map(shape.layers.map((layer) => [layer.layer, layer]));
    for (const { layer, topK, skip } of shape.layers) {
      const router = found.find(({ index }) => index === layer)?.feedForward.router;
      if (router?.topK !== topK) this.#differ(`layer ${layer} has top-k ${router?.topK}, expected ${topK}`);
      const [stated, expected] = [ruleWords(router?.skip), ruleWords(skip)];
      if (stated !== expected)
        this.#differ(`layer ${layer} has the skip rule ${stated}, expected ${expected}`);
    }
    const replaced = new Set<string>();
    for (const [i, set] of edits.entries()) {
      for (const { tensor } of [...set.rows, ...set.separate, ...set.stacked]) replaced.add(tensor.name);
      const twin = this.#other.edits[i];
      const layer = layers.get(set.layer) as LayerShape;
      const of = slotsIn(set, layer.slots);
      if (!twin || twin.experts !== of.length) {
        this.#differ(`${set.label} has ${twin?.experts ?? "no"} experts, expected ${of.length}`);
        continue;
      }
      await this.#compareSet(set, twin, of, set.isMtp ? undefined : layer.router);
    }
    for (const ref of this.#original.tensors.values()) {
      if (!replaced.has(ref.name)) await this.#compareBytes(ref, this.#other.tensors.get(ref.name), ref.name);
    }
    for (const name of this.#other.tensors.keys()) {
      if (!this.#seen.has(name)) this.#differ(`${name} does not belong to it`);
    }
  }

  async #compareSet(
    set: ExpertTensors,
    twin: ExpertTensors,
    slots: readonly ExpertSlot[],
    entries: LayerShape["router"],
  ): Promise<void> {
    for (const [i, rows] of set.rows.entries()) await this.#compareRows(rows, twin.rows[i], slots, entries);
    for (const [slot, source] of slots.entries()) {
      if (source.kind === "pad") continue;
      const changesDown = source.kind === "changed" && source.rest.kind === "expert";
      // The model describes the experts of its own layers; those for multi-token prediction merge by the same code.
      if (source.kind !== "expert" && !set.isMtp) {
        await this.#compareMerge(set.layer, slot, source, changesDown ? ["down"] : expertParts);
      }
      if (source.kind !== "expert" && !changesDown) continue;
      for (const stack of set.stacked) {
        if (changesDown && isDown(stack.units)) continue;
        const mate = twin.stacked.find(({ tensor }) => tensor.name === stack.tensor.name);
        const own = stackShare(stack, source.expert, set.experts);
        const found = mate && stackShare(mate, slot, twin.experts);
        await this.#compareBytes(own, found, `expert ${slot} of ${stack.tensor.name}`);
      }
      for (const { tensor, pattern, expert, units } of set.separate) {
        if (expert !== source.expert || (changesDown && isDown(units))) continue;
        const name = pattern.replace("{e}", String(slot));
        await this.#compareBytes(tensor, this.#other.tensors.get(name), name);
      }
    }
    for (const { tensor } of [...twin.rows, ...twin.separate, ...twin.stacked]) this.#seen.add(tensor.name);
  }

  async #compareRows(
    { tensor, axis, role }: ExpertRows,
    twin: ExpertRows | undefined,
    slots: readonly ExpertSlot[],
    entries: LayerShape["router"],
  ): Promise<void> {
    if (twin?.tensor.name !== tensor.name) return this.#differ(`${tensor.name} is missing`);
    const [own, found] = [
      await this.#bytes(this.#original, tensor),
      await this.#bytes(this.#other, twin.tensor),
    ];
    const inner = elementCount(tensor.shape.slice(axis + 1)) * dtypeBytes[tensor.dtype];
    const outer = elementCount(tensor.shape.slice(0, axis));
    const entry = (bytes: Uint8Array, experts: number, block: number, expert: number) =>
      bytes.subarray((block * experts + expert) * inner, (block * experts + expert + 1) * inner);
    const values =
      role === "weight" && !entries ? undefined : await this.#other.weights.read(twin.tensor, this.#signal);
    for (const [slot, source] of slots.entries()) {
      if (source.kind === "pad") {
        if (role !== "weight" && !((values?.[slot] as number) < neverChosen)) {
          this.#differ(
            `${tensor.name}[${slot}] is ${values?.[slot]}, which may let an expert that fills up be chosen`,
          );
        }
        continue;
      }
      const given = entries?.get(source.expert)?.[role];
      if (given) {
        const start = slot * given.length;
        if (given.some((value, i) => value !== values?.[start + i]))
          this.#differ(`${tensor.name}[${slot}] is not that of the plan`);
        continue;
      }
      for (let block = 0; block < outer; block++) {
        const expected = entry(own, tensor.shape[axis] as number, block, source.expert);
        if (!sameBytes(expected, entry(found, slots.length, block, slot))) {
          this.#differ(`${tensor.name}[${slot}] is not that of expert ${source.expert}`);
          break;
        }
      }
    }
  }

  async #compareMerge(
    layer: number,
    slot: number,
    source: OwnSlot,
    parts: readonly ExpertPart[],
  ): Promise<void> {
    const specs = ({ model }: LoadedCheckpoint) =>
      moeLayers(model).find(({ index }) => index === layer)?.feedForward.experts as readonly MlpSpec[];
    const experts = specs(this.#original);
    const found = specs(this.#other)[slot] as MlpSpec;
    const { signal } = this.#options;
    for (const part of parts.filter((one) => experts[source.expert]?.[one])) {
      const expected = await mergedPart(experts, source, part, this.#original.weights, signal);
      const actual = await this.#other.weights.read(found[part] as TensorRef, this.#signal);
      if (expected.every((value, i) => value === actual[i])) continue;
      const what = source.kind === "changed" && part === "down" ? "the plan's change" : "the merge";
      const { name } = found[part] as TensorRef;
      this.#differ(`${name} is not ${what} of experts ${sourcesOf(source).join(", ")}`);
    }
  }

  async #compareBytes(own: TensorRef, found: TensorRef | undefined, name: string): Promise<void> {
    if (!found) return this.#differ(`${name} is missing`);
    this.#seen.add(found.name);
    if (own.dtype !== found.dtype || own.shape.join() !== found.shape.join()) {
      const words = ({ dtype, shape }: TensorRef) => `${dtype} [${shape.join(", ")}]`;
      return this.#differ(`${name} is ${words(found)}, expected ${words(own)}`);
    }
    const size = own.end - own.begin;
    for (let at = 0; at < size; at += chunkBytes) {
      const end = Math.min(size, at + chunkBytes);
      const [a, b] = await Promise.all([
        this.#read(this.#original, own.file, own.begin + at, end - at),
        this.#read(this.#other, found.file, found.begin + at, end - at),
      ]);
      this.#report(end - at);
      if (!sameBytes(a, b)) return this.#differ(`${name} differs`);
    }
  }

  #bytes(checkpoint: LoadedCheckpoint, { file, begin, end }: TensorRef): Promise<Uint8Array> {
    return this.#read(checkpoint, file, begin, end - begin);
  }

  async #read({ sources }: LoadedCheckpoint, file: string, at: number, size: number): Promise<Uint8Array> {
    throwIfAborted(this.#options.signal, "comparing tensors");
    const bytes = new Uint8Array(size);
    await sources.use(file, (source) => source.read(at, bytes, this.#signal));
    return bytes;
  }

  get #signal(): { signal?: AbortSignal } {
    return this.#options.signal ? { signal: this.#options.signal } : {};
  }

  #report(bytes: number): void {
    this.#done += bytes;
    const total = this.bytes;
    this.#options.emitter?.notify("progress", {
      stage: "comparing tensors",
      done: this.#done,
      total,
      unit: "bytes",
    });
  }

  #differ(what: string): void {
    if (this.differences.length < mostDifferences) this.differences.push(what);
  }
}

function ruleWords(rule: SkipRule | undefined): string {
  return rule ? `${rule.rule} ${rule.threshold}, spare ${rule.spare ?? 0}` : "none";
}

function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}
